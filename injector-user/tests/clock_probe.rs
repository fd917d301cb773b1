//! The clock probes on programs that make system calls, compared with the true clocks, which the programs
//! and this test read by the vDSO, unaffected by probes.
//!
//! Under lockdown, the tests only check that the probes are refused, with the reason.

use std::{
    fs::File,
    io::Write as _,
    ops::RangeInclusive,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use injector_common::model::clock::{CLOCKS, Clock, FREEZE, STROBE, Skew, Span};
use injector_user::kernel::{
    cgroup::CgroupKey,
    clock::true_time,
    clock_probe::{ClockProbe, ClockProbeError, Config, refusal},
    members::Members,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{INJECTOR, Process, TestCgroup, number, program, skip};

const SECOND: i64 = 1_000_000_000;
const HOUR: i64 = 3600 * SECOND;

/// How late and how early a waiter may be, on a busy machine without KVM.
const LATE: u64 = 2_000_000_000;
const EARLY: u64 = 1_000_000;

/// Whether the kernel is locked down.
fn is_locked_down() -> bool {
    let script = "mount -t securityfs none /tmp && cat /tmp/lockdown";
    let output = Command::new("unshare").args(["--mount", "sh", "-c", script]).output();
    let text = String::from_utf8(output.expect("unshare is here").stdout).expect("text");
    text.contains('[') && !text.contains("[none]")
}

/// Probes on the processes of a cgroup; `None` where the kernel must refuse them. They skip system calls
/// made by the vDSO, which makes them if it cannot read the machine's clock source (QEMU's hpet).
fn attach(cgroup: &TestCgroup, config: impl FnOnce(&mut Config)) -> Option<ClockProbe> {
    let id = cgroup.path.metadata().expect("it is there").ino();
    let mut parameters = Config {
        members: Members::Cgroup(CgroupKey { id, level: 1 }),
        skip_vdso: true,
        hide_vdso: false,
    };
    config(&mut parameters);
    match ClockProbe::attach(&parameters) {
        Ok(probe) => Some(probe),
        Err(ClockProbeError::Lockdown(_)) if is_locked_down() => {
            skip("the kernel is locked down: eBPF cannot write to user memory");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// Skews these clocks for an hour from now.
fn skewed(clocks: &[Clock], skew: Skew) -> Skew {
    let mut spans = [Span::TRUE; CLOCKS];
    for &clock in clocks {
        let base = true_time()[clock as usize];
        spans[clock as usize] = Span { base, lease: base + HOUR };
    }
    Skew { clocks: spans, ..skew }
}

fn offset(offset: i64) -> Skew {
    Skew { offset, ..Skew::TRUE }
}

/// A command in a cgroup, killed with the test.
fn command(program: impl AsRef<Path>, cgroup: Option<&TestCgroup>) -> Command {
    let procs = cgroup.map(|cgroup| {
        let path = cgroup.path.join("cgroup.procs");
        File::options().write(true).open(path).expect("the cgroup is there")
    });
    let mut command = Command::new(program.as_ref());
    // SAFETY: only system calls are made, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // "0" is the writing process.
            procs.as_ref().map_or(Ok(()), |procs| (&*procs).write_all(b"0"))
        });
    }
    command
}

fn clockcalls(cgroup: Option<&TestCgroup>, line: &str) -> Command {
    let mut command = command(program("clockcalls"), cgroup);
    command.args(line.split_whitespace());
    command
}

/// Runs `clockcalls` of the testbed. Returns its report.
fn run(cgroup: Option<&TestCgroup>, line: &str) -> Value {
    Process::start(clockcalls(cgroup, line)).finish()
}

fn integers(report: &Value) -> Vec<i64> {
    let array = report.as_array().unwrap_or_else(|| panic!("{report}"));
    array.iter().map(|number| number.as_i64().expect("a number")).collect()
}

/// Checks a report of `read`: each clock by system call lies between the skewed readings by the vDSO
/// before and after it.
#[track_caller]
fn check(report: &Value, skew: &Skew) {
    let clocks = report["clocks"].as_object().expect("clocks");
    assert!(clocks.len() >= 8, "{report}");
    for (id, readings) in clocks {
        let clock = Clock::of_id(id.parse().expect("a number"));
        let shown = |ns| clock.map_or(ns, |clock| skew.read(clock, ns));
        let [before, direct, after] = integers(readings)[..] else { panic!("{readings}") };
        assert!(
            (shown(before)..=shown(after)).contains(&direct),
            "clock {id}: {direct} is not within {}..={}",
            shown(before),
            shown(after)
        );
    }
    let [before, direct, after] = integers(&report["gettimeofday"])[..] else { panic!("{report}") };
    let shown = |ns| skew.read(Clock::Realtime, ns);
    assert!((shown(before) - 1000..=shown(after)).contains(&direct), "gettimeofday in {report}");
}

#[test]
fn they_are_refused_under_lockdown_only() {
    match refusal() {
        None => assert!(!is_locked_down()),
        Some(error) => {
            assert!(is_locked_down(), "{error:?}");
            assert!(error.to_string().contains("locked down"), "{error}");
        }
    }
    let mut doctor = Command::new(INJECTOR);
    let output = doctor.args(["doctor", "--output", "json"]).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = text.lines().find(|line| line.contains("engine probe")).expect("a finding");
    let finding = testbed::output::parse(line);
    assert_eq!(finding["verdict"] == "ok", !is_locked_down(), "{finding}");
}

#[test]
fn offsets_are_exact_in_the_cgroup_and_below_and_nowhere_else() {
    let cgroup = TestCgroup::new();
    let below = cgroup.child("below");
    let other = TestCgroup::new();
    let Some(mut probe) = attach(&cgroup, |_| {}) else { return };
    check(&run(Some(&cgroup), "read"), &Skew::TRUE);
    // The last one is before 1970.
    for ns in [1, -1, HOUR, -HOUR, 500_000_001, 12 * 365 * 24 * HOUR, -80 * 365 * 24 * HOUR] {
        for clocks in [&[Clock::Realtime][..], &Clock::ALL] {
            let skew = skewed(clocks, offset(ns));
            probe.set(&skew);
            check(&run(Some(&cgroup), "read"), &skew);
            check(&run(Some(&below), "read"), &skew);
            check(&run(Some(&other), "read"), &Skew::TRUE);
            check(&run(None, "read"), &Skew::TRUE);
        }
    }
    let counters = probe.counters();
    assert!(counters.matched > counters.rewritten && counters.rewritten > 0, "{counters:?}");
    assert_eq!(counters.failed, 0, "{counters:?}");
    drop(probe);
    check(&run(Some(&cgroup), "read"), &Skew::TRUE);
}

#[test]
fn drift_freeze_strobe_and_the_end_of_the_lease_are_those_of_the_model() {
    let cgroup = TestCgroup::new();
    let Some(mut probe) = attach(&cgroup, |_| {}) else { return };
    let strobe = Skew { step: 90 * SECOND, period_ns: 100_000_000, ..Skew::TRUE };
    for skew in [
        Skew { drift: 1 << 31, ..offset(SECOND) },
        Skew { drift: -(1 << 31), ..Skew::TRUE },
        Skew { flags: FREEZE, ..offset(-HOUR) },
        Skew { slew: 1 << 28, slew_ns: 100_000_000, ..Skew::TRUE },
        strobe,
    ] {
        let skew = skewed(&Clock::ALL, skew);
        probe.set(&skew);
        for _ in 0..3 {
            check(&run(Some(&cgroup), "read"), &skew);
        }
    }
    // If the clock switches back between the readings, there is no valid range.
    let skew = skewed(&Clock::ALL, Skew { flags: STROBE, period_ns: HOUR, ..strobe });
    probe.set(&skew);
    check(&run(Some(&cgroup), "read"), &skew);

    let mut skew = skewed(&Clock::ALL, offset(HOUR));
    for span in &mut skew.clocks {
        span.lease = span.base + SECOND;
    }
    probe.set(&skew);
    thread::sleep(Duration::from_millis(1100));
    check(&run(Some(&cgroup), "read"), &Skew::TRUE);
    let report = run(Some(&cgroup), "wait nanosleep 0 300");
    assert!(number(&report, "waited_ns") >= 300_000_000 - EARLY, "{report}");
    assert_eq!(probe.counters().deadlines, 0);
}

/// Checks a report of `wait` for this time, by the true clock.
#[track_caller]
fn check_wait(what: &str, report: &Value, true_ns: u64) {
    let waited = number(report, "waited_ns");
    let allowed: RangeInclusive<u64> = true_ns - EARLY..=true_ns + LATE;
    assert!(allowed.contains(&waited), "{what}: {true_ns} ns to wait for, in {report}");
    assert_eq!(report["deadline"], report["deadline_after"], "{what}");
    let integer = |key: &str| report[key].as_i64().expect("a number");
    assert!(integer("woken_at") >= integer("deadline"), "{what}: {report}");
}

/// Ways to wait, with the clock's ID: 0 for `CLOCK_REALTIME`, 1 for `CLOCK_MONOTONIC`, 7 for
/// `CLOCK_BOOTTIME`, 11 for `CLOCK_TAI`.
const WAYS: [&str; 16] = [
    "nanosleep 0",
    "nanosleep 1",
    "nanosleep 7",
    "nanosleep 11",
    "timerfd 0",
    "timerfd 1",
    "timerfd 7",
    "timer 0",
    "timer 1",
    "futex 0",
    "futex 1",
    "futex_waitv 0",
    "futex_waitv 1",
    "cond 0",
    "cond 1",
    "mq 0",
];

#[test]
fn who_waits_for_a_time_wakes_when_its_clock_reads_it() {
    const MS: u64 = 300;
    let cgroup = TestCgroup::new();
    let Some(mut probe) = attach(&cgroup, |_| {}) else { return };
    for ns in [HOUR, -HOUR] {
        let skew = skewed(&Clock::ALL, offset(ns));
        probe.set(&skew);
        let before = probe.counters().deadlines;
        for way in WAYS {
            // A time before the boot cannot be waited for.
            if ns < 0 && !way.ends_with(" 0") && !way.ends_with(" 11") {
                continue;
            }
            let report = run(Some(&cgroup), &format!("wait {way} {MS}"));
            check_wait(way, &report, MS * 1_000_000);
            check_wait(way, &run(None, &format!("wait {way} 1")), 1_000_000);
        }
        let counters = probe.counters();
        assert!(counters.deadlines > before, "{counters:?}");
        assert_eq!((counters.failed, counters.left), (0, 0), "{counters:?}");
    }
}

#[test]
fn who_waits_by_a_clock_that_goes_wrong_wakes_earlier_or_later() {
    let cgroup = TestCgroup::new();
    let Some(mut probe) = attach(&cgroup, |_| {}) else { return };
    for (drift, true_ms) in [(1 << 32, 500), (-(1 << 31), 2000)] {
        let skew = skewed(&[Clock::Realtime], Skew { drift, ..offset(-SECOND) });
        probe.set(&skew);
        let report = run(Some(&cgroup), "wait nanosleep 0 1000");
        check_wait("drift", &report, true_ms * 1_000_000);
    }
    // Steps forward over the deadline, a second from now.
    let step = Skew { step: HOUR, first_ns: SECOND, period_ns: i64::MAX, ..Skew::TRUE };
    let start = Instant::now();
    probe.set(&skewed(&[Clock::Realtime], step));
    let report = run(Some(&cgroup), "wait cond 0 1800000");
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_secs(1) && elapsed < Duration::from_secs(8), "{report}");
    // Waits by a frozen clock are not changed: by the true clock, the deadline has passed.
    let frozen = Skew { flags: FREEZE, ..offset(-HOUR) };
    probe.set(&skewed(&[Clock::Realtime], frozen));
    let report = run(Some(&cgroup), "wait nanosleep 0 1000");
    assert!(number(&report, "waited_ns") < 1_000_000_000, "{report}");
    assert_eq!(probe.counters().left, 1);
}

#[test]
fn threads_may_share_a_deadline_and_it_may_be_constant() {
    let cgroup = TestCgroup::new();
    let Some(mut probe) = attach(&cgroup, |_| {}) else { return };
    probe.set(&skewed(&Clock::ALL, offset(HOUR)));
    let report = run(Some(&cgroup), "share 0 1500");
    for waited in integers(&report["waited_ns"]) {
        let allowed = 1_500_000_000 - EARLY..=1_500_000_000 + LATE;
        assert!(allowed.contains(&waited.cast_unsigned()), "{report}");
    }
    assert_eq!(report["deadline"], report["deadline_after"]);
    let report = run(Some(&cgroup), "constant 0");
    assert_eq!((&report["result"], &report["deadline"]), (&0.into(), &1.into()), "{report}");
    let counters = probe.counters();
    assert_eq!((counters.failed, counters.left), (1, 0), "{counters:?}");
}

#[test]
fn who_waits_when_the_probes_go_has_its_deadline_again() {
    let cgroup = TestCgroup::new();
    let Some(mut probe) = attach(&cgroup, |_| {}) else { return };
    probe.set(&skewed(&[Clock::Realtime], offset(HOUR)));
    let waiter = Process::start(clockcalls(Some(&cgroup), "wait futex 0 3000"));
    let end = Instant::now() + Duration::from_secs(3);
    while probe.counters().deadlines == 0 {
        assert!(Instant::now() < end, "it does not wait");
        thread::sleep(Duration::from_millis(20));
    }
    drop(probe);
    let report = waiter.finish();
    assert_eq!(report["deadline"], report["deadline_after"]);
    assert!(number(&report, "waited_ns") >= 3_000_000_000 - EARLY, "{report}");
}

#[test]
fn a_program_without_vdso_makes_system_calls() {
    let cgroup = TestCgroup::new();
    let hide = |config: &mut Config| (config.skip_vdso, config.hide_vdso) = (false, true);
    let Some(mut probe) = attach(&cgroup, hide) else { return };
    let skew = skewed(&Clock::ALL, offset(HOUR));
    probe.set(&skew);
    let now = || true_time()[Clock::Realtime as usize];

    // Dynamic. All readings are by system call now.
    let (before, report, after) = (now(), run(Some(&cgroup), "read"), now());
    let mut readings = integers(&report["clocks"]["0"]);
    readings.extend(integers(&report["gettimeofday"]));
    for reading in readings {
        let allowed = before + HOUR - 1000..=after + HOUR;
        assert!(allowed.contains(&reading), "{reading} is not within {allowed:?}");
    }
    // Static, by gettimeofday; it puts the time before each line of its input.
    let mut stamp = command("busybox", Some(&cgroup));
    stamp.args(["ts", "%s"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let before = now();
    let mut stamp = stamp.spawn().expect("busybox is here");
    stamp.stdin.take().expect("piped").write_all(b"\n").expect("it reads");
    let output = stamp.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("text");
    let (shown, after) = (text.trim().parse::<i64>().expect("a number"), now());
    let allowed = (before + HOUR) / SECOND..=(after + HOUR) / SECOND;
    assert!(allowed.contains(&shown), "{shown} is not within {allowed:?}");
    // With many arguments and variables on its stack.
    let mut long = clockcalls(Some(&cgroup), "read");
    for n in 0..3000 {
        long.env(format!("VARIABLE_{n}"), "x".repeat(n % 50));
    }
    let (before, report, after) = (now(), Process::start(long).finish(), now());
    for reading in integers(&report["clocks"]["0"]) {
        assert!((before + HOUR..=after + HOUR).contains(&reading), "{report}");
    }
    // Other processes keep their vDSO.
    check(&run(None, "read"), &Skew::TRUE);
    let counters = probe.counters();
    assert_eq!((counters.hidden, counters.not_hidden), (3, 0), "{counters:?}");
}

#[test]
fn calls_from_the_vdso_may_be_faulted_too() {
    let cgroup = TestCgroup::new();
    let Some(mut probe) = attach(&cgroup, |config| config.skip_vdso = false) else { return };
    probe.set(&skewed(&Clock::ALL, offset(HOUR)));
    for clock in Clock::ALL {
        let id = ["0", "1", "4", "7", "11"][clock as usize];
        let now = || true_time()[clock as usize];
        let (before, report, after) = (now(), run(Some(&cgroup), "read"), now());
        let direct = integers(&report["clocks"][id])[1];
        assert!((before + HOUR..=after + HOUR).contains(&direct), "{clock:?}: {report}");
    }
}

#[test]
fn no_reading_is_of_two_skews() {
    let cgroup = TestCgroup::new();
    let Some(mut probe) = attach(&cgroup, |_| {}) else { return };
    let twice = |ns| {
        let step = Skew { step: ns, period_ns: i64::MAX, ..offset(ns) };
        skewed(&[Clock::Realtime], step)
    };
    let skews = [twice(HOUR), twice(-HOUR)];
    probe.set(&skews[0]);
    let line = format!("hammer 4000 {} {}", 2 * HOUR, -2 * HOUR);
    let mut hammer = Process::start(clockcalls(Some(&cgroup), &line));
    let mut changes = 0;
    while hammer.child.try_wait().expect("it is ours").is_none() {
        probe.set(&skews[changes % 2]);
        changes += 1;
    }
    let report = hammer.next().expect("a report");
    assert_eq!(report["wrong"], 0, "{changes} changes: {report}");
    assert!(integers(&report["seen"]).iter().all(|&seen| seen > 100), "{report}");
}

#[test]
fn a_command_under_the_probe_engine_has_no_vdso_and_wrong_clocks() {
    let mut command = Command::new(INJECTOR);
    command.args(["run", "--engine", "probe", "--clock", "+1h", "--"]);
    let now = || true_time()[Clock::Realtime as usize];
    let before = now();
    let output = command.arg(program("clockcalls")).arg("read").output().expect("it runs");
    let after = now();
    let said = String::from_utf8_lossy(&output.stderr);
    if is_locked_down() {
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("locked down"), "{said}");
        return;
    }
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    for reading in integers(&report["clocks"]["0"]) {
        assert!((before + HOUR..=after + HOUR).contains(&reading), "{report}");
    }
    assert!(
        said.contains("(engine probe)") && said.contains("1 new program had no vDSO"),
        "{said}"
    );
}

#[test]
fn who_waits_when_injector_is_killed_has_its_deadline_in_its_memory() {
    if is_locked_down() {
        return;
    }
    let cgroup = TestCgroup::new();
    let mut command = Command::new(INJECTOR);
    command.args(["inject", "--engine", "probe", "--clock", "+1h", "--output", "json", "--cgroup"]);
    let mut injector = Process::start({
        command.arg(&cgroup.path);
        command
    });
    injector.wait_for("started");
    let sleeper = Process::start(clockcalls(Some(&cgroup), "wait futex 0 3000"));
    thread::sleep(Duration::from_millis(1500));
    injector.signal(Signal::SIGKILL);
    let report = sleeper.finish();
    assert_eq!(report["deadline"], report["deadline_after"], "{report}");
    // The kernel used the true time; by the skewed one, it would be an hour.
    let slept = number(&report, "waited_ns");
    assert!((3_000_000_000 - EARLY..=3_000_000_000 + LATE).contains(&slept), "{report}");
}

/// Prints the cost without checking it.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_call() {
    let cgroup = TestCgroup::new();
    let measure = |what: &str, cgroup: Option<&TestCgroup>| {
        println!("{what}: {}", run(cgroup, "bench 300000"));
    };
    measure("without probes", None);
    let Some(mut probe) = attach(&cgroup, |_| {}) else { return };
    measure("with probes, another process", None);
    measure("with probes, the target, not skewed", Some(&cgroup));
    probe.set(&skewed(&Clock::ALL, offset(HOUR)));
    measure("with probes, the target, skewed", Some(&cgroup));
}

//! Clock faults under stress: permanent changes of skews, storms of processes, a killed injector.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use injector_common::model::clock::{CLOCKS, Skew, Span};
use injector_user::kernel::{limits, vdso::Patcher};
use nix::sys::signal::Signal;
use testbed::{Host, Injector, Lab, Process, TestCgroup, number, program, scratch_file};

const HOUR: i64 = 3600 * 1_000_000_000;

/// The owner of processes that this file patches itself.
const OWNER: u64 = 0x57e5;

#[test]
fn readers_see_one_skew_or_the_other_at_a_thousand_changes_a_second() {
    const OFFSETS: [i64; 2] = [HOUR, -7 * HOUR];
    const RATE: u32 = 1000;
    const SPAN: Duration = Duration::from_secs(20);
    let mut command = Command::new(program("clock"));
    command.args(["hammer", "--threads", "16", "--all", "--offset", "0"]);
    command.args(OFFSETS.iter().flat_map(|offset| ["--offset".into(), offset.to_string()]));
    let mut program = Process::start(command);
    program.wait_for("ready");
    // They differ in all fields, so that torn reads show. One needs a division, the other must not divide.
    let clocks = [Span { base: 0, lease: i64::MAX }; CLOCKS];
    let skews = [
        Skew { offset: OFFSETS[0], step: 5 * HOUR, period_ns: 0, clocks, ..Skew::TRUE },
        Skew { offset: OFFSETS[1] - HOUR, step: HOUR, period_ns: i64::MAX, clocks, ..Skew::TRUE },
    ];
    let pid = program.pid().as_raw();
    let setter = thread::spawn(move || {
        limits::prefer_this_thread().expect("we are root");
        let mut patched = Patcher::new(OWNER).patch(pid, &skews[0]).expect("it can be patched");
        let start = Instant::now();
        let mut sets = 0;
        let mut longest = Duration::ZERO;
        while start.elapsed() < SPAN {
            let begin = Instant::now();
            patched.set(&skews[sets as usize % 2]).expect("it runs");
            longest = longest.max(begin.elapsed());
            sets += 1;
            // Late ones follow each other without a pause.
            let next = start + Duration::from_secs(1) * sets / RATE;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        (sets, start.elapsed(), longest)
    });
    let (sets, span, longest) = setter.join().expect("it does not panic");
    let report = program.finish();
    let rate = f64::from(sets) / span.as_secs_f64();
    println!("{rate:.0} changes a second, the longest took {longest:?}: {report}");
    assert_eq!(report["wrong"], 0, "{report}");
    assert!(rate > 0.9 * f64::from(RATE), "{rate} changes a second");
}

/// A program that forks many processes.
fn storm() -> PathBuf {
    let program = scratch_file();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/storm.c");
    let status =
        Command::new("musl-gcc").args(["-static", "-O1", "-o"]).arg(&program).arg(source).status();
    let status = status.expect("musl-gcc is missing: scripts/setup installs it (musl-tools)");
    assert!(status.success());
    program
}

#[test]
fn a_storm_of_a_thousand_processes_a_second_loses_and_hangs_none() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let program = storm();
    let storm = |rate: &str, seconds: &str, cgroup| {
        let mut command = lab.left.command(&program, cgroup);
        command.args([rate, seconds]);
        let mut storm = Process::start(command);
        storm.timeout = Duration::from_mins(1);
        storm.wait_for("end")
    };
    let native = storm("1000000", "3", None);
    println!("native, as fast as can be: {native}");
    let injector = Injector::on(&lab.left, &cgroup, "--clock +1h");
    let faulted = storm("1000", "10", Some(&cgroup));
    println!("faulted: {faulted}");
    injector.process.signal(Signal::SIGTERM);
    let summary = injector.process.finish();
    println!("{}", summary["clocks"]);
    fs::remove_file(&program).expect("ours");
    let [made, skewed, truthful] = ["made", "skewed", "true"].map(|key| number(&faulted, key));
    assert_eq!(number(&faulted, "failed"), 0, "{faulted}");
    assert_eq!(skewed + truthful, made, "{faulted}");
    let refused = summary["clocks"]["refused"].as_object().expect("an object");
    let refused: u64 = refused.values().filter_map(serde_json::Value::as_u64).sum();
    assert!(truthful <= refused, "{truthful} read true time: {summary}");
    // Enough for events to arrive in any order; the rate is that of the machine.
    assert!(made > 100, "{faulted}");
}

/// The seconds in the file that a shell writes, minus the true ones.
fn ahead(file: &Path) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let text = fs::read_to_string(file).expect("it prints");
    text.trim().parse::<f64>().expect("a time") - now
}

/// A shell that repeatedly executes a program and writes the time to a file.
fn ticker(host: &Host, cgroup: &TestCgroup, file: &Path) -> Child {
    let script = format!(
        "while :; do echo $EPOCHREALTIME > {0}.new; mv {0}.new {0}; /bin/true; done",
        file.display()
    );
    let mut command = host.command("bash", Some(cgroup));
    command.args(["-c", &script]).spawn().expect("bash")
}

/// The stopped processes of a cgroup.
fn stopped(cgroup: &TestCgroup) -> Vec<String> {
    let pids = fs::read_to_string(cgroup.path.join("cgroup.procs")).expect("it is there");
    let is_stopped = |pid: &&str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
    };
    pids.lines().filter(is_stopped).map(Into::into).collect()
}

/// Kills an injector at a time that depends on `round`.
fn kill_at(lab: &Lab, round: u32) {
    let cgroup = TestCgroup::new();
    let file = scratch_file();
    let mut target = ticker(&lab.left, &cgroup, &file);
    thread::sleep(Duration::from_millis(100));
    // Pseudo-random.
    let moment = Duration::from_micros(u64::from(round) * 79_193 % 300_000);
    let line = format!("--cgroup {} --clock +1h", cgroup.path.display());
    // A program is always held or about to be. Every second time, the shell is being patched too.
    let injector = if round.is_multiple_of(2) {
        Injector::start(&lab.left, &line).process
    } else {
        Process::start(Injector::command(&lab.left, &line))
    };
    thread::sleep(moment);
    injector.signal(Signal::SIGKILL);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(target.try_wait().expect("a child"), None, "round {round}: it ended");
    // The shell must continue and read the true time.
    fs::remove_file(&file).expect("it prints");
    let end = Instant::now() + Duration::from_secs(5);
    while !file.exists() {
        assert!(Instant::now() < end, "round {round}: it hangs; stopped: {:?}", stopped(&cgroup));
        thread::sleep(Duration::from_millis(5));
    }
    let off = ahead(&file);
    assert!(off.abs() < 1.0, "round {round}: {off}");
    target.kill().expect("it runs");
    target.wait().expect("it ends");
    for path in [file.clone(), file.with_extension("new")] {
        let _ = fs::remove_file(path);
    }
}

#[test]
fn fifty_killed_injectors_leave_true_time_and_nothing_stopped() {
    const ROUNDS: u32 = 50;
    let lab = Lab::new();
    let next = AtomicU32::new(0);
    // Most of a round is waiting.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let round @ 0..ROUNDS = next.fetch_add(1, Ordering::Relaxed) {
                    kill_at(&lab, round);
                }
            });
        }
    });
}

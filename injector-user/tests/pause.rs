//! Pauses: the whole target stops and resumes, and nothing stays stopped, however injector ends.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::RwLock,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use testbed::{INJECTOR, Injector, Lab, Process, TIMEOUT, TestCgroup, state, wait_until};

/// A process that counts up in a file, about a hundred times a second.
struct Ticker {
    child: Child,
    file: PathBuf,
}

impl Ticker {
    fn start(lab: &Lab, cgroup: &TestCgroup) -> Self {
        let file = testbed::scratch_file();
        let script = format!(
            "n=0; while :; do n=$((n+1)); echo $n > {0}.new; mv {0}.new {0}; sleep 0.005; done",
            file.display()
        );
        let mut command = lab.left.command("bash", Some(cgroup));
        let child = command.args(["-c", &script]).spawn().expect("bash");
        let ticker = Self { child, file };
        wait_until(TIMEOUT, "begun", || ticker.file.exists());
        ticker
    }

    fn count(&self) -> u64 {
        fs::read_to_string(&self.file).expect("it counts").trim().parse().expect("a number")
    }

    /// Whether it counts up within `time`.
    fn runs_within(&self, time: Duration) -> bool {
        let (before, end) = (self.count(), Instant::now() + time);
        while Instant::now() < end {
            if self.count() > before {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        false
    }

    fn runs(&self) -> bool {
        self.runs_within(Duration::from_millis(500))
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_file(self.file.with_extension("new"));
    }
}

fn pauses(summary: &Value) -> &Value {
    &summary["processes"]["pauses"]
}

/// Serializes tests: each starting injector undoes what dead ones left, which one test must see.
static ALONE: RwLock<()> = RwLock::new(());

#[test]
fn a_cgroup_stands_for_as_long_as_asked_and_its_neighbour_runs() {
    let _turn = ALONE.read();
    let lab = Lab::new();
    let (cgroup, beside) = (TestCgroup::new(), TestCgroup::new());
    let below = cgroup.child("below");
    let (faulted, deep, spared) =
        (Ticker::start(&lab, &cgroup), Ticker::start(&lab, &below), Ticker::start(&lab, &beside));
    let injector = Injector::on(&lab.left, &cgroup, "--pause 4s,at=200ms --for 6s");
    wait_until(TIMEOUT, "frozen", || cgroup.is_frozen());
    thread::sleep(Duration::from_millis(50));
    assert!(!faulted.runs() && !deep.runs(), "it runs though it is paused");
    assert!(spared.runs());
    wait_until(TIMEOUT, "thawed", || !cgroup.is_frozen());
    assert!(faulted.runs() && deep.runs());
    let summary = injector.process.finish();
    let pauses = pauses(&summary);
    assert_eq!((&pauses["done"], &pauses["by"]), (&1.into(), &"cgroup.freeze".into()), "{summary}");
    assert_eq!(pauses["planned_ms"].as_f64(), Some(4000.0), "{summary}");
    let stopped = pauses["stopped_ms"].as_f64().expect("a time");
    assert!((4000.0..4100.0).contains(&stopped), "{summary}");
}

#[test]
fn a_series_of_random_pauses_is_counted_and_the_same_for_the_same_seed() {
    let _turn = ALONE.read();
    let lab = Lab::new();
    let planned = || {
        let cgroup = TestCgroup::new();
        let _ticker = Ticker::start(&lab, &cgroup);
        let line = "--pause 30ms,jitter=20ms,dist=pareto,every=100ms,every-jitter=20ms --seed 7 --for 2100ms";
        let summary = Injector::on(&lab.left, &cgroup, line).process.finish();
        let pauses = pauses(&summary).clone();
        let done = pauses["done"].as_u64().expect("a count");
        assert!((15..=22).contains(&done), "{summary}");
        let time = |name: &str| pauses[name].as_f64().expect("a time");
        // Each ends within some milliseconds of its planned end.
        let late = time("stopped_ms") - time("planned_ms");
        assert!((-100.0..10.0 * done as f64).contains(&late), "{summary}");
        (done, time("planned_ms"))
    };
    let (one, other) = (planned(), planned());
    // In one of them, the end may cut off the last pause.
    if one.0 == other.0 {
        assert!((one.1 - other.1).abs() < 1e-6, "{one:?} {other:?}");
    }
}

#[test]
fn a_pid_is_that_process_with_what_it_starts_and_what_was_stopped_stays_so() {
    let _turn = ALONE.read();
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let (faulted, beside) = (Ticker::start(&lab, &cgroup), Ticker::start(&lab, &cgroup));
    let line = format!("--pid {} --pause 3s,at=100ms --for 6s", faulted.child.id());
    let injector = Injector::start(&lab.left, &line);
    wait_until(TIMEOUT, "stopped", || state(faulted.child.id()) == 'T');
    // One that it had at the start may end, and mv then counts once more, but nothing follows.
    wait_until(TIMEOUT, "its child has ended or is stopped", || {
        children(faulted.child.id()).iter().all(|child| ['T', 'Z'].contains(&state(*child)))
    });
    assert!(!faulted.runs());
    assert!(beside.runs());
    assert!(!cgroup.is_frozen());
    wait_until(TIMEOUT, "running", || state(faulted.child.id()) != 'T');
    assert!(faulted.runs());
    assert_eq!(pauses(&injector.process.finish())["by"], "SIGSTOP");
    // Stopped by another process: neither counted nor resumed.
    let pid = Pid::from_raw(faulted.child.id().cast_signed());
    kill(pid, Signal::SIGSTOP).expect("it is ours");
    wait_until(TIMEOUT, "stopped", || state(faulted.child.id()) == 'T');
    let line = format!("--pid {} --pause 100ms,at=0s --for 500ms", faulted.child.id());
    let summary = Injector::start(&lab.left, &line).process.finish();
    let pauses = pauses(&summary);
    assert_eq!((&pauses["done"], &pauses["skipped"]), (&0.into(), &1.into()), "{summary}");
    assert_eq!(state(faulted.child.id()), 'T');
}

#[test]
fn a_cgroup_that_holds_injector_is_stopped_but_for_injector() {
    let _turn = ALONE.read();
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let ticker = Ticker::start(&lab, &cgroup);
    let line = format!(
        "inject --output json --cgroup {} --pause 500ms --for 1500ms",
        cgroup.path.display()
    );
    let mut command = lab.left.command(INJECTOR, Some(&cgroup));
    command.args(line.split_whitespace());
    let mut injector = Process::start(command);
    injector.wait_for("started");
    wait_until(TIMEOUT, "stopped", || state(ticker.child.id()) == 'T');
    thread::sleep(Duration::from_millis(50));
    let guardian = guardian(injector.pid()).expect("there is a guardian");
    assert_eq!(state(guardian.as_raw().cast_unsigned()), 'S', "it must not be stopped");
    wait_until(TIMEOUT, "running", || state(ticker.child.id()) != 'T');
    let summary = injector.finish();
    assert_eq!(pauses(&summary)["done"], 1, "{summary}");
    assert!(ticker.runs());
}

#[test]
fn what_others_have_frozen_is_refused_and_stays_frozen() {
    let _turn = ALONE.read();
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _ticker = Ticker::start(&lab, &cgroup);
    fs::write(cgroup.freezer(), "1").expect("it can be frozen");
    let line = format!("--cgroup {} --pause 1s --for 1s", cgroup.path.display());
    let output = Injector::command(&lab.left, &line).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("frozen already"), "{said}");
    assert!(cgroup.is_frozen());
    // Frozen by another process between two pauses: skipped too.
    fs::write(cgroup.freezer(), "0").expect("it can be thawed");
    let injector =
        Injector::on(&lab.left, &cgroup, "--pause 50ms,at=500ms,every=200ms --for 1200ms");
    fs::write(cgroup.freezer(), "1").expect("it can be frozen");
    let summary = injector.process.finish();
    assert_eq!(pauses(&summary)["done"], 0, "{summary}");
    assert!(pauses(&summary)["skipped"].as_u64() >= Some(3), "{summary}");
    assert!(cgroup.is_frozen());
    fs::write(cgroup.freezer(), "0").expect("it can be thawed");
}

#[test]
fn nothing_to_pause_is_said() {
    let _turn = ALONE.read();
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let mut injector = Injector::on(&lab.left, &cgroup, "--pause 100ms --for 500ms");
    let warning = injector.process.wait_for("warning");
    assert!(warning["message"].as_str().is_some_and(|text| text.contains("nothing was paused")));
    let summary = injector.process.wait_for("summary");
    assert_eq!(pauses(&summary)["done"], 0, "{summary}");
    assert_eq!(pauses(&summary)["skipped"], 1, "{summary}");
}

#[test]
fn a_paused_command_is_terminated_at_once_and_the_end_of_time_lets_it_go_on() {
    let _turn = ALONE.read();
    let mut command = Command::new(INJECTOR);
    command.args(["run", "--pause", "20s,at=300ms", "--", "sleep", "30"]);
    let mut child = command.stderr(Stdio::null()).spawn().expect("it starts");
    thread::sleep(Duration::from_millis(1500));
    let asked = Instant::now();
    // Not SIGINT, which programs in the background of a shell ignore.
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it is ours");
    let status = child.wait().expect("it ends");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert_eq!(status.code(), Some(143), "{status}");
    let started = Instant::now();
    let output = Command::new(INJECTOR)
        .args([
            "run",
            "--pause",
            "20s,at=100ms",
            "--for",
            "1s",
            "--",
            "sh",
            "-c",
            "sleep 0.5; exit 7",
        ])
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(7), "{}", output.status.into_raw());
    assert!(started.elapsed() >= Duration::from_secs(1), "it was not paused");
    assert!(started.elapsed() < Duration::from_secs(5));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1 pause by cgroup.freeze"), "{said}");
}

/// The children of a process's main thread.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|child| child.parse().expect("a number")).collect()
}

/// The guardian, a child of injector.
fn guardian(injector: Pid) -> Option<Pid> {
    let is_guardian = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|&byte| byte == 0).any(|word| word == b"guardian"))
    };
    let pid = children(injector.as_raw().cast_unsigned()).into_iter().find(is_guardian)?;
    Some(Pid::from_raw(pid.cast_signed()))
}

#[test]
fn after_sigkill_the_target_runs_within_a_second_fifty_times() {
    let _turn = ALONE.read();
    let lab = Lab::new();
    let mut times = Vec::new();
    for round in 0..50u64 {
        let cgroup = TestCgroup::new();
        let ticker = Ticker::start(&lab, &cgroup);
        // Long pauses, long ones with short gaps, short ones, and by SIGSTOP.
        let target = if round % 2 == 0 {
            format!("--cgroup {}", cgroup.path.display())
        } else {
            format!("--pid {}", ticker.child.id())
        };
        let pause = ["30s", "30ms,every=31ms", "200ms,every=201ms", "1ms,every=2ms"]
            [(round / 2 % 4) as usize];
        let injector = Injector::start(&lab.left, &format!("{target} --pause {pause}"));
        // At any time.
        thread::sleep(Duration::from_micros(round * 7919 % 300_000));
        injector.process.signal(Signal::SIGKILL);
        let killed = Instant::now();
        // A second, and what a busy machine adds.
        assert!(
            ticker.runs_within(Duration::from_secs(5)),
            "round {round} ({target}, {pause}) stays stopped"
        );
        times.push(killed.elapsed().as_secs_f64());
        thread::sleep(Duration::from_millis(20));
        assert!(!cgroup.is_frozen() && state(ticker.child.id()) != 'T', "round {round}");
    }
    times.sort_by(f64::total_cmp);
    assert!(times[44] < 1.0, "the target runs again after these seconds: {times:?}");
}

#[test]
fn after_sigkill_of_the_guardian_too_the_next_start_lets_the_target_go_on() {
    let _turn = ALONE.write();
    let lab = Lab::new();
    for target in ["cgroup", "pid"] {
        let cgroup = TestCgroup::new();
        let ticker = Ticker::start(&lab, &cgroup);
        let option = match target {
            "cgroup" => format!("--cgroup {}", cgroup.path.display()),
            _ => format!("--pid {}", ticker.child.id()),
        };
        let injector = Injector::start(&lab.left, &format!("{option} --pause 30s"));
        wait_until(TIMEOUT, "paused", || cgroup.is_frozen() || state(ticker.child.id()) == 'T');
        let guardian = guardian(injector.process.pid()).expect("there is a guardian");
        // So that it does not see the guardian's end.
        injector.process.signal(Signal::SIGSTOP);
        kill(guardian, Signal::SIGKILL).expect("it is ours");
        injector.process.signal(Signal::SIGKILL);
        drop(injector);
        assert!(!ticker.runs(), "who let it go on?");
        let output = Command::new(INJECTOR).arg("cleanup").output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let expected =
            if target == "cgroup" { " is thawed (left by injector" } else { " continue (left by" };
        assert!(said.contains(expected), "{said}");
        assert!(ticker.runs());
    }
}

#[test]
fn a_target_without_processes_of_its_own_is_refused() {
    let _turn = ALONE.read();
    let lab = Lab::new();
    let output = Injector::command(&lab.left, "--interface lo --for 1s --pause 1s")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("name them with --cgroup, --cgroup-of, --container"), "{said}");
}

//! Clock faults on third-party programs: their output, and that nothing else is affected.

use std::{
    fs,
    process::{Command, Output},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{Host, INJECTOR, Injector, Lab, RuleFile, TIMEOUT, TestCgroup, wait_until};

/// The seconds that a program prints, minus the true ones.
fn ahead(text: &str) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    text.trim().parse::<f64>().unwrap_or_else(|_| panic!("no time: {text}")) - now
}

fn run(options: &str, command: &[&str]) -> Output {
    let output = Command::new(INJECTOR)
        .arg("run")
        .args(options.split_whitespace())
        .arg("--")
        .args(command)
        .output()
        .expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[track_caller]
fn assert_near(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() < tolerance, "{found} instead of {expected}");
}

#[test]
fn date_prints_the_wrong_time_and_its_neighbour_the_right_one() {
    let wrong = run("--clock +1h", &["date", "+%s.%N"]);
    assert_near(ahead(&text(&wrong)), 3600.0, 1.0);
    let right = Command::new("date").arg("+%s.%N").output().expect("date");
    assert_near(ahead(&text(&right)), 0.0, 1.0);
}

#[test]
fn a_clock_can_be_set_to_any_time() {
    let output = run("--clock @2038-01-19T03:14:00Z", &["date", "-u", "+%Y-%m-%dT%H:%M"]);
    assert_eq!(text(&output).trim(), "2038-01-19T03:14");
}

#[test]
fn a_shell_that_forks_and_all_that_it_starts_read_the_same() {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do date +%s; (date +%s); echo $(date +%s); done";
    let output = run("--clock -2h", &["bash", "-c", script]);
    let lines: Vec<String> = text(&output).lines().map(Into::into).collect();
    assert_eq!(lines.len(), 30);
    for line in lines {
        assert_near(ahead(&line), -7200.0, 4.0);
    }
}

#[test]
fn a_shell_with_job_control_does_not_see_its_commands_stop() {
    // `wait` for a job that stops returns 128 plus the signal number.
    let script = "set -m; for i in {1..40}; do date +%s; echo =$?; date +%s & wait $!; echo =$?; done; sleep 1";
    let output = run("--clock +1h", &["bash", "-c", script]);
    let text = text(&output);
    let (statuses, times): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with('='));
    assert_eq!(statuses.len(), 80, "{text}");
    for time in times {
        assert_near(ahead(time), 3600.0, 30.0);
    }
    // While other tests keep the CPUs busy, some are stopped by SIGSTOP; if all were, `wait` would notice
    // at least four in five.
    let unseen = statuses.split(|&status| status != "=0").map(<[&str]>::len).max();
    assert!(unseen >= Some(6), "{text}");
}

#[test]
fn a_frozen_clock_stands_and_a_drifting_one_runs_away() {
    let output = run("--clock-freeze", &["bash", "-c", "date +%s%N; sleep 1; date +%s%N"]);
    let text_ = text(&output);
    let mut lines = text_.lines();
    assert_eq!(lines.next(), lines.next());
    // Ten times as fast.
    let output =
        run("--clock drift=9000000ppm", &["bash", "-c", "date +%s.%N; sleep 1; date +%s.%N"]);
    let times: Vec<f64> = text(&output).lines().map(|line| line.parse().expect("a time")).collect();
    assert!(times[1] - times[0] >= 9.9, "{times:?}");
}

/// The command between ticks that limits the CPU time of a ticker.
const PAUSE: &str = "sleep 0.01";

/// A shell in the cgroup that prints the time in a loop and executes `between` after each.
fn ticker(
    host: &Host,
    cgroup: &TestCgroup,
    file: &std::path::Path,
    between: &str,
) -> std::process::Child {
    let script = format!(
        "while :; do echo ${{EPOCHREALTIME}} > {0}.new; mv {0}.new {0}; {between}; done",
        file.display()
    );
    let mut command = host.command("bash", Some(cgroup));
    command.args(["-c", &script]).spawn().expect("bash")
}

fn last(file: &std::path::Path) -> f64 {
    // The first new file may hold a time that was read before.
    for _ in 0..2 {
        let _ = fs::remove_file(file);
        wait_until(TIMEOUT, "a time is printed", || file.exists());
    }
    ahead(&fs::read_to_string(file).expect("it prints"))
}

#[test]
fn a_running_process_is_faulted_changed_and_left_as_it_was() {
    let lab = Lab::new();
    let (cgroup, beside) = (TestCgroup::new(), TestCgroup::new());
    let (file, other) = (testbed::scratch_file(), testbed::scratch_file());
    let mut faulted = ticker(&lab.left, &cgroup, &file, PAUSE);
    let mut spared = ticker(&lab.left, &beside, &other, PAUSE);
    assert_near(last(&file), 0.0, 1.0);
    let rules = RuleFile::new("clocks: {clock: +1h}");
    let mut injector = Injector::on(&lab.left, &cgroup, &rules.option());
    assert_near(last(&file), 3600.0, 1.0);
    assert_near(last(&other), 0.0, 1.0);
    rules.write("clocks: {clock: -1h}");
    injector.process.signal(Signal::SIGHUP);
    injector.process.wait_for("changed");
    assert_near(last(&file), -3600.0, 1.0);
    injector.process.signal(Signal::SIGTERM);
    let summary: Value = injector.process.finish();
    assert!(summary["clocks"]["patched"].as_u64() >= Some(1), "{summary}");
    assert_near(last(&file), 0.0, 1.0);
    assert_near(last(&other), 0.0, 1.0);
    for child in [&mut faulted, &mut spared] {
        assert_eq!(child.try_wait().expect("a child"), None, "it ended");
        child.kill().expect("it runs");
        child.wait().expect("it ends");
    }
}

#[test]
fn a_change_of_which_a_part_is_refused_changes_no_clock() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let file = testbed::scratch_file();
    let mut faulted = ticker(&lab.left, &cgroup, &file, PAUSE);
    let rules = RuleFile::new("{rules: [{loss: 1%}], clocks: {clock: +1h}}");
    let mut injector = Injector::on(&lab.left, &cgroup, &rules.option());
    // None of the first rules held packets, so new ones cannot.
    rules.write("{rules: [{delay: 10ms}], clocks: {clock: -1h}}");
    injector.process.signal(Signal::SIGHUP);
    injector.process.wait_for("warning");
    assert_near(last(&file), 3600.0, 1.0);
    faulted.kill().expect("it runs");
    faulted.wait().expect("it ends");
}

#[test]
fn after_sigkill_time_is_true_within_three_seconds_and_nothing_stays_stopped() {
    let lab = Lab::new();
    for round in 0..10u64 {
        let cgroup = TestCgroup::new();
        let file = testbed::scratch_file();
        let mut faulted = ticker(&lab.left, &cgroup, &file, "/bin/true");
        let injector = Injector::on(&lab.left, &cgroup, "--clock +1h");
        // At any time, a program is held or about to be.
        thread::sleep(Duration::from_millis(23 * round));
        injector.process.signal(Signal::SIGKILL);
        thread::sleep(Duration::from_secs(3));
        assert_near(last(&file), 0.0, 1.0);
        assert_eq!(faulted.try_wait().expect("a child"), None, "it ended");
        faulted.kill().expect("it runs");
        faulted.wait().expect("it ends");
    }
}

#[test]
fn a_steady_clock_is_not_set_back_unless_that_is_allowed() {
    let refused = Command::new(INJECTOR)
        .args(["run", "--clock", "-1h,clock=all", "--", "true"])
        .output()
        .expect("it can be run");
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("--allow-backward"), "{message}");
    run("--clock -1h,clock=all --allow-backward", &["true"]);
}

#[test]
fn a_storm_of_short_processes_loses_none() {
    let script = "for i in $(seq 300); do date +%s; done";
    let output = run("--clock +1h", &["bash", "-c", script]);
    let lines = text(&output);
    assert_eq!(lines.lines().count(), 300);
    let (first, last) = (lines.lines().next().expect("one"), lines.lines().last().expect("one"));
    for line in lines.lines() {
        assert!(line >= first && line <= last);
    }
    assert_near(ahead(last), 3600.0, 2.0);
    assert!(ahead(first) > 3500.0);
}

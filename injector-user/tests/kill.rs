//! Signals: at a time to all processes of the target, and at the N-th call of a system call.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Output},
    time::Duration,
};

use serde_json::Value;
use testbed::{INJECTOR, Injector, Lab, RuleFile, TestCgroup, run_bash};

/// `injector run` of a bash script, with its summary.
fn run(options: &str, script: &str) -> (Output, Value) {
    let (output, summary) = run_bash(options, script);
    (output, summary.unwrap_or_default())
}

fn sleeper(lab: &Lab, cgroup: &TestCgroup) -> Child {
    lab.left.command("sleep", Some(cgroup)).arg("30").spawn().expect("sleep")
}

#[test]
fn the_nth_call_of_the_whole_target_is_its_processs_last() {
    // Each echo of bash and its children is one write(2).
    let script = "echo 1; (echo 2); echo 3; echo 4; echo 5; echo 6";
    let (output, summary) = run("--kill after=4:write", script);
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    // The call may complete, but nothing follows it.
    assert!(said == "1\n2\n3\n" || said == "1\n2\n3\n4\n", "{said}");
    let kill = &summary["processes"]["kills"][0];
    assert_eq!((&kill["sent"], &kill["calls"]), (&1.into(), &4.into()), "{summary}");
    assert_eq!(kill["name"], "after=4:write");
}

#[test]
fn a_child_that_makes_the_call_is_killed_and_not_its_parent() {
    let (output, summary) = run("--kill after=2:write", "echo 1; (echo 2; echo never); echo $?");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("137\n") && !said.contains("never"), "{said}");
    // Calls of the parent, which also reports the killed child, are still counted.
    assert!(summary["processes"]["kills"][0]["calls"].as_u64() >= Some(3), "{summary}");
    assert_eq!(summary["processes"]["kills"][0]["sent"], 1, "{summary}");
}

#[test]
fn a_signal_can_be_handled_and_comes_once() {
    let script = "trap 'echo caught' USR1; echo begin; echo end";
    let (output, summary) = run("--kill USR1,after=1:write", script);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.matches("caught").count(), 1, "{said} {summary}");
    assert!(said.contains("end"), "{said}");
}

#[test]
fn calls_of_others_and_other_calls_do_not_count() {
    let lab = Lab::new();
    let (cgroup, beside) = (TestCgroup::new(), TestCgroup::new());
    let mut target = sleeper(&lab, &cgroup);
    let injector = Injector::on(&lab.left, &cgroup, "--kill after=1:write");
    let (success, said) = lab.left.run_in(Some(&beside), "echo hello");
    assert!(success && said == "hello\n");
    assert_eq!(target.try_wait().expect("a child"), None);
    injector.process.signal(nix::sys::signal::Signal::SIGTERM);
    let summary = injector.process.finish();
    let kill = &summary["processes"]["kills"][0];
    assert_eq!((&kill["sent"], &kill["calls"]), (&0.into(), &0.into()), "{summary}");
    target.kill().expect("it runs");
    target.wait().expect("it ends");
}

#[test]
fn all_processes_of_a_cgroup_are_killed_at_the_time_and_no_others() {
    let lab = Lab::new();
    let (cgroup, beside) = (TestCgroup::new(), TestCgroup::new());
    let below = cgroup.child("below");
    let (mut one, mut deep, mut spared) =
        (sleeper(&lab, &cgroup), sleeper(&lab, &below), sleeper(&lab, &beside));
    let injector = Injector::on(&lab.left, &cgroup, "--kill TERM,at=300ms --for 1s");
    assert_eq!(one.try_wait().expect("a child"), None, "it is too early");
    for child in [&mut one, &mut deep] {
        assert_eq!(child.wait().expect("it ends").signal(), Some(libc::SIGTERM));
    }
    let summary = injector.process.finish();
    assert_eq!(summary["processes"]["kills"][0]["sent"], 2, "{summary}");
    assert_eq!(spared.try_wait().expect("a child"), None);
    spared.kill().expect("it runs");
    spared.wait().expect("it ends");
}

#[test]
fn a_pid_is_that_process_alone() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let (mut faulted, mut beside) = (sleeper(&lab, &cgroup), sleeper(&lab, &cgroup));
    let line = format!("--pid {} --kill at=100ms --for 500ms", faulted.id());
    let summary = Injector::start(&lab.left, &line).process.finish();
    assert_eq!(summary["processes"]["kills"][0]["sent"], 1, "{summary}");
    assert_eq!(faulted.wait().expect("it ends").signal(), Some(libc::SIGKILL));
    assert_eq!(beside.try_wait().expect("a child"), None);
    beside.kill().expect("it runs");
    beside.wait().expect("it ends");
}

#[test]
fn a_service_is_killed_again_and_again_while_paused_too() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let script = "trap 'exit 0' TERM; while :; do sleep 30; done";
    let mut command = lab.left.command("bash", Some(&cgroup));
    let mut service = command.args(["-c", script]).spawn().expect("bash");
    let rules = RuleFile::new("processes: {pause: '50ms,every=200ms', kill: ['KILL,every=300ms']}");
    let line = format!("{} --for 1s", rules.option());
    let summary = Injector::on(&lab.left, &cgroup, &line).process.finish();
    assert_eq!(service.wait().expect("it ends").signal(), Some(libc::SIGKILL));
    // The shell and its child, sleep.
    assert_eq!(summary["processes"]["kills"][0]["sent"], 2, "{summary}");
    std::thread::sleep(Duration::from_millis(1));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_touched() {
    for (options, word) in [
        ("--kill KILL", "at=T"),
        ("--kill FOO,at=1s", "FOO"),
        ("--kill after=1:frob", "frob"),
        ("--pause 0s", "1ms to 24h"),
        ("--cpu 0%", "0.1%"),
    ] {
        let output = Command::new(INJECTOR)
            .arg("run")
            .args(options.split_whitespace())
            .args(["--", "true"])
            .output()
            .expect("it can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{options}: {said}");
        assert!(said.contains(word), "{options}: {said}");
    }
}

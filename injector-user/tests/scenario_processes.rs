//! Process faults of scenarios: they start and end with their steps, are counted, and nothing stays stopped.

use std::{
    fs,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{
    Family, Lab, RuleFile, TIMEOUT, TestCgroup, apply, number, start_scenario, state,
    wait_for_state, wait_until,
};

/// A scenario with this cgroup as its only target.
fn scenario(cgroup: &TestCgroup, timeline: &str) -> RuleFile {
    let path = cgroup.path.display();
    RuleFile::new(&format!("targets: {{c: {{cgroup: {path}}}}}\ntimeline:\n{timeline}\n"))
}

fn sleep(lab: &Lab, cgroup: &TestCgroup) -> Child {
    lab.left.command("sleep", Some(cgroup)).arg("60").spawn().expect("sleep")
}

fn end(mut child: Child) {
    child.kill().expect("it is ours");
    child.wait().expect("it was killed");
}

fn late_ms(change: &Value) -> f64 {
    let time = |key: &str| change[key].as_f64().expect("a time");
    time("actual_ms") - time("planned_ms")
}

#[test]
fn a_pause_begins_with_its_step_and_ends_with_it() {
    let lab = Lab::new();
    let (cgroup, beside) = (TestCgroup::new(), TestCgroup::new());
    let (faulted, spared) = (sleep(&lab, &cgroup), sleep(&lab, &beside));
    // Packet faults that start and end meanwhile do not affect it.
    let file = scenario(
        &cgroup,
        "- {at: 300ms, for: 1s, faults: {processes: {pause: 1m}}}\n\
         - {at: 600ms, for: 200ms, faults: {rules: [{loss: 10%}]}}\n\
         - {at: 1600ms, for: 1s, faults: {processes: {pause: 200ms}}}",
    );
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    assert!(!cgroup.is_frozen());
    let change = process.wait_for("change");
    assert!(cgroup.is_frozen() && !beside.is_frozen(), "{change}");
    for _ in 0..2 {
        process.wait_for("change");
        assert!(cgroup.is_frozen());
    }
    let change = process.wait_for("change");
    assert!(!cgroup.is_frozen(), "{change}");
    let target = &change["targets"][0];
    assert_eq!(number(&target["replaced"]["pause 60s"], "pauses"), 1, "{change}");
    let paused = number(&target["replaced"]["pause 60s"], "paused_ms");
    // It starts as soon as possible and ends with its step.
    assert!((800..1200).contains(&paused), "{change}");
    assert_eq!(number(&target["before"], "pauses"), 1, "{change}");
    // A pause that ends before its step.
    process.wait_for("change");
    assert!(cgroup.is_frozen());
    wait_until(TIMEOUT, "the pause ends", || !cgroup.is_frozen());
    let ended = process.finish();
    assert_eq!(number(&ended["targets"]["c"], "pauses"), 2, "{ended}");
    let paused = number(&ended["faults"]["c"]["pause 200ms"], "paused_ms");
    assert!((200..400).contains(&paused), "{ended}");
    end(faulted);
    end(spared);
}

#[test]
fn a_step_that_is_repeated_without_a_gap_begins_anew() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let child = sleep(&lab, &cgroup);
    let step = "every: 300ms, for: 300ms, times: 4";
    let file = scenario(&cgroup, &format!("- {{{step}, faults: {{processes: {{pause: 60ms}}}}}}"));
    let ended = start_scenario(&lab.left, &file.path, &[]).finish();
    let counts = &ended["faults"]["c"]["pause 60ms"];
    assert_eq!(number(counts, "pauses"), 4, "{ended}");
    assert!((240..800).contains(&number(counts, "paused_ms")), "{ended}");
    end(child);
}

#[test]
fn signals_are_sent_within_their_step_only() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let mut command = lab.left.command("bash", Some(&cgroup));
    // It writes continuously without forking.
    let script = "exec 3<> <(:); while :; do echo x; read -t 0.02 -u 3; done >/dev/null";
    let mut writer = command.args(["-c", script]);
    writer = writer.stdin(std::process::Stdio::null());
    let mut writer = writer.spawn().expect("bash");
    let mut other = sleep(&lab, &cgroup);
    let file = scenario(
        &cgroup,
        "- {for: 300ms, faults: {processes: {kill: ['at=5s', 'after=1000:write']}}}\n\
         - {at: 600ms, for: 2s, faults: {processes: {kill: ['after=10:write']}}}\n\
         - {at: 2700ms, for: 1s, faults: {processes: {kill: ['TERM,at=200ms']}}}",
    );
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    for _ in 0..3 {
        process.wait_for("change");
        assert!(writer.try_wait().expect("it is ours").is_none(), "it was killed too early");
    }
    let change = process.wait_for("change");
    assert!(writer.try_wait().expect("it is ours").is_some(), "{change}");
    let name = "kill after=10:write";
    assert_eq!(number(&change["targets"][0]["replaced"][name], "signals"), 1, "{change}");
    assert!(other.try_wait().expect("it is ours").is_none());
    let mut warnings = Vec::new();
    let mut last = Value::Null;
    while let Some(event) = process.next() {
        if event["event"] == "warning" {
            warnings.push(event["message"].as_str().expect("text").to_owned());
        }
        last = event;
    }
    assert!(other.try_wait().expect("it is ours").is_some(), "{last}");
    assert_eq!(number(&last["targets"]["c"], "signals"), 2, "{last}");
    let nothing = "no signal was sent at c by kill at=5s kill after=1000:write";
    assert_eq!(warnings, [nothing]);
}

#[test]
fn a_process_that_is_gone_is_no_reason_to_fail() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let (mut named, beside) = (sleep(&lab, &cgroup), sleep(&lab, &cgroup));
    let file = RuleFile::new(&format!(
        "targets: {{p: {{pid: {}}}}}\ntimeline:\n\
         - {{at: 200ms, for: 400ms, faults: {{processes: {{pause: 1s}}}}}}\n\
         - {{at: 700ms, for: 200ms, faults: {{processes: {{kill: ['at=0s']}}}}}}\n\
         - {{at: 1s, for: 400ms, faults: {{processes: {{pause: 100ms}}}}}}\n",
        named.id()
    ));
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    process.wait_for("change");
    wait_for_state(named.id(), 'T');
    assert_eq!(state(beside.id()), 'S');
    process.wait_for("change");
    wait_for_state(named.id(), 'S');
    process.wait_for("change");
    named.wait().expect("it was killed");
    let ended = process.finish();
    assert_eq!(ended["reason"], "done", "{ended}");
    let counts = &ended["targets"]["p"];
    assert_eq!(number(counts, "pauses"), 1, "{ended}");
    assert_eq!(number(counts, "pauses_skipped"), 1, "{ended}");
    assert_eq!(number(counts, "signals"), 1, "{ended}");
    end(beside);
}

#[test]
fn pauses_come_when_they_are_planned_and_random_ones_follow_the_seed() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let child = sleep(&lab, &cgroup);
    let file = scenario(
        &cgroup,
        "- {for: 1s, faults: {processes: {pause: '30ms,jitter=20ms,every=100ms,every-jitter=10ms'}}}\n\
         - {at: 1100ms, every: 100ms, for: 50ms, times: 10, faults: {processes: {pause: 1s}}}",
    );
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    let mut late = Vec::new();
    let mut last = Value::Null;
    while let Some(event) = process.next() {
        if event["event"] == "change" {
            late.push(late_ms(&event));
        }
        last = event;
    }
    late.sort_by(f64::total_cmp);
    assert_eq!(late.len(), 22);
    // At least half, as other tests may use the CPUs.
    assert!(late[late.len() / 2] < 10.0, "{late:?}");
    let pauses = number(&last["faults"]["c"]["pause 1s"], "pauses");
    assert_eq!(pauses, 10, "{last}");
    let random = last["faults"]["c"].as_object().expect("a map");
    let (_, random) = random.iter().find(|(name, _)| name.contains("every")).expect("it is there");
    assert!((7..=12).contains(&number(random, "pauses")), "{last}");
    end(child);
}

#[test]
fn limits_come_and_go_with_their_step_where_there_are_any() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let child = sleep(&lab, &cgroup);
    let file = scenario(
        &cgroup,
        "- {at: 200ms, for: 300ms, ramp: {from: {processes: {cpu: 50%}}, to: {processes: {cpu: 10%}}, steps: 2}}\n\
         - {at: 700ms, for: 200ms, faults: {processes: {cpu: 70%, pause: 1s}}}",
    );
    let controllers = fs::read_to_string(testbed::hierarchy().join("cgroup.controllers"));
    if !controllers.expect("a root").split_whitespace().any(|name| name == "cpu") {
        let output = apply(&lab.left, &file.path, &[]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("target c") && said.contains("no cpu controller"), "{said}");
        assert!(!cgroup.is_frozen());
        return end(child);
    }
    let limit = || fs::read_to_string(cgroup.path.join("cpu.max")).unwrap_or_default();
    let before = limit();
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    for share in ["50000", "30000", "10000"] {
        process.wait_for("change");
        assert_eq!(limit().trim(), format!("{share} 100000"));
    }
    process.wait_for("change");
    assert_eq!(limit(), before);
    process.wait_for("change");
    assert_eq!(limit().trim(), "70000 100000");
    assert!(cgroup.is_frozen());
    process.finish();
    assert_eq!(limit(), before);
    assert!(!cgroup.is_frozen());
    end(child);
}

#[test]
fn however_it_ends_nothing_stays_stopped() {
    let lab = Lab::new();
    let (cgroup, other) = (TestCgroup::new(), TestCgroup::new());
    let (frozen, stopped) = (sleep(&lab, &cgroup), sleep(&lab, &other));
    let file = RuleFile::new(&format!(
        "targets: {{c: {{cgroup: {}}}, p: {{pid: {}}}}}\ntimeline:\n\
         - {{faults: {{processes: {{pause: 1m}}, rules: [{{loss: 100%}}]}}}}\n",
        cgroup.path.display(),
        stopped.id()
    ));
    let mut times = Vec::new();
    for signal in [Signal::SIGINT, Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        let mut process = start_scenario(&lab.left, &file.path, &[]);
        process.wait_for("change");
        wait_for_state(stopped.id(), 'T');
        assert!(cgroup.is_frozen());
        process.signal(signal);
        let asked = Instant::now();
        while cgroup.is_frozen() || state(stopped.id()) == 'T' {
            // A second, and what a busy machine adds.
            assert!(asked.elapsed() < Duration::from_secs(5), "after {signal} it stays stopped");
            thread::sleep(Duration::from_millis(2));
        }
        times.push(asked.elapsed().as_secs_f64());
        if signal != Signal::SIGKILL {
            let ended = process.finish();
            assert_eq!(ended["reason"], "asked", "{ended}");
            assert_eq!(number(&ended["targets"]["p"], "pauses"), 1, "{ended}");
        }
    }
    let median = testbed::median(times);
    assert!(median < 1.0, "it runs again {median} s after");
    end(frozen);
    end(stopped);
}

#[test]
fn what_processes_cannot_suffer_is_refused_before_anything_is_touched() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let child = sleep(&lab, &cgroup);
    let path = cgroup.path.display();
    let fault = "faults: {processes: {pause: 1s}}";
    for (text, code, words) in [
        (
            format!("targets: {{n: {{netns: {}}}}}\ntimeline: [{{{fault}}}]", lab.left.netns),
            1,
            "--cgroup, --cgroup-of, --container, --pod, --pods, --unit, --pid or --process",
        ),
        (
            format!(
                "targets: {{c: {{cgroup: {path}}}}}\ntimeline: [{{{fault}}}, {{at: 1s, {fault}}}]"
            ),
            2,
            "pauses of c",
        ),
        (
            format!(
                "targets: {{c: {{cgroup: {path}}}}}\ntimeline: [{{faults: {{processes: {{kill: [soon]}}}}}}]"
            ),
            2,
            "soon",
        ),
    ] {
        let file = RuleFile::new(&text);
        let output = apply(&lab.left, &file.path, &[]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(lab.left.ping(None, lab.right.address(Family::V4), 2) > 0);
    }
    assert_eq!(state(child.id()), 'S');
    assert!(!cgroup.is_frozen());
    end(child);
}

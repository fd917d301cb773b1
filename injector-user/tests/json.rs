//! JSON output: the same thing has the same keys in all commands, and each line follows the schema.

use std::{fs, process::Command};

use serde_json::{Value, json};
use testbed::{
    INJECTOR, Injector, Lab, Process, RuleFile, TestCgroup, agent::Agent, output, scratch_file,
    start_scenario,
};

#[test]
fn a_target_and_its_rules_are_told_alike_by_inject_apply_agent_and_list() {
    let lab = Lab::new();
    let netns = &lab.left.netns;
    let rule = json!({"rule": 0, "name": "loss 100%", "match": "tcp to port 80, both ways"});
    let of_rule = |rules: &Value| {
        let [rule, name, packets] = ["rule", "name", "match"].map(|key| &rules[0][key]);
        json!({"rule": rule, "name": name, "match": packets})
    };

    let options = "--loss 100% --protocol tcp --remote-port 80";
    let line = format!("--netns {netns} {options} --for 1m");
    let injector = Injector::start(&lab.left, &line);
    let told = injector.started.clone();
    assert_eq!(told["target"], json!({"netns": netns}));
    assert_eq!(told["title"], format!("network namespace {netns}"));
    assert_eq!(of_rule(&told["rules"]), rule);
    // Each interface once.
    let attached = told["attached"].as_array().expect("a list");
    let interfaces: Vec<_> = attached.iter().map(|place| &place["interface"]).collect();
    assert_eq!(interfaces, ["lo", "veth0"], "{told}");
    for place in attached {
        assert_eq!(place["directions"], json!(["egress", "ingress"]), "{told}");
    }
    let output =
        Command::new(INJECTOR).args(["list", "--output", "json"]).output().expect("it runs");
    let listed = output::lines(&String::from_utf8_lossy(&output.stdout));
    let listed = listed.iter().find(|line| line["pid"] == told["pid"]).expect("it is listed");
    for key in ["target", "title", "rules"] {
        assert_eq!(listed["targets"][0][key], told[key], "{key}");
    }
    let summary = injector.stop();
    assert_eq!(summary.total.matched, 0);

    let file = RuleFile::new(&format!(
        "targets: {{it: {{netns: {netns}}}}}\ntimeline:\n\
         - {{for: 1m, faults: {{rules: [{{loss: 100%, protocol: tcp, remote-port: 80}}]}}}}\n"
    ));
    let mut process = Process::start(testbed::apply(&lab.left, &file.path, &[]));
    let started = process.wait_for("started");
    let target = &started["targets"][0];
    assert_eq!(target["name"], "it");
    for key in ["target", "title", "attached"] {
        assert_eq!(target[key], told[key], "{key}");
    }
    assert_eq!(started["host"], told["host"]);
    assert!(started["text"].as_str().is_some_and(|text| text.starts_with("targets: {it:")));
    drop(process);

    let agent = Agent::start(&lab.left);
    let fault = agent.create(&json!({
        "target": {"netns": netns}, "for": "1m",
        "rules": [{"loss": "100%", "protocol": "tcp", "remote-port": "80"}],
    }));
    for key in ["target", "title", "attached"] {
        assert_eq!(fault[key], told[key], "{key}");
    }
    assert_eq!(of_rule(&fault["rules"]), rule);
    let short = &agent.active()[0];
    assert_eq!(short["rules"], told["rules"]);
}

#[test]
fn a_list_of_faults_has_the_first_rules_and_the_number_of_the_others() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let rules: Vec<Value> =
        (1..=20).map(|port| json!({"loss": "1%", "remote-port": port.to_string()})).collect();
    let fault =
        agent.create(&json!({"target": {"netns": lab.left.netns}, "for": "1m", "rules": rules}));
    assert_eq!(fault["rules"].as_array().map(Vec::len), Some(20));
    let listed = &agent.active()[0];
    assert_eq!(listed["rules"].as_array().map(Vec::len), Some(16), "{listed}");
    assert_eq!(listed["more_rules"], 4);
}

#[test]
fn the_summary_of_run_has_the_exit_code_of_its_command() {
    let lab = Lab::new();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)] {
        let report = scratch_file();
        let mut command = lab.left.command(INJECTOR, None);
        command.args("run --loss 1% --output json --output-file".split(' ')).arg(&report);
        let output = command.args(["--", "bash", "-c", script]).output().expect("it runs");
        let events = output::lines(&fs::read_to_string(&report).expect("it is written"));
        fs::remove_file(&report).expect("it is there");
        let summary = events.last().expect("events");
        assert_eq!((output.status.code(), &summary["exit_code"]), (Some(code), &json!(code)));
        assert_eq!(events[0]["target"], json!({"command": ["bash", "-c", script]}));
    }
    let cgroup = TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--loss 1%");
    injector.process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(injector.process.finish().get("exit_code"), None);
}

#[test]
fn the_amounts_of_a_ramp_are_told_with_each_change() {
    let lab = Lab::new();
    let file = RuleFile::new(&format!(
        "targets: {{it: {{netns: {}}}}}\ntimeline:\n\
         - {{for: 500ms, ramp: {{from: {{rules: [{{delay: 0ms}}]}}, to: {{rules: [{{delay: 100ms}}]}}, steps: 4}}}}\n",
        lab.left.netns
    ));
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    for ms in [0.0, 25.0, 50.0, 75.0, 100.0] {
        let change = process.wait_for("change");
        let amounts = change["targets"][0]["amounts"].as_object().expect("amounts");
        let amount = amounts.values().next().expect("a ramp");
        assert_eq!(*amount, json!([{"name": "delay", "value": ms, "unit": "ms"}]), "{change}");
    }
    let end = process.wait_for("change");
    assert_eq!(end["targets"][0].get("amounts"), None, "{end}");
    process.finish();
}

//! Missing requirements are reported at the start, before anything is attached.

use std::process::Command;

use injector_user::kubernetes::crd::FaultInjectionSpec;
use serde_json::json;
use testbed::{INJECTOR, Lab, RuleFile, agent::Agent, scratch_file};

/// Fails unless this bash script, in a new mount namespace, exits with `code` and prints the words.
fn assert_says(lab: &Lab, script: &str, code: i32, words: &[&str]) {
    assert_says_in(lab, &["--mount"], script, code, words);
}

/// Like [`assert_says`], in these new namespaces.
fn assert_says_in(lab: &Lab, namespaces: &[&str], script: &str, code: i32, words: &[&str]) {
    let mut command = lab.left.command("unshare", None);
    let command = command.args(namespaces).args(["bash", "-c", script]);
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{script}: {said}");
    for word in words {
        assert!(said.contains(word), "{script}: no `{word}` in: {said}");
    }
    assert!(!said.contains("panicked") && !said.contains("overflow"), "{script}: {said}");
}

/// Commands that begin faults, or serve those who do.
struct Commands {
    lines: [String; 4],
    _scenario: RuleFile,
}

impl Commands {
    fn new() -> Self {
        let scenario = RuleFile::new(
            "targets: {a: {host: true, protect: false}}\n\
             timeline: [{for: 100ms, faults: {rules: [{loss: 0%}]}}]\n",
        );
        let file = scenario.path.display();
        let socket = scratch_file();
        let socket = socket.display();
        let lines = [
            format!("{INJECTOR} inject --host --no-protect --loss 0% --for 100ms"),
            format!("{INJECTOR} run --loss 0% -- true"),
            format!("{INJECTOR} apply {file}"),
            // Once it serves, it is ended.
            format!(
                "{INJECTOR} agent --socket {socket} <&0 & \
                 until [ -S {socket} ]; do kill -0 $! || break; sleep 0.05; done; \
                 kill $!; wait $!"
            ),
        ];
        Self { lines, _scenario: scenario }
    }
}

#[test]
fn without_sysfs_nothing_is_attached() {
    let lab = Lab::new();
    let commands = Commands::new();
    for command in &commands.lines {
        let script = format!("mount -t tmpfs t /sys && {command}");
        assert_says(&lab, &script, 1, &["/sys/devices/system/cpu/possible", "mount -t sysfs"]);
    }
}

#[test]
fn without_devices_nothing_is_attached() {
    let lab = Lab::new();
    let commands = Commands::new();
    for command in &commands.lines {
        let script = format!("mount -t tmpfs t /dev && {command}");
        assert_says(&lab, &script, 1, &["/dev"]);
    }
}

#[test]
fn limits_that_are_too_low_are_named() {
    let lab = Lab::new();
    let commands = Commands::new();
    for command in &commands.lines {
        for files in [8, 12, 20, 32, 100] {
            let words = [&*format!("open files is {files}"), "ulimit -n 1024"];
            assert_says(&lab, &format!("ulimit -n {files}; {command}"), 1, &words);
        }
        for stack in [64, 256] {
            let words = [&*format!("stack limit is {stack} KiB"), "ulimit -s 1024"];
            assert_says(&lab, &format!("ulimit -s {stack}; {command}"), 1, &words);
        }
        assert_says(&lab, &format!("ulimit -s 1024; ulimit -n 128; {command}"), 0, &[]);
    }
}

#[test]
fn without_cgroup_v2_only_faults_of_processes_are_refused() {
    const UNMOUNT: &str = "while read -r _ place type _; do if [ $type = cgroup2 ]; then \
                           umount -l $place; fi; done </proc/self/mounts";
    let lab = Lab::new();
    let scenario = RuleFile::new(
        "targets: {a: {cgroup: /a}}\n\
         timeline: [{for: 100ms, faults: {rules: [{loss: 0%}]}}]\n",
    );
    for line in [
        "run --loss 0% -- true",
        "run --clock +1h -- true",
        "run --pause 1ms -- true",
        "inject --cgroup /a --loss 0% --for 100ms",
        "inject --cgroup-of $$ --loss 0% --for 100ms",
        "inject --container a --loss 0% --for 100ms",
        "inject --pod a/b --loss 0% --for 100ms",
        &format!("apply {}", scenario.path.display()),
    ] {
        // The host's hierarchy is found by the host's process 1, or else attached here.
        let namespaces = ["--mount", "--pid", "--fork", "--mount-proc"];
        let words = ["no cgroup v2 hierarchy is mounted", "mount -t cgroup2"];
        let script = format!(
            "mount -t tmpfs t /run/injector; touch /run/injector/cgroup; {UNMOUNT}; {INJECTOR} {line}"
        );
        assert_says_in(&lab, &namespaces, &script, 1, &words);
    }
    let netns = &lab.left.netns;
    for line in [
        "inject --interface veth0 --loss 0% --for 100ms",
        "inject --interface veth0 --xdp --loss 0% --for 100ms",
        // With `&&`, $$ is the shell and not injector.
        "inject --pid $$ --loss 0% --for 100ms && true",
        "inject --pid $$ --kill CONT,at=10ms --for 100ms && true",
        &format!("inject --netns {netns} --delay 1ms --for 100ms"),
    ] {
        assert_says(&lab, &format!("{UNMOUNT}; {INJECTOR} {line}"), 0, &[]);
    }
    let commands = Commands::new();
    for command in commands.lines.iter().filter(|line| !line.contains(" run ")) {
        assert_says(&lab, &format!("{UNMOUNT}; {command}"), 0, &[]);
    }
}

#[test]
fn a_time_of_zero_is_refused_everywhere() {
    let fault = "faults: {rules: [{loss: 100%}]}";
    let scenarios = [
        format!("for: 0s\ntargets: {{a: {{netns: nowhere}}}}\ntimeline: [{{{fault}}}]\n"),
        format!("targets: {{a: {{netns: nowhere}}}}\ntimeline: [{{for: 0ms, {fault}}}]\n"),
        format!(
            "targets: {{a: {{netns: nowhere}}}}\ntimeline: [{{for: 1s, every: 0s, {fault}}}]\n"
        ),
    ];
    let files: Vec<RuleFile> = scenarios.iter().map(|text| RuleFile::new(text)).collect();
    let rules = RuleFile::new("rules: [{loss: 100%, for: 0s}]\n");
    let mut lines: Vec<String> = files
        .iter()
        .flat_map(|file| {
            ["apply", "apply --check"].map(|command| format!("{command} {}", file.path.display()))
        })
        .collect();
    lines.push(format!("inject --netns nowhere --rules {}", rules.path.display()));
    lines.push("inject --netns nowhere --loss 1% --for 0s".into());
    lines.push("run --loss 1% --for 0s -- true".into());
    for line in lines {
        let output = Command::new(INJECTOR).args(line.split(' ')).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        assert!(
            said.contains("more than 0")
                || said.contains("longer than 0s")
                || said.contains("every"),
            "{line}: {said}"
        );
    }
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    for request in [
        json!({"target": {"host": true}, "rules": [{"loss": "1%"}], "for": "0s"}),
        json!({"target": {"host": true}, "rules": [{"loss": "1%"}], "for": "1s", "lease": "0s"}),
        json!({"target": {"host": true}, "rules": [{"loss": "1%", "for": "0s"}], "for": "1s"}),
    ] {
        let (status, answer) = agent.ask("POST", "/v1/faults", Some(&request));
        assert_eq!(status, 422, "{request}: {answer}");
        let mut resource = request.clone();
        resource["target"] = json!({"pod": "a"});
        if resource.as_object_mut().expect("an object").remove("lease").is_none() {
            let said = FaultInjectionSpec::check(&resource).expect_err("a time of zero");
            assert!(said.contains("0s"), "{resource}: {said}");
        }
    }
}

#[test]
fn short_times_are_told_as_they_were_given() {
    let output = Command::new(INJECTOR)
        .args(["run", "--loss", "0%", "--for", "1ns", "--", "true"])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("for 1ns"), "{said}");
}

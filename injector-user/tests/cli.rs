//! Usage errors have their own exit code and say what is wrong and what to do.

use std::process::{Command, Output};

use testbed::{Family, Injector, Lab, RuleFile};

fn injector(line: &str) -> Output {
    let mut command = Command::new(testbed::INJECTOR);
    command.args(line.split_whitespace()).output().expect("it runs")
}

/// Fails unless injector exits with `code` and a message that contains all of `words`.
fn assert_refused(line: &str, code: i32, words: &[&str]) {
    let output = injector(line);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{line}: {said}");
    for word in words {
        assert!(said.contains(word), "{line}: no `{word}` in: {said}");
    }
}

#[test]
fn a_wrong_value_is_named_with_its_flag_and_its_range() {
    for (line, words) in [
        ("run --loss 101% -- true", &["--loss", "101%", "0% to 100%"][..]),
        ("run --loss x -- true", &["--loss", "0% to 100%"]),
        ("run --loss 1%,corr=100% -- true", &["--loss", "correlation"]),
        ("run --loss-every 0 -- true", &["--loss-every", "1 to 4294967295"]),
        ("run --loss-state 60%,1%,1%,1%,60% -- true", &["--loss-state", "p13 and p14"]),
        ("run --corrupt=-1% -- true", &["--corrupt", "-1%", "0% to 100%"]),
        ("run --loss 1% --remote 10.0.0.0/33 -- true", &["--remote", "0 to 32"]),
        ("run --loss 1% --remote-port 65536 -- true", &["--remote-port", "0 to 65535"]),
        ("run --loss 1% --tcp-flags foo -- true", &["--tcp-flags", "syn"]),
        ("run --loss 1% --protocol foo -- true", &["--protocol", "tcp, udp"]),
        ("run --loss 0.1 -- true", &["--loss", "0.1% (or 10%)"]),
        ("run --loss 0 -- true", &["--loss", "write 0%"]),
        ("run --loss 1%,corr=25 -- true", &["--loss", "write 25%"]),
        ("run --loss-state 1,2%,3% -- true", &["--loss-state", "write 1% (or 100%)"]),
        ("run --loss-gemodel 1%,20 -- true", &["--loss-gemodel", "write 20%"]),
        ("run --corrupt 20 -- true", &["--corrupt", "write 20%"]),
        ("run --duplicate 20 -- true", &["--duplicate", "write 20%"]),
        ("run --delay 5ms,jitter=1ms,corr=20 -- true", &["--delay", "write 20%"]),
        ("run --delay 5ms --reorder 20 -- true", &["--reorder", "write 20%"]),
        ("run --cpu 20 -- true", &["--cpu", "write 20%"]),
        ("run --errno write=EIO,0.5 -- true", &["--errno", "write 0.5% (or 50%)"]),
        ("run --loss 1% --for 0s -- true", &["--for", "longer than 0s"]),
        ("inject --netns x --loss 1% --for 0ms", &["--for", "longer than 0s"]),
        ("run --loss 1% --for 5 -- true", &["--for", "5", "unit"]),
        ("run --loss 1% --direction up -- true", &["--direction", "egress, ingress, both"]),
        ("run --loss 1% --seed=-1 -- true", &["--seed"]),
    ] {
        assert_refused(line, 2, words);
    }
}

#[test]
fn contradictions_are_wrong_usage() {
    for (line, words) in [
        ("run -- true", &["no fault", "--loss"][..]),
        ("run --loss 1%", &["CMD"]),
        ("run --loss 1% --loss-every 3 -- true", &["--loss", "--loss-every"]),
        ("run --loss 1% --corrupt-mode wire -- true", &["--corrupt-mode", "--corrupt"]),
        ("run --reset --protocol udp -- true", &["--reset", "TCP"]),
        ("run --partition 10.0.0.1 --remote 10.0.0.2 -- true", &["--remote", "--partition"]),
        ("inject --loss 1%", &["no target", "--cgroup", "--host"]),
        ("inject --host --pid 1 --loss 1%", &["--host", "--pid"]),
        ("inject --host --process a --loss 1%", &["--host", "--process"]),
        ("inject --pid 1 --process a --loss 1%", &["--pid", "--process"]),
        ("inject --cgroup /a --tree --loss 1%", &["--tree"]),
        ("inject --process /( --loss 1%", &["/("]),
        ("inject --pods a/b=c --interface lo --loss 1%", &["--pods", "--interface"]),
        ("inject --pods b=c --loss 1%", &["b=c", "which pods"]),
        ("inject --host --xdp --duplicate 1%", &["--xdp", "--duplicate"]),
        ("inject --cgroup /x --xdp --loss 1%", &["--xdp", "--cgroup"]),
        ("inject --host --rules /x --loss 1%", &["--rules"]),
        ("inject --host --rules /no/such/file", &["/no/such/file"]),
        ("frobnicate", &["frobnicate"]),
    ] {
        assert_refused(line, 2, words);
    }
}

#[test]
fn what_faults_all_that_passes_must_have_an_end() {
    // In a namespace, in case it is not refused.
    let lab = Lab::new();
    for (line, option) in [
        ("--host --loss 0%", "--host"),
        ("--interface lo --loss 0%", "--interface"),
        ("--netns /proc/self/ns/net --interface lo --loss 0%", "--interface"),
        ("--agent /no/such/socket --host --loss 0%", "--host"),
    ] {
        let mut command = lab.left.command("timeout", None);
        command.args(["5", testbed::INJECTOR, "inject"]).args(line.split(' '));
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        for words in [option, "--for 30s", "--for forever"] {
            assert!(said.contains(words), "{line}: {said}");
        }
    }
    let line = "--host --loss 0% --for forever";
    Injector::start(&lab.left, line).stop();
}

#[test]
fn a_wrong_rule_file_is_named_with_the_place() {
    for (text, words) in [
        ("rules:\n  - loss: 101%\n", &["101%"][..]),
        ("rules:\n  - loss: 1%\n    los: 2%\n", &["los"]),
        ("rules:\n  - name: first\n    remote: 10.0.0.1\n", &["rule 0 (first)", "no fault"]),
        ("rules: []\n", &["rules: this list is empty"]),
        ("rules: [{loss: 0.1}]\n", &["rules[0].loss", "write 0.1% (or 10%)"]),
        ("rules: [{loss: 0}]\n", &["rules[0].loss", "write 0%"]),
        ("rules: [{loss: '20'}]\n", &["rules[0].loss", "write 20%"]),
        ("rules: [{delay: '5ms,jitter=1ms,corr=1'}]\n", &["rules[0].delay", "write 1% (or 100%)"]),
        ("processes: {cpu: 50}\n", &["processes.cpu", "write 50%"]),
        ("processes: {errno: ['write=EIO,50']}\n", &["processes.errno[0]", "write 50%"]),
        ("rules: [{loss: 1%, for: 0s}]\n", &["rule 0", "longer than 0s"]),
        ("rules: 7\n", &["not a valid rule file"]),
    ] {
        let file = RuleFile::new(text);
        assert_refused(&format!("inject --netns nosuch {}", file.option()), 2, words);
    }
}

#[test]
fn what_is_not_there_is_a_failure_that_names_it() {
    for (line, words) in [
        ("inject --cgroup /no/such/cgroup --loss 1%", &["no cgroup", "/no/such/cgroup"][..]),
        ("inject --cgroup /proc --loss 1%", &["/proc", "v2"]),
        ("inject --cgroup / --loss 1%", &["root cgroup", "--pid", "mkdir"]),
        ("inject --pid 999999999 --loss 1%", &["no process 999999999"]),
        ("inject --cgroup-of 999999999 --loss 1%", &["no process 999999999"]),
        ("inject --process no-such-name --loss 1%", &["no process", "named no-such-name"]),
        ("inject --netns nosuch --loss 1%", &["nosuch"]),
        ("inject --pods a/b=c --loss 1%", &["--kubernetes", "--agent", "--pod"]),
        ("inject --interface nosuch0 --loss 1% --for 1s", &["nosuch0", "lo"]),
        (
            "inject --interface lo --loss 1% --for 1s --remote no-such-host.invalid",
            &["no-such-host.invalid"],
        ),
        ("run --loss 1% --output-file /no/such/folder/x -- true", &["/no/such/folder/x"]),
    ] {
        assert_refused(line, 1, words);
    }
}

#[test]
fn without_privileges_it_says_what_is_missing() {
    let command =
        "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all";
    for arguments in
        ["run --loss 1% -- true", "inject --host --loss 1% --for 1s", "doctor", "list", "cleanup"]
    {
        // A copy, in a directory that no other user can read.
        let copy = testbed::scratch_file();
        std::fs::copy(testbed::INJECTOR, &copy).expect("it can be copied");
        let line = format!("{command} {} {arguments}", copy.display());
        let mut words = line.split_whitespace();
        let output = Command::new(words.next().expect("a word")).args(words).output();
        let output = output.expect("setpriv is part of util-linux");
        std::fs::remove_file(&copy).expect("it is ours");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {said}");
        assert!(said.contains("root") && said.contains("CAP_BPF"), "{arguments}: {said}");
    }
}

#[test]
fn a_refused_start_leaves_nothing_half_applied() {
    let lab = Lab::new();
    let mut command = lab.left.command(testbed::INJECTOR, None);
    command.args([
        "inject",
        "--interface",
        "veth0",
        "--interface",
        "nosuch0",
        "--loss",
        "100%",
        "--for",
        "1s",
    ]);
    assert_eq!(command.output().expect("it runs").status.code(), Some(1));
    assert_eq!(lab.left.ping(None, lab.right.address(Family::V4), 3), 3);
}

#[test]
fn host_names_are_resolved_and_reported() {
    let lab = Lab::new();
    let line = "--interface lo --loss 1% --remote localhost --for 100ms";
    let injector = Injector::start(&lab.left, line);
    let resolved = injector.started["resolved"].to_string();
    assert!(resolved.contains("localhost") && resolved.contains("127.0.0.1"), "{resolved}");
}

#[test]
fn completions_and_man_pages_come_from_the_options() {
    for shell in ["bash", "zsh", "fish"] {
        let output = injector(&format!("completions {shell}"));
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("loss-gemodel"), "{shell}");
    }
    let output = injector("man");
    assert!(String::from_utf8_lossy(&output.stdout).contains("Fault injector"));
    let folder = testbed::scratch_file();
    std::fs::create_dir(&folder).expect("a scratch folder");
    assert!(injector(&format!("man {}", folder.display())).status.success());
    assert!(folder.join("injector-run.1").exists());
    std::fs::remove_dir_all(&folder).expect("it is ours");
}

#[test]
fn doctor_finds_a_way_for_every_fault() {
    let output = injector("doctor --output json");
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    let findings = testbed::output::lines(&text);
    for subject in ["cgroup v2", "clsact", "kernel BTF", "xdp-generic", "xdp-native (veth)"] {
        let finding = findings.iter().find(|finding| finding["subject"] == subject);
        let finding = finding.unwrap_or_else(|| panic!("nothing about {subject}"));
        assert_eq!(finding["verdict"], "ok", "{finding}");
    }
    for fault in ["loss", "corrupt", "duplicate", "partition", "reset"] {
        let finding = findings.iter().find(|finding| finding["fault"] == fault);
        let finding = finding.unwrap_or_else(|| panic!("nothing about {fault}"));
        assert!(finding["works_by"].to_string().contains("clsact"), "{finding}");
        // tcx depends on the kernel, but is available for both directions or neither.
        let tcx = |side: &str| finding["works_by"].to_string().contains(&format!("tcx {side}"));
        assert_eq!(tcx("egress"), tcx("ingress"), "{finding}");
    }
}

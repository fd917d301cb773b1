//! Refusals and reports have a way out, which works as it is written.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use testbed::{Family, INJECTOR, Injector, Lab, TestCgroup, hierarchy};

#[test]
fn a_process_in_the_root_cgroup_can_be_a_target_in_a_cgroup_of_its_own() {
    let lab = Lab::new();
    let to = lab.right.address(Family::V4);
    let start = || {
        let mut command = lab.left.command("bash", None);
        command.args(["-c", &format!("read line; exec ping -q -c 3 -i 0.01 {to}")]);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null());
        let child = command.spawn().expect("bash is installed");
        let procs = hierarchy().join("cgroup.procs");
        fs::write(procs, child.id().to_string()).expect("it can be moved");
        child
    };
    let go = |mut child: std::process::Child| {
        writeln!(child.stdin.take().expect("piped"), "go").expect("it reads");
        assert!(child.wait().expect("it ends").success());
    };
    let child = start();
    let mut command: Command = lab.left.command(INJECTOR, None);
    command.args(["inject", "--loss", "0%", "--cgroup-of", &child.id().to_string()]);
    let output = command.output().expect("it can be run");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    let mount = hierarchy().display().to_string();
    for words in ["--pid", &format!("mkdir {mount}/NAME"), &format!("{mount}/NAME/cgroup.procs")] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("--host"), "{said}");
    let cgroup = TestCgroup::new();
    fs::write(cgroup.path.join("cgroup.procs"), child.id().to_string()).expect("it can be moved");
    let injector = Injector::on(&lab.left, &cgroup, "--loss 0%");
    go(child);
    assert_eq!(injector.stop().total.matched, 6);
    let child = start();
    let injector = Injector::start(&lab.left, &format!("--pid {} --loss 0%", child.id()));
    go(child);
    assert_eq!(injector.stop().total.matched, 6);
}

#[test]
fn faults_without_an_end_say_how_to_end_them() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let mut command: Command = lab.left.command(INJECTOR, None);
    command.args(["inject", "--delay", "200ms", "--cgroup"]).arg(&cgroup.path);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it can be run");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = |words: &str| {
        let mut lines = lines.by_ref().map(|line| line.expect("text"));
        lines.find(|line| line.contains(words)).unwrap_or_else(|| panic!("no {words}"))
    };
    let line = next("until Ctrl-C or `");
    let kill = line.split('`').nth(1).expect("a command").to_owned();
    assert_eq!(kill, format!("kill {}", child.id()));
    let rule = next("rule 0: ");
    let words = "rule 0: delay 200ms of all packets, each way (a round trip takes 400ms longer)";
    assert!(rule.ends_with(words), "{rule}");
    let mut words = kill.split(' ');
    let killed = Command::new(words.next().expect("a program")).args(words).status();
    assert!(killed.expect("it can be run").success());
    assert!(child.wait().expect("it ends").success());
}

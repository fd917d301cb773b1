//! Faults end on time, even if injector cannot end them.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testbed::{Family, Injector, Lab, TIMEOUT, TestCgroup, number, wait_until};

/// Runs `injector run` inside the faulted namespace.
fn run(lab: &Lab, arguments: &[&str]) -> Output {
    let mut command = lab.left.command(testbed::INJECTOR, None);
    command.arg("run").args(arguments).output().expect("it runs")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn answers(lab: &Lab, cgroup: Option<&TestCgroup>) -> bool {
    lab.left.ping(cgroup, lab.right.address(Family::V4), 3) == 3
}

#[test]
fn inject_ends_when_its_time_is_over() {
    let lab = Lab::new();
    let started = Instant::now();
    let injector = Injector::start(&lab.left, "--interface veth0 --loss 100% --for 1s");
    // The time of starting does not count.
    let active = Instant::now();
    assert!(!answers(&lab, None));
    let summary = injector.process.finish();
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(active.elapsed() < Duration::from_secs(5));
    assert!(number(&summary, "dropped") > 0, "{summary}");
    assert!(answers(&lab, None));
}

#[test]
fn a_rule_ends_at_its_deadline_though_injector_is_stopped() {
    let lab = Lab::new();
    let injector = Injector::start(&lab.left, "--interface veth0 --loss 100% --for 2s");
    injector.process.signal(Signal::SIGSTOP);
    assert!(!answers(&lab, None));
    wait_until(Duration::from_secs(4), "the deadline", || answers(&lab, None));
    injector.process.signal(Signal::SIGCONT);
    let summary = injector.process.finish();
    assert!(number(&summary, "expired") > 0, "{summary}");
}

#[test]
fn all_rules_end_with_the_lease_that_a_stopped_injector_does_not_renew() {
    let lab = Lab::new();
    let injector = Injector::start(&lab.left, "--interface veth0 --loss 100%");
    injector.process.signal(Signal::SIGSTOP);
    assert!(!answers(&lab, None));
    wait_until(Duration::from_secs(8), "the end of the lease of 5 s", || answers(&lab, None));
    // After resuming, it works normally.
    injector.process.signal(Signal::SIGCONT);
    wait_until(TIMEOUT, "a renewed lease", || !answers(&lab, None));
    injector.stop();
}

#[test]
fn interrupted_it_ends_at_once_and_tells_what_it_did() {
    let lab = Lab::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let injector = Injector::start(&lab.left, "--interface veth0 --loss 100%");
        assert!(!answers(&lab, None));
        // Impatient people press it twice.
        injector.process.signal(signal);
        let _ = kill(injector.process.pid(), signal);
        let summary = injector.process.finish();
        assert!(number(&summary, "dropped") >= 3, "{signal}: {summary}");
        assert!(answers(&lab, None), "{signal}");
    }
}

#[test]
fn new_interfaces_are_faulted_as_well() {
    let lab = Lab::new();
    let mut injector = Injector::start(&lab.left, "--host --loss 100%");
    // Interfaces that are down are skipped.
    let batch = "link add extra0 type veth peer name extra1\nlink set extra0 up\n";
    testbed::ip(&["-n", &lab.left.netns], batch);
    let attached = injector.process.wait_for("attached");
    assert!(attached.to_string().contains("extra0"), "{attached}");
    testbed::ip(&["-n", &lab.left.netns], "link del extra0");
    injector.stop();
}

#[test]
fn a_process_of_the_cgroup_is_followed_into_its_network_namespace() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    // Started on the right host, for a cgroup whose process is on the left one.
    let mut injector =
        Injector::on(&lab.right, &cgroup, "--loss 100% --protocol icmp --direction egress");
    let mut sleep = lab.left.command("sleep", Some(&cgroup)).arg("30").spawn().expect("sleep");
    let attached = injector.process.wait_for("attached");
    assert!(attached.to_string().contains("veth0"), "{attached}");
    assert!(!answers(&lab, Some(&cgroup)));
    assert!(answers(&lab, None));
    sleep.kill().expect("it is ours");
    sleep.wait().expect("killed");
    assert!(injector.stop().total.dropped >= 3);
}

#[test]
fn run_exits_as_its_command_does() {
    let lab = Lab::new();
    assert_eq!(code(&run(&lab, &["--loss", "1%", "--", "true"])), Some(0));
    assert_eq!(code(&run(&lab, &["--loss", "1%", "--", "sh", "-c", "exit 42"])), Some(42));
    assert_eq!(code(&run(&lab, &["--loss", "1%", "--", "sh", "-c", "kill -TERM $$"])), Some(143));
    assert_eq!(code(&run(&lab, &["--loss", "1%", "--", "/no/such/command"])), Some(127));
    assert_eq!(code(&run(&lab, &["--loss", "1%", "--", "/etc/passwd"])), Some(126));
}

#[test]
fn run_leaves_the_standard_output_to_its_command() {
    let lab = Lab::new();
    let output = run(&lab, &["--loss", "1%", "--", "echo", "hello"]);
    assert_eq!(text(&output.stdout), "hello\n");
    let report = text(&output.stderr);
    assert!(report.contains("warning: no packet matched"), "{report}");
}

#[test]
fn nothing_matched_is_a_failure_if_a_match_is_required() {
    let lab = Lab::new();
    let output = run(&lab, &["--loss", "1%", "--require-match", "--", "true"]);
    assert_eq!(code(&output), Some(3));
    let to = lab.right.address(Family::V4).to_string();
    let ping = ["--", "ping", "-q", "-c", "1", &to];
    let output = run(&lab, &[&["--loss", "0%", "--require-match"], &ping[..]].concat());
    assert_eq!(code(&output), Some(0));
}

#[test]
fn signals_reach_the_command() {
    let lab = Lab::new();
    let mut command = lab.left.command(testbed::INJECTOR, None);
    command.args(["run", "--loss", "1%", "--", "sh", "-c"]);
    command
        .arg("trap 'echo usr1' USR1; trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done");
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || said.next().expect("it says something").expect("text");
    assert_eq!(next(), "ready");
    kill(pid, Signal::SIGUSR1).expect("it is ours");
    assert_eq!(next(), "usr1");
    kill(pid, Signal::SIGTERM).expect("it is ours");
    assert_eq!(child.wait().expect("it ends").code(), Some(7));
}

#[test]
fn the_command_goes_on_without_faults_when_their_time_is_over() {
    let lab = Lab::new();
    let to = lab.right.address(Family::V4).to_string();
    let script = format!(
        "ping -q -c 2 -i 0.2 -W 0.3 {to} >&2 && exit 1; sleep 1.5; ping -q -c 3 -i 0.2 {to}"
    );
    let output = run(&lab, &["--loss", "100%", "--for", "1s", "--", "sh", "-c", &script]);
    assert_eq!(code(&output), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains(" 0% packet loss"), "{}", text(&output.stdout));
}

#[test]
fn what_the_command_leaves_running_goes_back_to_where_it_came_from() {
    let lab = Lab::new();
    let own = fs::read_to_string("/proc/self/cgroup").expect("cgroups");
    let v2 = |text: &str| text.lines().find(|line| line.starts_with("0::")).map(str::to_owned);
    let output =
        run(&lab, &["--loss", "1%", "--", "sh", "-c", "sleep 6543 >/dev/null 2>&1 & echo $!"]);
    let pid = text(&output.stdout).trim().to_owned();
    let its = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it goes on");
    assert_eq!(v2(&its), v2(&own));
    Command::new("kill").args(["-KILL", &pid]).status().expect("kill");
}

#[test]
fn a_running_injector_is_listed_and_a_dead_one_is_not() {
    let lab = Lab::new();
    let line = "--interface veth0 --loss 1% --remote-port 80 --direction egress";
    let injector = Injector::start(&lab.left, line);
    let pid = injector.process.pid().as_raw();
    let list = || {
        let mut command = Command::new(testbed::INJECTOR);
        let listed = command.args(["list", "--output", "json"]).output().expect("it runs");
        let listed = testbed::output::lines(&text(&listed.stdout));
        listed.into_iter().find(|line| line["pid"] == pid)
    };
    let own = list().expect("it is listed");
    let (target, started) = (&own["targets"][0], &injector.started);
    for key in ["title", "target", "rules"] {
        assert_eq!(target[key], started[key], "{key}");
    }
    assert_eq!(target["rules"][0]["match"], "packets to port 80, sent");
    let human = Command::new(testbed::INJECTOR).arg("list").output().expect("it runs");
    let human = text(&human.stdout);
    assert!(human.contains("rule 0: loss 1%: packets to port 80, sent"), "{human}");
    injector.process.signal(Signal::SIGKILL);
    drop(injector);
    assert_eq!(list(), None);
}

#[test]
fn a_reader_that_goes_away_ends_no_fault() {
    let lab = Lab::new();
    let mut command = Injector::command(&lab.left, "--interface veth0 --loss 100%");
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    drop(child.stdout.take());
    wait_until(TIMEOUT, "packets are lost", || !answers(&lab, None));
    assert_eq!(child.try_wait().expect("it is ours"), None);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it is there");
    assert_eq!(child.wait().expect("it ended").code(), Some(0));
    assert!(answers(&lab, None));
}

#[test]
fn the_directory_of_journals_that_a_container_has_as_a_volume_outlives_each_injector() {
    let lab = Lab::new();
    // The same directory under both paths, as seen by the host and by a container. A directory that
    // was removed takes no new file.
    let script = format!(
        "set -e; mount -t tmpfs t /run; mkdir /run/injector /run/volume
         mount --bind /run/injector /run/volume
         {} inject --host --no-protect --loss 0% --for 100ms
         touch /run/volume/journal; test -e /run/injector/journal",
        testbed::INJECTOR
    );
    let mut command = lab.left.command("unshare", None);
    let output = command.args(["--mount", "bash", "-c", &script]).output().expect("it runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

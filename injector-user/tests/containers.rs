//! Containers that runc makes, named as people name them.
//!
//! What they send is faulted, and not what they receive: busybox's ping has the same identifiers in containers that have
//! process numbers of their own, so that the answers of neighbours in one namespace could not be told apart.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::{
    Family, Host, Injector, Lab, Process, RuleFile,
    agent::Agent,
    container::{Container, Machine, TIMEOUT},
};

/// The pod of most of them.
const POD: &str = "kubepods/burstable/pod6f0a1c52-8ad2-4c8e-9f0b-1d2e3f405162";

/// `injector inject` that looks for containers of this machine.
fn command(host: &Host, machine: &Machine, line: &str) -> Command {
    let mut command = Injector::command(host, line);
    command.env("INJECTOR_HOST_ROOT", &machine.root);
    command
}

fn inject(host: &Host, machine: &Machine, line: &str) -> Injector {
    let mut process = Process::start(command(host, machine, line));
    process.timeout = TIMEOUT;
    let started = process.wait_for("started");
    Injector { process, started }
}

/// Reads up to what says that a container is faulted again. One that is just being made has processes on the way to its
/// namespace, which are looked for four times a second.
fn wait_until_followed(injector: &mut Process) -> Value {
    let followed = injector.wait_for("followed");
    thread::sleep(Duration::from_millis(400));
    followed
}

fn names(value: &Value) -> Vec<&str> {
    let attached = value["attached"].as_array().expect("a list");
    attached.iter().filter_map(|place| place["interface"].as_str()).collect()
}

#[test]
fn packets_of_the_chosen_container_are_lost_and_not_its_neighbours() {
    let (lab, machine) = (Lab::new(), Machine::new());
    let (left, right) = (&lab.left, &lab.right);
    let to = right.address(Family::V4);
    // They share a namespace, as those of a pod do.
    let chosen = machine.start(left, POD, &Machine::id("abc1"), "a", "app");
    let neighbour = machine.start(left, POD, &Machine::id("abc2"), "a", "proxy");
    assert!(chosen.pings(to) && neighbour.pings(to));
    for name in [&chosen.id[..12], "app", "a/app", "test/a/app"] {
        let line = format!("--container {name} --loss 100% --direction egress");
        let injector = inject(right, &machine, &line);
        let target = injector.started["title"].as_str().expect("text");
        assert!(target.starts_with(&format!("{}, cgroup /", chosen.title())), "{target}");
        // In the namespace of the container, and not in that where injector was started.
        assert!(names(&injector.started).contains(&testbed::INTERFACE), "{:?}", injector.started);
        let netns = fs::metadata(format!("/run/netns/{}", left.netns)).expect("it is there");
        let inode = std::os::unix::fs::MetadataExt::ino(&netns);
        let attached = injector.started["attached"].as_array().expect("a list").clone();
        assert!(attached.iter().all(|place| place["netns_inode"] == inode), "{attached:?}");
        assert!(!chosen.pings(to));
        assert!(neighbour.pings(to));
        assert_eq!(left.ping(None, to, 3), 3);
        assert_eq!(injector.stop().total.dropped, 1);
        assert!(chosen.pings(to));
    }
}

#[test]
fn clocks_and_pauses_are_of_the_chosen_container() {
    let (lab, machine) = (Lab::new(), Machine::new());
    let left = &lab.left;
    let chosen = machine.start(left, POD, &Machine::id("abc1"), "a", "app");
    let neighbour = machine.start(left, POD, &Machine::id("abc2"), "a", "proxy");
    let is_frozen = |container: &Container| {
        let state = fs::read_to_string(container.path().join("cgroup.freeze"));
        state.expect("a cgroup of version 2").trim() == "1"
    };
    let line = "--container app --clock +1h --pause 2s,at=1s";
    let injector = inject(left, &machine, line);
    chosen.wait_for_clock(3600);
    assert!((3600 - chosen.clock_of_new()).abs() <= 2);
    assert!(neighbour.clock_of_new().abs() <= 2);
    let end = Instant::now() + TIMEOUT;
    while !is_frozen(&chosen) {
        assert!(Instant::now() < end, "it is never paused");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(!is_frozen(&neighbour));
    while is_frozen(&chosen) {
        assert!(Instant::now() < end, "it is paused for ever");
        thread::sleep(Duration::from_millis(20));
    }
    injector.process.signal(Signal::SIGTERM);
    let summary = injector.process.finish();
    assert_eq!(summary["processes"]["pauses"]["done"], 1, "{summary}");
    assert_eq!(summary["processes"]["pauses"]["by"], "cgroup.freeze", "{summary}");
    chosen.wait_for_clock(0);
}

#[test]
fn a_container_that_is_restarted_is_followed_and_its_faults_go_on() {
    let (lab, machine) = (Lab::new(), Machine::new());
    let (left, right) = (&lab.left, &lab.right);
    let to = right.address(Family::V4);
    let first = machine.start(left, POD, &Machine::id("abc1"), "a", "app");
    let neighbour = machine.start(left, POD, &Machine::id("abc2"), "a", "proxy");
    let line = "--container app --loss 100% --direction egress --clock +1h";
    let mut injector = inject(right, &machine, line);
    assert!(!first.pings(to));
    first.wait_for_clock(3600);

    // With the same ID.
    first.restart();
    let followed = wait_until_followed(&mut injector.process);
    assert_eq!(followed["title"], first.title(), "{followed}");
    assert!(!first.pings(to));
    first.wait_for_clock(3600);
    assert!((3600 - first.clock_of_new()).abs() <= 2);

    // With another one, but the same name, after a while.
    first.stop();
    let gone = injector.process.wait_for("gone");
    assert_eq!(gone["title"], first.title(), "{gone}");
    let second = machine.start(left, POD, &Machine::id("abc3"), "a", "app");
    let followed = wait_until_followed(&mut injector.process);
    assert_eq!(followed["title"], second.title(), "{followed}");
    assert!(!second.pings(to));
    second.wait_for_clock(3600);
    assert!(neighbour.pings(to));
    assert!(neighbour.clock_of_new().abs() <= 2);

    injector.process.signal(Signal::SIGTERM);
    let summary = injector.process.finish();
    // One of each, counted together.
    assert_eq!(summary["dropped"], 3, "{summary}");
    assert!(summary["clocks"]["patched"].as_u64() >= Some(6), "{summary}");
    second.wait_for_clock(0);
    assert!(second.pings(to));
}

#[test]
fn an_agent_follows_a_container_that_is_restarted() {
    let (lab, machine) = (Lab::new(), Machine::new());
    let (left, right) = (&lab.left, &lab.right);
    let to = right.address(Family::V4);
    let container = machine.start(left, POD, &Machine::id("abc1"), "a", "app");
    let socket = testbed::scratch_file();
    let mut command = Agent::command(right, &socket, &[]);
    command.env("INJECTOR_HOST_ROOT", &machine.root);
    let agent = Agent::spawned(command, socket, 1);
    agent.create(&json!({
        "name": "all",
        "target": {"container": "app"},
        "rules": [{"loss": "100%", "direction": "egress"}],
        "clocks": {"clock": "+1h"},
        "processes": {"pause": "100ms,every=500ms"},
        "for": "5m",
    }));
    assert!(!container.pings(to));
    container.wait_for_clock(3600);
    let pauses = |fault: &Value| fault["processes"]["pauses"]["done"].as_u64();
    let before = pauses(&agent.wait_for("all", |fault| pauses(fault) > Some(0)));

    container.restart();
    container.wait_for_clock(3600);
    let end = Instant::now() + TIMEOUT;
    while container.pings(to) {
        assert!(Instant::now() < end, "its packets pass");
    }
    agent.wait_for("all", |fault| pauses(fault) > before.map(|done| done + 1));
    let ended = agent.delete("all");
    assert_eq!(ended["reason"], "deleted", "{ended}");
    container.wait_for_clock(0);
    assert!(container.pings(to));
}

#[test]
fn pauses_and_counts_of_calls_go_on_when_a_container_is_restarted() {
    /// The container sleeps ten times a second, which is a call each.
    const CALLS: u64 = 40;
    let (lab, machine) = (Lab::new(), Machine::new());
    let left = &lab.left;
    let container = machine.start(left, POD, &Machine::id("abc1"), "a", "app");
    let line =
        format!("--container app --pause 200ms,every=1s --kill KILL,after={CALLS}:clock_nanosleep");
    let mut injector = inject(left, &machine, &line);
    let mut counts = |event: &str| {
        let said = injector.process.wait_for(event);
        let processes = &said["processes"];
        let number = |value: &Value| value.as_u64().expect("a number");
        let kill = &processes["kills"][0];
        (number(&processes["pauses"]["done"]), number(&kill["calls"]), number(&kill["sent"]))
    };
    let before = counts("progress");
    assert!(before.1 < CALLS && before.2 == 0, "{before:?}");
    container.restart();
    let end = Instant::now() + TIMEOUT;
    let mut now = counts("progress");
    // It is killed once, by the count of both, and goes on to be paused.
    while now.0 < before.0 + 2 || now.2 == 0 {
        assert!(Instant::now() < end, "{before:?}, {now:?}");
        now = counts("progress");
    }
    assert!(now.1 >= CALLS, "{now:?}");
    thread::sleep(Duration::from_secs(1));
    injector.process.signal(Signal::SIGTERM);
    let summary = injector.process.finish();
    assert_eq!(summary["processes"]["kills"][0]["sent"], 1, "{summary}");
}

#[test]
fn a_container_is_unfaulted_once_injector_is_killed() {
    let (lab, machine) = (Lab::new(), Machine::new());
    let (left, right) = (&lab.left, &lab.right);
    let to = right.address(Family::V4);
    let container = machine.start(left, POD, &Machine::id("abc1"), "a", "app");
    let line = format!("--container {} --loss 100% --direction egress --clock +1h", container.id);
    let injector = inject(left, &machine, &line);
    assert!(!container.pings(to));
    container.wait_for_clock(3600);
    injector.process.signal(Signal::SIGKILL);
    container.wait_for_clock(0);
    assert!(container.pings(to));
    drop(injector);

    let injector = inject(left, &machine, &format!("--container {} --pause 1m", container.id));
    let state = || fs::read_to_string(container.path().join("cgroup.freeze")).expect("a file");
    let wait_for = |wanted: &str| {
        let end = Instant::now() + TIMEOUT;
        while state().trim() != wanted {
            assert!(Instant::now() < end, "not {wanted}: {}", state());
            thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for("1");
    injector.process.signal(Signal::SIGKILL);
    wait_for("0");
}

#[test]
fn all_containers_of_a_pod_are_faulted_and_those_that_join_it() {
    let (lab, machine) = (Lab::new(), Machine::new());
    let (left, right) = (&lab.left, &lab.right);
    let to = right.address(Family::V4);
    let other_pod = "kubepods/pod7777";
    let first = machine.start(left, POD, &Machine::id("abc1"), "a", "app");
    let other = machine.start(left, other_pod, &Machine::id("abc2"), "b", "app");
    let line = "--pod test/a --loss 100% --direction egress --clock +1h";
    let mut injector = inject(right, &machine, line);
    let target = injector.started["title"].as_str().expect("text");
    assert!(target.starts_with("pod test/a, cgroup /"), "{target}");
    let second = machine.start(left, POD, &Machine::id("abc3"), "a", "proxy");
    second.wait_for_clock(3600);
    assert!(!first.pings(to) && !second.pings(to));
    assert!(other.pings(to));
    assert!(other.clock_of_new().abs() <= 2);

    // A pod of the same name on the same machine, as a StatefulSet makes it.
    second.stop();
    first.stop();
    injector.process.wait_for("gone");
    let again = machine.start(left, "kubepods/burstable/pod8888", &Machine::id("abc4"), "a", "app");
    wait_until_followed(&mut injector.process);
    assert!(!again.pings(to));
    again.wait_for_clock(3600);
    assert_eq!(injector.stop().total.dropped, 3);
}

#[test]
fn a_scenario_faults_a_container_and_follows_it() {
    let (lab, machine) = (Lab::new(), Machine::new());
    let (left, right) = (&lab.left, &lab.right);
    let to = right.address(Family::V4);
    let container = machine.start(left, POD, &Machine::id("abc1"), "a", "app");
    let scenario = RuleFile::new(
        "targets: {web: {container: test/a/app}}\n\
         timeline:\n  - {faults: [{rules: [{loss: 100%, direction: egress}], clocks: {clock: +1h}}]}\n",
    );
    let mut command = testbed::apply(right, &scenario.path, &[]);
    command.env("INJECTOR_HOST_ROOT", &machine.root);
    let mut injector = Process::start(command);
    injector.timeout = TIMEOUT;
    injector.wait_for("change");
    assert!(!container.pings(to));
    container.restart();
    let followed = wait_until_followed(&mut injector);
    assert_eq!(followed["name"], "web", "{followed}");
    assert_eq!(followed["title"], container.title(), "{followed}");
    assert!(!container.pings(to));
    container.wait_for_clock(3600);
    injector.signal(Signal::SIGTERM);
    let ended = injector.finish();
    assert_eq!(ended["targets"]["web"]["dropped"], 2, "{ended}");
    container.wait_for_clock(0);
}

#[test]
fn what_cannot_be_a_target_is_refused_with_what_there_is() {
    let (lab, machine) = (Lab::new(), Machine::new());
    let left = &lab.left;
    let _one = machine.start(left, POD, &Machine::id("abcd1"), "a", "app");
    let _other = machine.start(left, POD, &Machine::id("abcd2"), "b", "app");
    for (line, code, message) in [
        ("--container web", 1, "there is no container web: there are "),
        ("--container abcd", 1, "abcd may be any of test/a/app (abcd1"),
        ("--container app", 1, "app may be any of test/a/app (abcd1"),
        ("--pod test/c", 1, "there is no pod test/c on this machine: there are "),
        ("--pod test", 2, "`test` is not a pod: write its namespace and its name"),
        ("--container app --cgroup /x", 2, "cannot be used with"),
        ("--container app --pod a/b", 2, "cannot be used with"),
        ("--container test/a/app --interface none", 1, "there is no interface none in the network"),
        ("--container app --xdp", 2, "not with --container"),
    ] {
        let output =
            command(left, &machine, &format!("{line} --loss 1%")).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {text}");
        assert!(text.contains(message), "{line}: {text}");
    }
}

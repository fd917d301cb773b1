//! The agent in a container with exactly the privileges of its `DaemonSet` faults other containers.
//!
//! runc runs packaging/kubernetes/daemonset.yaml as a kubelet would.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use testbed::{
    Family, Lab,
    agent::Agent,
    container::{Container, Machine, TIMEOUT},
    daemonset::DaemonSet,
    engines, wait_until,
};

/// The pod of its target.
const POD: &str = "kubepods/burstable/pod6f0a1c52-8ad2-4c8e-9f0b-1d2e3f405162";

/// The user of targets: not root, like most workloads.
const USER: u32 = 1000;

/// The faults of a container.
const FAULTS: [&str; 7] = ["loss", "delay", "clock", "pause", "kill", "cpu", "errno"];

/// Serializes tests, as a container with an agent starts slowly in a virtual machine.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two hosts, and containers of an unprivileged user.
fn place() -> (Lab, Machine) {
    let mut machine = Machine::new();
    machine.user = USER;
    (Lab::new(), machine)
}

fn target<'a>(lab: &Lab, machine: &'a Machine) -> Container<'a> {
    machine.start(&lab.left, POD, &Machine::id("abc1"), "a", "app")
}

/// Whether each fault works on a container.
fn works(agent: &Agent, lab: &Lab, container: &Container<'_>) -> BTreeSet<&'static str> {
    FAULTS.into_iter().filter(|fault| act(agent, lab, container, fault)).collect()
}

/// Whether a fault can be created and has its effect.
fn act(agent: &Agent, lab: &Lab, container: &Container<'_>, fault: &str) -> bool {
    let to = lab.right.address(Family::V4);
    let faults = match fault {
        "loss" => json!({"rules": [{"loss": "100%", "direction": "egress"}]}),
        "delay" => json!({"rules": [{"delay": "300ms", "direction": "egress"}]}),
        "clock" => json!({"clocks": {"clock": "+1h"}}),
        "pause" => json!({"processes": {"pause": "1s,every=2s"}}),
        "kill" => json!({"processes": {"kill": ["KILL,at=100ms"]}}),
        "cpu" => json!({"processes": {"cpu": "50%"}}),
        "errno" => json!({"processes": {"errno": ["openat=EIO,path=/time"]}}),
        other => panic!("{other}"),
    };
    let mut request = json!({"name": fault, "target": {"container": container.id}, "for": "1m"});
    let request_map = request.as_object_mut().expect("it is one");
    request_map.extend(faults.as_object().expect("it is one").clone());
    let (status, answer) = agent.ask("POST", "/v1/faults", Some(&request));
    if status != 201 {
        eprintln!("{fault}: {answer}");
        return false;
    }
    let acts = match fault {
        "loss" => !container.pings(to),
        "delay" => {
            let began = Instant::now();
            container.pings(to) && began.elapsed() > Duration::from_millis(300)
        }
        "clock" => soon(|| {
            let time = container.time().unwrap_or_default();
            (time - jiff::Timestamp::now().as_second() - 3600).abs() <= 2
        }),
        "pause" => soon(|| read(container, "cgroup.freeze") == "1"),
        "kill" => soon(|| container.exec("true").status.code() != Some(0)),
        "cpu" => soon(|| read(container, "cpu.max").starts_with("50000 ")),
        "errno" => {
            let said = container.exec("cat /time").stderr;
            String::from_utf8_lossy(&said).contains("Input/output error")
        }
        other => panic!("{other}"),
    };
    let (_, ended) = agent.ask("DELETE", &format!("/v1/faults/{fault}"), None);
    if !acts {
        eprintln!("{fault}: it is asked for in vain: {ended}");
    }
    if fault == "kill" && acts {
        container.restart();
    }
    if fault == "clock" {
        container.wait_for_clock(0);
    }
    acts
}

fn soon(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A file of its cgroup; empty if missing.
fn read(container: &Container<'_>, file: &str) -> String {
    fs::read_to_string(container.path().join(file)).unwrap_or_default().trim().to_owned()
}

#[test]
fn it_can_do_what_an_agent_of_the_host_can() {
    let _turn = turn();
    let (lab, machine) = place();
    let container = target(&lab, &machine);
    let mut on_host = {
        let agent = Agent::start(&lab.right);
        works(&agent, &lab, &container)
    };
    if !engines().contains(&"edt") {
        // The other engine needs a device that only privileged containers have.
        on_host.remove("delay");
    }
    assert!(on_host.contains("loss") && on_host.contains("clock") && on_host.contains("kill"));
    let daemon = DaemonSet::read().start(&machine);
    assert_eq!(works(&daemon.agent, &lab, &container), on_host);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn without_one_of_its_capabilities_it_does_not_start() {
    let _turn = turn();
    let machine = Machine::new();
    let capabilities = DaemonSet::read().capabilities();
    assert_eq!(capabilities.len(), 7, "{capabilities:?}");
    for capability in capabilities {
        let daemon = DaemonSet::read().without(&capability).start(&machine);
        assert!(daemon.agent.serves.is_empty(), "without {capability}");
    }
}

#[test]
fn what_a_killed_agent_leaves_is_undone_by_the_next_start() {
    let _turn = turn();
    let (lab, machine) = place();
    let to = lab.right.address(Family::V4);
    let container = target(&lab, &machine);
    let is_frozen = || read(&container, "cgroup.freeze") == "1";
    let request = json!({
        "name": "all", "target": {"container": container.id}, "for": "10m",
        "rules": [{"loss": "100%", "direction": "egress"}],
        "clocks": {"clock": "+1h"},
        "processes": {"pause": "9m,at=1s"},
    });
    let set = DaemonSet::read();

    // With its guardian, as by the OOM killer or when the runtime removes the container.
    let daemon = set.start(&machine);
    daemon.agent.create(&request);
    container.wait_for_clock(3600);
    wait_until(TIMEOUT, "it is paused", is_frozen);
    daemon.kill();
    thread::sleep(Duration::from_secs(1));
    assert!(is_frozen(), "somebody else has undone it");
    let began = Instant::now();
    let daemon = set.start(&machine);
    assert!(!is_frozen());
    eprintln!("a start took {:?}", began.elapsed());
    container.wait_for_clock(0);
    assert!(container.pings(to));

    // Alone: the runtime kills the rest a moment later, unless the guardian is faster.
    daemon.agent.create(&request);
    wait_until(TIMEOUT, "it is paused", is_frozen);
    kill(Pid::from_raw(daemon.pid()), Signal::SIGKILL).expect("it is alive");
    let began = Instant::now();
    while is_frozen() && began.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(1));
    }
    eprintln!("by the guardian: {} after {:?}", !is_frozen(), began.elapsed());
    drop(daemon);
    let _daemon = set.start(&machine);
    assert!(!is_frozen());
    container.wait_for_clock(0);
    assert!(container.pings(to));
}

#[test]
fn its_probe_tells_how_it_is() {
    let _turn = turn();
    let machine = Machine::new();
    let daemon = DaemonSet::read().start(&machine);
    let probe = DaemonSet::read().probe();
    let words: Vec<&str> = probe.iter().map(String::as_str).collect();
    let said = daemon.exec(&words);
    assert!(said.status.success(), "{said:?}");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "ok: 0 active faults\n");
    let said = daemon.exec(&[&words[..], &["--output", "json"]].concat()).stdout;
    let said = testbed::output::parse(&String::from_utf8_lossy(&said));
    assert_eq!(said["status"], "ok");
    // A stopped agent does not answer.
    let pid = Pid::from_raw(daemon.pid());
    kill(pid, Signal::SIGSTOP).expect("it is alive");
    let said = daemon.exec(&words);
    kill(pid, Signal::SIGCONT).expect("it is alive");
    assert_eq!(said.status.code(), Some(1), "{said:?}");
}

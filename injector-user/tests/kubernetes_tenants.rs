//! Tenants of `injector agent --kubernetes` do not delay each other, with a real API server and real
//! containers.

#[path = "support/cluster.rs"]
mod cluster;

use std::{
    fs,
    net::UdpSocket,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use cluster::{Cluster, fault, faults, start};
use serde_json::{Value, json};
use testbed::{Family, Lab, agent::Agent, container::Machine, scratch_file};

/// The maximum delay of a creation or deletion, on a busy machine. A quiet one takes less than a second; an agent that
/// waits for name servers takes 24 and more.
const PROMPT: Duration = Duration::from_secs(8);

/// How often faults are created and deleted.
const ROUNDS: usize = 100;

/// A name server that never answers.
struct Silent {
    _socket: UdpSocket,
    /// Makes it the only one of a mount namespace.
    before: String,
}

impl Silent {
    fn new() -> Self {
        // Another test may run at the same time.
        let address = format!("127.53.{}.1:53", std::process::id() % 250 + 1);
        let socket = UdpSocket::bind(&address).expect("the address is free");
        let path = scratch_file();
        let address = address.trim_end_matches(":53");
        let text = format!("nameserver {address}\noptions timeout:30 attempts:5\n");
        fs::write(&path, text).expect("a file");
        let before = format!("mount --bind {} /etc/resolv.conf", path.display());
        Self { _socket: socket, before }
    }
}

/// Waits until a condition holds. Returns how long it took.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < cluster::TIMEOUT, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
    began.elapsed()
}

fn is_active(agent: &Agent, namespace: &str, name: &str) -> bool {
    let owner = format!("kubernetes:{namespace}/{name}");
    agent.active().iter().any(|fault| fault["owner"] == *owner)
}

/// Faults that name a peer whose address is never found.
fn stalled(number: usize) -> Value {
    json!({
        "target": {"pods": {"matchLabels": {"app": "cart"}}},
        "for": "10m",
        "rules": [{"loss": "100%", "remote": [format!("silent-{number}.example")]}],
    })
}

/// Puts this test before other work on the machine, with all that it starts: delays are those of the
/// agent.
fn hurry() {
    let own = std::process::id().to_string();
    let renice = Command::new("renice").args(["-n", "-15", "-p", &own]).output();
    assert!(renice.expect("it is installed").status.success());
}

#[test]
fn a_name_server_that_never_answers_delays_no_other_namespace() {
    hurry();
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine, silent) = (Lab::new(), Machine::new(), Silent::new());
    let to = lab.right.address(Family::V4);
    cluster.add_namespace("stalled");
    let labels = json!({"app": "cart"});
    let uid = cluster.add_pod("cart-0", "a", &labels);
    let container = start(&machine, &lab.left, "cart-0", &uid);
    let containers = [0, 1, 2].map(|number| {
        let name = format!("cart-{number}");
        let uid = cluster.add_pod_to("stalled", "a", &json!({"name": name, "labels": labels}));
        start(&machine, &lab.left, &name, &uid)
    });
    let agent = cluster.agent_after(&silent.before, "a", &machine, &[]);
    let lossy = |lasts: &str| {
        json!({
            "target": {"pod": "cart-0"}, "for": lasts,
            "rules": [{"loss": "100%", "direction": "egress"}],
        })
    };
    // A fault of the same namespace that can be ended meanwhile.
    cluster.make("stalled", &fault("active", &lossy("10m")));
    until("it starts", || is_active(&agent, "stalled", "active"));
    // 99th percentiles of creations and deletions. Other work on the machine may delay them too.
    let measure = || {
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            let name = format!("quick-{round}");
            cluster.inject(&name, &lossy("10m"));
            times[0].push(until("it starts", || is_active(&agent, "test", &name)));
            cluster.ask("DELETE", &faults("test", &name), None).expect("it is there");
            times[1].push(until("it ends", || !is_active(&agent, "test", &name)));
        }
        times.map(|mut times| {
            times.sort_unstable();
            times[ROUNDS * 99 / 100 - 1]
        })
    };
    let before = measure();
    for number in 0..12 {
        cluster.make("stalled", &fault(&format!("silent-{number}"), &stalled(number)));
    }
    let waits = |name: &str| {
        let fault = cluster.ask("GET", &faults("stalled", name), None).expect("it is there");
        let message =
            fault["status"]["nodes"][0]["message"].as_str().unwrap_or_default().to_owned();
        (fault, message)
    };
    until("it waits", || waits("silent-0").1.contains("silent-0.example"));

    cluster.inject("first", &lossy("10m"));
    cluster::wait_until(&container, false, to);
    cluster.ask("DELETE", &faults("test", "first"), None).expect("it is there");
    let during = measure();
    for ((what, before), during) in ["creations", "deletions"].into_iter().zip(before).zip(during) {
        eprintln!("{what}: 99th percentile {during:?}, {before:?} before");
        assert!(during < PROMPT, "{what}: {during:?}, {before:?} before");
    }
    cluster::wait_until(&container, true, to);
    // In the same namespace, faults without names act, too.
    cluster.ask("DELETE", &faults("stalled", "active"), None).expect("it is there");
    let took = until("it ends", || !is_active(&agent, "stalled", "active"));
    assert!(took < PROMPT, "{took:?}");
    cluster.inject(
        "wrong",
        &json!({"target": {"pod": "cart-0"}, "for": "1m", "rules": [{"loss": "101%"}]}),
    );
    let took = until("it is refused", || {
        cluster.fault("wrong").expect("it is there")["status"]["phase"] == "Failed"
    });
    assert!(took < PROMPT, "{took:?}");
    let (status, health) = agent.ask("GET", "/healthz", None);
    assert_eq!((status, &health["status"]), (200, &json!("ok")));

    // What is waited for is told.
    let told = "the name servers have not answered for the host name silent-0.example within 10s";
    until("it is told", || {
        let (fault, message) = waits("silent-0");
        let status = &fault["status"];
        message.contains(told) && status["phase"] == "Pending" && status["podsFaulted"] == "0/3"
    });
    assert!(containers.iter().all(|container| container.pings(to)));
    let began = Instant::now();
    assert!(agent.stop().success());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

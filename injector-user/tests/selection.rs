//! Faults of pods by labels, requested through the agent's own API, with a real API server and real
//! containers. The test acts as the kubelet.

#[path = "support/cluster.rs"]
mod cluster;
use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use cluster::{Cluster, start, wait_until};
use serde_json::{Value, json};
use testbed::{Family, INJECTOR, Lab, agent::Agent, container::Machine};

/// Loses sent packets only, see tests/containers.rs.
fn all_lost(pods: &str) -> Value {
    json!({
        "name": "lost",
        "target": {"pods": pods},
        "rules": [{"loss": "100%", "direction": "egress"}],
    })
}

/// The same request with more fields.
fn with(mut request: Value, key: &str, value: impl Into<Value>) -> Value {
    request[key] = value.into();
    request
}

/// Whether exactly these pods are faulted.
fn has_faulted(pods: &'static [&'static str]) -> impl Fn(&Value) -> bool {
    move |fault| {
        let told = fault["pods"].as_array().expect("a list");
        let is_faulted = |name: &&str| {
            told.iter().any(|pod| pod["name"] == **name && pod["state"] == "Injecting")
        };
        told.len() == pods.len() && pods.iter().all(is_faulted)
    }
}

fn label(cluster: &Cluster, pod: &str, app: &str) {
    let labels = json!({"metadata": {"labels": {"app": app}}});
    let path = format!("/api/v1/namespaces/test/pods/{pod}");
    cluster.ask("PATCH", &path, Some(&labels)).expect("it is there");
}

#[test]
fn selected_pods_of_the_node_are_faulted_and_no_others() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let to = lab.right.address(Family::V4);
    let run = |name: &str, node: &str, app: &str| {
        let uid = cluster.add_pod(name, node, &json!({"app": app, "injector.dev/tier": "web"}));
        (start(&machine, &lab.left, name, &uid), uid)
    };
    let (chosen, uid) = run("cart-0", "a", "cart");
    // They share a network namespace, like pods with hostNetwork.
    let (neighbour, _) = run("db-0", "a", "db");
    let (elsewhere, _) = run("cart-9", "b", "cart");
    let agent = cluster.agent("a", &machine, &[]);

    let pods = "test/app in (cart, shop),injector.dev/tier=web";
    let created = agent.create(&with(all_lost(pods), "for", "10m"));
    assert_eq!((&created["phase"], &created["target"]["pods"]), (&json!("active"), &json!(pods)));
    let seed = created["seed"].clone();
    agent.wait_for("lost", has_faulted(&["cart-0"]));
    assert!(!chosen.pings(to));
    assert!(neighbour.pings(to) && elsewhere.pings(to));
    let counted = agent.wait_for("lost", |fault| fault["matched"] == 1);
    assert_eq!(counted["dropped"], 1, "{counted:#}");
    assert_eq!(counted["rules"][0]["dropped"], 1, "{counted:#}");
    let part = |name: &str| agent.active().into_iter().find(|fault| fault["name"] == *name);
    let of_pod = part(counted["pods"][0]["fault"].as_str().expect("a name")).expect("it acts");
    assert_eq!((&of_pod["part_of"], &of_pod["seed"]), (&json!("lost"), &seed), "{of_pod:#}");
    assert_eq!(of_pod["owner"], created["owner"], "{of_pod:#}");
    // A part cannot be renewed by itself.
    let renewal = format!("/v1/faults/{}/renew", of_pod["name"].as_str().expect("text"));
    let (status, problem) = agent.ask("POST", &renewal, None);
    assert_eq!(status, 409, "{problem}");

    // The container restarts in its pod.
    chosen.stop();
    let again = start(&machine, &lab.left, "cart-0", &uid);
    wait_until(&again, false, to);
    // Another pod, which exists before its container.
    let uid = cluster.add_pod("cart-1", "a", &json!({"app": "shop", "injector.dev/tier": "web"}));
    agent.wait_for("lost", |fault| fault["pods"].as_array().expect("a list").len() == 2);
    let second = start(&machine, &lab.left, "cart-1", &uid);
    wait_until(&second, false, to);
    agent.wait_for("lost", has_faulted(&["cart-0", "cart-1"]));
    let before = agent.get("lost")["matched"].as_u64().expect("a number");
    // A pod that is no longer selected. Its counters are kept.
    label(&cluster, "cart-0", "other");
    wait_until(&again, true, to);
    assert!(!second.pings(to));
    agent.wait_for("lost", has_faulted(&["cart-1"]));
    let matched = |fault: &Value| fault["matched"].as_u64().expect("a number");
    let counted = agent.wait_for("lost", |fault| matched(fault) > before);
    // And nothing is counted twice.
    let (_, page) = agent.raw("GET", "/metrics", "", b"");
    let line = page
        .lines()
        .find(|line| line.starts_with("injector_packets_total{action=\"matched\"}"))
        .expect("it is there");
    let total: u64 = line.rsplit(' ').next().expect("a number").parse().expect("a number");
    assert_eq!(total, matched(&counted), "{line}");

    let deleted = agent.delete("lost");
    assert_eq!(deleted["reason"], "deleted");
    assert!(matched(&deleted) >= matched(&counted), "{deleted:#}");
    assert!(second.pings(to) && agent.active().is_empty());
    // A new pod is not faulted.
    label(&cluster, "cart-0", "cart");
    thread::sleep(Duration::from_secs(2));
    assert!(again.pings(to) && agent.active().is_empty());
    assert!(agent.stop().success());
}

#[test]
fn a_selection_that_makes_no_sense_is_refused_with_the_reason() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let agent = cluster.agent("a", &machine, &[]);
    let refused = |agent: &Agent, request: &Value| {
        let (status, problem) = agent.ask("POST", "/v1/faults", Some(request));
        assert!(status == 422 || status == 400, "{status}: {problem}");
        problem["message"].as_str().expect("text").to_owned()
    };
    let lasting = |pods: &str| with(all_lost(pods), "for", "10m");
    for (request, reason) in [
        (lasting("test/app in"), "unable to parse"),
        (lasting("test/app=cart=shop"), "found '='"),
        (lasting("test/"), "which pods"),
        (lasting("app=cart"), "which pods"),
        (lasting("../app=cart"), "which pods"),
        (lasting("test/../secrets?x"), "unable to parse"),
        (all_lost("test/app=cart"), "every fault must end"),
        (
            with(
                lasting("test/app=cart"),
                "target",
                json!({"pods": "test/app=cart", "interface": ["lo"]}),
            ),
            "wherever they are",
        ),
        (
            with(
                lasting("test/app=cart"),
                "target",
                json!({"pods": "test/app=cart", "pod": "test/cart-0"}),
            ),
            "not several",
        ),
        (with(lasting("test/app=cart"), "rules", json!([{"loss": "101%"}])), "101%"),
    ] {
        let message = refused(&agent, &request);
        assert!(message.contains(reason), "{request}: {message}");
    }
    assert!(agent.active().is_empty());
    let alone = Agent::start(&lab.left);
    let message = refused(&alone, &lasting("test/app=cart"));
    assert!(message.contains("--kubernetes"), "{message}");
    cluster.kill_server();
    let (status, problem) = agent.ask("POST", "/v1/faults", Some(&lasting("test/app=cart")));
    assert_eq!((status, &problem["error"]), (503, &json!("busy")), "{problem}");
    assert!(agent.active().is_empty());
}

#[test]
fn parts_live_as_long_as_the_whole() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let to = lab.right.address(Family::V4);
    let uid = cluster.add_pod("cart-0", "a", &json!({"app": "cart"}));
    let container = start(&machine, &lab.left, "cart-0", &uid);
    let mut agent = cluster.agent("a", &machine, &["--api-patience", "6s"]);

    // A lease, renewed at first and then not.
    agent.create(&with(all_lost("test/app=cart"), "lease", "4s"));
    agent.wait_for("lost", has_faulted(&["cart-0"]));
    for _ in 0..7 {
        thread::sleep(Duration::from_secs(1));
        let (status, fault) = agent.ask("POST", "/v1/faults/lost/renew", None);
        assert_eq!(status, 200, "{fault}");
        assert!(!container.pings(to));
    }
    let began = Instant::now();
    wait_until(&container, true, to);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let ended = agent.wait_for("lost", |fault| fault["phase"] == "ended");
    assert_eq!(ended["reason"], "lapsed", "{ended:#}");
    assert!(ended["matched"].as_u64() >= Some(7), "{ended:#}");
    assert!(agent.active().is_empty());

    // A time.
    agent.create(&with(all_lost("test/app=cart"), "for", "3s"));
    agent.wait_for("lost", has_faulted(&["cart-0"]));
    wait_until(&container, true, to);
    let ended = agent.wait_for("lost", |fault| fault["phase"] == "ended");
    assert_eq!(ended["reason"], "expired", "{ended:#}");

    // A part deleted through the API does not start again.
    let fault = with(all_lost("test/app=cart"), "for", "10m");
    agent.create(&fault);
    let acting = agent.wait_for("lost", has_faulted(&["cart-0"]));
    agent.delete(acting["pods"][0]["fault"].as_str().expect("a name"));
    agent.wait_for("lost", |fault| fault["pods"][0]["state"] == "Stopped");
    assert!(container.pings(to));
    agent.delete("lost");

    // Without the API server, the selected pods become unknown.
    agent.create(&fault);
    agent.wait_for("lost", has_faulted(&["cart-0"]));
    cluster.kill_server();
    wait_until(&container, true, to);
    let waiting = agent.wait_for("lost", |fault| fault["pods"][0]["state"] == "Waiting");
    let message = waiting["pods"][0]["message"].as_str().expect("text");
    assert!(message.contains("was not reached"), "{message}");
    cluster.start_server();
    wait_until(&container, false, to);

    // A killed agent leaves nothing.
    agent.child.kill().expect("it runs");
    agent.child.wait().expect("it ends");
    wait_until(&container, true, to);
}

fn inject(agent: &Agent, options: &[&str]) -> Child {
    Command::new(INJECTOR)
        .args(["inject", "--agent"])
        .arg(&agent.socket)
        .args(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be run")
}

#[test]
fn a_command_has_the_agent_fault_selected_pods_and_says_which() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let to = lab.right.address(Family::V4);
    let uid = cluster.add_pod("cart-0", "a", &json!({"app": "cart"}));
    let container = start(&machine, &lab.left, "cart-0", &uid);
    let agent = cluster.agent("a", &machine, &[]);
    let loss = ["--loss", "100%", "--direction", "egress"];
    let select = |pods: &'static str, more: &[&'static str]| {
        inject(&agent, &[&["--pods", pods], &loss[..], more].concat())
    };

    // With its own duration.
    let command = select("test/app=cart", &["--for", "5s", "--require-match", "--output", "json"]);
    wait_until(&container, false, to);
    let output = command.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).expect("text");
    let events = testbed::output::lines(&lines);
    let told =
        |name: &str| events.iter().filter(|event| event["event"] == *name).collect::<Vec<_>>();
    assert!(
        told("pods").iter().any(|event| event["pods"][0]["state"] == "Injecting"),
        "{events:#?}"
    );
    let summary = told("summary")[0];
    assert!(summary["matched"].as_u64() >= Some(1), "{summary:#}");
    assert!(container.pings(to) && agent.active().is_empty());

    // Selecting no pod is a failure.
    let output = select("test/app=none", &["--for", "2s", "--require-match"]).wait_with_output();
    let output = output.expect("it ends");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("no pod was faulted") && text.contains("no packet matched"), "{text}");
    assert_eq!(output.status.code(), Some(3), "{text}");
    let output = select("test/app in", &["--for", "2s"]).wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success() && text.contains("unable to parse"), "{text}");

    // After a kill of the client, it ends with its lease.
    let mut command = select("test/app=cart", &[]);
    let mut lines = BufReader::new(command.stdout.take().expect("piped")).lines();
    let is_said = lines.any(|line| line.expect("text") == "injector: pod cart-0 is faulted");
    assert!(is_said && !container.pings(to));
    command.kill().expect("it runs");
    command.wait().expect("it ends");
    let began = Instant::now();
    wait_until(&container, true, to);
    assert!(began.elapsed() < Duration::from_secs(14), "{:?}", began.elapsed());
    agent.wait_for_active(0);
}

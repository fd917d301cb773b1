//! `injector agent --kubernetes` with a real API server and real containers. The test acts as the kubelet.

#[path = "support/cluster.rs"]
mod cluster;
use std::{
    thread,
    time::{Duration, Instant},
};

use cluster::{Cluster, fault, faults, start, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::{Family, Lab, container::Machine};

/// Short enough for tests to wait for its expiry.
const SHORT: [&str; 2] = ["--api-patience", "9s"];

/// Loses sent packets only, see tests/containers.rs.
fn all_lost(lasts: &str) -> Value {
    json!({
        "target": {"pods": {"matchLabels": {"app": "cart"}}},
        "for": lasts,
        "rules": [{"loss": "100%", "direction": "egress"}],
    })
}

fn is_in_phase(phase: &'static str) -> impl Fn(&Value) -> bool {
    move |fault| fault["status"]["phase"] == phase
}

/// The status entry of a node.
fn node<'a>(fault: &'a Value, name: &str) -> &'a Value {
    let nodes = fault["status"]["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes.iter().find(|node| node["node"] == name).unwrap_or(&Value::Null)
}

fn condition<'a>(fault: &'a Value, name: &str) -> &'a Value {
    let conditions = fault["status"]["conditions"].as_array();
    let conditions = conditions.map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == name).unwrap_or(&Value::Null)
}

#[test]
fn the_definition_is_served_and_what_is_written_wrong_is_refused() {
    let Some(cluster) = Cluster::start() else { return };
    let path =
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/faultinjections.injector.dev";
    let definition = cluster.ask("GET", path, None).expect("it is there");
    let conditions = definition["status"]["conditions"].as_array().expect("a list");
    for condition in conditions {
        // For example, NonStructuralSchema.
        let is_good =
            ["NamesAccepted", "Established"].contains(&condition["type"].as_str().expect("text"));
        assert!(is_good && condition["status"] == "True", "{condition}");
    }
    let good = all_lost("30s");
    for (place, value, reason) in [
        ("/for", Value::Null, "spec.for"),
        ("/target", Value::Null, "spec.target"),
        ("/target", json!({}), "spec.target"),
        ("/target", json!({"pod": "a", "pods": {"matchLabels": {"a": "b"}}}), "spec.target"),
        ("/target", json!({"pod": 5}), "spec.target.pod"),
        ("/rules", json!({"loss": "1%"}), "spec.rules"),
        ("/rules", json!([{"loss": true}]), "spec.rules.loss"),
        ("/rules", json!([{"loss": "1%", "direction": "up"}]), "spec.rules.direction"),
        ("/seed", json!(-1), "spec.seed"),
        ("/processes", json!({"kill": "at=10s"}), "spec.processes.kill"),
    ] {
        let mut spec = good.clone();
        let key = place.trim_start_matches('/');
        if value.is_null() {
            spec.as_object_mut().expect("an object").remove(key);
        } else {
            spec[key] = value;
        }
        let refused = cluster.ask("POST", &faults("test", ""), Some(&fault("wrong", &spec)));
        let message = refused.expect_err(&spec.to_string());
        assert!(message.contains(reason), "{spec}: {message}");
    }
    let made = cluster.inject("good", &good);
    assert_eq!(made["spec"], good, "nothing is added or left out");
    // Values may be objects, and their fields are described.
    let mut objects = good.clone();
    objects["rules"][0] = json!({
        "loss": {"probability": "100%"},
        "delay": {"time": "50ms", "jitter": "10ms", "distribution": "normal"},
    });
    assert_eq!(cluster.inject("objects", &objects)["spec"], objects);
    let rules = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/rules/items";
    for (value, field) in
        [("delay", "`jitter`: "), ("loss-gemodel", "`1-h`: "), ("rate", "`queue`: ")]
    {
        let text = definition.pointer(&format!("{rules}/properties/{value}/description"));
        let text = text.and_then(Value::as_str).unwrap_or_default();
        assert!(text.contains(field), "{value}: {text}");
    }
    // Unknown fields are preserved for the agents to refuse.
    let mut misspelt = good.clone();
    misspelt["rules"][0]["remote-prt"] = json!(80);
    assert_eq!(cluster.inject("misspelt", &misspelt)["spec"], misspelt);
}

#[test]
fn pods_are_faulted_while_they_are_selected_and_no_others() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let to = lab.right.address(Family::V4);
    let labels = json!({"app": "cart"});
    let uid = cluster.add_pod("cart-0", "a", &labels);
    let chosen = start(&machine, &lab.left, "cart-0", &uid);
    cluster.tell_runs("cart-0", &chosen.id);
    // They share a network namespace, like pods with hostNetwork.
    let uid = cluster.add_pod("db-0", "a", &json!({"app": "db"}));
    let neighbour = start(&machine, &lab.left, "db-0", &uid);
    cluster.tell_runs("db-0", &neighbour.id);
    // Selected, but on another node.
    let uid = cluster.add_pod("cart-9", "b", &labels);
    let elsewhere = start(&machine, &lab.left, "cart-9", &uid);
    let agent = cluster.agent("a", &machine, &[]);

    cluster.inject("lost", &all_lost("10m"));
    let running = cluster.wait_for("lost", is_in_phase("Running"));
    assert_eq!(running["status"]["pods"], 1, "{running:#}");
    assert_eq!(running["metadata"]["finalizers"], Value::Null);
    assert_eq!(running["status"]["podsFaulted"], "1/1");
    assert_eq!(condition(&running, "Accepted")["status"], "True");
    assert_eq!(condition(&running, "Injecting")["status"], "True");
    assert_eq!(condition(&running, "Matched")["reason"], "NothingMatched");
    assert!(!chosen.pings(to));
    assert!(neighbour.pings(to));
    assert!(elsewhere.pings(to));
    let counted = cluster.wait_for("lost", |fault| fault["status"]["matched"] == 1);
    assert_eq!(node(&counted, "a")["counters"]["dropped"], 1, "{counted:#}");
    assert_eq!(condition(&counted, "Matched")["status"], "True");
    let of_agent = &agent.active()[0];
    assert_eq!(of_agent["owner"], "kubernetes:test/lost", "{of_agent}");
    assert_eq!(node(&counted, "a")["pods"][0]["fault"], of_agent["name"], "{counted:#}");

    // The container restarts in its pod with another ID.
    chosen.stop();
    let again = start(&machine, &lab.left, "cart-0", running_uid(&cluster, "cart-0").as_str());
    wait_until(&again, false, to);
    // Another pod, which exists before its container.
    let uid = cluster.add_pod("cart-1", "a", &labels);
    cluster.wait_for("lost", |fault| {
        node(fault, "a")["pods"].as_array().is_some_and(|pods| pods.len() == 2)
    });
    let second = start(&machine, &lab.left, "cart-1", &uid);
    cluster.tell_runs("cart-1", &second.id);
    wait_until(&second, false, to);
    cluster.wait_for("lost", |fault| fault["status"]["pods"] == 2);
    // A pod that is no longer selected.
    let unlabel = json!({"metadata": {"labels": {"app": "other"}}});
    cluster
        .ask("PATCH", "/api/v1/namespaces/test/pods/cart-0", Some(&unlabel))
        .expect("it is there");
    wait_until(&again, true, to);
    assert!(!second.pings(to));
    cluster.wait_for("lost", |fault| fault["status"]["pods"] == 1);

    cluster.ask("DELETE", &faults("test", "lost"), None).expect("it is there");
    cluster.wait_until_gone("lost");
    assert!(second.pings(to));
    assert!(agent.active().is_empty());
    let audited = agent.audited();
    let asked = |method: &str| {
        let is_it = |line: &&Value| line["by"] == "kubernetes" && line["method"] == method;
        audited.iter().filter(is_it).cloned().collect::<Vec<_>>()
    };
    let (begun, ended) = (asked("POST"), asked("DELETE"));
    assert_eq!((begun.len(), ended.len()), (2, 2), "{audited:#?}");
    assert_eq!(begun[0]["resource"], "test/lost");
    assert_eq!(begun[0]["target"], json!({"pod": "test/cart-0"}));
    assert!(agent.stop().success());
}

fn running_uid(cluster: &Cluster, pod: &str) -> String {
    let pod = cluster.ask("GET", &format!("/api/v1/namespaces/test/pods/{pod}"), None);
    pod.expect("it is there")["metadata"]["uid"].as_str().expect("an ID").into()
}

#[test]
fn one_container_of_a_pod_is_followed_by_what_the_kubelet_says() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let to = lab.right.address(Family::V4);
    let uid = cluster.add_pod("cart-0", "a", &json!({}));
    let folder = format!("kubepods/burstable/pod{uid}");
    let first = machine.start(&lab.left, &folder, &Machine::id("abc"), "cart-0", "app");
    let beside = machine.start(&lab.left, &folder, &Machine::id("abd"), "cart-0", "proxy");
    cluster.tell_runs("cart-0", &first.id);
    let agent = cluster.agent("a", &machine, &[]);
    cluster.inject(
        "one",
        &json!({
            "target": {"pod": "cart-0", "container": "app"},
            "for": "10m",
            "rules": [{"loss": "100%", "direction": "egress"}],
            "clocks": {"clock": "+1h"},
        }),
    );
    cluster.wait_for("one", is_in_phase("Running"));
    assert!(!first.pings(to));
    first.wait_for_clock(3600);
    assert!(beside.pings(to));
    assert!(beside.clock_of_new().abs() <= 2);
    first.stop();
    let second = machine.start(&lab.left, &folder, &Machine::id("abe"), "cart-0", "app");
    cluster.tell_runs("cart-0", &second.id);
    wait_until(&second, false, to);
    second.wait_for_clock(3600);
    let fault = cluster
        .wait_for("one", |fault| node(fault, "a")["counters"]["clockProcesses"].as_u64() > Some(0));
    assert_eq!(fault["status"]["pods"], 1, "{fault:#}");
    // The stopping agent updates the status and leaves nothing that keeps the resource.
    assert!(agent.stop().success());
    assert!(second.pings(to));
    second.wait_for_clock(0);
    let stopped = cluster.fault("one").expect("it is there");
    assert_eq!(node(&stopped, "a")["state"], "Stopped", "{stopped:#}");
    assert_eq!(stopped["status"]["phase"], "Pending", "{stopped:#}");
    let leases = "/apis/coordination.k8s.io/v1/namespaces/injector/leases/injector-a";
    assert!(cluster.ask("GET", leases, None).is_err(), "its lease is there");
}

#[test]
fn what_makes_no_sense_fails_with_the_reason_and_an_edit_replaces_what_acts() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let to = lab.right.address(Family::V4);
    let uid = cluster.add_pod("cart-0", "a", &json!({"app": "cart"}));
    let container = start(&machine, &lab.left, "cart-0", &uid);
    let agent = cluster.agent("a", &machine, &[]);
    let spec = |rules: Value| {
        let mut spec = all_lost("30s");
        spec["rules"] = rules;
        spec
    };
    let edit = |rules: Value| {
        let patch = json!({"spec": {"rules": rules}});
        cluster.ask("PATCH", &faults("test", "edited"), Some(&patch)).expect("it is there");
    };
    cluster
        .inject("edited", &spec(json!([{"loss": "100%", "direction": "egress", "remote-prt": 1}])));
    let failed = cluster.wait_for("edited", is_in_phase("Failed"));
    let accepted = condition(&failed, "Accepted");
    assert_eq!((&accepted["status"], &accepted["reason"]), (&json!("False"), &json!("Invalid")));
    let message = accepted["message"].as_str().expect("text");
    assert!(message.contains("unknown field `remote-prt`"), "{message}");
    assert!(failed["status"]["startTime"].is_null());
    assert!(agent.active().is_empty() && container.pings(to));
    cluster.inject("wrong", &spec(json!([{"loss": "101%"}])));
    let wrong = cluster.wait_for("wrong", is_in_phase("Failed"));
    assert!(
        condition(&wrong, "Accepted")["message"].as_str().expect("text").contains("101%"),
        "{wrong:#}"
    );

    // Numbers need their unit or sign, which the API server does not know. The status says which, and what to write.
    for (name, faults, words) in [
        ("loss", json!({"rules": [{"loss": "0.1"}]}), ["rules[0].loss", "no % sign: write 0.1%"]),
        (
            "share",
            json!({"rules": [{"loss": {"probability": 0.2}}]}),
            ["rules[0].loss", "no % sign"],
        ),
        ("delay", json!({"rules": [{"delay": "200"}]}), ["rules[0].delay", "no unit: write 200ms"]),
        ("jitter", json!({"rules": [{"delay": "2ms,jitter=1"}]}), ["rules[0].delay", "no unit"]),
        ("rate", json!({"rules": [{"rate": "1000"}]}), ["rules[0].rate", "no unit"]),
        ("clock", json!({"clocks": {"clock": "+5"}}), ["clock", "no unit"]),
        ("cpu", json!({"processes": {"cpu": "25"}}), ["cpu", "no % sign"]),
        ("pause", json!({"processes": {"pause": "2"}}), ["pause", "no unit"]),
    ] {
        let mut spec = all_lost("30s");
        let spec = spec.as_object_mut().expect("a map");
        spec.remove("rules");
        spec.extend(faults.as_object().expect("a map").clone());
        cluster.inject(name, &Value::Object(spec.clone()));
        let refused = cluster.wait_for(name, is_in_phase("Failed"));
        let accepted = condition(&refused, "Accepted");
        assert_eq!(accepted["reason"], "Invalid", "{refused:#}");
        let message = accepted["message"].as_str().expect("text");
        assert!(words.iter().all(|word| message.contains(word)), "{name}: {message}");
    }
    assert!(agent.active().is_empty() && container.pings(to));

    // A corrected resource starts, an edited one restarts, an invalid one ends. Its time runs on throughout.
    edit(json!([{"loss": "100%", "direction": "egress"}]));
    let running = cluster.wait_for("edited", is_in_phase("Running"));
    assert!(!container.pings(to));
    edit(json!([{"loss": "100%", "direction": "egress", "remote": ["192.0.2.1"]}]));
    wait_until(&container, true, to);
    cluster.wait_for("edited", |fault| {
        let node = node(fault, "a");
        node["generation"] == fault["metadata"]["generation"] && node["state"] == "Injecting"
    });
    assert_eq!(agent.active().len(), 1);
    // The status has the likely cause of zero matches of the fault as it is now.
    let cause = format!("peer: only packets to 192.0.2.1 match, but the peer is {to}");
    cluster.wait_for("edited", |fault| {
        assert!(container.pings(to));
        let message = node(fault, "a")["pods"][0]["message"].as_str().unwrap_or_default();
        message.contains("no packet has matched yet; saw ") && message.contains(&cause)
    });
    edit(json!([{"loss": "100%", "direction": "egress", "delay": "x"}]));
    cluster.wait_for("edited", is_in_phase("Failed"));
    assert!(agent.active().is_empty());
    edit(json!([{"loss": "100%", "direction": "egress"}]));
    wait_until(&container, false, to);
    let ended = cluster.wait_for("edited", is_in_phase("Ended"));
    assert!(container.pings(to));
    let time = |name: &str| -> jiff::Timestamp {
        ended["status"][name].as_str().expect("text").parse().expect("a time")
    };
    assert_eq!(ended["status"]["startTime"], running["status"]["startTime"]);
    let lasted = time("endTime").duration_since(time("startTime")).as_secs_f64();
    assert!((30.0..34.0).contains(&lasted), "{lasted}");
    cluster.wait_for("edited", |fault| node(fault, "a")["state"] == "Ended");
    // An ended fault does not start again.
    let longer = json!({"spec": {"for": "10m"}});
    cluster.ask("PATCH", &faults("test", "edited"), Some(&longer)).expect("it is there");
    thread::sleep(Duration::from_secs(3));
    assert!(agent.active().is_empty() && container.pings(to));
}

#[test]
fn agents_share_a_resource_and_one_that_is_lost_keeps_nothing() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let to = lab.right.address(Family::V4);
    let [one, other] = ["a", "b"].map(|node| {
        let name = format!("cart-{node}");
        let uid = cluster.add_pod(&name, node, &json!({"app": "cart"}));
        start(&machine, &lab.left, &name, &uid)
    });
    let mut agents = ["a", "b"].map(|node| cluster.agent(node, &machine, &SHORT));
    cluster.inject("shared", &all_lost("60s"));
    let is_shared =
        |fault: &Value| ["a", "b"].iter().all(|name| node(fault, name)["state"] == "Injecting");
    cluster.wait_for("shared", is_shared);
    assert!(!one.pings(to) && !other.pings(to));
    let both = |fault: &Value| {
        is_shared(fault)
            && ["a", "b"].iter().all(|name| node(fault, name)["matched"] == 1)
            && fault["status"]["matched"] == 2
            && fault["status"]["pods"] == 2
    };
    let shared = cluster.wait_for("shared", both);
    let begun = shared["status"]["startTime"].clone();

    // After a kill, its faults end. After a restart, they continue for the remaining time, with their counters.
    agents[0].child.kill().expect("it runs");
    agents[0].child.wait().expect("it ends");
    wait_until(&one, true, to);
    assert!(!other.pings(to));
    agents[0] = cluster.agent("a", &machine, &SHORT);
    wait_until(&one, false, to);
    let again = cluster.wait_for("shared", |fault| node(fault, "a")["matched"].as_u64() >= Some(2));
    assert_eq!(again["status"]["startTime"], begun);

    // A killed agent is marked lost and does not keep the resource.
    agents[0].child.kill().expect("it runs");
    agents[0].child.wait().expect("it ends");
    let lost = cluster.wait_for("shared", |fault| node(fault, "a")["state"] == "Lost");
    assert_eq!(node(&lost, "b")["state"], "Injecting", "{lost:#}");
    cluster.wait_for("shared", |fault| fault["status"]["pods"] == 1);
    agents[0] = cluster.agent("a", &machine, &SHORT);
    cluster.wait_for("shared", is_shared);
    agents[0].child.kill().expect("it runs");
    agents[0].child.wait().expect("it ends");
    cluster.ask("DELETE", &faults("test", "shared"), None).expect("it is there");
    assert!(cluster.fault("shared").is_none(), "the lost one keeps it");
    wait_until(&other, true, to);
    assert!(one.pings(to));

    // Faults whose time is over stay ended when an agent returns.
    cluster.inject("short", &all_lost("10s"));
    cluster.wait_for("short", is_in_phase("Running"));
    agents[1].child.kill().expect("it runs");
    agents[1].child.wait().expect("it ends");
    thread::sleep(Duration::from_secs(11));
    agents[1] = cluster.agent("b", &machine, &SHORT);
    let ended = cluster.wait_for("short", |fault| node(fault, "b")["state"] == "Ended");
    assert!(agents[1].active().is_empty(), "{ended:#}");
    cluster.wait_for("short", is_in_phase("Ended"));
    assert!(other.pings(to));
}

#[test]
fn faults_outlive_an_api_server_that_is_away_for_a_moment_and_no_longer() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let to = lab.right.address(Family::V4);
    let uid = cluster.add_pod("cart-0", "a", &json!({"app": "cart"}));
    let container = start(&machine, &lab.left, "cart-0", &uid);
    let patience = ["--api-patience", "40s"];
    let agent = cluster.agent("a", &machine, &patience);
    cluster.inject("lost", &all_lost("10m"));
    cluster.wait_for("lost", is_in_phase("Running"));
    assert!(!container.pings(to));
    let created = agent.active()[0]["created"].clone();

    // The server is away briefly. Watches continue afterwards.
    cluster.kill_server();
    thread::sleep(Duration::from_secs(3));
    assert!(!container.pings(to));
    cluster.start_server();
    let uid = cluster.add_pod("cart-1", "a", &json!({"app": "cart"}));
    let second = start(&machine, &lab.left, "cart-1", &uid);
    wait_until(&second, false, to);
    let active = agent.active();
    assert!(
        active.iter().any(|fault| fault["created"] == created),
        "it was begun again: {active:#?}"
    );
    cluster.wait_for("lost", |fault| fault["status"]["pods"] == 2);

    // The server is away for long: its faults end, those of other clients do not.
    let own = agent.create(&json!({
        "name": "own", "target": {"netns": lab.right.netns}, "rules": [{"delay": "1ms"}], "for": "10m",
    }));
    assert_eq!(own["phase"], "active");
    cluster.kill_server();
    let away = Instant::now();
    wait_until(&container, true, to);
    wait_until(&second, true, to);
    let lasted = away.elapsed();
    assert!((Duration::from_secs(32)..Duration::from_secs(50)).contains(&lasted), "{lasted:?}");
    let active = agent.wait_for_active(1);
    assert_eq!(active[0]["name"], "own");

    // When it is back, the fault continues.
    cluster.start_server();
    wait_until(&container, false, to);
    cluster.wait_for("lost", |fault| fault["status"]["pods"] == 2);
    // A server that accepts connections but does not answer counts as away.
    cluster.signal_server(Signal::SIGSTOP);
    let away = Instant::now();
    wait_until(&container, true, to);
    assert!(away.elapsed() < Duration::from_secs(50), "{:?}", away.elapsed());
    cluster.signal_server(Signal::SIGCONT);
    wait_until(&container, false, to);
    cluster.wait_for("lost", |fault| fault["status"]["pods"] == 2);
    // A fault deleted meanwhile ends too.
    agent.signal(Signal::SIGSTOP);
    let deleted = cluster.ask("DELETE", &faults("test", "lost"), None);
    deleted.expect("it is there");
    agent.signal(Signal::SIGCONT);
    cluster.wait_until_gone("lost");
    wait_until(&container, true, to);
}

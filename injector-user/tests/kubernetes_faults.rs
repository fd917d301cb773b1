//! What `injector agent --kubernetes` does to pods and says of it, with a real API server and real
//! containers. The test acts as the kubelet.

#[path = "support/cluster.rs"]
mod cluster;

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use cluster::{Cluster, faults, start};
use injector_user::kernel::{interface, netns::Netns};
use serde_json::{Value, json};
use testbed::{
    Family, Lab,
    agent::Agent,
    container::{Container, Machine},
    hierarchy, skip,
};

/// Short enough for tests to wait for its expiry.
const SHORT: [&str; 2] = ["--api-patience", "9s"];

/// Loses sent packets of the pods with the label app=cart.
fn lossy() -> Value {
    json!({
        "target": {"pods": {"matchLabels": {"app": "cart"}}},
        "for": "10m",
        "rules": [{"loss": "100%", "direction": "egress"}],
    })
}

fn processes(pod: &str, processes: &Value) -> Value {
    json!({"target": {"pod": pod}, "for": "10m", "processes": processes})
}

/// The status entry of node a.
fn entry(fault: &Value) -> &Value {
    &fault["status"]["nodes"][0]
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + cluster::TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The first process of a container, if it runs.
fn pid(container: &Container) -> Option<i32> {
    let text = fs::read_to_string(container.path().join("cgroup.procs")).unwrap_or_default();
    text.lines().next()?.parse().ok()
}

fn is_frozen(container: &Container) -> bool {
    says(&container.path(), "frozen 1")
}

/// Whether `cgroup.events` has this line.
fn says(cgroup: &Path, wanted: &str) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == wanted)
}

/// The path of an object that the manifests create.
fn path_of(group: &str, kind: &str, name: &str) -> String {
    format!("/apis/{group}/{kind}/{name}")
}

fn definition() -> String {
    let kind = "v1/customresourcedefinitions";
    path_of("apiextensions.k8s.io", kind, "faultinjections.injector.dev")
}

/// Removes all permissions of agents.
fn revoke(cluster: &Cluster) {
    let group = "rbac.authorization.k8s.io";
    for kind in ["v1/clusterrolebindings", "v1/namespaces/injector/rolebindings"] {
        cluster.ask("DELETE", &path_of(group, kind, "injector"), None).expect("it is there");
    }
}

/// Removes the definition, and waits until it is gone.
fn undefine(cluster: &Cluster) {
    let began = Instant::now();
    cluster.ask("DELETE", &definition(), None).expect("it is there");
    until("the definition is gone", || cluster.ask("GET", &definition(), None).is_err());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

fn stops_at_once(agent: Agent) {
    let began = Instant::now();
    assert!(agent.stop().success());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn uninstalling_in_any_order_blocks_nothing() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let to = lab.right.address(Family::V4);
    let uid = cluster.add_pod("cart-0", "a", &json!({"app": "cart"}));
    let container = start(&machine, &lab.left, "cart-0", &uid);
    let run = || {
        let agent = cluster.agent("a", &machine, &SHORT);
        cluster.inject("lost", &lossy());
        cluster.wait_for("lost", |fault| fault["status"]["phase"] == "Running");
        assert!(!container.pings(to));
        agent
    };

    // The definition first. The agent ends its faults, and works again once there is another one.
    let agent = run();
    undefine(&cluster);
    cluster::wait_until(&container, true, to);
    assert!(agent.active().is_empty());
    cluster.define();
    cluster.inject("lost", &lossy());
    cluster::wait_until(&container, false, to);
    // The permissions first: faults end with their leases, as their agent does not learn of the
    // deletion of their resources any more.
    revoke(&cluster);
    cluster.ask("DELETE", &faults("test", "lost"), None).expect("it is there");
    assert!(cluster.fault("lost").is_none(), "it is kept");
    cluster::wait_until(&container, true, to);
    undefine(&cluster);
    stops_at_once(agent);

    // The permissions and then the agent, as `helm uninstall` does.
    cluster.define();
    cluster.grant();
    let agent = run();
    revoke(&cluster);
    stops_at_once(agent);
    assert!(container.pings(to));
    cluster.ask("DELETE", &faults("test", "lost"), None).expect("it is there");
    assert!(cluster.fault("lost").is_none(), "it is kept");
    // A killed agent, with a fault.
    cluster.grant();
    let mut agent = run();
    agent.child.kill().expect("it runs");
    agent.child.wait().expect("it ends");
    undefine(&cluster);
    cluster::wait_until(&container, true, to);
}

#[test]
fn what_happens_once_does_not_happen_again_after_a_restart_of_the_agent() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let names = ["cart-0", "cart-1", "cart-2", "later"];
    let containers = names.map(|name| {
        let uid = cluster.add_pod(name, "a", &json!({"app": name}));
        start(&machine, &lab.left, name, &uid)
    });
    let [killed, paused, both, later] = &containers;
    let mut agent = cluster.agent("a", &machine, &[]);
    cluster.inject("kill", &processes("cart-0", &json!({"kill": ["at=1s"]})));
    cluster.inject("pause", &processes("cart-1", &json!({"pause": "100ms"})));
    let more = json!({"kill": ["at=1s"], "pause": "50ms,every=1h"});
    cluster.inject("more", &processes("cart-2", &more));
    for container in [killed, both] {
        until("it is killed", || pid(container).is_none());
        container.restart();
    }
    let before = [killed, both].map(pid);
    let has_paused = |fault: &Value| entry(fault)["counters"]["pauses"] == 1;
    cluster.wait_for("pause", |fault| has_paused(fault) && fault["status"]["matched"] == 1);
    cluster.wait_for("kill", |fault| entry(fault)["counters"]["signals"].as_u64() > Some(0));

    for round in 0..2 {
        if round == 0 {
            assert!(agent.stop().success());
        } else {
            agent.child.kill().expect("it runs");
            agent.child.wait().expect("it ends");
        }
        agent = cluster.agent("a", &machine, &[]);
        // The summary of all nodes follows the entry of this one.
        let is_done = |fault: &Value| {
            entry(fault)["pods"][0]["state"] == "Done"
                && fault["status"]["phase"] == "Running"
                && fault["status"]["podsFaulted"] == "1/1"
        };
        for (name, told) in [("kill", "kill at=1s"), ("pause", "pause 100ms")] {
            let done = cluster.wait_for(name, is_done);
            let expected = format!("{told} happened before");
            assert_eq!(entry(&done)["pods"][0]["message"], expected.as_str(), "{done:#}");
        }
        cluster.wait_for("more", |fault| entry(fault)["pods"][0]["state"] == "Injecting");
        // Another fault of the same kind acts meanwhile.
        let name = format!("later-{round}");
        cluster.inject(&name, &processes("later", &json!({"kill": ["at=1s"]})));
        until("it is killed", || pid(later).is_none());
        later.restart();
        assert_eq!([killed, both].map(pid), before);
        let unchanged = cluster.fault("pause").expect("it is there");
        assert!(has_paused(&unchanged), "{unchanged:#}");
        assert!(!is_frozen(paused));
        cluster.ask("DELETE", &faults("test", &name), None).expect("it is there");
    }
    // Other faults that happen once have not happened.
    let edited = json!({"spec": {"processes": {"kill": ["at=2s"]}}});
    cluster.ask("PATCH", &faults("test", "kill"), Some(&edited)).expect("it is there");
    until("it is killed", || pid(killed).is_none());
}

#[test]
fn kills_and_pauses_spare_the_sandbox_unless_asked() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let uid = cluster.add_pod("cart-0", "a", &json!({}));
    let folder = format!("kubepods/burstable/pod{uid}");
    let sandbox = machine.start_sandbox(&lab.left, &folder, "cart-0");
    let [app, proxy] = ["app", "proxy"]
        .map(|name| machine.start(&lab.left, &folder, &Machine::id("abc"), "cart-0", name));
    let holder = pid(&sandbox);
    assert!(holder.is_some());
    let agent = cluster.agent("a", &machine, &[]);
    let end = |name: &str| {
        cluster.ask("DELETE", &faults("test", name), None).expect("it is there");
        until("it ends", || agent.active().is_empty());
    };
    let starting = Starting::new(&machine, &folder);
    cluster.inject("pause", &processes("cart-0", &json!({"pause": "5m"})));
    until("both are paused", || is_frozen(&app) && is_frozen(&proxy));
    assert!(!is_frozen(&sandbox));
    assert!(!starting.is_frozen());
    end("pause");
    assert!(!is_frozen(&app) && !is_frozen(&proxy));
    let says_so = |fault: &Value| {
        let conditions = fault["status"]["conditions"].as_array().into_iter().flatten();
        let messages = conditions.filter_map(|condition| condition["message"].as_str());
        entry(fault)["counters"]["startingSpared"] == 1
            && messages.into_iter().any(|message| message.contains("; 1 container was spared"))
    };
    cluster.inject("brief", &processes("cart-0", &json!({"pause": "500ms"})));
    cluster.wait_for("brief", says_so);
    end("brief");
    cluster.inject("kill", &processes("cart-0", &json!({"kill": ["at=500ms"]})));
    until("both are killed", || pid(&app).is_none() && pid(&proxy).is_none());
    cluster.wait_for("kill", says_so);
    assert_eq!(pid(&sandbox), holder);
    end("kill");
    app.restart();
    let mut asked = processes("cart-0", &json!({"pause": "5m", "kill": ["at=3s"]}));
    asked["target"]["sandbox"] = json!(true);
    cluster.inject("all", &asked);
    until("all are paused", || is_frozen(&app) && is_frozen(&sandbox));
    assert!(!starting.is_frozen());
    until("all are killed", || pid(&app).is_none() && pid(&sandbox).is_none());
    assert!(starting.runs());
}

/// A container that its runtime is starting.
struct Starting {
    process: Child,
    cgroup: PathBuf,
}

impl Starting {
    fn new(machine: &Machine, folder: &str) -> Self {
        let cgroup = machine.cgroup(&format!("{folder}/{}", Machine::id("57a47")));
        let cgroup = hierarchy().join(cgroup.trim_start_matches('/'));
        fs::create_dir(&cgroup).expect("we are root");
        let line = format!(
            "echo 'runc:[2:INIT]' > /proc/self/comm; echo $$ > {}/cgroup.procs; read line",
            cgroup.display()
        );
        let mut command = Command::new("sh");
        let process = command.args(["-c", &line]).stdin(Stdio::piped()).spawn().expect("sh");
        until("it is in its cgroup", || says(&cgroup, "populated 1"));
        Self { process, cgroup }
    }

    fn is_frozen(&self) -> bool {
        says(&self.cgroup, "frozen 1")
    }

    fn runs(&self) -> bool {
        says(&self.cgroup, "populated 1")
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn traffic_with_the_node_is_spared_unless_asked() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let other = lab.right.address(Family::V4);
    // The other end has an address of the machine on which the agent runs, too.
    let node = Netns::of_host().expect("init has one");
    let addresses = interface::addresses_in_use(&node).expect("it has some");
    let node = addresses.iter().find(|address| address.is_ipv4() && !address.is_loopback());
    let Some(node) = node else { return skip("this machine has no address") };
    lab.right.run(&format!("ip address add {node}/32 dev lo"));
    lab.left.run(&format!("ip route add {node}/32 via {other}"));
    let uid = cluster.add_pod("cart-0", "a", &json!({"app": "cart"}));
    let container = start(&machine, &lab.left, "cart-0", &uid);
    let _agent = cluster.agent("a", &machine, &[]);
    let mut spec = lossy();
    cluster.inject("spared", &spec);
    cluster::wait_until(&container, false, other);
    assert!(container.pings(*node));
    let has_spared = |fault: &Value| entry(fault)["counters"]["protected"].as_u64() >= Some(1);
    cluster.wait_for("spared", has_spared);
    cluster.ask("DELETE", &faults("test", "spared"), None).expect("it is there");
    cluster::wait_until(&container, true, other);
    spec["target"]["protect"] = json!(false);
    cluster.inject("all", &spec);
    cluster::wait_until(&container, false, *node);
}

#[test]
fn an_agent_tells_at_the_start_what_it_works_with() {
    let Some(cluster) = Cluster::start() else { return };
    let machine = Machine::new();
    // As the kubelet makes it.
    let mode = |mode| fs::set_permissions("/run/injector", fs::Permissions::from_mode(mode));
    fs::create_dir_all("/run/injector").and_then(|()| mode(0o755)).expect("we are root");
    let agent = cluster.agent("a", &machine, &[]);
    let [_, engines, place, rights] = &agent.serves[..] else { panic!("{:?}", agent.serves) };
    assert!(engines.starts_with("injector: engines: delays by "), "{engines}");
    assert!(place.starts_with("injector: node a, cluster https://127.0.0.1:"), "{place}");
    assert!(place.ends_with("/, lease in namespace injector"), "{place}");
    assert_eq!(rights, "injector: the agent has all permissions that it needs");
    let folder = fs::metadata("/run/injector").expect("it is there");
    assert_eq!(folder.permissions().mode() & 0o777, 0o700);
}

#[test]
fn what_waits_and_what_can_never_work_is_told() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let _containers = [0, 1, 2].map(|number| {
        let name = format!("cart-{number}");
        let uid = cluster.add_pod(&name, "a", &json!({"app": "cart"}));
        start(&machine, &lab.left, &name, &uid)
    });
    let agent = cluster.agent("a", &machine, &["--max-faults", "2"]);
    cluster.inject("lost", &lossy());
    let waits = |fault: &Value| fault["status"]["podsFaulted"] == "2/3";
    let partial = cluster.wait_for("lost", waits);
    let status = &partial["status"];
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Running"), &json!("PodsWaiting")));
    assert_eq!((&status["pods"], &status["selectedPods"]), (&json!(2), &json!(3)));
    let injecting = status["conditions"].as_array().expect("a list").iter();
    let injecting = injecting.clone().find(|one| one["type"] == "Injecting").expect("it is there");
    let message = injecting["message"].as_str().expect("text");
    assert!(message.starts_with("faults active in 2 pods on 1 node; node a: pod "), "{message}");
    // A refusal that is repeated is told once.
    let refusals = || {
        let metrics = agent.raw("GET", "/metrics", "", &[]).1;
        let line = metrics.lines().find(|line| line.contains("too-many")).map(str::to_owned);
        let count = line.as_ref().and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        count.unwrap_or_default()
    };
    until("it is refused again", || refusals() >= 3.0);
    let refused = agent.audited().iter().filter(|line| line["status"] == 429).count();
    assert_eq!(refused, 1, "{:#?}", agent.audited());
    let is_told = |(kind, reason, note): &(String, String, String)| {
        (kind.as_str(), reason.as_str()) == ("Normal", "FaultInjected")
            && note.starts_with("loss 100%")
            && note.ends_with("by faultinjection test/lost for 10m")
    };
    until("two pods have an event", || {
        let events = [0, 1, 2].map(|number| cluster.events_about("Pod", &format!("cart-{number}")));
        events.iter().filter(|events| events.iter().any(is_told)).count() == 2
    });
    cluster.ask("DELETE", &faults("test", "lost"), None).expect("it is there");
    until("it ends", || agent.active().is_empty());

    // What can never work.
    let warned = |name: &str, words: &str| {
        until(words, || {
            let events = cluster.events_about("FaultInjection", name);
            events.iter().any(|(kind, _, note)| kind == "Warning" && note.contains(words))
        });
    };
    cluster.inject(
        "wrong",
        &json!({"target": {"pod": "cart-0"}, "for": "1m", "rules": [{"loss": "101%"}]}),
    );
    warned("wrong", "101%");
    // Events may come before the status.
    cluster.wait_for("wrong", |fault| fault["status"]["reason"] == "Invalid");
    let mut missing = lossy();
    missing["target"]["container"] = json!("none");
    cluster.inject("missing", &missing);
    warned("missing", "the pod has no container none; it has app");
    let missing = cluster.wait_for("missing", |fault| fault["status"]["phase"] == "Failed");
    assert_eq!(missing["status"]["reason"], "Failed", "{missing:#}");
    assert_eq!(missing["status"]["startTime"], Value::Null, "{missing:#}");

    // Clocks count as well.
    cluster.inject(
        "clock",
        &json!({"target": {"pod": "cart-0"}, "for": "10m", "clocks": {"clock": "+1h"}}),
    );
    let clock = cluster.wait_for("clock", |fault| fault["status"]["matched"].as_u64() > Some(0));
    assert!(entry(&clock)["counters"]["clockProcesses"].as_u64() > Some(0), "{clock:#}");
}

#[test]
fn pods_count_from_when_they_are_faulted_until_they_are_deleted() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let to = lab.right.address(Family::V4);
    let labels = json!({"app": "cart"});
    let uid = cluster.add_pod("cart-0", "a", &labels);
    let _agent = cluster.agent("a", &machine, &[]);
    cluster.inject("lost", &lossy());
    let waits = |fault: &Value| fault["status"]["podsFaulted"] == "0/1";
    let waiting = cluster.wait_for("lost", waits);
    assert_eq!(waiting["status"]["startTime"], Value::Null, "{waiting:#}");
    // `for` counts from here.
    let before = jiff::Timestamp::now();
    let container = start(&machine, &lab.left, "cart-0", &uid);
    let running = cluster.wait_for("lost", |fault| fault["status"]["podsFaulted"] == "1/1");
    let start_time = running["status"]["startTime"].as_str().expect("text");
    assert!(start_time.parse::<jiff::Timestamp>().expect("a time") >= before, "{running:#}");
    // A pod that is being deleted is faulted until it ends, but does not count.
    let path = "/api/v1/namespaces/test/pods/cart-0";
    cluster.ask("DELETE", path, None).expect("it is there");
    cluster.wait_for("lost", |fault| fault["status"]["podsFaulted"] == "0/0");
    assert!(!container.pings(to));
    let now = json!({"gracePeriodSeconds": 0});
    cluster.ask("DELETE", path, Some(&now)).expect("it is there");
    cluster::wait_until(&container, true, to);

    // A static pod, whose cgroup is named after its configuration.
    let annotations = json!({
        "kubernetes.io/config.mirror": "5ba1", "kubernetes.io/config.hash": "5ba1ca0000000000",
    });
    let mirror = json!({"name": "static-a", "labels": labels, "annotations": annotations});
    cluster.add_pod_to("test", "a", &mirror);
    let fixed = start(&machine, &lab.left, "static-a", "5ba1ca0000000000");
    cluster::wait_until(&fixed, false, to);
    // Another pod that claims its cgroup: neither is faulted.
    cluster.add_namespace("other");
    cluster.add_pod_to("other", "a", &json!({"name": "thief", "annotations": annotations}));
    cluster::wait_until(&fixed, true, to);
}

/// Sets the address of a pod of the namespace `test`, as a kubelet does.
fn set_address(cluster: &Cluster, namespace: &str, pod: &str, address: IpAddr) {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/status");
    let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
    cluster.ask("PATCH", &path, Some(&json!({"status": status}))).expect("it is there");
}

#[test]
fn peers_in_the_cluster_are_followed() {
    let Some(cluster) = Cluster::start() else { return };
    let (lab, machine) = (Lab::new(), Machine::new());
    let [first, second, third] = [0, 1, 2].map(|number| lab.right.nth(Family::V4, number));
    let uid = cluster.add_pod("cart-0", "a", &json!({"app": "cart"}));
    let container = start(&machine, &lab.left, "cart-0", &uid);
    cluster.tell_runs("cart-0", &container.id);
    // On another node.
    cluster.add_pod("db-0", "b", &json!({"app": "db"}));
    set_address(&cluster, "test", "db-0", first);
    cluster.add_namespace("other");
    cluster.add_pod_to("other", "b", &json!({"name": "db-0", "labels": {"app": "db"}}));
    set_address(&cluster, "other", "db-0", third);
    let agent = cluster.agent("a", &machine, &[]);
    let inject = |name: &str, peers: Value| {
        let mut spec = lossy();
        spec["peers"] = json!([peers]);
        cluster.inject(name, &spec);
        cluster.wait_for(name, |fault| fault["status"]["phase"] == "Running");
    };
    let end = |name: &str| {
        cluster.ask("DELETE", &faults("test", name), None).expect("it is there");
        until("it ends", || agent.active().is_empty());
    };
    let passes = |expected: [bool; 3]| {
        let pings = [first, second, third].map(|to| container.pings(to));
        assert_eq!(pings, expected);
    };

    inject("pods", json!({"podSelector": {"matchLabels": {"app": "db"}}}));
    passes([false, true, true]);
    // The pod moves, another one comes, and both go.
    set_address(&cluster, "test", "db-0", second);
    cluster::wait_until(&container, false, second);
    passes([true, false, true]);
    cluster.add_pod("db-1", "b", &json!({"app": "db"}));
    set_address(&cluster, "test", "db-1", first);
    cluster::wait_until(&container, false, first);
    passes([false, false, true]);
    for name in ["db-0", "db-1"] {
        let path = format!("/api/v1/namespaces/test/pods/{name}");
        let now = json!({"gracePeriodSeconds": 0});
        cluster.ask("DELETE", &path, Some(&now)).expect("it is there");
    }
    cluster::wait_until(&container, true, first);
    cluster::wait_until(&container, true, second);
    end("pods");

    let selector = json!({"matchLabels": {"name": "other"}});
    inject("namespaces", json!({"namespaceSelector": selector}));
    passes([true, true, false]);
    end("namespaces");

    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
        "spec": {"ports": [{"port": 5432}]},
    });
    let endpoints = |address: IpAddr| {
        json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"},
            "subsets": [{"addresses": [{"ip": address}], "ports": [{"port": 5432}]}],
        })
    };
    let path = "/api/v1/namespaces/test/services";
    let made = cluster.ask("POST", path, Some(&service)).expect("a service");
    let path = "/api/v1/namespaces/test/endpoints";
    cluster.ask("POST", path, Some(&endpoints(first))).expect("endpoints");
    inject("service", json!({"service": {"name": "db"}}));
    passes([false, true, true]);
    let resolved = agent.active()[0]["resolved"].to_string();
    let own = made["spec"]["clusterIP"].as_str().expect("an address");
    assert!(resolved.contains(own), "{resolved}");
    let moved = format!("{path}/db");
    cluster.ask("PATCH", &moved, Some(&endpoints(second))).expect("endpoints");
    cluster::wait_until(&container, false, second);
    passes([true, false, true]);
    end("service");

    // By the agent's own API.
    let request = |remote: &str| {
        json!({
            "name": "named", "target": {"pod": "test/cart-0"}, "for": "10m",
            "rules": [{"loss": "100%", "direction": "egress", "remote": remote}],
        })
    };
    agent.create(&request("pods:other/app=db"));
    passes([true, true, false]);
    set_address(&cluster, "other", "db-0", first);
    cluster::wait_until(&container, false, first);
    passes([false, true, true]);
    agent.delete("named");
    agent.create(&request("service:test/db"));
    passes([true, false, true]);
    agent.delete("named");
    let (status, refused) = agent.ask("POST", "/v1/faults", Some(&request("pods:other/=")));
    let message = refused["message"].as_str().expect("text");
    assert!(status == 503 && message.contains("pods:other/= are not known"), "{refused}");
    let alone = Agent::start(&lab.right);
    let (status, refused) = alone.ask("POST", "/v1/faults", Some(&request("service:test/db")));
    let message = refused["message"].as_str().expect("text");
    assert!(status == 422 && message.contains("--kubernetes"), "{refused}");
}

//! Many agents and many resources on one API server, which is not asked for more than it must be.

#[path = "support/cluster.rs"]
mod cluster;

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use cluster::{Cluster, faults};
use serde_json::json;
use testbed::{agent::Agent, container::Machine, hierarchy, wait_until};

/// The nodes, each with an agent.
const NODES: usize = 40;

/// The resources, each with a pod of its own.
const RESOURCES: usize = 100;

/// The interval over which requests are counted.
const INTERVAL: Duration = Duration::from_secs(20);

/// An agent renews its lease and checks its permissions every 5 s. Watches are opened again after some
/// minutes.
const MOST_REQUESTS: f64 = NODES as f64 * (2.0 / 5.0) * 1.5;

/// Processes in the cgroups that a kubelet gives to pods.
struct Pods(Vec<Child>);

impl Drop for Pods {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn start(machine: &Machine, uid: &str) -> Child {
    let cgroup = machine.cgroup(&format!("kubepods/pod{uid}/{}", Machine::id("5ca1e")));
    let cgroup = hierarchy().join(cgroup.trim_start_matches('/'));
    fs::create_dir_all(&cgroup).expect("we are root");
    let line = format!("echo $$ > {}/cgroup.procs && exec sleep 1000", cgroup.display());
    let mut command = Command::new("sh");
    command.args(["-c", &line]).stdin(Stdio::null()).spawn().expect("sh")
}

/// Requests that the API server has answered, by verb and resource.
fn requests(cluster: &Cluster) -> BTreeMap<String, f64> {
    let metrics = cluster.text("/metrics");
    let mut requests = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let (Some(verb), Some(resource)) = (label("verb"), label("resource")) else { continue };
        let count: Option<f64> = line.rsplit(' ').next().and_then(|count| count.parse().ok());
        // The server asks itself for other resources.
        if matches!(&*resource, "leases" | "faultinjections" | "pods" | "events") {
            *requests.entry(format!("{verb} {resource}")).or_default() += count.unwrap_or_default();
        }
    }
    requests
}

/// Requests a second over an interval.
fn rates(cluster: &Cluster, interval: Duration) -> BTreeMap<String, f64> {
    let before = requests(cluster);
    thread::sleep(interval);
    let mut rates = requests(cluster);
    for (what, count) in &mut rates {
        *count = (*count - before.get(what).unwrap_or(&0.0)) / interval.as_secs_f64();
    }
    rates.retain(|_, rate| *rate > 0.0);
    rates
}

/// The processor time of a process in seconds, and its resident memory in MiB.
fn used(pid: i32) -> (f64, f64) {
    let process = procfs::process::Process::new(pid).expect("it is there");
    let stat = process.stat().expect("it is there");
    let time = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
    (time, (stat.rss * procfs::page_size()) as f64 / f64::from(1 << 20))
}

fn running(cluster: &Cluster) -> usize {
    let all = cluster.ask("GET", &faults("test", ""), None).expect("a list");
    let all = all["items"].as_array().expect("a list").clone();
    all.iter().filter(|fault| fault["status"]["phase"] == "Running").count()
}

#[test]
#[ignore = "takes minutes: cargo test --test kubernetes_scale -- --ignored --nocapture"]
fn forty_agents_with_a_hundred_resources_leave_the_server_alone() {
    let Some(cluster) = Cluster::start() else { return };
    let machine = Machine::new();
    let pods = (0..RESOURCES)
        .map(|number| {
            let (name, node) = (format!("pod-{number}"), format!("node-{}", number % NODES));
            let uid = cluster.add_pod(&name, &node, &json!({"app": name}));
            start(&machine, &uid)
        })
        .collect();
    let _pods = Pods(pods);
    // Each is alone on its node.
    let alone = "mount -t tmpfs injector-test /run/injector";
    let start_agent = |node| cluster.agent_after(alone, &format!("node-{node}"), &machine, &[]);
    let agents: Vec<Agent> = (0..NODES).map(start_agent).collect();
    let began = Instant::now();
    for number in 0..RESOURCES {
        cluster.inject(
            &format!("fault-{number}"),
            &json!({
                "target": {"pods": {"matchLabels": {"app": format!("pod-{number}")}}},
                "for": "10m",
                "processes": {"pause": "1s,every=1h"},
            }),
        );
    }
    wait_until(cluster::TIMEOUT, "all run", || running(&cluster) == RESOURCES);
    let took = began.elapsed();

    // The status of new faults is still being written.
    let settled = || rates(&cluster, Duration::from_secs(5)).values().sum::<f64>();
    wait_until(cluster::TIMEOUT, "the agents are quiet", || settled() < MOST_REQUESTS);
    let of_agents = || agents.iter().map(|agent| used(agent.child.id().cast_signed()));
    let used_before: f64 = of_agents().map(|(time, _)| time).sum();
    let rates = rates(&cluster, INTERVAL);
    let rate: f64 = rates.values().sum();
    let usage: Vec<(f64, f64)> = of_agents().collect();
    let time: f64 = usage.iter().map(|(time, _)| time).sum::<f64>() - used_before;
    let memory = usage.iter().map(|(_, memory)| *memory).fold(0.0, f64::max);
    eprintln!(
        "{RESOURCES} resources ran after {took:.1?}; then {rate:.1} requests a second, {:.2} % of a processor and \
         {memory:.0} MiB an agent",
        time / INTERVAL.as_secs_f64() / NODES as f64 * 100.0,
    );
    assert!(rate < MOST_REQUESTS, "{rates:?}");
}

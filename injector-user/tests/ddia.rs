//! The faults of "Designing Data-Intensive Applications", chapter 8, on a real system of three nodes, each
//! with Redis and Sentinel. Each test runs a scenario of docs/scenarios and observes the system.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use nix::{fcntl::Flock, sys::signal::Signal};
use serde_json::Value;
use testbed::{Host, Process, number, wait_until};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The timeouts of a client in seconds: for an expected answer, also on a busy machine, and for a missing one.
const TIMEOUT: [&str; 2] = ["5", "1"];

/// The three nodes and the client of `scripts/experiments/redis-nodes`, which one test uses at a time.
struct Nodes {
    _turn: Flock<File>,
}

impl Nodes {
    fn start() -> Self {
        let nodes = Self { _turn: testbed::ddia_turn() };
        assert!(script(&["start"]).status.success(), "the nodes do not start");
        nodes
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // A failure cannot be handled while panicking.
        let _ = Command::new(tool()).arg("stop").status();
    }
}

/// Runs a scenario on the running nodes.
fn apply(name: &str) -> Process {
    let file = Path::new(ROOT).join(format!("docs/scenarios/ddia-{name}.yaml"));
    // Packets of other namespaces must not matter.
    let netns = "ddia-net".to_owned();
    let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    let host = Host { netns, v4, v6, mac: [0; 6] };
    testbed::start_scenario(&host, &file, &[])
}

fn tool() -> PathBuf {
    Path::new(ROOT).join("scripts/experiments/redis-nodes")
}

fn script(args: &[&str]) -> Output {
    Command::new(tool()).args(args).output().expect("it can be run")
}

/// The answer of Redis or Sentinel on a node to a client; `None` after the timeout, or if the server closes the
/// connection, as when Sentinel demotes it.
fn try_as(who: &str, timeout: &str, node: u8, port: u16, words: &str) -> Option<String> {
    let line = format!("timeout {timeout} redis-cli -h 10.65.0.{node} -p {port} {words}");
    let args: Vec<&str> = ["exec", who].into_iter().chain(line.split_whitespace()).collect();
    let output = script(&args);
    let text = String::from_utf8(output.stdout).expect("text");
    let errors = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Some(text.trim().to_owned()),
        // The exit code of timeout(1).
        Some(124) => None,
        _ if errors.contains("Server closed the connection") => None,
        _ => panic!("{line}: {text} {errors}"),
    }
}

fn ask_as(who: &str, node: u8, port: u16, words: &str) -> String {
    try_as(who, TIMEOUT[0], node, port, words).unwrap_or_else(|| panic!("no answer to {words}"))
}

fn ask(node: u8, words: &str) -> String {
    ask_as("ddia-client", node, 6379, words)
}

/// Whether the client gets no answer.
fn gives_up(node: u8, words: &str) -> bool {
    try_as("ddia-client", TIMEOUT[1], node, 6379, words).is_none()
}

/// Runs several commands over one connection.
fn converse(node: u8, lines: &str) -> Vec<String> {
    let shell = format!("printf '{lines}' | timeout 5 redis-cli -h 10.65.0.{node}");
    let output = script(&["exec", "ddia-client", "sh", "-c", &shell]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(str::to_owned).collect()
}

/// A field of `INFO replication`.
fn field(node: u8, name: &str) -> String {
    let ask = || try_as("ddia-2", TIMEOUT[0], node, 6379, "info replication");
    // A demotion closes a connection once.
    let info = ask().or_else(ask).expect("an answer");
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.map(|value| value.trim().to_owned()).unwrap_or_default()
}

fn offset(node: u8) -> u64 {
    let name = if node == 1 { "master_repl_offset" } else { "slave_repl_offset" };
    field(node, name).parse().expect("a number")
}

/// Ends a scenario early, once its effect has been observed.
fn stop(scenario: Process) -> Value {
    scenario.signal(Signal::SIGINT);
    let ended = scenario.finish();
    assert_eq!(ended["event"], "ended", "{ended}");
    ended
}

#[test]
fn a_lost_request_is_not_carried_out() {
    let _nodes = Nodes::start();
    assert_eq!(ask(1, "set orders 0"), "OK");
    let mut scenario = apply("request-lost");
    scenario.wait_for("change");
    assert!(gives_up(1, "incr orders"));
    assert_eq!(ask(2, "get orders"), "0", "the replica is asked");
    let ended = stop(scenario);
    assert!(number(&ended["targets"]["primary"], "dropped") > 0, "{ended}");
    assert_eq!(ask(1, "get orders"), "0");
    assert_eq!(ask(1, "incr orders"), "1");
}

#[test]
fn a_request_is_carried_out_though_its_reply_is_lost_and_twice_if_it_is_repeated() {
    let _nodes = Nodes::start();
    assert_eq!(ask(1, "set orders 0"), "OK");
    let mut scenario = apply("reply-lost");
    scenario.wait_for("change");
    assert!(gives_up(1, "incr orders"), "to the client this is as if the request were lost");
    wait_until(testbed::TIMEOUT, "carried out", || ask(2, "get orders") == "1");
    assert!(gives_up(1, "incr orders"), "it tries again");
    let ended = stop(scenario);
    assert!(number(&ended["targets"]["primary"], "dropped") >= 2, "{ended}");
    assert_eq!(ask(1, "get orders"), "2");
}

#[test]
fn a_delayed_request_is_carried_out_after_its_client_gave_up() {
    let _nodes = Nodes::start();
    assert_eq!(ask(1, "set orders 0"), "OK");
    let mut scenario = apply("delayed");
    scenario.wait_for("change");
    let sent = Instant::now();
    assert!(gives_up(1, "incr orders"));
    assert_eq!(ask(2, "get orders"), "0", "not yet");
    wait_until(testbed::TIMEOUT, "carried out", || ask(2, "get orders") == "1");
    let late = sent.elapsed();
    assert!((1900..3500).contains(&late.as_millis()), "{late:?}");
    let ended = stop(scenario);
    assert!(number(&ended["targets"]["primary"], "delayed") > 0, "{ended}");
}

#[test]
fn a_limping_link_is_up_and_its_replica_is_far_behind() {
    let _nodes = Nodes::start();
    let mut scenario = apply("limping-link");
    scenario.wait_for("change");
    let write = format!("set doc {}\\nwait 2 700\\n", "x".repeat(2000));
    assert_eq!(converse(1, &write), ["OK", "1"], "one replica of two has it");
    assert_eq!(converse(1, "set orders 7\\nwait 2 700\\n"), ["OK", "1"]);
    assert_eq!(ask(2, "get orders"), "7");
    assert_eq!(ask(3, "get orders"), "", "stale");
    assert!(offset(1) > offset(3) + 1500, "{} {}", offset(1), offset(3));
    // No Sentinel considers it down.
    assert_eq!(field(3, "master_link_status"), "up");
    assert!(field(1, "slave0").contains("online") && field(1, "slave1").contains("online"));
    let replicas = ask_as("ddia-client", 1, 26379, "sentinel replicas main");
    assert!(!replicas.contains("s_down"), "{replicas}");
    let ended = stop(scenario);
    let counts = &ended["targets"]["replica"];
    assert!(number(counts, "delayed") + number(counts, "queue_dropped") > 0, "{ended}");
    wait_until(testbed::TIMEOUT, "in step again", || ask(3, "get orders") == "7");
}

#[test]
fn a_lock_outlives_its_time_when_the_clock_jumps_back() {
    let _nodes = Nodes::start();
    let mut scenario = apply("clock-jump");
    assert_eq!(ask(1, "set lock mine nx px 3000"), "OK");
    scenario.wait_for("change");
    thread::sleep(Duration::from_secs(3));
    // Its Sentinel notices the jump of its clock and pauses (TILT mode).
    let log = fs::read_to_string("/run/ddia/1/redis-sentinel.log").expect("it is written");
    assert!(log.contains("+tilt"), "{log}");
    let left: u64 = ask(1, "pttl lock").parse().expect("a time");
    assert!((3_590_000..3_602_000).contains(&left), "{left}");
    assert_eq!(ask(1, "set lock yours nx px 1500"), "", "nobody else gets it");
    let ended = stop(scenario);
    assert_eq!(ask(1, "set lock yours nx px 1500"), "OK", "long over");
    assert!(number(&ended["clocks"]["primary"], "patched") >= 2, "{ended}");
}

#[test]
fn a_lock_has_two_holders_when_the_clock_runs_too_fast() {
    let _nodes = Nodes::start();
    let mut scenario = apply("clock-drift");
    scenario.wait_for("change");
    assert_eq!(ask(1, "set lock mine nx px 9000"), "OK");
    let taken = Instant::now();
    thread::sleep(Duration::from_millis(3600));
    assert_eq!(ask(1, "set lock yours nx px 9000"), "", "not yet");
    thread::sleep(Duration::from_millis(5400).saturating_sub(taken.elapsed()));
    assert_eq!(ask(1, "set lock yours nx px 9000"), "OK");
    let elapsed = taken.elapsed();
    assert!(elapsed < Duration::from_millis(8700), "by the first holder's clock it is over");
    stop(scenario);
}

/// Takes the lock and writes some time later, believing that it still holds it.
const WORKER: &str = "redis='redis-cli -h 10.65.0.1'; \
    [ \"$($redis set lock $1 nx px 3000)\" = OK ] || exit 3; sleep 2.5; $redis rpush log $1";

#[test]
fn who_is_paused_past_a_lease_comes_back_and_finds_another_one_in_its_place() {
    let _nodes = Nodes::start();
    let mut scenario = apply("pause");
    // A client takes a lock for 3 s and is then paused for as long.
    let mut worker = Command::new(tool());
    worker.args(["exec", "ddia-client", "sh", "-c", WORKER, "worker", "first"]);
    let mut worker = Process::start(worker);
    wait_until(testbed::TIMEOUT, "taken", || ask_as("ddia-2", 1, 6379, "get lock") == "first");
    scenario.wait_for("change");
    let second = "redis-cli -h 10.65.0.1 set lock second nx px 5000";
    wait_until(testbed::TIMEOUT, "free", || {
        let output = script(&["exec", "ddia-2", "sh", "-c", second]);
        output.stdout.starts_with(b"OK")
    });
    assert_eq!(ask_as("ddia-2", 1, 6379, "rpush log second"), "1");
    scenario.wait_for("change");
    assert!(worker.child.wait().expect("it ends").success());
    assert_eq!(ask(1, "lrange log 0 -1"), "second\nfirst", "the first one writes without the lock");
    assert_eq!(ask(1, "get lock"), "second");

    // The primary is paused for 4 s, and replaced after one.
    scenario.wait_for("change");
    let other = || (2..=3).find(|&node| field(node, "role") == "master");
    wait_until(testbed::TIMEOUT, "elected", || other().is_some());
    let elected = other().expect("just now");
    assert_eq!(ask(elected, "set orders 1"), "OK");
    scenario.wait_for("change");
    // It resumes without knowing about its replacement.
    assert_eq!((field(1, "role"), field(elected, "role")), ("master".into(), "master".into()));
    assert_eq!(ask(1, "set orders 2"), "OK", "this write is confirmed");
    wait_until(testbed::TIMEOUT, "a replica", || field(1, "role") == "slave");
    let orders = || try_as("ddia-client", TIMEOUT[0], 1, 6379, "get orders");
    wait_until(testbed::TIMEOUT, "in step", || orders().as_deref() == Some("1"));
    assert_eq!(ask(elected, "get orders"), "1", "and lost");
    let ended = scenario.finish();
    assert_eq!(ended["reason"], "done", "{ended}");
    for target in ["client", "primary"] {
        assert_eq!(number(&ended["targets"][target], "pauses"), 1, "{ended}");
    }
}

#[test]
fn one_of_three_nodes_that_fails_in_part_is_outvoted() {
    let _nodes = Nodes::start();
    assert_eq!(ask(1, "set orders 1"), "OK");
    wait_until(testbed::TIMEOUT, "everywhere", || ask(3, "get orders") == "1");
    let mut scenario = apply("partial-failure");
    scenario.wait_for("change");
    thread::sleep(Duration::from_secs(2));
    // Two of three continue.
    assert_eq!(converse(1, "set orders 2\\nwait 2 500\\n"), ["OK", "1"]);
    assert_eq!(ask(2, "get orders"), "2");
    let sentinel = |node, words| ask_as("ddia-client", node, 26379, words);
    let flags = |node| {
        let text = sentinel(node, "sentinel master main");
        let mut lines = text.lines().skip_while(|line| *line != "flags");
        lines.nth(1).expect("it has flags").to_owned()
    };
    // Only the third one considers the primary down.
    wait_until(testbed::TIMEOUT, "down for the third", || flags(3).contains("s_down"));
    assert_eq!((flags(1), flags(2)), ("master".into(), "master".into()));
    assert!(!flags(3).contains("o_down"));
    assert!(sentinel(2, "sentinel replicas main").contains("s_down"));
    assert_eq!(field(1, "role"), "master");
    // Clients still reach it.
    assert!(!gives_up(3, "get orders"));
    let ended = stop(scenario);
    assert!(number(&ended["targets"]["n3"], "dropped") > 0, "{ended}");
    wait_until(testbed::TIMEOUT, "in step again", || ask(3, "get orders") == "2");
    assert_eq!(field(1, "role"), "master");
}

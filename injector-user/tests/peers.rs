//! Peers given by name: faults move with their addresses.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::FileExt as _,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::{
    FAMILIES, Family, Host, INJECTOR, Injector, Lab, Process, RuleFile, Summary,
    agent::Agent,
    container::{self, Machine},
    is_guest, skip,
};

const NAME: &str = "db.example.test";

/// Whether host names can be looked up here.
fn has_names() -> bool {
    if is_guest() {
        skip("a virtual machine has no libraries that look up host names");
    }
    !is_guest()
}

/// The file of host names that an injector reads.
struct Hosts(RuleFile);

impl Hosts {
    fn new(addresses: &[IpAddr]) -> Self {
        let hosts = Self(RuleFile::new(""));
        hosts.set(addresses);
        hosts
    }

    /// Gives the name these addresses, in one write.
    fn set(&self, addresses: &[IpAddr]) {
        let lines: Vec<String> = addresses.iter().map(|it| format!("{it} {NAME}\n")).collect();
        let lines = lines.concat();
        let file = File::options().write(true).open(&self.0.path).expect("it is there");
        file.write_all_at(format!("{lines:\n<512}").as_bytes(), 0).expect("it can be written");
    }

    /// `injector inject` in the namespace of `host`, with this file as /etc/hosts.
    fn inject(&self, host: &Host, line: &str) -> Injector {
        self.inject_with(host, "true", line)
    }

    /// The same, after a command of the shell.
    fn inject_with(&self, host: &Host, before: &str, line: &str) -> Injector {
        let netns = &host.netns;
        let script = format!(
            "mount --bind {} /etc/hosts && {before} && exec {INJECTOR} inject --output json --netns {netns} {line}",
            self.0.path.display(),
        );
        let mut command = host.command("unshare", None);
        command.args(["--mount", "sh", "-c", &script]);
        let mut process = Process::start(command);
        let started = process.wait_for("started");
        Injector { process, started }
    }
}

/// The first addresses of both families, or the next ones.
fn pair(host: &Host, n: u8) -> [IpAddr; 2] {
    FAMILIES.map(|family| host.nth(family, n))
}

#[track_caller]
fn assert_lost(lab: &Lab, addresses: &[IpAddr]) {
    for &address in addresses {
        assert_eq!(lab.left.ping(None, address, 1), 0, "{address}");
    }
}

#[track_caller]
fn assert_passes(lab: &Lab, addresses: &[IpAddr]) {
    for &address in addresses {
        // On a busy machine, ping may read a reply too late. Faults here lose everything.
        assert!(lab.left.ping(None, address, 3) > 0, "{address}");
    }
}

/// Reads up to the change of the peer `name` to exactly these addresses.
fn wait_for_change(process: &mut Process, name: &str, addresses: &[IpAddr]) -> Value {
    let mut addresses: Vec<IpAddr> = addresses.to_vec();
    addresses.sort_unstable();
    loop {
        let changed = process.wait_for("changed");
        if changed["resolved"] == json!([{"name": name, "addresses": addresses}]) {
            return changed;
        }
    }
}

const LINE: &str = "--loss 100% --direction egress --remote";

#[test]
fn a_fault_moves_with_the_addresses_of_a_host_name_and_its_counters_go_on() {
    if !has_names() {
        return;
    }
    let lab = Lab::new();
    let (first, second) = (pair(&lab.right, 0), pair(&lab.right, 1));
    let hosts = Hosts::new(&first);
    let mut injector = hosts.inject(&lab.left, &format!("{LINE} {NAME}"));
    assert_eq!(injector.started["resolved"][0]["addresses"], json!(first));
    assert_lost(&lab, &first);
    assert_passes(&lab, &second);

    let began = Instant::now();
    hosts.set(&second);
    let changed = wait_for_change(&mut injector.process, NAME, &second);
    assert!(is_guest() || began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(changed["rules"][0]["name"], "loss 100%", "{changed}");
    assert_eq!(changed["replaced"], json!([]), "{changed}");
    assert_passes(&lab, &first);
    assert_lost(&lab, &second);
    let Summary { total, rules, .. } = injector.stop();
    assert_eq!((total.matched, total.dropped), (4, 4));
    assert_eq!(rules.len(), 1);
    assert_passes(&lab, &second);
}

#[test]
fn sighup_looks_up_at_once_and_the_rules_of_a_file_as_well() {
    if !has_names() {
        return;
    }
    let lab = Lab::new();
    let (first, second) = (pair(&lab.right, 0), pair(&lab.right, 1));
    let rules = RuleFile::new(&format!("rules: [{{loss: 100%, remote: {NAME}}}]"));
    for line in [format!("{LINE} {NAME}"), rules.option()] {
        let hosts = Hosts::new(&first[..1]);
        let mut injector = hosts.inject(&lab.left, &line);
        assert_lost(&lab, &first[..1]);
        // One more address, then another one, each before the next look-up by itself.
        for addresses in [&[first[0], second[1]], &second] {
            let began = Instant::now();
            hosts.set(addresses);
            injector.process.signal(Signal::SIGHUP);
            wait_for_change(&mut injector.process, NAME, addresses);
            assert!(
                is_guest() || began.elapsed() < Duration::from_secs(3),
                "{:?}",
                began.elapsed()
            );
            assert_lost(&lab, addresses);
        }
        assert_passes(&lab, &first);
        assert_eq!(injector.stop().total.dropped, 5);
    }
}

#[test]
fn a_name_that_cannot_be_looked_up_keeps_its_addresses_and_is_told_once() {
    if !has_names() {
        return;
    }
    let lab = Lab::new();
    let (first, second) = (pair(&lab.right, 0), pair(&lab.right, 1));
    let hosts = Hosts::new(&first);
    let mut injector = hosts.inject(&lab.left, &format!("{LINE} {NAME}"));
    // Without a match, there would be a warning of that as well.
    assert_lost(&lab, &first);
    hosts.set(&[]);
    let warning = injector.process.wait_for("warning");
    let message = warning["message"].as_str().expect("text");
    let expected = format!("{NAME} stays {}, {}: cannot resolve", first[0], first[1]);
    assert!(message.starts_with(&expected), "{message}");
    assert_lost(&lab, &first);
    for _ in 0..5 {
        injector.process.signal(Signal::SIGHUP);
        assert_lost(&lab, &first);
    }
    hosts.set(&second);
    injector.process.signal(Signal::SIGHUP);
    loop {
        let said = injector.process.next().expect("it goes on");
        assert_ne!(said["event"], "warning", "{said}");
        if said["event"] == "changed" {
            break;
        }
    }
    assert_passes(&lab, &first);
    assert_lost(&lab, &second);
    assert_eq!(injector.stop().total.dropped, 16);
}

#[test]
fn name_servers_that_do_not_answer_hold_up_no_fault() {
    if !has_names() {
        return;
    }
    let lab = Lab::new();
    let first = pair(&lab.right, 0);
    let hosts = Hosts::new(&first);
    // Nobody listens at the third address: the rules drop what is sent there.
    let silent = lab.right.nth(Family::V4, 2);
    let resolver = RuleFile::new(&format!("nameserver {silent}\noptions timeout:30 attempts:5\n"));
    let before = format!("mount --bind {} /etc/resolv.conf", resolver.path.display());
    let line = format!("{LINE} {NAME},{silent}");
    let injector = hosts.inject_with(&lab.left, &before, &line);
    hosts.set(&[]);
    injector.process.signal(Signal::SIGHUP);
    let began = Instant::now();
    // Longer than the lease.
    while began.elapsed() < Duration::from_secs(8) {
        assert_lost(&lab, &first);
    }
    let asked = Instant::now();
    let summary = injector.stop();
    assert!(is_guest() || asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert!(summary.total.dropped >= 4);
    assert_passes(&lab, &first);
}

#[test]
fn the_addresses_of_a_network_namespace_are_followed() {
    let lab = Lab::new();
    let right = &lab.right;
    let place = Place::new(&pair(right, 0));
    let peer = format!("netns:{}", place.host.netns);
    let mut injector =
        Injector::start(&lab.left, &format!("--netns {} {LINE} {peer}", lab.left.netns));
    assert_lost(&lab, &pair(right, 0));
    assert_passes(&lab, &pair(right, 1));
    place.add(right.nth(Family::V4, 1));
    let all = [right.nth(Family::V4, 0), right.nth(Family::V4, 1), right.nth(Family::V6, 0)];
    wait_for_change(&mut injector.process, &peer, &all);
    assert_lost(&lab, &all);
    // Another namespace of that name.
    place.replace(&pair(right, 2));
    wait_for_change(&mut injector.process, &peer, &pair(right, 2));
    assert_lost(&lab, &pair(right, 2));
    assert_passes(&lab, &all);
    assert_eq!(injector.stop().total.dropped, 7);
}

#[test]
fn the_agent_follows_the_peers_of_its_faults() {
    let lab = Lab::new();
    let right = &lab.right;
    let place = Place::new(&pair(right, 0));
    let peer = format!("netns:{}", place.host.netns);
    let agent = Agent::start(&lab.left);
    for (name, remote) in [("named", &peer), ("fixed", &right.nth(Family::V4, 2).to_string())] {
        agent.create(&json!({
            "name": name,
            "target": {"netns": lab.left.netns},
            "rules": [{"loss": "100%", "direction": "egress", "remote": remote}],
            "for": "5m",
        }));
    }
    let mut events = agent.watch("/v1/events");
    assert_lost(&lab, &pair(right, 0));
    place.replace(&pair(right, 1));
    let changed = events.wait_for("changed");
    let mut addresses = pair(right, 1);
    addresses.sort_unstable();
    assert_eq!(changed["resolved"], json!([{"name": peer, "addresses": addresses}]), "{changed}");
    assert_lost(&lab, &pair(right, 1));
    assert_passes(&lab, &pair(right, 0));
    assert_lost(&lab, &[right.nth(Family::V4, 2)]);
    assert_eq!(agent.get("named")["resolved"], changed["resolved"]);
    let ended = agent.delete("named");
    assert_eq!(ended["dropped"], 4, "{ended}");
    assert_passes(&lab, &pair(right, 1));
    assert_eq!(agent.delete("fixed")["dropped"], 1);
}

/// `injector` that looks for containers of this machine.
fn on_machine(mut command: Command, machine: &Machine) -> Process {
    command.env("INJECTOR_HOST_ROOT", &machine.root);
    let mut process = Process::start(command);
    process.timeout = container::TIMEOUT;
    process
}

#[test]
fn a_container_that_restarts_with_another_address_is_followed_as_a_peer() {
    let (lab, machine) = (Lab::new(), Machine::new());
    let right = &lab.right;
    let [one, two] = [0, 1].map(|n| Place::new(&pair(right, n)));
    let first = machine.start(&one.host, "pod", &Machine::id("abc1"), "a", "app");
    let line = format!("--netns {} {LINE} container:test/a/app,pod:none/such", lab.left.netns);
    let output = {
        let mut command = Injector::command(&lab.left, &line);
        command.env("INJECTOR_HOST_ROOT", &machine.root);
        command.output().expect("it runs")
    };
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("there is no pod none/such on this machine"), "{error}");

    let peer = "container:test/a/app";
    let line = format!("--netns {} {LINE} {peer}", lab.left.netns);
    let mut process = on_machine(Injector::command(&lab.left, &line), &machine);
    let started = process.wait_for("started");
    assert_eq!(started["resolved"][0]["name"], peer, "{started}");
    assert_lost(&lab, &pair(right, 0));
    first.stop();
    let warning = process.wait_for("warning");
    let message = warning["message"].as_str().expect("text");
    assert!(message.starts_with(&format!("{peer} stays ")), "{message}");
    assert_lost(&lab, &pair(right, 0));
    let second = machine.start(&two.host, "pod", &Machine::id("abc2"), "a", "app");
    wait_for_change(&mut process, peer, &pair(right, 1));
    assert_lost(&lab, &pair(right, 1));
    assert_passes(&lab, &pair(right, 0));
    process.signal(Signal::SIGTERM);
    assert_eq!(process.finish()["dropped"], 6);
    drop(second);
}

#[test]
fn a_partition_of_a_scenario_follows_a_member_that_restarts() {
    let (lab, machine) = (Lab::new(), Machine::new());
    let right = &lab.right;
    let [one, two] = [0, 1].map(|n| Place::new(&pair(right, n)));
    let first = machine.start(&one.host, "pod", &Machine::id("abc1"), "a", "app");
    let scenario = RuleFile::new(&format!(
        "targets: {{left: {{netns: {}}}, app: {{container: test/a/app}}}}\n\
         timeline:\n\
         - {{partition: {{shape: halves, nodes: [left, app]}}}}\n\
         - {{faults: [{{rules: [{{loss: 100%, direction: egress, remote: {}}}]}}], on: left}}\n",
        lab.left.netns,
        right.nth(Family::V4, 2),
    ));
    let mut process = on_machine(testbed::apply(&lab.left, &scenario.path, &[]), &machine);
    let started = process.wait_for("started");
    assert_eq!(started["targets"][0]["addresses"], json!(prefixes(&pair(right, 0))), "{started}");
    process.wait_for("change");
    assert_lost(&lab, &pair(right, 0));
    assert_passes(&lab, &pair(right, 1));
    first.stop();
    let second = machine.start(&two.host, "pod", &Machine::id("abc2"), "a", "app");
    let changed = wait_for_change(&mut process, "app", &pair(right, 1));
    assert_eq!(changed["name"], "left", "{changed}");
    assert_lost(&lab, &pair(right, 1));
    assert_lost(&lab, &[right.nth(Family::V4, 2)]);
    assert_passes(&lab, &pair(right, 0));
    process.signal(Signal::SIGTERM);
    let ended = process.finish();
    assert_eq!(ended["targets"]["left"]["dropped"], 5, "{ended}");
    drop(second);
}

#[test]
fn a_change_of_a_scenario_that_is_prepared_has_the_new_addresses() {
    let lab = Lab::new();
    let right = &lab.right;
    let place = Place::new(&pair(right, 0));
    let time = if is_guest() { 60 } else { 8 };
    let scenario = RuleFile::new(&format!(
        "targets: {{left: {{netns: {left}}}}}\n\
         timeline:\n\
         - {{for: {time}s, faults: [{{rules: [{{loss: 100%, direction: egress, remote: 'netns:{peer}'}}]}}]}}\n\
         - {{at: {time}s, partition: {{shape: halves, nodes: [left, 'netns:{peer}']}}}}\n",
        left = lab.left.netns,
        peer = place.host.netns,
    ));
    let mut process = testbed::start_scenario(&lab.left, &scenario.path, &[]);
    process.wait_for("change");
    assert_lost(&lab, &pair(right, 0));
    place.replace(&pair(right, 1));
    wait_for_change(&mut process, &format!("netns:{}", place.host.netns), &pair(right, 1));
    assert_lost(&lab, &pair(right, 1));
    // What is told of the rules before includes what they did for the old addresses.
    let change = process.wait_for("change");
    let replaced = change["targets"][0]["replaced"].as_object().expect("an object");
    let dropped: u64 = replaced.values().filter_map(|counts| counts["dropped"].as_u64()).sum();
    assert_eq!(dropped, 4, "{change}");
    assert_lost(&lab, &pair(right, 1));
    assert_passes(&lab, &pair(right, 0));
    process.signal(Signal::SIGTERM);
    let ended = process.finish();
    assert_eq!(ended["targets"]["left"]["dropped"], 6, "{ended}");
}

fn prefixes(addresses: &[IpAddr]) -> Vec<String> {
    let length = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
    addresses.iter().map(|address| format!("{address}/{}", length(address))).collect()
}

/// A network namespace with these addresses, which nothing reaches.
struct Place {
    host: Host,
}

impl Place {
    fn new(addresses: &[IpAddr]) -> Self {
        let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
        let place = Self { host: Host { netns: testbed::unique(), v4, v6, mac: [0; 6] } };
        place.make(addresses);
        place
    }

    fn make(&self, addresses: &[IpAddr]) {
        let netns = &self.host.netns;
        testbed::ip(&[], &format!("netns add {netns}\n"));
        let link = "link add near type veth peer name far\nlink set dev lo up\n\
                    link set dev near addrgenmode none\nlink set dev near up\nlink set dev far up\n";
        testbed::ip(&["-n", netns], link);
        for &address in addresses {
            self.add(address);
        }
    }

    fn add(&self, address: IpAddr) {
        let options = if address.is_ipv6() { "nodad" } else { "" };
        let batch = format!("addr add {address} dev near {options}\n");
        testbed::ip(&["-n", &self.host.netns], &batch);
    }

    /// Replaces the namespace by another one of its name.
    fn replace(&self, addresses: &[IpAddr]) {
        testbed::ip(&[], &format!("netns del {}\n", self.host.netns));
        self.make(addresses);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A failure cannot be handled while panicking.
        let _ = Command::new("ip").args(["netns", "del", &self.host.netns]).status();
    }
}

//! When no packet matches, injector says what passed and the likely cause.

use std::{fs, process::Command};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::{
    Family, Host, INJECTOR, INTERFACE, Injector, Lab, RuleFile, TestCgroup, agent::Agent, serve,
    start_scenario, talk,
};

/// Ends the faults. Returns the warnings.
fn warnings(injector: Injector) -> Vec<String> {
    injector.process.signal(Signal::SIGTERM);
    let (code, events) = injector.process.end();
    assert_eq!(code, Some(0));
    let summary = events.last().expect("a summary");
    assert_eq!((&summary["event"], &summary["matched"]), (&"summary".into(), &0.into()));
    texts(&events)
}

/// The warnings among events.
fn texts(events: &[Value]) -> Vec<String> {
    let warnings = events.iter().filter(|event| event["event"] == "warning");
    warnings.map(|event| event["message"].as_str().expect("text").to_owned()).collect()
}

/// Fails unless a warning contains all of `words`.
#[track_caller]
fn assert_warned(warnings: &[String], words: &[&str]) {
    let is_it = |warning: &String| words.iter().all(|word| warning.contains(word));
    assert!(warnings.iter().any(is_it), "no {words:?} in {warnings:#?}");
}

/// Connects from the cgroup to a port of the peer.
fn connect(lab: &Lab, cgroup: &TestCgroup, port: u16) {
    let to = lab.right.at(Family::V4, port);
    let line = format!("tcp-connect --mode echo --to {to} --bytes 1000");
    let report = talk(&lab.left, Some(cgroup), &line);
    assert_eq!(report["error"], Value::Null, "{report}");
}

#[test]
fn the_cause_is_named_if_a_client_is_the_target() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    let peer = lab.right.v4;
    for (options, words) in [
        ("--remote-port 9001", &["port: only remote port 9001 matches, but it is 9000"][..]),
        ("--local-port 9000", &["swapped ports: 9000 is the remote port here"]),
        ("--tcp-flags urg", &["TCP flags: only segments with urg match, but these have"]),
        ("--protocol udp --remote-port 9000", &["protocol: only udp matches, but it is tcp"]),
        (
            "--remote 10.9.0.99",
            &["peer: only packets to 10.9.0.99 match, but the peer is 10.9.0.20"],
        ),
        ("--longer-than 9000", &["length: only packets longer than 9000 bytes match"]),
        ("--remote 10.9.0.99 --remote-port 9001", &["port: only remote port 9001", "; peer: only"]),
    ] {
        let injector = Injector::on(&lab.left, &cgroup, &format!("--loss 100% {options}"));
        connect(&lab, &cgroup, 9000);
        let warnings = warnings(injector);
        let seen = format!("packets of the target; most: tcp to {peer}:9000");
        assert_warned(&warnings, &["no packet matched: nothing was faulted; saw ", &seen]);
        assert_warned(&warnings, &[words, &["rule 0 (loss 100% of ", "likely cause: "]].concat());
    }
}

#[test]
fn the_cause_is_named_if_a_server_is_the_target() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.left, Some(&cgroup), "tcp-serve --mode echo --bind [::]:9000");
    let injector = Injector::on(&lab.left, &cgroup, "--loss 100% --remote-port 9000");
    let to = lab.left.at(Family::V4, 9000);
    talk(&lab.right, None, &format!("tcp-connect --mode echo --to {to} --bytes 1000"));
    let warnings = warnings(injector);
    assert_warned(&warnings, &["swapped ports: 9000 is the local port here, not the remote one"]);
    assert_warned(&warnings, &["at local port 9000"]);
}

#[test]
fn the_direction_is_named() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let server = serve(&lab.right, None, "udp-receive --bind 0.0.0.0:9000");
    let send = |from: &Host, cgroup, to: &Host| {
        let line = format!("udp-send --to {} --count 6", to.at(Family::V4, 9000));
        talk(from, cgroup, &line);
    };
    let injector = Injector::on(&lab.left, &cgroup, "--loss 100% --direction ingress");
    send(&lab.left, Some(&cgroup), &lab.right);
    let said = warnings(injector);
    assert_warned(&said, &["direction: only received packets match, but these were sent"]);
    assert_warned(
        &said,
        &["saw 6 sent, 0 received packets of the target; most: udp to 10.9.0.20:9000"],
    );
    drop(server);
    let server = serve(&lab.left, Some(&cgroup), "udp-receive --bind 0.0.0.0:9000");
    let injector = Injector::on(&lab.left, &cgroup, "--loss 100% --direction egress");
    send(&lab.right, None, &lab.left);
    let said = warnings(injector);
    assert_warned(
        &said,
        &["direction: only sent packets match, and none was sent (packets received: 6)"],
    );
    drop(server);
}

#[test]
fn the_interface_is_named() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    let injector = Injector::on(&lab.left, &cgroup, "--loss 100% --interface lo");
    connect(&lab, &cgroup, 9000);
    let warnings = warnings(injector);
    assert_warned(&warnings, &["saw no packet of the target"]);
    let words = ["interface: no packet passed on lo, but ", &format!(" passed on {INTERFACE}")];
    assert_warned(&warnings, &words);
}

#[test]
fn sockets_older_than_the_cgroup_are_named() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    let to = lab.right.at(Family::V4, 9000);
    let line = format!("tcp-connect --mode echo --hold --to {to} --bytes 1000");
    for is_before in [true, false] {
        let mut connection = serve(&lab.left, None, &line);
        let enter = || {
            let procs = cgroup.path.join("cgroup.procs");
            fs::write(procs, connection.pid().to_string()).expect("it is alive");
        };
        if is_before {
            enter();
        }
        let injector = Injector::on(&lab.left, &cgroup, "--loss 100%");
        if !is_before {
            enter();
        }
        let said = warnings(injector);
        let words = ["likely cause: older sockets: ", " created 1 socket in the cgroup /", "--pid"];
        assert_warned(&said, &words);
        // The advice works.
        let line = format!("--loss 0% --pid {}", connection.pid());
        let injector = Injector::start(&lab.left, &line);
        connection.tell("go");
        assert_eq!(connection.finish()["error"], Value::Null);
        assert!(injector.stop().total.matched > 0);
    }
}

#[test]
fn translated_addresses_are_named() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let rules = format!(
        "table ip t {{\nchain o {{\ntype nat hook output priority -100;\n\
         ip daddr 192.0.2.1 dnat to {}\n}}\n}}\n",
        lab.right.v4
    );
    if !lab.left.translate(&rules) {
        return;
    }
    lab.left.run(&format!("ip route add 192.0.2.1 via {}", lab.right.v4));
    let backend = lab.right.at(Family::V4, 9000);
    let _server = serve(&lab.right, None, &format!("udp-receive --bind {backend} --echo"));
    // Which peer the process asked for is not known of a socket that is not connected.
    let line = "udp-send --to 192.0.2.1:9000 --count 6 --replies";
    let injector = Injector::on(&lab.left, &cgroup, "--loss 100% --remote 192.0.2.1");
    talk(&lab.left, Some(&cgroup), line);
    let said = warnings(injector);
    let words = "translated addresses: packets to 192.0.2.1 have the peer 10.9.0.20 here (NAT); match 10.9.0.20";
    assert_warned(&said, &[words]);
    // The advice works.
    let injector = Injector::on(&lab.left, &cgroup, "--loss 0% --remote 10.9.0.20");
    talk(&lab.left, Some(&cgroup), line);
    assert_eq!(injector.stop().total.egress.packets, 6);
    // Received packets of a connected socket are another case.
    let line = "udp-send --to 192.0.2.1:9000 --count 6 --replies --connected";
    let injector = Injector::on(&lab.left, &cgroup, "--loss 100% --direction ingress");
    talk(&lab.left, Some(&cgroup), line);
    let said = warnings(injector);
    assert_warned(&said, &["translated addresses: received packets of connections to 192.0.2.1"]);
    let line_ingress = "--loss 0% --direction ingress --remote 192.0.2.1";
    let injector = Injector::on(&lab.left, &cgroup, line_ingress);
    talk(&lab.left, Some(&cgroup), line);
    assert_eq!(injector.stop().total.ingress.packets, 6);
}

#[test]
fn without_a_match_it_is_said_during_the_run_as_well() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    let mut injector = Injector::on(&lab.left, &cgroup, "--loss 0% --remote-port 9001");
    connect(&lab, &cgroup, 9000);
    let warning = injector.process.wait_for("warning");
    let message = warning["message"].as_str().expect("text");
    assert!(message.starts_with("no packet has matched yet; saw "), "{message}");
    let warning = injector.process.wait_for("warning");
    assert!(warning["message"].to_string().contains("likely cause: port"), "{warning}");
    // Said once.
    let _other = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9001");
    connect(&lab, &cgroup, 9001);
    assert!(injector.stop().total.matched > 0);
}

/// A match of nothing by a client of port 9000, and what is said: packets that passed, and the cause.
const CLIENT: [(&str, &str); 2] = [
    ("remote-port: 9001", "port: only remote port 9001 matches, but it is 9000"),
    ("local-port: 9000", "swapped ports: 9000 is the remote port here, not the local one"),
];

#[test]
fn scenarios_name_the_cause() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    let seen = format!("packets of the target; most: tcp to {}:9000", lab.right.v4);
    let start = |matching: &str| {
        let target = cgroup.path.display();
        let file = RuleFile::new(&format!(
            "targets: {{a: {{cgroup: {target}}}}}\n\
             timeline: [{{for: 1h, faults: {{rules: [{{loss: 100%, {matching}}}]}}}}]\n"
        ));
        let mut process = start_scenario(&lab.left, &file.path, &[]);
        process.wait_for("change");
        process
    };
    for (matching, cause) in CLIENT {
        let process = start(matching);
        connect(&lab, &cgroup, 9000);
        process.signal(Signal::SIGTERM);
        let (code, events) = process.end();
        assert_eq!(code, Some(0));
        let said = texts(&events);
        assert_warned(&said, &["target a: no packet matched; saw ", &seen]);
        assert_warned(&said, &["target a: loss 100% of ", "likely cause: ", cause]);
    }
    let process = start(CLIENT[0].0);
    process.signal(Signal::SIGTERM);
    let said = texts(&process.end().1);
    assert_eq!(said, ["target a: no packet matched; saw no packet of the target"]);
    // During the run as well.
    let mut process = start(CLIENT[0].0);
    connect(&lab, &cgroup, 9000);
    process.wait_for_warning("target a: no packet has matched yet; saw ");
    process.wait_for_warning(CLIENT[0].1);
    process.signal(Signal::SIGTERM);
    assert_eq!(process.end().0, Some(0));
}

#[test]
fn xdp_names_the_cause() {
    let lab = Lab::new();
    let _server = serve(&lab.left, None, "tcp-serve --mode echo --bind [::]:9000");
    let to = lab.left.at(Family::V4, 9000);
    for (options, cause) in [
        ("--local-port 9001", "port: only local port 9001 matches, but it is 9000"),
        ("--remote-port 9000", "swapped ports: 9000 is the local port here, not the remote one"),
    ] {
        let line = format!("--interface {INTERFACE} --xdp --loss 100% {options}");
        let injector = Injector::start(&lab.left, &line);
        talk(&lab.right, None, &format!("tcp-connect --mode echo --to {to} --bytes 1000"));
        let said = warnings(injector);
        let seen = format!("most: tcp from {} at local port 9000", lab.right.v4);
        assert_warned(&said, &["no packet matched: nothing was faulted; saw 0 sent, ", &seen]);
        // XDP sees received packets only.
        assert_warned(&said, &["rule 0 (loss 100% of ", ", received): likely cause: ", cause]);
    }
}

#[test]
fn the_agent_names_the_cause() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let agent = Agent::start(&lab.left);
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    let path = cgroup.path.display();
    // Beside another fault of the target, whose packets are seen, but are not the cause.
    let other = json!({
        "name": "other", "target": {"cgroup": path.to_string()}, "for": "60s",
        "rules": [{"loss": "0%", "protocol": "icmp"}],
    });
    agent.create(&other);
    assert!(lab.left.ping(Some(&cgroup), lab.right.v4.into(), 1) > 0);
    for (matching, cause) in CLIENT {
        let matching = matching.replace(": ", " ");
        let line = format!(
            "--agent {} --cgroup {path} --loss 100% --protocol tcp --{matching}",
            agent.socket.display()
        );
        let injector = Injector::start(&lab.left, &line);
        connect(&lab, &cgroup, 9000);
        let said = warnings(injector);
        let seen = format!("packets of the target; most: tcp to {}:9000", lab.right.v4);
        assert_warned(&said, &["no packet matched: nothing was faulted; saw ", &seen]);
        assert_warned(&said, &["rule 0 (loss 100% of ", "likely cause: ", cause]);
    }
    let mut request = other;
    request["name"] = "wrong".into();
    request["rules"] = json!([{"loss": "0%", "protocol": "tcp", "remote-port": 9001}]);
    let fault = agent.create(&request);
    assert_eq!(fault["unmatched"], Value::Null);
    let fault = agent.wait_for("wrong", |fault| !fault["unmatched"].is_null());
    assert_eq!(fault["unmatched"], json!({"seen": "saw no packet of the target"}));
    connect(&lab, &cgroup, 9000);
    // It is looked at again.
    let fault = agent.wait_for("wrong", |fault| !fault["unmatched"]["causes"].is_null());
    assert_warned(
        &[fault["unmatched"]["causes"][0].as_str().expect("text").into()],
        &["rule 0 (loss 0% of tcp to port 9001", "but it is 9000"],
    );
    let _other = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9001");
    connect(&lab, &cgroup, 9001);
    let fault = agent.wait_for("wrong", |fault| fault["matched"] != 0);
    assert_eq!(fault["unmatched"], Value::Null);
    assert_eq!(agent.delete("wrong")["unmatched"], Value::Null);
    assert_eq!(agent.get("other")["unmatched"], Value::Null);
}

#[test]
fn verbose_reports_what_no_rule_matched_and_debug_the_log() {
    let lab = Lab::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    let to = lab.right.v4;
    let run = |option: &str| {
        let mut command: Command = lab.left.command(INJECTOR, None);
        command.args(["run", option, "--loss", "0%", "--protocol", "icmp", "--", "bash", "-c"]);
        command.arg(format!("ping -q -c 1 {to}; exec 3<>/dev/tcp/{to}/9000"));
        let output = command.output().expect("it can be run");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    let (plain, verbose, debug) = (run("--seed=1"), run("--verbose"), run("--debug"));
    let line = format!("injector:   not matched: tcp to {to}:9000: ");
    assert!(!plain.contains("not matched"), "{plain}");
    assert!(verbose.contains(&line), "{verbose}");
    assert!(!verbose.contains("DEBUG") && !verbose.contains('\u{1b}'), "{verbose}");
    assert!(debug.contains("DEBUG") && !debug.contains('\u{1b}'), "{debug}");
    assert!(plain.contains("rule 0: loss 0% of icmp, both ways\n"), "{plain}");
}

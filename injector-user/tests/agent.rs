//! The agent with real packets and processes: requested faults start, act and end.

use std::{
    fs,
    net::UdpSocket,
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixDatagram, UnixStream},
    },
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use injector_user::kernel::{clock_probe, vdso};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use testbed::{
    Family, Lab, TIMEOUT, TestCgroup, agent::Agent, is_guest, number, scratch_file, wait_until,
};

/// Whether the peer can be reached.
fn answers(lab: &Lab) -> bool {
    lab.left.ping(None, lab.right.address(Family::V4), 3) > 0
}

/// Loses all pings of the left host. The kernel's own occasional packets are IPv6.
fn lost(lab: &Lab) -> Value {
    json!({
        "target": {"netns": lab.left.netns},
        "rules": [{"loss": "100%", "direction": "egress", "protocol": "icmp"}],
        "for": "60s",
    })
}

fn with(mut request: Value, more: &Value) -> Value {
    let more = more.as_object().expect("a map").clone();
    request.as_object_mut().expect("a map").extend(more);
    request
}

fn without(mut request: Value, key: &str) -> Value {
    request.as_object_mut().expect("a map").remove(key);
    request
}

#[test]
fn a_fault_acts_until_it_is_deleted_and_its_counters_stay() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let mut events = agent.watch("/v1/events");
    let fault = agent.create(&with(lost(&lab), &json!({"name": "cut"})));
    assert_eq!((&fault["name"], &fault["phase"]), (&"cut".into(), &"active".into()));
    assert_eq!(fault["kinds"], json!(["network"]));
    assert_eq!(fault["attached"][0]["interface"], "lo");
    assert!(fault["owner"].as_str().expect("a name").starts_with("uid 0, pid "), "{fault}");
    assert_eq!(events.wait_for("created")["name"], "cut");
    assert!(!answers(&lab));
    let seen = agent.wait_for("cut", |fault| fault["dropped"] == 3);
    assert_eq!(number(&seen["rules"][0], "dropped"), 3, "{seen}");
    assert_eq!(number(&seen["egress"], "packets"), 3, "{seen}");
    assert_eq!(number(&events.wait_for("counted"), "dropped"), 3);
    let ended = agent.delete("cut");
    assert!(answers(&lab));
    assert_eq!((&ended["reason"], number(&ended, "dropped")), (&"deleted".into(), 3));
    let mut short = ended.clone();
    // Events have the rules without their counters.
    let rule = short["rules"][0].as_object_mut().expect("a rule");
    rule.retain(|key, _| ["rule", "name", "match"].contains(&key.as_str()));
    assert_eq!(events.wait_for("ended"), short);
    assert_eq!(agent.get("cut"), ended);
    assert!(agent.active().is_empty());
    let (status, problem) = agent.ask("DELETE", "/v1/faults/cut", None);
    assert_eq!((status, &problem["error"]), (404, &"not-found".into()));
    // Its name is free again.
    agent.create(&with(lost(&lab), &json!({"name": "cut"})));
    assert!(!answers(&lab));
}

#[test]
fn a_lease_that_is_not_renewed_lapses() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let lease = Duration::from_secs(if is_guest() { 8 } else { 4 });
    let told = format!("{}s", lease.as_secs());
    let request = with(without(lost(&lab), "for"), &json!({"name": "leased", "lease": told}));
    agent.create(&request);
    let begun = Instant::now();
    while begun.elapsed() < lease * 3 / 2 {
        let (status, _) = agent.ask("POST", "/v1/faults/leased/renew", None);
        assert_eq!(status, 200);
        thread::sleep(Duration::from_millis(200));
    }
    assert!(!answers(&lab), "it was renewed");
    let renewed = Instant::now();
    let (status, _) = agent.ask("POST", "/v1/faults/leased/renew", None);
    assert_eq!(status, 200);
    let ended = agent.watch("/v1/faults/leased/events").wait_for("ended");
    let lived = renewed.elapsed();
    assert_eq!(ended["reason"], "lapsed", "{ended}");
    let longest = lease * 2;
    assert!((lease * 9 / 10..longest).contains(&lived), "{lived:?}");
    assert!(answers(&lab));
    let (status, _) = agent.ask("POST", "/v1/faults/leased/renew", None);
    assert_eq!(status, 404);
}

#[test]
fn a_client_that_goes_before_it_is_answered_leaves_nothing() {
    use std::io::Write as _;

    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let body = lost(&lab).to_string();
    for _ in 0..3 {
        let mut stream = UnixStream::connect(&agent.socket).expect("it listens");
        let length = body.len();
        write!(
            stream,
            "POST /v1/faults HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .expect("it reads");
        drop(stream);
        // Requests are served in order.
        agent.create(&with(lost(&lab), &json!({"name": "after"})));
        agent.delete("after");
        assert!(agent.active().is_empty());
    }
    assert!(answers(&lab));
}

#[test]
fn a_hung_agent_faults_no_longer_than_asked() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    agent.create(&with(lost(&lab), &json!({"for": "3s"})));
    let created = Instant::now();
    assert!(!answers(&lab));
    agent.signal(Signal::SIGSTOP);
    wait_until(TIMEOUT, "the deadline has passed, which is the kernel's", || answers(&lab));
    // Without renewal by the agent, it would end after 5 s.
    assert!(is_guest() || created.elapsed() < Duration::from_secs(5), "{:?}", created.elapsed());
    agent.signal(Signal::SIGCONT);
    assert!(agent.stop().success());
}

#[test]
fn what_is_refused_changes_nothing() {
    let lab = Lab::new();
    let agent =
        Agent::with(&lab.left, scratch_file(), &["--max-faults", "2", "--max-body", "20000"]);
    let base = lost(&lab);
    let pipe = scratch_file();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("it can be made");
    for (status, error, request) in [
        (422, "invalid", without(base.clone(), "for")),
        (422, "invalid", with(base.clone(), &json!({"for": "25h"}))),
        (422, "invalid", with(base.clone(), &json!({"target": {"netns": "no-such-namespace"}}))),
        (422, "invalid", with(base.clone(), &json!({"target": {"netns": pipe}}))),
        (422, "invalid", with(base.clone(), &json!({"target": {"netns": "/etc/passwd"}}))),
        (422, "invalid", with(base.clone(), &json!({"target": {"cgroup": "/no/such"}}))),
        (422, "invalid", with(base.clone(), &json!({"target": {"cgroup": "../../../../etc"}}))),
        (422, "invalid", with(base.clone(), &json!({"rules": []}))),
        (422, "invalid", with(base.clone(), &json!({"rules": [{"loss": 0.2}]}))),
        (422, "invalid", with(base.clone(), &json!({"rules": [{"loss": "0.2"}]}))),
        (422, "invalid", with(base.clone(), &json!({"rules": [{"loss": "1%", "for": "0s"}]}))),
        (422, "invalid", with(base.clone(), &json!({"for": "0s"}))),
        (422, "invalid", with(base.clone(), &json!({"rules": [{"loss": "101%"}]}))),
        (422, "invalid", with(base.clone(), &json!({"rules": [{"los": "1%"}]}))),
        (422, "invalid", with(base.clone(), &json!({"typo": 1}))),
        (422, "invalid", with(base.clone(), &json!({"clocks": {"clock": "1h"}}))),
        (422, "invalid", with(base.clone(), &json!({"processes": {"cpu": "10%"}}))),
        (413, "bad-request", with(base.clone(), &json!({"name": "x".repeat(20_000)}))),
    ] {
        let (got, problem) = agent.ask("POST", "/v1/faults", Some(&request));
        assert_eq!((got, &problem["error"]), (status, &error.into()), "{request}: {problem}");
        assert_eq!(problem["status"], got);
        assert!(!problem["message"].as_str().expect("text").is_empty(), "{problem}");
    }
    fs::remove_file(pipe).expect("it is there");
    let json_type = "Content-Type: application/json\r\n";
    for (status, method, path, headers, body) in [
        (400, "POST", "/v1/faults", json_type, &b"{"[..]),
        (415, "POST", "/v1/faults", "", b"{}"),
        (404, "GET", "/nothing", "", b""),
        (404, "GET", "/v1/faults/no", "", b""),
        (404, "GET", "/v1/faults/no/events", "", b""),
        (404, "POST", "/v1/faults/no/renew", "", b""),
        (405, "PUT", "/v1/faults", "", b""),
        (400, "GET", "/v1/faults/%ff", "", b""),
    ] {
        let (got, text) = agent.raw(method, path, headers, body);
        assert_eq!(got, status, "{method} {path}: {text}");
        let problem: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        assert_eq!(problem["status"], got);
    }
    assert!(agent.active().is_empty());
    assert!(answers(&lab));
    agent.create(&with(base.clone(), &json!({"name": "a"})));
    let conflict =
        agent.ask("POST", "/v1/faults", Some(&with(base.clone(), &json!({"name": "a"}))));
    assert_eq!((conflict.0, &conflict.1["error"]), (409, &"conflict".into()));
    let (status, _) = agent.ask("POST", "/v1/faults/a/renew", None);
    assert_eq!(status, 409, "it has no lease");
    agent.create(&base);
    let (status, problem) = agent.ask("POST", "/v1/faults", Some(&base));
    assert_eq!((status, &problem["error"]), (429, &"too-many".into()));
    assert_eq!(agent.active().len(), 2);
    let lines = agent.audited();
    let created = lines.iter().find(|line| line["status"] == 201).expect("it was created");
    assert_eq!((&created["by"], &created["uid"]), (&"unix".into(), &0.into()), "{created}");
    assert_eq!(created["fault"], "a");
    assert_eq!(created["target"], json!({"netns": lab.left.netns}));
    assert_eq!(created["faults"], "loss 100% for 60s");
    assert!(lines.iter().all(|line| line["method"] != "GET"), "{lines:?}");
    let refused = lines.iter().find(|line| line["status"] == 429).expect("it was refused");
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("2 faults")));
}

#[test]
fn faults_of_the_same_packets_act_independently() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let slots = || {
        let files = fs::read_dir("/run/injector").expect("it is there");
        let journals = files.flatten().filter(|file| {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            text.contains(&format!("\"pid\":{},", agent.child.id()))
        });
        journals.count()
    };
    assert_eq!(slots(), 1);
    let rule =
        |rule: Value| json!({"target": {"netns": lab.left.netns}, "rules": [rule], "for": "1m"});
    // The first two match the same packets, the third one others.
    let twice = agent
        .create(&rule(json!({"duplicate": "100%", "protocol": "icmp", "direction": "egress"})));
    let corrupt =
        agent.create(&rule(json!({"corrupt": "100%", "protocol": "icmp", "direction": "egress"})));
    assert_eq!(slots(), 3);
    agent.create(&rule(json!({"loss": "100%", "direction": "ingress", "protocol": "udp"})));
    assert_eq!(slots(), 3, "it shares an installation");
    assert!(!answers(&lab), "requests are corrupted");
    let name = |fault: &Value| fault["name"].as_str().expect("a name").to_owned();
    let twice = agent.delete(&name(&twice));
    let corrupt = agent.delete(&name(&corrupt));
    assert_eq!(number(&twice, "duplicated"), 3, "{twice}");
    assert!(number(&corrupt, "corrupted") >= 3, "{corrupt}");
    assert!(answers(&lab));
    assert_eq!(slots(), 2);
}

#[test]
fn a_fault_goes_on_where_it_was_when_others_come_and_go() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let request = |name: &str, rule: Value| json!({"name": name, "target": {"netns": lab.left.netns}, "rules": [rule], "for": "1m"});
    agent.create(&request("first", json!({"loss": "1%", "protocol": "sctp"})));
    agent.create(&request(
        "fifth",
        json!({"loss-every": "5", "protocol": "icmp", "direction": "egress"}),
    ));
    for round in 0..5 {
        lab.left.ping(None, lab.right.address(Family::V4), 4);
        match round {
            // Its rule moves to another index.
            2 => drop(agent.delete("first")),
            _ => drop(agent.create(&request(
                &format!("other{round}"),
                json!({"loss": "1%", "protocol": "udp", "remote-port": (1000 + round).to_string()}),
            ))),
        }
    }
    let ended = agent.delete("fifth");
    assert_eq!(number(&ended, "matched"), 20, "{ended}");
    assert_eq!(number(&ended, "dropped"), 4, "{ended}");
}

#[test]
fn many_faults_act_at_once_and_each_counts_its_own() {
    // Too slow on an emulated machine.
    let faults: u16 = if is_guest() { 24 } else { 256 };
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let port = |n: u16| 20_000 + n;
    let began = Instant::now();
    for n in 0..faults {
        agent.create(&json!({
            "name": format!("f{n}"),
            "target": {"netns": lab.left.netns},
            "rules": [{"loss": "100%", "direction": "egress", "remote-port": port(n).to_string(), "protocol": "udp"}],
            "lease": "2m",
        }));
    }
    println!("{faults} faults began in {:?}", began.elapsed());
    let at = lab.left.at(Family::V4, 0);
    let socket = lab.left.inside(|| UdpSocket::bind(at)).expect("the address is free");
    for n in 0..faults {
        for _ in 0..=n % 3 {
            socket.send_to(b"x", lab.right.at(Family::V4, port(n))).expect("it is sent");
        }
    }
    assert_eq!(agent.active().len(), usize::from(faults));
    // Counters stay correct while other faults start and end.
    let right = |n: u16, ended: &Value| {
        assert_eq!(ended["name"], format!("f{n}"));
        assert_eq!(number(ended, "dropped"), u64::from(n % 3 + 1), "{ended}");
    };
    for n in 0..faults / 2 {
        right(n, &agent.delete(&format!("f{n}")));
    }
    assert_eq!(agent.active().len(), usize::from(faults / 2));
    // The others end together.
    let mut events = agent.watch("/v1/events");
    events.wait_for("state");
    let began = Instant::now();
    agent.signal(Signal::SIGTERM);
    let mut left: Vec<u16> = (faults / 2..faults).collect();
    while !left.is_empty() {
        let ended = events.wait_for("ended");
        assert_eq!(ended["reason"], "stopped", "{ended}");
        let name = ended["name"].as_str().expect("a name");
        let n = name.trim_start_matches('f').parse().expect("a number");
        right(n, &ended);
        left.retain(|other| *other != n);
    }
    println!("{} faults ended in {:?}", faults / 2, began.elapsed());
    assert!(agent.stop().success());
}

/// The open files of a process by kind, and its memory in KiB.
fn held(pid: u32) -> (usize, usize, u64) {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let files: Vec<String> = files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .map(|path| path.display().to_string())
        .collect();
    let bpf = files.iter().filter(|file| file.contains("bpf")).count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    let memory = memory.trim().trim_end_matches(" kB").parse().expect("a number");
    (files.len(), bpf, memory)
}

/// The resources after the last connection is closed, once they have been stable for a while.
fn settled(pid: u32) -> (usize, usize, u64) {
    const STEADY: u32 = 10;
    let mut last = held(pid);
    let mut same = 0;
    wait_until(TIMEOUT, "the number of files is steady", || {
        thread::sleep(Duration::from_millis(30));
        let now = held(pid);
        same = if (now.0, now.1) == (last.0, last.1) { same + 1 } else { 0 };
        last = now;
        same == STEADY
    });
    last
}

/// Starts and ends faults. Every tenth is the only one, so that everything is created and removed.
fn cycle(agent: &Agent, lab: &Lab, cycles: u32) {
    let rules = json!([{"loss": "10%", "protocol": "udp"}]);
    let request = json!({"target": {"netns": lab.left.netns}, "rules": rules, "for": "1m"});
    let other = with(
        request.clone(),
        &json!({"name": "stays", "rules": [{"loss": "1%", "protocol": "tcp"}]}),
    );
    let request = with(request, &json!({"name": "cycle"}));
    for n in 0..cycles {
        match n % 10 {
            0 => drop(agent.create(&other)),
            9 => drop(agent.delete("stays")),
            _ => {}
        }
        agent.create(&request);
        agent.delete("cycle");
    }
}

fn cycles_leave_nothing(cycles: u32, warm_up: u32) {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    cycle(&agent, &lab, warm_up);
    let (files, bpf, memory) = settled(agent.child.id());
    let began = Instant::now();
    cycle(&agent, &lab, cycles);
    let took = began.elapsed();
    let after = settled(agent.child.id());
    println!(
        "{cycles} cycles in {took:?}: files, BPF files, KiB: {:?}, then {after:?}",
        (files, bpf, memory)
    );
    assert_eq!((after.0, after.1, bpf), (files, 0, 0));
    assert!(after.2 * 100 <= memory * 105, "{memory} KiB, then {} KiB", after.2);
    assert!(agent.stop().success());
}

#[test]
fn creating_and_deleting_leaves_nothing() {
    // Too slow on an emulated machine.
    let (cycles, warm_up) = if is_guest() { (20, 20) } else { (100, 50) };
    cycles_leave_nothing(cycles, warm_up);
}

#[test]
#[ignore = "takes minutes"]
fn creating_and_deleting_ten_thousand_times_leaves_nothing() {
    cycles_leave_nothing(10_000, 100);
}

/// The guardians of an agent, its only children.
fn guardians(agent: u32) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{agent}/task")).expect("it runs");
    let children = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .collect::<Vec<_>>()
        .join(" ");
    let pids = children.split_whitespace().map(|pid| pid.parse().expect("a number"));
    pids.map(Pid::from_raw).collect()
}

#[test]
fn a_killed_agent_leaves_nothing_and_the_next_one_serves_at_once() {
    const ROUNDS: usize = 4;
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let mut sleeper = lab.left.command("sleep", Some(&cgroup)).arg("600").spawn().expect("it runs");
    // All share a socket, which is removed with the first one dropped.
    let mut agents = vec![Agent::start(&lab.left)];
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let agent = &mut agents[round];
        let netns = json!({"netns": lab.left.netns});
        let delay = [json!({"delay": "1ms", "protocol": "udp"})];
        agent.create(&json!({"target": netns, "rules": delay, "lease": "1m"}));
        agent.create(&lost(&lab));
        let pause = json!({"pause": "30s"});
        agent
            .create(&json!({"target": {"cgroup": cgroup.path}, "processes": pause, "lease": "1m"}));
        wait_until(TIMEOUT, "paused", || cgroup.is_frozen());
        assert!(lab.left.run("ip -o link").contains("injhold"));
        assert!(!answers(&lab));
        // Every other time, the guardian is killed too: the journal is left for the next agent, or for an
        // injector that another test starts.
        let is_unguarded = round % 2 == 1;
        if is_unguarded {
            let guardians = guardians(agent.child.id());
            assert!(!guardians.is_empty());
            for guardian in guardians {
                kill(guardian, Signal::SIGKILL).expect("it is there");
            }
        }
        agent.signal(Signal::SIGKILL);
        agent.child.wait().expect("it ends");
        let killed = Instant::now();
        let restarted = Agent::with(&lab.left, agent.socket.clone(), &[]);
        assert_eq!(restarted.ask("GET", "/healthz", None).0, 200);
        times.push(killed.elapsed());
        assert!(restarted.active().is_empty());
        // The guardian may still be working, and then the next start leaves it the rest.
        wait_until(TIMEOUT, "the pause has ended", || !cgroup.is_frozen());
        assert!(!is_unguarded || killed.elapsed() < times[round] + Duration::from_secs(1));
        assert!(answers(&lab));
        wait_until(TIMEOUT, "the device is gone", || {
            !lab.left.run("ip -o link").contains("injhold")
        });
        agents.push(restarted);
    }
    println!("the API was back after {times:?}");
    // A busy machine is late sometimes but not mostly; an emulated one always is.
    times.sort();
    assert!(is_guest() || times[ROUNDS / 2 - 1] <= Duration::from_secs(1), "{times:?}");
    assert!(agents.pop().expect("it is there").stop().success());
    sleeper.kill().and_then(|()| sleeper.wait()).expect("it runs");
}

#[test]
fn sigterm_ends_faults_and_watchers_and_is_no_failure() {
    let lab = Lab::new();
    let notices = scratch_file();
    let notified = UnixDatagram::bind(&notices).expect("a socket");
    notified.set_read_timeout(Some(TIMEOUT)).expect("more than 0");
    let path = scratch_file();
    let mut command = Agent::command(&lab.left, &path, &[]);
    command.env("NOTIFY_SOCKET", &notices).env("WATCHDOG_USEC", "300000");
    // The agent blocks unless they are read.
    let (sender, heard) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut text = [0; 512];
        while let Ok(length) = notified.recv(&mut text) {
            let text = String::from_utf8_lossy(&text[..length]).trim().to_owned();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let mut agent = Agent::spawned(command, path, 1);
    let notice = || heard.recv_timeout(TIMEOUT).expect("in time");
    assert_eq!(notice(), "READY=1");
    assert_eq!(notice(), "WATCHDOG=1");
    // Only one agent can serve a socket.
    let second = Agent::command(&lab.left, &agent.socket, &[]).stderr(Stdio::piped()).output();
    let second = second.expect("it can be run");
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("serves"), "{second:?}");
    let mode = fs::metadata(&agent.socket).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut events = agent.watch("/v1/events");
    agent.create(&lost(&lab));
    events.wait_for("created");
    assert!(!answers(&lab));
    agent.signal(Signal::SIGTERM);
    assert_eq!(events.wait_for("ended")["reason"], "stopped");
    assert!(events.ends());
    assert!(agent.child.wait().expect("it ends").success());
    while notice() != "STOPPING=1" {}
    assert!(answers(&lab));
    assert!(!agent.socket.exists());
    fs::remove_file(notices).expect("it is there");
}

#[test]
fn processes_and_clocks_are_faulted_too() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let mut sleeper = lab.left.command("sleep", Some(&cgroup)).arg("60").spawn().expect("it runs");
    let agent = Agent::start(&lab.left);
    let target = json!({"cgroup": cgroup.path});
    agent.create(&json!({
        "name": "pauses",
        "target": target,
        "processes": {"pause": "50ms,every=100ms"},
        "for": "1m",
    }));
    let clock = json!({"target": target, "clocks": {"clock": "+1h"}, "lease": "1m"});
    let date = || -> u64 {
        let out = lab.left.command("date", Some(&cgroup)).arg("+%s").output().expect("coreutils");
        String::from_utf8_lossy(&out.stdout).trim().parse().expect("a number")
    };
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let has_vdso = vdso::check().is_ok();
    let has_clocks = has_vdso || clock_probe::refusal().is_none();
    if has_clocks {
        let wrong = agent.create(&with(clock.clone(), &json!({"name": "clock"})));
        assert_eq!(wrong["kinds"], json!(["clock"]));
        let (status, problem) = agent.ask("POST", "/v1/faults", Some(&clock));
        assert_eq!((status, &problem["error"]), (409, &"conflict".into()), "{problem}");
        let read = date();
        assert!((now + 3590..now + 3720).contains(&read), "{read}, {now}");
    } else {
        testbed::skip("no clock engine: only its refusal is tested");
        let (status, problem) = agent.ask("POST", "/v1/faults", Some(&clock));
        assert_eq!((status, &problem["error"]), (422, &"invalid".into()), "{problem}");
    }
    agent.wait_for("pauses", |fault| {
        fault["processes"]["pauses"]["done"].as_u64().is_some_and(|done| done >= 3)
    });
    if has_clocks {
        let clocks = &agent.delete("clock")["clocks"];
        // Probes alone fault new programs only: date(1), and not what sleeps.
        let (faulted, least) =
            if has_vdso { (&clocks["patched"], 2) } else { (&clocks["calls"]["vdso_hidden"], 1) };
        assert!(faulted.as_u64() >= Some(least), "{clocks}");
    }
    let ended = agent.delete("pauses");
    assert!(number(&ended["processes"]["pauses"], "done") >= 3, "{ended}");
    assert!(!cgroup.is_frozen());
    let read = date();
    assert!((now..now + 600).contains(&read), "{read}, {now}");
    sleeper.kill().and_then(|()| sleeper.wait()).expect("it runs");
}

#[test]
fn the_capabilities_of_the_unit_suffice() {
    let unit = include_str!("../../packaging/systemd/injector-agent.service");
    let named = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let named = named.expect("a line").to_lowercase();
    let set: Vec<String> =
        named.split_whitespace().map(|name| format!("+{}", &name["cap_".len()..])).collect();
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let mut sleeper = lab.left.command("sleep", Some(&cgroup)).arg("60").spawn().expect("it runs");
    let path = scratch_file();
    let mut command = lab.left.command("setpriv", None);
    command.arg(format!("--bounding-set=-all,{}", set.join(","))).arg("--no-new-privs");
    command.args([testbed::INJECTOR, "agent", "--socket"]).arg(&path);
    let agent = Agent::spawned(command, path, 1);
    let target = json!({"cgroup": cgroup.path});
    agent.create(&json!({"target": target, "rules": [{"delay": "1ms"}], "for": "1m"}));
    agent.create(&json!({"target": target, "rules": [{"loss": "1%"}], "for": "1m"}));
    if vdso::check().is_ok() || clock_probe::refusal().is_none() {
        agent.create(&json!({"target": target, "clocks": {"clock": "+1h"}, "for": "1m"}));
    }
    let processes = json!({"pause": "50ms,every=100ms", "kill": ["TERM,after=1000:fsync"]});
    agent.create(&json!({"name": "p", "target": target, "processes": processes, "for": "1m"}));
    agent.wait_for("p", |fault| fault["processes"]["pauses"]["done"].as_u64() >= Some(2));
    assert!(agent.stop().success());
    sleeper.kill().and_then(|()| sleeper.wait()).expect("it runs");
}

#[test]
fn inject_has_an_agent_do_it() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let line = format!(
        "--agent {} --netns {} --loss 100% --direction egress --protocol icmp",
        agent.socket.display(),
        lab.left.netns
    );
    let injector = testbed::Injector::start(&lab.left, &line);
    assert_eq!(injector.started["rules"][0]["name"], "loss 100%");
    assert_eq!(agent.active().len(), 1);
    assert!(!answers(&lab));
    let list = lab.left.run(&format!(
        "{} list --output json --agent {}",
        testbed::INJECTOR,
        agent.socket.display()
    ));
    let listed = testbed::output::lines(&list);
    let fault = listed.iter().find(|line| line["phase"] == "active").expect("it is listed");
    // The same as in the events of the command, which has the target's title as well.
    let title = format!("network namespace {}", lab.left.netns);
    assert_eq!((&fault["title"], &fault["target"]), (&json!(title), &injector.started["target"]));
    assert_eq!(fault["rules"], injector.started["rules"]);
    assert_eq!(fault["rules"][0]["match"], "icmp, sent");
    let summary = injector.stop();
    assert_eq!((summary.total.dropped, summary.rules.len()), (3, 1));
    assert!(answers(&lab));
    assert!(agent.active().is_empty());
    // Errors have the same text as without an agent.
    let refused = testbed::Injector::command(&lab.left, "--agent x --netns y --loss 101%").output();
    assert_eq!(refused.expect("it runs").status.code(), Some(2));
    let refused =
        testbed::Injector::command(&lab.left, "--agent /nonexistent --netns y --loss 1%").output();
    let refused = refused.expect("it runs");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cannot reach an agent"));
}

/// Checks a page of metrics by promtool.
fn prometheus_accepts(page: &str) {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match promtool {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && is_guest() => {
            println!("there is no promtool in a virtual machine: the page is not checked by it");
            return;
        }
        promtool => promtool.expect("promtool is there: scripts/setup installs prometheus"),
    };
    std::io::Write::write_all(&mut promtool.stdin.take().expect("piped"), page.as_bytes())
        .expect("it reads");
    let checked = promtool.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&checked.stderr).into_owned()
        + &String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && text.is_empty(), "{text}\n{page}");
}

#[test]
fn delays_are_counted_by_direction_and_by_how_long_they_are() {
    const PINGS: u32 = 20;
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let rules = json!([
        {"delay": "20ms", "direction": "egress", "protocol": "icmp"},
        {"delay": "5ms", "direction": "ingress", "protocol": "icmp"},
        {"delay": "5ms,jitter=2ms", "protocol": "udp"},
    ]);
    agent.create(
        &json!({"name": "slow", "target": {"netns": lab.left.netns}, "rules": rules, "for": "2m"}),
    );
    let (_, page) = agent.raw("GET", "/metrics", "", b"");
    assert!(!page.contains("injector_fault_delay_seconds"), "nothing was held yet:\n{page}");
    assert_eq!(lab.left.ping(None, lab.right.address(Family::V4), PINGS), u64::from(PINGS));
    let all = u64::from(2 * PINGS);
    let fault = agent.wait_for("slow", |fault| fault["delayed"] == all);
    assert_eq!(number(&fault, "matched"), all, "{fault}");
    let (_, page) = agent.raw("GET", "/metrics", "", b"");
    prometheus_accepts(&page);
    let sample = |name: &str, labels: &str| -> &str {
        let start = format!("injector_fault_delay_seconds_{name}{{{labels}}} ");
        let found = page.lines().find_map(|line| line.strip_prefix(&start));
        found.unwrap_or_else(|| panic!("no {start} in\n{page}"))
    };
    for (rule, direction, ms, bounds) in
        [(0, "egress", 20.0, ["0.016", "0.024"]), (1, "ingress", 5.0, ["0.004", "0.006"])]
    {
        let labels = format!("direction=\"{direction}\",fault=\"slow\"");
        let [below, above] =
            bounds.map(|bound| sample("bucket", &format!("{labels},le=\"{bound}\"")));
        let pings = PINGS.to_string();
        assert_eq!((below, above), ("0", &*pings), "{direction}:\n{page}");
        assert_eq!(sample("bucket", &format!("{labels},le=\"+Inf\"")), pings);
        assert_eq!(sample("count", &labels), pings);
        // Delays are exact to the nanosecond.
        let sum: f64 = sample("sum", &labels).parse().expect("a number");
        assert!((sum - f64::from(PINGS) * ms / 1e3).abs() < 1e-6, "{direction}:\n{page}");
        let delay = &fault["rules"][rule]["delay"];
        assert_eq!(delay.as_object().expect("a map").len(), 1, "one direction: {fault}");
        assert_eq!(&fault["delay"][direction], &delay[direction]);
        assert_eq!(number(&delay[direction], "count"), u64::from(PINGS), "{fault}");
        let up_to = delay[direction]["buckets"][0]["up_to_ms"].as_f64().expect("a number");
        for part in ["min_ms", "p50_ms", "p99_ms", "max_ms"] {
            let told = delay[direction][part].as_f64().expect("a number");
            assert!((told - ms).abs() < 0.01 * ms && told <= up_to, "{part}: {fault}");
        }
    }
    assert_eq!(fault["rules"][2].get("delay"), None, "it held nothing");
    // Another fault changes the indexes of rules. Their counters stay.
    agent.create(&with(
        lost(&lab),
        &json!({"name": "other", "rules": [{"loss": "1%", "protocol": "tcp"}]}),
    ));
    assert_eq!(lab.left.ping(None, lab.right.address(Family::V4), PINGS), u64::from(PINGS));
    let ended = agent.delete("slow");
    assert_eq!(number(&ended["delay"]["egress"], "count"), all, "{ended}");
    assert_eq!(ended["delay"]["ingress"]["buckets"], json!([{"up_to_ms": 6.0, "count": all}]));
    let (_, page) = agent.raw("GET", "/metrics", "", b"");
    assert!(!page.contains("injector_fault_delay_seconds"), "{page}");
}

#[test]
fn metrics_are_such_as_prometheus_reads() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    agent.create(&with(lost(&lab), &json!({"name": "cut"})));
    assert!(!answers(&lab));
    agent.wait_for("cut", |fault| fault["dropped"] == 3);
    agent.ask("GET", "/nothing", None);
    let (status, page) = agent.raw("GET", "/metrics", "", b"");
    assert_eq!(status, 200);
    for line in [
        "injector_fault_packets_total{action=\"dropped\",fault=\"cut\"} 3",
        "injector_fault_matched_packets_total{direction=\"egress\",fault=\"cut\"} 3",
        "injector_fault_matched_packets_total{direction=\"ingress\",fault=\"cut\"} 0",
        "injector_packets_total{action=\"dropped\"} 3",
        "injector_active_faults{kind=\"network\"} 1",
        "injector_lease_expiries_total 0",
        "injector_errors_total{error=\"not-found\"} 1",
    ] {
        assert!(page.lines().any(|is| is == line), "no {line} in\n{page}");
    }
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
        assert!(page.contains(name), "no {name} in\n{page}");
    }
    prometheus_accepts(&page);
    // Counters of ended faults stay.
    agent.delete("cut");
    let (_, page) = agent.raw("GET", "/metrics", "", b"");
    assert!(page.contains("injector_packets_total{action=\"dropped\"} 3"), "{page}");
    assert!(page.contains("injector_faults_ended_total{reason=\"deleted\"} 1"), "{page}");
    assert!(!page.contains("fault=\"cut\""), "{page}");
}

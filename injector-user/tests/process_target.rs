//! Single processes as targets: their sockets, children and grandchildren, and nobody else's.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use nix::sys::signal::Signal;
use testbed::{
    FAMILIES, Family, Host, Injector, Lab, Process, RuleFile, TestCgroup, bpf, program, wait_until,
};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Where the peer answers.
const ECHO: u16 = 7000;

/// Where victim and neighbour listen.
const LISTEN: [u16; 2] = [8001, 8002];

/// A process of `testbed/src/bin/subject.rs`.
struct Subject(Process);

impl Subject {
    fn start(host: &Host, cgroup: Option<&TestCgroup>) -> Self {
        let mut process = Process::start(host.command(program("subject"), cgroup));
        process.wait_for("ready");
        Self(process)
    }

    /// Whether it could do that.
    fn does(&mut self, line: &str) -> bool {
        self.0.tell(line);
        self.0.wait_for("done")["ok"].as_bool().expect("an answer")
    }

    fn must(&mut self, line: &str) {
        assert!(self.does(line), "{line}");
    }

    fn pid(&self) -> i32 {
        self.0.pid().as_raw()
    }
}

/// A peer, and two processes of one cgroup in the other namespace.
struct Stage {
    lab: Lab,
    _peer: Subject,
    victim: Subject,
    neighbour: Subject,
    family: Family,
}

impl Stage {
    /// Both have a TCP connection, a UDP socket and a listener from before.
    fn new(family: Family, cgroup: Option<&TestCgroup>) -> Self {
        let lab = Lab::new();
        let mut peer = Subject::start(&lab.right, None);
        peer.must(&format!("serve {}", lab.right.at(family, ECHO)));
        let start = |port| {
            let mut subject = Subject::start(&lab.left, cgroup);
            let echo = lab.right.at(family, ECHO);
            subject.must(&format!("connect {echo}"));
            subject.must(&format!("open {echo}"));
            subject.must(&format!("listen {}", lab.left.at(family, port)));
            subject
        };
        let [victim, neighbour] = LISTEN.map(start);
        Self { lab, _peer: peer, victim, neighbour, family }
    }

    fn echo(&self) -> SocketAddr {
        self.lab.right.at(self.family, ECHO)
    }

    /// Faults the victim alone.
    fn inject(&self, line: &str) -> Injector {
        Injector::start(&self.lab.right, &format!("--pid {} {line}", self.victim.pid()))
    }

    /// What each of both can do with old and new sockets, its own and its children's.
    fn attempts(&mut self) -> Vec<(String, bool, bool)> {
        let echo = self.echo();
        let lines = [
            "tcp 0".to_owned(),
            "udp 0".into(),
            format!("new-tcp {echo}"),
            format!("new-udp {echo}"),
            format!("fork new-udp {echo}"),
            format!("child new-tcp {echo}"),
            format!("child child new-udp {echo}"),
            format!("fork fork new-tcp {echo}"),
        ];
        let attempt = |line: String| {
            let victim = self.victim.does(&line);
            let neighbour = self.neighbour.does(&line);
            (line, victim, neighbour)
        };
        lines.into_iter().map(attempt).collect()
    }

    /// Whether a peer can connect to a listener.
    fn connects(&self, port: u16) -> Option<TcpStream> {
        let at = self.lab.left.at(self.family, port);
        let connect = || TcpStream::connect_timeout(&at, Duration::from_millis(500)).ok();
        self.lab.right.inside(connect)
    }
}

/// Asserts that the victim can do nothing and the neighbour everything, or both everything.
fn assert_faulted(stage: &mut Stage, is_faulted: bool) {
    for (line, victim, neighbour) in stage.attempts() {
        assert!(neighbour, "the neighbour: {line}");
        assert_eq!(victim, !is_faulted, "the victim: {line}");
    }
}

/// A file that is not there yet.
fn signal_file() -> RuleFile {
    RuleFile { path: testbed::scratch_file() }
}

/// Moves a process of the test into the root cgroup, where the machine's own may be too.
fn move_to_root(pid: i32) {
    let procs = testbed::hierarchy().join("cgroup.procs");
    fs::write(procs, pid.to_string()).expect("the root takes any process");
}

#[test]
fn a_process_and_what_it_starts_are_faulted_in_the_root_cgroup_and_its_neighbours_are_not() {
    for family in FAMILIES {
        for direction in ["egress", "ingress"] {
            let mut stage = Stage::new(family, None);
            for subject in [&stage.victim, &stage.neighbour] {
                move_to_root(subject.pid());
            }
            let injector = stage.inject(&format!("--loss 100% --direction {direction}"));
            assert_faulted(&mut stage, true);
            assert!(stage.connects(LISTEN[0]).is_none(), "its listener answers");
            assert!(stage.connects(LISTEN[1]).is_some(), "the neighbour's does not");
            let summary = injector.stop();
            assert_eq!(summary.total.matched, summary.total.dropped);
            assert!(stage.victim.does("udp 0"), "still faulted");
            assert_faulted_after(&mut stage);
        }
    }
}

/// Connections that lost packets recover by themselves, later; new ones are as good as any.
fn assert_faulted_after(stage: &mut Stage) {
    let echo = stage.echo();
    for line in [format!("new-tcp {echo}"), format!("child new-udp {echo}")] {
        stage.victim.must(&line);
    }
}

#[test]
fn a_process_is_faulted_in_a_cgroup_that_it_shares() {
    let cgroup = TestCgroup::new();
    let mut stage = Stage::new(Family::V4, Some(&cgroup));
    let injector = stage.inject("--loss 100%");
    assert_faulted(&mut stage, true);
    drop(injector.stop());
    assert_faulted_after(&mut stage);
}

#[test]
fn what_a_listener_accepts_is_faulted_even_if_it_waited_to_be_accepted() {
    let mut stage = Stage::new(Family::V4, None);
    let before = [0, 1].map(|number| stage.connects(LISTEN[number]).expect("not faulted yet"));
    let injector = stage.inject("--loss 100% --direction egress --tcp-flags psh");
    let after = [0, 1].map(|number| stage.connects(LISTEN[number]).expect("no data is sent yet"));
    for (which, streams) in [("before", before), ("after", after)] {
        for (number, mut stream) in streams.into_iter().enumerate() {
            let subject = if number == 0 { &mut stage.victim } else { &mut stage.neighbour };
            subject.must("accept");
            // Such a socket is found at the next look.
            std::thread::sleep(Duration::from_millis(if which == "before" { 1500 } else { 0 }));
            stream.write_all(b"hello").expect("it is connected");
            // The first is the connection to the peer.
            subject.must(if which == "before" { "answer 1" } else { "answer 2" });
            stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a time");
            let has_answered = stream.read_exact(&mut [0; 5]).is_ok();
            assert_eq!(has_answered, number == 1, "{which}, {number}");
        }
    }
    drop(injector.stop());
}

#[test]
fn nothing_stays_after_sigkill() {
    let mut stage = Stage::new(Family::V4, None);
    let injector = stage.inject("--loss 100%");
    let pid = injector.process.pid();
    assert!(!stage.victim.does("udp 0"));
    let links = bpf::all_links(pid.as_raw());
    assert!(links.len() >= 3, "{links:?}");
    injector.process.signal(Signal::SIGKILL);
    wait_until(TIMEOUT, "its end", || {
        testbed::state(pid.as_raw().cast_unsigned()) == '-'
            || testbed::state(pid.as_raw().cast_unsigned()) == 'Z'
    });
    wait_until(TIMEOUT, "traffic again", || stage.victim.does("udp 0"));
    assert_faulted_after(&mut stage);
}

#[test]
fn the_end_of_a_process_is_told_and_final() {
    let mut stage = Stage::new(Family::V4, None);
    let mut injector = stage.inject("--loss 100% --for 1m");
    // A child that outlives it is faulted on.
    let signal = signal_file();
    stage.victim.must(&format!("start once-there {}", signal.path.display()));
    stage.victim.0.signal(Signal::SIGKILL);
    for _ in 0..2 {
        let mut events = std::iter::from_fn(|| injector.process.next());
        let next = events.find(|event| event["event"] != "attached").expect("it runs");
        assert_eq!(next["event"], "progress", "{next}");
    }
    signal.write("now");
    let gone = injector.process.wait_for("gone");
    assert_eq!(gone["final"], true, "{gone}");
    assert_eq!(gone["title"], format!("process {}", stage.victim.pid()), "{gone}");
    drop(injector);
}

#[test]
fn an_echo_request_of_a_child_gets_no_answer() {
    let mut stage = Stage::new(Family::V4, None);
    let ping = format!("run ping -c 1 -W 0.5 {}", stage.lab.right.address(Family::V4));
    for direction in ["egress", "ingress"] {
        let injector = stage.inject(&format!("--loss 100% --direction {direction}"));
        assert!(!stage.victim.does(&ping), "{direction}");
        assert!(stage.neighbour.does(&ping), "{direction}");
        assert_eq!(injector.stop().total.dropped, 1);
    }
    stage.victim.must(&ping);
}

#[test]
fn the_last_answers_of_a_closed_connection_are_faulted() {
    const LAST_ACK: &str = "09";
    let mut stage = Stage::new(Family::V4, None);
    let injector =
        stage.inject("--loss 100% --direction egress --tcp-flags ack,!syn,!fin,!psh,!rst");
    // Their peers send their FIN again and again until it is acknowledged in TIME_WAIT.
    stage.victim.must("close 0");
    stage.neighbour.must("close 0");
    std::thread::sleep(Duration::from_secs(2));
    let table = stage.lab.right.run("cat /proc/self/net/tcp");
    let waiting = table.lines().filter(|line| line.split_whitespace().nth(3) == Some(LAST_ACK));
    assert_eq!(waiting.count(), 1, "{table}");
    let summary = injector.stop();
    assert!(summary.total.dropped >= 3, "{summary:?}");
}

#[test]
fn subflows_of_multipath_tcp_are_faulted() {
    let stage = Stage::new(Family::V4, None);
    let at = stage.lab.right.at(Family::V4, 9000);
    if fs::read_to_string("/proc/sys/net/mptcp/enabled").is_err() {
        testbed::skip("this kernel has no MPTCP");
        return;
    }
    let _server = testbed::serve(&stage.lab.right, None, &format!("tcp-serve --bind {at} --mptcp"));
    for (is_faulted, direction) in [(true, "egress"), (true, "ingress"), (false, "egress")] {
        let line = format!("tcp-connect --to {at} --mptcp --bytes 100000 --hold --timeout-ms 500");
        let mut client = testbed::serve(&stage.lab.left, None, &line);
        let pid = if is_faulted { client.pid().as_raw() } else { stage.victim.pid() };
        let line = format!("--pid {pid} --loss 100% --direction {direction}");
        let injector = Injector::start(&stage.lab.right, &line);
        client.tell("go");
        std::thread::sleep(Duration::from_secs(1));
        drop(client);
        assert_eq!(injector.stop().total.dropped > 0, is_faulted, "{direction}");
    }
}

#[test]
fn a_child_is_followed_into_another_namespace() {
    let lab = Lab::new();
    let mut peer = Subject::start(&lab.left, None);
    let at = lab.left.at(Family::V4, ECHO);
    peer.must(&format!("serve {at}"));
    let mut victim = Subject::start(&lab.left, None);
    let line = format!("--pid {} --loss 100%", victim.pid());
    let mut injector = Injector::start(&lab.right, &line);
    let program = program("subject");
    let (netns, program) = (&lab.right.netns, program.display());
    let signal = signal_file();
    let file = signal.path.display();
    victim.must(&format!(
        "spawn ip netns exec {netns} {program} once once-there {file} new-udp {at}"
    ));
    let attached = injector.process.wait_for("attached");
    assert_eq!(attached["attached"][0]["interface"], "lo", "{attached}");
    signal.write("now");
    assert!(!victim.does("end"));
    assert!(injector.stop().total.dropped > 0);
}

#[test]
fn processes_are_found_by_name_and_counted() {
    let mut stage = Stage::new(Family::V4, None);
    let name = testbed::unique();
    stage.victim.must(&format!("rename {name}"));
    // The kernel keeps 15 bytes.
    for named in [name.clone(), format!("/^{}$/", &name[..name.len().min(15)])] {
        let injector = Injector::start(&stage.lab.right, &format!("--process {named} --loss 100%"));
        let title = injector.started["title"].as_str().expect("a title");
        assert!(title.contains(&format!("1 process named {named}")), "{title}");
        assert!(!stage.victim.does("udp 0"));
        assert!(stage.neighbour.does("udp 0"));
        drop(injector.stop());
    }
    stage.neighbour.must(&format!("rename {name}"));
    let injector = Injector::start(&stage.lab.right, &format!("--process {name} --loss 100%"));
    let title = injector.started["title"].as_str().expect("a title");
    assert!(title.contains(&format!("2 processes named {name}")), "{title}");
    assert!(!stage.victim.does("udp 0"));
    assert!(!stage.neighbour.does("udp 0"));
    drop(injector.stop());
    let pids = [stage.victim.pid(), stage.neighbour.pid()].map(|pid| format!("--pid {pid}"));
    let injector = Injector::start(&stage.lab.right, &format!("{} --loss 100%", pids.join(" ")));
    assert!(!stage.victim.does("udp 0"));
    assert!(!stage.neighbour.does("udp 0"));
    drop(injector.stop());
}

#[test]
fn a_process_that_is_named_twice_is_one() {
    let stage = Stage::new(Family::V4, None);
    let pid = stage.victim.pid();
    let injector = stage.inject(&format!("--pid {pid} --loss 0%"));
    let title = injector.started["title"].as_str().expect("text").to_owned();
    assert_eq!(title, format!("process {pid} and what it starts"));
    injector.stop();
}

#[test]
fn a_name_can_be_restricted_to_a_cgroup() {
    let cgroup = TestCgroup::new();
    let lab = Lab::new();
    let [inside, outside] = [Some(&cgroup), None].map(|cgroup| Subject::start(&lab.left, cgroup));
    let line = format!("--cgroup {} --process subject --loss 100%", cgroup.path.display());
    let injector = Injector::start(&lab.right, &line);
    let title = injector.started["title"].as_str().expect("a title");
    assert!(title.contains("1 process of the cgroup named subject"), "{title}");
    drop(injector.stop());
    let line = format!("--cgroup {} --process subject --kill at=10ms", cgroup.path.display());
    let injector = Injector::start(&lab.right, &line);
    testbed::wait_for_state(inside.pid().cast_unsigned(), 'Z');
    drop(injector.stop());
    assert_eq!(testbed::state(outside.pid().cast_unsigned()), 'S');
}

#[test]
fn children_that_run_already_are_faulted_with_tree_only() {
    let mut stage = Stage::new(Family::V4, None);
    let echo = stage.echo();
    for (option, is_faulted) in [("", false), ("--tree", true)] {
        let signal = signal_file();
        stage.victim.must(&format!("start once-there {} new-udp {echo}", signal.path.display()));
        let injector = stage.inject(&format!("{option} --loss 100%"));
        signal.write("now");
        assert_eq!(stage.victim.does("end"), !is_faulted, "{option}");
        drop(injector.stop());
    }
}

#[test]
fn clocks_are_wrong_for_the_process_and_what_it_starts_only() {
    let mut stage = Stage::new(Family::V4, None);
    let injector = stage.inject("--clock +1h");
    let engines = injector.started["clock_engines"].as_array().expect("a list");
    // Where only the probes are available, running programs read the true time from their vDSO.
    let is_patched = engines.iter().any(|engine| engine == "vdso");
    let old: &[&str] = if is_patched { &["skewed", "fork skewed"] } else { &[] };
    for line in old.iter().chain(&["child skewed", "child child skewed"]) {
        let line = format!("{line} {}", testbed::scratch_file().display());
        assert!(stage.victim.does(&line), "{line}");
        assert!(!stage.neighbour.does(&line), "{line}");
    }
    let summary = injector.stop();
    assert_eq!(summary.total.matched, 0);
    assert!(!stage.victim.does(&format!("skewed {}", testbed::scratch_file().display())));
}

#[test]
fn pauses_stop_the_process_and_what_it_starts_only() {
    let mut stage = Stage::new(Family::V4, None);
    let pid = |subject: &Subject| subject.pid().cast_unsigned();
    let (victim, neighbour) = (pid(&stage.victim), pid(&stage.neighbour));
    let injector = stage.inject("--pause 1s,every=3s --for 1m");
    stage.victim.must("spawn sleep 60");
    stage.neighbour.must("spawn sleep 60");
    let [child, other] = [victim, neighbour].map(child_of);
    testbed::wait_for_state(victim, 'T');
    testbed::wait_for_state(child, 'T');
    assert_eq!([neighbour, other].map(testbed::state), ['S', 'S']);
    testbed::wait_for_state(victim, 'S');
    testbed::wait_for_state(child, 'S');
    drop(injector);
}

fn child_of(pid: u32) -> u32 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).expect("it runs");
    children.trim().parse().expect("one child")
}

#[test]
fn calls_fail_for_the_process_and_what_it_starts_only() {
    let mut stage = Stage::new(Family::V4, None);
    let path = format!("/tmp/{}", testbed::unique());
    let line = format!("--errno openat=EIO,path={path}");
    let line = format!("--pid {} {line}", stage.victim.pid());
    let output = Injector::command(&stage.lab.right, &format!("{line} --for 1ms")).output();
    if !output.expect("it runs").status.success() {
        testbed::skip("no engine lets system calls fail");
        return;
    }
    let injector = Injector::start(&stage.lab.right, &line);
    for line in ["skewed", "fork skewed", "child skewed"] {
        stage.neighbour.does(&format!("{line} {path}"));
        stage.victim.does(&format!("{line} {path}"));
    }
    injector.process.signal(Signal::SIGTERM);
    let summary = injector.process.finish();
    assert_eq!(summary["processes"]["errnos"][0]["failed"], 3, "{summary}");
}

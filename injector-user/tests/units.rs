//! Units of systemd as targets, in cgroups as systemd makes them: found by name, followed across
//! restarts, with the sockets that systemd passes.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    thread,
    time::Duration,
};

use serde_json::json;
use testbed::{
    FAMILIES, Family, Host, INJECTOR, Injector, Lab, Process, RuleFile, TestCgroup, agent::Agent,
    program, unique, wait_until,
};

const TIMEOUT: Duration = Duration::from_mins(1);

/// Where the peer answers.
const ECHO: u16 = 7000;

/// Where services listen.
const LISTEN: u16 = 8000;

/// A unit of the test, with a process.
struct Unit {
    subject: Process,
    cgroup: TestCgroup,
}

impl Unit {
    /// Starts a service, perhaps with a socket that it is passed.
    fn start(host: &Host, cgroup: TestCgroup, listener: Option<&TcpListener>) -> Self {
        let mut command = host.command(program("subject"), Some(&cgroup));
        if let Some(listener) = listener {
            let socket = listener.as_raw_fd();
            command.env("LISTEN_FDS", "1");
            // SAFETY: only system calls are made, which are async-signal-safe.
            unsafe {
                command.pre_exec(move || {
                    // If it is 3 already, dup2 leaves it as it is: closed on exec.
                    match (libc::dup2(socket, 3), libc::fcntl(3, libc::F_SETFD, 0)) {
                        (3, 0) => Ok(()),
                        _ => Err(std::io::Error::last_os_error()),
                    }
                });
            }
        }
        let mut subject = Process::start(command);
        subject.wait_for("ready");
        Self { subject, cgroup }
    }

    /// Whether it could do that.
    fn does(&mut self, line: &str) -> bool {
        self.subject.tell(line);
        self.subject.wait_for("done")["ok"].as_bool().expect("an answer")
    }

    /// Waits until a client that connects to its listener gets an answer.
    #[track_caller]
    fn must_answer(&mut self, client: &Host, to: SocketAddr) {
        wait_until(TIMEOUT, "the service answers", || self.answers(client, to));
    }

    /// Whether a client that connects to its listener gets an answer.
    fn answers(&mut self, client: &Host, to: SocketAddr) -> bool {
        thread::scope(|scope| {
            let asked = scope.spawn(|| client.inside(|| ask(to).is_ok()));
            // An earlier client may have gone before it was accepted.
            while !asked.is_finished() {
                self.does("reply");
            }
            asked.join().expect("it does not panic")
        })
    }
}

fn ask(to: SocketAddr) -> std::io::Result<()> {
    const ANSWER: Duration = Duration::from_millis(500);
    let mut stream = TcpStream::connect_timeout(&to, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])
}

/// A slice of the test's own, and a name for a unit that no other test uses.
struct Slice {
    cgroup: TestCgroup,
    name: String,
}

impl Slice {
    fn new() -> Self {
        // A dash would make it a child of another slice.
        let name = unique().replace('-', "_");
        Self { cgroup: TestCgroup::named(&format!("{name}.slice")), name }
    }

    /// The cgroup of a unit, whose name begins with that of the test.
    fn unit(&self, rest: &str) -> TestCgroup {
        self.cgroup.child(&format!("{}{rest}", self.name))
    }
}

/// A peer that answers.
fn peer(lab: &Lab) -> Process {
    let mut peer = Process::start(lab.right.command(program("subject"), None));
    peer.wait_for("ready");
    for family in FAMILIES {
        peer.tell(&format!("serve {}", lab.right.at(family, ECHO)));
        peer.wait_for("done");
    }
    peer
}

/// What injector says on standard error, and its exit code.
fn said(lab: &Lab, line: &str) -> (i32, String) {
    let output = Injector::command(&lab.right, line).output().expect("it runs");
    (output.status.code().expect("a code"), String::from_utf8_lossy(&output.stderr).into())
}

#[test]
fn a_unit_is_faulted_with_sockets_that_it_was_passed() {
    let lab = Lab::new();
    let slice = Slice::new();
    for (number, (family, direction)) in
        [(Family::V4, "egress"), (Family::V4, "ingress"), (Family::V6, "both")]
            .into_iter()
            .enumerate()
    {
        let ports = [0, 1].map(|other| LISTEN + 2 * number as u16 + other);
        let [mut service, mut neighbour] = ports.map(|port| {
            let at = lab.left.at(family, port);
            // The test is systemd: the socket is of its cgroup.
            let listener = lab.left.inside(|| TcpListener::bind(at).expect("it is free"));
            let cgroup = slice.unit(&format!("{port}.service"));
            Unit::start(&lab.left, cgroup, Some(&listener))
        });
        let [at, neighbours] = ports.map(|port| lab.left.at(family, port));
        service.must_answer(&lab.right, at);
        let target = format!("{}{}", slice.name, ports[0]);
        // By the cgroup alone, the socket is not matched.
        let path = service.cgroup.path.display().to_string();
        let mut injector = Injector::start(
            &lab.left,
            &format!("--cgroup {path} --loss 100% --direction {direction}"),
        );
        service.must_answer(&lab.right, at);
        let warning = injector.process.wait_for_warning("1 socket of cgroup ");
        assert!(warning.contains("use --unit"), "{warning}");
        drop(injector.stop());

        let injector = Injector::start(
            &lab.left,
            &format!("--unit {target} --loss 100% --direction {direction}"),
        );
        let title = injector.started["title"].as_str().expect("a title").to_owned();
        assert!(title.starts_with(&format!("unit {target}.service")), "{title}");
        assert!(!service.answers(&lab.right, at), "{family:?} {direction}");
        neighbour.must_answer(&lab.right, neighbours);
        let summary = injector.stop();
        assert!(summary.total.dropped > 0);
        assert_eq!(summary.total.matched, summary.total.dropped);
        service.must_answer(&lab.right, at);
    }
}

#[test]
fn a_passed_socket_is_faulted_in_its_own_network_namespace() {
    let lab = Lab::new();
    let slice = Slice::new();
    let at = lab.left.at(Family::V4, LISTEN);
    let listener = lab.left.inside(|| TcpListener::bind(at).expect("it is free"));
    // As with PrivateNetwork=yes.
    let mut service = Unit::start(&lab.right, slice.unit(".service"), Some(&listener));
    let line =
        format!("--unit {} --loss 100% --direction egress --local-port {LISTEN}", slice.name);
    let injector = Injector::start(&lab.right, &line);
    assert!(!service.answers(&lab.right, at));
    let summary = injector.stop();
    assert!(summary.total.dropped > 0, "{summary:?}");
    service.must_answer(&lab.right, at);
}

#[test]
fn a_unit_is_followed_when_it_is_restarted() {
    let lab = Lab::new();
    let slice = Slice::new();
    let _peer = peer(&lab);
    let to = lab.right.at(Family::V4, ECHO);
    let at = lab.left.at(Family::V4, LISTEN);
    let listener = lab.left.inside(|| TcpListener::bind(at).expect("it is free"));
    let mut service = Unit::start(&lab.left, slice.unit("@a.service"), Some(&listener));
    let mut injector =
        Injector::start(&lab.left, &format!("--unit {}@a --loss 100% --for 5m", slice.name));
    for _ in 0..2 {
        assert!(!service.does(&format!("new-udp {to}")));
        assert!(!service.answers(&lab.right, at));
        drop(service);
        let gone = injector.process.wait_for("gone");
        assert_eq!(gone["title"], format!("unit {}@a.service", slice.name), "{gone}");
        assert_ne!(gone["final"], true, "{gone}");
        service = Unit::start(&lab.left, slice.unit("@a.service"), Some(&listener));
        injector.process.wait_for("followed");
    }
    assert!(!service.does(&format!("new-udp {to}")));
    assert!(!service.answers(&lab.right, at));
    drop(injector.stop());
    assert!(service.does(&format!("new-udp {to}")));
    service.must_answer(&lab.right, at);
}

#[test]
fn units_of_users_are_found_and_told_apart() {
    let lab = Lab::new();
    let slice = Slice::new();
    let _peer = peer(&lab);
    let to = lab.right.at(Family::V4, ECHO);
    let users = [4_242_421, 4_242_422];
    // user.slice is the system's; a slice within the test's serves as well.
    let mut above = Vec::new();
    let mut units = users.map(|user| {
        let manager = slice.cgroup.child(&format!("user@{user}.service"));
        let app = manager.child("app.slice");
        let unit = app.child(&format!("{}.service", slice.name));
        // In the order in which they are removed.
        above.extend([app, manager]);
        Unit::start(&lab.left, unit, None)
    });
    let name = &slice.name;
    let (code, error) = said(&lab, &format!("--unit {name} --loss 100%"));
    assert_eq!(code, 1, "{error}");
    let list = users.map(|user| format!("{user}/{name}.service")).join(", ");
    assert!(error.contains(&list), "{error}");

    let injector = Injector::start(&lab.left, &format!("--unit {}/{name} --loss 100%", users[1]));
    assert!(units[0].does(&format!("new-udp {to}")));
    assert!(!units[1].does(&format!("new-udp {to}")));
    drop(injector.stop());
    // Processes of a unit.
    assert!(units[1].does("rename inj-renamed"));
    let line = format!("--unit {}/{name} --process inj-renamed --loss 100%", users[1]);
    let injector = Injector::start(&lab.left, &line);
    assert!(units[0].does(&format!("new-udp {to}")));
    assert!(!units[1].does(&format!("new-udp {to}")));
    drop(injector.stop());
    let (code, error) =
        said(&lab, &format!("--unit {}/{name} --process inj-renamed --loss 100%", users[0]));
    assert_eq!(code, 1, "{error}");
    assert!(error.contains(&format!("of unit {}/{name}.service", users[0])), "{error}");
    drop(units);
    drop(above);
}

#[test]
fn the_addresses_of_a_unit_are_those_of_a_peer() {
    let lab = Lab::new();
    let slice = Slice::new();
    let _service = Unit::start(&lab.right, slice.unit("db.service"), None);
    let line = format!("--interface veth0 --remote unit:{}db --loss 100%", slice.name);
    let peer = lab.right.address(Family::V4);
    let injector = Injector::start(&lab.left, &line);
    assert_eq!(lab.left.ping(None, peer, 3), 0);
    let summary = injector.stop();
    assert!(summary.total.dropped > 0, "{summary:?}");
    assert_eq!(lab.left.ping(None, peer, 3), 3);
}

#[test]
fn a_unit_that_does_not_run_is_an_error_that_names_others() {
    let lab = Lab::new();
    let slice = Slice::new();
    let name = &slice.name;
    let _unit = Unit::start(&lab.left, slice.unit("web.service"), None);
    // systemd leaves no cgroup of a unit that has ended, but others may.
    let _empty = slice.unit("old.service");
    for (line, words) in [
        (format!("{name}wbe"), vec![format!("there are {name}web.service")]),
        (format!("{name}web.scope"), vec![format!("there are {name}web.service")]),
        (format!("{name}old"), vec!["does not run".to_owned()]),
        ("no-such-user-here/a".to_owned(), vec!["no user no-such-user-here".to_owned()]),
    ] {
        let (code, error) = said(&lab, &format!("--unit {line} --loss 100%"));
        assert_eq!(code, 1, "{error}");
        for word in words {
            assert!(error.contains(&word), "{line}: {error}");
        }
    }
    let (code, error) = said(&lab, &format!("--unit {name}.timer --loss 100%"));
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("has no processes"), "{error}");
}

#[test]
fn scenarios_and_the_agent_take_units() {
    let lab = Lab::new();
    let slice = Slice::new();
    let name = &slice.name;
    let _peer = peer(&lab);
    let to = lab.right.at(Family::V4, ECHO);
    let mut unit = Unit::start(&lab.left, slice.unit("web.service"), None);
    let scenario = RuleFile::new(&format!(
        "targets: {{web: {{unit: {name}web}}}}\n\
         timeline: [{{for: 1m, faults: {{rules: [{{loss: 100%}}]}}}}]\n"
    ));
    let mut command = lab.left.command(INJECTOR, None);
    command.args(["apply", "--output", "json"]).arg(&scenario.path);
    let mut apply = Process::start(command);
    apply.wait_for("started");
    wait_until(TIMEOUT, "loss", || !unit.does(&format!("new-udp {to}")));
    drop(apply);
    wait_until(TIMEOUT, "traffic again", || unit.does(&format!("new-udp {to}")));

    let agent = Agent::start(&lab.left);
    let request =
        json!({"target": {"unit": format!("{name}web")}, "rules": [{"loss": "100%"}], "for": "1m"});
    let (status, answer) = agent.ask("POST", "/v1/faults", Some(&request));
    assert_eq!(status, 201, "{answer}");
    assert!(!unit.does(&format!("new-udp {to}")));
    let request = json!({"target": {"unit": "a/b/c"}, "rules": [{"loss": "1%"}], "for": "1m"});
    let (status, answer) = agent.ask("POST", "/v1/faults", Some(&request));
    assert_eq!(status, 422, "{answer}");
}

//! Packet faults of single processes on third-party servers: an old connection, new ones, and the server
//! beside it in the same cgroup, the root cgroup, which is not touched.
//!
//! `scripts/setup-test` installs the programs. A missing one is a failure.

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use testbed::{
    Family, Host, Injector, Lab, TIMEOUT, hierarchy,
    programs::{Postgres, Scratch, find, redis_server},
    scratch_file, wait_until,
};

/// How long a question may wait for its answer. On the veth pair an answer takes far less than that,
/// also on a busy machine, as it is asked again until [`TIMEOUT`] where an answer is expected.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a server is asked, and its answer.
#[derive(Clone, Copy)]
struct Question {
    line: &'static [u8],
    answer: &'static [u8],
}

const ECHO: Question = Question { line: b"ping\n", answer: b"ping\n" };
const REDIS: Question = Question { line: b"PING\r\n", answer: b"+PONG\r\n" };

/// The request of a `PostgreSQL` client whether the server has TLS, and the answer that it has not.
const POSTGRES: Question = Question { line: &[0, 0, 0, 8, 4, 210, 22, 47], answer: b"N" };

/// A server, killed at the end.
struct Server {
    process: Child,
    _folder: Option<Scratch>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(mut command: Command, folder: Option<Scratch>) -> Server {
    let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let process = process.expect("it can be run");
    let root = hierarchy().join("cgroup.procs");
    fs::write(root, process.id().to_string()).expect("the root takes any process");
    Server { process, _folder: folder }
}

/// A connection of a client.
struct Client(TcpStream);

impl Client {
    fn connect(lab: &Lab, port: u16) -> io::Result<Self> {
        let at = lab.left.at(Family::V4, port);
        lab.right.inside(|| TcpStream::connect_timeout(&at, PATIENCE)).map(Self)
    }

    /// Whether the server answers in time.
    fn ask(&mut self, question: Question) -> bool {
        self.0.set_read_timeout(Some(PATIENCE)).expect("a socket");
        if self.0.write_all(question.line).is_err() {
            return false;
        }
        let mut answer = vec![0; question.answer.len()];
        match self.0.read_exact(&mut answer) {
            Ok(()) => {
                assert_eq!(answer, question.answer);
                true
            }
            Err(error) => {
                let kinds = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
                assert!(kinds.contains(&error.kind()), "{error}");
                false
            }
        }
    }

    /// Waits for the answers to everything asked so far.
    fn catch_up(&mut self, question: Question, asked: usize) {
        self.0.set_read_timeout(Some(TIMEOUT)).expect("a socket");
        let mut answers = vec![0; asked * question.answer.len()];
        self.0.read_exact(&mut answers).expect("the connection goes on");
    }
}

/// Connects and asks.
fn answers(lab: &Lab, port: u16, question: Question) -> bool {
    Client::connect(lab, port).is_ok_and(|mut client| client.ask(question))
}

/// Faults the first of two servers in the same cgroup. `start` starts one at an address and a port.
#[track_caller]
fn assert_faulted_alone(question: Question, start: impl Fn(&Host, IpAddr, u16) -> Server) {
    const VICTIM: u16 = 7101;
    const NEIGHBOUR: u16 = 7102;

    let lab = Lab::new();
    let address = lab.left.address(Family::V4);
    let [victim, _neighbour] = [VICTIM, NEIGHBOUR].map(|port| start(&lab.left, address, port));
    let [mut old, mut beside] = [VICTIM, NEIGHBOUR].map(|port| {
        wait_until(TIMEOUT, "the server answers", || answers(&lab, port, question));
        let mut client = Client::connect(&lab, port).expect("it answers");
        assert!(client.ask(question));
        client
    });

    // From a namespace in which no server is.
    let line = format!("--pid {} --loss 100%", victim.process.id());
    let injector = Injector::start(&lab.right, &line);
    assert!(!old.ask(question), "an old connection");
    assert!(!answers(&lab, VICTIM, question), "a new connection");
    wait_until(TIMEOUT, "an old connection of the neighbour's", || beside.ask(question));
    wait_until(TIMEOUT, "a new one", || answers(&lab, NEIGHBOUR, question));
    let summary = injector.stop();
    assert!(summary.total.done.dropped > 0, "{summary:?}");

    // As a link that comes back.
    old.catch_up(question, 1);
    assert!(old.ask(question));
    wait_until(TIMEOUT, "it answers again", || answers(&lab, VICTIM, question));
}

fn folder() -> Scratch {
    let folder = Scratch(scratch_file());
    fs::create_dir(&folder.0).expect("it can be made");
    folder
}

#[test]
fn redis() {
    assert_faulted_alone(REDIS, |host, address, port| {
        let folder = folder();
        let mut command = host.command(redis_server(&folder.0), None);
        command.args(["--save", "", "--appendonly", "no", "--bind", &address.to_string()]);
        command.args(["--protected-mode", "no", "--port", &port.to_string(), "--dir"]);
        command.arg(&folder.0);
        start(command, Some(folder))
    });
}

#[test]
fn a_go_program() {
    let folder = folder();
    let program = folder.0.join("echo");
    let built = Command::new(find("go", "golang-go"))
        .args(["build", "-o"])
        .args([&program, &source("echo.go")])
        .env("GOCACHE", folder.0.join("cache"))
        .output()
        .expect("it can be run");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    assert_faulted_alone(ECHO, |host, address, port| {
        let mut command = host.command(&program, None);
        command.args([address.to_string(), port.to_string()]);
        start(command, None)
    });
}

#[test]
fn a_jvm_program() {
    let java = find("java", "default-jdk-headless");
    assert_faulted_alone(ECHO, |host, address, port| {
        let mut command = host.command(&java, None);
        command.arg(source("Echo.java")).args([address.to_string(), port.to_string()]);
        start(command, None)
    });
}

/// It has a process for each connection.
#[test]
fn postgresql() {
    const PORT: u16 = 5432;

    let lab = Lab::new();
    let address = format!("listen_addresses={}", lab.left.address(Family::V4));
    let postgres = Postgres::start(&lab.left, None, &[&address]);
    let server = postgres.server.id();
    let root = hierarchy().join("cgroup.procs");
    fs::write(root, server.to_string()).expect("the root takes any process");
    let mut session = Session::start(&lab, &postgres, PORT);
    session.must_answer();

    // The server and what it starts from now on: an old session is another process.
    let injector = Injector::start(&lab.right, &format!("--pid {server} --loss 100%"));
    assert!(!answers(&lab, PORT, POSTGRES), "a new session");
    session.must_answer();
    injector.stop();
    wait_until(TIMEOUT, "it answers again", || answers(&lab, PORT, POSTGRES));

    // With those that it has already.
    let injector = Injector::start(&lab.right, &format!("--pid {server} --tree --loss 100%"));
    assert!(!answers(&lab, PORT, POSTGRES), "a new session");
    session.ask();
    assert!(!session.answers_within(PATIENCE), "an old session");
    injector.stop();
    assert!(session.answers_within(TIMEOUT), "the session goes on");
}

/// A session of `psql` over TCP.
struct Session {
    psql: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Session {
    fn start(lab: &Lab, postgres: &Postgres, port: u16) -> Self {
        let mut command = lab.right.command(postgres.programs.join("psql"), None);
        command.args(["-X", "-q", "-A", "-t", "-U", "postgres", "-d", "postgres"]);
        command.args(["-h", &lab.left.address(Family::V4).to_string(), "-p", &port.to_string()]);
        let mut psql = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql");
        let output = io::BufReader::new(psql.stdout.take().expect("a pipe"));
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in io::BufRead::lines(output).map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { psql, lines }
    }

    fn ask(&mut self) {
        let input = self.psql.stdin.as_mut().expect("a pipe");
        writeln!(input, "SELECT 'here';").expect("psql runs");
    }

    fn answers_within(&self, time: Duration) -> bool {
        self.lines.recv_timeout(time).is_ok_and(|line| line == "here")
    }

    #[track_caller]
    fn must_answer(&mut self) {
        self.ask();
        assert!(self.answers_within(TIMEOUT), "an old session");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

fn source(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

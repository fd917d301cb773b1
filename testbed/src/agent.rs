//! A running `injector agent`, with plain HTTP requests.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{Host, INJECTOR, TIMEOUT, is_guest, output, scratch_file};

/// A running agent, killed when dropped.
#[derive(Debug)]
pub struct Agent {
    /// Its process.
    pub child: Child,
    /// Its socket.
    pub socket: PathBuf,
    /// The path of its audit log.
    pub audit: PathBuf,
    /// Its output at the start, a line for each address.
    pub serves: Vec<String>,
}

impl Agent {
    /// Starts an agent inside the namespace of `host` and waits until it serves.
    #[must_use]
    pub fn start(host: &Host) -> Self {
        Self::with(host, scratch_file(), &[])
    }

    /// Starts an agent at a socket, with more options.
    #[must_use]
    pub fn with(host: &Host, socket: PathBuf, options: &[&str]) -> Self {
        let count = if options.contains(&"--listen") { 2 } else { 1 };
        Self::spawned(Self::command(host, &socket, options), socket, count)
    }

    /// Starts an agent by a command and waits until it serves `addresses` addresses.
    #[must_use]
    pub fn spawned(mut command: Command, socket: PathBuf, count: usize) -> Self {
        let audit = socket.with_extension("audit");
        command.arg("--audit-log").arg(&audit);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it can be run");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let serves: Vec<String> = lines.by_ref().take(count).map_while(Result::ok).collect();
        assert_eq!(serves.len(), count, "the agent did not start");
        Self { child, socket, audit, serves }
    }

    /// The command of an agent.
    #[must_use]
    pub fn command(host: &Host, socket: &Path, options: &[&str]) -> Command {
        let mut command = host.command(INJECTOR, None);
        command.arg("agent").arg("--socket").arg(socket).args(options);
        command
    }

    /// Sends a request. Returns status and body.
    pub fn raw(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).expect("it listens");
        // The agent's own timeout is 30 s.
        stream.set_read_timeout(Some(2 * TIMEOUT)).expect("more than 0");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        // The agent may have refused and answered already.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        (status, body.to_owned())
    }

    /// Sends a request with a JSON body. Returns status and JSON body.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let body = body.map(Value::to_string).unwrap_or_default();
        let (status, text) =
            self.raw(method, path, "Content-Type: application/json\r\n", body.as_bytes());
        let answer = serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"));
        output::check_answer(path, status, &answer);
        (status, answer)
    }

    /// Starts a fault, which must succeed.
    pub fn create(&self, request: &Value) -> Value {
        // Emulated machines may exceed the agent's timeout of 30 s, which leaves nothing behind.
        let attempts = if is_guest() { 4 } else { 1 };
        let ask = |_| self.ask("POST", "/v1/faults", Some(request));
        let answer = (0..attempts).map(ask).find(|(status, _)| *status != 503);
        let (status, fault) = answer.expect("it is not busy");
        assert_eq!(status, 201, "{fault}");
        fault
    }

    /// A fault.
    pub fn get(&self, name: &str) -> Value {
        let (status, fault) = self.ask("GET", &format!("/v1/faults/{name}"), None);
        assert_eq!(status, 200, "{fault}");
        fault
    }

    /// Ends a fault. Returns its last state.
    pub fn delete(&self, name: &str) -> Value {
        let (status, fault) = self.ask("DELETE", &format!("/v1/faults/{name}"), None);
        assert_eq!(status, 200, "{fault}");
        assert_eq!(fault["phase"], "ended");
        fault
    }

    /// The active faults.
    pub fn active(&self) -> Vec<Value> {
        let (status, list) = self.ask("GET", "/v1/faults", None);
        assert_eq!(status, 200, "{list}");
        let faults = list["faults"].as_array().expect("a list").clone();
        faults.into_iter().filter(|fault| fault["phase"] == "active").collect()
    }

    /// Waits until `count` faults are active. The agent may notice the kernel's deadlines late.
    #[track_caller]
    pub fn wait_for_active(&self, count: usize) -> Vec<Value> {
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            let active = self.active();
            if active.len() == count {
                return active;
            }
            assert!(Instant::now() < end, "{active:#?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The records of the audit log.
    #[must_use]
    pub fn audited(&self) -> Vec<Value> {
        let audit = fs::read_to_string(&self.audit).expect("it is written");
        audit.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Waits until a fault satisfies a condition.
    pub fn wait_for(&self, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + TIMEOUT;
        loop {
            let fault = self.get(name);
            if is_so(&fault) {
                return fault;
            }
            assert!(Instant::now() < end, "{fault}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A stream of events, from its start.
    #[must_use]
    pub fn watch(&self, path: &str) -> Events {
        let mut stream = UnixStream::connect(&self.socket).expect("it listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("more than 0");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
        Events(BufReader::new(stream))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it is alive");
    }

    /// Ends it by SIGTERM.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.child.wait().expect("it ends")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.audit);
    }
}

/// Server-sent events.
#[derive(Debug)]
pub struct Events(BufReader<UnixStream>);

impl Events {
    /// The next event of this name.
    pub fn wait_for(&mut self, name: &str) -> Value {
        let mut is_it = false;
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).expect("in time"), 0, "ended without {name}");
            if let Some(event) = line.trim_end().strip_prefix("event: ") {
                is_it = event == name;
            } else if let Some(data) = line.trim_end().strip_prefix("data: ") {
                let fault = serde_json::from_str(data).expect("JSON");
                output::check("Fault", &fault);
                if is_it {
                    return fault;
                }
            }
        }
    }

    /// Whether the stream ends here.
    pub fn ends(mut self) -> bool {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).is_ok_and(|_| !rest.contains("event:"))
    }
}

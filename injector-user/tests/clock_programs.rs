//! Clock faults on third-party programs, exact to a millisecond: started under a fault or running before
//! it, in their main thread, other threads and children. Beside each runs the same program without a
//! fault.
//!
//! `scripts/setup-test` installs the programs. A missing one is a failure.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};
use testbed::{
    Host, INJECTOR, Injector, Lab, Process, TIMEOUT, TestCgroup,
    programs::{Postgres, Scratch, find, redis_server},
    scratch_file,
};

const MICROSECOND: i64 = 1_000;
const MILLISECOND: i64 = 1_000_000;
const SECOND: i64 = 1_000_000_000;
const HOUR: i64 = 3600 * SECOND;

/// The true time. The test itself is not faulted.
fn true_time(clock: ClockId) -> i64 {
    let now = clock_gettime(clock).expect("such a clock");
    now.tv_sec() * SECOND + now.tv_nsec()
}

/// A question to a program, and its accuracy.
#[derive(Clone, Copy)]
struct Question {
    line: &'static str,
    /// The clock that is read.
    clock: ClockId,
    /// The resolution: readings are rounded down to a multiple of this.
    unit: i64,
    /// The maximum time of an answer to count.
    within: Duration,
}

/// A question to a thread of the program, exact to a millisecond.
const fn exact(line: &'static str) -> Question {
    let within = Duration::from_millis(1);
    Question { line, clock: ClockId::CLOCK_REALTIME, unit: 1, within }
}

/// A question that starts a process, which takes longer.
const fn child(line: &'static str) -> Question {
    Question { within: Duration::from_secs(5), ..exact(line) }
}

const fn rounded(question: Question, unit: i64) -> Question {
    Question { unit, ..question }
}

/// The monotonic clock.
const STEADY: Question = Question { clock: ClockId::CLOCK_MONOTONIC, ..exact("steady") };

/// Asserts that the reading of a program is off by `offset`, between question and answer. Slow answers
/// must be correct too, but are repeated.
#[track_caller]
fn assert_off(what: &str, process: &mut Process, question: Question, offset: i64) {
    let Question { line, clock, unit, within } = question;
    let end = Instant::now() + TIMEOUT;
    loop {
        let before = true_time(clock) + offset;
        process.tell(line);
        let answer = process.next().unwrap_or_else(|| panic!("{what} ended"));
        let after = true_time(clock) + offset;
        let read = answer.as_i64().unwrap_or_else(|| panic!("{what} says {answer}"));
        assert!(
            read > before - unit && read <= after,
            "{what}, {line}: {read}, but it was {before} to {after}: off by {} or {} from there",
            read - before,
            read - after
        );
        if after - before <= within.as_nanos() as i64 {
            return;
        }
        assert!(Instant::now() < end, "{what} does not answer {line} within {within:?}");
    }
}

/// A program that answers lines, and its questions.
struct Program {
    name: &'static str,
    command: Vec<String>,
    questions: Vec<Question>,
}

impl Program {
    fn new(name: &'static str, command: &[&str], questions: &[Question]) -> Self {
        let command = command.iter().map(|&word| word.into()).collect();
        Self { name, command, questions: questions.into() }
    }

    /// Starts it without a fault.
    fn start(&self) -> Process {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        Process::start(command)
    }

    fn start_in(&self, host: &Host, cgroup: &TestCgroup) -> Process {
        let mut command = host.command(&self.command[0], Some(cgroup));
        command.args(&self.command[1..]);
        Process::start(command)
    }

    /// Starts it by `injector run`.
    fn start_under(&self, options: &str) -> Process {
        let mut command = Command::new(INJECTOR);
        command.arg("run").args(options.split_whitespace()).arg("--").args(&self.command);
        Process::start(command)
    }

    /// Asserts the offset of each answer: `realtime` or `steady`, by its clock.
    #[track_caller]
    fn assert_reads(&self, process: &mut Process, realtime: i64, steady: i64) {
        for &question in &self.questions {
            let is_real = question.clock == ClockId::CLOCK_REALTIME;
            assert_off(self.name, process, question, if is_real { realtime } else { steady });
        }
    }

    /// The checks of every program.
    fn assert_is_faulted(&self) {
        let mut beside = self.start();
        self.assert_reads(&mut beside, 0, 0);
        for (options, offset) in [("--clock +1h", HOUR), ("--clock -90m", -3 * HOUR / 2)] {
            let mut faulted = self.start_under(options);
            self.assert_reads(&mut faulted, offset, 0);
            self.assert_reads(&mut beside, 0, 0);
            end(faulted);
        }
        let lab = Lab::new();
        let cgroup = TestCgroup::new();
        let mut running = self.start_in(&lab.left, &cgroup);
        self.assert_reads(&mut running, 0, 0);
        let injector = Injector::on(&lab.left, &cgroup, "--clock -500ms");
        self.assert_reads(&mut running, -SECOND / 2, 0);
        self.assert_reads(&mut beside, 0, 0);
        injector.process.signal(Signal::SIGTERM);
        injector.process.finish();
        self.assert_reads(&mut running, 0, 0);
        end(running);
        end(beside);
    }
}

/// Ends a program by closing its standard input. It must succeed.
#[track_caller]
fn end(mut process: Process) {
    drop(process.child.stdin.take());
    while process.next().is_some() {}
    let status = process.child.wait().expect("our child");
    assert!(status.success(), "{status}");
}

fn source(name: &str) -> String {
    format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn python() -> Program {
    find("python3", "python3");
    let questions = [exact("here"), exact("thread"), STEADY, child("child")];
    Program::new("python3", &["python3", &source("clock.py")], &questions)
}

fn node() -> Program {
    find("node", "nodejs");
    let questions = [
        rounded(exact("here"), MILLISECOND),
        rounded(exact("thread"), MILLISECOND),
        STEADY,
        child("child"),
    ];
    Program::new("node", &["node", &source("clock.js")], &questions)
}

fn bash() -> Program {
    let questions = [
        rounded(exact("here"), MICROSECOND),
        rounded(child("fork"), MICROSECOND),
        child("child"),
        child("loop"),
    ];
    Program::new("bash", &["bash", &source("clock.sh")], &questions)
}

#[test]
fn date() {
    // Reads the time for each line. Needs stdbuf, or its output would be buffered.
    let date = ["stdbuf", "-oL", "date", "-f", "-", "+%s%N"];
    Program::new("date", &date, &[exact("now")]).assert_is_faulted();
}

#[test]
fn python_with_threads_and_children() {
    python().assert_is_faulted();
}

#[test]
fn python_with_all_clocks() {
    let python = python();
    let mut beside = python.start();
    let mut faulted = python.start_under("--clock +1h,clock=all");
    python.assert_reads(&mut faulted, HOUR, HOUR);
    python.assert_reads(&mut beside, 0, 0);
    end(faulted);
    end(beside);
}

#[test]
fn node_with_threads_and_children() {
    node().assert_is_faulted();
}

#[test]
fn the_jvm_with_threads_and_children() {
    find("java", "default-jdk-headless");
    find("javac", "default-jdk-headless");
    let java = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", &source("Clock.java")];
    let questions = [
        exact("here"),
        rounded(exact("milliseconds"), MILLISECOND),
        exact("thread"),
        STEADY,
        child("child"),
    ];
    Program::new("java", &java, &questions).assert_is_faulted();
}

#[test]
fn a_static_program_with_musl() {
    find("musl-gcc", "musl-tools");
    let program = Scratch(scratch_file());
    let path = program.0.to_str().expect("text");
    let status = Command::new("musl-gcc")
        .args(["-static", "-O1", "-o", path, &source("clock.c")])
        .status()
        .expect("it can be run");
    assert!(status.success());
    let image = fs::read(path).expect("it is there");
    let needs_linker = image.windows(7).any(|bytes| bytes == b"ld-musl");
    assert!(!needs_linker, "it is not static");
    let questions = [
        exact("here"),
        rounded(exact("gettimeofday"), MICROSECOND),
        rounded(exact("time"), SECOND),
        exact("thread"),
        STEADY,
        child("child"),
    ];
    Program::new("a static program", &[path], &questions).assert_is_faulted();
}

#[test]
fn bash_with_forks_and_programs() {
    bash().assert_is_faulted();
}

#[test]
fn a_drift_is_right_within_one_percent() {
    const SPAN: Duration = Duration::from_secs(10);
    const DRIFT: f64 = 0.05;
    let programs = [python(), node(), bash()];
    // The true time at the middle of an answer, and the reading.
    let read = |process: &mut Process| {
        // The fastest of several answers.
        let answers = (0..20).map(|_| {
            let before = true_time(ClockId::CLOCK_REALTIME);
            process.tell("here");
            let read = process.next().and_then(|answer| answer.as_i64()).expect("a number");
            let after = true_time(ClockId::CLOCK_REALTIME);
            (after - before, i64::midpoint(before, after), read)
        });
        let (_, at, read) = answers.min_by_key(|answer| answer.0).expect("some");
        (at, read)
    };
    let start = |program: &Program, options: &str| {
        let mut process =
            if options.is_empty() { program.start() } else { program.start_under(options) };
        let first = read(&mut process);
        (process, first)
    };
    let drifting = format!("--clock drift={}ppm", DRIFT * 1e6);
    let mut all: Vec<_> = programs
        .iter()
        .flat_map(|program| [(program, DRIFT, &*drifting), (program, 0.0, "")])
        .map(|(program, drift, options)| (program.name, drift, start(program, options)))
        .collect();
    thread::sleep(SPAN);
    for (name, expected, (process, first)) in &mut all {
        let last = read(process);
        let (true_span, span) = (last.0 - first.0, last.1 - first.1);
        let found = (span - true_span) as f64 / true_span as f64;
        println!("{name}: {found} in {true_span} ns, {expected} asked");
        assert!((found - *expected).abs() < DRIFT / 100.0, "{name}: {found}, not {expected}");
    }
    for (_, _, (process, _)) in all {
        end(process);
    }
}

/// A redis-server, queried through its socket.
struct Redis {
    server: Child,
    stream: BufReader<UnixStream>,
    // Dropped last.
    _folder: Scratch,
}

impl Redis {
    fn start(host: &Host, cgroup: Option<&TestCgroup>) -> Self {
        let folder = Scratch(scratch_file());
        fs::create_dir(&folder.0).expect("it can be made");
        let program = redis_server(&folder.0);
        let socket = folder.0.join("socket");
        let mut command = host.command(&program, cgroup);
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
        command.arg(&socket).arg("--dir").arg(&folder.0).stdout(Stdio::null());
        let mut server = command.spawn().expect("it can be run");
        let end = Instant::now() + TIMEOUT;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => {
                    let status = server.try_wait().expect("our child");
                    let is_up = status.is_none() && Instant::now() < end;
                    assert!(is_up, "redis-server: {status:?}, {error}");
                    thread::sleep(Duration::from_millis(10));
                }
            }
        };
        stream.set_read_timeout(Some(TIMEOUT)).expect("a socket");
        Self { server, stream: BufReader::new(stream), _folder: folder }
    }

    /// Sends a command. Returns its reply of one or several lines (RESP).
    fn ask(&mut self, command: &str) -> Vec<String> {
        writeln!(self.stream.get_mut(), "{command}\r").expect("it listens");
        let first = self.line();
        let (kind, rest) = first.split_at(1);
        match kind {
            "*" => {
                let count: usize = rest.parse().expect("a number");
                (0..count).map(|_| self.bulk()).collect()
            }
            "$" if rest == "-1" => vec![],
            "$" => vec![self.line()],
            ":" | "+" => vec![rest.into()],
            _ => panic!("{command}: {first}"),
        }
    }

    fn bulk(&mut self) -> String {
        self.line();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("an answer");
        line.trim_end().into()
    }

    fn number(&mut self, command: &str) -> i64 {
        self.ask(command)[0].parse().expect("a number")
    }

    /// Asserts the offset of its TIME.
    #[track_caller]
    fn assert_off(&mut self, offset: i64) {
        let end = Instant::now() + TIMEOUT;
        loop {
            let before = true_time(ClockId::CLOCK_REALTIME) + offset;
            let time = self.ask("TIME");
            let after = true_time(ClockId::CLOCK_REALTIME) + offset;
            let [seconds, microseconds] =
                [&time[0], &time[1]].map(|text| text.parse::<i64>().expect("a number"));
            let read = seconds * SECOND + microseconds * MICROSECOND;
            assert!(
                read > before - MICROSECOND && read <= after,
                "{read}, not {before} to {after}"
            );
            if after - before < MILLISECOND {
                return;
            }
            assert!(Instant::now() < end, "redis-server is too slow");
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn keys_of_redis_expire_when_its_clock_jumps() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let mut redis = Redis::start(&lab.left, Some(&cgroup));
    let mut beside = Redis::start(&lab.left, None);
    for server in [&mut redis, &mut beside] {
        assert_eq!(server.ask("SET short value EX 60"), ["OK"]);
        assert_eq!(server.ask("SET long value EX 600"), ["OK"]);
        assert_eq!(server.number("EXISTS short long"), 2);
        server.assert_off(0);
    }
    let injector = Injector::on(&lab.left, &cgroup, "--clock +2m");
    redis.assert_off(120 * SECOND);
    beside.assert_off(0);
    assert_eq!(redis.ask("GET short"), [""; 0]);
    assert_eq!(redis.ask("GET long"), ["value"]);
    let left = redis.number("TTL long");
    assert!((440..=480).contains(&left), "{left}");
    assert_eq!(beside.ask("GET short"), ["value"]);
    let left = beside.number("TTL long");
    assert!((560..=600).contains(&left), "{left}");
    drop(injector);
}

#[test]
fn now_of_postgresql() {
    let now =
        rounded(exact("SELECT (extract(epoch FROM now()) * 1000000)::bigint * 1000;"), MICROSECOND);
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let postgres = Postgres::start(&lab.left, Some(&cgroup), &["listen_addresses="]);
    let mut before = postgres.session();
    assert_off("a session", &mut before, now, 0);
    let injector = Injector::on(&lab.left, &cgroup, "--clock +1h");
    assert_off("a session from before", &mut before, now, HOUR);
    let mut after = postgres.session();
    assert_off("a new session", &mut after, now, HOUR);
    injector.process.signal(Signal::SIGTERM);
    injector.process.finish();
    for session in [&mut before, &mut after] {
        assert_off("a session from before", session, now, 0);
    }
    end(before);
    end(after);
}

//! Shared by tests and benchmarks: two connected hosts, cgroups, containers, traffic, and injector.
//!
//! Tests create everything under unique names. Each value removes what it stands for when dropped, also
//! when the test panics. Injector runs only inside namespaces of a [`Lab`].
#![allow(clippy::missing_panics_doc, reason = "what fails here fails the test")]
#![allow(
    clippy::must_use_candidate,
    clippy::new_without_default,
    clippy::should_implement_trait,
    reason = "helpers act on the machine, and their results may be ignored"
)]

pub mod agent;
pub mod bpf;
pub mod connection;
pub mod container;
pub mod daemonset;
pub mod frames;
pub mod listing;
pub mod output;
pub mod path;
pub mod programs;
pub mod tunnel;

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::{Deref, RangeInclusive},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use injector_user::fault::counts::PacketCounts;
use nix::{
    fcntl::{Flock, FlockArg},
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;
use serde_json::Value;
use statrs::distribution::{Binomial, DiscreteCDF as _};

/// The name of the veth interface in both namespaces.
pub const INTERFACE: &str = "veth0";

/// The injector under test.
pub const INJECTOR: &str = concat!(env!("PROGRAMS"), "/injector");

/// The timeout of waits for an event. It is long because a busy or emulated machine may be slow.
pub const TIMEOUT: Duration = Duration::from_mins(2);

/// The probability that a correct implementation falls outside the bounds of one check. A run makes fewer than
/// a hundred of them, so it fails by chance less than once in 10^6 runs.
const TAIL: f64 = 1e-8;

/// A unique name.
#[must_use]
pub fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("inj{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both versions.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Two network namespaces joined by a veth pair. Tests fault `left`.
#[derive(Debug)]
pub struct Lab {
    /// The faulted host.
    pub left: Host,
    /// Its peer.
    pub right: Host,
}

/// One of the two hosts.
#[derive(Debug)]
pub struct Host {
    /// The namespace's `ip netns` name.
    pub netns: String,
    /// Its first IPv4 address. It has the next two as well.
    pub v4: Ipv4Addr,
    /// Its first IPv6 address. It has the next two as well.
    pub v6: Ipv6Addr,
    /// The link-layer address of its interface.
    pub mac: [u8; 6],
}

impl Lab {
    /// Creates and connects the namespaces.
    #[must_use]
    pub fn new() -> Self {
        Self::with_link("")
    }

    /// Creates and connects the namespaces. Both interfaces have `count` queues in each direction.
    #[must_use]
    pub fn with_queues(count: u32) -> Self {
        Self::with_link(&format!("numtxqueues {count} numrxqueues {count}"))
    }

    /// Creates them with these options of `ip link add` for each end.
    fn with_link(options: &str) -> Self {
        let name = unique();
        let host = |side: &str, number: u8| Host {
            netns: format!("{name}{side}"),
            v4: Ipv4Addr::new(10, 9, 0, number * 10),
            v6: Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, u16::from(number) * 0x10),
            mac: [2, 0, 0, 0, 0, number],
        };
        let lab = Self { left: host("l", 1), right: host("r", 2) };
        let (left, right) = (&lab.left, &lab.right);
        ip(
            &[],
            &format!(
                "netns add {l}\nnetns add {r}\n\
                 link add {INTERFACE} {options} address {lm} netns {l} type veth \
                 peer name {INTERFACE} {options} address {rm} netns {r}\n",
                l = left.netns,
                r = right.netns,
                lm = left.mac(),
                rm = right.mac(),
            ),
        );
        left.set_up(right);
        right.set_up(left);
        lab.wait_for_carrier();
        lab
    }

    /// Waits until the kernel has set both interfaces up, which it does asynchronously.
    fn wait_for_carrier(&self) {
        let end = Instant::now() + TIMEOUT;
        for host in [&self.left, &self.right] {
            while !host.run(&format!("ip -o link show {INTERFACE}")).contains(" state UP ") {
                assert!(Instant::now() < end, "{INTERFACE} does not come up");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Waits until no TCP connection can send anything.
    pub fn settle(&self) {
        const TIME_WAIT: &str = "06";
        const LISTEN: &str = "0A";
        let end = Instant::now() + TIMEOUT;
        let is_settled = |host: &Host| {
            let table = host.run("cat /proc/self/net/tcp /proc/self/net/tcp6");
            let states = table.lines().filter_map(|line| line.split_whitespace().nth(3));
            states.filter(|&state| state != "st").all(|state| [TIME_WAIT, LISTEN].contains(&state))
        };
        while !(is_settled(&self.left) && is_settled(&self.right)) {
            assert!(Instant::now() < end, "a connection does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Disables segmentation offload: each TCP segment is a packet.
    pub fn without_segmentation(&self) {
        for host in [&self.left, &self.right] {
            // TCP sends GSO packets even if the device does not support them.
            ip(&["-n", &host.netns], &format!("link set {INTERFACE} gso_max_segs 1\n"));
        }
    }
}

impl Host {
    fn set_up(&self, peer: &Self) {
        // Without link-local addresses and with static neighbours, only tests send packets.
        let mut batch = format!(
            "link set lo up\nlink set {INTERFACE} addrgenmode none\nlink set {INTERFACE} up\n"
        );
        for n in 0..3 {
            write!(
                batch,
                "addr add {}/24 dev {INTERFACE}\naddr add {}/64 dev {INTERFACE} nodad\n\
                 neigh add {} lladdr {mac} dev {INTERFACE} nud permanent\n\
                 neigh add {} lladdr {mac} dev {INTERFACE} nud permanent\n",
                self.nth(Family::V4, n),
                self.nth(Family::V6, n),
                peer.nth(Family::V4, n),
                peer.nth(Family::V6, n),
                mac = peer.mac(),
            )
            .expect("a string");
        }
        ip(&["-n", &self.netns], &batch);
    }

    fn mac(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        self.nth(family, 0)
    }

    /// One of its three addresses.
    #[must_use]
    pub fn nth(&self, family: Family, n: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::from_bits(self.v4.to_bits() + u32::from(n)).into(),
            Family::V6 => Ipv6Addr::from_bits(self.v6.to_bits() + u128::from(n)).into(),
        }
    }

    /// Its first address with a port.
    #[must_use]
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        (self.address(family), port).into()
    }

    fn namespace(&self) -> File {
        File::open(Path::new("/run/netns").join(&self.netns)).expect("the namespace is there")
    }

    /// Runs `work` inside the namespace, for sockets of this process.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = self.namespace();
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&netns, CloneFlags::CLONE_NEWNET).expect("root may");
                work()
            });
            thread.join().expect("it does not panic")
        })
    }

    /// A command inside the namespace, and inside a cgroup if given. It is killed with the test.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>, cgroup: Option<&TestCgroup>) -> Command {
        let netns = self.namespace();
        let procs = cgroup.map(|cgroup| {
            let path = cgroup.path.join("cgroup.procs");
            File::options().write(true).open(path).expect("the cgroup is there")
        });
        let mut command = Command::new(program);
        // SAFETY: only system calls are made, which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                setns(&netns, CloneFlags::CLONE_NEWNET)?;
                // "0" is the writing process.
                procs.as_ref().map_or(Ok(()), |procs| (&*procs).write_all(b"0"))
            });
        }
        command
    }

    /// Runs a command line outside any cgroup of the test. It must succeed. Returns its standard output.
    pub fn run(&self, line: &str) -> String {
        let (success, output) = self.run_in(None, line);
        assert!(success, "{line} failed: {output}");
        output
    }

    /// Has the kernel translate addresses by these rules of nft(8). Returns whether it can; if not, the test
    /// is skipped.
    #[must_use]
    pub fn translate(&self, rules: &str) -> bool {
        let file = scratch_file();
        fs::write(&file, rules).expect("it can be written");
        let (can, _) = self.run_in(None, &format!("nft -f {}", file.display()));
        fs::remove_file(&file).expect("it is there");
        if !can {
            skip("no nft(8), or this kernel translates no addresses");
        }
        can
    }

    /// Runs a command line in a cgroup. Returns whether it succeeded, and its standard output.
    pub fn run_in(&self, cgroup: Option<&TestCgroup>, line: &str) -> (bool, String) {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a program"), cgroup);
        let output = command.args(words).stderr(Stdio::inherit()).output().expect("it can be run");
        (output.status.success(), String::from_utf8(output.stdout).expect("text"))
    }

    /// Datagrams delivered to the UDP sockets of the host, for both IP versions together.
    #[must_use]
    pub fn datagrams_received(&self) -> u64 {
        let snmp6 = self.run("cat /proc/self/net/snmp6");
        let line = snmp6.lines().find_map(|line| line.strip_prefix("Udp6InDatagrams"));
        let v6: u64 = line.expect("such a counter").trim().parse().expect("a number");
        v6 + self.counter("Udp: ", "InDatagrams")
    }

    /// A counter of the kernel by its protocol: of TCP for both IP versions together (RFC 4022).
    fn counter(&self, protocol: &str, name: &str) -> u64 {
        let snmp = self.run("cat /proc/self/net/snmp");
        // A line of names, then a line of numbers.
        let mut lines = snmp.lines().filter_map(|line| line.strip_prefix(protocol));
        let names = lines.next().expect("names");
        let numbers = lines.next().expect("numbers");
        let mut pairs = names.split(' ').zip(numbers.split(' '));
        pairs.find(|&(key, _)| key == name).expect("such a counter").1.parse().expect("a number")
    }

    /// TCP segments sent by the host. A retransmitted SYN-ACK counts twice.
    #[must_use]
    pub fn segments_sent(&self) -> u64 {
        self.counter("Tcp: ", "OutSegs") + self.counter("Tcp: ", "RetransSegs")
    }

    /// TCP segments received by the host.
    #[must_use]
    pub fn segments_received(&self) -> u64 {
        self.counter("Tcp: ", "InSegs")
    }

    /// Sends `count` echo requests from `cgroup`. Returns the number of replies.
    pub fn ping(&self, cgroup: Option<&TestCgroup>, to: IpAddr, count: u32) -> u64 {
        // ping(8) stops listening two round trips after the last request. fping waits a second for each reply.
        let mut command = self.command("fping", cgroup);
        command.args(["-q", "-p", "2", "-t", "1000", "-c", &count.to_string(), &to.to_string()]);
        // fping fails without replies. It writes its summary to stderr.
        let text = String::from_utf8(command.output().expect("fping is installed").stderr);
        let text = text.expect("text");
        let summary = text.split_once("xmt/rcv/%loss = ");
        let received = summary.and_then(|(_, counts)| counts.split('/').nth(1));
        received.unwrap_or_else(|| panic!("no summary of fping: {text}")).parse().expect("a number")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in [&self.left, &self.right] {
            // A failure cannot be handled while panicking.
            let _ = Command::new("ip").args(["netns", "del", &host.netns]).status();
        }
    }
}

/// Locks the names of `scripts/experiments/redis-nodes`.
#[must_use]
pub fn ddia_turn() -> Flock<File> {
    let lock = std::env::temp_dir().join("injector-test-ddia.lock");
    let file = File::options().create(true).append(true).open(lock).expect("it can be made");
    Flock::lock(file, FlockArg::LockExclusive).expect("it can be waited for")
}

/// Runs a batch of ip(8) commands.
pub fn ip(options: &[&str], batch: &str) {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("iproute2 is installed");
    child.stdin.take().expect("piped").write_all(batch.as_bytes()).expect("ip reads it");
    assert!(child.wait().expect("it ends").success(), "ip {options:?} failed on:\n{batch}");
}

/// The mount point of the cgroup v2 hierarchy.
#[must_use]
pub fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    // proc_pid_mountinfo(5): the mount point is the fifth field, the type follows " - ".
    let mount = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4)).flatten()
    });
    mount.expect("a cgroup v2 hierarchy is mounted").into()
}

/// A cgroup of the v2 hierarchy.
#[derive(Debug)]
pub struct TestCgroup {
    /// Its directory.
    pub path: PathBuf,
}

impl TestCgroup {
    /// Creates a cgroup at the top of the hierarchy.
    #[must_use]
    pub fn new() -> Self {
        Self::make(hierarchy().join(unique()))
    }

    /// Creates a cgroup of this name at the top of the hierarchy.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self::make(hierarchy().join(name))
    }

    /// Creates a child cgroup.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self::make(self.path.join(name))
    }

    fn make(path: PathBuf) -> Self {
        fs::create_dir(&path).expect("a cgroup can be made");
        Self { path }
    }

    /// The path of its `cgroup.freeze`.
    #[must_use]
    pub fn freezer(&self) -> PathBuf {
        self.path.join("cgroup.freeze")
    }

    /// Whether it is frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        fs::read_to_string(self.freezer()).expect("Linux 5.2").trim() == "1"
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        // All its processes belong to the test. Killed ones keep it busy for a moment.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        let end = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.path).is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process, killed when dropped.
#[derive(Debug)]
pub struct Process {
    /// The process.
    pub child: Child,
    /// The timeout of waiting for a line.
    pub timeout: Duration,
    /// Whether its output is that of injector, which must follow the schema.
    is_injector: bool,
    lines: Receiver<String>,
}

impl Process {
    /// Starts it with pipes at its standard input and output.
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        let is_injector = output::is_of_injector(&command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, timeout: TIMEOUT, is_injector, lines }
    }

    /// The next line of its output as JSON; `None` at the end.
    #[track_caller]
    pub fn next(&mut self) -> Option<Value> {
        match self.lines.recv_timeout(self.timeout) {
            Ok(line) => {
                let value: Value =
                    serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
                // A script may run injector among others.
                if self.is_injector || value.get("schema_version").is_some() {
                    output::check_line(&value);
                }
                Some(value)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("a process said nothing for {:?}", self.timeout)
            }
        }
    }

    /// Reads up to the next event of this kind.
    pub fn wait_for(&mut self, event: &str) -> Value {
        let end = Instant::now() + 2 * self.timeout;
        loop {
            // Other events may arrive forever, so the timeout of lines is not enough.
            assert!(Instant::now() < end, "did not say {event}");
            let line = self.next().unwrap_or_else(|| panic!("ended without saying {event}"));
            if line["event"] == event {
                return line;
            }
        }
    }

    /// Reads up to the next warning with these words, and returns it.
    pub fn wait_for_warning(&mut self, words: &str) -> String {
        loop {
            let warning = self.wait_for("warning");
            if let Some(message) = warning["message"].as_str()
                && message.contains(words)
            {
                return message.to_owned();
            }
        }
    }

    /// Sends a line to its standard input.
    pub fn tell(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("still open");
        writeln!(input, "{line}").expect("it reads");
    }

    /// Waits for its end. Returns its exit code and the remaining output.
    pub fn end(mut self) -> (Option<i32>, Vec<Value>) {
        drop(self.child.stdin.take());
        let said = std::iter::from_fn(|| self.next()).collect();
        (self.child.wait().expect("it ends").code(), said)
    }

    /// Closes its standard input, waits for its end, and returns the last line.
    pub fn finish(mut self) -> Value {
        drop(self.child.stdin.take());
        let mut last = None;
        while let Some(line) = self.next() {
            last = Some(line);
        }
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
        last.expect("a report")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it is alive");
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reports that the running test or a part of it is skipped, and why. The test runner does not capture
/// the line. `scripts/test` and `cargo xtask vm` count these lines, and CI fails on those that
/// `.ci/expected-skips` does not list.
pub fn skip(why: &str) {
    let thread = thread::current();
    let line = format!("SKIPPED {}: {}\n", thread.name().unwrap_or("?"), why.replace('\n', " "));
    std::io::stderr().write_all(line.as_bytes()).expect("standard error");
    if let Some(path) = std::env::var_os("INJECTOR_SKIPS") {
        let mut file = File::options().create(true).append(true).open(path).expect("a file");
        file.write_all(line.as_bytes()).expect("it can be written");
    }
}

/// Starts a server of `traffic` and waits until it is ready.
pub fn serve(host: &Host, cgroup: Option<&TestCgroup>, line: &str) -> Process {
    let mut process = Process::start(traffic(host, cgroup, line));
    process.wait_for("ready");
    process
}

/// Runs a client of `traffic`. Returns its report.
pub fn talk(host: &Host, cgroup: Option<&TestCgroup>, line: &str) -> Value {
    Process::start(traffic(host, cgroup, line)).finish()
}

fn traffic(host: &Host, cgroup: Option<&TestCgroup>, line: &str) -> Command {
    let mut command = host.command(program("traffic"), cgroup);
    command.args(line.split_whitespace());
    command
}

/// The path of a program of this package.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("PROGRAMS")).join(name);
    assert!(
        path.exists(),
        "{} is missing: `cargo test` builds it; with --test, build it first: cargo build --package testbed",
        path.display(),
    );
    path
}

/// Runs a bash script by `injector run`. Returns its output and the JSON report, if any.
#[must_use]
pub fn run_bash(options: &str, script: &str) -> (Output, Option<Value>) {
    let file = scratch_file();
    let output = Command::new(INJECTOR)
        .args(["run", "--output", "json", "--output-file"])
        .arg(&file)
        .args(options.split_whitespace())
        .args(["--", "bash", "-c", script])
        .output()
        .expect("it can be run");
    let report = fs::read_to_string(&file).unwrap_or_default();
    let _ = fs::remove_file(&file);
    let last = output::lines(&report).pop();
    (output, last)
}

/// A command that runs `injector apply` on a scenario inside the namespace of `host`.
#[must_use]
pub fn apply(host: &Host, scenario: &Path, options: &[&str]) -> Command {
    let mut command = host.command(INJECTOR, None);
    command.args(["apply", "--output", "json"]).arg(scenario).args(options);
    command
}

/// Starts `injector apply` and waits until the scenario has started.
#[must_use]
pub fn start_scenario(host: &Host, scenario: &Path, options: &[&str]) -> Process {
    let mut process = Process::start(apply(host, scenario, options));
    process.wait_for("started");
    process
}

/// A number in a report.
#[must_use]
#[track_caller]
pub fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {report}"))
}

/// A datagram in a report of `stamp-receive`: its number, its one-way delay, and the time of arrival by
/// the common clock, both in milliseconds.
pub type Arrival = (u64, f64, f64);

/// The datagrams in a report of `stamp-receive`, in the order of their arrival.
#[must_use]
pub fn arrivals(report: &Value) -> Vec<Arrival> {
    let list = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    let ms = |ns: &Value| ns.as_f64().expect("a number") / 1e6;
    let (numbers, delays, times) = (list("numbers"), list("delays_ns"), list("times_ns"));
    let numbers = numbers.iter().map(|number| number.as_u64().expect("a number"));
    let arrivals = numbers.zip(delays.iter().map(ms)).zip(times.iter().map(ms));
    arrivals.map(|((number, delay), time)| (number, delay, time)).collect()
}

/// The middle of the values.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Whether this is a virtual machine of `cargo xtask vm`, which has few programs.
#[must_use]
pub fn is_guest() -> bool {
    Path::new("/vm/jobs").exists()
}

/// Waits until `is_so` returns true.
#[track_caller]
pub fn wait_until(timeout: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + timeout;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The state of a process as in `proc_pid_stat(5)`; `-` if there is no such process.
#[must_use]
pub fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('-')
}

/// Waits for a state. A signalled process changes its state only once it is scheduled.
#[track_caller]
pub fn wait_for_state(pid: u32, wanted: char) {
    let end = Instant::now() + TIMEOUT;
    while state(pid) != wanted {
        assert!(Instant::now() < end, "it is {}, not {wanted}", state(pid));
        thread::sleep(Duration::from_millis(1));
    }
}

/// A unique path for a temporary file, which is not created.
#[must_use]
pub fn scratch_file() -> PathBuf {
    Path::new(env!("PROGRAMS")).with_file_name("tmp").join(unique())
}

/// A rule file, removed when dropped.
#[derive(Debug)]
pub struct RuleFile {
    /// The path.
    pub path: PathBuf,
}

impl RuleFile {
    /// Writes it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let file = Self { path: scratch_file() };
        file.write(text);
        file
    }

    /// Rewrites it.
    pub fn write(&self, text: &str) {
        fs::write(&self.path, text).expect("it can be written");
    }

    /// The option by which injector reads it.
    #[must_use]
    pub fn option(&self) -> String {
        format!("--rules {}", self.path.display())
    }
}

impl Drop for RuleFile {
    fn drop(&mut self) {
        // While panicking there is nothing to be done about a failure.
        let _ = fs::remove_file(&self.path);
    }
}

/// A running `injector inject`.
#[derive(Debug)]
pub struct Injector {
    /// The process.
    pub process: Process,
    /// The `started` event.
    pub started: Value,
}

impl Injector {
    /// Starts it inside the namespace of `host` and waits until the faults are active. `line` is a
    /// command line behind `inject`.
    #[must_use]
    pub fn start(host: &Host, line: &str) -> Self {
        Self::start_within(host, line, TIMEOUT)
    }

    /// As [`Self::start`], with a longer timeout for starting and ending.
    #[must_use]
    pub fn start_within(host: &Host, line: &str, timeout: Duration) -> Self {
        let mut process = Process::start(Self::command(host, line));
        process.timeout = timeout;
        let started = process.wait_for("started");
        Self { process, started }
    }

    /// Starts it on a cgroup.
    #[must_use]
    pub fn on(host: &Host, cgroup: &TestCgroup, line: &str) -> Self {
        Self::start(host, &format!("--cgroup {} {line}", cgroup.path.display()))
    }

    /// A command that runs `injector inject` inside the namespace of `host`.
    #[must_use]
    pub fn command(host: &Host, line: &str) -> Command {
        let mut command = host.command(INJECTOR, None);
        command.args(["inject", "--output", "json"]).args(line.split_whitespace());
        let is_wide = line.contains("--host") || line.contains("--interface");
        if is_wide && !line.contains("--for ") {
            command.args(["--for", "forever"]);
        }
        command
    }

    /// Ends the faults. Returns the summary.
    pub fn stop(self) -> Summary {
        self.process.signal(Signal::SIGTERM);
        let summary = self.process.finish();
        assert_eq!(summary["event"], "summary", "{summary}");
        serde_json::from_value(summary).expect("a summary")
    }
}

/// The summary of injector.
#[derive(Debug, Deserialize)]
pub struct Summary {
    /// The sum of all rules.
    #[serde(flatten)]
    pub total: Counts,
    /// Each rule.
    pub rules: Vec<Counts>,
    /// All packets, matched or not; zeros with an agent.
    #[serde(default)]
    pub seen: Seen,
    /// Statistics of held packets.
    pub held: Option<Held>,
}

/// Statistics of held packets.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs, reason = "the names are those of the output")]
pub struct Held {
    pub engine: String,
    pub dropped: u64,
    pub lost: u64,
}

/// The counters of a rule.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs, reason = "the names are those of the output")]
pub struct Counts {
    pub matched: u64,
    #[serde(flatten)]
    pub done: PacketCounts,
    pub egress: Way,
    pub ingress: Way,
    #[serde(default)]
    pub delay: Value,
}

impl Deref for Counts {
    type Target = PacketCounts;

    fn deref(&self) -> &PacketCounts {
        &self.done
    }
}

/// Traffic of one direction.
#[derive(Clone, Copy, Debug, Deserialize)]
#[allow(missing_docs, reason = "the names are those of the output")]
pub struct Way {
    pub packets: u64,
    pub bytes: u64,
}

/// The packets on the interfaces.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[allow(missing_docs, reason = "the names are those of the output")]
pub struct Seen {
    pub egress: u64,
    pub ingress: u64,
    pub not_ip: u64,
    pub unparsed: u64,
    pub shared: u64,
    pub translated: u64,
}

/// The bounds of hits among `n` packets of a correct implementation with probability `p`.
#[must_use]
pub fn binomial(n: u64, p: f64) -> RangeInclusive<u64> {
    let distribution = Binomial::new(p, n).expect("a probability");
    distribution.inverse_cdf(TAIL / 2.0)..=distribution.inverse_cdf(1.0 - TAIL / 2.0)
}

/// As [`binomial`], for correlated hits: `inflation` is the factor by which the variance of their
/// number exceeds the binomial one.
#[must_use]
pub fn correlated(n: u64, p: f64, inflation: f64) -> RangeInclusive<u64> {
    // Far more than 10^8 : 1 for a normal distribution. The sum is near to it, except for its tails.
    const SIGMAS: f64 = 7.0;
    let mean = n as f64 * p;
    let spread = SIGMAS * (mean * (1.0 - p) * inflation).sqrt();
    (mean - spread).max(0.0).floor() as u64..=(mean + spread).ceil() as u64
}

/// The engines available on this kernel.
#[must_use]
pub fn engines() -> Vec<&'static str> {
    let has_fq = Command::new("unshare")
        .args(["--net", "tc", "qdisc", "add", "dev", "lo", "root", "fq"])
        .output()
        .is_ok_and(|output| output.status.success());
    if has_fq { vec!["edt", "tap"] } else { vec!["tap"] }
}

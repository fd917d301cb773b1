//! Bad inputs and outputs: slow, stopped or closed readers, failing sinks, and unexpected kinds of
//! files. Faults start and end on time whatever happens to their reports.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
        unix::process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    ptr::null_mut,
    sync::Mutex,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use testbed::{
    Family, Host, INJECTOR, Injector, Lab, Process, RuleFile, TIMEOUT, TestCgroup, agent::Agent,
    scratch_file, state, wait_until,
};

/// How long output is blocked.
const BLOCKED: Duration = Duration::from_secs(30);

/// Serializes tests that run several injectors, as a host allows 16.
static TURN: Mutex<()> = Mutex::new(());

/// A blocked sink.
enum Blocked {
    /// The write end of a full pipe of 4,096 bytes, and its read end, which is never read.
    Pipe(OwnedFd, #[allow(dead_code, reason = "it is held open")] OwnedFd),
    /// A terminal with stopped output, as by Ctrl-S, and its master.
    Terminal(OwnedFd, #[allow(dead_code, reason = "it is held open")] OwnedFd),
}

impl Blocked {
    fn pipe() -> Self {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).expect("a small pipe");
        let mut file = File::from(writer);
        file.write_all(&[b'x'; 4096]).expect("room for that");
        Self::Pipe(file.into(), reader)
    }

    fn terminal() -> Self {
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: gets two places for descriptors; the rest may be null.
        let opened = unsafe {
            libc::openpty(&raw mut master, &raw mut slave, null_mut(), null_mut(), null_mut())
        };
        assert_eq!(opened, 0, "a terminal");
        // SAFETY: both were just opened, and nobody else owns them.
        let (master, slave) =
            unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        for side in [&master, &slave] {
            fcntl(side, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).expect("it is open");
        }
        // SAFETY: takes no pointers.
        assert_eq!(unsafe { libc::tcflow(slave.as_raw_fd(), libc::TCOOFF) }, 0, "stopped");
        Self::Terminal(slave, master)
    }

    fn stdio(&self) -> Stdio {
        let (Self::Pipe(sink, _) | Self::Terminal(sink, _)) = self;
        sink.as_fd().try_clone_to_owned().expect("a descriptor").into()
    }
}

/// A process of injector, killed when dropped.
struct Running(Child);

impl Running {
    /// Starts it with both outputs blocked.
    fn start(mut command: Command, sink: &Blocked) -> Self {
        command.stdin(Stdio::null()).stdout(sink.stdio()).stderr(sink.stdio());
        Self(command.spawn().expect("it can be run"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).expect("it is there");
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("it is ours").is_some()
    }

    #[track_caller]
    fn ends_within(&mut self, timeout: Duration) -> ExitStatus {
        wait_until(timeout, "the end", || self.has_ended());
        self.0.wait().expect("it is ours")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn inject(host: &Host, line: &str) -> Command {
    let mut command = host.command(INJECTOR, None);
    command.arg("inject").args(line.split_whitespace());
    command
}

/// `json` for a pipe; the text with the live line for a terminal.
fn format(sink: &Blocked) -> &'static str {
    match sink {
        Blocked::Pipe(..) => "--output json",
        Blocked::Terminal(..) => "",
    }
}

fn sleeper(lab: &Lab, cgroup: &TestCgroup) -> Running {
    let mut command = lab.left.command("sleep", Some(cgroup));
    Running(command.arg("120").spawn().expect("sleep"))
}

fn is_lost(lab: &Lab, family: Family) -> bool {
    let to = lab.right.address(family);
    !lab.left.run_in(None, &format!("ping -c 1 -W 0.3 {to}")).0
}

/// The minimum time that faults of duration `BLOCKED` stay active after they were observed, and the
/// maximum lifetime of injector. A busy machine observes the start late.
const SURELY: Duration = Duration::from_secs(25);
const AT_MOST: Duration = Duration::from_secs(45);

/// Pauses start and end, and `--for` ends everything.
fn pauses_go_on(sink: &Blocked) {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let _sleeper = sleeper(&lab, &cgroup);
    let line = format!(
        "--cgroup {} --pause 1s,every=3s,at=1s --loss 0% --for 30s {}",
        cgroup.path.display(),
        format(sink)
    );
    let began = Instant::now();
    let mut injector = Running::start(inject(&lab.left, &line), sink);
    let (mut pauses, mut since) = (Vec::new(), None);
    while !injector.has_ended() {
        assert!(began.elapsed() < AT_MOST, "it does not end; paused for {pauses:?}");
        match (cgroup.is_frozen(), since) {
            (true, None) => since = Some(Instant::now()),
            (false, Some(start)) => {
                pauses.push(start.elapsed());
                since = None;
            }
            _ => thread::sleep(Duration::from_millis(2)),
        }
    }
    assert!(!cgroup.is_frozen());
    assert!(began.elapsed() >= BLOCKED);
    // At 1 s, 4 s, … 28 s. On a busy machine, some may be observed late, and `--for` may start late.
    assert!((8..=11).contains(&pauses.len()), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause < Duration::from_millis(2900)), "{pauses:?}");
    pauses.sort_unstable();
    let median = pauses[pauses.len() / 2];
    assert!(
        median > Duration::from_millis(900) && median < Duration::from_millis(1300),
        "{pauses:?}"
    );
}

/// Packets are lost from the start to the end.
fn loss_goes_on(sink: &Blocked) {
    let lab = Lab::new();
    let netns = &lab.left.netns;
    let line = format!("--netns {netns} --loss 100% --for 30s {}", format(sink));
    let mut injector = Running::start(inject(&lab.left, &line), sink);
    wait_until(TIMEOUT, "loss", || is_lost(&lab, Family::V4));
    let began = Instant::now();
    while began.elapsed() < SURELY {
        assert!(is_lost(&lab, Family::V4), "passed after {:?}", began.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    injector.ends_within(AT_MOST.saturating_sub(SURELY));
    assert!(!is_lost(&lab, Family::V4));
}

/// Clocks, whose lease is shorter than that of packets.
fn clocks_go_on(sink: &Blocked) {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let ahead = || {
        let mut command = lab.left.command("date", Some(&cgroup));
        let output = command.arg("+%s").output().expect("date").stdout;
        let text = String::from_utf8(output).expect("text");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        text.trim().parse::<i64>().expect("a time") - now.cast_signed()
    };
    let path = cgroup.path.display();
    let line = format!("--cgroup {path} --clock +1h --for 30s {}", format(sink));
    let mut injector = Running::start(inject(&lab.left, &line), sink);
    let is_wrong = || (3500..3700).contains(&ahead());
    wait_until(TIMEOUT, "a wrong clock", is_wrong);
    let began = Instant::now();
    while began.elapsed() < SURELY {
        assert!(is_wrong(), "true time after {:?}", began.elapsed());
        thread::sleep(Duration::from_millis(200));
    }
    injector.ends_within(AT_MOST.saturating_sub(SURELY));
    assert!(ahead().abs() < 100);
}

/// The changes of a scenario are on time, and its timeline is complete.
fn a_scenario_goes_on(sink: &Blocked) {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let _sleeper = sleeper(&lab, &cgroup);
    let file = RuleFile::new(&format!(
        "targets: {{net: {{netns: {}}}, c: {{cgroup: {}}}}}\n\
         timeline:\n\
         - {{at: 1s, for: 29s, on: net, faults: {{rules: [{{loss: 100%}}]}}}}\n\
         - {{at: 1s, for: 29s, on: c, faults: {{processes: {{pause: '500ms,every=2s'}}}}}}\n",
        lab.left.netns,
        cgroup.path.display(),
    ));
    let timeline = scratch_file();
    let mut command = lab.left.command(INJECTOR, None);
    command.arg("apply").arg(&file.path).arg("--timeline").arg(&timeline);
    command.args(format(sink).split_whitespace());
    let mut injector = Running::start(command, sink);
    wait_until(TIMEOUT, "loss", || is_lost(&lab, Family::V4));
    let began = Instant::now();
    while began.elapsed() < SURELY.saturating_sub(Duration::from_secs(1)) {
        assert!(is_lost(&lab, Family::V4), "passed after {:?}", began.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    injector.ends_within(AT_MOST.saturating_sub(SURELY));
    assert!(!is_lost(&lab, Family::V4) && !cgroup.is_frozen());
    let text = fs::read_to_string(&timeline).expect("it is written");
    let _ = fs::remove_file(&timeline);
    let lines = testbed::output::lines(&text);
    let ended = lines.last().expect("lines");
    assert_eq!((&ended["event"], &ended["reason"]), (&"ended".into(), &"done".into()), "{ended}");
    let counts = &ended["targets"]["c"];
    let pauses = counts["pauses"].as_u64().expect("a count");
    let paused_ms = counts["paused_ms"].as_u64().expect("a time");
    assert!((14..=15).contains(&pauses), "{ended}");
    assert!((pauses * 490..pauses * 700).contains(&paused_ms), "{ended}");
    // One sample a second.
    let samples = lines.iter().filter(|line| line["event"] == "sample").count();
    assert!((25..=31).contains(&samples), "{samples}");
}

/// An agent with blocked outputs, and with clients that watch events without reading.
fn an_agent_goes_on(sink: &Blocked) {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let _sleeper = sleeper(&lab, &cgroup);
    let socket = scratch_file();
    let mut command = Agent::command(&lab.left, &socket, &["--audit-reads"]);
    command.stdin(Stdio::null()).stdout(sink.stdio()).stderr(sink.stdio());
    let child = command.spawn().expect("it can be run");
    let audit = PathBuf::from("/nonexistent");
    let mut agent = Agent { child, socket, audit, serves: Vec::new() };
    wait_until(TIMEOUT, "an agent", || UnixStream::connect(&agent.socket).is_ok());
    let watchers: Vec<_> = (0..20).map(|_| agent.watch("/v1/events")).collect();
    let fault = agent.create(&json!({
        "target": {"netns": lab.left.netns}, "rules": [{"loss": "100%"}], "for": "30s",
    }));
    let began = Instant::now();
    let pause = agent.create(&json!({
        "target": {"cgroup": cgroup.path}, "processes": {"pause": "500ms,every=2s"}, "for": "30s",
    }));
    while began.elapsed() < SURELY {
        assert!(is_lost(&lab, Family::V4), "passed after {:?}", began.elapsed());
        // Faults of other clients generate events.
        let asked = Instant::now();
        let other = agent.create(&json!({
            "target": {"netns": lab.right.netns}, "rules": [{"loss": "0%"}], "for": "10s",
        }));
        agent.delete(other["name"].as_str().expect("a name"));
        assert!(asked.elapsed() < Duration::from_secs(10), "slow: {:?}", asked.elapsed());
    }
    wait_until(AT_MOST.saturating_sub(SURELY), "the end", || !is_lost(&lab, Family::V4));
    for fault in [&fault, &pause] {
        let name = fault["name"].as_str().expect("a name");
        let ended = agent.wait_for(name, |fault| fault["phase"] == "ended");
        assert_eq!(ended["reason"], "expired", "{ended}");
    }
    assert!(!cgroup.is_frozen());
    agent.signal(Signal::SIGTERM);
    wait_until(Duration::from_secs(10), "the end of the agent", || {
        agent.child.try_wait().expect("it is ours").is_some()
    });
    drop(watchers);
}

fn all_go_on(sink: impl Fn() -> Blocked) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let sinks: Vec<Blocked> = (0..5).map(|_| sink()).collect();
    let [one, two, three, four, five] = &sinks[..] else { unreachable!("five") };
    thread::scope(|scope| {
        scope.spawn(|| pauses_go_on(one));
        scope.spawn(|| loss_goes_on(two));
        scope.spawn(|| clocks_go_on(three));
        scope.spawn(|| a_scenario_goes_on(four));
        scope.spawn(|| an_agent_goes_on(five));
    });
}

#[test]
fn faults_go_on_and_end_while_nobody_reads_a_pipe() {
    all_go_on(Blocked::pipe);
}

#[test]
fn faults_go_on_and_end_while_a_terminal_is_stopped() {
    all_go_on(Blocked::terminal);
}

#[test]
fn signals_end_faults_whatever_becomes_of_reports() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for sink in [Blocked::pipe(), Blocked::terminal()] {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let (lab, cgroup) = (Lab::new(), TestCgroup::new());
            let _sleeper = sleeper(&lab, &cgroup);
            let path = cgroup.path.display();
            let line = format!("--cgroup {path} --pause 1m,at=0s --loss 1% {}", format(&sink));
            let mut injector = Running::start(inject(&lab.left, &line), &sink);
            wait_until(TIMEOUT, "a pause", || cgroup.is_frozen());
            injector.signal(signal);
            wait_until(Duration::from_secs(2), "the end of the pause", || !cgroup.is_frozen());
            // The summary never arrives.
            assert_eq!(injector.ends_within(Duration::from_secs(4)).code(), Some(1));
        }
    }
}

/// What a process writes to a pipe that is read only from when `is_enough` says so; it is then ended.
fn read_late(mut command: Command, mut is_enough: impl FnMut() -> bool) -> Vec<Value> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).expect("a small pipe");
    command.stdin(Stdio::null()).stdout(Stdio::from(writer));
    let mut injector = Running(command.spawn().expect("it can be run"));
    // The command holds the other end open.
    drop(command);
    wait_until(2 * TIMEOUT, "enough to report", &mut is_enough);
    injector.signal(Signal::SIGTERM);
    let text = std::io::read_to_string(File::from(reader)).expect("text");
    let status = injector.ends_within(TIMEOUT);
    assert_eq!(status.code(), Some(0), "{text}");
    testbed::output::lines(&text)
}

#[test]
fn a_reader_that_returns_is_told_how_many_reports_it_missed() {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    // So that its reports are long.
    let kills = " --kill URG,at=1h".repeat(400);
    let line = format!("--cgroup {} --output json{kills}", cgroup.path.display());
    let began = Instant::now();
    let said = read_late(inject(&lab.left, &line), || began.elapsed() > Duration::from_secs(12));
    let summary = said.last().expect("a summary");
    assert_eq!(summary["event"], "summary", "{summary}");
    assert!(summary["reports_dropped"].as_u64() > Some(0), "{}", summary["reports_dropped"]);
    let progress = said.iter().filter(|event| event["event"] == "progress");
    let elapsed: Vec<u64> =
        progress.map(|event| event["elapsed_ms"].as_u64().expect("ms")).collect();
    assert!(!elapsed.is_empty() && elapsed.is_sorted(), "{elapsed:?}");

    let file = RuleFile::new(&format!(
        "targets: {{net: {{netns: {}}}}}\n\
         timeline: [{{faults: {{rules: [{{loss: 1%}}]}}}}]\n",
        lab.left.netns,
    ));
    let timeline = scratch_file();
    let mut command = lab.left.command(INJECTOR, None);
    command.args(["apply", "--output", "json", "--sample", "10ms", "--timeline"]);
    command.arg(&timeline).arg(&file.path);
    let written = || fs::metadata(&timeline).map_or(0, |metadata| metadata.len());
    let said = read_late(command, || written() > 4 * (64 << 10));
    let whole = fs::read_to_string(&timeline).expect("it is written");
    let _ = fs::remove_file(&timeline);
    let ended = said.last().expect("an end");
    assert_eq!(ended["event"], "ended", "{ended}");
    let dropped = ended["reports_dropped"].as_u64().expect("some were dropped");
    assert_eq!(said.len() as u64 + dropped, whole.lines().count() as u64);
    assert!(!whole.contains("reports_dropped"));
}

#[test]
fn run_ends_with_its_command_whatever_becomes_of_reports() {
    for sink in [Blocked::pipe(), Blocked::terminal()] {
        let mut command = Command::new(INJECTOR);
        command.args(["run", "--loss", "0%", "--output", "json", "--", "sh", "-c"]);
        command.arg("sleep 2; exit 7").stdin(Stdio::null()).stdout(Stdio::null());
        let began = Instant::now();
        let mut run = Running(command.stderr(sink.stdio()).spawn().expect("it can be run"));
        assert_eq!(run.ends_within(Duration::from_secs(8)).code(), Some(7));
        assert!(began.elapsed() >= Duration::from_secs(2));
    }
}

/// Runs a bash line with the path of injector as `$I`. Returns its exit status and standard error.
fn bash(line: &str, folder: &Path) -> (ExitStatus, String) {
    let output = Command::new("bash")
        .args(["-c", line])
        .env("I", INJECTOR)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("bash");
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A tmpfs of 4 KiB, unmounted when dropped.
struct Full(PathBuf);

impl Full {
    fn new() -> Self {
        let folder = scratch_file();
        fs::create_dir(&folder).expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4k", "injector-test"])
            .arg(&folder)
            .status();
        assert!(mounted.expect("mount").success());
        Self(folder)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn reports_that_cannot_be_written_neither_abort_nor_hide_exit_codes() {
    let full = Full::new();
    let no_space = "No space left on device (os error 28)";
    let unwritable = format!("cannot write to standard output: {no_space}");
    let scenario =
        RuleFile::new("targets: {h: {netns: x}}\ntimeline: [{faults: {rules: [{loss: 1%}]}}]");
    let scenario = scenario.path.display();
    let unread = "${PIPESTATUS[0]}";
    // A line, its exit code, and the expected text on standard error; `Some("")` means none.
    let mut cases = vec![
        ("$I run --loss 1% -- sh -c 'exit 0' 2>/dev/full".to_owned(), 0, Some("")),
        ("$I run --loss 1% -- sh -c 'exit 5' 2>/dev/full".into(), 5, Some("")),
        ("$I run --loss 1% -- /nonexistent 2>/dev/full".into(), 127, Some("")),
        ("$I run --loss 1% --output-file /dev/full -- sh -c 'exit 5'".into(), 5,
         Some("cannot write to /dev/full: No space left on device (os error 28)")),
        ("$I run --loss 50% --require-match --output json -- sh -c 'ping -c 1 127.0.0.1 >/dev/null; exit 5' 2>/dev/full".into(), 5, Some("")),
        ("$I inject --netns nonexist --loss 5% 2>/dev/full".into(), 1, Some("")),
        ("$I inject --loss 5% 2>/dev/full".into(), 2, Some("")),
        ("$I --nonsense 2>/dev/full".into(), 2, Some("")),
        ("$I list --health --agent /nonexistent 2>/dev/full".into(), 1, Some("")),
        ("unshare -n $I inject --netns /proc/self/ns/net --loss 1% --for 300ms >/dev/full".into(), 1, Some(&unwritable)),
        ("unshare -n $I inject --netns /proc/self/ns/net --loss 1% --for 300ms --output-file /dev/full".into(), 1, Some("cannot write to /dev/full: No space left")),
        ("unshare -n $I inject --netns /proc/self/ns/net --loss 1% --for 300ms >/dev/full 2>&1".into(), 1, Some("")),
        ("unshare -n $I inject --netns /proc/self/ns/net --loss 1% --for 300ms 2>/dev/full".into(), 0, Some("")),
        ("unshare -n $I inject --netns /proc/self/ns/net --loss 1% --for 300ms --require-match >/dev/full".into(), 3, Some(&unwritable)),
        (format!("unshare -n $I inject --netns /proc/self/ns/net --loss 1% --for 2s --output json | head -1; exit {unread}"), 0, Some("")),
        ("exec 2>&-; $I inject --netns nonexist --loss 5%".into(), 1, Some("")),
        ("$I run --loss 50% --output json -- sh -c 'sleep 3; touch ended; exit 7' 2> >(head -1 >/dev/null); c=$?; test -e ended && exit $c".into(), 7, Some("")),
    ];
    for command in [
        "doctor",
        "list",
        "cleanup",
        "man",
        "completions bash",
        "crd",
        "--help",
        "help run",
        "inject --help",
        "--version",
        &format!("apply --check {scenario}"),
        &format!("apply --check --output json {scenario}"),
    ] {
        cases.push((format!("$I {command} >/dev/full"), 1, Some(&unwritable)));
        cases.push((format!("$I {command} | true; exit {unread}"), 0, Some("")));
        cases.push((format!("$I {command} | head -1 >/dev/null; exit {unread}"), 0, Some("")));
    }
    for (line, code, said) in cases {
        let (status, stderr) = bash(&line, &full.0);
        assert_eq!(status.code(), Some(code), "{line}: {stderr}");
        assert_eq!(status.signal(), None, "{line}: {stderr}");
        match said {
            Some("") => assert_eq!(stderr, "", "{line}"),
            Some(said) => assert!(stderr.contains(said), "{line}: {stderr}"),
            None => {}
        }
        let _ = fs::remove_file(full.0.join("ended"));
    }
}

#[test]
fn run_outlasts_a_full_disk() {
    let full = Full::new();
    let line = "$I run --loss 50% --output json --output-file o -- sh -c 'sleep 12; date; exit 7'";
    let began = Instant::now();
    let (status, stderr) = bash(line, &full.0);
    assert_eq!(status.code(), Some(7), "{stderr}");
    assert!(began.elapsed() >= Duration::from_secs(12));
    assert_eq!(stderr.matches("cannot write to o: No space left on device").count(), 1, "{stderr}");
}

#[test]
fn an_agent_and_a_scenario_outlast_sinks_that_refuse() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new();
    // A scenario continues to its end and reports failed writes.
    let netns = &lab.left.netns;
    let file = RuleFile::new(&format!(
        "targets: {{net: {{netns: {netns}}}}}\n\
         timeline: [{{at: 500ms, for: 1s, faults: {{rules: [{{loss: 100%}}]}}}}]\n",
    ));
    for (sink, said) in [
        ("--timeline /dev/full", "cannot write to /dev/full: No space left on device"),
        (">/dev/full", "cannot write to standard output: No space left on device"),
    ] {
        let path = file.path.display();
        let line = format!("$I apply {path} --output json {sink}");
        let began = Instant::now();
        let (status, stderr) = bash(&line, Path::new("/"));
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
        assert!(began.elapsed() >= Duration::from_millis(1500));
    }
    // An agent's sinks are full from the start.
    let socket = scratch_file();
    let mut command = Agent::command(&lab.left, &socket, &["--audit-log", "/dev/full"]);
    let full = || File::options().write(true).open("/dev/full").expect("it is there");
    command.stdout(full()).stderr(Stdio::piped());
    let child = command.spawn().expect("it can be run");
    let mut agent = Agent { child, socket, audit: PathBuf::new(), serves: Vec::new() };
    wait_until(TIMEOUT, "an agent", || UnixStream::connect(&agent.socket).is_ok());
    let fault = agent.create(&json!({
        "target": {"netns": netns}, "rules": [{"loss": "100%"}], "for": "1m",
    }));
    assert!(is_lost(&lab, Family::V6));
    agent.delete(fault["name"].as_str().expect("a name"));
    assert!(!is_lost(&lab, Family::V6));
    agent.signal(Signal::SIGTERM);
    assert!(agent.child.wait().expect("it ends").success());
    let mut stderr = String::new();
    let mut pipe = agent.child.stderr.take().expect("piped");
    pipe.read_to_string(&mut stderr).expect("text");
    assert!(stderr.contains("cannot write to /dev/full: No space left"), "{stderr}");
    assert!(stderr.contains("cannot write to standard output: No space left"), "{stderr}");
}

/// `inject` in the namespace of `lab.left`, with events as JSON lines.
fn injected(lab: &Lab, line: &str) -> Process {
    let mut process = Process::start(Injector::command(&lab.left, line));
    process.wait_for("started");
    process
}

#[test]
fn a_rule_file_that_cannot_be_read_again_holds_up_nothing() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let wrongs: [(&str, &str); 5] = [
        ("mkfifo F", "it is a named pipe; a regular file is required"),
        ("ln -s /dev/zero F", "it is a device; a regular file is required"),
        ("mkdir F", "it is a directory; a regular file is required"),
        ("truncate -s 65M F", "it is larger than 64 MiB, which is the limit"),
        ("true", "No such file or directory"),
    ];
    for (make, why) in wrongs {
        let (lab, cgroup) = (Lab::new(), TestCgroup::new());
        let _sleeper = sleeper(&lab, &cgroup);
        let rules =
            RuleFile::new("rules:\n  - loss: 100%\nprocesses:\n  pause: 2s,at=1s,every=10s\n");
        let line = format!("--cgroup {} {} --for 5s", cgroup.path.display(), rules.option());
        let began = Instant::now();
        let mut process = injected(&lab, &line);
        wait_until(TIMEOUT, "a pause", || cgroup.is_frozen());
        fs::remove_file(&rules.path).expect("it is there");
        let path = rules.path.display().to_string();
        let (status, stderr) = bash(&make.replace('F', &path), Path::new("/"));
        assert!(status.success(), "{stderr}");
        process.signal(Signal::SIGHUP);
        let message = process.wait_for_warning("the rules stay");
        let expected = format!("the rules stay as they were: cannot read the rules in {path}");
        assert!(message.starts_with(&expected) && message.contains(why), "{make}: {message}");
        let summary = process.finish();
        assert!(began.elapsed() >= Duration::from_secs(5));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert!(!cgroup.is_frozen());
        let pauses = &summary["processes"]["pauses"];
        let stopped = pauses["stopped_ms"].as_f64().expect("a time");
        assert!((1990.0..3000.0).contains(&stopped), "{summary}");
        let _ = fs::remove_file(&rules.path);
        let _ = fs::remove_dir(&rules.path);
    }
}

#[test]
fn name_servers_that_do_not_answer_hold_up_nothing() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new();
    let resolver = RuleFile::new(&format!(
        "nameserver {}\noptions timeout:30 attempts:5\n",
        lab.right.address(Family::V4)
    ));
    for is_asked in [false, true] {
        // The name server exists; the rules drop its answers.
        let rules = RuleFile::new("rules:\n  - loss: 100%\n");
        let netns = &lab.left.netns;
        let mut command = lab.left.command("unshare", None);
        let limit = if is_asked { "" } else { "--for 9s" };
        let script = format!(
            "mount --bind {} /etc/resolv.conf && exec {INJECTOR} inject --netns {netns} {} {limit} --output json",
            resolver.path.display(),
            rules.option(),
        );
        command.args(["--mount", "sh", "-c", &script]);
        let mut process = Process::start(command);
        process.wait_for("started");
        let began = Instant::now();
        rules.write("rules:\n  - loss: 0%\n    remote: db.example.com\n");
        process.signal(Signal::SIGHUP);
        // The rules' name is being looked up for minutes, which blocks another request.
        wait_until(TIMEOUT, "a look-up", || has_thread(process.pid(), "rules"));
        process.signal(Signal::SIGHUP);
        process.wait_for_warning("still being read");
        // Longer than the lease.
        while began.elapsed() < Duration::from_secs(7) {
            assert!(is_lost(&lab, Family::V4), "passed after {:?}", began.elapsed());
        }
        if is_asked {
            process.signal(Signal::SIGTERM);
        }
        let asked = Instant::now();
        let summary = process.finish();
        assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
        assert_eq!(summary["event"], "summary", "{summary}");
        assert!(!is_lost(&lab, Family::V4));
    }
}

fn has_thread(pid: Pid, name: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut names = threads.map(|thread| fs::read_to_string(thread.path().join("comm")));
    names.any(|found| found.is_ok_and(|found| found.trim() == name))
}

#[test]
fn files_that_are_none_are_refused_at_the_start_and_named() {
    let folder = scratch_file();
    fs::create_dir(&folder).expect("a folder");
    let (status, stderr) = bash(
        "mkfifo pipe; truncate -s 65M large; echo 'rules: [{loss: 1%}]' > rules; chmod 600 pipe",
        &folder,
    );
    assert!(status.success(), "{stderr}");
    let scenario = "targets: {h: {netns: x}}\ntimeline: [{faults: {rules: [{loss: 1%}]}}]";
    fs::write(folder.join("scenario"), scenario).expect("a file");
    fs::write(
        folder.join("timeline"),
        r#"{"time":"2026-01-01T00:00:00Z","elapsed_ms":0,"monotonic_ns":1,"schema_version":1,"event":"started","scenario":"x","pid":1,"seed":1,"changes":0,"targets":[]}"#,
    )
    .expect("a file");
    for (command, code) in [
        ("inject --netns x --rules FILE", 2),
        ("run --rules FILE -- true", 2),
        ("run --delay 1ms,jitter=1ms,dist=FILE -- true", 2),
        ("run --delay samples=FILE -- true", 2),
        ("inject --agent /nonexistent --netns x --rules FILE", 2),
        ("apply FILE", 2),
        ("apply --check FILE", 2),
        ("report FILE", 1),
        ("report timeline -o page --measured FILE", 1),
        ("agent --listen 127.0.0.1:0 --token-file FILE", 1),
        ("agent --socket sock --listen 127.0.0.1:0 --tls-cert FILE --tls-key FILE", 1),
        ("list --agent https://127.0.0.1:1 --agent-ca FILE", 1),
        ("list --agent http://127.0.0.1:1 --agent-token FILE", 1),
    ] {
        for (file, why) in [
            ("pipe", "it is a named pipe; a regular file is required"),
            ("/dev/zero", "it is a device; a regular file is required"),
            ("/proc", "it is a directory; a regular file is required"),
            ("large", "which is the limit"),
        ] {
            // A timeline may be larger, and other files are checked for their permissions first.
            if (file == "large" && command.starts_with("report FILE"))
                || (file != "pipe" && command.contains("--token-file"))
            {
                continue;
            }
            let line = format!("timeout 20 $I {}", command.replace("FILE", file));
            let (status, stderr) = bash(&line, &folder);
            assert_eq!(status.code(), Some(code), "{line}: {stderr}");
            assert!(stderr.contains(file) && stderr.contains(why), "{line}: {stderr}");
        }
    }
    // Files passed by a shell as descriptors are read.
    for line in ["$I run --rules <(cat rules) -- true", "$I apply --check <(cat scenario)"] {
        let (status, stderr) = bash(line, &folder);
        assert_eq!(status.code(), Some(0), "{line}: {stderr}");
    }
    fs::remove_dir_all(&folder).expect("it is there");
}

#[test]
fn an_agent_that_does_not_answer_holds_up_no_signal() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let (netns, socket) = (&lab.left.netns, agent.socket.display());
    let line = format!("--agent {socket} --netns {netns} --loss 1%");
    // Stopped during a request for a fault's state, and before a request for a fault.
    let begun = injected(&lab, &line);
    agent.signal(Signal::SIGSTOP);
    let mut asking = Running(Injector::command(&lab.left, &line).spawn().expect("it can be run"));
    wait_until(TIMEOUT, "a connection", || connections(&lab.left, &agent.socket) >= 2);
    asking.signal(Signal::SIGTERM);
    assert_eq!(asking.ends_within(Duration::from_secs(5)).code(), Some(1));
    begun.signal(Signal::SIGTERM);
    wait_until(Duration::from_secs(16), "the end", || state(begun.child.id()) == 'Z');
    agent.signal(Signal::SIGCONT);
    wait_until(TIMEOUT, "no fault", || agent.active().is_empty());
}

/// The number of sockets connected to the one with this path.
fn connections(host: &Host, socket: &Path) -> usize {
    let table = host.run("cat /proc/self/net/unix");
    let name = socket.display().to_string();
    table.lines().filter(|line| line.ends_with(&name)).count().saturating_sub(1)
}

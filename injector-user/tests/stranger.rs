//! A program that starts faults by the library, as one would that is not injector: it has a `main` of its own, threads,
//! and descriptors that children inherit. Started without arguments, it tests what becomes of another run of itself.

use std::{
    collections::BTreeSet,
    env,
    error::Error,
    fs::{self, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use injector_user::Injection;
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::{Pid, dup},
};

type Outcome = Result<(), Box<dyn Error>>;

/// The argument that has this program start faults.
const ROLE: &str = "start-faults";

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

type Test = (&'static str, fn() -> Outcome);

const TESTS: [Test; 2] = [
    ("its_faults_act_and_end", its_faults_act_and_end),
    ("killed_it_leaves_nothing_and_its_main_runs_once", killed_it_leaves_nothing),
];

fn main() -> Outcome {
    let mut args = env::args().skip(1);
    let first = args.next();
    if first.as_deref() == Some(ROLE) {
        let [cgroup, log] = [args.next(), args.next()].map(Option::unwrap_or_default);
        return start_faults(&cgroup, Path::new(&log));
    }
    // As with the harness: options, and parts of the names of tests.
    let args: Vec<String> = first.into_iter().chain(args).collect();
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    for (name, test) in TESTS {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        if args.iter().any(|arg| arg == "--list") {
            println!("{name}: test");
            continue;
        }
        test().map_err(|error| format!("{name}: {error}"))?;
        println!("test {name} ... ok");
    }
    Ok(())
}

/// What somebody's program does.
fn start_faults(cgroup: &str, log: &Path) -> Outcome {
    writeln!(OpenOptions::new().append(true).create(true).open(log)?, "main")?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    if !Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success() {
        return Err("the loopback does not go up".into());
    }
    // Inherited by all children.
    let _inherited = dup(io::stdin())?;
    for _ in 0..4 {
        thread::spawn(|| while fs::read("/proc/self/stat").is_ok() {});
    }
    let (sender, receiver) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    sender.connect(receiver.local_addr()?)?;
    let arrives = |wait| -> io::Result<bool> {
        receiver.set_read_timeout(Some(wait))?;
        sender.send(b"x")?;
        Ok(receiver.recv(&mut [0; 8]).is_ok())
    };
    let port = receiver.local_addr()?.port().to_string();
    let lose = || {
        let builder = Injection::builder().interface("lo")?.protocol("udp")?.loss("100%")?;
        builder.remote_port(&port)?.direction("egress")?.start()
    };
    check(arrives(PATIENCE)?, "packets arrive")?;
    let guard = lose()?;
    check(!arrives(Duration::from_millis(200))?, "packets are lost")?;
    check(guard.counters().packets.done.dropped == 1, "the lost one is counted")?;
    check(guard.end()?.packets.done.dropped == 1, "it is counted at the end")?;
    check(arrives(PATIENCE)?, "packets arrive after the end")?;
    drop(lose()?);
    check(arrives(PATIENCE)?, "packets arrive once the guard is dropped")?;

    let packets = lose()?;
    let stopped = Injection::builder().cgroup(cgroup)?.pause("10m")?.start()?;
    let freeze = Path::new(cgroup).join("cgroup.freeze");
    let is_frozen = || fs::read_to_string(&freeze).is_ok_and(|text| text.trim() == "1");
    wait_until("the pause", is_frozen)?;
    println!("active");
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    packets.end()?;
    let counters = stopped.end()?;
    check(counters.processes.is_some_and(has_paused), "the pause is counted")?;
    println!("ended");
    Ok(())
}

fn has_paused(statistics: injector_user::fault::process::Statistics) -> bool {
    statistics.pauses.is_some_and(|pauses| pauses.done == 1)
}

fn its_faults_act_and_end() -> Outcome {
    let mut stranger = Stranger::start()?;
    check(stranger.cgroup.is_frozen()?, "the cgroup is frozen")?;
    let guardians = stranger.guardians()?;
    // That of the lost packets may have nothing to undo.
    check(!guardians.is_empty(), "there is a guardian")?;
    for pid in &guardians {
        let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        wait_until("the guardian says what it is", || comm().trim() == "injector-guard")?;
        let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        check(open == 3, &format!("the guardian has {open} open files"))?;
    }
    stranger.child.stdin.take().ok_or("no input")?.write_all(b"\n")?;
    check(stranger.line()? == "ended", "it says that it ended")?;
    check(stranger.child.wait()?.success(), "it succeeds")?;
    check(!stranger.cgroup.is_frozen()?, "the cgroup is not frozen at the end")?;
    wait_until("the end of guardians", || !guardians.iter().any(|&pid| lives(pid)))?;
    stranger.check_main_ran_once()
}

fn killed_it_leaves_nothing() -> Outcome {
    for _ in 0..5 {
        let mut stranger = Stranger::start()?;
        let pid = stranger.child.id();
        let guardians = stranger.guardians()?;
        check(!guardians.is_empty(), "there is a guardian")?;
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
        stranger.child.wait()?;
        wait_until("the end of guardians", || !guardians.iter().any(|&pid| lives(pid)))?;
        check(!stranger.cgroup.is_frozen()?, "the guardian has thawed the cgroup")?;
        let owned = format!("\"pid\":{pid},");
        let journals = fs::read_dir("/run/injector").into_iter().flatten().flatten();
        for journal in journals {
            let text = fs::read_to_string(journal.path()).unwrap_or_default();
            check(!text.contains(&owned), "no journal is left")?;
        }
        stranger.check_main_ran_once()?;
    }
    Ok(())
}

/// A run of this program that has started faults.
struct Stranger {
    child: Child,
    output: BufReader<ChildStdout>,
    cgroup: Cgroup,
    log: PathBuf,
}

impl Stranger {
    fn start() -> Result<Self, Box<dyn Error>> {
        let cgroup = Cgroup::new()?;
        let log = env::temp_dir().join(format!("stranger-{}-{:x}", std::process::id(), stamp()));
        let mut child = Command::new(env::current_exe()?)
            .arg(ROLE)
            .arg(&cgroup.path)
            .arg(&log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut stranger = Self { child, output, cgroup, log };
        check(stranger.line()? == "active", "its faults act")?;
        Ok(stranger)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// The children of all of its threads.
    fn guardians(&self) -> io::Result<BTreeSet<i32>> {
        let mut pids = BTreeSet::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let children = fs::read_to_string(thread?.path().join("children"));
            // A thread may have ended.
            pids.extend(
                children
                    .unwrap_or_default()
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<i32>().ok()),
            );
        }
        Ok(pids)
    }

    fn check_main_ran_once(&self) -> Outcome {
        let log = fs::read_to_string(&self.log)?;
        check(log == "main\n", &format!("main ran once: {log}"))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}

/// A cgroup with a process.
struct Cgroup {
    path: PathBuf,
    process: Child,
}

impl Cgroup {
    fn new() -> Result<Self, Box<dyn Error>> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let mount = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let path = words.next()?;
            (words.next()? == "cgroup2").then_some(path)
        });
        let mount = Path::new(mount.ok_or("no cgroup v2 hierarchy is mounted")?);
        let path = mount.join(format!("stranger-{}-{:x}", std::process::id(), stamp()));
        fs::create_dir(&path)?;
        let process = Command::new("sleep").arg("600").spawn()?;
        fs::write(path.join("cgroup.procs"), process.id().to_string())?;
        Ok(Self { path, process })
    }

    fn is_frozen(&self) -> io::Result<bool> {
        Ok(fs::read_to_string(self.path.join("cgroup.freeze"))?.trim() == "1")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let end = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.path).is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether a process is there, and no zombie.
fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// A number that no other call gets.
fn stamp() -> u128 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos())
}

fn check(is_so: bool, what: &str) -> Outcome {
    if is_so { Ok(()) } else { Err(format!("not so: {what}").into()) }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) -> Outcome {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        check(Instant::now() < end, &format!("in time: {what}"))?;
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

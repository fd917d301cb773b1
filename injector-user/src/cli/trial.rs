//! Trials of faults for `injector doctor`: each is carried out once by a child injector, by the code
//! that users' runs go through, and its effect is observed.
//!
//! Packets are faulted on the loopback of a network namespace that the caller has made; processes are
//! children of the child injector.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use clap::Args;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// The hidden command that child injectors run.
pub const SUBCOMMAND: &str = "trial";

/// How long a child injector may take to start, and a faulted packet to arrive.
const TIMEOUT: Duration = Duration::from_mins(1);

/// How long to wait for a packet that should not arrive.
const ABSENCE: Duration = Duration::from_millis(100);

/// What a trial needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// A network namespace with its loopback up.
    Network,
    /// Nothing but processes of its own.
    Processes,
}

/// Which part a fault is about.
#[must_use]
pub fn needs(fault: &str) -> Needs {
    match fault {
        "clock" | "pause" | "kill" | "errno" | "cpu" | "io" => Needs::Processes,
        _ => Needs::Network,
    }
}

/// Carries out a fault, by an engine if one is named. The error says why it does not work here.
pub fn carry_out(fault: &str, engine: Option<&str>) -> Result<(), String> {
    let engine: Vec<&str> = engine.map(|name| ["--engine", name]).into_iter().flatten().collect();
    let outcome = match needs(fault) {
        Needs::Network => packets(fault, &engine),
        Needs::Processes => processes(fault, &engine),
    };
    outcome.map_err(|error| format!("{error:#}"))
}

fn packets(fault: &str, engine: &[&str]) -> Result<()> {
    let options = match fault {
        "loss" => "--loss 100%",
        "partition" => "--partition 127.0.0.1",
        "corrupt" => "--corrupt 100% --direction egress",
        "duplicate" => "--duplicate 100% --direction egress",
        "delay" => "--delay 100ms --direction egress",
        "reorder" => "--delay 60s --reorder 100% --direction egress",
        "rate" => "--rate 80kbit --direction egress",
        "reset" => "--reset",
        other => bail!("there is no trial of {other}"),
    };
    let injector = Injector::start(options, engine)?;
    let observed = match fault {
        "reset" => reset(),
        "loss" | "partition" | "corrupt" => match arrivals(1, 1, ABSENCE)?.len() {
            0 => Ok(()),
            _ => bail!("the packet arrived unharmed"),
        },
        "duplicate" => match arrivals(1, 2, TIMEOUT)?.len() {
            2 => Ok(()),
            _ => bail!("the packet was not duplicated"),
        },
        "delay" => match arrivals(1, 1, TIMEOUT)?[..] {
            [after] if after >= Duration::from_millis(99) => Ok(()),
            [after] => bail!("the packet arrived after {after:?}, not 100ms"),
            _ => bail!("the packet did not arrive"),
        },
        "reorder" => match arrivals(1, 1, TIMEOUT / 2)?[..] {
            [_] => Ok(()),
            _ => bail!("the packet overtook none"),
        },
        _ => match arrivals(3, 3, TIMEOUT)?[..] {
            // Behind two of 1,000 bytes at 10,000 bytes a second.
            [.., last] if last >= Duration::from_millis(190) => Ok(()),
            [.., last] => bail!("3 packets arrived within {last:?}: the rate was not limited"),
            [] => bail!("no packet arrived"),
        },
    };
    injector.end()?;
    observed
}

/// When datagrams over the loopback arrive: `sent` are sent, and `expected` waited for.
fn arrivals(sent: usize, expected: usize, timeout: Duration) -> Result<Vec<Duration>> {
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    sender.connect(receiver.local_addr()?)?;
    let (started, mut arrived) = (Instant::now(), Vec::new());
    for _ in 0..sent {
        sender.send(&[7; 1000])?;
    }
    let mut buffer = [0; 2000];
    while arrived.len() < expected {
        let left = timeout.saturating_sub(started.elapsed());
        if left.is_zero() {
            break;
        }
        receiver.set_read_timeout(Some(left))?;
        if receiver.recv(&mut buffer).is_ok() {
            arrived.push(started.elapsed());
        }
    }
    Ok(arrived)
}

fn reset() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (_server, _) = listener.accept()?;
    client.write_all(b"x")?;
    client.set_read_timeout(Some(TIMEOUT))?;
    match client.read(&mut [0]) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        other => bail!("the connection was not reset: {other:?}"),
    }
}

/// A child injector that faults the loopback.
struct Injector {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Injector {
    fn start(options: &str, engine: &[&str]) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["inject", "--host", "--no-protect", "--for", "120s", "--output", "json"]);
        command.args(options.split(' ')).args(engine);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let Some(output) = child.stdout.take() else { bail!("the child has no output") };
        let mut injector = Self { child, output: BufReader::new(output) };
        let mut line = String::new();
        while !line.contains(r#""event":"started""#) {
            line.clear();
            let mut ready = [PollFd::new(injector.output.get_ref().as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(TIMEOUT).unwrap_or(PollTimeout::MAX);
            if injector.output.buffer().is_empty() && poll(&mut ready, timeout)? == 0 {
                bail!("injector did not start within {TIMEOUT:?}");
            }
            if injector.output.read_line(&mut line)? == 0 {
                bail!(injector.reason()?);
            }
        }
        Ok(injector)
    }

    /// Why it ended.
    fn reason(&mut self) -> Result<String> {
        let mut text = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            errors.read_to_string(&mut text)?;
        }
        Ok(reason(&text))
    }

    fn end(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        self.output.read_to_end(&mut Vec::new())?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { bail!(self.reason()?) }
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        // What could not be ended: its guardian undoes the rest.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What injector said last of errors.
fn reason(text: &str) -> String {
    let said = text.lines().rev().find_map(|line| line.strip_prefix("injector: "));
    said.or_else(|| text.lines().last()).unwrap_or("it failed without a word").to_owned()
}

fn processes(fault: &str, engine: &[&str]) -> Result<()> {
    let options = match fault {
        "clock" => "--clock +1h",
        "pause" => "--pause 300ms,at=200ms,every=1s",
        "kill" => "--kill at=200ms,every=1s",
        "errno" => "--errno openat=EIO,path=/dev/null",
        "cpu" => "--cpu 10%",
        _ => "--io 1gbps",
    };
    let mut command = Command::new("/proc/self/exe");
    command.arg("run").args(options.split(' ')).args(engine);
    command.args(["--", "/proc/self/exe", SUBCOMMAND, fault]).stdin(Stdio::null());
    let before = now();
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    match (fault, output.status.code()) {
        ("kill", Some(0)) => bail!("the process was not killed"),
        ("clock", Some(0)) => {
            let read: u64 = said.trim().parse()?;
            let wrong = read.abs_diff(before + 3600);
            if wrong < 1800 { Ok(()) } else { bail!("a process read the true time") }
        }
        ("kill", Some(137)) | (_, Some(0)) => Ok(()),
        // What the command found, it says on its standard output.
        _ if !said.trim().is_empty() => bail!(said.trim().to_owned()),
        _ => bail!(reason(&errors)),
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Observe a fault from inside, for `injector doctor`
#[derive(Args, Debug)]
pub struct TrialArgs {
    /// Which
    fault: String,
}

/// Observes the fault that this process is under.
pub fn run(args: &TrialArgs) -> Result<ExitCode> {
    let failed = match args.fault.as_str() {
        "clock" => {
            crate::output::print(format!("{}\n", now()))?;
            None
        }
        "pause" => (!was_paused()).then_some("the process was not paused"),
        "kill" => {
            thread::sleep(Duration::from_secs(5));
            None
        }
        "errno" => std::fs::File::open("/dev/null").is_ok().then_some("the call did not fail"),
        "cpu" => (!was_limited()?).then_some("the processor time was not limited"),
        _ => None,
    };
    Ok(match failed {
        None => ExitCode::SUCCESS,
        Some(message) => {
            crate::output::print(format!("{message}\n"))?;
            ExitCode::FAILURE
        }
    })
}

/// Whether this process stands still for most of 300 ms, within some time.
fn was_paused() -> bool {
    let started = Instant::now();
    let mut last = started;
    while started.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(1));
        if last.elapsed() >= Duration::from_millis(290) {
            return true;
        }
        last = Instant::now();
    }
    false
}

/// Whether this process gets far less than one processor.
fn was_limited() -> Result<bool> {
    let used = || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from);
    let (started, before) = (Instant::now(), used()?);
    while started.elapsed() < Duration::from_secs(1) {}
    Ok(used()?.saturating_sub(before) < Duration::from_millis(400))
}

//! Trials of faults for `injector doctor`.
//!
//! A child injector applies each fault once, through the same code as a user's run, and the effect
//! is observed. Packets are faulted on the loopback of a network namespace that the caller has
//! created; processes are children of the child injector.

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
    sys::{
        signal::{Signal, kill},
        socket::{setsockopt, sockopt},
    },
    time::{ClockId, clock_gettime},
    unistd::{Pid, getsid},
};

use crate::{
    spec::info::{Effect, Trial},
    target::cgroup::Hierarchy,
};

/// The hidden command that child injectors run.
pub const SUBCOMMAND: &str = "trial";

/// Name of the trial of `--kill after=N:SYSCALL`; the trial of `kill` covers timed signals.
pub const KILL_AFTER: &str = "kill-after";
/// The trial itself.
pub const KILL_AFTER_TRIAL: Trial =
    Trial { options: "--kill after=3:getsid", effect: Effect::Process };

/// Maximum time for a child injector to start, and for a faulted packet to arrive.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Time to wait for a packet that should not arrive.
const ABSENCE: Duration = Duration::from_millis(100);

/// Type of service (TOS) of ECN-capable packets (RFC 3168).
const ECT_0: i32 = 2;

/// Runs the trial of a fault with additional options. The error explains why the fault does not
/// work.
pub fn carry_out(fault: &str, trial: Trial, options: &[&str]) -> Result<(), String> {
    let outcome = match trial.effect {
        Effect::Process => processes(fault, trial.options, options),
        effect => packets(effect, trial.options, options),
    };
    outcome.map_err(|error| format!("{error:#}"))
}

fn packets(effect: Effect, options: &str, more: &[&str]) -> Result<()> {
    let injector = Injector::start(options, more)?;
    let observed = match effect {
        Effect::Reset => reset(),
        Effect::TooBig => too_big(),
        Effect::Lost => match arrivals(1, 1, ABSENCE)?.len() {
            0 => Ok(()),
            _ => bail!("the packet arrived unharmed"),
        },
        Effect::Twice => match arrivals(1, 2, TIMEOUT)?.len() {
            2 => Ok(()),
            _ => bail!("the packet was not duplicated"),
        },
        Effect::Late(count, least) => match arrivals(count, count, TIMEOUT)?[..] {
            [.., latest] if latest >= least => Ok(()),
            [.., latest] => {
                bail!("the last of {count} packets arrived after {latest:?}, not {least:?}")
            }
            [] => bail!("no packet arrived"),
        },
        Effect::Early => match arrivals(1, 1, TIMEOUT / 2)?[..] {
            [_] => Ok(()),
            _ => bail!("the packet overtook none"),
        },
        Effect::Marked => match arrivals(1, 1, TIMEOUT)?[..] {
            [_] => Ok(()),
            _ => bail!("the packet was dropped, not marked"),
        },
        Effect::Process => bail!("packets show nothing of it"),
    };
    injector.end()?;
    observed
}

/// Sends `sent` ECN-capable datagrams over the loopback and returns the arrival times of up to
/// `expected`.
fn arrivals(sent: usize, expected: usize, timeout: Duration) -> Result<Vec<Duration>> {
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    sender.connect(receiver.local_addr()?)?;
    setsockopt(&sender, sockopt::Ipv4Tos, &ECT_0)?;
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

fn too_big() -> Result<()> {
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    sender.connect(receiver.local_addr()?)?;
    sender.send(&[0; 1200])?;
    sender.set_read_timeout(Some(TIMEOUT))?;
    match sender.recv(&mut [0]) {
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(()),
        other => bail!("the sender was not told the MTU: {other:?}"),
    }
}

/// A child injector that faults the loopback.
struct Injector {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Injector {
    fn start(options: &str, more: &[&str]) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["inject", "--host", "--no-protect", "--for", "120s", "--output", "json"]);
        command.args(options.split(' ')).args(more);
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

    /// Why the child injector exited.
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
        // If the child cannot be ended, its guardian undoes its changes.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The last error message of injector.
fn reason(text: &str) -> String {
    let said = text.lines().rev().find_map(|line| line.strip_prefix("injector: "));
    said.or_else(|| text.lines().last()).unwrap_or("it failed without a word").to_owned()
}

fn processes(fault: &str, options: &str, more: &[&str]) -> Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("run").args(options.split(' ')).args(more);
    command.args(["--", "/proc/self/exe", SUBCOMMAND, fault]).stdin(Stdio::null());
    let before = now();
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    match (fault, output.status.code()) {
        ("kill" | KILL_AFTER, Some(0)) => bail!("the process was not killed"),
        ("clock", Some(0)) => {
            let read: u64 = said.trim().parse()?;
            let wrong = read.abs_diff(before + 3600);
            if wrong < 1800 { Ok(()) } else { bail!("a process read the true time") }
        }
        ("kill" | KILL_AFTER, Some(137)) | (_, Some(0)) => Ok(()),
        // The command reports its result on standard output.
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

/// Observes the fault that is applied to this process.
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
        KILL_AFTER => {
            for _ in 0..3 {
                getsid(None)?;
            }
            None
        }
        "errno" => std::fs::File::open("/dev/null").is_ok().then_some("the call did not fail"),
        "cpu" => (!was_limited()?).then_some("the processor time was not limited"),
        _ => (!has_io_limit()?).then_some("no block device was limited"),
    };
    Ok(match failed {
        None => ExitCode::SUCCESS,
        Some(message) => {
            crate::output::print(format!("{message}\n"))?;
            ExitCode::FAILURE
        }
    })
}

/// Whether this process is paused for most of 300 ms, within five seconds.
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

/// Whether the kernel limits this process's block I/O.
///
/// Throughput is not measured, because that would read or write the user's files.
fn has_io_limit() -> Result<bool> {
    let own = std::fs::read_to_string("/proc/self/cgroup")?;
    let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
        bail!("the process is in no cgroup v2");
    };
    let limits = Hierarchy::find()?.mount().join(own).join("io.max");
    Ok(std::fs::read_to_string(limits)?.contains("bps="))
}

/// Whether this process gets far less than one CPU.
fn was_limited() -> Result<bool> {
    let used = || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from);
    let (started, before) = (Instant::now(), used()?);
    while started.elapsed() < Duration::from_secs(1) {}
    Ok(used()?.saturating_sub(before) < Duration::from_millis(400))
}

//! Processes that stall, die or starve: what was asked.

use std::{
    fmt::{self, Display, Formatter},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use syscalls::Sysno;
use thiserror::Error;

use super::{
    delay::{Delay, DelaySpec, Distribution, Jitter, LONGEST},
    distribution::{DistributionError, Files},
    errno::{ErrnoError, Failure},
    fault::{FaultError, parameters},
    list::list,
    rate::BitRate,
    value::{Percent, Span, ValueError, percent_number, percent_pattern, serde_as_text},
};

/// The shortest pause, and the shortest time from one to the next.
pub const SHORTEST: Duration = Duration::from_millis(1);

/// The longest pause, and the longest time from one to the next.
const LONGEST_PAUSE: Duration = Duration::from_hours(24);

/// Each signal on a call is a program of its own on every system call.
const MOST_CALL_KILLS: usize = 8;

/// Each failure of system calls is a program of its own at a hook of the kernel's.
const MOST_FAILURES: usize = 16;

/// The most processors that a limit counts.
const MOST_PERCENT: f64 = 1e6;

/// The smallest share of one processor: the kernel grants at least 1 ms in at most 1 s.
const LEAST_PERCENT: f64 = 0.1;

/// Why a process fault makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProcessError {
    /// A value in it is none.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A file is no distribution.
    #[error(transparent)]
    Distribution(#[from] DistributionError),
    /// A rate in it is none.
    #[error(transparent)]
    Rate(#[from] FaultError),
    /// Not `T[,…]`.
    #[error(
        "`{0}` is not a pause: write T[,at=T][,every=T][,jitter=J][,dist=D][,every-jitter=J][,every-dist=D], for \
         instance 2s or 50ms,jitter=40ms,dist=pareto,every=1s"
    )]
    Pause(String),
    /// A time beyond what pauses can be.
    #[error("`{0}` is out of range: pauses last 1ms to 24h, and begin 1ms to 24h apart")]
    PauseRange(String),
    /// A jitter beyond what the model takes.
    #[error("`{0}` is too long: a jitter is at most 60s")]
    JitterRange(String),
    /// Says how something is spread that is not.
    #[error(
        "`{0}`: dist goes with jitter, every-dist with every-jitter, and every-jitter with every"
    )]
    NoJitter(String),
    /// Not `[SIGNAL],…`.
    #[error(
        "`{0}` is not a kill: write [SIGNAL,]at=T, [SIGNAL,][at=T,]every=T or [SIGNAL,]after=N:SYSCALL, for \
         instance at=10s, TERM,every=1m or KILL,after=100:fsync"
    )]
    Kill(String),
    /// Not a signal.
    #[error(
        "`{0}` is not a signal: write a name such as KILL or SIGTERM, or a number from 1 to 64"
    )]
    Signal(String),
    /// Not `N:SYSCALL`.
    #[error("`{0}` is not a call: write N:SYSCALL, with N from 1, for instance 100:fsync")]
    Call(String),
    /// Not a system call.
    #[error("`{0}` is not a system call of this architecture (syscalls(2) lists them)")]
    Syscall(String),
    /// Too many of them.
    #[error("at most {MOST_CALL_KILLS} --kill can wait for calls, as each costs on every call")]
    TooManyCallKills,
    /// A failure of system calls makes no sense.
    #[error(transparent)]
    Errno(#[from] ErrnoError),
    /// Too many of them.
    #[error("at most {MOST_FAILURES} --errno can be given, as each is a program of its own")]
    TooManyFailures,
    /// Not a share of processors.
    #[error(
        "`{0}` is not a share of a processor: write a percentage from 0.1% to 1000000%; 100% is one whole processor"
    )]
    Cpu(String),
    /// Not `R[,device=PATH]`.
    #[error(
        "`{0}` is not a limit of I/O: write R[,device=PATH], for instance 1mbps (10^6 bytes a second) or \
         500kbps,device=/dev/sda"
    )]
    Io(String),
}

serde_as_text! {
    PauseSpec: "a pause such as 2s or 50ms,jitter=40ms,every=1s",
    Kill: "a kill such as at=10s or TERM,after=100:fsync",
    CpuLimit: "a share of a processor such as 25%" pattern concat!("^", percent_pattern!(), "$"),
    IoLimit: "a limit of I/O such as 1mbps",
}

/// A time and what there is around it.
#[derive(Clone, Debug, PartialEq)]
struct Around {
    mean: Span,
    jitter: Option<(Span, Distribution)>,
}

impl Around {
    fn parse(
        text: &str,
        mean: &str,
        jitter: Option<&str>,
        dist: Option<&str>,
    ) -> Result<Self, ProcessError> {
        let mean: Span = mean.parse()?;
        if !(SHORTEST..=LONGEST_PAUSE).contains(&mean.0) {
            return Err(ProcessError::PauseRange(text.into()));
        }
        let jitter = match jitter {
            Some(jitter) => {
                let scale: Span = jitter.parse()?;
                if scale.0 > LONGEST {
                    return Err(ProcessError::JitterRange(jitter.into()));
                }
                Some((scale, dist.map(Distribution::named).unwrap_or_default()))
            }
            None if dist.is_some() => return Err(ProcessError::NoJitter(text.into())),
            None => None,
        };
        Ok(Self { mean, jitter })
    }

    fn load(&self, files: &mut Files) -> Result<Delay, DistributionError> {
        let jitter = self.jitter.clone().map(|(scale, distribution)| Jitter {
            scale,
            distribution,
            correlation: Percent::default(),
        });
        DelaySpec::Around { latency: self.mean, jitter }.load(files)
    }

    fn write_jitter(&self, f: &mut Formatter, prefix: &str) -> fmt::Result {
        let Some((scale, distribution)) = &self.jitter else { return Ok(()) };
        write!(f, ",{prefix}jitter={scale}")?;
        if *distribution == Distribution::Uniform {
            Ok(())
        } else {
            write!(f, ",{prefix}dist={distribution}")
        }
    }
}

/// Pauses as written.
#[derive(Clone, Debug, PartialEq)]
pub struct PauseSpec {
    length: Around,
    at: Option<Span>,
    interval: Option<Around>,
}

impl FromStr for PauseSpec {
    type Err = ProcessError;

    fn from_str(text: &str) -> Result<Self, ProcessError> {
        let names = ["at", "every", "jitter", "dist", "every-jitter", "every-dist"];
        let (length, [at, every, jitter, dist, every_jitter, every_dist]) =
            parameters(text, names).ok_or_else(|| ProcessError::Pause(text.into()))?;
        if every.is_none() && (every_jitter.is_some() || every_dist.is_some()) {
            return Err(ProcessError::NoJitter(text.into()));
        }
        Ok(Self {
            length: Around::parse(text, length, jitter, dist)?,
            at: at.map(str::parse).transpose()?,
            interval: every
                .map(|every| Around::parse(text, every, every_jitter, every_dist))
                .transpose()?,
        })
    }
}

impl Display for PauseSpec {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        self.length.mean.fmt(f)?;
        if let Some(at) = &self.at {
            write!(f, ",at={at}")?;
        }
        if let Some(interval) = &self.interval {
            write!(f, ",every={}", interval.mean)?;
        }
        self.length.write_jitter(f, "")?;
        self.interval.as_ref().map_or(Ok(()), |interval| interval.write_jitter(f, "every-"))
    }
}

/// Pauses, with all that files say about them.
#[derive(Clone, Debug, PartialEq)]
pub struct Pause {
    /// How long they are.
    pub length: Delay,
    /// When the first one begins, from the start.
    pub at: Duration,
    /// From the start of one to the start of the next; there is but one if absent.
    pub interval: Option<Delay>,
}

impl PauseSpec {
    fn load(&self, files: &mut Files) -> Result<Pause, ProcessError> {
        let every = self.interval.as_ref().map(|interval| interval.mean.0);
        Ok(Pause {
            length: self.length.load(files)?,
            at: self.at.map(|at| at.0).or(every).unwrap_or_default(),
            interval: self.interval.as_ref().map(|interval| interval.load(files)).transpose()?,
        })
    }
}

/// A signal, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalNumber(pub i32);

/// The last real-time signal.
const LAST_SIGNAL: i32 = 64;

impl FromStr for SignalNumber {
    type Err = ProcessError;

    fn from_str(text: &str) -> Result<Self, ProcessError> {
        let wrong = || ProcessError::Signal(text.into());
        if let Ok(number) = text.parse() {
            return if (1..=LAST_SIGNAL).contains(&number) {
                Ok(Self(number))
            } else {
                Err(wrong())
            };
        }
        let name = text.to_ascii_uppercase();
        let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
        let signal: nix::sys::signal::Signal = name.parse().map_err(|_| wrong())?;
        Ok(Self(signal as i32))
    }
}

impl Display for SignalNumber {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match nix::sys::signal::Signal::try_from(self.0) {
            Ok(signal) => f.write_str(signal.as_str().trim_start_matches("SIG")),
            Err(_) => self.0.fmt(f),
        }
    }
}

/// A signal to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Which.
    pub signal: SignalNumber,
    /// When.
    pub when: When,
}

/// When a signal is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// To all processes.
    Timed {
        /// So long after the start.
        at: Span,
        /// And again after each such time.
        every: Option<Span>,
    },
    /// To the process that makes the `count`-th call of all processes together.
    Call {
        /// Which call, from 1.
        count: u64,
        /// Of what.
        syscall: Syscall,
    },
}

/// A system call of this architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syscall(Sysno);

impl Syscall {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.id() as u32
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0.name()
    }
}

impl FromStr for Syscall {
    type Err = ProcessError;

    fn from_str(text: &str) -> Result<Self, ProcessError> {
        text.parse().map(Self).map_err(|()| ProcessError::Syscall(text.into()))
    }
}

const SIGKILL: SignalNumber = SignalNumber(libc::SIGKILL);

impl FromStr for Kill {
    type Err = ProcessError;

    fn from_str(text: &str) -> Result<Self, ProcessError> {
        let malformed = || ProcessError::Kill(text.into());
        let first = text.split(',').next().unwrap_or_default();
        let whole = if first.contains('=') { format!("KILL,{text}") } else { text.to_owned() };
        let (signal, [at, every, after]) =
            parameters(&whole, ["at", "every", "after"]).ok_or_else(malformed)?;
        let signal = signal.parse()?;
        let when = match (at, every, after) {
            (None, None, Some(after)) => {
                let wrong = || ProcessError::Call(after.into());
                let (count, syscall) = after.split_once(':').ok_or_else(wrong)?;
                let count = count.parse().ok().filter(|&count| count > 0).ok_or_else(wrong)?;
                When::Call { count, syscall: syscall.parse()? }
            }
            (at, every, None) if at.is_some() || every.is_some() => {
                let every: Option<Span> = every.map(str::parse).transpose()?;
                if every.is_some_and(|every| every.0 < SHORTEST) {
                    return Err(ProcessError::PauseRange(text.into()));
                }
                let at = at.map(str::parse).transpose()?.or(every).unwrap_or_default();
                When::Timed { at, every }
            }
            _ => return Err(malformed()),
        };
        Ok(Self { signal, when })
    }
}

impl Display for Kill {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        if self.signal != SIGKILL {
            write!(f, "{},", self.signal)?;
        }
        match self.when {
            When::Timed { at, every: Some(every) } if at == every => write!(f, "every={every}"),
            When::Timed { at, every: Some(every) } => write!(f, "at={at},every={every}"),
            When::Timed { at, every: None } => write!(f, "at={at}"),
            When::Call { count, syscall } => write!(f, "after={count}:{}", syscall.name()),
        }
    }
}

/// How much of one processor the target gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuLimit(f64);

impl CpuLimit {
    /// The fraction of one processor.
    #[must_use]
    pub fn fraction(self) -> f64 {
        self.0 / 100.0
    }
}

impl FromStr for CpuLimit {
    type Err = ProcessError;

    fn from_str(text: &str) -> Result<Self, ProcessError> {
        let wrong = || ProcessError::Cpu(text.into());
        let percent = percent_number(text, MOST_PERCENT)?.ok_or_else(wrong)?;
        if (LEAST_PERCENT..=MOST_PERCENT).contains(&percent) {
            Ok(Self(percent))
        } else {
            Err(wrong())
        }
    }
}

impl Display for CpuLimit {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// How fast the target reads and writes, each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoLimit {
    /// The rate.
    pub rate: BitRate,
    /// From and to this device; all if absent.
    pub device: Option<PathBuf>,
}

impl FromStr for IoLimit {
    type Err = ProcessError;

    fn from_str(text: &str) -> Result<Self, ProcessError> {
        let (rate, [device]) =
            parameters(text, ["device"]).ok_or_else(|| ProcessError::Io(text.into()))?;
        Ok(Self { rate: rate.parse()?, device: device.map(PathBuf::from) })
    }
}

impl Display for IoLimit {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        self.rate.fmt(f)?;
        self.device.as_ref().map_or(Ok(()), |device| write!(f, ",device={}", device.display()))
    }
}

/// Process faults as written: the options of the command line and the keys of a rule file are these fields.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ProcessSpec {
    /// Stop all processes for T, as a garbage collection or the migration of a virtual machine does; once, or again
    /// every so often, from start to start. With jitter, lengths and intervals are spread as --delay's are
    #[arg(
        long,
        value_name = "T[,at=T][,every=T][,jitter=J][,dist=D][,every-jitter=J][,every-dist=D]",
        help_heading = "Process faults"
    )]
    pub pause: Option<PauseSpec>,

    /// Send a signal (KILL if none is named) to all processes at a time, or to the one that makes the N-th call of a
    /// system call; repeatable
    #[arg(
        long,
        value_name = "[SIGNAL,]at=T|every=T|after=N:SYSCALL",
        help_heading = "Process faults"
    )]
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub kill: Vec<Kill>,

    /// Have system calls fail with an error, with a probability (100% if none is given), in the kernel and before they do
    /// anything; only with files by whose path they go, or only with peers; repeatable
    #[arg(
        long,
        value_name = "SYSCALL[/SYSCALL]=ERRNO[,P][,path=GLOB][,remote=CIDR]",
        help_heading = "Process faults"
    )]
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub errno: Vec<Failure>,

    /// Let all processes together have so much of one processor; 150% is one and a half
    #[arg(long, value_name = "P", help_heading = "Process faults")]
    pub cpu: Option<CpuLimit>,

    /// Let all processes together read so fast from each block device, and write so fast to it; units are those of
    /// --rate, 1mbps is 10^6 bytes a second
    #[arg(long, value_name = "R[,device=PATH]", help_heading = "Process faults")]
    pub io: Option<IoLimit>,
}

/// Process faults, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessFaults {
    /// Pauses.
    pub pause: Option<Pause>,
    /// Signals.
    pub kills: Vec<Kill>,
    /// Failing system calls.
    pub failures: Vec<Failure>,
    /// Processor time.
    pub cpu: Option<CpuLimit>,
    /// Block I/O.
    pub io: Option<IoLimit>,
    /// As they were written, for people.
    pub name: String,
}

impl ProcessSpec {
    /// Checks them; `None` if nothing was asked of processes.
    pub fn check(&self) -> Result<Option<ProcessFaults>, ProcessError> {
        self.check_with(&mut Files::default())
    }

    /// The same, where files may have been read already, or may not be read.
    pub fn check_with(&self, files: &mut Files) -> Result<Option<ProcessFaults>, ProcessError> {
        if *self == Self::default() {
            return Ok(None);
        }
        let calls = self.kill.iter().filter(|kill| matches!(kill.when, When::Call { .. }));
        if calls.count() > MOST_CALL_KILLS {
            return Err(ProcessError::TooManyCallKills);
        }
        if self.errno.len() > MOST_FAILURES {
            return Err(ProcessError::TooManyFailures);
        }
        Ok(Some(ProcessFaults {
            pause: self.pause.as_ref().map(|pause| pause.load(files)).transpose()?,
            kills: self.kill.clone(),
            failures: self.errno.clone(),
            cpu: self.cpu,
            io: self.io.clone(),
            name: self.to_string(),
        }))
    }
}

impl Display for ProcessSpec {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.pause.iter().map(|pause| format!("pause {pause}")));
        words.extend(self.kill.iter().map(|kill| format!("kill {kill}")));
        words.extend(self.errno.iter().map(|failure| format!("errno {failure}")));
        words.extend(self.cpu.iter().map(|cpu| format!("cpu {cpu}")));
        words.extend(self.io.iter().map(|io| format!("io {io}")));
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_faults_print_as_they_were_written() {
        for text in [
            "2s",
            "2s,at=5s",
            "50ms,every=1s",
            "50ms,every=1s,jitter=40ms,dist=pareto,every-jitter=500ms,every-dist=normal",
        ] {
            assert_eq!(text.parse::<PauseSpec>().map(|pause| pause.to_string()), Ok(text.into()));
        }
        for text in ["at=10s", "every=60s", "TERM,at=1s,every=2s", "64,at=0ns", "after=3:write"] {
            assert_eq!(text.parse::<Kill>().map(|kill| kill.to_string()), Ok(text.into()));
        }
        assert_eq!("SIGTERM,at=1s".parse::<Kill>(), "term,at=1s".parse());
        assert_eq!("15,at=1s".parse::<Kill>(), "term,at=1s".parse());
        for text in ["25%", "150%", "0.1%"] {
            assert_eq!(text.parse::<CpuLimit>().map(|cpu| cpu.to_string()), Ok(text.into()));
        }
    }

    #[test]
    fn wrong_process_faults_are_refused_by_what_is_wrong() {
        let pause = |text: &str| text.parse::<PauseSpec>().expect_err(text).to_string();
        assert!(pause("2s,often=1s").contains("T[,at=T]"));
        assert!(pause("0s").contains("1ms to 24h"));
        assert!(pause("2s,every=0s").contains("1ms to 24h"));
        assert!(pause("2s,dist=normal").contains("jitter"));
        assert!(pause("2s,every-jitter=1s").contains("every"));
        assert!(pause("5").contains("unit"));
        let kill = |text: &str| text.parse::<Kill>().expect_err(text).to_string();
        assert!(kill("KILL").contains("at=T"));
        assert!(kill("at=1s,after=1:read").contains("at=T"));
        assert!(kill("FOO,at=1s").contains("FOO"));
        assert!(kill("65,at=1s").contains("65"));
        assert!(kill("after=0:read").contains("0:read"));
        assert!(kill("after=1:frob").contains("frob"));
        assert!(
            "0.5".parse::<CpuLimit>().expect_err("no sign").to_string().contains("0.5% (or 50%)")
        );
        for text in ["0", "25", "0.05%", "inf", "x", "-1%"] {
            assert!(text.parse::<CpuLimit>().is_err(), "{text}");
        }
    }

    #[test]
    fn without_a_time_a_single_pause_comes_at_once_and_a_series_after_its_interval() {
        let at = |text: &str| {
            let pause: PauseSpec = text.parse().expect("valid");
            pause.load(&mut Files::default()).expect("no files").at
        };
        assert_eq!(at("2s"), Duration::ZERO);
        assert_eq!(at("2s,every=5s"), Duration::from_secs(5));
        assert_eq!(at("2s,at=0s,every=5s"), Duration::ZERO);
    }
}

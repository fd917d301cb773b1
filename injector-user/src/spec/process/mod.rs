//! Syntax of the process faults, one file each. [`crate::fault::process`] applies them.

pub mod cpu;
pub mod errno;
pub mod io;
pub mod kill;
pub mod pause;

use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use syscalls::Sysno;
use thiserror::Error;

use super::{
    distribution::{DistributionError, Files},
    fault::FaultError,
    info::{Info, fault_spec},
    interpolate::{Difference, Interpolate as _},
    list::list,
    value::ValueError,
};
use cpu::CpuLimit;
use errno::{ErrnoError, Failure};
use io::IoLimit;
use kill::{Kill, When};
use pause::{Pause, PauseSpec};

/// Minimum length of a pause, and minimum interval between pauses.
pub const MIN_DURATION: Duration = Duration::from_millis(1);

/// Maximum number of signals on system calls. Each attaches a separate program to every system
/// call.
const MAX_CALL_KILLS: usize = 8;

/// Maximum number of syscall failures. Each attaches a separate program to a kernel hook.
const MAX_FAILURES: usize = 16;

/// The table of process faults, in the format of the table of packet faults.
macro_rules! process_faults {
    ($callback:ident! { $($args:tt)* }) => {
        $callback! { $($args)*
            { pause, PauseSpec, Option<PauseSpec> }
            {
                #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
                #[schemars(length(min = 1))]
                kill, Kill, Vec<Kill>
            }
            {
                #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
                #[schemars(length(min = 1))]
                errno, Failure, Vec<Failure>
            }
            { cpu, CpuLimit, Option<CpuLimit> }
            { io, IoLimit, Option<IoLimit> }
        }
    };
}

/// A process fault.
pub trait ProcessFault {
    /// Name and help of the option.
    const INFO: Info;
}

process_faults!(fault_spec! {
    /// Process faults as written: the options of the command line and the keys of a rule file are these fields.
    ProcessSpec by ProcessFault of Info, below "Process faults", [] []
});

/// Why a process fault is invalid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProcessError {
    /// A value could not be parsed.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A distribution file is invalid.
    #[error(transparent)]
    Distribution(#[from] DistributionError),
    /// A rate could not be parsed.
    #[error(transparent)]
    Rate(#[from] FaultError),
    /// A pause is out of range.
    #[error("`{0}` is out of range: pauses last 1ms to 24h, and begin 1ms to 24h apart")]
    PauseRange(String),
    /// A jitter is out of range.
    #[error("`{0}` is too long: a jitter is at most 60s")]
    JitterRange(String),
    /// A distribution was given without the value that it applies to.
    #[error(
        "`{0}`: dist goes with jitter, every-dist with every-jitter, and every-jitter with every"
    )]
    NoJitter(String),
    /// Not a signal.
    #[error(
        "`{0}` is not a signal: write a name such as KILL or SIGTERM, or a number from 1 to 64"
    )]
    Signal(String),
    /// Not in the form `N:SYSCALL`.
    #[error("`{0}` is not a call: write N:SYSCALL, with N from 1, for instance 100:fsync")]
    Call(String),
    /// Not a system call.
    #[error("`{0}` is not a system call of this architecture (syscalls(2) lists them)")]
    Syscall(String),
    /// Too many signals on system calls.
    #[error("at most {MAX_CALL_KILLS} --kill can wait for calls, as each costs on every call")]
    TooManyCallKills,
    /// A syscall failure is invalid.
    #[error(transparent)]
    Errno(#[from] ErrnoError),
    /// Too many syscall failures.
    #[error("at most {MAX_FAILURES} --errno can be given, as each is a program of its own")]
    TooManyFailures,
    /// Not a CPU share.
    #[error(
        "`{0}` is not a share of a processor: write a percentage from 0.1% to 1000000%; 100% is one whole processor"
    )]
    Cpu(String),
}

/// A system call of this architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syscall(Sysno);

impl Syscall {
    /// The number of the system call.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.id() as u32
    }

    /// The name of the system call.
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

/// Validated process faults.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessFaults {
    /// Pauses.
    pub pause: Option<Pause>,
    /// Signals.
    pub kills: Vec<Kill>,
    /// Syscall failures.
    pub failures: Vec<Failure>,
    /// CPU limit.
    pub cpu: Option<CpuLimit>,
    /// Block I/O limit.
    pub io: Option<IoLimit>,
    /// Display name, as written by the user.
    pub name: String,
}

impl ProcessSpec {
    /// Validates the faults; `None` if there are none.
    pub fn check(&self) -> Result<Option<ProcessFaults>, ProcessError> {
        self.check_with(&mut Files::default())
    }

    /// The faults that are carried out once.
    #[must_use]
    pub fn once(&self) -> Self {
        Self {
            pause: self.pause.clone().filter(PauseSpec::is_once),
            kill: self.kill.iter().copied().filter(Kill::is_once).collect(),
            ..Self::default()
        }
    }

    /// What remains if the faults began `elapsed` ago. `sent` are the kills that system calls have
    /// triggered.
    #[must_use]
    pub fn after(&self, elapsed: Duration, sent: &[String]) -> Self {
        let is_left = |kill: &Kill| match kill.when {
            When::Call { .. } => !sent.contains(&kill.to_string()),
            When::Timed { .. } => true,
        };
        let kills = self.kill.iter().copied().filter(is_left);
        Self {
            pause: self.pause.clone().and_then(|pause| pause.after(elapsed)),
            kill: kills.filter_map(|kill| kill.after(elapsed)).collect(),
            ..self.clone()
        }
    }

    /// Validates the faults with a shared file cache, which may deny reading.
    pub fn check_with(&self, files: &mut Files) -> Result<Option<ProcessFaults>, ProcessError> {
        if *self == Self::default() {
            return Ok(None);
        }
        let calls = self.kill.iter().filter(|kill| matches!(kill.when, When::Call { .. }));
        if calls.count() > MAX_CALL_KILLS {
            return Err(ProcessError::TooManyCallKills);
        }
        if self.errno.len() > MAX_FAILURES {
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

macro_rules! titles {
    ($({ $(#[$attribute:meta])* $field:ident, $fault:ty, $type:ty })*) => {
        impl Display for ProcessSpec {
            fn fmt(&self, f: &mut Formatter) -> fmt::Result {
                let mut words: Vec<String> = Vec::new();
                $(for value in self.$field.iter() {
                    words.push(format!("{} {value}", <$fault>::INFO.name));
                })*
                f.write_str(&words.join(" "))
            }
        }
    };
}

process_faults!(titles! {});

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
        for text in ["at=10s", "every=60s", "TERM,at=1s,every=2s", "64,at=0s", "after=3:write"] {
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
    fn what_was_done_once_is_not_left() {
        let spec = |pause: &str, kills: &[&str]| ProcessSpec {
            pause: Some(pause.parse().expect("a pause")),
            kill: kills.iter().map(|kill| kill.parse().expect("a kill")).collect(),
            ..ProcessSpec::default()
        };
        let all = spec("2s,at=5s", &["at=10s", "TERM,every=1m", "after=3:fsync"]);
        assert_eq!(all.once(), spec("2s,at=5s", &["at=10s", "after=3:fsync"]));
        assert_eq!(all.after(Duration::ZERO, &[]), all);
        let later = all.after(Duration::from_secs(4), &["after=3:fsync".into()]);
        assert_eq!(later, spec("2s,at=1s", &["at=6s", "TERM,every=1m"]));
        let late = all.after(Duration::from_secs(10), &["after=3:fsync".into()]);
        assert_eq!(late.to_string(), "kill TERM,every=60s");
        let series = spec("2s,every=5s", &[]);
        assert_eq!(series.once(), ProcessSpec::default());
        assert_eq!(series.after(Duration::from_mins(1), &[]), series);
        let at_once = spec("2s", &[]);
        assert_eq!(at_once.after(Duration::ZERO, &[]).pause, None);
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

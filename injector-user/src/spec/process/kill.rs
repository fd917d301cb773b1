//! Signals that are sent to processes.

use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
    time::Duration,
};

use super::{MIN_DURATION, ProcessError, ProcessFault, Syscall};
use crate::spec::{
    info::{Effect, Info, Trial},
    interpolate::{Interpolate, interpolate},
    parameters::{Given, Parameter, Value, malformed, values},
    value::HumanDuration,
};

values!(Kill);
interpolate!(Kill { signal, when });

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

/// A signal to send, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The signal.
    pub signal: SignalNumber,
    /// When to send it.
    pub when: When,
}

/// When a signal is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Send to all processes.
    Timed {
        /// Time from the start.
        at: HumanDuration,
        /// Interval of repetitions; `None` sends once.
        every: Option<HumanDuration>,
    },
    /// Send to the process that makes the `count`-th call, counted over all processes.
    Call {
        /// Number of the call, from 1.
        count: u64,
        /// The system call.
        syscall: Syscall,
    },
}

impl Interpolate for When {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        match (self, to) {
            (Self::Timed { at, every }, Self::Timed { at: to_at, every: to_every }) => {
                Some(Self::Timed {
                    at: at.between(to_at, part)?,
                    every: every.between(to_every, part)?,
                })
            }
            _ => (self == to).then_some(*self),
        }
    }
}

const SIGKILL: SignalNumber = SignalNumber(libc::SIGKILL);

impl Value for Kill {
    type Error = ProcessError;

    const NAME: &'static str = "a kill";
    const SYNTAX: &'static str =
        "[SIGNAL,]at=T, [SIGNAL,][at=T,]every=T or [SIGNAL,]after=N:SYSCALL";
    const EXAMPLE: &'static str = "at=10s or TERM,every=1m or KILL,after=100:fsync";
    const REQUIRED: usize = 0;
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::new("signal", "Which signal, by name or number; default KILL."),
        Parameter::amount("at", "When it is sent, from the start."),
        Parameter::amount("every", "And again after each such time, 1ms or longer."),
        Parameter::new(
            "after",
            "Sent to the process that makes the N-th call of a system call, as N:SYSCALL.",
        ),
    ];

    fn from_parameters(given: &Given) -> Result<Self, ProcessError> {
        let signal = given.parse("signal")?.unwrap_or(SIGKILL);
        let when = match (given.get("at"), given.get("every"), given.get("after")) {
            (None, None, Some(after)) => {
                let wrong = || ProcessError::Call(after.into());
                let (count, syscall) = after.split_once(':').ok_or_else(wrong)?;
                let count = count.parse().ok().filter(|&count| count > 0).ok_or_else(wrong)?;
                When::Call { count, syscall: syscall.parse()? }
            }
            (at, every, None) if at.is_some() || every.is_some() => {
                let every: Option<HumanDuration> = every.map(str::parse).transpose()?;
                if every.is_some_and(|every| every.0 < MIN_DURATION) {
                    return Err(ProcessError::PauseRange(given.text().into()));
                }
                let at = at.map(str::parse).transpose()?.or(every).unwrap_or_default();
                When::Timed { at, every }
            }
            _ => return Err(malformed::<Self>(given.text()).into()),
        };
        Ok(Self { signal, when })
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = Vec::new();
        if self.signal != SIGKILL {
            parameters.push(("signal", self.signal.to_string()));
        }
        match self.when {
            When::Timed { at, every } => {
                if every != Some(at) {
                    parameters.push(("at", at.to_string()));
                }
                parameters.extend(every.map(|every| ("every", every.to_string())));
            }
            When::Call { count, syscall } => {
                parameters.push(("after", format!("{count}:{}", syscall.name())));
            }
        }
        parameters
    }
}

impl Kill {
    /// Whether it is over once it has been sent.
    #[must_use]
    pub const fn is_once(&self) -> bool {
        !matches!(self.when, When::Timed { every: Some(_), .. })
    }

    /// What remains of it after a time; `None` if it was sent at a time that has passed.
    #[must_use]
    pub fn after(self, elapsed: Duration) -> Option<Self> {
        let When::Timed { at, every: None } = self.when else { return Some(self) };
        let left = at.0.checked_sub(elapsed).filter(|left| !left.is_zero())?;
        Some(Self { when: When::Timed { at: HumanDuration(left), every: None }, ..self })
    }
}

impl ProcessFault for Kill {
    const INFO: Info = Info {
        name: "kill",
        value: "[SIGNAL,]at=T|every=T|after=N:SYSCALL",
        placeholder: "[SIGNAL,]WHEN",
        help: "Send a signal; repeatable",
        detail: "The default signal is KILL. At a time it goes to all processes; else to the process that makes the N-th call of a system call, \
                 of all processes together.",
        examples: &["at=1s", "TERM,every=1m", "KILL,after=100:fsync"],
        trial: Some(Trial { options: "--kill at=200ms,every=1s", effect: Effect::Process }),
        instead: "kill -KILL PID",
    };
}

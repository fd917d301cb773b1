//! Pauses of processes.

use std::time::Duration;

use super::{MIN_DURATION, ProcessError, ProcessFault};
use crate::spec::{
    distribution::{DistributionError, Files},
    info::{Effect, Info, Trial},
    interpolate::interpolate,
    packet::delay::{Delay, DelaySpec, Distribution, Jitter, MAX_DELAY},
    parameters::{DISTRIBUTION, Given, Parameter, Value, values},
    value::{HumanDuration, Percent},
};

values!(PauseSpec);
interpolate! {
    Around { mean, jitter }
    PauseSpec { length, at, interval }
}

/// Maximum length of a pause, and maximum interval between pauses.
const MAX_PAUSE: Duration = Duration::from_hours(24);

/// A time and its jitter.
#[derive(Clone, Debug, PartialEq)]
struct Around {
    mean: HumanDuration,
    jitter: Option<(HumanDuration, Distribution)>,
}

impl Around {
    fn parse(given: &Given, names: [&str; 3]) -> Result<Self, ProcessError> {
        let text = given.text();
        let [mean, jitter, dist] = names.map(|name| given.get(name));
        let mean: HumanDuration = mean.unwrap_or_default().parse()?;
        if !(MIN_DURATION..=MAX_PAUSE).contains(&mean.0) {
            return Err(ProcessError::PauseRange(text.into()));
        }
        let jitter = match jitter {
            Some(jitter) => {
                let scale: HumanDuration = jitter.parse()?;
                if scale.0 > MAX_DELAY {
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
            ordered: false,
        });
        DelaySpec::Around { latency: self.mean, jitter }.load(files)
    }

    fn parameters(&self, names: [&'static str; 2]) -> Vec<(&'static str, String)> {
        let Some((scale, distribution)) = &self.jitter else { return Vec::new() };
        let mut parameters = vec![(names[0], scale.to_string())];
        if *distribution != Distribution::Uniform {
            parameters.push((names[1], distribution.to_string()));
        }
        parameters
    }
}

/// Pauses, as specified.
#[derive(Clone, Debug, PartialEq)]
pub struct PauseSpec {
    length: Around,
    at: Option<HumanDuration>,
    interval: Option<Around>,
}

impl Value for PauseSpec {
    type Error = ProcessError;

    const NAME: &'static str = "a pause";
    const SYNTAX: &'static str =
        "T[,at=T][,every=T][,jitter=J][,dist=D][,every-jitter=J][,every-dist=D]";
    const EXAMPLE: &'static str = "2s or 50ms,jitter=40ms,dist=pareto,every=1s";
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::amount("time", "How long a pause lasts, 1ms to 24h."),
        Parameter::amount("at", "When the first one begins, from the start."),
        Parameter::amount("every", "From the start of one to the start of the next, 1ms to 24h."),
        Parameter::amount("jitter", "How far lengths vary around `time`, 0s to 60s."),
        DISTRIBUTION,
        Parameter::amount("every-jitter", "How far intervals vary around `every`, 0s to 60s."),
        Parameter::new("every-dist", "Distribution of `every-jitter`.").or("every-distribution"),
    ];

    fn from_parameters(given: &Given) -> Result<Self, ProcessError> {
        let has_interval = given.has("every");
        if !has_interval && (given.has("every-jitter") || given.has("every-dist")) {
            return Err(ProcessError::NoJitter(given.text().into()));
        }
        let interval = || Around::parse(given, ["every", "every-jitter", "every-dist"]);
        Ok(Self {
            length: Around::parse(given, ["time", "jitter", "dist"])?,
            at: given.parse("at")?,
            interval: has_interval.then(interval).transpose()?,
        })
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = vec![("time", self.length.mean.to_string())];
        parameters.extend(self.at.map(|at| ("at", at.to_string())));
        parameters
            .extend(self.interval.as_ref().map(|interval| ("every", interval.mean.to_string())));
        parameters.extend(self.length.parameters(["jitter", "dist"]));
        let interval = self.interval.iter();
        parameters.extend(interval.flat_map(|it| it.parameters(["every-jitter", "every-dist"])));
        parameters
    }
}

impl PauseSpec {
    /// Whether there is only one pause.
    #[must_use]
    pub const fn is_once(&self) -> bool {
        self.interval.is_none()
    }

    /// What remains of it after a time; `None` if its only pause has begun.
    #[must_use]
    pub fn after(self, elapsed: Duration) -> Option<Self> {
        if self.interval.is_some() {
            return Some(self);
        }
        let left = self.at.unwrap_or_default().0.checked_sub(elapsed);
        let left = left.filter(|left| !left.is_zero())?;
        Some(Self { at: Some(HumanDuration(left)), ..self })
    }
}

impl ProcessFault for PauseSpec {
    const INFO: Info = Info {
        name: "pause",
        instead: "kill -STOP PID, and kill -CONT PID",
        value: "T[,at=T][,every=T][,jitter=J][,dist=D][,every-jitter=J][,every-dist=D]",
        placeholder: "T[,...]",
        help: "Suspend all processes for T",
        detail: "Once, or repeatedly. As a garbage collection or the migration of a virtual machine does. `every` counts from start to \
                 start. With jitter, lengths and intervals vary as those of --delay do.",
        examples: &["2s", "50ms,every=1s,jitter=40ms,dist=pareto"],
        trial: Some(Trial { options: "--pause 300ms,at=200ms,every=1s", effect: Effect::Process }),
    };
}

/// Pauses, with distributions loaded from files.
#[derive(Clone, Debug, PartialEq)]
pub struct Pause {
    /// Length of a pause.
    pub length: Delay,
    /// Time from the start to the first pause.
    pub at: Duration,
    /// Time from the start of one pause to the start of the next; `None` pauses once.
    pub interval: Option<Delay>,
}

impl PauseSpec {
    pub(super) fn load(&self, files: &mut Files) -> Result<Pause, ProcessError> {
        let every = self.interval.as_ref().map(|interval| interval.mean.0);
        Ok(Pause {
            length: self.length.load(files)?,
            at: self.at.map(|at| at.0).or(every).unwrap_or_default(),
            interval: self.interval.as_ref().map(|interval| interval.load(files)).transpose()?,
        })
    }
}

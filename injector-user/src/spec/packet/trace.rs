//! Rate, delay and loss from a CSV file.

use std::path::PathBuf;

use injector_common::model::loss;

use super::{Compiler, PacketFault, PacketInfo, rate::Size, ways::Ways};
use crate::spec::{
    distribution::Files,
    fault::FaultError,
    info::Info,
    interpolate::Interpolate,
    parameters::{Given, Parameter, Value, values},
    rule::RuleError,
    trace::{Played, TraceError},
};

values!(Trace);

/// A CSV trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Path of the file.
    pub path: PathBuf,
    /// Whether the trace starts again at its last time.
    pub is_loop: bool,
    /// Queue limit in bytes; `None` for the default.
    pub queue: Option<Size>,
    /// Bytes that the link adds to each packet; may be negative.
    pub overhead: i32,
}

/// Error for a rule that has a rate as well.
pub const WITH_RATE: &str = "the trace has a column `rate`: leave --rate and --profile out";

/// Error for a rule that has a delay as well.
pub const WITH_DELAY: &str =
    "the trace has a column `delay`: leave --delay, --rtt, --reorder and --profile out";

/// Error for a rule that has a loss as well.
pub const WITH_LOSS: &str = "the trace has a column `loss`: leave --loss, --loss-every, --loss-state, --loss-gemodel \
                             and --profile out";

/// Error for a trace without rows for the packets of the rule.
pub const NO_ROWS: &str = "the trace has no row for the direction of the rule";

impl Value for Trace {
    type Error = FaultError;

    const NAME: &'static str = "a trace";
    const SYNTAX: &'static str = "FILE[,loop][,overhead=N][,queue=SIZE]";
    const EXAMPLE: &'static str = "lte.csv or lte.csv,loop,queue=64kb";
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::new("file", "A CSV file with the columns time, rate, delay, loss, direction."),
        LOOP,
        Parameter::new("overhead", "Bytes added to each packet's length; may be negative."),
        Parameter::amount(
            "queue",
            "Length of the queue, such as 64kb; packets beyond it are dropped.",
        ),
    ];

    fn from_parameters(given: &Given) -> Result<Self, FaultError> {
        Ok(Self {
            path: given.get("file").unwrap_or_default().into(),
            is_loop: given.has("loop"),
            queue: given.parse("queue")?,
            overhead: overhead(given)?,
        })
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = vec![("file", self.path.display().to_string())];
        parameters.extend(played(self.is_loop, self.overhead, self.queue));
        parameters
    }
}

/// The parameter `loop`.
pub(super) const LOOP: Parameter =
    Parameter::switch("loop", "Start the trace again at its last time.");

/// Parses the parameter `overhead`; defaults to 0.
pub(super) fn overhead(given: &Given) -> Result<i32, FaultError> {
    let parse = |text: &str| text.parse().map_err(|_| FaultError::Overhead(text.into()));
    given.get("overhead").map_or(Ok(0), parse)
}

/// The parameters of a trace besides its file.
pub(super) fn played(
    is_loop: bool,
    overhead: i32,
    queue: Option<Size>,
) -> impl Iterator<Item = (&'static str, String)> {
    let is_loop = is_loop.then(|| ("loop", true.to_string()));
    let overhead = (overhead != 0).then(|| ("overhead", overhead.to_string()));
    let queue = queue.map(|queue| ("queue", queue.to_string()));
    [is_loop, overhead, queue].into_iter().flatten()
}

impl Interpolate for Trace {
    fn between(&self, to: &Self, _: f64) -> Option<Self> {
        (self == to).then(|| self.clone())
    }
}

impl Trace {
    /// The directions that the file has rows for, if it has a column for them.
    pub fn ways(&self, files: &mut Files) -> Result<Ways<()>, TraceError> {
        let timeline = files.timeline(&self.path, self.is_loop)?;
        Ok(if timeline.columns.direction {
            Ways::Each { down: timeline.down.map(drop), up: timeline.up.map(drop) }
        } else {
            Ways::Both(())
        })
    }
}

impl PacketFault for Trace {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "trace",
            value: "FILE[,loop][,overhead=N][,queue=SIZE]",
            placeholder: "FILE[,...]",
            help: "Play rate, delay and loss from a CSV file",
            detail: "The first line of FILE names its columns: time, at least one of rate, delay and loss, and optionally direction (down, up or both). \
                     Each further line has values that hold from its time on, in the units of the options: 100ms,1.5mbit,30ms,2%. The first time is 0s. \
                     The last values hold until the rule ends; with loop, the trace starts again at its last time.",
            examples: &["lte.csv,loop"],
            ..Info::DEFAULT
        },
        holds: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(trace: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        let timeline = compiler.files.timeline(&trace.path, trace.is_loop)?;
        let direction = compiler.rule.direction.unwrap_or_default();
        let table = timeline.of(direction).ok_or(RuleError::Fault(NO_ROWS))?;
        let (rule, impairment) = (compiler.rule, &mut compiler.impairment);
        if timeline.columns.rate && rule.rate.is_some() {
            return Err(RuleError::Fault(WITH_RATE));
        }
        if impairment.trace.is_some() {
            return Err(RuleError::Fault(WITH_RATE_TRACE));
        }
        let has_delay = rule.delay.is_some() || rule.rtt.is_some() || rule.reorder.is_some();
        if timeline.columns.delay && has_delay {
            return Err(RuleError::Fault(WITH_DELAY));
        }
        if timeline.columns.loss && impairment.rule.loss.kind != loss::NONE {
            return Err(RuleError::Fault(WITH_LOSS));
        }
        impairment.play(Played {
            table: table.clone(),
            queue: trace.queue.map(|queue| queue.0),
            overhead: trace.overhead,
        });
        Ok(())
    }
}

/// Error for a rule that plays two traces.
pub const WITH_RATE_TRACE: &str =
    "a rule plays one trace: leave out --trace, or make `rate` a column of it";

#[cfg(test)]
mod tests;

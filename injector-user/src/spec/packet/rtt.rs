//! Delay of round trips.

use std::time::Duration;

use super::{Compiler, PacketFault, PacketInfo, delay};
use crate::spec::{
    info::{Effect, Info, Trial},
    interpolate::interpolate,
    parameters::{Given, Parameter, Value, values},
    rule::{Direction, RuleError, RuleSpec},
    value::{HumanDuration, ValueError},
};

values!(Rtt);
interpolate!(Rtt { 0 });

/// Additional round-trip time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtt(pub HumanDuration);

impl Value for Rtt {
    type Error = ValueError;

    const NAME: &'static str = "a duration";
    const SYNTAX: &'static str = "T";
    const EXAMPLE: &'static str = "50ms";
    const PARAMETERS: &'static [Parameter] =
        &[Parameter::amount("time", "How much longer a round trip takes, 0s to 120s.")];

    fn from_parameters(given: &Given) -> Result<Self, ValueError> {
        given.required("time").map(Self)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("time", self.0.to_string())]
    }
}

/// Error for a rule that has a delay as well.
pub const WITH_DELAY: &str =
    "--rtt is a delay of half of it each way: give either --rtt or --delay";

/// Error for a rule with one direction only.
pub const ONE_WAY: &str = "--rtt delays both ways, half of it each: leave --direction out, or use --delay for one way only";

/// Error for a round-trip time above the maximum: half of it must be a valid delay.
pub const TOO_LONG: &str = "--rtt is too long: a round-trip time is 0s to 120s";

impl PacketFault for Rtt {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "rtt",
            instead: "tc qdisc add dev IF root netem delay 100ms, for all sent packets of an interface",
            value: "T",
            help: "Delay round trips by T",
            detail: "Half of T in each direction.",
            examples: &["50ms", "120s"],
            trial: Some(Trial {
                options: "--rtt 100ms",
                // One way only: over the loopback, a packet is classified when it is sent, and not
                // on receipt.
                effect: Effect::Late(1, Duration::from_millis(49)),
            }),
            ..Info::DEFAULT
        },
        holds: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(rtt: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        compiler.impairment.hold().delay.latency_ns = rtt.half(compiler.rule)?.nanoseconds();
        Ok(())
    }
}

impl Rtt {
    /// The delay in each direction of a rule.
    pub fn half(self, rule: &RuleSpec) -> Result<HumanDuration, RuleError> {
        let Self(rtt) = self;
        if rule.delay.is_some() {
            return Err(RuleError::Fault(WITH_DELAY));
        }
        if rule.direction.unwrap_or_default() != Direction::Both {
            return Err(RuleError::Fault(ONE_WAY));
        }
        if rtt.0 > 2 * delay::MAX_DELAY {
            return Err(RuleError::Fault(TOO_LONG));
        }
        Ok(HumanDuration(rtt.0 / 2))
    }
}

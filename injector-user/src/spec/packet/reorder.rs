//! Reordering of packets.

use super::{Compiler, PacketFault, PacketInfo};
use crate::spec::{
    fault::{Every, FaultError, Odds},
    info::{Effect, Info, Trial},
    interpolate::interpolate,
    parameters::{CORRELATION, Given, Parameter, Value, values},
    rule::RuleError,
};

values!(Reorder);
interpolate!(Reorder { odds, gap });

/// Which packets are sent immediately, so that they overtake delayed ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reorder {
    /// Probability for eligible packets.
    pub odds: Odds,
    /// One in this number of packets is eligible.
    pub gap: Every,
}

impl Value for Reorder {
    type Error = FaultError;

    const NAME: &'static str = "a reordering";
    const SYNTAX: &'static str = "P[,corr=C][,gap=N]";
    const EXAMPLE: &'static str = "25% or 25%,corr=50%,gap=5";
    const PATTERN: Option<&'static str> =
        Some("^[0-9.]+ *%(, *((corr|correlation)=[0-9.]+ *%|gap=[0-9]+)){0,2}$");
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::percent("probability", "How many of the packets overtake, 0% to 100%."),
        CORRELATION,
        Parameter::new("gap", "Only every so many packets may one overtake, from 1; default 1."),
    ];

    fn from_parameters(given: &Given) -> Result<Self, FaultError> {
        Ok(Self { odds: Odds::of(given)?, gap: given.parse("gap")?.unwrap_or(Every(1)) })
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = self.odds.parameters();
        if self.gap != Every(1) {
            parameters.push(("gap", self.gap.to_string()));
        }
        parameters
    }
}

/// Error for a rule without a delay.
pub const ALONE: &str =
    "--reorder lets packets overtake delayed ones: give --delay or --rtt of more than 0 as well";

/// Error for a rule whose flows keep their order.
pub const ORDERED: &str =
    "--reorder lets packets overtake others, and `ordered` in --delay prevents it: leave one out";

impl PacketFault for Reorder {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "reorder",
            instead: "tc qdisc add dev IF root netem delay 100ms reorder 25%, for all sent packets of an interface",
            value: "P[,corr=C][,gap=N]",
            placeholder: "P[,...]",
            help: "Let packets overtake delayed ones",
            detail: "P is the probability. Requires --delay or --rtt. With N, only after N-1 packets that were held back.",
            examples: &["25%", "25%,corr=50%,gap=5"],
            trial: Some(Trial {
                options: "--delay 60s --reorder 100% --direction egress",
                effect: Effect::Early,
            }),
        },
        is_modifier: true,
        holds: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(reorder: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        let delay = &mut compiler.impairment.hold().delay;
        if delay.latency_ns == 0 {
            return Err(RuleError::Fault(ALONE));
        }
        if delay.orders_flows() {
            return Err(RuleError::Fault(ORDERED));
        }
        delay.reorder = reorder.odds.chance();
        delay.gap = reorder.gap.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{parameters::malformed, value::ValueError};

    #[test]
    fn reorderings_print_as_they_were_written() {
        for text in ["25%", "0%", "25%,corr=50%", "25%,gap=5", "100%,corr=0.5%,gap=4294967295"] {
            let printed = text.parse::<Reorder>().map(|reorder| reorder.to_string());
            assert_eq!(printed, Ok(text.into()));
        }
        let printed = "25%,gap=1,corr=0%".parse::<Reorder>().map(|reorder| reorder.to_string());
        assert_eq!(printed, Ok("25%".into()));
    }

    #[test]
    fn wrong_reorderings_are_refused_by_what_is_wrong() {
        let error = |text: &str| text.parse::<Reorder>().expect_err(text);
        for text in ["25%,50%", "25%,gap=", "25%,gap=1,gap=2", "25%,gap=1,dist=normal"] {
            assert_eq!(error(text), malformed::<Reorder>(text).into());
        }
        for text in ["", "101%", "gap=5"] {
            assert_eq!(error(text), ValueError::Percent(text.into()).into());
        }
        assert_eq!(error("25%,gap=0"), FaultError::Every("0".into()));
        assert_eq!(error("1%,corr=100%"), FaultError::FullCorrelation("1%,corr=100%".into()));
    }
}

//! Loss of packets, in one of four models.

use injector_common::{model::loss, rule::RULE_STATEFUL};

use super::{Compiler, Impairment, PacketFault, PacketInfo};
use crate::spec::{
    fault::{Every, FaultError, Odds, odds, probability},
    info::{Effect, Info, Trial},
    interpolate::interpolate,
    parameters::{Given, Parameter, Value, values},
    rule::RuleError,
    value::Percent,
};

odds! {
    /// Which packets are lost at random.
    Loss, "a chance"
}

values!(LossEvery, LossState, LossGemodel);
interpolate! {
    LossEvery { 0 }
    LossState { p13, p31, p32, p23, p14 }
    LossGemodel { p, r, loss_in_bad, loss_in_good }
}

/// Error for a rule with several models.
pub const SEVERAL: &str =
    "only one of loss, loss-every, loss-state and loss-gemodel can be used in one rule";

/// Sets the loss model. Fails if another one is set already.
fn lose(impairment: &mut Impairment, model: loss::Loss) -> Result<(), RuleError> {
    if impairment.rule.loss.kind != loss::NONE {
        return Err(RuleError::Fault(SEVERAL));
    }
    impairment.rule.loss = model;
    if model.has_memory() {
        impairment.rule.flags |= RULE_STATEFUL;
    }
    Ok(())
}

impl PacketFault for Loss {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "loss",
            instead: "tc qdisc add dev IF root netem loss 1%, for all sent packets of an interface",
            value: "P[,corr=C]",
            placeholder: "P[,...]",
            help: "Drop packets at random with probability P",
            detail: "With corr=C, each outcome is correlated with the one before. down=...,up=... gives one for received and one for sent packets.",
            examples: &["1%", "0%", "20%,corr=25%"],
            trial: Some(Trial { options: "--loss 100%", effect: Effect::Lost }),
        },
        by_xdp: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(loss: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        lose(&mut compiler.impairment, loss::Loss::random(loss.0.chance()))
    }
}

/// Drops every N-th packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossEvery(pub Every);

impl Value for LossEvery {
    type Error = FaultError;

    const NAME: &'static str = "a count of packets";
    const SYNTAX: &'static str = "a whole number, 1 or more";
    const EXAMPLE: &'static str = "10";
    const PARAMETERS: &'static [Parameter] =
        &[Parameter::new("every", "Every so many packets one is dropped, from 1.")];

    fn from_parameters(given: &Given) -> Result<Self, FaultError> {
        given.required("every").map(Self)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("every", self.0.to_string())]
    }
}

impl PacketFault for LossEvery {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "loss-every",
            value: "N",
            help: "Drop every N-th packet",
            examples: &["3", "1"],
            ..Info::DEFAULT
        },
        by_xdp: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(every: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        lose(&mut compiler.impairment, loss::Loss::every(every.0.0))
    }
}

/// netem's 4-state Markov loss model.
///
/// States: 1 received in a gap, 2 received in a burst, 3 lost in a burst, 4 lost alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossState {
    /// Gap to burst loss.
    pub p13: Percent,
    /// Burst loss to gap; defaults to 100% - p13.
    pub p31: Percent,
    /// Burst loss to received in the burst; defaults to 0%.
    pub p32: Percent,
    /// Received in the burst to burst loss; defaults to 100%.
    pub p23: Percent,
    /// Gap to a single loss; defaults to 0%.
    pub p14: Percent,
}

impl Value for LossState {
    type Error = FaultError;

    const NAME: &'static str = "a 4-state loss model";
    const SYNTAX: &'static str = "p13[,p31[,p32[,p23[,p14]]]] as percentages";
    const EXAMPLE: &'static str = "1%,10%,70%,0.1%";
    const PATTERN: Option<&'static str> = Some("^[0-9.]+ *%(, *[0-9.]+ *%){0,4}$");
    const POSITIONAL: bool = true;
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::percent("p13", "From received in a gap to lost in a burst."),
        Parameter::percent("p31", "From lost in a burst to received in a gap; default 100% - p13."),
        Parameter::percent("p32", "From lost to received within a burst; default 0%."),
        Parameter::percent("p23", "From received to lost within a burst; default 100%."),
        Parameter::percent("p14", "From received in a gap to a single loss; default 0%."),
    ];

    fn from_parameters(given: &Given) -> Result<Self, FaultError> {
        let or = |name, default| given.parse(name).map(|value| value.unwrap_or(default));
        let p13 = given.required("p13")?;
        let state = Self {
            p13,
            p31: or("p31", p13.complement())?,
            p32: or("p32", Percent::default())?,
            p23: or("p23", Percent::ALL)?,
            p14: or("p14", Percent::default())?,
        };
        let excess = |a: Percent, b: Percent| a.fraction() + b.fraction() > 1.0 + 1e-9;
        let text = || given.text().into();
        if excess(state.p13, state.p14) {
            return Err(FaultError::Sum { text: text(), sum: "p13 and p14" });
        }
        if excess(state.p31, state.p32) {
            return Err(FaultError::Sum { text: text(), sum: "p31 and p32" });
        }
        Ok(state)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let Self { p13, p31, p32, p23, p14 } = self;
        [("p13", p13), ("p31", p31), ("p32", p32), ("p23", p23), ("p14", p14)]
            .map(|(name, value)| (name, value.to_string()))
            .into()
    }
}

impl PacketFault for LossState {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "loss-state",
            value: "p13[,p31[,p32[,p23[,p14]]]]",
            placeholder: "P13[,...]",
            help: "Drop packets by a 4-state Markov model",
            detail: "The model and its defaults are netem's.",
            examples: &["10%", "1%,10%,70%,0.1%,0.5%"],
            ..Info::DEFAULT
        },
        by_xdp: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(state: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        let Self { p13, p31, p32, p23, p14 } = *state;
        let [p13, p31, p32, p23, p14] = [p13, p31, p32, p23, p14].map(probability);
        lose(&mut compiler.impairment, loss::Loss::state(p13, p31, p32, p23, p14))
    }
}

/// The Gilbert-Elliott loss model, with netem's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossGemodel {
    /// Good to bad.
    pub p: Percent,
    /// Bad to good; defaults to 100% - p.
    pub r: Percent,
    /// 1-h: loss in the bad state; defaults to 100%.
    pub loss_in_bad: Percent,
    /// 1-k: loss in the good state; defaults to 0%.
    pub loss_in_good: Percent,
}

impl Value for LossGemodel {
    type Error = FaultError;

    const NAME: &'static str = "a Gilbert-Elliott loss model";
    const SYNTAX: &'static str = "p[,r[,1-h[,1-k]]] as percentages";
    const EXAMPLE: &'static str = "1%,10%,70%,0.1%";
    const PATTERN: Option<&'static str> = Some("^[0-9.]+ *%(, *[0-9.]+ *%){0,3}$");
    const POSITIONAL: bool = true;
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::percent("p", "From the good state to the bad one."),
        Parameter::percent("r", "From the bad state to the good one; default 100% - p."),
        Parameter::percent("1-h", "Loss in the bad state; default 100%."),
        Parameter::percent("1-k", "Loss in the good state; default 0%."),
    ];

    fn from_parameters(given: &Given) -> Result<Self, FaultError> {
        let or = |name, default| given.parse(name).map(|value| value.unwrap_or(default));
        let p = given.required("p")?;
        Ok(Self {
            p,
            r: or("r", p.complement())?,
            loss_in_bad: or("1-h", Percent::ALL)?,
            loss_in_good: or("1-k", Percent::default())?,
        })
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        [("p", self.p), ("r", self.r), ("1-h", self.loss_in_bad), ("1-k", self.loss_in_good)]
            .map(|(name, value)| (name, value.to_string()))
            .into()
    }
}

impl PacketFault for LossGemodel {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "loss-gemodel",
            value: "p[,r[,1-h[,1-k]]]",
            placeholder: "P[,...]",
            help: "Drop packets by the Gilbert-Elliott model",
            examples: &["1%", "1%,10%,70%,0.1%"],
            ..Info::DEFAULT
        },
        by_xdp: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(model: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        let Self { p, r, loss_in_bad, loss_in_good } = *model;
        let [p, r, in_bad, in_good] = [p, r, loss_in_bad, loss_in_good].map(probability);
        lose(&mut compiler.impairment, loss::Loss::gemodel(p, r, in_bad, in_good))
    }
}

impl Impairment {
    /// Drops all packets.
    #[must_use]
    pub fn drop_all() -> Self {
        let all = Odds { probability: Percent::ALL, ..Odds::default() };
        let mut impairment = Self::default();
        impairment.rule.loss = loss::Loss::random(all.chance());
        impairment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_the_default_of_netem() {
        let state: LossState = "10%".parse().expect("valid");
        assert_eq!(state.to_string(), "10%,90%,0%,100%,0%");
        let gemodel: LossGemodel = "1%".parse().expect("valid");
        assert_eq!(gemodel.to_string(), "1%,99%,100%,0%");
    }

    #[test]
    fn probabilities_out_of_one_state_do_not_exceed_1() {
        assert!("60%,10%,10%,10%,40%".parse::<LossState>().is_ok());
        assert!("60%,10%,10%,10%,41%".parse::<LossState>().is_err());
        assert!("10%,60%,41%".parse::<LossState>().is_err());
        assert!("1%,1%,1%,1%,1%".parse::<LossGemodel>().is_err());
    }

    #[test]
    fn odds_take_a_correlation() {
        assert_eq!(
            "1%,corr=25%".parse::<Loss>().map(|odds| odds.to_string()),
            Ok("1%,corr=25%".into())
        );
        assert_eq!("1%".parse::<Loss>().map(|odds| odds.to_string()), Ok("1%".into()));
        for text in ["1%,25%", "1%,corr=", "1%,corr=101%", "1%,corr=100%", ",corr=1%", ""] {
            assert!(text.parse::<Loss>().is_err(), "{text}");
        }
    }
}

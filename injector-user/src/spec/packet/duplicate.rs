//! Duplication of packets.

use injector_common::{
    model::chance::Chance,
    rule::{RULE_DUPLICATES, RULE_STATEFUL},
};

use super::{Compiler, PacketFault, PacketInfo};
use crate::spec::{
    fault::odds,
    info::{Effect, Info, Trial},
    rule::RuleError,
};

odds! {
    /// Which packets are duplicated.
    Duplicate, "a chance"
}

impl PacketFault for Duplicate {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "duplicate",
            instead: "tc qdisc add dev IF root netem duplicate 1%, for all sent packets of an interface",
            value: "P[,corr=C]",
            placeholder: "P[,...]",
            help: "Send packets twice with probability P",
            examples: &["1%", "2%,corr=25%"],
            trial: Some(Trial {
                options: "--duplicate 100% --direction egress",
                effect: Effect::Twice,
            }),
            ..Info::DEFAULT
        },
        ..PacketInfo::DEFAULT
    };

    fn compile(duplicate: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        let rule = &mut compiler.impairment.rule;
        rule.duplicate = duplicate.0.chance();
        if rule.duplicate != Chance::NEVER {
            rule.flags |= RULE_DUPLICATES;
        }
        if rule.duplicate.is_correlated() {
            rule.flags |= RULE_STATEFUL;
        }
        Ok(())
    }
}

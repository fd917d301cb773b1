//! ECN marks instead of drops.

use injector_common::{model::loss, rule::RULE_ECN};

use super::{Compiler, PacketFault, PacketInfo};
use crate::spec::{
    info::{Effect, Info, Trial},
    rule::RuleError,
};

/// Explicit congestion notification (RFC 3168).
#[derive(Clone, Copy, Debug)]
pub struct Ecn;

/// Error for a rule without a fault that drops packets.
pub const ALONE: &str = "--ecn marks packets that would be lost: give --rate, --trace or one of --loss, --loss-every, \
                         --loss-state, --loss-gemodel as well";

impl PacketFault for Ecn {
    type Value = bool;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "ecn",
            help: "Set the ECN CE mark instead of dropping",
            detail: "Applies to ECN-capable packets; others are dropped. Goes with --rate, --trace or one of --loss, --loss-every, --loss-state, --loss-gemodel.",
            trial: Some(Trial {
                options: "--loss 100% --ecn --direction egress",
                effect: Effect::Marked,
            }),
            ..Info::DEFAULT
        },
        is_modifier: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(_: &bool, compiler: &mut Compiler) -> Result<(), RuleError> {
        let impairment = &compiler.impairment;
        let limits = compiler.rule.rate.is_some() || impairment.trace.is_some();
        if impairment.rule.loss.kind == loss::NONE && !limits {
            return Err(RuleError::Fault(ALONE));
        }
        compiler.impairment.rule.flags |= RULE_ECN;
        Ok(())
    }
}

//! Faults of whole GSO packets instead of wire packets.

use super::{Compiler, Impairment, PacketFault, PacketInfo};
use crate::spec::{info::Info, rule::RuleError};

/// Acts on GSO packets as the kernel hands them down.
#[derive(Clone, Copy, Debug)]
pub struct Pieces;

impl PacketFault for Pieces {
    type Value = bool;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "pieces",
            help: "Act on GSO packets instead of wire packets",
            detail: "GSO packets have up to 64 KiB. This costs less CPU time, but one decision then covers up to 45 packets of a TCP connection or of a UDP \
                     sender that uses segmentation offload (QUIC).",
            ..Info::DEFAULT
        },
        is_modifier: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(_: &bool, compiler: &mut Compiler) -> Result<(), RuleError> {
        compiler.impairment.pieces = true;
        Ok(())
    }
}

impl Impairment {
    /// Whether the faults decide per packet, so that GSO packets must be segmented first.
    ///
    /// A constant delay, a partition or a reset does the same to a GSO packet as to its segments.
    #[must_use]
    pub fn acts_on_wire_packets(&self) -> bool {
        use injector_common::rule::{RULE_CORRUPTS, RULE_DUPLICATES, RULE_RESET};

        let alters = self.rule.flags & (RULE_CORRUPTS | RULE_DUPLICATES) != 0;
        let decides = self.rule.loss.certain().is_none() || alters;
        let varies = self.hold.is_some_and(|hold| hold.rate.cost != 0 || hold.delay.is_random());
        let acts = decides || varies || self.trace.is_some();
        !self.pieces && self.rule.flags & RULE_RESET == 0 && acts
    }
}

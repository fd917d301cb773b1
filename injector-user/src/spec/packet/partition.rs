//! Partitions from peers.

use super::{Compiler, PacketFault, PacketInfo};
use crate::spec::{
    info::{Effect, Info, Trial},
    rule::RuleError,
    value::Remote,
};

/// A partition from peers, which compiles to a separate rule.
#[derive(Clone, Copy, Debug)]
pub struct Partition;

impl PacketFault for Partition {
    type Value = [Remote];

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "partition",
            instead: "rules of nft(8) that drop, for all processes of a network namespace",
            value: "PEER",
            help: "Drop all packets to and from these peers",
            detail: "The peers are given as with --remote. With --direction, one way only.",
            examples: &["10.0.0.0/8", "fd00::1"],
            trial: Some(Trial { options: "--partition 127.0.0.1", effect: Effect::Lost }),
            ..Info::DEFAULT
        },
        by_xdp: true,
        ..PacketInfo::DEFAULT
    };

    /// Does nothing: `RuleSpec::check` turns the partition into a separate rule that matches its
    /// addresses.
    fn compile(_: &[Remote], _: &mut Compiler) -> Result<(), RuleError> {
        Ok(())
    }
}

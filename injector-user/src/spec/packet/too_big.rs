//! Answers to packets that are too big for the path.

use injector_common::rule::RULE_TOO_BIG;

use super::{Compiler, PacketFault, PacketInfo};
use crate::spec::{
    info::{Effect, Info, Trial},
    rule::RuleError,
};

/// ICMP "fragmentation needed" (RFC 1191) and `ICMPv6` "packet too big" (RFC 8201).
#[derive(Clone, Copy, Debug)]
pub struct TooBig;

/// The minimum MTU that Linux accepts by default (`net.ipv4.route.min_pmtu`).
const MIN_MTU: u16 = 552;

/// Error for a rule without an MTU, or with one that senders ignore.
pub const NO_MTU: &str = "--too-big tells senders the MTU of --longer-than: give --longer-than BYTES as well, at least 552";

impl PacketFault for TooBig {
    type Value = bool;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "too-big",
            help: "Answer matching packets as too big for the path",
            detail: "The sender gets ICMP \"fragmentation needed\" or ICMPv6 \"packet too big\" with the MTU of --longer-than, and the packet is dropped. IPv4 packets that may be fragmented pass.",
            trial: Some(Trial {
                options: "--too-big --longer-than 1000 --direction egress",
                effect: Effect::TooBig,
            }),
            ..Info::DEFAULT
        },
        ..PacketInfo::DEFAULT
    };

    fn compile(_: &bool, compiler: &mut Compiler) -> Result<(), RuleError> {
        match compiler.rule.longer_than {
            Some(mtu) if mtu >= MIN_MTU => {
                let rule = &mut compiler.impairment.rule;
                rule.mtu = mtu;
                rule.flags |= RULE_TOO_BIG;
                Ok(())
            }
            _ => Err(RuleError::Fault(NO_MTU)),
        }
    }
}

//! Reset of connections.

use injector_common::{
    packet::tcp_flag::SYN,
    rule::{RULE_RESET, RULE_RESET_SYN},
};

use super::{Compiler, PacketFault, PacketInfo};
use crate::spec::{
    info::{Effect, Info, Trial},
    rule::RuleError,
};

/// TCP resets.
#[derive(Clone, Copy, Debug)]
pub struct Reset;

impl PacketFault for Reset {
    type Value = bool;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "reset",
            instead: "rules of nft(8) with reject with tcp reset, for all processes of a network namespace",
            help: "Reset matching TCP connections, each once",
            detail: "The local side receives an RST.",
            trial: Some(Trial { options: "--reset", effect: Effect::Reset }),
            ..Info::DEFAULT
        },
        tcp_only: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(_: &bool, compiler: &mut Compiler) -> Result<(), RuleError> {
        compiler.impairment.rule.flags |= RULE_RESET;
        if compiler.rule.tcp_flags.is_some_and(|flags| flags.set & SYN != 0) {
            compiler.impairment.rule.flags |= RULE_RESET_SYN;
        }
        Ok(())
    }
}

//! Corruption of packets.

use std::fmt::{self, Display, Formatter};

use clap::ValueEnum;
use injector_common::{
    model::chance::Chance,
    rule::{self, RULE_CORRUPTS, RULE_STATEFUL},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Compiler, PacketFault, PacketInfo};
use crate::spec::{
    fault::odds,
    info::{Effect, Info, Trial},
    rule::RuleError,
};

odds! {
    /// Which packets are corrupted.
    Corrupt, "a chance"
}

impl PacketFault for Corrupt {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "corrupt",
            instead: "tc qdisc add dev IF root netem corrupt 0.1%, for all sent packets of an interface",
            value: "P[,corr=C]",
            placeholder: "P[,...]",
            help: "Flip a bit in packets with probability P",
            examples: &["1%", "0.1%,corr=25%"],
            trial: Some(Trial {
                options: "--corrupt 100% --direction egress",
                effect: Effect::Lost,
            }),
            ..Info::DEFAULT
        },
        by_xdp: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(corrupt: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        let rule = &mut compiler.impairment.rule;
        rule.corrupt.chance = corrupt.0.chance();
        if rule.corrupt.chance != Chance::NEVER {
            rule.flags |= RULE_CORRUPTS;
        }
        if rule.corrupt.chance.is_correlated() {
            rule.flags |= RULE_STATEFUL;
        }
        Ok(())
    }
}

/// How a corrupted packet meets its receiver.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum CorruptMode {
    /// A checksum is wrong, so the receiving kernel drops it.
    #[default]
    Wire,
    /// The checksum is right, so the receiving application reads wrong data.
    Silent,
}

impl Display for CorruptMode {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Wire => "wire",
            Self::Silent => "silent",
        })
    }
}

/// Error for a mode without corruption.
pub const MODE_ALONE: &str = "--corrupt-mode goes with --corrupt";

impl PacketFault for CorruptMode {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "corrupt-mode",
            value: "MODE",
            help: "wire or silent [default: wire]",
            detail: "How --corrupt leaves the checksum. wire: it is wrong, and the receiver's kernel drops the packet. silent: it is right, and the \
                     application reads wrong data.",
            examples: &["wire", "silent"],
            ..Info::DEFAULT
        },
        is_modifier: true,
        by_xdp: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(mode: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        if compiler.rule.corrupt.is_none() {
            return Err(RuleError::Fault(MODE_ALONE));
        }
        compiler.impairment.rule.corrupt.mode = match mode {
            Self::Wire => rule::CorruptMode::Wire,
            Self::Silent => rule::CorruptMode::Silent,
        } as u32;
        Ok(())
    }
}

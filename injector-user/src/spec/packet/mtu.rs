//! The packet size of new TCP connections.

use injector_common::{
    packet::protocol,
    rule::{RULE_CLAMPS, Rule},
};

use super::{Compiler, PacketFault, PacketInfo};
use crate::spec::{
    fault::FaultError,
    info::Info,
    interpolate::interpolate,
    parameters::{Given, Parameter, Value, values},
    rule::RuleError,
};

values!(Mtu);
interpolate!(Mtu { 0 });

/// The maximum length of the packets of new TCP connections, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(pub u16);

impl Mtu {
    /// The MTU of Ethernet.
    pub const ETHERNET: Self = Self(1500);

    /// The least: the packets that every host accepts (RFC 791).
    const MIN: u16 = 576;

    /// Makes a rule clamp the MSS.
    pub const fn clamp(self, rule: &mut Rule) {
        rule.clamp_mtu = self.0;
        rule.flags |= RULE_CLAMPS;
    }
}

impl Value for Mtu {
    type Error = FaultError;

    const NAME: &'static str = "an MTU";
    const SYNTAX: &'static str = "a number of bytes, 576 to 65535";
    const EXAMPLE: &'static str = "1500";
    const PARAMETERS: &'static [Parameter] =
        &[Parameter::new("bytes", "Maximum length of the IP packets, 576 to 65535.")];

    fn from_parameters(given: &Given) -> Result<Self, FaultError> {
        let text = given.get("bytes").unwrap_or_default();
        let bytes = text.parse().ok().filter(|&bytes| bytes >= Self::MIN);
        bytes.map(Self).ok_or_else(|| FaultError::Mtu(text.into()))
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("bytes", self.0.to_string())]
    }
}

/// Error for a rule that does not match TCP.
pub const NO_TCP: &str = "--mtu limits TCP segments: leave --protocol out, or add tcp";

impl PacketFault for Mtu {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "mtu",
            value: "BYTES",
            help: "Limit the packet size of new TCP connections",
            detail: "Clamps the MSS of new connections whose addresses and ports match, in both directions: to BYTES - 40 for IPv4, BYTES - 60 for IPv6. From 576 to 65535. \
                     `injector run` on loopback alone uses 1500 by default, because packets on loopback have up to 64 KiB otherwise.",
            examples: &["1500", "576"],
            ..Info::DEFAULT
        },
        is_modifier: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(mtu: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        let protocols = &compiler.rule.protocol;
        if !protocols.is_empty() && protocols.iter().all(|one| one.0 != protocol::TCP) {
            return Err(RuleError::Fault(NO_TCP));
        }
        mtu.clamp(&mut compiler.impairment.rule);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtus_are_within_their_range() {
        for text in ["576", "1500", "65535"] {
            assert_eq!(text.parse::<Mtu>().map(|mtu| mtu.to_string()), Ok(text.into()));
        }
        for text in ["575", "65536", "-1", "1500.5", "1500b", ""] {
            assert_eq!(text.parse::<Mtu>(), Err(FaultError::Mtu(text.into())));
        }
    }
}

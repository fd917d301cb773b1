//! Which rule a packet falls under: the search of [`injector_common::classify`].

use injector_common::{
    classify::{first_rule, tuple},
    control::{PortClasses, RuleSet},
    packet::{Direction, Packet},
};

use aya_ebpf::maps::Array;

use crate::maps;

/// What [`rule`] finds where no rule matches.
pub const NO_RULE: u32 = u32::MAX;

/// The number of the first rule that matches.
///
/// A function of its own: that saves stack, and the verifier goes but once through what comes after it.
#[inline(never)]
pub fn rule(packet: &Packet, direction: Direction, set: &RuleSet, bank: u32) -> u32 {
    search(packet, direction, set, bank).unwrap_or(NO_RULE)
}

#[inline(always)]
fn search(packet: &Packet, direction: Direction, set: &RuleSet, bank: u32) -> Option<u32> {
    let (mut local, mut remote) = (0, 0);
    if set.uses_ports != 0 && packet.has_ports {
        local = class(&maps::LOCAL_CLASSES, bank, packet.local_port(direction))?;
        remote = class(&maps::REMOTE_CLASSES, bank, packet.remote_port(direction))?;
    }
    let tuple = tuple(packet, direction, local, remote);

    first_rule(&tuple, set, bank, |key| {
        // SAFETY: entries are replaced by userspace only in the bank that is not active.
        unsafe { maps::ENTRIES.get(key) }.copied()
    })
}

#[inline(always)]
fn class(table: &Array<PortClasses>, bank: u32, port: u16) -> Option<u16> {
    Some(table.get(bank)?[usize::from(port)])
}

//! Finds the rule that a packet matches, by the search of [`injector_common::classify`].

use injector_common::{
    classify::{Found, ShortKey, first_rule, is_short, tuple},
    control::{PortClasses, RuleSet, length_index},
    packet::{Direction, Packet},
    verifier::forget,
};

use aya_ebpf::maps::Array;

use crate::maps;

/// Result of [`rule`] if no rule matches.
pub const NO_RULE: u32 = u32::MAX;

/// The number of the first matching rule. `segment_size` is as for [`Packet::wire_length`].
///
/// A separate function: it saves stack, and the verifier follows the subsequent code only once.
#[inline(never)]
pub fn rule(
    packet: &Packet,
    direction: Direction,
    set: &RuleSet,
    bank: u32,
    segment_size: u32,
) -> u32 {
    search(packet, direction, set, bank, segment_size).unwrap_or(NO_RULE)
}

/// Inlined [`rule`], for callers whose stack and verifier complexity allow it: a call costs 10 ns.
#[inline(always)]
pub fn search(
    packet: &Packet,
    direction: Direction,
    set: &RuleSet,
    bank: u32,
    segment_size: u32,
) -> Option<u32> {
    let (mut local, mut remote) = (0, 0);
    if set.uses_ports != 0 && packet.has_ports {
        local = class(&maps::LOCAL_CLASSES, bank, packet.local_port(direction))?;
        remote = class(&maps::REMOTE_CLASSES, bank, packet.remote_port(direction))?;
    }
    let mut length = 0;
    if set.uses_lengths != 0 {
        let index = length_index(packet.wire_length(segment_size));
        length = maps::LENGTH_CLASSES.get(bank)?[index];
        // One path for the verifier, with and without the lookup.
        length = forget(u32::from(length), u32::from(packet.l4)) as u8;
    }
    let tuple = tuple(packet, direction, local, remote, length);
    let most = maps::MASKS_PER_BANK.load();

    if is_short(&tuple) {
        first_rule(&tuple, set, bank, most, |key| look_up_short(&key.short(), bank))
    } else {
        // SAFETY: userspace only replaces entries of the inactive bank.
        first_rule(&tuple, set, bank, most, |key| unsafe { maps::ENTRIES.get(key) }.copied())
    }
}

#[inline(always)]
fn look_up_short(key: &ShortKey, bank: u32) -> Option<u32> {
    let slots = maps::SLOTS_PER_BANK.load();
    let slot = maps::SLOTS.get(bank * slots + (key.hash() & (slots - 1)))?;
    match slot.find(key) {
        Found::Nothing => None,
        Found::Rule(number) => Some(number),
        // SAFETY: userspace only replaces entries of the inactive bank.
        Found::Elsewhere => unsafe { maps::SHORT_ENTRIES.get(key) }.copied(),
    }
}

#[inline(always)]
fn class(table: &Array<PortClasses>, bank: u32, port: u16) -> Option<u16> {
    Some(table.get(bank)?[usize::from(port)])
}

//! Finds the rule that a packet matches, by the search of [`injector_common::classify`].

use injector_common::{
    classify::{Found, ShortKey, Tuple, TupleKey, first_rule, is_short, tuple},
    control::{FIRST_CONNECTION_MASK, Masks, PortClasses, RuleSet, length_index},
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
    let (local, remote) = ports(packet, direction, set, bank)?;
    let mut length = 0;
    if set.uses_lengths != 0 {
        let index = length_index(packet.wire_length(segment_size));
        length = maps::LENGTH_CLASSES.get(bank)?[index];
        // One path for the verifier, with and without the lookup.
        length = forget(u32::from(length), u32::from(packet.l4)) as u8;
    }
    first(&tuple(packet, direction, local, remote, length), &set.packets, 0, bank)
}

/// The number of the first rule that clamps the MSS of the packet's connection, in whichever
/// direction that rule acts, or [`NO_RULE`].
///
/// A separate function, as [`rule`].
#[inline(never)]
pub fn connection(packet: &Packet, direction: Direction, set: &RuleSet, bank: u32) -> u32 {
    let Some((local, remote)) = ports(packet, direction, set, bank) else { return NO_RULE };
    let tuple = tuple(packet, direction, local, remote, 0);
    first(&tuple, &set.connections, FIRST_CONNECTION_MASK, bank).unwrap_or(NO_RULE)
}

/// The classes of the local and the remote port.
#[inline(always)]
fn ports(packet: &Packet, direction: Direction, set: &RuleSet, bank: u32) -> Option<(u16, u16)> {
    if set.uses_ports == 0 || !packet.has_ports {
        return Some((0, 0));
    }
    Some((
        class(&maps::LOCAL_CLASSES, bank, packet.local_port(direction))?,
        class(&maps::REMOTE_CLASSES, bank, packet.remote_port(direction))?,
    ))
}

#[inline(always)]
fn first(tuple: &Tuple, masks: &Masks, first_mask: u32, bank: u32) -> Option<u32> {
    let most = maps::MASKS_PER_BANK.load();
    if is_short(tuple) {
        let look_up = |key: &TupleKey| look_up_short(&key.short(), bank);
        first_rule(tuple, masks, first_mask, bank, most, look_up)
    } else {
        // SAFETY: userspace only replaces entries of the inactive bank.
        let look_up = |key: &TupleKey| unsafe { maps::ENTRIES.get(key) }.copied();
        first_rule(tuple, masks, first_mask, bank, most, look_up)
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

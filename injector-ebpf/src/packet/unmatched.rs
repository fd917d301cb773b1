//! Counts packets of the target that no rule matches, while userspace wants to know why nothing does.

use aya_ebpf::bindings::BPF_ANY;
use injector_common::{
    packet::{Direction, Family, Packet},
    unmatched::{Count, Kind, property},
};

use crate::maps;

/// Whether to count an unmatched packet. The budget bounds what this costs, whatever the traffic.
#[inline(always)]
pub fn is_wanted(direction: Direction) -> bool {
    let Some(left) = maps::UNMATCHED_BUDGET.get_ptr_mut(direction as u32) else { return false };
    // SAFETY: a map value. CPUs may overwrite each other's decrements, which extends the budget.
    unsafe {
        if *left == 0 {
            return false;
        }
        *left -= 1;
    }
    true
}

/// Counts the packet. `length` is that on the wire.
///
/// A separate function, to save stack.
#[inline(never)]
pub fn count(packet: &Packet, direction: Direction, length: u32) -> bool {
    let mut properties = 0;
    for (has, property) in [
        (direction == Direction::Ingress, property::INGRESS),
        (packet.family == Family::V6, property::V6),
        (packet.has_data, property::HAS_DATA),
        (packet.has_ports, property::HAS_PORTS),
    ] {
        if has {
            properties |= property;
        }
    }
    let kind = Kind {
        remote: *packet.remote(direction),
        local_port: packet.local_port(direction),
        remote_port: packet.remote_port(direction),
        protocol: packet.protocol,
        tcp_flags: packet.tcp_flags,
        properties,
        reserved: 0,
    };
    if let Some(count) = maps::UNMATCHED.get_ptr_mut(&kind) {
        // SAFETY: a map value. Packets that other CPUs count meanwhile may be missed.
        unsafe {
            (*count).packets += 1;
            if length > (*count).longest {
                (*count).longest = length;
            }
        }
        return true;
    }
    let count = Count { packets: 1, longest: length, reserved: 0 };
    // A full table evicts the oldest entry; an error has no consequence.
    maps::UNMATCHED.insert(&kind, &count, u64::from(BPF_ANY)).is_ok()
}

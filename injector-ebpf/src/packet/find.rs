//! Which rule a packet falls under: the search of [`injector_common::classify`].

use injector_common::{
    classify::{TupleKey, masked, tuple},
    control::{MAX_MASKS, PortClasses, RuleSet},
    packet::{Direction, Packet},
};

use aya_ebpf::maps::Array;

use crate::maps;

/// The number of the first rule that matches.
#[inline(always)]
pub fn rule(packet: &Packet, direction: Direction, set: &RuleSet, bank: u32) -> Option<u32> {
    let (mut local, mut remote) = (0, 0);
    if set.uses_ports != 0 && packet.has_ports {
        local = class(&maps::LOCAL_CLASSES, bank, packet.local_port(direction))?;
        remote = class(&maps::REMOTE_CLASSES, bank, packet.remote_port(direction))?;
    }
    let tuple = tuple(packet, direction, local, remote);

    let mut first = u32::MAX;
    for number in 0..MAX_MASKS {
        if number as u32 >= set.mask_count {
            break;
        }
        let mask = &set.masks[number];
        if mask.first_rule >= first {
            break;
        }
        let key = TupleKey {
            tuple: masked(&tuple, &mask.tuple),
            space: TupleKey::space(number as u32, bank),
        };
        // SAFETY: entries are replaced by userspace only in the bank that is not active.
        if let Some(&found) = unsafe { maps::ENTRIES.get(&key) } {
            if found < first {
                first = found;
            }
        }
    }
    if first == u32::MAX { None } else { Some(first) }
}

#[inline(always)]
fn class(table: &Array<PortClasses>, bank: u32, port: u16) -> Option<u16> {
    Some(table.get(bank)?.class[usize::from(port)])
}

//! Ports of later fragments, which only the first fragment carries.

use aya_ebpf::bindings::BPF_ANY;
use injector_common::{
    control::{FragmentKey, FragmentPorts},
    packet::{Family, Packet},
};

use crate::maps;

/// Remembers the ports of a first fragment, or adds them to a later one if the first was seen.
#[inline(always)]
pub fn complete(packet: &mut Packet) {
    if !packet.fragment {
        return;
    }
    let key = FragmentKey {
        source: packet.source,
        destination: packet.destination,
        id: packet.fragment_id,
        // Among IPv6 fragments only the first contains the protocol if more extension headers
        // follow.
        protocol: if packet.family == Family::V4 { u32::from(packet.protocol) } else { 0 },
    };
    if packet.later_fragment {
        // SAFETY: the value is copied at once. If its slot is reused meanwhile, the fragment is
        // classified by another packet's ports, which 4096 slots make a theoretical case.
        if let Some(ports) = unsafe { maps::FRAGMENTS.get(&key) } {
            packet.source_port = ports.source_port;
            packet.destination_port = ports.destination_port;
            packet.echo_id = ports.echo_id;
            packet.has_ports = ports.has_ports != 0;
        }
        return;
    }
    let ports = FragmentPorts {
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        echo_id: packet.echo_id,
        has_ports: u16::from(packet.has_ports),
    };
    // A full table evicts the oldest entry; an error has no consequence.
    let _ = maps::FRAGMENTS.insert(&key, &ports, u64::from(BPF_ANY));
}

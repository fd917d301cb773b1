//! Frames as input of the programs.

use std::net::Ipv4Addr;

use injector_common::packet::{
    Direction,
    protocol::{TCP, UDP},
};

/// The minimum length of an Ethernet frame without FCS.
const MIN_FRAME: usize = 60;

/// An IPv4 frame between `local` and `remote` in this direction, from and to `port`.
pub fn ipv4(
    direction: Direction,
    protocol: u8,
    local: Ipv4Addr,
    remote: Ipv4Addr,
    port: u16,
) -> Vec<u8> {
    let upper: usize = if protocol == TCP { 20 } else { 8 };
    let (source, destination) = match direction {
        Direction::Egress => (local, remote),
        Direction::Ingress => (remote, local),
    };
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let length = (MIN_FRAME - 14) as u16;
    frame.extend([0x45, 0]);
    frame.extend(length.to_be_bytes());
    // Identification, flags (do not fragment), time to live, protocol. The checksum is not checked.
    frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(port.to_be_bytes());
    frame.extend(port.to_be_bytes());
    if protocol == UDP {
        frame.extend((length - 20).to_be_bytes());
    }
    let l4 = 14 + 20;
    frame.resize(MIN_FRAME.max(l4 + upper), 0);
    if protocol == TCP {
        // Header length and ACK.
        frame[l4 + 12..l4 + 14].copy_from_slice(&[5 << 4, 0x10]);
    }
    frame
}

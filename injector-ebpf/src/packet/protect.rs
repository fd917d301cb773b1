//! Packets that `--protect` excludes: the operator's connections to this host, and the packets that
//! keep them alive.

use injector_common::{
    control::Connection,
    packet::{Direction, Packet, protocol},
};

use crate::maps;

const SSH: u16 = 22;

/// Whether the packet belongs to SSH or an operator's connection, or is required to keep one alive.
#[inline(always)]
pub fn protects(packet: &Packet, direction: Direction) -> bool {
    maps::PROTECT.load() != 0 && is_protected(packet, direction)
}

/// A separate function: the verifier then merges its paths, which saves four fifths of the work.
#[inline(never)]
fn is_protected(packet: &Packet, direction: Direction) -> bool {
    if packet.protocol != protocol::TCP {
        return packet.is_essential();
    }
    if packet.source_port == SSH || packet.destination_port == SSH {
        return true;
    }
    let connection = connection(packet, direction);
    // SAFETY: only the presence matters.
    unsafe { maps::PROTECTED.get(connection) }.is_some()
}

/// The TCP connection that a packet belongs to.
#[inline(always)]
pub fn connection(packet: &Packet, direction: Direction) -> Connection {
    Connection {
        local: *packet.local(direction),
        remote: *packet.remote(direction),
        local_port: packet.local_port(direction),
        remote_port: packet.remote_port(direction),
    }
}

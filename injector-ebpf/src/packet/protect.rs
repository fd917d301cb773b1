//! What `--protect` leaves alone: the ways by which the operator reaches this host, and what keeps them open.

use injector_common::{
    control::Connection,
    packet::{Direction, Packet, protocol},
};

use crate::maps;

const SSH: u16 = 22;

/// Whether the packet belongs to SSH or to the operator's own connections, or none would last without it.
#[inline(always)]
pub fn protects(packet: &Packet, direction: Direction) -> bool {
    maps::PROTECT.load() != 0 && is_protected(packet, direction)
}

/// A function of its own: the verifier then finds the ways through it equal when they come out, which
/// saves it four fifths of its work.
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

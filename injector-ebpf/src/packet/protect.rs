//! Packets that are excluded from faults: the operator's connections to this host, traffic between
//! a pod and its node, and the packets that keep both alive.

use injector_common::{
    control::{Connection, PROTECT_NODE, PROTECT_OPERATOR},
    packet::{Direction, Packet, protocol},
};

use crate::maps;

const SSH: u16 = 22;

/// Whether the packet belongs to SSH, an operator's connection or the node of a pod, or is required
/// to keep these alive.
#[inline(always)]
pub fn protects(packet: &Packet, direction: Direction) -> bool {
    maps::PROTECT.load() != 0 && is_protected(packet, direction)
}

/// A separate function: the verifier then merges its paths, which saves four fifths of the work.
#[inline(never)]
fn is_protected(packet: &Packet, direction: Direction) -> bool {
    let kinds = maps::PROTECT.load();
    let is_tcp = packet.protocol == protocol::TCP;
    if !is_tcp && packet.is_essential() {
        return true;
    }
    if kinds & PROTECT_OPERATOR != 0 && is_tcp {
        let is_ssh = packet.source_port == SSH || packet.destination_port == SSH;
        if is_ssh || is_listed(connection(packet, direction)) {
            return true;
        }
    }
    kinds & PROTECT_NODE != 0 && is_listed(Connection::with(*packet.remote(direction)))
}

#[inline(always)]
fn is_listed(connection: Connection) -> bool {
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

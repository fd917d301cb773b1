//! The endpoints that a process asked for, where its packets have others (NAT).
//!
//! A connected socket has the peer of `connect()`, and sent packets have the translated one. Which
//! socket received packets are for is remembered from sent ones, as they are translated back later.

use core::{mem, ptr::read_volatile};

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_sock},
    helpers::generated::bpf_sk_fullsock,
    programs::TcContext,
};
use injector_common::{
    control::{Connection, Translated},
    packet::{Direction, Family, Packet, protocol},
};

use super::{protect::connection, sockets::SOCK_RAW};
use crate::maps;

/// Whether the packet's socket has other endpoints than the packet. They are then the next ones to
/// [`exchange`].
///
/// A separate function, so that the verifier follows the subsequent code only once.
#[inline(never)]
pub fn is_translated(ctx: &TcContext, packet: &Packet, direction: Direction) -> bool {
    if !packet.has_ports || (packet.protocol != protocol::TCP && packet.protocol != protocol::UDP) {
        return false;
    }
    match direction {
        Direction::Egress => match endpoints_of_socket(ctx, packet) {
            Some(endpoints) => learn(packet, endpoints),
            // The kernel answers for closed connections without their socket.
            None => is_known(packet, direction),
        },
        Direction::Ingress => is_known(packet, direction),
    }
}

/// Exchanges the packet's endpoints and those of its socket.
#[inline(always)]
pub fn exchange(packet: &mut Packet, direction: Direction) {
    let Some(other) = maps::OTHER_ENDPOINTS.get_ptr_mut(0) else { return };
    // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
    let other = unsafe { &mut *other };
    let (source, destination) = match direction {
        Direction::Egress => {
            ((&mut other.local, &mut other.local_port), (&mut other.remote, &mut other.remote_port))
        }
        Direction::Ingress => {
            ((&mut other.remote, &mut other.remote_port), (&mut other.local, &mut other.local_port))
        }
    };
    mem::swap(&mut packet.source, source.0);
    mem::swap(&mut packet.source_port, source.1);
    mem::swap(&mut packet.destination, destination.0);
    mem::swap(&mut packet.destination_port, destination.1);
}

/// The endpoints of the sender's socket; `None` if there is none, or the socket is not connected.
#[inline(always)]
fn endpoints_of_socket(ctx: &TcContext, packet: &Packet) -> Option<Connection> {
    // SAFETY: the context is readable. A socket that the kernel exposes lives as long as the packet,
    // and its fields are only read if it is a full socket.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let socket: *mut bpf_sock = bpf_sk_fullsock(socket);
        if socket.is_null() {
            return None;
        }
        // Each field is read at a constant offset, as the verifier requires for sockets.
        let remote_port = read_volatile(&raw const (*socket).dst_port);
        if remote_port == 0
            || read_volatile(&raw const (*socket).type_) == SOCK_RAW
            || read_volatile(&raw const (*socket).protocol) != u32::from(packet.protocol)
        {
            return None;
        }
        let (local, remote) = match packet.family {
            Family::V4 => (
                [read_volatile(&raw const (*socket).src_ip4), 0, 0, 0],
                [read_volatile(&raw const (*socket).dst_ip4), 0, 0, 0],
            ),
            Family::V6 => (
                [
                    read_volatile(&raw const (*socket).src_ip6[0]),
                    read_volatile(&raw const (*socket).src_ip6[1]),
                    read_volatile(&raw const (*socket).src_ip6[2]),
                    read_volatile(&raw const (*socket).src_ip6[3]),
                ],
                [
                    read_volatile(&raw const (*socket).dst_ip6[0]),
                    read_volatile(&raw const (*socket).dst_ip6[1]),
                    read_volatile(&raw const (*socket).dst_ip6[2]),
                    read_volatile(&raw const (*socket).dst_ip6[3]),
                ],
            ),
        };
        Some(Connection {
            local,
            remote,
            local_port: read_volatile(&raw const (*socket).src_port) as u16,
            remote_port: u16::from_be(remote_port),
        })
    }
}

/// Remembers the socket's endpoints if they are not those of the packet. Returns whether they are
/// others.
#[inline(always)]
fn learn(packet: &Packet, endpoints: Connection) -> bool {
    let Some(flag) = maps::IS_TRANSLATED.get_ptr_mut(0) else { return false };
    let key = key(packet, Direction::Egress);
    let is_same = is_same(&endpoints, &key.connection);
    // SAFETY: a map value, which is only ever set.
    if is_same && unsafe { *flag } == 0 {
        return false;
    }
    // SAFETY: the value is only compared. If its slot is reused meanwhile, it is written again.
    let known = unsafe { maps::ASKED.get(&key) };
    if is_same {
        if known.is_some() {
            // An earlier connection with the same ports had it; an error means that it is gone.
            let _ = maps::ASKED.remove(&key);
        }
        return false;
    }
    if !known.is_some_and(|known| self::is_same(known, &endpoints)) {
        // A full table evicts the oldest entry; an error has no consequence.
        let _ = maps::ASKED.insert(&key, &endpoints, u64::from(BPF_ANY));
        // SAFETY: as above.
        unsafe { *flag = 1 };
    }
    set_next(&endpoints)
}

/// Whether a socket with other endpoints is remembered for the packet.
#[inline(always)]
fn is_known(packet: &Packet, direction: Direction) -> bool {
    let Some(&flag) = maps::IS_TRANSLATED.get(0) else { return false };
    if flag == 0 {
        return false;
    }
    // SAFETY: the value is copied at once. If its slot is reused meanwhile, the packet's socket is not
    // found by it.
    match unsafe { maps::ASKED.get(&key(packet, direction)) } {
        Some(endpoints) => set_next(endpoints),
        None => false,
    }
}

#[inline(always)]
fn is_same(a: &Connection, b: &Connection) -> bool {
    let ports = u32::from(a.local_port ^ b.local_port) | u32::from(a.remote_port ^ b.remote_port);
    let differ =
        |a: &[u32; 4], b: &[u32; 4]| (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
    ports | differ(&a.local, &b.local) | differ(&a.remote, &b.remote) == 0
}

#[inline(always)]
fn set_next(endpoints: &Connection) -> bool {
    let Some(next) = maps::OTHER_ENDPOINTS.get_ptr_mut(0) else { return false };
    // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
    unsafe { *next = *endpoints };
    true
}

#[inline(always)]
fn key(packet: &Packet, direction: Direction) -> Translated {
    Translated { connection: connection(packet, direction), protocol: u32::from(packet.protocol) }
}

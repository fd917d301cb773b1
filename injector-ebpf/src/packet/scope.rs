//! Packet scope: whether the target cgroup, or a descendant, sends or receives a packet.

use core::{mem, ptr::read_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_TCP_LISTEN, bpf_sock, bpf_sock_tuple},
    helpers::generated::{
        bpf_probe_read_kernel, bpf_sk_fullsock, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
        bpf_sk_release, bpf_skb_ancestor_cgroup_id,
    },
    programs::TcContext,
};
use injector_common::{
    control::{Control, Flow},
    packet::{Direction, Family, Packet, protocol},
};

use super::skb;
use crate::maps;

/// Selects the network namespace of the interface for socket lookups.
const CURRENT_NETNS: u64 = u64::MAX;

/// Whether the target sends this packet.
#[inline(always)]
pub fn sends(ctx: &TcContext, control: &Control) -> bool {
    if maps::OF_CGROUP.load() == 0 {
        return true;
    }
    // SAFETY: the context's own skb.
    control.cgroup_id
        == unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, control.cgroup_level.cast_signed()) }
}

/// Whether a sent packet's addresses or ports differ from its socket's because of NAT.
///
/// A separate function, so that the verifier follows the subsequent code only once.
#[inline(never)]
pub fn is_translated(ctx: &TcContext, packet: &Packet) -> bool {
    // SAFETY: the context is readable. A socket that the kernel exposes lives as long as the
    // packet, and its fields are only read if it is a full socket.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return false;
        }
        let socket = bpf_sk_fullsock(socket);
        // The kernel's own answers are sent by a socket without a peer.
        if socket.is_null() || read_volatile(&raw const (*socket).dst_port) == 0 {
            return false;
        }
        // Each field is read at a constant offset, as the verifier requires for sockets.
        let (from4, to4) = (
            read_volatile(&raw const (*socket).src_ip4),
            read_volatile(&raw const (*socket).dst_ip4),
        );
        let from6 = read_volatile(&raw const (*socket).src_ip6[3]);
        let to6 = read_volatile(&raw const (*socket).dst_ip6[3]);
        let from_port = read_volatile(&raw const (*socket).src_port);
        let to_port = read_volatile(&raw const (*socket).dst_port);
        let (from, to) = match packet.family {
            Family::V4 => (from4 ^ packet.source[0], to4 ^ packet.destination[0]),
            Family::V6 => (from6 ^ packet.source[3], to6 ^ packet.destination[3]),
        };
        from | to != 0
            || from_port != u32::from(packet.source_port)
            || to_port != packet.destination_port.to_be()
    }
}

/// Remembers the target's peer where [`receives`] has no socket lookup.
#[inline(always)]
pub fn remember(packet: &Packet, direction: Direction) {
    if maps::OF_CGROUP.load() == 0 || direction == Direction::Ingress || has_socket_lookup(packet) {
        return;
    }
    let flow = flow(packet, direction);
    // SAFETY: only the presence matters.
    if unsafe { maps::FLOWS.get(&flow) }.is_none() {
        // A full table evicts the oldest entry; an error has no consequence.
        let _ = maps::FLOWS.insert(&flow, &1, u64::from(BPF_ANY));
    }
}

/// Whether the target, the cgroup with this ID and level, receives the packet.
///
/// A separate function, so that the verifier follows the subsequent code only once.
#[inline(never)]
pub fn receives(ctx: &TcContext, packet: &Packet, id: u64, level: u32) -> bool {
    if maps::OF_CGROUP.load() == 0 {
        return true;
    }
    if !has_socket_lookup(packet) {
        // SAFETY: only the presence matters.
        return unsafe { maps::FLOWS.get(&flow(packet, Direction::Ingress)) }.is_some();
    }
    // A fragment has no known receiver if its first fragment was not seen.
    packet.has_ports && receiver_is_in(ctx, packet, id, level)
}

/// Whether a received packet may have several receivers, of which the lookup finds only one. If
/// only some belong to the target, the packet must not be faulted, and at this hook the kernel has
/// not made a copy for each yet.
#[inline(always)]
pub fn may_be_shared(ctx: &TcContext, packet: &Packet) -> bool {
    maps::OF_CGROUP.load() != 0
        && packet.protocol == protocol::UDP
        && (packet.is_for_group() || skb::is_broadcast(ctx) || skb::is_own_copy(ctx))
}

#[inline(always)]
fn has_socket_lookup(packet: &Packet) -> bool {
    packet.protocol == protocol::TCP || packet.protocol == protocol::UDP
}

#[inline(always)]
fn flow(packet: &Packet, direction: Direction) -> Flow {
    Flow {
        local: *packet.local(direction),
        remote: *packet.remote(direction),
        protocol: u16::from(packet.protocol),
        echo_id: packet.echo_id,
    }
}

#[inline(always)]
fn receiver_is_in(ctx: &TcContext, packet: &Packet, id: u64, level: u32) -> bool {
    with_receiver(ctx, packet, |socket| cgroup_of(socket as usize, level)) == Some(Some(id))
}

/// Whether the TCP connection of a received packet (still) exists on this host, not only a listener
/// for it.
///
/// A separate function, to save stack.
#[inline(never)]
pub fn has_connection(ctx: &TcContext, packet: &Packet) -> bool {
    // SAFETY: the socket is there.
    with_receiver(ctx, packet, |socket| unsafe { (*socket).state } != BPF_TCP_LISTEN) == Some(true)
}

/// Calls `work` with the socket that receives the packet; `None` if there is none.
#[inline(always)]
fn with_receiver<T>(
    ctx: &TcContext,
    packet: &Packet,
    work: impl FnOnce(*mut bpf_sock) -> T,
) -> Option<T> {
    // SAFETY: a tuple is plain data, for which zeroes are valid.
    let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
    let size = match packet.family {
        Family::V4 => {
            tuple.__bindgen_anon_1.ipv4.saddr = packet.source[0];
            tuple.__bindgen_anon_1.ipv4.daddr = packet.destination[0];
            tuple.__bindgen_anon_1.ipv4.sport = packet.source_port.to_be();
            tuple.__bindgen_anon_1.ipv4.dport = packet.destination_port.to_be();
            12
        }
        Family::V6 => {
            tuple.__bindgen_anon_1.ipv6.saddr = packet.source;
            tuple.__bindgen_anon_1.ipv6.daddr = packet.destination;
            tuple.__bindgen_anon_1.ipv6.sport = packet.source_port.to_be();
            tuple.__bindgen_anon_1.ipv6.dport = packet.destination_port.to_be();
            36
        }
    };
    // SAFETY: the tuple is on the stack with at least `size` bytes; a found socket is released.
    unsafe {
        let socket = if packet.protocol == protocol::TCP {
            bpf_sk_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size, CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(ctx.as_ptr(), &raw mut tuple, size, CURRENT_NETNS, 0)
        };
        if socket.is_null() {
            return None;
        }
        let found = work(socket);
        bpf_sk_release(socket.cast());
        Some(found)
    }
}

/// ID of the socket's cgroup at the target's level.
///
/// `bpf_sk_ancestor_cgroup_id` is not available to tc programs. The kernel's structures are read
/// instead, at offsets that userspace took from the kernel's BTF.
#[inline(always)]
fn cgroup_of(socket: usize, level: u32) -> Option<u64> {
    // The verifier forbids arithmetic on a socket's address; read back from the stack, it is a
    // plain number.
    let address: u64 = read((&raw const socket) as u64)?;
    let cgroup: u64 = read(address + u64::from(maps::SOCK_CGROUP.load()))?;
    if read::<u32>(cgroup + u64::from(maps::CGROUP_LEVEL_AT.load()))? < level {
        return None;
    }
    let ancestors = cgroup + u64::from(maps::CGROUP_ANCESTORS_AT.load());
    let ancestor: u64 = read(ancestors + u64::from(level) * 8)?;
    let node: u64 = read(ancestor + u64::from(maps::CGROUP_KN_AT.load()))?;
    read(node + u64::from(maps::KERNFS_ID_AT.load()))
}

/// Reads kernel memory; `None` if the address is not readable.
#[inline(always)]
fn read<T: Copy + Default>(address: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the destination has the given length; the source need not be readable.
    let result = unsafe {
        bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const _)
    };
    if result == 0 { Some(value) } else { None }
}

//! Whose packet: is it sent or received by the target cgroup, or one below it?

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

/// Look sockets up in the network namespace of the interface.
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

/// Whether the addresses or ports of a sent packet are not those of its socket, so they were translated (NAT).
///
/// A function of its own, so that the verifier goes but once through what comes after it.
#[inline(never)]
pub fn is_translated(ctx: &TcContext, packet: &Packet) -> bool {
    // SAFETY: the context is readable. A socket that the kernel shows stays as long as the packet, and only where it is
    // whole its fields are read.
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
        // Each is read at a constant place, as the verifier wants it of a socket.
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

/// Notes whom the target talks to, where [`receives`] will find no socket.
#[inline(always)]
pub fn remember(packet: &Packet, direction: Direction) {
    if maps::OF_CGROUP.load() == 0 || direction == Direction::Ingress || has_socket_lookup(packet) {
        return;
    }
    let flow = flow(packet, direction);
    // SAFETY: only the presence matters.
    if unsafe { maps::FLOWS.get(&flow) }.is_none() {
        // A full table forgets the oldest; nothing to do about an error.
        let _ = maps::FLOWS.insert(&flow, &1, u64::from(BPF_ANY));
    }
}

/// Whether the target, the cgroup with this id and level, is to receive this packet.
///
/// A function of its own, so that the verifier goes but once through what comes after it.
#[inline(never)]
pub fn receives(ctx: &TcContext, packet: &Packet, id: u64, level: u32) -> bool {
    if maps::OF_CGROUP.load() == 0 {
        return true;
    }
    if !has_socket_lookup(packet) {
        // SAFETY: only the presence matters.
        return unsafe { maps::FLOWS.get(&flow(packet, Direction::Ingress)) }.is_some();
    }
    // Of a fragment whose first one was not seen the receiver cannot be told.
    packet.has_ports && receiver_is_in(ctx, packet, id, level)
}

/// Whether a received packet may have several receivers, of which the look-up finds but one. If only some of them
/// are the target's, the packet must be left alone, and this hook comes before the kernel makes a copy for each.
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

/// Whether the TCP connection of a received packet is (still) known here, beyond a listener for it.
///
/// A function of its own, to save stack.
#[inline(never)]
pub fn has_connection(ctx: &TcContext, packet: &Packet) -> bool {
    // SAFETY: the socket is there.
    with_receiver(ctx, packet, |socket| unsafe { (*socket).state } != BPF_TCP_LISTEN) == Some(true)
}

/// What `work` says of the socket that a packet is received by; `None` if there is none.
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
    // SAFETY: the tuple lives on the stack with at least `size` bytes; what is found is released.
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

/// Id of the socket's cgroup at the target's level.
///
/// `bpf_sk_ancestor_cgroup_id` would tell, but it is not for tc programs. So the kernel's own structures
/// are read, by offsets that userspace took from the kernel's BTF.
#[inline(always)]
fn cgroup_of(socket: usize, level: u32) -> Option<u64> {
    // The verifier keeps programs from calculating with a socket's address; read from the stack where
    // it has been put, it is a number.
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

/// Reads kernel memory; `None` if there is none at this address.
#[inline(always)]
fn read<T: Copy + Default>(address: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the destination is as long as is said; the source need not be readable.
    let result = unsafe {
        bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const _)
    };
    if result == 0 { Some(value) } else { None }
}

//! Packet scope: whether the target sends or receives a packet. A target is a cgroup with its
//! descendants, or a set of processes, whose sockets are tagged ([`sockets`]), or a cgroup together
//! with tagged sockets.

use core::{ffi::c_void, mem, ptr::read_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_TCP_LISTEN, bpf_sock, bpf_sock_tuple},
    helpers::generated::{
        bpf_probe_read_kernel, bpf_sk_fullsock, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
        bpf_sk_release, bpf_skb_ancestor_cgroup_id, bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use injector_common::{
    control::{Control, Flow, ScopeKind},
    packet::{Direction, Family, Packet, protocol},
};

use super::{skb, sockets};
use crate::maps;

/// Selects the network namespace of the interface for socket lookups.
const CURRENT_NETNS: u64 = u64::MAX;

/// Whose packet it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The target's.
    Target,
    /// Not the target's.
    Other,
    /// That of a closed connection, which may have been the target's.
    Unknown,
}

impl Owner {
    #[inline(always)]
    pub const fn target_if(is_target: bool) -> Self {
        if is_target { Self::Target } else { Self::Other }
    }
}

#[inline(always)]
fn kind() -> ScopeKind {
    match maps::SCOPE.load() {
        0 => ScopeKind::All,
        1 => ScopeKind::Cgroup,
        2 => ScopeKind::Processes,
        _ => ScopeKind::CgroupAndTags,
    }
}

/// Whether sockets have tags.
#[inline(always)]
fn has_tags() -> bool {
    matches!(kind(), ScopeKind::Processes | ScopeKind::CgroupAndTags)
}

/// Whose packet a sent packet is.
#[inline(always)]
pub fn sender(ctx: &TcContext, control: &Control) -> Owner {
    match kind() {
        ScopeKind::All => Owner::Target,
        ScopeKind::Cgroup => Owner::target_if(sender_is_in(ctx, control)),
        ScopeKind::CgroupAndTags if sender_is_in(ctx, control) => Owner::Target,
        ScopeKind::Processes | ScopeKind::CgroupAndTags => sockets::sender(ctx),
    }
}

/// Whether the sender's socket was created in the cgroup.
#[inline(always)]
fn sender_is_in(ctx: &TcContext, control: &Control) -> bool {
    let level = control.cgroup_level.cast_signed();
    // SAFETY: the context's own skb.
    control.cgroup_id == unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level) }
}

/// Whether a packet of [`Owner::Unknown`] was sent for a closed connection of the target.
#[inline(always)]
pub fn has_closed(packet: &Packet) -> bool {
    has_tags() && sockets::is_closing(packet, Direction::Egress)
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

/// Remembers the target's peer where [`receives`] has no socket lookup, or soon has no socket.
#[inline(always)]
pub fn remember(packet: &Packet, direction: Direction) {
    if kind() == ScopeKind::All || direction == Direction::Ingress {
        return;
    }
    if has_socket_lookup(packet) {
        if has_tags() {
            sockets::remember(packet);
        }
        return;
    }
    let flow = flow(packet, direction);
    // SAFETY: only the presence matters.
    if unsafe { maps::FLOWS.get(&flow) }.is_none() {
        // A full table evicts the oldest entry; an error has no consequence.
        let _ = maps::FLOWS.insert(&flow, &1, u64::from(BPF_ANY));
    }
}

/// Whether the target receives the packet: the cgroup with this ID and level, or the processes.
///
/// A separate function, so that the verifier follows the subsequent code only once.
#[inline(never)]
pub fn receives(ctx: &TcContext, packet: &Packet, id: u64, level: u32) -> bool {
    if kind() == ScopeKind::All {
        return true;
    }
    if !has_socket_lookup(packet) {
        // SAFETY: only the presence matters.
        return unsafe { maps::FLOWS.get(&flow(packet, Direction::Ingress)) }.is_some();
    }
    // A fragment has no known receiver if its first fragment was not seen.
    packet.has_ports
        && match kind() {
            ScopeKind::All => true,
            ScopeKind::Cgroup => receiver_is_in(ctx, packet, id, level),
            ScopeKind::Processes => receiver_is_tagged(ctx, packet),
            ScopeKind::CgroupAndTags => {
                receiver_is_in(ctx, packet, id, level) || receiver_is_tagged(ctx, packet)
            }
        }
}

/// Whether a received packet may have several receivers, of which the lookup finds only one. If
/// only some belong to the target, the packet must not be faulted, and at this hook the kernel has
/// not made a copy for each yet.
#[inline(always)]
pub fn may_be_shared(ctx: &TcContext, packet: &Packet) -> bool {
    kind() != ScopeKind::All
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
    with_receiver(ctx, packet, bpf_sk_lookup_tcp, |socket| cgroup_of(socket as usize, level))
        == Some(Some(id))
}

#[inline(always)]
fn receiver_is_tagged(ctx: &TcContext, packet: &Packet) -> bool {
    // Also finds sockets in TIME_WAIT.
    let owner = with_receiver(ctx, packet, bpf_skc_lookup_tcp, sockets::owner);
    match owner {
        Some(Owner::Target) => true,
        Some(Owner::Unknown) => sockets::is_closing(packet, Direction::Ingress),
        Some(Owner::Other) | None => false,
    }
}

/// Whether the TCP connection of a received packet (still) exists on this host, not only a listener
/// for it.
///
/// A separate function, to save stack.
#[inline(never)]
pub fn has_connection(ctx: &TcContext, packet: &Packet) -> bool {
    // SAFETY: the socket is there.
    let is_connected = |socket: *mut bpf_sock| unsafe { (*socket).state } != BPF_TCP_LISTEN;
    with_receiver(ctx, packet, bpf_sk_lookup_tcp, is_connected) == Some(true)
}

/// A helper that finds the TCP socket of a tuple.
type LookUp = unsafe fn(*mut c_void, *mut bpf_sock_tuple, u32, u64, u64) -> *mut bpf_sock;

/// Calls `work` with the socket that receives the packet; `None` if there is none.
#[inline(always)]
fn with_receiver<T>(
    ctx: &TcContext,
    packet: &Packet,
    look_up_tcp: LookUp,
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
            look_up_tcp(ctx.as_ptr(), &raw mut tuple, size, CURRENT_NETNS, 0)
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

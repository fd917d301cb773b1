//! Sockets of a target of processes, or that processes of a cgroup hold. They have a tag: a value that
//! the kernel stores with the socket, copies to the connections that a listener accepts, and frees with
//! the socket.
//!
//! Userspace tags the sockets that the processes have; [`created`] tags new ones.

use core::{
    ffi::c_void,
    ptr::{self, read_volatile},
};

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, BPF_TCP_CLOSE,
        bpf_map_type, bpf_sock,
    },
    helpers::generated::{
        bpf_get_listener_sock, bpf_ktime_get_ns, bpf_sk_fullsock, bpf_sk_storage_get,
        bpf_skc_to_mptcp_sock,
    },
    macros::btf_map,
    programs::{SockContext, TcContext},
};
use injector_common::packet::{Direction, Packet, protocol, tcp_flag};

use super::{protect, scope::Owner};
use crate::{maps, members};

/// The definition of a map of sockets, which the loader reads from its type. aya's has no `BPF_F_CLONE`.
#[repr(C)]
pub struct Tags {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const u32,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: only its address is used.
unsafe impl Sync for Tags {}

/// The tags, by socket.
#[btf_map]
static TAGS: Tags = Tags {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

/// For how long a connection that has sent its FIN may answer. Longer than `TIME_WAIT`.
const CLOSING_NS: u64 = 120_000_000_000;

/// `SOCK_STREAM`, on all Linux architectures except MIPS.
const SOCK_STREAM: u32 = 1;

/// `SOCK_RAW`: the type of the sockets by which the kernel answers for TCP.
pub const SOCK_RAW: u32 = 3;

/// Tags a new socket if the current process is one of the target.
#[inline(always)]
pub fn created(ctx: &SockContext) {
    if members::has_current() {
        let mut tag = 1u32;
        // Without memory for it, the socket has no tag, as userspace finds at its next look.
        // SAFETY: the context is the socket, and the kernel copies the value.
        unsafe {
            bpf_sk_storage_get(
                map(),
                ctx.sock.cast(),
                (&raw mut tag).cast(),
                BPF_SK_STORAGE_GET_F_CREATE.into(),
            )
        };
    }
}

/// Whose packet a sent packet is.
#[inline(always)]
pub fn sender(ctx: &TcContext) -> Owner {
    // SAFETY: the context is readable. A socket that the kernel exposes lives as long as the packet.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return Owner::Other;
        }
        owner(socket)
    }
}

/// The owner of a socket of any state.
#[inline(always)]
pub fn owner(socket: *mut bpf_sock) -> Owner {
    // SAFETY: the caller's socket lives. The kernel checks what kind of socket it is.
    unsafe {
        let full = bpf_sk_fullsock(socket);
        if !full.is_null() {
            if has_tag(full.cast()) {
                return Owner::Target;
            }
            if read_volatile(&raw const (*full).protocol) != TCP {
                return Owner::Other;
            }
            if read_volatile(&raw const (*full).type_) == SOCK_RAW {
                return Owner::Unknown;
            }
            return Owner::target_if(is_subflow(full));
        }
        // The socket of a connection that has not been accepted yet belongs to the listener.
        let listener = bpf_get_listener_sock(socket);
        if listener.is_null() {
            // In TIME_WAIT: the tag is gone.
            return Owner::Unknown;
        }
        Owner::target_if(has_tag(listener.cast()))
    }
}

const TCP: u32 = protocol::TCP as u32;

/// Whether a TCP socket is a subflow of a tagged MPTCP socket. Itself it is a socket of the kernel,
/// without a tag.
///
/// The helper believes that every socket for TCP has the kernel's `struct tcp_sock` and, until it is
/// destroyed, its MPTCP data. Neither is true of raw sockets, nor of the kernel's own sockets for
/// answers, for which the helper would read beyond the socket and crash the kernel.
///
/// # Safety
///
/// The socket must live and be of `SOCK_STREAM`.
#[inline(always)]
unsafe fn is_subflow(socket: *mut bpf_sock) -> bool {
    if maps::MPTCP.load() == 0 {
        return false;
    }
    // SAFETY: the socket lives. In a state other than CLOSE it is not destroyed before this program
    // ends, as it frees its data by RCU.
    unsafe {
        if read_volatile(&raw const (*socket).type_) != SOCK_STREAM
            || read_volatile(&raw const (*socket).state) == BPF_TCP_CLOSE
        {
            return false;
        }
        let whole = bpf_skc_to_mptcp_sock(socket.cast());
        !whole.is_null() && has_tag(whole.cast())
    }
}

/// Remembers a connection whose end the target announces.
#[inline(always)]
pub fn remember(packet: &Packet) {
    if packet.protocol == protocol::TCP && packet.tcp_flags & tcp_flag::FIN != 0 {
        let connection = protect::connection(packet, Direction::Egress);
        // SAFETY: no pointers are passed.
        let now = unsafe { bpf_ktime_get_ns() };
        // A full table evicts the oldest entry; an error has no consequence.
        let _ = maps::CLOSING.insert(&connection, &now, u64::from(BPF_ANY));
    }
}

/// Whether the target has announced the end of the packet's connection.
///
/// A separate function, to save stack.
#[inline(never)]
pub fn is_closing(packet: &Packet, direction: Direction) -> bool {
    if packet.protocol != protocol::TCP {
        return false;
    }
    let connection = protect::connection(packet, direction);
    // SAFETY: the value is one word.
    let Some(&since) = (unsafe { maps::CLOSING.get(&connection) }) else { return false };
    // SAFETY: no pointers are passed.
    unsafe { bpf_ktime_get_ns() }.wrapping_sub(since) < CLOSING_NS
}

/// # Safety
///
/// The socket must live, and be one that the kernel stores values with.
#[inline(always)]
unsafe fn has_tag(socket: *mut c_void) -> bool {
    // SAFETY: as for this function; a look-up takes no value.
    unsafe { !bpf_sk_storage_get(map(), socket, ptr::null_mut(), 0).is_null() }
}

#[inline(always)]
fn map() -> *mut c_void {
    (&raw const TAGS).cast_mut().cast()
}

//! Matches the remote address of a socket call.

use aya_ebpf::{Global, macros::map, maps::Array};
use injector_common::errno::{Remote, mapped};

use crate::kernel::field;

/// Offset of `sk` in the kernel's `struct socket`. All offsets are in bytes.
#[unsafe(no_mangle)]
static SOCKET_SK: Global<u64> = Global::new(0);

/// Offset of `skc_family` in `struct sock`.
#[unsafe(no_mangle)]
static SOCK_FAMILY: Global<u64> = Global::new(0);

/// Offset of `skc_daddr` in `struct sock`.
#[unsafe(no_mangle)]
static SOCK_ADDRESS: Global<u64> = Global::new(0);

/// Offset of `skc_v6_daddr` in `struct sock`.
#[unsafe(no_mangle)]
static SOCK_ADDRESS6: Global<u64> = Global::new(0);

/// Offset of `msg_name` in `struct msghdr`.
#[unsafe(no_mangle)]
static MESSAGE_NAME: Global<u64> = Global::new(0);

/// The network to match.
#[map]
static REMOTE: Array<Remote> = Array::with_max_entries(1, 0);

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Offset of the address in `struct sockaddr_in`; `ADDRESS6` is that in `struct sockaddr_in6`.
const ADDRESS: u64 = 4;
const ADDRESS6: u64 = 8;

/// Whether a `struct sockaddr` in kernel memory is in the network.
#[inline(always)]
pub fn is(name: u64) -> bool {
    is_meant(read(name, 0, ADDRESS, ADDRESS6))
}

/// Whether a message goes to the network, by its own address or else that of the socket's peer.
#[inline(always)]
pub fn is_of_message(socket: u64, message: u64) -> bool {
    match field(message, MESSAGE_NAME.load()) {
        None | Some(0_u64) => is_of_socket(socket),
        Some(name) => is(name),
    }
}

/// Whether a `struct socket` is connected to the network.
#[inline(always)]
pub fn is_of_socket(socket: u64) -> bool {
    let Some(sock) = field(socket, SOCKET_SK.load()) else { return false };
    let address = read(sock, SOCK_FAMILY.load(), SOCK_ADDRESS.load(), SOCK_ADDRESS6.load());
    // A socket that is not connected has no peer address.
    is_meant(address.filter(|&address| address != [0; 4] && address != mapped(0)))
}

#[inline(always)]
fn read(structure: u64, family: u64, v4: u64, v6: u64) -> Option<[u32; 4]> {
    match field(structure, family)? {
        AF_INET => field(structure, v4).map(mapped),
        AF_INET6 => field(structure, v6),
        _ => None,
    }
}

#[inline(always)]
fn is_meant(address: Option<[u32; 4]>) -> bool {
    let (Some(address), Some(remote)) = (address, REMOTE.get(0)) else { return false };
    remote.contains(address)
}

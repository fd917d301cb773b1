//! injector's packet programs. This file contains only entry points; [`packet`] does the work.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(missing_docs, reason = "aya's macros generate undocumented public functions")]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "map keys are large; by value they would be copied on a stack of 512 bytes"
)]
#![allow(clippy::needless_pass_by_value, reason = "aya's macros want the context by value")]

mod atomic;
mod clock;
mod kernel;
mod maps;
mod members;
mod object;
mod packet;
mod pid;

use aya_ebpf::{
    macros::{cgroup_sock, classifier, xdp},
    programs::{SockContext, TcContext, XdpContext},
};
use injector_common::packet::{
    Direction::{Egress, Ingress},
    parse::Link,
};

/// Sent packets of interfaces with an Ethernet header (loopback included).
#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    packet::tc(&ctx, Egress, Link::Ethernet)
}

/// Received packets of interfaces with an Ethernet header (loopback included).
#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    packet::tc(&ctx, Ingress, Link::Ethernet)
}

/// Sent packets of interfaces without a link-layer header (tun, `WireGuard`, tunnels).
#[classifier]
pub fn tc_egress_raw(ctx: TcContext) -> i32 {
    packet::tc(&ctx, Egress, Link::None)
}

/// Received packets of interfaces without a link-layer header (tun, `WireGuard`, tunnels).
#[classifier]
pub fn tc_ingress_raw(ctx: TcContext) -> i32 {
    packet::tc(&ctx, Ingress, Link::None)
}

/// Packets entering the hold device, see [`packet`].
#[classifier]
pub fn hold_egress(ctx: TcContext) -> i32 {
    packet::hold_egress(&ctx)
}

/// Packets returning from the hold device.
#[classifier]
pub fn hold_ingress(ctx: TcContext) -> i32 {
    packet::hold_ingress(&ctx)
}

/// Packets that leave the device that segments GSO packets.
#[classifier]
pub fn wire_egress(ctx: TcContext) -> i32 {
    packet::wire(&ctx)
}

/// Received packets, before the kernel allocates an skb.
#[xdp]
pub fn xdp_ingress(ctx: XdpContext) -> u32 {
    packet::xdp(&ctx)
}

/// A process of the host has created a socket.
#[cgroup_sock(sock_create)]
pub fn socket_created(ctx: SockContext) -> i32 {
    packet::sockets::created(&ctx);
    // Allowed.
    1
}

//! Doubling a packet.

use aya_ebpf::{bindings::BPF_F_INGRESS, programs::TcContext};
use injector_common::packet::Direction;

use crate::packet::skb;

/// Sends a copy of the packet the way that it goes. The copy is marked as judged already, so that the
/// hook lets it pass.
#[inline(always)]
pub fn duplicate(ctx: &TcContext, direction: Direction) -> bool {
    let flags = match direction {
        Direction::Egress => 0,
        Direction::Ingress => u64::from(BPF_F_INGRESS),
    };
    ctx.clone_redirect(skb::interface(ctx), flags).is_ok()
}

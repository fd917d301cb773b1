//! Doubling a packet.

use aya_ebpf::{bindings::BPF_F_INGRESS, programs::TcContext};
use injector_common::packet::Direction;

use crate::packet::skb;

/// Sends a copy of the packet the way that it goes. The copy is marked as judged already, so that the
/// hook lets it pass.
#[inline(always)]
pub fn duplicate(ctx: &TcContext, direction: Direction) -> bool {
    if direction == Direction::Egress {
        return ctx.clone_redirect(skb::interface(ctx), 0).is_ok();
    }
    skb::send_priority(ctx, skb::metadata(ctx).priority);
    let is_sent = ctx.clone_redirect(skb::interface(ctx), u64::from(BPF_F_INGRESS)).is_ok();
    // The packet itself keeps its priority, and must not get it again elsewhere.
    skb::take_priority(ctx);
    is_sent
}

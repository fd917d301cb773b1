//! Wire packets: how the packets of a GSO packet are classified one by one.
//!
//! TCP and UDP hand down pieces of up to 64 KiB, and GRO merges received packets into such pieces. A
//! rule with [`RULE_WIRE`] redirects them to a device of injector's that does not take them whole, so
//! that the kernel segments them. [`send`] says where a piece came from, [`origin`] reads that at the
//! egress of the device below, where the rule acts, and [`leave`] returns each packet to its path.
//! There it is recognized by its owner mark. All of it happens within the redirection, so the order of
//! packets is kept.

use aya_ebpf::{bindings::BPF_F_INGRESS, helpers::generated::bpf_redirect, programs::TcContext};
use injector_common::{
    packet::{Direction, Packet, parse::Link, protocol},
    rule::RULE_WIRE,
};

use super::{Match, backlog, skb};
use crate::maps;

/// Where a packet came from.
pub struct Origin {
    /// Index of the interface that sends or receives the packet.
    pub interface: u32,
    /// The packet's direction there.
    pub direction: Direction,
    /// The rule's index in [`maps::RULES`].
    pub index: u32,
    /// The packet's queue.
    queue: u32,
    /// Bytes of the Ethernet header that the interface does not have.
    pub added: u32,
}

/// Whether the packet must be segmented before the rule acts.
///
/// A received packet waits in the backlog when it returns to its interface, so all packets of a flow
/// take this way: others would overtake.
#[inline(always)]
pub fn takes(ctx: &TcContext, packet: &Packet, direction: Direction, matched: &Match) -> bool {
    if !maps::has(matched.rule, RULE_WIRE) {
        return false;
    }
    match direction {
        Direction::Egress => skb::segment_size(ctx) != 0,
        // A packet that returns to the loopback has lost its route.
        Direction::Ingress => {
            !skb::comes_back(ctx)
                && packet.protocol != protocol::ICMP
                && packet.protocol != protocol::ICMPV6
        }
    }
}

/// Words of the control block (`skb->cb`), which segmentation copies to each packet.
mod word {
    pub const INTERFACE: usize = 0;
    /// The direction in the lowest bit, whether the packet was given an Ethernet header, and the rule's
    /// index above.
    pub const RULE: usize = 1;
    /// The queue in the lower half, [`SIGN`] in the upper half.
    pub const QUEUE: usize = 2;
    pub const SIGN: u32 = 0x9d37;
}

/// Says where the packet comes from, before [`redirect`].
///
/// The packet counts as lost until [`arrive`]: the kernel drops what it cannot segment.
#[inline(always)]
pub fn send(ctx: &TcContext, direction: Direction, link: Link, matched: &mut Match) {
    if let Some(segmenting) = maps::SEGMENTING.get_ptr_mut(0) {
        // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
        unsafe { *segmenting = 1 };
        matched.counters.unsegmented += 1;
    }
    let queue = skb::metadata(ctx).queue & 0xffff;
    skb::set_control(ctx, word::INTERFACE, skb::interface(ctx));
    skb::set_control(
        ctx,
        word::RULE,
        matched.index << 2 | u32::from(link == Link::None) << 1 | direction as u32,
    );
    skb::set_control(ctx, word::QUEUE, word::SIGN << 16 | queue);
}

/// Notes that a packet comes out of the device. It is the first one of those that [`send`] sent if no
/// other came out since: all of them come out within the redirection.
#[inline(always)]
pub fn arrive(matched: &mut Match) {
    let Some(segmenting) = maps::SEGMENTING.get_ptr_mut(0) else { return };
    // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
    matched.counters.unsegmented -= u64::from(unsafe { core::mem::take(&mut *segmenting) });
}

/// Redirects the packet to the device that segments it.
#[inline(always)]
pub fn redirect() -> i32 {
    // SAFETY: no pointers are passed.
    unsafe { bpf_redirect(maps::WIRE_INTERFACE.load(), 0) as i32 }
}

/// Where the packet came from; `None` if injector did not send it.
#[inline(always)]
pub fn origin(ctx: &TcContext) -> Option<Origin> {
    let queue = skb::control(ctx, word::QUEUE);
    if queue >> 16 != word::SIGN {
        return None;
    }
    let rule = skb::control(ctx, word::RULE);
    let direction =
        if rule & 1 == Direction::Ingress as u32 { Direction::Ingress } else { Direction::Egress };
    let interface = skb::control(ctx, word::INTERFACE);
    let added = (rule >> 1 & 1) * u32::from(skb::ETHERNET_HEADER);
    Some(Origin { interface, direction, index: rule >> 2, queue: queue & 0xffff, added })
}

/// Returns the packet to its path.
#[inline(always)]
pub fn leave(ctx: &TcContext, origin: &Origin) -> i32 {
    skb::set_control(ctx, word::QUEUE, 0);
    // The queue of the devices in between must not determine that of the interface.
    skb::set_queue(ctx, origin.queue);
    let flags = match origin.direction {
        Direction::Egress => 0,
        Direction::Ingress => {
            backlog::enter(ctx);
            u64::from(BPF_F_INGRESS)
        }
    };
    // SAFETY: no pointers are passed.
    unsafe { bpf_redirect(origin.interface, flags) as i32 }
}

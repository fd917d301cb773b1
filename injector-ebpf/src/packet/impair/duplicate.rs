//! Duplicates a packet.

use aya_ebpf::{bindings::BPF_F_INGRESS, programs::TcContext};
use injector_common::{
    model::Decision,
    packet::{Direction, parse::Link},
    rule::RULE_DUPLICATES,
};

use super::delay;
use crate::{
    maps,
    packet::{
        Case, Match,
        hold::{self, Sent},
        skb,
    },
};

/// Sends a copy of the packet, delayed like the packet itself.
#[inline(always)]
pub fn apply(case: &Case, matched: &mut Match, decision: &Decision) {
    let &Case { ctx, direction, link, interface, .. } = case;
    if !maps::may_have(RULE_DUPLICATES) || !decision.duplicate {
        return;
    }
    // A packet selected for both duplication and loss arrives exactly once.
    if decision.lost {
        matched.counters.duplicated += 1;
        matched.counters.dropped += 1;
        return;
    }
    let release = if delay::holds(matched) && link != Link::None {
        let which = decision.index.wrapping_mul(2).wrapping_add(1);
        delay::schedule(ctx, matched.rule, matched.index, which, direction)
    } else {
        delay::AT_ONCE
    };
    let is_sent = match release {
        delay::AT_ONCE => duplicate(ctx, interface, direction),
        // Duplicated, and the copy dropped.
        delay::FULL => true,
        release => hold::send(case, matched, release, true) == Sent::Cloned,
    };
    if is_sent {
        matched.counters.duplicated += 1;
    } else {
        matched.counters.skipped += 1;
    }
}

/// Sends a copy of the packet along the same path. The copy carries the owner mark, so the hook
/// passes it.
#[inline(always)]
fn duplicate(ctx: &TcContext, interface: u32, direction: Direction) -> bool {
    if direction == Direction::Egress {
        return ctx.clone_redirect(interface, 0).is_ok();
    }
    skb::send_priority(ctx, skb::metadata(ctx).priority);
    let is_sent = ctx.clone_redirect(interface, u64::from(BPF_F_INGRESS)).is_ok();
    // The packet itself keeps its priority, and must not have it restored again elsewhere.
    skb::take_priority(ctx);
    is_sent
}

//! Rate limiting: calculates when a packet has left the link.

use aya_ebpf::programs::TcContext;
use injector_common::{
    counter::RuleCounters, hold::HoldState, model::rate::Rate, packet::Direction, rule::Rule,
};

use super::{delay::ATTEMPTS, ecn};
use crate::{atomic, packet::skb};

/// When a packet's last bit leaves the rate-limited link; `None` if the queue is full.
#[inline(always)]
pub fn transmit(
    ctx: &TcContext,
    rule: &Rule,
    rate: &Rate,
    state: *mut HoldState,
    direction: Direction,
    now: u64,
    counters: &mut RuleCounters,
) -> Option<u64> {
    let bytes = skb::wire_length(ctx);
    // SAFETY: within a map value.
    let free = unsafe { &raw mut (*state).free_ns[direction as usize & 1] };
    // SAFETY: a map value, aligned to 8; the exchange detects a torn or stale read.
    let mut before = unsafe { free.read_volatile() };
    let mut sent = rate.transmit(before, now, bytes);
    if sent.waits_ns > rate.queue_ns {
        // Marked packets may fill the queue once more, so that a sender that does not slow down
        // still sees drops.
        let room = sent.waits_ns <= rate.queue_ns.saturating_mul(2);
        if !room || !ecn::mark(ctx, rule, counters) {
            counters.queue_dropped += 1;
            return None;
        }
    }
    for _ in 0..ATTEMPTS {
        // SAFETY: a map value, aligned to 8.
        let found = unsafe { atomic::compare_exchange(free, before, sent.free_ns) };
        if found == before {
            break;
        }
        before = found;
        sent = rate.transmit(before, now, bytes);
    }
    if sent.waits_ns > 0 {
        counters.queued += 1;
    }
    Some(if sent.ends_ns > now { sent.ends_ns } else { now })
}

//! The faults applied to a packet, one file each, and their order.

pub mod checksum;
pub mod corrupt;
pub mod delay;
pub mod duplicate;
pub mod ecn;
pub mod loss;
pub mod rate;
pub mod reset;
pub mod too_big;
pub mod trace;

use aya_ebpf::programs::XdpContext;
use injector_common::{
    model::{Decision, State, decide},
    packet::Packet,
    rule::{RULE_CORRUPTS, RULE_DUPLICATES, RULE_HOLDS, RULE_STATEFUL},
};

use super::{Case, Match, Verdict};
use crate::{atomic, maps};

/// Applies a rule to a packet in netem's order: duplicate, lose, corrupt, delay. The first fault
/// that decides the packet's verdict ends the sequence.
#[inline(always)]
pub fn impair(case: &Case, matched: &mut Match) -> Option<Verdict> {
    if let Some(verdict) = reset::apply(case, matched) {
        return Some(verdict);
    }
    if let Some(verdict) = too_big::apply(case, matched) {
        return Some(verdict);
    }
    let mut decision = draw(matched)?;
    trace::lose(matched, &mut decision);
    duplicate::apply(case, matched, &decision);
    if let Some(verdict) = loss::apply(case, matched, &decision) {
        return Some(verdict);
    }
    corrupt::apply(case, matched, &decision);
    Some(delay::apply(case, matched, &decision))
}

/// Applies a rule at the XDP hook, with the faults supported there.
#[inline(always)]
pub fn impair_frame(ctx: &XdpContext, packet: &Packet, matched: &mut Match) -> Option<Verdict> {
    let decision = draw(matched)?;
    if decision.lost {
        matched.counters.dropped += 1;
        return Some(Verdict::Lost);
    }
    corrupt::apply_to_frame(ctx, packet, matched, &decision);
    Some(Verdict::Pass)
}

/// Advances the rule's state by one packet and makes the packet's decision.
#[inline(always)]
fn draw(matched: &Match) -> Option<Decision> {
    /// Another CPU can invalidate an attempt. If all attempts fail, the last decision is used
    /// without advancing the rule's state.
    const ATTEMPTS: usize = 4;

    if matched.rule.flags & (RULE_CORRUPTS | RULE_DUPLICATES | RULE_HOLDS) == 0
        && let Some(lost) = matched.rule.loss.certain()
    {
        return Some(Decision { index: 0, lost, duplicate: false, corrupt: false, position: 0 });
    }
    let word = maps::STATES.get_ptr_mut(matched.rule.link)?;
    if !maps::has(matched.rule, RULE_STATEFUL) {
        // SAFETY: a map value, aligned to 8.
        let before = unsafe { atomic::fetch_add(word, State::ONE_PACKET) };
        return Some(decide(matched.rule, State(before)).0);
    }
    // SAFETY: a map value, aligned to 8; the exchange detects a torn or stale read.
    let mut before = unsafe { word.read_volatile() };
    let mut decision = None;
    for _ in 0..ATTEMPTS {
        let (attempt, next) = decide(matched.rule, State(before));
        decision = Some(attempt);
        // SAFETY: a map value, aligned to 8.
        let found = unsafe { atomic::compare_exchange(word, before, next.0) };
        if found == before {
            break;
        }
        before = found;
    }
    decision
}

//! Marking a packet instead of losing it (RFC 3168).

use aya_ebpf::programs::TcContext;
use injector_common::{
    counter::RuleCounters,
    rule::{RULE_ECN, Rule},
};

use crate::packet::skb;

/// Marks a packet that would be lost, if its rule says so and it can be; whether it is marked.
#[inline(always)]
pub fn mark(ctx: &TcContext, rule: &Rule, counters: &mut RuleCounters) -> bool {
    let is_marked = rule.flags & RULE_ECN != 0 && skb::mark_congestion(ctx);
    if is_marked {
        counters.marked += 1;
    }
    is_marked
}

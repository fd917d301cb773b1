//! ECN marking instead of loss (RFC 3168).

use aya_ebpf::programs::TcContext;
use injector_common::{
    counter::RuleCounters,
    rule::{RULE_ECN, Rule},
};

use crate::{maps, packet::skb};

/// Marks a packet selected for loss, if the rule requests it and the packet is ECN-capable. Returns
/// whether it was marked.
#[inline(always)]
pub fn mark(ctx: &TcContext, rule: &Rule, counters: &mut RuleCounters) -> bool {
    let is_marked = maps::has(rule, RULE_ECN) && skb::mark_congestion(ctx);
    if is_marked {
        counters.marked += 1;
    }
    is_marked
}

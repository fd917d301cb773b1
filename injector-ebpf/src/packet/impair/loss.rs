//! Drops a packet.

use aya_log_ebpf::debug;
use injector_common::model::Decision;

use super::ecn;
use crate::packet::{Case, Match, Verdict};

/// Drops the packet unless it is ECN-marked instead. A packet that is also duplicated arrives
/// exactly once.
#[inline(always)]
pub fn apply(case: &Case, matched: &mut Match, decision: &Decision) -> Option<Verdict> {
    let ctx = case.ctx;
    if !decision.lost || decision.duplicate || ecn::mark(ctx, matched.rule, matched.counters) {
        return None;
    }
    matched.counters.dropped += 1;
    debug!(ctx, "rule {}: lost", case.number);
    Some(Verdict::Lost)
}

//! Traces: rate, delay and loss from a table.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, programs::TcContext};
use injector_common::{
    counter::RuleCounters,
    model::{
        Decision,
        chance::Probability,
        random,
        trace::{self, DELAY_SHIFT, Key, Player, Step, Trace, place},
    },
    packet::Direction,
    rule::Rule,
};

use super::{delay::ATTEMPTS, ecn};
use crate::{
    atomic, maps,
    packet::{Match, skb},
};

/// Result of [`transmit`]: the packet is dropped.
pub const FULL: u64 = u64::MAX;

/// The maximum time that a packet waits, in nanoseconds: less than the horizon of the hold device.
const MAX_WAIT_NS: u64 = 3_600_000_000_000;

/// The tables.
struct Tables;

impl trace::Steps for Tables {
    #[inline(always)]
    fn step(&self, index: u32) -> Step {
        maps::STEPS.get(index).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn search(&self, first: u32, count: u32, key: Key, limit: u64) -> u32 {
        trace_search(first, count, key as u32, limit)
    }
}

/// See [`trace::search`].
///
/// A global function, which the verifier checks by itself rather than with each call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_search(first: u32, count: u32, key: u32, limit: u64) -> u32 {
    /// Without the override, which would call this function.
    struct Plain;

    impl trace::Steps for Plain {
        #[inline(always)]
        fn step(&self, index: u32) -> Step {
            trace::Steps::step(&Tables, index)
        }
    }

    let key = if key == Key::Total as u32 { Key::Total } else { Key::Time };
    trace::search(&Plain, first, count, key, limit)
}

/// The trace with this number, see [`Rule::trace`], and its state.
#[inline(always)]
fn player(number: u32) -> Option<(&'static Trace, *mut [u64; 2])> {
    let player: *mut Player = maps::PLAYERS.get_ptr_mut(number.wrapping_sub(1))?;
    // SAFETY: within a map value; userspace writes it while no rule refers to it.
    Some(unsafe { (&(*player).trace, &raw mut (*player).used) })
}

/// See [`Trace::passed`]. A global function, as [`trace_search`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_passed(number: u32, now: u64) -> u64 {
    let Some((trace, _)) = player(number) else { return 0 };
    trace.passed(&Tables, trace.elapsed_ns(now))
}

/// See [`Trace::ends_ns`]. A global function, as [`trace_search`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_ends(number: u32, used: u64) -> u64 {
    let Some((trace, _)) = player(number) else { return 0 };
    trace.ends_ns(&Tables, used)
}

/// The delay of a trace in the upper half, see [`Step::delay`], and the loss in the lower one. A global
/// function, as [`trace_search`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_values(number: u32, now: u64) -> u64 {
    let Some((trace, _)) = player(number) else { return 0 };
    if trace.flags & trace::VALUES == 0 {
        return 0;
    }
    let step = trace.at(&Tables, now);
    u64::from(step.delay) << 32 | u64::from(step.loss)
}

/// Whether the rule plays a trace.
#[inline(always)]
pub fn plays(rule: &Rule) -> bool {
    maps::TRACES.load() != 0 && rule.trace != 0
}

/// When a packet's last byte has left the link; [`FULL`] if the packet is dropped.
///
/// A separate function, so that the verifier follows the subsequent code only once.
#[inline(never)]
pub fn transmit(
    ctx: &TcContext,
    rule: &Rule,
    direction: Direction,
    now: u64,
    counters: &mut RuleCounters,
) -> u64 {
    let Some((trace, used)) = player(rule.trace) else { return now };
    if trace.flags & trace::RATE == 0 {
        return now;
    }
    let bytes = skb::wire_length(ctx);
    // SAFETY: within a map value.
    let used = unsafe { &raw mut (*used)[direction as usize & 1] };
    let passed = trace_passed(rule.trace, now);
    let length = trace.length(bytes);
    // SAFETY: a map value, aligned to 8; the exchange detects a torn or stale read.
    let mut before = unsafe { used.read_volatile() };
    let (mut waits, mut after) = place(before, passed, length);
    // As with a constant rate, marked packets may fill the queue once more.
    let room = trace.queue.saturating_mul(2);
    if waits > trace.queue && (waits > room || !ecn::mark(ctx, rule, counters)) {
        counters.queue_dropped += 1;
        return FULL;
    }
    for _ in 0..ATTEMPTS {
        // SAFETY: a map value, aligned to 8.
        let found = unsafe { atomic::compare_exchange(used, before, after) };
        if found == before {
            break;
        }
        before = found;
        (waits, after) = place(before, passed, length);
    }
    let ends = trace_ends(rule.trace, after);
    if ends.saturating_sub(now) > MAX_WAIT_NS {
        // It blocks the packets behind it.
        counters.queue_dropped += 1;
        return FULL;
    }
    if waits > 0 {
        counters.queued += 1;
    }
    if ends > now { ends } else { now }
}

/// The delay of a packet, in nanoseconds.
#[inline(always)]
pub fn delay(rule: &Rule, now: u64) -> u64 {
    (trace_values(rule.trace, now) >> 32) << DELAY_SHIFT
}

/// Decides about loss.
#[inline(always)]
pub fn lose(matched: &Match, decision: &mut Decision) {
    /// Separates this stream from that of the other decisions.
    const SALT: u64 = 0x7472_6163_6500_0000;

    let rule = matched.rule;
    if !plays(rule) {
        return;
    }
    // SAFETY: no pointers are passed.
    let now = unsafe { bpf_ktime_get_ns() };
    let loss = Probability(trace_values(rule.trace, now) as u32);
    decision.lost |= loss.hit((random::draw(rule.stream ^ SALT, decision.index) >> 32) as u32);
}

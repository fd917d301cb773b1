//! Delay and reordering: calculates the release time of a packet.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, programs::TcContext};
use injector_common::{
    hold::{self, HoldState, Lane},
    model::{
        Decision,
        delay::{Memory, Tables},
    },
    packet::{Direction, parse::Link},
    rule::{RULE_HOLDS, Rule},
};

use super::{rate, trace};
use crate::{
    atomic,
    maps::{self, Schedule},
    packet::{
        Case, Match, Verdict,
        hold::{Sent, is_any_in_flight, next_number, send},
        skb,
    },
};

/// Result of [`schedule`]: the packet is not held.
pub const AT_ONCE: u64 = 0;

/// Result of [`schedule`]: the queue is full.
pub const FULL: u64 = u64::MAX;

/// Maximum number of attempts to update a rule's state. Another CPU can invalidate an attempt; if
/// all fail, the last result is used.
pub const ATTEMPTS: usize = 4;

/// How late a held packet may leave without being overtaken by one that need not wait.
const LATENESS_NS: u64 = 10_000_000_000;

/// Whether the rule holds packets.
#[inline(always)]
pub fn holds(matched: &Match) -> bool {
    maps::HOLD_INTERFACE.load() != 0 && matched.rule.flags & RULE_HOLDS != 0
}

/// Holds the packet if its rule requires it.
#[inline(always)]
pub fn apply(case: &Case, matched: &mut Match, decision: &Decision) -> Verdict {
    let &Case { ctx, direction, link, .. } = case;
    if !holds(matched) {
        return Verdict::Pass;
    }
    if link == Link::None {
        // This host's own copy of a multicast has no link-layer header, which the hold device requires.
        matched.counters.skipped += 1;
        return Verdict::Pass;
    }
    let which = decision.index.wrapping_mul(2);
    match schedule(ctx, matched.rule, matched.index, which, direction) {
        AT_ONCE => Verdict::Pass,
        FULL => Verdict::Lost,
        release => match send(case, matched, release, false) {
            Sent::Redirect => Verdict::Held,
            Sent::Cloned => Verdict::Replaced,
            Sent::Refused => {
                matched.counters.skipped += 1;
                Verdict::Pass
            }
        },
    }
}

/// The distribution tables of the active bank.
struct Bank(u32);

impl Tables for Bank {
    #[inline(always)]
    fn value(&self, table: u32, random: u32) -> i32 {
        match maps::TABLES.get(self.0 * hold::MAX_TABLES + table) {
            Some(table) => table.value(random),
            None => 0,
        }
    }
}

/// Calculates the release time of a packet, by `CLOCK_MONOTONIC` in nanoseconds; or [`AT_ONCE`] or
/// [`FULL`].
///
/// `which` is twice the packet's number, plus 1 for its duplicate. A separate function, so that the
/// verifier checks it only once.
#[inline(never)]
pub fn schedule(ctx: &TcContext, rule: &Rule, index: u32, which: u64, direction: Direction) -> u64 {
    let Some(hold) = maps::HOLDS.get(index) else { return AT_ONCE };
    let Some(state) = maps::HOLD_STATES.get_ptr_mut(rule.link) else { return AT_ONCE };
    let Some(counters) = maps::COUNTERS.get_ptr_mut(index) else { return AT_ONCE };
    // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
    let counters = unsafe { &mut *counters };
    // SAFETY: no pointers are passed.
    let now = unsafe { bpf_ktime_get_ns() };
    let mut ready = now;
    if hold.rate.cost != 0 {
        match rate::transmit(ctx, rule, &hold.rate, state, direction, now, counters) {
            Some(ends) => ready = ends,
            None => return FULL,
        }
    }
    let mut traced = 0;
    if trace::plays(rule) {
        match trace::transmit(ctx, rule, direction, now, counters) {
            trace::FULL => return FULL,
            ends => ready = ends,
        }
        traced = trace::delay(rule, now);
    }
    let bank = Bank(u32::from(index >= maps::RULES_PER_BANK.load()));
    let wait = if hold.delay.has_memory() {
        remembered(hold, rule, which, state, &bank)
    } else {
        hold::delay(&hold.delay, rule.stream, which >> 1, which & 1, Memory(0), &bank).0
    };
    let delay = match wait {
        None => {
            counters.reordered += 1;
            0
        }
        Some(delay) => delay + traced,
    };
    // A pacing queue will not recognize this packet's flow after the hold device, so pacing is
    // applied here. It concerns one flow, so it must not hold up other packets of the link.
    let paced = if direction == Direction::Egress { skb::departure(ctx, now) } else { now };
    let (due, paced) = (ready + delay, paced + delay);
    let due = if hold.delay.orders_flows() {
        in_flow_order(state, direction, hold::in_order(due, paced), now)
    } else {
        in_order(hold, state, direction, due, now)
    };
    let Some(due) = due else { return AT_ONCE };
    let queue = match maps::HOLD_IN_USERSPACE.load() {
        0 => lane(ctx, hold, state, direction, paced > due).queue(),
        _ => 0,
    };
    let Some(schedule) = maps::SCHEDULE.get_ptr_mut(0) else { return AT_ONCE };
    // SAFETY: per CPU; `send` reads it on this CPU before another packet is classified.
    unsafe { *schedule = Schedule { wait_ns: due - now, queue: queue.into() } };
    hold::in_order(due, paced)
}

/// The lane of a packet on the hold device with a queue. `is_paced` if it waits for its own pacing.
#[inline(always)]
fn lane(
    ctx: &TcContext,
    hold: &hold::Hold,
    state: *mut HoldState,
    direction: Direction,
    is_paced: bool,
) -> Lane {
    let way = direction as usize & 1;
    // SAFETY: within a map value; only userspace writes the queue's number, before its first packet.
    let (queue, of_flows) = unsafe {
        let of_flows = &raw const (*state).last_of_flows_ns[way];
        ((&raw const (*state).queue).read_volatile() as u32, of_flows.read_volatile())
    };
    // Order holds within a lane: a link that was ordered by flow stays with the lanes of flows.
    if of_flows != 0 || is_paced {
        Lane::Flow(skb::hash(ctx), queue)
    } else if hold.delay.keeps_order() {
        Lane::Link(queue << 1 | direction as u32)
    } else {
        Lane::Packet(next_number())
    }
}

/// When a packet that is due at `due` may leave its link: if the link keeps the order, not before
/// the packets ahead of it. `None` means now.
#[inline(always)]
fn in_order(
    hold: &hold::Hold,
    state: *mut HoldState,
    direction: Direction,
    due: u64,
    now: u64,
) -> Option<u64> {
    let way = direction as usize & 1;
    // SAFETY: within a map value.
    let (last, of_flows) =
        unsafe { (&raw mut (*state).last_ns[way], &raw const (*state).last_of_flows_ns[way]) };
    let keeps_order = hold.delay.keeps_order();
    // SAFETY: map values, aligned to 8; the exchange detects a torn or stale read.
    let (found, of_flows) = unsafe { (last.read_volatile(), of_flows.read_volatile()) };
    let ahead = hold::in_order(found, of_flows);
    if due <= now && (!keeps_order || ahead <= now) {
        return if keeps_order { behind(ahead, now) } else { None };
    }
    let due = if keeps_order { hold::in_order(due, ahead) } else { due };
    // SAFETY: a map value, aligned to 8.
    let latest = unsafe { raise(last, found, due) };
    Some(if keeps_order { latest } else { due })
}

/// When a packet that is due at `due` may leave, which is not before the packets ahead of it in its
/// flow. `None` means now.
#[inline(always)]
fn in_flow_order(state: *mut HoldState, direction: Direction, due: u64, now: u64) -> Option<u64> {
    let way = direction as usize & 1;
    let packet = maps::PACKETS.get(direction as u32)?;
    // SAFETY: within a map value; only userspace writes the queue's number, before its first packet.
    let (last, of_flows, queue) = unsafe {
        (&raw const (*state).last_ns[way], &raw mut (*state).last_of_flows_ns[way], (*state).queue)
    };
    let slot = maps::FLOW_RELEASES.get_ptr_mut(hold::flow_slot(packet, queue))?;
    // SAFETY: map values, aligned to 8; the exchange detects a torn or stale read.
    let (last, latest, found) =
        unsafe { (last.read_volatile(), of_flows.read_volatile(), slot.read_volatile()) };
    // An earlier rule of the link may have held packets without regard to flows.
    let ahead =
        hold::in_order(found, if latest == 0 { hold::after_other_lane(last) } else { last });
    if due <= now && ahead <= now {
        return behind(ahead, now);
    }
    let due = hold::in_order(due, ahead);
    // SAFETY: map values, aligned to 8.
    unsafe {
        let due = raise(slot, found, due);
        raise(of_flows, latest, due);
        Some(due)
    }
}

/// When a packet leaves that need not wait, but was preceded by one that was due at `ahead`. That one
/// may not have left the hold device yet. `None` means now.
#[inline(always)]
fn behind(ahead: u64, now: u64) -> Option<u64> {
    (ahead + LATENESS_NS > now && is_any_in_flight(now)).then_some(now)
}

/// Raises `*target`, where `found` was read, to at least `value`. Returns the larger of `value` and
/// what was there before.
///
/// # Safety
///
/// `target` must point to an aligned `u64` in a map value.
#[inline(never)]
unsafe fn raise(target: *mut u64, mut found: u64, value: u64) -> u64 {
    for _ in 0..ATTEMPTS {
        if found >= value {
            return found;
        }
        // SAFETY: as for this function.
        let before = unsafe { atomic::compare_exchange(target, found, value) };
        if before == found {
            break;
        }
        found = before;
    }
    if found > value { found } else { value }
}

/// [`hold::delay`] for delays that depend on previous ones.
#[inline(always)]
fn remembered(
    hold: &hold::Hold,
    rule: &Rule,
    which: u64,
    state: *mut HoldState,
    bank: &Bank,
) -> Option<u64> {
    // SAFETY: within a map value.
    let memory = unsafe { &raw mut (*state).memory };
    // SAFETY: a map value, aligned to 8; the exchange detects a torn or stale read.
    let mut before = unsafe { memory.read_volatile() };
    let mut wait = None;
    for _ in 0..ATTEMPTS {
        let (attempt, next) =
            hold::delay(&hold.delay, rule.stream, which >> 1, which & 1, Memory(before), bank);
        wait = attempt;
        // SAFETY: a map value, aligned to 8.
        let found = unsafe { atomic::compare_exchange(memory, before, next.0) };
        if found == before {
            break;
        }
        before = found;
    }
    wait
}

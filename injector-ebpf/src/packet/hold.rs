//! Holding packets back, by a device of ours on which they wait: delay, reordering, limited rates.
//!
//! The way of a held packet: [`schedule`] decides until when, [`send`] redirects it to the hold device with a
//! tag that says where it goes afterwards, [`enter`] (EDT engine only) tells the device's fq queue the time, and
//! [`leave`] puts it back on its way. There it is known by its mark of having been judged.

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::generated::{bpf_ktime_get_ns, bpf_redirect},
    programs::TcContext,
};
use injector_common::{
    counter::{Delays, RuleCounters},
    hold::{self, HoldState, Route, Slot, TAGS},
    model::delay::{Memory, Tables},
    packet::Direction,
    rule::{RULE_ECN, Rule},
};

use super::{Match, skb};
use crate::{atomic, maps};

/// [`schedule`]: the packet goes on at once.
pub const AT_ONCE: u64 = 0;

/// [`schedule`]: the queue is full.
pub const FULL: u64 = u64::MAX;

/// Other CPUs can spoil an attempt at changing a rule's state. If they spoil all, the last result stands.
const ATTEMPTS: usize = 4;

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

/// Decides until when a packet is held, by `CLOCK_MONOTONIC` in nanoseconds; or [`AT_ONCE`] or [`FULL`].
///
/// `which` is twice the packet's number, and 1 more for its duplicate. A function of its own, so that the
/// verifier goes through it on its own.
#[inline(never)]
pub fn schedule(ctx: &TcContext, rule: &Rule, index: u32, which: u64, direction: Direction) -> u64 {
    let Some(hold) = maps::HOLDS.get(index) else { return AT_ONCE };
    let Some(state) = maps::HOLD_STATES.get_ptr_mut(index) else { return AT_ONCE };
    let Some(counters) = maps::COUNTERS.get_ptr_mut(index) else { return AT_ONCE };
    // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
    let counters = unsafe { &mut *counters };
    // SAFETY: no pointers are passed.
    let now = unsafe { bpf_ktime_get_ns() };
    let mut ready = now;
    if hold.rate.cost != 0 {
        match transmit(ctx, rule, &hold.rate, state, direction, now, counters) {
            Some(ends) => ready = ends,
            None => return FULL,
        }
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
        Some(delay) => delay,
    };
    if ready + delay <= now {
        return AT_ONCE;
    }
    let Some(wait) = maps::WAIT.get_ptr_mut(0) else { return AT_ONCE };
    // SAFETY: per CPU; `send` reads it on this CPU before anything else is judged.
    unsafe { *wait = ready + delay - now };
    // A queue that paces connections will not know this one again, so its part is done here.
    let paced = if direction == Direction::Egress { skb::departure(ctx, now) } else { now };
    (if paced > ready { paced } else { ready }) + delay
}

/// When a packet's last bit has left the link of limited rate; `None` if it does not fit into the queue.
#[inline(always)]
fn transmit(
    ctx: &TcContext,
    rule: &Rule,
    rate: &injector_common::model::rate::Rate,
    state: *mut HoldState,
    direction: Direction,
    now: u64,
    counters: &mut RuleCounters,
) -> Option<u64> {
    let bytes = skb::wire_length(ctx);
    // SAFETY: within a map value.
    let free = unsafe { &raw mut (*state).free_ns[direction as usize & 1] };
    // SAFETY: a map value, aligned to 8; a torn or stale read is caught by the exchange.
    let mut before = unsafe { free.read_volatile() };
    let mut sent = rate.transmit(before, now, bytes);
    if sent.waits_ns > rate.queue_ns {
        // Marked packets are let into as much of a queue again, so that a sender that does not slow down still
        // meets an end.
        let room = sent.waits_ns <= rate.queue_ns.saturating_mul(2);
        if rule.flags & RULE_ECN == 0 || !room || !skb::mark_congestion(ctx) {
            counters.queue_dropped += 1;
            return None;
        }
        counters.marked += 1;
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

/// [`hold::delay`] for delays that depend on those before.
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
    // SAFETY: a map value, aligned to 8; a torn or stale read is caught by the exchange.
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

/// What is left of the packet at hand after [`send`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It must be redirected to the hold device.
    Redirect,
    /// A clone is there already; the packet itself must go, as if it had been sent.
    Cloned,
    /// The kernel refused: it goes on at once.
    Refused,
}

/// Has the hold device hold the packet, or a copy of it, until `release`.
#[inline(always)]
pub fn send(
    ctx: &TcContext,
    matched: &mut Match,
    direction: Direction,
    release: u64,
    is_copy: bool,
) -> Sent {
    let Some(wait) = maps::WAIT.get(0) else { return Sent::Refused };
    let wait = *wait;
    let Some(tag) = tag(ctx, direction, release) else { return Sent::Refused };
    if !skb::push_tag(ctx, tag) {
        return Sent::Refused;
    }
    // A packet that waits in a queue is charged to its socket, which stops TCP after a few (TCP small queues) and
    // UDP after a send buffer; a clone belongs to no socket, and a TAP takes packets away from theirs.
    let is_orphan = maps::HOLD_IN_USERSPACE.load() != 0 || !skb::has_socket(ctx);
    if is_orphan && !is_copy {
        count(matched, direction, wait);
        return Sent::Redirect;
    }
    let is_sent = ctx.clone_redirect(maps::HOLD_INTERFACE.load(), 0).is_ok();
    if is_sent {
        count(matched, direction, wait);
    }
    if is_copy || !is_sent {
        skb::pop_tag(ctx);
    }
    if is_sent { Sent::Cloned } else { Sent::Refused }
}

/// Counts a packet that is held for so many nanoseconds.
#[inline(always)]
fn count(matched: &mut Match, direction: Direction, wait: u64) {
    if let Some(seen) = maps::SEEN.get_ptr_mut(0) {
        // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
        unsafe { (*seen).held += 1 };
    }
    matched.counters.delayed += 1;
    matched.counters.delay_ns[direction as usize] += wait;
    if let Some(delays) = maps::DELAYS.get_ptr_mut(matched.index)
        // SAFETY: a map value; another CPU that counts in the same place does so by the same instruction.
        && let Some(count) = unsafe { (*delays).counts.get_mut(Delays::place(direction as usize, wait)) }
    {
        // SAFETY: a map value, aligned to 8.
        unsafe { atomic::fetch_add(count, 1) };
    }
}

/// What the tag says, after noting down the time.
#[inline(always)]
fn tag(ctx: &TcContext, direction: Direction, release: u64) -> Option<u16> {
    let interface = skb::interface(ctx);
    if maps::HOLD_IN_USERSPACE.load() == 0 {
        let key = u64::from(interface) << 1 | direction as u64;
        // SAFETY: entries are added by userspace, and never changed.
        let tag = *unsafe { maps::ROUTE_TAGS.get(&key) }?;
        let until = maps::RELEASE.get_ptr_mut(0)?;
        // SAFETY: per CPU; `enter` reads it on this CPU before anything else is sent.
        unsafe { *until = release };
        skb::carry(ctx);
        return Some(tag as u16);
    }
    let next = maps::NEXT_SLOT.get_ptr_mut(0)?;
    // SAFETY: a map value, aligned to 8.
    let number = unsafe { atomic::fetch_add(next, 1) } as u32 & (TAGS - 1);
    let slot = maps::HELD.get_ptr_mut(number)?;
    let metadata = skb::metadata(ctx);
    let route = Route { interface, direction: direction as u32, restores: 1, metadata };
    // SAFETY: a map value; no one else has this number until all others have been used.
    unsafe { *slot = Slot { release_ns: release, route } };
    Some(number as u16)
}

/// At the egress of the hold device: tells its queue when the packet is due. Whether it is one of ours.
#[inline(always)]
pub fn enter(ctx: &TcContext) -> bool {
    let Some(until) = maps::RELEASE.get_ptr_mut(0) else { return false };
    // SAFETY: per CPU; written by `tag` on this CPU just before.
    let release = unsafe { core::mem::take(&mut *until) };
    release != 0 && skb::tag(ctx).is_some() && skb::set_departure(ctx, release)
}

/// Where the packet comes back from the hold device: puts it on its way, if it is one of ours.
#[inline(always)]
pub fn leave(ctx: &TcContext) -> Option<i32> {
    let route = maps::ROUTES.get(u32::from(skb::tag(ctx)?))?;
    if route.interface == 0 || !skb::pop_tag(ctx) {
        return None;
    }
    if let Some(seen) = maps::SEEN.get_ptr_mut(0) {
        // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
        unsafe { (*seen).released += 1 };
    }
    skb::forget_addressee(ctx);
    let (priority, queue) = if route.restores == 0 {
        skb::carried(ctx)
    } else {
        skb::set_metadata(ctx, &route.metadata);
        (route.metadata.priority, route.metadata.queue)
    };
    // The hold device's own queue must not choose the next one's.
    skb::set_queue(ctx, queue);
    let is_received = route.direction == Direction::Ingress as u32;
    // In any case: of one write or another the compiler makes one to a computed address, which the verifier refuses.
    skb::set_priority(ctx, priority);
    if is_received {
        skb::send_priority(ctx, priority);
    }
    let flags = if is_received { BPF_F_INGRESS } else { 0 };
    // SAFETY: no pointers are passed.
    Some(unsafe { bpf_redirect(route.interface, u64::from(flags)) as i32 })
}

/// Redirects the packet to the hold device.
#[inline(always)]
pub fn redirect() -> i32 {
    // SAFETY: no pointers are passed.
    unsafe { bpf_redirect(maps::HOLD_INTERFACE.load(), 0) as i32 }
}

//! The hold device: how packets are redirected to it and back to their path.
//!
//! The path of a held packet: [`schedule`](super::impair::delay::schedule) calculates the release
//! time, [`send`] redirects it to the hold device with a tag that identifies its route, [`enter`]
//! (EDT engine only) sets the time in the device's fq queue, and [`leave`] returns it to its path.
//! There it is recognized by its owner mark.

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::generated::{bpf_ktime_get_ns, bpf_redirect},
    programs::TcContext,
};
use injector_common::{
    histogram,
    hold::{Hold, ROUTE_BITS, ROUTES, Route, Slot, TAGS},
    packet::Direction,
};

use super::{Case, Match, skb};
use crate::{
    atomic,
    maps::{self, Schedule},
};

/// A packet is due at least this long after it enters the hold device: `sch_fq` would send one that is
/// due at once ahead of those that are due and that it has yet to look at.
const LEAST_WAIT_NS: u64 = 20_000;

/// What a device's queue returns for a packet that it dropped (`include/linux/netdevice.h`). A device that
/// is down returns `NET_XMIT_CN` instead.
const NET_XMIT_DROP: i64 = 1;

/// The remaining step for the packet after [`send`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It must be redirected to the hold device.
    Redirect,
    /// A clone was redirected; drop the packet itself as if it had been sent.
    Cloned,
    /// The kernel refused; the packet continues at once.
    Refused,
}

/// Sends the packet, or a copy of it, to the hold device until `release`.
#[inline(always)]
pub fn send(case: &Case, matched: &mut Match, release: u64, is_copy: bool) -> Sent {
    let &Case { ctx, direction, interface, .. } = case;
    let Some(&Schedule { wait_ns: wait, queue }) = maps::SCHEDULE.get(0) else {
        return Sent::Refused;
    };
    let Some(tag) = tag(ctx, interface, direction, release, queue as u32) else {
        return Sent::Refused;
    };
    if !skb::push_tag(ctx, tag) {
        return Sent::Refused;
    }
    // A queued packet is charged to its socket, which stalls TCP after a few (TCP small queues) and
    // UDP after a send buffer. A clone belongs to no socket, and a TAP orphans its packets.
    let is_orphan = maps::HOLD_IN_USERSPACE.load() != 0 || !skb::has_socket(ctx);
    if is_orphan && !is_copy {
        count(matched, direction, wait);
        note_arrival();
        return Sent::Redirect;
    }
    let result = ctx.clone_redirect(maps::HOLD_INTERFACE.load(), 0);
    // The queue counts what it drops.
    let is_sent = matches!(result, Ok(()) | Err(NET_XMIT_DROP));
    if is_sent {
        count(matched, direction, wait);
    }
    if result.is_ok() {
        note_arrival();
    }
    if is_copy || !is_sent {
        skb::pop_tag(ctx);
    }
    if is_sent { Sent::Cloned } else { Sent::Refused }
}

/// Counts a packet with this delay in nanoseconds.
#[inline(always)]
fn count(matched: &mut Match, direction: Direction, wait: u64) {
    if let Some(seen) = maps::SEEN.get_ptr_mut(0) {
        // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
        unsafe { (*seen).held += 1 };
    }
    matched.counters.count_delay(direction as usize, wait);
    let Some(&Hold { cells, resolution, .. }) = maps::HOLDS.get(matched.index) else { return };
    let first = cells + direction as u32 * histogram::buckets(resolution);
    let cell = first + histogram::bucket(resolution, wait);
    if let Some(count) = maps::DELAYS.get_ptr_mut(cell) {
        // SAFETY: a map value, aligned to 8.
        unsafe { atomic::fetch_add(count, 1) };
    }
}

/// Counts a held packet.
#[inline(always)]
fn note_arrival() {
    if let Some(in_flight) = maps::IN_FLIGHT.get_ptr_mut(0) {
        // SAFETY: a map value, aligned to 8.
        unsafe { atomic::fetch_add(&raw mut (*in_flight).count, 1) };
    }
}

/// Notes that a packet leaves the hold device.
#[inline(always)]
fn note_departure() {
    let Some(in_flight) = maps::IN_FLIGHT.get_ptr_mut(0) else { return };
    // SAFETY: a map value, aligned to 8. No pointers are passed. The time is there before the packet is
    // no longer counted.
    unsafe {
        (&raw mut (*in_flight).left_ns).write_volatile(bpf_ktime_get_ns());
        atomic::fetch_add(&raw mut (*in_flight).count, u64::MAX);
    }
}

/// Whether any packet is held at `now`, or may be on its way back to its path.
#[inline(always)]
pub fn is_any_in_flight(now: u64) -> bool {
    /// How long a packet takes to its interface, even if its CPU is given to another virtual machine.
    const RETURN_NS: u64 = 50_000_000;

    maps::IN_FLIGHT.get(0).is_some_and(|in_flight| {
        // Briefly negative if a packet returns before it is counted.
        in_flight.count.cast_signed() > 0 || now < in_flight.left_ns + RETURN_NS
    })
}

/// The number of the next packet; 0 if it cannot be counted.
#[inline(always)]
pub fn next_number() -> u32 {
    let Some(next) = maps::NEXT_SLOT.get_ptr_mut(0) else { return 0 };
    // SAFETY: a map value, aligned to 8.
    unsafe { atomic::fetch_add(next, 1) as u32 }
}

/// The tag of the packet. Also stores the release time, and the queue of the hold device.
#[inline(always)]
fn tag(
    ctx: &TcContext,
    interface: u32,
    direction: Direction,
    release: u64,
    queue: u32,
) -> Option<u16> {
    let hash = skb::hash(ctx);
    if maps::HOLD_IN_USERSPACE.load() == 0 {
        let key = u64::from(interface) << 1 | direction as u64;
        // SAFETY: userspace adds entries and never changes them.
        let tag = *unsafe { maps::ROUTE_TAGS.get(&key) }?;
        let until = maps::RELEASE.get_ptr_mut(0)?;
        // SAFETY: per CPU; `enter` reads it on this CPU before another packet is sent.
        unsafe { *until = release };
        let check = skb::carry(ctx, hash ^ queue);
        return Some((tag | check << ROUTE_BITS) as u16);
    }
    let number = next_number() & (TAGS - 1);
    let slot = maps::HELD.get_ptr_mut(number)?;
    let metadata = skb::metadata(ctx);
    let route = Route { interface, direction: direction as u32, restores: 1, metadata };
    // SAFETY: a map value; no other packet has this number until all others have been used.
    unsafe { *slot = Slot { release_ns: release, route } };
    Some(number as u16)
}

/// At the egress of the hold device: sets the release time, and the hash by which `sch_fq` finds the
/// queue. Returns whether injector sent the packet.
#[inline(always)]
pub fn enter(ctx: &TcContext) -> bool {
    let Some(until) = maps::RELEASE.get_ptr_mut(0) else { return false };
    // SAFETY: per CPU; written by `tag` on this CPU just before.
    let release = unsafe { core::mem::take(&mut *until) };
    if release == 0 || skb::tag(ctx).is_none() {
        return false;
    }
    // SAFETY: no pointers are passed.
    let earliest = unsafe { bpf_ktime_get_ns() } + LEAST_WAIT_NS;
    skb::set_departure(ctx, if release > earliest { release } else { earliest });
    skb::change_hash(ctx, skb::carried(ctx).hash);
    // `sch_fq` sends packets of the highest priority at once.
    skb::set_priority(ctx, 0);
    true
}

/// At the ingress of the hold device: returns a packet that injector held to its path.
#[inline(always)]
pub fn leave(ctx: &TcContext) -> Option<i32> {
    let tag = u32::from(skb::tag(ctx)?);
    let is_in_userspace = maps::HOLD_IN_USERSPACE.load() != 0;
    let route = maps::ROUTES.get(if is_in_userspace { tag } else { tag & (ROUTES - 1) })?;
    if route.interface == 0 || !skb::pop_tag(ctx) {
        return None;
    }
    if let Some(seen) = maps::SEEN.get_ptr_mut(0) {
        // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
        unsafe { (*seen).released += 1 };
    }
    note_departure();
    skb::forget_addressee(ctx);
    skb::set_departure(ctx, 0);
    let (priority, queue) = if route.restores == 0 {
        let carried = skb::carried(ctx).checked(tag >> ROUTE_BITS);
        skb::change_hash(ctx, carried.hash);
        (carried.priority, carried.queue)
    } else {
        skb::set_metadata(ctx, &route.metadata);
        (route.metadata.priority, route.metadata.queue)
    };
    // The hold device's queue must not determine that of the next device.
    skb::set_queue(ctx, queue);
    let is_received = route.direction == Direction::Ingress as u32;
    // Unconditional: the compiler would merge two conditional writes into one to a computed
    // address, which the verifier rejects.
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

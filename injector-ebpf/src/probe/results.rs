//! Rewrites the results of time system calls in the caller's memory, after the kernel has written
//! them.
//!
//! The arguments are still in the caller's registers then, so no state is kept from the start of
//! the call.

use aya_ebpf::helpers::{bpf_probe_read_user, bpf_probe_write_user};
use injector_common::model::clock::Clock;

use crate::{
    arch::calls,
    current, maps,
    skew::{self, count},
    task::{self, Arguments},
};

const SECOND: i64 = 1_000_000_000;

/// `clock_gettime(clock, timespec)`.
#[inline(always)]
pub fn clock_gettime() {
    let Some(arguments) = arguments() else { return };
    // Other callers write times too: the remaining sleep time, or the resolution of a clock.
    if arguments.call() != calls::CLOCK_GETTIME {
        return;
    }
    if let Some(clock) = Clock::of_id(arguments.first() as i32) {
        rewrite::<1>(arguments.second(), clock);
    }
}

/// `gettimeofday(timeval, timezone)`.
#[inline(always)]
pub fn gettimeofday() {
    let Some(arguments) = arguments() else { return };
    if arguments.first() != 0 {
        rewrite::<1000>(arguments.first(), Clock::Realtime);
    }
}

/// The arguments of the current call, if its result must be rewritten.
#[inline(always)]
fn arguments() -> Option<Arguments> {
    if !current::is_in_target() {
        return None;
    }
    let arguments = Arguments::current();
    if maps::SKIP_VDSO.load() != 0
        && let Some((start, length)) = task::vdso()
        && arguments.caller().wrapping_sub(start) <= length
    {
        return None;
    }
    Some(arguments)
}

/// Rewrites seconds and a fraction in units of `UNIT` nanoseconds.
#[inline(always)]
fn rewrite<const UNIT: i64>(pointer: u64, clock: Clock) {
    count(|counters| &mut counters.matched);
    let pointer = pointer as *mut [i64; 2];
    // SAFETY: the helper checks the address.
    let Ok([seconds, fraction]) = (unsafe { bpf_probe_read_user(pointer) }) else {
        count(|counters| &mut counters.failed);
        return;
    };
    let true_ns = seconds.wrapping_mul(SECOND).wrapping_add(fraction.wrapping_mul(UNIT));
    let Some(shown) = skew::read(clock, true_ns) else { return };
    if shown == true_ns {
        return;
    }
    let (seconds, ns) = split(shown);
    let time = [seconds, (ns as u64 / UNIT as u64).cast_signed()];
    // SAFETY: the helper checks the address, to which the kernel has just written.
    if unsafe { bpf_probe_write_user(pointer, &raw const time) }.is_ok() {
        count(|counters| &mut counters.rewritten);
    } else {
        count(|counters| &mut counters.failed);
    }
}

/// Splits nanoseconds into seconds, rounded down, and the rest. eBPF has no signed division.
#[inline(always)]
fn split(ns: i64) -> (i64, i64) {
    const SECOND: u64 = self::SECOND as u64;
    if ns >= 0 {
        ((ns as u64 / SECOND).cast_signed(), (ns as u64 % SECOND).cast_signed())
    } else {
        // -1 is the last nanosecond of second -1.
        let before = !ns as u64;
        (!(before / SECOND).cast_signed(), (SECOND - 1 - before % SECOND).cast_signed())
    }
}

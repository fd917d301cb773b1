//! The time with which deadlines are compared.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};

use crate::maps;

/// A clock reading, cached for the timer tick in which it was made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Reading {
    tick: u64,
    ns: u64,
}

/// `CLOCK_MONOTONIC` in nanoseconds, up to one timer tick (1 to 10 ms) late.
///
/// Reading the clock takes 12 ns, a third of the total cost of a packet; the tick number takes one
/// load. No deadline requires more precision.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no pointers are passed.
    let tick = unsafe { bpf_jiffies64() };
    let Some(kept) = maps::CLOCK.get_ptr_mut(0) else { return u64::MAX };
    // SAFETY: per CPU; a read during a write mistakes one tick for the next at worst.
    unsafe {
        if (*kept).tick != tick {
            *kept = Reading { tick, ns: bpf_ktime_get_ns() };
        }
        (*kept).ns
    }
}

//! The time that deadlines are compared with.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};

use crate::maps;

/// A reading of the clock, kept for the timer tick in which it was made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Reading {
    tick: u64,
    ns: u64,
}

/// `CLOCK_MONOTONIC` in nanoseconds, up to a timer tick (1 to 10 ms) late.
///
/// Reading the clock takes 12 ns, a third of all that is done to a packet; the tick number is one load. No
/// deadline is so exact as to notice.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no pointers are passed.
    let tick = unsafe { bpf_jiffies64() };
    let Some(kept) = maps::CLOCK.get_ptr_mut(0) else { return u64::MAX };
    // SAFETY: per CPU; were it read in the midst of being written, one tick would be taken for the next.
    unsafe {
        if (*kept).tick != tick {
            *kept = Reading { tick, ns: bpf_ktime_get_ns() };
        }
        (*kept).ns
    }
}

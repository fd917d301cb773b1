//! Reads the skew set by userspace.

use core::arch::asm;

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use injector_common::{
    model::clock::{Clock, Skew},
    probe::{ProbeControl, ProbeCounters},
};

use crate::maps;

/// Maximum number of attempts to read the skew. An attempt only fails if two changes fall into it,
/// so even a second one is rare.
const TRIES: u32 = 4;

/// Calls `work` with a consistent skew; returns `None` if `work` does or no skew is set.
#[inline(always)]
pub fn with<T>(work: impl Fn(&Skew) -> Option<T>) -> Option<T> {
    let control = maps::CONTROL.get_ptr(0)?;
    for _ in 0..TRIES {
        let generation = generation(control);
        // Two constant indexes, because the verifier cannot bound a computed one.
        let skew =
            if generation & 1 == 0 { maps::SKEWS.get_ptr(0) } else { maps::SKEWS.get_ptr(1) };
        // SAFETY: in the map. If it is written meanwhile, the result is discarded.
        let result = work(unsafe { &*skew? });
        if generation == self::generation(control) {
            return result;
        }
    }
    None
}

/// Reads the generation, with a compiler barrier between the surrounding accesses.
#[inline(always)]
fn generation(control: *const ProbeControl) -> u64 {
    // SAFETY: in the map.
    let mut generation = unsafe { (&raw const (*control).generation).read_volatile() };
    // SAFETY: a move to itself, which the compiler must assume to access memory.
    unsafe { asm!("{generation} = {generation}", generation = inout(reg) generation) };
    generation
}

/// The skewed reading of `clock` for the true time `true_ns`.
#[inline(always)]
pub fn read(clock: Clock, true_ns: i64) -> Option<i64> {
    with(|skew| Some(skew.read(clock, true_ns)))
}

/// Whether the lease for replacing deadlines is valid.
#[inline(always)]
pub fn has_lease() -> bool {
    let Some(control) = maps::CONTROL.get_ptr(0) else { return false };
    // SAFETY: in the map; the helper takes no pointers.
    unsafe { bpf_ktime_get_ns() < (&raw const (*control).lease_ns).read_volatile() }
}

/// Increments one of this processor's counters.
#[inline(always)]
pub fn count(field: impl Fn(&mut ProbeCounters) -> &mut u64) {
    // SAFETY: takes no pointers.
    let processor = unsafe { bpf_get_smp_processor_id() };
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(processor) {
        // SAFETY: in the map and only used on this processor; a program that interrupts this one
        // may lose a count.
        *field(unsafe { &mut *counters }) += 1;
    }
}

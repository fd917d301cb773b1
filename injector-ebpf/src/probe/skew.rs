//! Reading the skew that userspace set.

use core::arch::asm;

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use injector_common::{
    model::clock::{Clock, Skew},
    probe::{ProbeControl, ProbeCounters},
};

use crate::maps;

/// How often a reading is tried that is overtaken by changes. Two changes must fall into one reading for it
/// to be of no use, so that even the second try is hardly ever made.
const TRIES: u32 = 4;

/// What `work` makes of the skew, none of which changes meanwhile; `None` if it makes nothing, or if no skew is
/// set.
#[inline(always)]
pub fn with<T>(work: impl Fn(&Skew) -> Option<T>) -> Option<T> {
    let control = maps::CONTROL.get_ptr(0)?;
    for _ in 0..TRIES {
        let generation = generation(control);
        // No index beyond the end for the verifier to doubt.
        let skew =
            if generation & 1 == 0 { maps::SKEWS.get_ptr(0) } else { maps::SKEWS.get_ptr(1) };
        // SAFETY: in the map. It may be written meanwhile, and is not used then.
        let result = work(unsafe { &*skew? });
        if generation == self::generation(control) {
            return result;
        }
    }
    None
}

/// The generation, read neither before what is above nor behind what is below.
#[inline(always)]
fn generation(control: *const ProbeControl) -> u64 {
    // SAFETY: in the map.
    let mut generation = unsafe { (&raw const (*control).generation).read_volatile() };
    // SAFETY: a move to itself, of which the compiler knows only that it may touch memory.
    unsafe { asm!("{generation} = {generation}", generation = inout(reg) generation) };
    generation
}

/// What `clock` reads when the true one reads `true_ns`.
#[inline(always)]
pub fn read(clock: Clock, true_ns: i64) -> Option<i64> {
    with(|skew| Some(skew.read(clock, true_ns)))
}

/// Whether deadlines may be replaced still.
#[inline(always)]
pub fn has_lease() -> bool {
    let Some(control) = maps::CONTROL.get_ptr(0) else { return false };
    // SAFETY: in the map; the helper takes no pointers.
    unsafe { bpf_ktime_get_ns() < (&raw const (*control).lease_ns).read_volatile() }
}

/// Counts one in this CPU's counters.
#[inline(always)]
pub fn count(field: impl Fn(&mut ProbeCounters) -> &mut u64) {
    // SAFETY: takes no pointers.
    let processor = unsafe { bpf_get_smp_processor_id() };
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(processor) {
        // SAFETY: in the map. This processor's; a program that interrupts this one may cost it a count.
        *field(unsafe { &mut *counters }) += 1;
    }
}

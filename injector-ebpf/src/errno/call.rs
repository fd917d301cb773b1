//! Matches the current system call.

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_task_pt_regs},
    macros::map,
    maps::Array,
};
use injector_common::errno::CALLS as MAX_CALLS;

use crate::{arch, current::is_in_target, pid};

/// Injector's own process, which may be in the target.
#[unsafe(no_mangle)]
static INJECTOR: Global<u32> = Global::new(0);

/// Injector's guardian process.
#[unsafe(no_mangle)]
static GUARDIAN: Global<u32> = Global::new(0);

/// Whether a system call is selected, by number.
#[map]
static CALLS: Array<u32> = Array::with_max_entries(MAX_CALLS, 0);

/// The lease of the failures, by `CLOCK_MONOTONIC`; renewed while injector lives.
#[map]
static LEASE: Array<u64> = Array::with_max_entries(1, 0);

/// Whether the current call is selected.
#[inline(always)]
pub fn is_meant() -> bool {
    // Cheapest check first: this runs for every process of the host.
    let process = pid::current();
    is_in_target()
        && process != INJECTOR.load()
        && process != GUARDIAN.load()
        && is_named()
        && has_lease()
}

#[inline(always)]
fn is_named() -> bool {
    // SAFETY: takes the current task, which outlives this program run.
    let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as u64 };
    // Numbers of x32 have an extra bit set and exceed the array.
    let call = arch::native_call(registers).and_then(|number| CALLS.get(number));
    call.is_some_and(|&is_meant| is_meant != 0)
}

#[inline(always)]
fn has_lease() -> bool {
    // SAFETY: no pointers are passed.
    let now = unsafe { bpf_ktime_get_ns() };
    LEASE.get(0).is_some_and(|&until| now < until)
}

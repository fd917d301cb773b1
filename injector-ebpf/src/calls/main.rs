//! Counts the target's calls of one system call, and sends a signal to the process that makes the
//! N-th.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(missing_docs, reason = "aya's macros generate undocumented public functions")]
#![allow(clippy::needless_pass_by_value, reason = "aya's macros want the context by value")]

#[path = "../arch/mod.rs"]
mod arch;
#[allow(dead_code, reason = "this object needs a part of it")]
#[path = "../atomic.rs"]
mod atomic;
#[allow(dead_code, reason = "this object needs a part of it")]
#[path = "../current.rs"]
mod current;
#[path = "../kernel.rs"]
mod kernel;
#[path = "../members.rs"]
mod members;
#[path = "../object.rs"]
mod object;
#[path = "../pid.rs"]
mod pid;

use aya_ebpf::{
    EbpfContext as _, Global,
    helpers::generated::{bpf_ktime_get_ns, bpf_send_signal},
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use injector_common::process::CallCounters;

use current::is_in_target;

/// The number of the system call.
#[unsafe(no_mangle)]
static SYSCALL: Global<u64> = Global::new(0);

/// The number N of the call, from 1.
#[unsafe(no_mangle)]
static COUNT: Global<u64> = Global::new(0);

/// The signal.
#[unsafe(no_mangle)]
static SIGNAL: Global<u32> = Global::new(0);

/// When to stop, by `CLOCK_MONOTONIC`.
#[unsafe(no_mangle)]
static ENDS_NS: Global<u64> = Global::new(0);

/// The counters.
#[map]
static CALLS: Array<CallCounters> = Array::with_max_entries(1, 0);

/// A system call starts.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn call_enter(ctx: RawTracePointContext) -> i32 {
    let arguments = ctx.as_ptr().cast::<u64>();
    // SAFETY: the arguments are the call's registers and number (include/trace/events/syscalls.h).
    let (registers, syscall) = unsafe { (*arguments, *arguments.add(1)) };
    // Cheapest check first: this runs for every system call of every process.
    if syscall == SYSCALL.load() && is_in_target() && arch::is_native(registers) {
        count();
    }
    0
}

#[inline(always)]
fn count() {
    // SAFETY: no pointers are passed.
    if unsafe { bpf_ktime_get_ns() } >= ENDS_NS.load() {
        return;
    }
    let Some(counters) = CALLS.get_ptr_mut(0) else { return };
    // SAFETY: the map's only value, which consists of aligned words.
    unsafe {
        if atomic::fetch_add(&raw mut (*counters).calls, 1) + 1 == COUNT.load() {
            let result = bpf_send_signal(SIGNAL.load());
            let counter =
                if result == 0 { &raw mut (*counters).sent } else { &raw mut (*counters).failed };
            atomic::fetch_add(counter, 1);
        }
    }
}

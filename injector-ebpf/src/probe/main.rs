//! injector's clock probes: system calls of a cgroup that read clocks or wait for them. Entry points only.
//!
//! An object of its own, so that nothing of it is loaded for packet faults: the kernel refuses to load what
//! writes to a process's memory under lockdown.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(missing_docs, reason = "aya's macros generate undocumented public functions")]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "map keys and values are large; by value they would be copied on a stack of 512 bytes"
)]
#![allow(clippy::needless_pass_by_value, reason = "aya's macros want the context by value")]

#[path = "../arch/mod.rs"]
mod arch;
#[path = "../atomic.rs"]
#[allow(dead_code, reason = "shared with the other object")]
mod atomic;
mod auxv;
#[path = "../current.rs"]
mod current;
mod deadlines;
#[path = "../kernel.rs"]
mod kernel;
mod maps;
#[path = "../object.rs"]
mod object;
mod results;
mod skew;
mod task;

use aya_ebpf::{
    macros::{kprobe, kretprobe, tracepoint},
    programs::{ProbeContext, RetProbeContext, TracePointContext},
};

/// `put_timespec64` has written a time to the caller's memory.
#[kretprobe]
pub fn time_was_written(_: RetProbeContext) -> u32 {
    results::clock_gettime();
    0
}

/// `gettimeofday` returns.
#[kretprobe]
pub fn gettimeofday_returns(ctx: RetProbeContext) -> u32 {
    if ctx.ret::<i64>() == 0 {
        results::gettimeofday();
    }
    0
}

/// `get_timespec64` or `get_itimerspec64` is about to read a time from the caller's memory.
#[kprobe]
pub fn deadline_is_read(_: ProbeContext) -> u32 {
    deadlines::is_read();
    0
}

/// It has done so.
#[kretprobe]
pub fn deadline_was_read(_: RetProbeContext) -> u32 {
    deadlines::was_read();
    0
}

/// `timer_create` returns.
#[kretprobe]
pub fn timer_create_returns(ctx: RetProbeContext) -> u32 {
    if ctx.ret::<i64>() == 0 {
        deadlines::timer_created();
    }
    0
}

#[tracepoint]
pub fn sched_process_exec(_: TracePointContext) {
    auxv::hide_vdso();
}

//! injector's clock probes for system calls of a cgroup that read clocks or wait for them. This
//! file contains only entry points.
//!
//! A separate object, because under lockdown the kernel refuses to load programs that write to a
//! process's memory. Packet faults still load then.
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
#[path = "../members.rs"]
mod members;
#[path = "../object.rs"]
mod object;
#[path = "../pid.rs"]
mod pid;
mod results;
mod skew;
mod task;

use aya_ebpf::{
    macros::{kprobe, kretprobe, tracepoint},
    programs::{ProbeContext, RetProbeContext, TracePointContext},
};

/// Runs after `put_timespec64` has written a time to the caller's memory.
#[kretprobe]
pub fn time_was_written(_: RetProbeContext) -> u32 {
    results::clock_gettime();
    0
}

/// Runs when `gettimeofday` returns.
#[kretprobe]
pub fn gettimeofday_returns(ctx: RetProbeContext) -> u32 {
    if ctx.ret::<i64>() == 0 {
        results::gettimeofday();
    }
    0
}

/// Runs before `get_timespec64` or `get_itimerspec64` reads a time from the caller's memory.
#[kprobe]
pub fn deadline_is_read(_: ProbeContext) -> u32 {
    deadlines::is_read();
    0
}

/// Runs after the time was read.
#[kretprobe]
pub fn deadline_was_read(_: RetProbeContext) -> u32 {
    deadlines::was_read();
    0
}

/// Runs when `timer_create` returns.
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

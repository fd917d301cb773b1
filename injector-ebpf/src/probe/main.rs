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

#[path = "../atomic.rs"]
#[allow(dead_code, reason = "shared with the other object")]
mod atomic;
mod auxv;
#[path = "../current.rs"]
mod current;
mod deadlines;
mod maps;
#[path = "../object.rs"]
mod object;
mod results;
mod skew;
mod task;

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};

use deadlines::Call;

#[tracepoint]
pub fn sys_exit_clock_gettime(ctx: TracePointContext) {
    results::clock_gettime(&ctx);
}

#[tracepoint]
pub fn sys_exit_gettimeofday(ctx: TracePointContext) {
    results::gettimeofday(&ctx);
}

#[tracepoint]
pub fn sys_enter_clock_nanosleep(_: TracePointContext) {
    deadlines::begins(Call::Nanosleep);
}

#[tracepoint]
pub fn sys_exit_clock_nanosleep(_: TracePointContext) {
    deadlines::returned(Call::Nanosleep);
}

#[tracepoint]
pub fn sys_enter_timerfd_settime(_: TracePointContext) {
    deadlines::begins(Call::TimerFd);
}

#[tracepoint]
pub fn sys_exit_timerfd_settime(_: TracePointContext) {
    deadlines::returned(Call::TimerFd);
}

#[tracepoint]
pub fn sys_exit_timer_create(ctx: TracePointContext) {
    deadlines::timer_created(&ctx);
}

#[tracepoint]
pub fn sys_enter_timer_settime(_: TracePointContext) {
    deadlines::begins(Call::Timer);
}

#[tracepoint]
pub fn sys_exit_timer_settime(_: TracePointContext) {
    deadlines::returned(Call::Timer);
}

#[tracepoint]
pub fn sys_enter_futex(_: TracePointContext) {
    deadlines::begins(Call::Futex);
}

#[tracepoint]
pub fn sys_exit_futex(_: TracePointContext) {
    deadlines::returned(Call::Futex);
}

#[tracepoint]
pub fn sys_enter_futex_waitv(_: TracePointContext) {
    deadlines::begins(Call::FutexWaitv);
}

#[tracepoint]
pub fn sys_exit_futex_waitv(_: TracePointContext) {
    deadlines::returned(Call::FutexWaitv);
}

#[tracepoint]
pub fn sys_enter_mq_timedsend(_: TracePointContext) {
    deadlines::begins(Call::MessageQueue);
}

#[tracepoint]
pub fn sys_exit_mq_timedsend(_: TracePointContext) {
    deadlines::returned(Call::MessageQueue);
}

#[tracepoint]
pub fn sys_enter_mq_timedreceive(_: TracePointContext) {
    deadlines::begins(Call::MessageQueue);
}

#[tracepoint]
pub fn sys_exit_mq_timedreceive(_: TracePointContext) {
    deadlines::returned(Call::MessageQueue);
}

#[tracepoint]
pub fn sched_process_exec(_: TracePointContext) {
    auxv::hide_vdso();
}

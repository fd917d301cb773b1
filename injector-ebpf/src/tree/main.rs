//! Keeps the processes of a target: adds those that they start, and removes those that end.
#![no_std]
#![no_main]
#![allow(missing_docs, reason = "aya's macros generate undocumented public functions")]
#![allow(clippy::needless_pass_by_value, reason = "aya's macros want the context by value")]

#[path = "../kernel.rs"]
mod kernel;
#[allow(dead_code, reason = "this object needs a part of it")]
#[path = "../members.rs"]
mod members;
#[path = "../object.rs"]
mod object;
#[path = "../pid.rs"]
mod pid;

use aya_ebpf::{
    EbpfContext as _, Global,
    helpers::generated::bpf_get_current_task,
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};

use kernel::field;

/// Offset of `live`, the number of threads, in `struct signal_struct`, in bytes.
#[unsafe(no_mangle)]
static LIVE_AT: Global<u32> = Global::new(0);

/// The number of processes that were not added for want of room.
#[map]
static MISSED: Array<u64> = Array::with_max_entries(1, 0);

/// A process or thread was created; runs in its parent.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn member_forks(ctx: RawTracePointContext) -> i32 {
    let parent = pid::current();
    if members::has(parent) {
        // SAFETY: the arguments are the parent and the child (include/trace/events/sched.h).
        let child = unsafe { *ctx.as_ptr().cast::<u64>().add(1) };
        let process = pid::of(child);
        if process != 0 && process != parent && members::MEMBERS.insert(process, 1, 0).is_err() {
            missed();
        }
    }
    0
}

/// The current thread ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn member_exits(_: RawTracePointContext) -> i32 {
    ended()
}

/// The same as another program: Linux 6.1 refuses to attach one twice.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn member_exits_too(_: RawTracePointContext) -> i32 {
    ended()
}

#[inline(always)]
fn ended() -> i32 {
    let process = pid::current();
    // SAFETY: takes no pointers.
    let task = unsafe { bpf_get_current_task() };
    if members::has(process) && threads(task) == Some(0) {
        // It may have been removed meanwhile.
        let _ = members::MEMBERS.remove(process);
    }
    0
}

/// The number of threads that have not ended.
#[inline(always)]
fn threads(task: u64) -> Option<i32> {
    field(field::<u64>(task, pid::SIGNAL_AT.load())?, LIVE_AT.load())
}

#[inline(always)]
fn missed() {
    if let Some(missed) = MISSED.get_ptr_mut(0) {
        // SAFETY: in the map. A lost increment still says that there were some.
        unsafe { *missed += 1 };
    }
}

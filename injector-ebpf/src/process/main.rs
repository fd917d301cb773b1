//! Reports processes of the target as they start and end, and holds new programs until userspace
//! has prepared them.
#![no_std]
#![no_main]
#![allow(missing_docs, reason = "aya's macros generate undocumented public functions")]
#![allow(clippy::needless_pass_by_value, reason = "aya's macros want the context by value")]

#[path = "../current.rs"]
mod current;
mod hold;
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
    macros::{map, raw_tracepoint},
    maps::RingBuf,
    programs::RawTracePointContext,
};
use injector_common::process::{EXIT, Event, FORK};

use current::{is_in_target, process_and_thread};
use kernel::field;

/// Offset of `pid` in the kernel's `struct task_struct`, in bytes.
#[unsafe(no_mangle)]
static PID_AT: Global<u32> = Global::new(0);

/// Process events of 24 bytes each: enough for all processes that can start while userspace is
/// late.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// A process or thread was created; runs in its parent.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    if is_in_target() {
        // SAFETY: the arguments are the parent and the child (include/trace/events/sched.h).
        let child = unsafe { *ctx.as_ptr().cast::<u64>().add(1) };
        let number = |offset: u32| field::<u32>(child, offset).unwrap_or(0);
        if number(PID_AT.load()) == number(pid::TGID_AT.load()) {
            tell(FORK, pid::of(child));
        }
    }
    0
}

/// The current process has executed a program that has not run yet.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_: RawTracePointContext) -> i32 {
    if is_in_target() {
        hold::executed();
    }
    0
}

/// The current thread ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(_: RawTracePointContext) -> i32 {
    let (process, thread) = process_and_thread();
    if process == thread && is_in_target() {
        tell(EXIT, pid::current());
    }
    0
}

/// Reports an event without holding the process, unless injector's PID namespace does not show it.
#[inline(always)]
fn tell(kind: u32, pid: u32) {
    if pid != 0
        && let Some(mut entry) = EVENTS.reserve::<Event>(0)
    {
        entry.write(Event { kind, pid, ..Event::default() });
        entry.submit(0);
    }
}

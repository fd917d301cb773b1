//! Tells userspace of the target's processes as they come and go, and holds new programs until they are ready.
#![no_std]
#![no_main]
#![allow(missing_docs, reason = "aya's macros generate undocumented public functions")]
#![allow(clippy::needless_pass_by_value, reason = "aya's macros want the context by value")]

#[path = "../current.rs"]
mod current;
#[path = "../object.rs"]
mod object;

use aya_ebpf::{
    EbpfContext as _, Global,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_ktime_get_ns, bpf_send_signal},
    },
    macros::{map, raw_tracepoint},
    maps::{Array, RingBuf},
    programs::RawTracePointContext,
};
use injector_common::process::{EXEC, EXIT, Event, FORK};

use current::{is_in_target, process_and_thread};

/// Offset of `pid` in the kernel's `struct task_struct`, in bytes.
#[unsafe(no_mangle)]
static PID_AT: Global<u32> = Global::new(0);

/// Offset of `tgid` there.
#[unsafe(no_mangle)]
static TGID_AT: Global<u32> = Global::new(0);

/// What happened. 16 bytes an event: room for all processes that a machine can make while userspace is late.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Until when userspace is known to listen, by `CLOCK_MONOTONIC`: nothing is held after that, so that nothing
/// waits for a dead injector.
#[map]
static LISTENING_UNTIL: Array<u64> = Array::with_max_entries(1, 0);

/// `SIGSTOP`, the same on all architectures that Linux has but those of MIPS, SPARC, Alpha and PA-RISC.
const SIGSTOP: u32 = 19;

/// A process or thread was made; the maker runs this.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    if is_in_target() {
        // SAFETY: the arguments are the parent and the child (include/trace/events/sched.h).
        let child = unsafe { *ctx.as_ptr().cast::<u64>().add(1) };
        let field = |offset: u32| {
            let address = (child + u64::from(offset)) as *const u32;
            // SAFETY: a failing read is an error, whatever the address.
            unsafe { bpf_probe_read_kernel(address) }.unwrap_or(0)
        };
        let (thread, process) = (field(PID_AT.load()), field(TGID_AT.load()));
        if thread == process {
            tell(FORK, process, false);
        }
    }
    0
}

/// The current process executes a program, of which nothing has run yet.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_: RawTracePointContext) -> i32 {
    if is_in_target() {
        tell(EXEC, process_and_thread().0, is_heard());
    }
    0
}

/// The current thread ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(_: RawTracePointContext) -> i32 {
    let (process, thread) = process_and_thread();
    if process == thread && is_in_target() {
        tell(EXIT, process, false);
    }
    0
}

/// Tells userspace, and stops the current process if it is to be held. What userspace does not hear of is not
/// held: nobody would let it go on.
#[inline(always)]
fn tell(kind: u32, pid: u32, hold: bool) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else { return };
    // SAFETY: no pointers are passed.
    let is_stopped = hold && unsafe { bpf_send_signal(SIGSTOP) } == 0;
    entry.write(Event { kind, pid, held: u32::from(is_stopped), reserved: 0 });
    entry.submit(0);
}

#[inline(always)]
fn is_heard() -> bool {
    // SAFETY: no pointers are passed.
    let now = unsafe { bpf_ktime_get_ns() };
    LISTENING_UNTIL.get(0).is_some_and(|&until| now < until)
}

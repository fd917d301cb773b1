//! The exec gate: holds a program at exec until userspace resumes it.
//!
//! The default is to send `SIGSTOP`. A shell with job control would see its commands stop, as if a
//! user had suspended them. It puts each command into its own process group. A program outside its
//! parent's group therefore waits here in the kernel, which occupies the processor for some hundred
//! microseconds but is invisible. It is only stopped if userspace is late.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    helpers::generated::{
        bpf_get_current_task, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_loop, bpf_send_signal,
    },
    macros::map,
    maps::Array,
};
use injector_common::process::{EXEC, Event, FREE, STOPPED, WAITING, Wait};

use crate::{EVENTS, kernel::field, pid};

/// Offset of `real_parent` in the kernel's `struct task_struct`, in bytes.
#[unsafe(no_mangle)]
static PARENT_AT: Global<u32> = Global::new(0);

/// Offset of `pids[PIDTYPE_PGID]` in `struct signal_struct`.
#[unsafe(no_mangle)]
static GROUP_AT: Global<u32> = Global::new(0);

/// Maximum time that a program may wait in the kernel, in nanoseconds; 0 disables that.
#[unsafe(no_mangle)]
static MAX_WAIT: Global<u64> = Global::new(0);

/// Userspace's lease, by `CLOCK_MONOTONIC`: nothing is held after it, so no program waits for a
/// dead injector.
#[map]
static LISTENING_UNTIL: Array<u64> = Array::with_max_entries(1, 0);

/// The waiting program of each processor. Userspace sets the length of this map and the next.
#[map]
static WAITS: Array<Wait> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The number of the program that userspace resumes, by processor.
#[map]
static RELEASED: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// `SIGSTOP` on all Linux architectures except MIPS, SPARC, Alpha and PA-RISC.
const SIGSTOP: u32 = 19;

/// Maximum number of polls; the time limit ends the wait earlier.
const LOOKS: u32 = 1 << 20;

/// Reports an exec, and holds the program if userspace is listening. Without a report the program
/// is not held, because userspace would never resume it; nor is one that userspace cannot see.
#[inline(always)]
pub fn executed() {
    let pid = pid::current();
    if pid == 0 {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else { return };
    let mut event = Event { kind: EXEC, pid, held: FREE, ..Event::default() };
    if !is_heard() {
        entry.write(event);
        entry.submit(0);
        return;
    }
    // SAFETY: takes no pointers.
    event.processor = unsafe { bpf_get_smp_processor_id() };
    let wait =
        WAITS.get_ptr_mut(event.processor).filter(|_| MAX_WAIT.load() != 0 && has_own_group());
    let Some(wait) = wait else {
        event.held = if stop() { STOPPED } else { FREE };
        entry.write(event);
        entry.submit(0);
        return;
    };
    // SAFETY: in the map. There is no other writer: tracepoint programs are not preempted.
    event.number = unsafe { (*wait).number } + 1;
    event.held = WAITING;
    // SAFETY: as above.
    unsafe { (&raw mut (*wait).number).write_volatile(event.number) };
    entry.write(event);
    entry.submit(0);
    let mut turn =
        Turn { processor: event.processor, number: event.number, until: now() + MAX_WAIT.load() };
    // SAFETY: the context lives until the loop ends.
    unsafe { bpf_loop(LOOKS, is_over as *mut c_void, (&raw mut turn).cast(), 0) };
    if !is_released(&turn) && stop() {
        // SAFETY: as above.
        unsafe { (&raw mut (*wait).stopped).write_volatile(event.number) };
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*wait).ended).write_volatile(event.number) };
}

/// The wait of one program.
struct Turn {
    processor: u32,
    number: u64,
    until: u64,
}

/// The loop callback; 1 ends the loop.
extern "C" fn is_over(_: u64, turn: *mut Turn) -> u64 {
    // SAFETY: guaranteed by the caller of the loop.
    let turn = unsafe { &*turn };
    u64::from(is_released(turn) || now() >= turn.until)
}

#[inline(always)]
fn is_released(turn: &Turn) -> bool {
    let Some(released) = RELEASED.get_ptr(turn.processor) else { return true };
    // SAFETY: in the map.
    unsafe { released.read_volatile() == turn.number }
}

#[inline(always)]
fn stop() -> bool {
    // SAFETY: no pointers are passed.
    unsafe { bpf_send_signal(SIGSTOP) == 0 }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no pointers are passed.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn is_heard() -> bool {
    LISTENING_UNTIL.get(0).is_some_and(|&until| now() < until)
}

/// Whether the current process is in another process group than its parent, as under a shell with
/// job control.
#[inline(always)]
fn has_own_group() -> bool {
    // SAFETY: takes no pointers.
    let task = unsafe { bpf_get_current_task() };
    let parent = field(task, PARENT_AT.load()).unwrap_or(0);
    group(task) != group(parent)
}

#[inline(always)]
fn group(task: u64) -> u64 {
    field(task, pid::SIGNAL_AT.load())
        .and_then(|signal| field(signal, GROUP_AT.load()))
        .unwrap_or(0)
}

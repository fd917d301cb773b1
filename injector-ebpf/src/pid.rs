//! The numbers of processes in injector's PID namespace.

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_task},
};

use crate::kernel::field;

/// Inode of injector's PID namespace; 0 for the initial one.
#[unsafe(no_mangle)]
static PID_NAMESPACE: Global<u32> = Global::new(0);

/// Offset of `tgid` in the kernel's `struct task_struct`, in bytes.
#[unsafe(no_mangle)]
pub static TGID_AT: Global<u32> = Global::new(0);

/// Offset of `signal` in `struct task_struct`.
#[unsafe(no_mangle)]
pub static SIGNAL_AT: Global<u32> = Global::new(0);

/// Offset of `pids[PIDTYPE_TGID]` in `struct signal_struct`.
#[unsafe(no_mangle)]
static PROCESS_AT: Global<u32> = Global::new(0);

/// Offset of `level` in `struct pid`.
#[unsafe(no_mangle)]
static LEVEL_AT: Global<u32> = Global::new(0);

/// Offset of `numbers` in `struct pid`.
#[unsafe(no_mangle)]
static NUMBERS_AT: Global<u32> = Global::new(0);

/// Offset of `ns.inum` in `struct pid_namespace`.
#[unsafe(no_mangle)]
static INODE_AT: Global<u32> = Global::new(0);

/// `MAX_PID_NS_LEVEL`: how deep PID namespaces may be nested.
const MAX_LEVEL: u32 = 32;

/// The kernel's `struct upid`: a number in one namespace.
#[repr(C)]
#[derive(Clone, Copy)]
struct Number {
    value: u32,
    reserved: u32,
    namespace: u64,
}

/// The current process; 0 if injector's namespace does not show it.
#[inline(always)]
pub fn current() -> u32 {
    if PID_NAMESPACE.load() == 0 {
        return (bpf_get_current_pid_tgid() >> 32) as u32;
    }
    // SAFETY: takes no pointers.
    translated(unsafe { bpf_get_current_task() })
}

/// The process of a task; 0 if injector's namespace does not show it.
#[inline(always)]
#[allow(dead_code, reason = "objects need a part of this module")]
pub fn of(task: u64) -> u32 {
    if PID_NAMESPACE.load() == 0 {
        return field(task, TGID_AT.load()).unwrap_or(0);
    }
    translated(task)
}

/// A separate function, so that the verifier follows the subsequent code only once.
#[inline(never)]
fn translated(task: u64) -> u32 {
    find(task).unwrap_or(0)
}

#[inline(always)]
fn find(task: u64) -> Option<u32> {
    let signal: u64 = field(task, SIGNAL_AT.load())?;
    let pid: u64 = field(signal, PROCESS_AT.load())?;
    let level: u32 = field(pid, LEVEL_AT.load())?;
    let numbers = pid.wrapping_add(NUMBERS_AT.load().into());
    // The process may be in a namespace below injector's.
    for above in 0..=MAX_LEVEL {
        if above > level {
            break;
        }
        let at = u64::from(level - above) * size_of::<Number>() as u64;
        let Number { value, namespace, .. } = field(numbers, at)?;
        if field(namespace, INODE_AT.load()) == Some(PID_NAMESPACE.load()) {
            return Some(value);
        }
    }
    None
}

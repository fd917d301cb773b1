//! The processes of a target that is a set of processes. The `injector-tree` object keeps them.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, macros::map, maps::HashMap};

use crate::pid;

/// The processes, by number in injector's PID namespace. Objects share this map; userspace sets its
/// length.
#[map]
pub static MEMBERS: HashMap<u32, u32> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Whether a process is one of them.
#[inline(always)]
pub fn has(process: u32) -> bool {
    // SAFETY: only the presence matters.
    unsafe { MEMBERS.get(process) }.is_some()
}

/// Whether the current process is one of them.
#[inline(always)]
pub fn has_current() -> bool {
    has(pid::current())
}

//! The current process and its membership in the target.

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_ancestor_cgroup_id},
};

use crate::members;

/// ID of the target cgroup.
#[unsafe(no_mangle)]
static CGROUP_ID: Global<u64> = Global::new(0);

/// Non-zero: the target is the processes of [`members`] instead of a cgroup.
#[unsafe(no_mangle)]
static OF_PROCESSES: Global<u32> = Global::new(0);

/// Depth of the target cgroup below the hierarchy's root.
#[unsafe(no_mangle)]
static CGROUP_LEVEL: Global<u32> = Global::new(0);

/// Whether the current process is one of the target.
#[inline(always)]
pub fn is_in_target() -> bool {
    if OF_PROCESSES.load() != 0 {
        return members::has_current();
    }
    let level = CGROUP_LEVEL.load().cast_signed();
    // SAFETY: no pointers are passed.
    unsafe { bpf_get_current_ancestor_cgroup_id(level) == CGROUP_ID.load() }
}

/// The process and thread IDs of the current thread in the initial PID namespace.
#[inline(always)]
pub fn process_and_thread() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

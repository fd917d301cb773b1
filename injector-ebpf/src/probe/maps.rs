//! Maps and load-time constants shared with userspace.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LruHashMap},
};
use injector_common::{
    model::clock::Skew,
    probe::{DeadlineKey, ProbeControl, ProbeCounters, Replaced, TimerKey},
};

/// Non-zero: ignore calls from inside the vDSO, because the vDSO skews their results itself.
#[unsafe(no_mangle)]
pub static SKIP_VDSO: Global<u32> = Global::new(0);

/// Non-zero: hide the vDSO from new programs, so that they use system calls.
#[unsafe(no_mangle)]
pub static HIDE_VDSO: Global<u32> = Global::new(0);

/// Offset of `mm` in `struct task_struct`. All offsets are in bytes.
#[unsafe(no_mangle)]
pub static TASK_MM: Global<u32> = Global::new(0);

/// Offset of `files` in `struct task_struct`.
#[unsafe(no_mangle)]
pub static TASK_FILES: Global<u32> = Global::new(0);

/// Offset of `context.vdso` in `struct mm_struct`.
#[unsafe(no_mangle)]
pub static MM_VDSO: Global<u32> = Global::new(0);

/// Offset of `context.vdso_image` in `struct mm_struct`.
#[unsafe(no_mangle)]
pub static MM_VDSO_IMAGE: Global<u32> = Global::new(0);

/// Offset of `saved_auxv` in `struct mm_struct`.
#[unsafe(no_mangle)]
pub static MM_AUXV: Global<u32> = Global::new(0);

/// Offset of `size` in `struct vdso_image`.
#[unsafe(no_mangle)]
pub static VDSO_IMAGE_SIZE: Global<u32> = Global::new(0);

/// Offset of `fdt` in `struct files_struct`.
#[unsafe(no_mangle)]
pub static FILES_TABLE: Global<u32> = Global::new(0);

/// Offset of `max_fds` in `struct fdtable`.
#[unsafe(no_mangle)]
pub static TABLE_LENGTH: Global<u32> = Global::new(0);

/// Offset of `fd` in `struct fdtable`.
#[unsafe(no_mangle)]
pub static TABLE_FILES: Global<u32> = Global::new(0);

/// Offset of `private_data` in `struct file`.
#[unsafe(no_mangle)]
pub static FILE_DATA: Global<u32> = Global::new(0);

/// Offset of `clockid` in `struct timerfd_ctx`.
#[unsafe(no_mangle)]
pub static TIMERFD_CLOCK: Global<u32> = Global::new(0);

// Maps that userspace accesses while the probes are active must be memory-mapped. While bpf(2)
// operates on a map, the kernel skips kprobe programs on that processor
// (`bpf_disable_instrumentation`, kernel/bpf/syscall.c), for other threads too if it can be
// preempted.

/// The current skew, and the lease of deadline replacement.
#[map]
pub static CONTROL: Array<ProbeControl> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The skews of the target's clocks, see [`ProbeControl`].
#[map]
pub static SKEWS: Array<Skew> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// Counters, by processor number. Userspace sets the length.
#[map]
pub static COUNTERS: Array<ProbeCounters> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Currently replaced deadlines.
#[map]
pub static REPLACED: HashMap<DeadlineKey, Replaced> = HashMap::with_max_entries(16_384, 0);

/// The clocks of POSIX timers, by ID.
#[map]
pub static TIMERS: LruHashMap<TimerKey, i32> = LruHashMap::with_max_entries(16_384, 0);

//! Clocks and grace periods shared with the eBPF side.

use std::time::Duration;

use injector_common::model::clock::CLOCKS;
use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in nanoseconds, which is what `bpf_ktime_get_ns` reads.
#[must_use]
pub fn monotonic_ns() -> u64 {
    // Linux always has this clock; on an error all deadlines count as passed.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(u64::MAX, |time| nanoseconds(time.into()))
}

/// The deadline `after` from now, in nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn deadline_ns(after: Duration) -> u64 {
    monotonic_ns().saturating_add(nanoseconds(after))
}

/// A duration in nanoseconds, saturating.
#[must_use]
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns once no eBPF program that was running at the call can still be running.
///
/// `membarrier(MEMBARRIER_CMD_GLOBAL)` is an RCU grace period (membarrier(2), Linux 4.3), and programs
/// run within RCU read sections. Where it is refused, sleep longer than any program runs.
pub fn wait_for_readers() {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The readings of all true clocks in nanoseconds, indexed by [`injector_common::model::clock::Clock`].
pub type TrueTime = [i64; CLOCKS];

/// Reads all clocks by system calls, since the vDSO may be faulted by another injector.
#[must_use]
pub fn true_time() -> TrueTime {
    const IDS: [libc::clockid_t; CLOCKS] = [
        libc::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_MONOTONIC_RAW,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_TAI,
    ];
    IDS.map(|id| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // Linux has had all of them since 3.10, so it does not fail.
        // SAFETY: the pointer is to a timespec, which this fills.
        unsafe { libc::syscall(libc::SYS_clock_gettime, id, &raw mut time) };
        time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
    })
}

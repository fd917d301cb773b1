//! Time as the kernel side has it: the clock of deadlines, and the end of reading.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in nanoseconds, which is what `bpf_ktime_get_ns` reads.
#[must_use]
pub fn monotonic_ns() -> u64 {
    // Linux always has this clock; were it gone, all deadlines would count as passed.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(u64::MAX, |time| u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX))
}

/// The deadline that lies `after` from now, in nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn deadline_ns(after: Duration) -> u64 {
    monotonic_ns().saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
}

/// Returns once no eBPF program that was running at the call can still be running.
///
/// `membarrier(MEMBARRIER_CMD_GLOBAL)` is an RCU grace period (membarrier(2), Linux 4.3), and programs
/// run within RCU read sections. Where it is refused, a time that no program takes must do.
pub fn wait_for_readers() {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(Duration::from_millis(100));
    }
}

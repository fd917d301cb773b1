//! Types shared by both sides of the clock probes: skews, replaced deadlines and counters.

use core::ops::AddAssign;

/// The one element of the `CONTROL` map.
///
/// There are two skews. A change writes the one that is not in use and then increments
/// `generation`, whose lowest bit selects the skew in use. A reader that finds the generation
/// changed after reading retries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeControl {
    /// The number of changes; the lowest bit selects the skew in use.
    pub generation: u64,
    /// `CLOCK_MONOTONIC` nanoseconds after which deadlines are no longer replaced.
    pub lease_ns: u64,
}

/// A deadline in a process's memory, replaced while the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeadlineKey {
    /// Address of the `timespec` in the process.
    pub pointer: u64,
    /// The process (thread group) ID in the initial PID namespace.
    pub process: u32,
    /// Keeps the size a multiple of 8 without implicit padding.
    pub reserved: u32,
}

/// The original and the replaced value, in seconds and nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// The process's deadline, by its own clock.
    pub wanted: [i64; 2],
    /// The true deadline passed to the kernel.
    pub given: [i64; 2],
    /// Number of calls currently reading it. Threads may share a deadline.
    pub calls: u64,
}

/// A POSIX timer of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TimerKey {
    /// The process (thread group).
    pub process: u32,
    /// The timer's ID in the process.
    pub timer: i32,
}

/// Counters of the probes, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCounters {
    /// System calls of the target that read a clock which can be faulted.
    pub matched: u64,
    /// Calls whose result was changed.
    pub rewritten: u64,
    /// Results and deadlines that could not be written because memory is read-only or unmapped.
    pub failed: u64,
    /// Deadlines of skewed clocks replaced by true ones.
    pub deadlines: u64,
    /// Unchanged deadlines: of a frozen clock or one that never reaches the deadline, of a POSIX
    /// timer created before the probes, or of threads that share a variable at the same moment.
    pub left: u64,
    /// New programs from which the vDSO was hidden.
    pub hidden: u64,
    /// New programs whose vDSO was not found in the expected place, and therefore not hidden.
    pub not_hidden: u64,
}

impl AddAssign for ProbeCounters {
    fn add_assign(&mut self, other: Self) {
        self.matched += other.matched;
        self.rewritten += other.rewritten;
        self.failed += other.failed;
        self.deadlines += other.deadlines;
        self.left += other.left;
        self.hidden += other.hidden;
        self.not_hidden += other.not_hidden;
    }
}

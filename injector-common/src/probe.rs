//! What the two sides of the clock probes tell each other: how system calls that read clocks or wait for
//! them are faulted, and what was done.

use core::ops::AddAssign;

/// The one element of the `CONTROL` map.
///
/// There are two skews. A change writes the one that is not in use and then counts `generation` up, which
/// says which is; a reader that finds another generation behind its reading than before reads again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeControl {
    /// Which skew counts, in its lowest bit; and how many there have been.
    pub generation: u64,
    /// `CLOCK_MONOTONIC` nanoseconds after which no deadline is replaced any more.
    pub lease_ns: u64,
}

/// A deadline in the memory of a process, which is replaced while the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeadlineKey {
    /// Where the process has its `timespec`.
    pub pointer: u64,
    /// The process (thread group), by its number in the first PID namespace.
    pub process: u32,
    /// Keeps the size a multiple of 8 without implicit padding.
    pub reserved: u32,
}

/// What was there, and what is there now. Seconds and nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// What the process waits for, by its clock.
    pub wanted: [i64; 2],
    /// What the kernel was given instead.
    pub given: [i64; 2],
    /// Calls that read it now. Threads may share a deadline.
    pub calls: u64,
}

/// A POSIX timer of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TimerKey {
    /// The process (thread group).
    pub process: u32,
    /// Its number for the timer.
    pub timer: i32,
}

/// What the probes did, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCounters {
    /// System calls of the target that read a clock which a fault may touch.
    pub matched: u64,
    /// Those of them whose result was changed.
    pub rewritten: u64,
    /// Results and deadlines that could not be written: memory that is read-only or not there.
    pub failed: u64,
    /// Deadlines of skewed clocks that were replaced by true ones.
    pub deadlines: u64,
    /// Deadlines that were left alone: of a clock that stands or never gets there, of a POSIX timer that was
    /// made before the probes were there, of threads that use one variable in the same moment.
    pub left: u64,
    /// New programs from which the vDSO was hidden.
    pub hidden: u64,
    /// New programs in which it was not found where it should be, and so not hidden.
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

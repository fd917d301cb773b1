//! Events about processes of the target.

/// A process was created by `fork(2)` or a variant. Threads are not reported.
pub const FORK: u32 = 0;
/// A process executed a program.
pub const EXEC: u32 = 1;
/// A process ended.
pub const EXIT: u32 = 2;

/// [`Event::held`]: not held.
pub const FREE: u32 = 0;
/// [`Event::held`]: stopped by `SIGSTOP`, and waiting for `SIGCONT` before its first instruction.
pub const STOPPED: u32 = 1;
/// [`Event::held`]: waiting in the kernel, in execve(2), for at most a few milliseconds. See
/// [`Wait`].
pub const WAITING: u32 = 2;

/// A program waiting in the kernel, by processor. Userspace resumes it by writing its number to the
/// same index of another array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// Number of the last program that waited or is waiting here.
    pub number: u64,
    /// Number of the last program that resumed.
    pub ended: u64,
    /// Number of the last program that was not resumed in time and received `SIGSTOP`.
    pub stopped: u64,
}

/// Counters of the program that sends a signal at a system call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCounters {
    /// Matching calls.
    pub calls: u64,
    /// Signals sent.
    pub sent: u64,
    /// Signals that could not be sent.
    pub failed: u64,
}

impl core::ops::AddAssign for CallCounters {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.sent += other.sent;
        self.failed += other.failed;
    }
}

/// One record of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// [`FORK`], [`EXEC`] or [`EXIT`].
    pub kind: u32,
    /// The process ID in the initial PID namespace.
    pub pid: u32,
    /// [`FREE`], [`STOPPED`] or [`WAITING`].
    pub held: u32,
    /// The processor on which it waits, if [`WAITING`].
    pub processor: u32,
    /// Its number in [`Wait`], if [`WAITING`].
    pub number: u64,
}

impl Event {
    /// Parses a record.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |number: usize| {
            let bytes = bytes.get(4 * number..4 * number + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let number = u64::from_ne_bytes(bytes.get(16..24)?.try_into().ok()?);
        Some(Self { kind: word(0)?, pid: word(1)?, held: word(2)?, processor: word(3)?, number })
    }
}

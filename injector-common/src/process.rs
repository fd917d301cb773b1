//! What the kernel side tells of processes of the target as they come and go.

/// A process was made by `fork(2)` or its kin. Threads are not told of.
pub const FORK: u32 = 0;
/// A process executes another program.
pub const EXEC: u32 = 1;
/// A process ends.
pub const EXIT: u32 = 2;

/// [`Event::held`]: it goes on as it likes.
pub const FREE: u32 = 0;
/// [`Event::held`]: it was sent `SIGSTOP`, and waits for `SIGCONT` before its first instruction.
pub const STOPPED: u32 = 1;
/// [`Event::held`]: it waits in the kernel, in execve(2), for a few milliseconds at the most. See [`Wait`].
pub const WAITING: u32 = 2;

/// A program that waits in the kernel, by the processor on which it does. Userspace lets it go on by writing its number
/// to the same place of another array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// Of the last one that waited here, or waits.
    pub number: u64,
    /// Of the last one that went on.
    pub ended: u64,
    /// Of the last one that nobody let go on, and which was sent `SIGSTOP`.
    pub stopped: u64,
}

/// What the kernel side counts that waits for a system call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCounters {
    /// Calls.
    pub calls: u64,
    /// Signals that were sent.
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
    /// The process, as the initial PID namespace numbers it.
    pub pid: u32,
    /// [`FREE`], [`STOPPED`] or [`WAITING`].
    pub held: u32,
    /// Where it waits.
    pub processor: u32,
    /// As which it waits.
    pub number: u64,
}

impl Event {
    /// Reads a record.
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

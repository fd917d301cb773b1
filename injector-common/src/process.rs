//! What the kernel side tells of processes of the target as they come and go.

/// A process was made by `fork(2)` or its kin. Threads are not told of.
pub const FORK: u32 = 0;
/// A process executes another program.
pub const EXEC: u32 = 1;
/// A process ends.
pub const EXIT: u32 = 2;

/// One record of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// [`FORK`], [`EXEC`] or [`EXIT`].
    pub kind: u32,
    /// The process, as the initial PID namespace numbers it.
    pub pid: u32,
    /// Not 0 if it was sent `SIGSTOP`, and waits for `SIGCONT` before its first instruction.
    pub held: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
}

impl Event {
    /// Reads a record.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |number: usize| {
            let bytes = bytes.get(4 * number..4 * number + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        Some(Self { kind: word(0)?, pid: word(1)?, held: word(2)?, reserved: word(3)? })
    }
}

//! Types shared by both sides of syscall failures.

use core::ops::AddAssign;

/// Number of system calls that can be selected; Linux has about 470 on x86-64.
pub const CALLS: u32 = 1024;

/// Maximum length of a path that can be matched, in bytes.
pub const MAX_PATH: usize = 512;

/// Maximum length of a file name (`NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// Maximum number of programs that match paths on one processor at once; each may be preempted.
pub const SCRATCHES: u32 = 4;

/// A buffer for assembling a path.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// Non-zero while in use.
    pub in_use: u64,
    /// The start of the path. It is in memory rather than a register so that the verifier forgets
    /// the path by which it was computed.
    pub start: u64,
    /// The path, at the end of the first [`MAX_PATH`] bytes. The rest is never used, but
    /// required by the verifier, which does not know that a name ends there.
    pub bytes: [u8; MAX_PATH + MAX_NAME + 1],
}

/// The network of a call's remote address, for both IP versions in IPv6 form; IPv4 is
/// `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// The network address, in network byte order.
    pub network: [u32; 4],
    /// The network mask.
    pub mask: [u32; 4],
}

impl Remote {
    /// Whether the network contains an address.
    #[inline(always)]
    #[must_use]
    pub fn contains(&self, address: [u32; 4]) -> bool {
        (address[0] & self.mask[0]) ^ self.network[0]
            | (address[1] & self.mask[1]) ^ self.network[1]
            | (address[2] & self.mask[2]) ^ self.network[2]
            | (address[3] & self.mask[3]) ^ self.network[3]
            == 0
    }
}

/// An IPv4 address in IPv6 form, in network byte order.
#[inline(always)]
#[must_use]
pub const fn mapped(address: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), address]
}

/// Counters of syscall failures.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrnoCounters {
    /// Calls that matched.
    pub matched: u64,
    /// Matching calls that failed.
    pub failed: u64,
    /// Calls whose path could not be determined: longer than [`MAX_PATH`], or nested too
    /// deeply.
    pub unknown: u64,
}

impl AddAssign for ErrnoCounters {
    fn add_assign(&mut self, other: Self) {
        self.matched += other.matched;
        self.failed += other.failed;
        self.unknown += other.unknown;
    }
}

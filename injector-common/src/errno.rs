//! What the two sides of failing system calls tell each other.

use core::ops::AddAssign;

/// Numbers of system calls that can be named; Linux has some 470 on x86-64.
pub const CALLS: u32 = 1024;

/// Longest path that a pattern can be held against, in bytes.
pub const LONGEST_PATH: usize = 512;

/// Longest name of a file (`NAME_MAX`).
pub const LONGEST_NAME: usize = 255;

/// Programs that read paths on one processor at once, as each may be preempted in the midst of it.
pub const SCRATCHES: u32 = 4;

/// Room to make up a path.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// Not 0 while it is in use.
    pub in_use: u64,
    /// Where the path begins. Here and not in a register, so that the verifier forgets by which way it came about.
    pub start: u64,
    /// The path, at the end of the first [`LONGEST_PATH`] bytes. The rest is never used, but the verifier, which does not
    /// know that a name ends there, wants it.
    pub bytes: [u8; LONGEST_PATH + LONGEST_NAME + 1],
}

/// Whom a call is about: addresses of both IP versions in the form of IPv6, with IPv4 as `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// The network, in the order of the wire.
    pub network: [u32; 4],
    /// The bits of it that count.
    pub mask: [u32; 4],
}

impl Remote {
    /// Whether an address is in it.
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

/// An IPv4 address, in the order of the wire, in the form of IPv6.
#[inline(always)]
#[must_use]
pub const fn mapped(address: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), address]
}

/// What the kernel side counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrnoCounters {
    /// Calls that matched.
    pub matched: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Calls whose path could not be told: longer than [`LONGEST_PATH`], or nested too deeply.
    pub unknown: u64,
}

impl AddAssign for ErrnoCounters {
    fn add_assign(&mut self, other: Self) {
        self.matched += other.matched;
        self.failed += other.failed;
        self.unknown += other.unknown;
    }
}

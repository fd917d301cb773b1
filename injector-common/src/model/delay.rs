//! How long a packet is held back: latency, jitter and reordering. Terms are those of netem (tc-netem(8),
//! `net/sched/sch_netem.c`).

use super::chance::{Chance, Probability};

/// [`Delay::distribution`]: jitter is uniform; it needs no table. Other values are 1 + the number of a table.
pub const UNIFORM: u32 = 0;

/// Values of a distribution table are in units of 1 / this of the jitter, as in netem's files.
pub const DISTRIBUTION_SCALE_SHIFT: u32 = 13;

/// Most values of a distribution table, as netem's.
pub const MAX_TABLE: usize = 16_384;

/// The longest latency or jitter, in nanoseconds: a minute.
pub const MAX_NS: u64 = 60_000_000_000;

/// How packets are delayed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay {
    /// Mean delay in nanoseconds, at most [`MAX_NS`].
    pub latency_ns: u64,
    /// Scale of the distribution in nanoseconds, at most [`MAX_NS`]: half its width if it is uniform, else
    /// what a table's values are multiples of (the standard deviation in netem's tables).
    pub jitter_ns: u64,
    /// [`UNIFORM`], or 1 + the number of a table.
    pub distribution: u32,
    /// Correlation of one packet's random number with the next one's, in units of 2^-32, as netem's.
    pub correlation: u32,
    /// Which of the packets that may be are let go at once and so overtake delayed ones.
    pub reorder: Chance,
    /// Only every `gap`-th packet may be let go at once; 0 if none may.
    pub gap: u32,
    /// Keeps the size a multiple of 8 without implicit padding.
    pub reserved: u32,
}

/// What delaying remembers: the last random number in the upper half; below it, whether the last packet
/// that might be let go was (1 bit), and how many have been delayed since one was (31 bits).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory(pub u64);

impl Memory {
    const LET_GO: u64 = 1 << 31;
    const COUNT: u64 = Self::LET_GO - 1;

    /// As after a packet with this random number.
    #[must_use]
    pub const fn from_last(random: u32) -> Self {
        Self((random as u64) << 32)
    }
}

/// Where the delays of a distribution come from.
pub trait Tables {
    /// The value at `random` of 2^32 of the way through table number `table`; 0 if there is no such table.
    fn value(&self, table: u32, random: u32) -> i32;
}

impl Delay {
    /// Whether one packet's delay depends on those before.
    #[must_use]
    pub const fn has_memory(&self) -> bool {
        self.gap != 0 || (self.correlation != 0 && self.jitter_ns != 0)
    }

    /// Whether a random number is needed.
    #[must_use]
    pub const fn is_random(&self) -> bool {
        self.jitter_ns != 0 || self.gap != 0
    }

    /// For how many nanoseconds a packet is held, and what is remembered then; `None` if it is let go at once
    /// and overtakes others.
    #[inline(always)]
    #[must_use]
    pub fn step(&self, memory: Memory, random: u64, tables: &impl Tables) -> (Option<u64>, Memory) {
        let (high, low) = ((random >> 32) as u32, random as u32);
        let count = memory.0 & Memory::COUNT;
        let mut let_go = memory.0 & Memory::LET_GO;
        if self.gap != 0 && count + 1 >= u64::from(self.gap) {
            if self.reorder.hit(let_go != 0, low) {
                return (None, Memory(memory.0 & !(Memory::COUNT) | Memory::LET_GO));
            }
            let_go = 0;
        }
        let drawn = self.correlated((memory.0 >> 32) as u32, high);
        let count = if count == Memory::COUNT { count } else { count + 1 };
        let memory = Memory(u64::from(drawn) << 32 | let_go | count);
        (Some(self.nanoseconds(drawn, tables)), memory)
    }

    /// Mixes a random number with the last one.
    #[inline(always)]
    const fn correlated(&self, last: u32, random: u32) -> u32 {
        let rho = self.correlation as u64;
        if rho == 0 {
            return random;
        }
        // netem's get_crandom().
        let rho = rho + 1;
        ((random as u64 * ((1 << 32) - rho)).wrapping_add(last as u64 * rho) >> 32) as u32
    }

    /// The delay that belongs to a random number.
    #[inline(always)]
    fn nanoseconds(&self, random: u32, tables: &impl Tables) -> u64 {
        if self.jitter_ns == 0 {
            return self.latency_ns;
        }
        let offset = if self.distribution == UNIFORM {
            // 37 bits of width and 26 of the random number: no overflow.
            let width = 2 * self.jitter_ns + 1;
            ((width * u64::from(random >> 6)) >> 26).cast_signed() - self.jitter_ns.cast_signed()
        } else {
            let value = i64::from(tables.value(self.distribution - 1, random));
            (value * self.jitter_ns.cast_signed()) >> DISTRIBUTION_SCALE_SHIFT
        };
        (self.latency_ns.cast_signed() + offset).max(0).cast_unsigned()
    }

    /// A correlation from a fraction of 0 to 1.
    #[must_use]
    pub fn correlation_from(fraction: f64) -> u32 {
        Probability::from_fraction(fraction).0
    }
}

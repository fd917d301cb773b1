//! The delay model: latency, jitter and reordering, in the terms of netem (tc-netem(8),
//! `net/sched/sch_netem.c`).

use super::chance::{Chance, Probability};

/// [`Delay::distribution`]: uniform jitter, without a table. Other values are 1 + the index of a table.
pub const UNIFORM: u32 = 0;

/// Values of a distribution table are in units of jitter / this, as in netem's files.
pub const DISTRIBUTION_SCALE_SHIFT: u32 = 13;

/// The maximum number of values of a distribution table, as in netem.
pub const MAX_TABLE: usize = 16_384;

/// The maximum latency or jitter in nanoseconds: one minute.
pub const MAX_NS: u64 = 60_000_000_000;

/// A delay model with its parameters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay {
    /// Mean delay in nanoseconds, at most [`MAX_NS`].
    pub latency_ns: u64,
    /// Scale of the distribution in nanoseconds, at most [`MAX_NS`]: half its width if it is uniform, else
    /// the unit of a table's values (the standard deviation in netem's tables).
    pub jitter_ns: u64,
    /// [`UNIFORM`], or 1 + the index of a table.
    pub distribution: u32,
    /// Correlation of successive random numbers in units of 2^-32, as in netem.
    pub correlation: u32,
    /// The chance of a candidate to be sent without delay, which reorders packets.
    pub reorder: Chance,
    /// Every `gap`-th packet is a candidate for reordering; 0 for none.
    pub gap: u32,
    /// Non-zero: each flow keeps its order although the delay varies, see [`Self::orders_flows`].
    pub ordered: u32,
}

/// The state of the delay model: the last random number in the upper half; below it, whether the last
/// candidate was reordered (1 bit), and the number of packets delayed since (31 bits).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory(pub u64);

impl Memory {
    const LET_GO: u64 = 1 << 31;
    const COUNT: u64 = Self::LET_GO - 1;

    /// The state after a packet with this random number.
    #[must_use]
    pub const fn from_last(random: u32) -> Self {
        Self((random as u64) << 32)
    }
}

/// Access to distribution tables.
pub trait Tables {
    /// The value at fraction `random` / 2^32 of table `table`; 0 if there is no such table.
    fn value(&self, table: u32, random: u32) -> i32;
}

impl Delay {
    /// Whether the delay of a packet depends on previous packets.
    #[must_use]
    pub const fn has_memory(&self) -> bool {
        self.gap != 0 || (self.correlation != 0 && self.jitter_ns != 0)
    }

    /// Whether no packet may leave before an earlier one of the same link.
    ///
    /// With a constant delay, this matters only when the delay or the rate changes.
    #[inline(always)]
    #[must_use]
    pub const fn keeps_order(&self) -> bool {
        self.jitter_ns == 0 && self.gap == 0
    }

    /// Whether no packet may leave before an earlier one of the same link and flow.
    #[inline(always)]
    #[must_use]
    pub const fn orders_flows(&self) -> bool {
        self.ordered != 0
    }

    /// Whether a step needs a random number.
    #[must_use]
    pub const fn is_random(&self) -> bool {
        self.jitter_ns != 0 || self.gap != 0
    }

    /// The delay of a packet in nanoseconds, and the next state. `None` means that the packet is sent
    /// without delay and overtakes others.
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

    /// Correlates a random number with the last one.
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

    /// The delay in nanoseconds for a random number.
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

    /// Converts a correlation from a fraction of 0 to 1.
    #[must_use]
    pub fn correlation_from(fraction: f64) -> u32 {
        Probability::from_fraction(fraction).0
    }
}

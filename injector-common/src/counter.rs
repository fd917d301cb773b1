//! What the kernel side counts, per CPU; userspace adds the CPUs up.

use core::{iter::Sum, ops::AddAssign};

use crate::verifier::pin;

/// What one rule matched and what was done to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCounters {
    /// Matched packets (skbs: one may carry many wire packets) by [`crate::packet::Direction`].
    pub packets: [u64; 2],
    /// Bytes of the matched packets, link-layer header included, by [`crate::packet::Direction`].
    pub bytes: [u64; 2],
    /// Packets lost on purpose.
    pub dropped: u64,
    /// Packets corrupted on purpose.
    pub corrupted: u64,
    /// Packets of which a second copy was sent.
    pub duplicated: u64,
    /// Connections reset.
    pub reset: u64,
    /// Packets held back, by a delay or a limited rate.
    pub delayed: u64,
    /// For how long all of them together, in nanoseconds, by [`crate::packet::Direction`].
    pub delay_ns: [u64; 2],
    /// Packets that were let go at once and so overtook delayed ones.
    pub reordered: u64,
    /// Packets that had to wait for others at a limited rate.
    pub queued: u64,
    /// Packets dropped because the queue before a limited rate was full.
    pub queue_dropped: u64,
    /// Packets that were given an ECN mark instead of being lost.
    pub marked: u64,
    /// Packets that the rule would have hit, but which `--protect` left alone.
    pub protected: u64,
    /// Packets that passed unchanged because the rule's deadline or the lease had run out.
    pub expired: u64,
    /// Packets that could not be impaired as asked (nothing to corrupt, or the kernel refused) and
    /// therefore passed unchanged.
    pub skipped: u64,
}

/// What the programs saw on the attached interfaces, whatever the rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenCounters {
    /// Packets looked at by [`crate::packet::Direction`]; on egress, only those of the target's cgroup.
    pub packets: [u64; 2],
    /// Frames that are not IP (ARP and the like); never touched.
    pub not_ip: u64,
    /// IP packets whose headers are truncated or malformed; never touched.
    pub unparsed: u64,
}

impl AddAssign for RuleCounters {
    fn add_assign(&mut self, other: Self) {
        for direction in 0..2 {
            self.packets[direction] += other.packets[direction];
            self.bytes[direction] += other.bytes[direction];
            self.delay_ns[direction] += other.delay_ns[direction];
        }
        self.dropped += other.dropped;
        self.corrupted += other.corrupted;
        self.duplicated += other.duplicated;
        self.reset += other.reset;
        self.delayed += other.delayed;
        self.reordered += other.reordered;
        self.queued += other.queued;
        self.queue_dropped += other.queue_dropped;
        self.marked += other.marked;
        self.protected += other.protected;
        self.expired += other.expired;
        self.skipped += other.skipped;
    }
}

impl Sum for RuleCounters {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), |mut sum, counters| {
            sum += counters;
            sum
        })
    }
}

impl RuleCounters {
    /// Matched packets in both directions.
    #[must_use]
    pub fn matched(&self) -> u64 {
        self.packets[0] + self.packets[1]
    }
}

/// Buckets of [`Delays`] that have a bound.
pub const DELAY_BOUNDS: usize = 41;

/// The width of the narrowest buckets, in nanoseconds: 1/32 ms.
const DELAY_STEP_NS: u64 = 31_250;

/// How many packets one rule held back, by for how long. Counted by all CPUs together: a packet that is held takes longer
/// than that, and buckets for each CPU would be large.
///
/// Two buckets for each doubling: bounds are 1/16 ms, 3/32, 1/8, 3/16 … 1, 1.5, 2, 3, 4, 6, 8 ms … 65.536 s, see
/// [`Delays::bound_ns`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// By [`crate::packet::Direction`], see [`Delays::place`].
    pub counts: [u64; 2 * (DELAY_BOUNDS + 1)],
}

impl Default for Delays {
    fn default() -> Self {
        Self { counts: [0; 2 * (DELAY_BOUNDS + 1)] }
    }
}

impl Delays {
    /// Where a delay is counted, below [`DELAY_BOUNDS`] if it is not longer than the last bound.
    #[inline(always)]
    #[must_use]
    pub const fn bucket(delay_ns: u64) -> usize {
        let steps = delay_ns.saturating_sub(1) / DELAY_STEP_NS;
        match steps.checked_ilog2() {
            None | Some(0) => 0,
            Some(power @ 1..=20) => {
                let upper_half = (steps >> (power - 1)) as u32 & 1;
                (2 * power - 1 + upper_half) as usize
            }
            Some(_) => DELAY_BOUNDS,
        }
    }

    /// The longest delay that is counted in a bucket, in nanoseconds; those of the last one have none.
    #[must_use]
    pub const fn bound_ns(bucket: usize) -> Option<u64> {
        if bucket >= DELAY_BOUNDS {
            return None;
        }
        let halves = if bucket.is_multiple_of(2) { 4 } else { 3 };
        Some((DELAY_STEP_NS * halves) << bucket.div_ceil(2) >> 1)
    }

    /// Where in [`Delays::counts`] a delay is counted; within it, though the verifier cannot know.
    #[inline(always)]
    #[must_use]
    pub fn place(direction: usize, delay_ns: u64) -> usize {
        pin((direction & 1) * (DELAY_BOUNDS + 1) + Self::bucket(delay_ns))
    }

    /// The counts of one direction.
    #[must_use]
    pub fn of(&self, direction: usize) -> &[u64] {
        &self.counts[(direction & 1) * (DELAY_BOUNDS + 1)..][..=DELAY_BOUNDS]
    }
}

impl AddAssign<&Self> for Delays {
    fn add_assign(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, other)| *count += other);
    }
}

impl AddAssign for SeenCounters {
    fn add_assign(&mut self, other: Self) {
        for direction in 0..2 {
            self.packets[direction] += other.packets[direction];
        }
        self.not_ip += other.not_ip;
        self.unparsed += other.unparsed;
    }
}

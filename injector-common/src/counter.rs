//! Counters of the eBPF programs, per CPU; userspace sums them.

use core::{iter::Sum, ops::AddAssign};

use crate::verifier::pin;

/// The table of packet counters. Calls `$callback!` with `$args` and a row for each counter. A row
/// contains the field's name, which is also the JSON key and the metric label; the key in
/// Kubernetes; a label for messages ("3 dropped"); and the documentation.
///
/// All code that stores, sums or prints packet counters is generated from these rows. A new counter
/// requires one row here and the statement that counts it in the kernel.
#[macro_export]
macro_rules! packet_counters {
    ($callback:ident! { $($args:tt)* }) => {
        $callback! { $($args)*
            { dropped, "dropped", "dropped", "Packets dropped on purpose." }
            { corrupted, "corrupted", "corrupted", "Packets corrupted on purpose." }
            { duplicated, "duplicated", "duplicated", "Packets of which a second copy was sent." }
            { reset, "reset", "connections reset", "Connections reset." }
            { delayed, "delayed", "delayed", "Packets held back, by a delay or a limited rate." }
            { reordered, "reordered", "reordered", "Packets let go at once, ahead of delayed ones." }
            { queued, "queued", "queued", "Packets that waited for others at a limited rate." }
            { queue_dropped, "queueDropped", "dropped by the full queue",
                "Packets dropped because the queue of a limited rate was full." }
            { marked, "marked", "marked (ECN)", "Packets given an ECN mark instead of being dropped." }
            { protected, "protected", "protected",
                "Packets that matched, but passed unchanged because `--protect` spares them." }
            { expired, "expired", "passed after the end",
                "Packets that matched, but passed unchanged because the fault or its lease had ended." }
            { skipped, "skipped", "could not be impaired",
                "Packets that matched, but passed unchanged because they could not be impaired as asked." }
        }
    };
}

macro_rules! rule_counters {
    ($({ $field:ident, $key:literal, $label:literal, $doc:literal })*) => {
        /// The matches of a rule and its effects.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct RuleCounters {
            /// Matched packets by [`crate::packet::Direction`]. They are skbs, each of which may
            /// contain many wire packets.
            pub packets: [u64; 2],
            /// Bytes of the matched packets, including the link-layer header, by
            /// [`crate::packet::Direction`].
            pub bytes: [u64; 2],
            /// Total delay of held packets in nanoseconds, by [`crate::packet::Direction`].
            pub delay_ns: [u64; 2],
            $(#[doc = $doc] pub $field: u64,)*
        }

        impl AddAssign for RuleCounters {
            fn add_assign(&mut self, other: Self) {
                for direction in 0..2 {
                    self.packets[direction] += other.packets[direction];
                    self.bytes[direction] += other.bytes[direction];
                    self.delay_ns[direction] += other.delay_ns[direction];
                }
                $(self.$field += other.$field;)*
            }
        }
    };
}

packet_counters!(rule_counters! {});

/// Packets seen on the attached interfaces, independent of the rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenCounters {
    /// Examined packets by [`crate::packet::Direction`]; on egress, only those of the target's
    /// cgroup.
    pub packets: [u64; 2],
    /// Frames that are not IP (such as ARP); never faulted.
    pub not_ip: u64,
    /// IP packets whose headers are truncated or malformed; never faulted.
    pub unparsed: u64,
    /// Packets sent to a hold device.
    pub held: u64,
    /// Packets that returned from a hold device.
    pub released: u64,
    /// Matching packets with several receivers (multicast, broadcast), some of which may be outside
    /// the target; never faulted, and counted as skipped.
    pub shared: u64,
    /// Packets on the loopback that should have reset their connection but had translated addresses
    /// (NAT), so that no reset would have reached their sender; never faulted, and counted as
    /// skipped.
    pub translated: u64,
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

/// Number of [`Delays`] buckets with an upper bound.
pub const DELAY_BOUNDS: usize = 41;

/// Width of the narrowest buckets in nanoseconds: 1/32 ms.
const DELAY_STEP_NS: u64 = 31_250;

/// Histogram of the delays of a rule. All CPUs share it: holding a packet costs more than an atomic
/// increment, and per-CPU buckets would be large.
///
/// There are two buckets for each doubling: bounds are 1/16 ms, 3/32, 1/8, 3/16 … 1, 1.5, 2, 3, 4,
/// 6, 8 ms … 65.536 s, see [`Delays::bound_ns`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// Counts by [`crate::packet::Direction`] and bucket, see [`Delays::place`].
    pub counts: [u64; 2 * (DELAY_BOUNDS + 1)],
}

impl Default for Delays {
    fn default() -> Self {
        Self { counts: [0; 2 * (DELAY_BOUNDS + 1)] }
    }
}

impl Delays {
    /// The bucket of a delay; below [`DELAY_BOUNDS`] unless the delay exceeds the last bound.
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

    /// The upper bound of a bucket in nanoseconds; the last bucket has none.
    #[must_use]
    pub const fn bound_ns(bucket: usize) -> Option<u64> {
        if bucket >= DELAY_BOUNDS {
            return None;
        }
        let halves = if bucket.is_multiple_of(2) { 4 } else { 3 };
        Some((DELAY_STEP_NS * halves) << bucket.div_ceil(2) >> 1)
    }

    /// The index of a delay in [`Delays::counts`]. It is always within bounds, although the
    /// verifier cannot know that.
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
        self.held += other.held;
        self.released += other.released;
        self.shared += other.shared;
        self.translated += other.translated;
    }
}

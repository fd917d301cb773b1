//! What the kernel side counts, per CPU; userspace adds the CPUs up.

use core::{iter::Sum, ops::AddAssign};

use crate::verifier::pin;

/// The table of packet counters. Calls `$callback!` with `$args` and a row for each counter: its name, which is that of
/// the field, the JSON key and the metric's label; its key in Kubernetes; what it counts, for people ("3 dropped"); and
/// its documentation.
///
/// Everything that stores, adds up or prints packet counters is made from these rows, so a new counter is one row here
/// and the statement that counts it in the kernel.
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
        /// What one rule matched and what was done to it.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct RuleCounters {
            /// Matched packets (skbs: one may carry many wire packets) by [`crate::packet::Direction`].
            pub packets: [u64; 2],
            /// Bytes of the matched packets, link-layer header included, by [`crate::packet::Direction`].
            pub bytes: [u64; 2],
            /// How long packets were held back in all, in nanoseconds, by [`crate::packet::Direction`].
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
    /// Packets that were sent to a hold device.
    pub held: u64,
    /// Packets that came back from one.
    pub released: u64,
    /// Matching packets for several receivers (multicast, broadcast), of which it is not known whose they are; never
    /// touched, and counted as skipped.
    pub shared: u64,
    /// Packets sent over the loopback that should have reset their connection, but whose addresses were translated
    /// (NAT), so that no reset would have reached their sender; never touched, and counted as skipped.
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
        self.held += other.held;
        self.released += other.released;
        self.shared += other.shared;
        self.translated += other.translated;
    }
}

//! Counters of the eBPF programs, per CPU; userspace sums them.

use core::{iter::Sum, ops::AddAssign};

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
            { too_big, "tooBig", "answered as too big",
                "Packets answered as too big for the path instead of being passed on." }
            { delayed, "delayed", "delayed", "Packets held back, by a delay or a limited rate." }
            { reordered, "reordered", "reordered", "Packets let go at once, ahead of delayed ones." }
            { queued, "queued", "queued", "Packets that waited for others at a limited rate." }
            { queue_dropped, "queueDropped", "dropped by the full queue",
                "Packets dropped because the queue of a limited rate was full." }
            { unsegmented, "unsegmented", "could not be segmented",
                "GSO packets dropped because the kernel could not segment them into wire packets." }
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
            /// The longest delay in nanoseconds, by [`crate::packet::Direction`].
            pub max_delay_ns: [u64; 2],
            /// The bitwise complement of the shortest delay, so that 0 means none and both extremes
            /// are maxima; see [`Self::min_delay_ns`].
            pub min_delay_complement: [u64; 2],
            $(#[doc = $doc] pub $field: u64,)*
        }

        impl AddAssign for RuleCounters {
            fn add_assign(&mut self, other: Self) {
                for direction in 0..2 {
                    self.packets[direction] += other.packets[direction];
                    self.bytes[direction] += other.bytes[direction];
                    self.delay_ns[direction] += other.delay_ns[direction];
                    keep_max(&mut self.max_delay_ns[direction], other.max_delay_ns[direction]);
                    keep_max(
                        &mut self.min_delay_complement[direction],
                        other.min_delay_complement[direction],
                    );
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

/// Raises `max` to `value`.
#[inline(always)]
fn keep_max(max: &mut u64, value: u64) {
    if value > *max {
        *max = value;
    }
}

impl RuleCounters {
    /// Counts a packet that is held for `delay_ns`.
    #[inline(always)]
    pub fn count_delay(&mut self, direction: usize, delay_ns: u64) {
        self.delayed += 1;
        self.delay_ns[direction & 1] += delay_ns;
        keep_max(&mut self.max_delay_ns[direction & 1], delay_ns);
        keep_max(&mut self.min_delay_complement[direction & 1], !delay_ns);
    }

    /// The shortest delay in nanoseconds; [`u64::MAX`] if no packet was held.
    #[must_use]
    pub fn min_delay_ns(&self, direction: usize) -> u64 {
        !self.min_delay_complement[direction & 1]
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

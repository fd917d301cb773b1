//! What the kernel side counts, per CPU; userspace adds the CPUs up.

use core::ops::AddAssign;

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
    /// For how long all of them together, in nanoseconds.
    pub delay_ns: u64,
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
        }
        self.dropped += other.dropped;
        self.corrupted += other.corrupted;
        self.duplicated += other.duplicated;
        self.reset += other.reset;
        self.delayed += other.delayed;
        self.delay_ns += other.delay_ns;
        self.reordered += other.reordered;
        self.queued += other.queued;
        self.queue_dropped += other.queue_dropped;
        self.marked += other.marked;
        self.protected += other.protected;
        self.expired += other.expired;
        self.skipped += other.skipped;
    }
}

impl RuleCounters {
    /// Matched packets in both directions.
    #[must_use]
    pub fn matched(&self) -> u64 {
        self.packets[0] + self.packets[1]
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

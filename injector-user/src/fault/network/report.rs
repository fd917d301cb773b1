//! What packet faults did, as it is told.

use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attached, counts::Counts, delays::DelaysReport};

/// Where a program is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttachedReport {
    /// The network namespace, for people.
    pub netns: String,
    /// Its inode.
    pub netns_inode: u64,
    /// The interface.
    pub interface: String,
    /// The hook.
    pub hook: String,
}

impl From<&Attached> for AttachedReport {
    fn from(attached: &Attached) -> Self {
        Self {
            netns: attached.netns.label().into(),
            netns_inode: attached.netns.inode(),
            interface: attached.interface.clone(),
            hook: attached.hook.to_string(),
        }
    }
}

/// Packets and bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Traffic {
    /// Packets; one may carry many wire packets.
    pub packets: u64,
    /// Bytes, link-layer headers included.
    pub bytes: u64,
}

/// Counters of packets, of one rule or of several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// Packets that a rule matched.
    pub matched: u64,
    /// Lost on purpose.
    pub dropped: u64,
    /// Corrupted.
    pub corrupted: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Connections reset.
    pub reset: u64,
    /// Held back.
    pub delayed: u64,
    /// For how long on average, in milliseconds.
    pub mean_delay_ms: f64,
    /// For how long in more detail, by direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Box<DelaysReport>>,
    /// Let go at once, and so before others that were held back.
    pub reordered: u64,
    /// Waited for others at a limited rate.
    pub queued: u64,
    /// Dropped because the queue before a limited rate was full.
    pub queue_dropped: u64,
    /// Marked (ECN) instead of being lost.
    pub marked: u64,
    /// Left alone because they are the operator's.
    pub protected: u64,
    /// Passed unchanged because the rule's time was over.
    pub expired: u64,
    /// Passed unchanged because they could not be impaired.
    pub skipped: u64,
    /// Matched packets that were sent.
    pub egress: Traffic,
    /// Matched packets that were received.
    pub ingress: Traffic,
}

impl From<&Counts> for Totals {
    fn from(counts: &Counts) -> Self {
        let counters = &counts.counters;
        let traffic = |direction: usize| Traffic {
            packets: counters.packets[direction],
            bytes: counters.bytes[direction],
        };
        Self {
            matched: counters.matched(),
            dropped: counters.dropped,
            corrupted: counters.corrupted,
            duplicated: counters.duplicated,
            reset: counters.reset,
            delayed: counters.delayed,
            mean_delay_ms: counters.delay_ns.iter().sum::<u64>() as f64
                / 1e6
                / counters.delayed.max(1) as f64,
            delay: DelaysReport::of(counts).map(Box::new),
            reordered: counters.reordered,
            queued: counters.queued,
            queue_dropped: counters.queue_dropped,
            marked: counters.marked,
            protected: counters.protected,
            expired: counters.expired,
            skipped: counters.skipped,
            egress: traffic(0),
            ingress: traffic(1),
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl AddAssign<&Self> for Totals {
    fn add_assign(&mut self, other: &Self) {
        let delay_ms = self.delay_ms() + other.delay_ms();
        self.matched += other.matched;
        self.dropped += other.dropped;
        self.corrupted += other.corrupted;
        self.duplicated += other.duplicated;
        self.reset += other.reset;
        self.delayed += other.delayed;
        self.mean_delay_ms = delay_ms / self.delayed.max(1) as f64;
        if let Some(delay) = &other.delay {
            **self.delay.get_or_insert_default() += &**delay;
        }
        self.reordered += other.reordered;
        self.queued += other.queued;
        self.queue_dropped += other.queue_dropped;
        self.marked += other.marked;
        self.protected += other.protected;
        self.expired += other.expired;
        self.skipped += other.skipped;
        self.egress += other.egress;
        self.ingress += other.ingress;
    }
}

impl Totals {
    /// For how long packets were held back altogether, in milliseconds.
    #[must_use]
    pub fn delay_ms(&self) -> f64 {
        self.mean_delay_ms * self.delayed as f64
    }

    /// Whether no packet fell under a rule, not even one that was then left alone.
    #[must_use]
    pub const fn is_untouched(&self) -> bool {
        self.matched == 0 && self.protected == 0 && self.expired == 0
    }
}

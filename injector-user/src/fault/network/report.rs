//! What packet faults did, as it is told.

use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attached, counts::Counts, delays::DelaysReport};
use crate::fault::counts::PacketCounts;

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
    /// What was done to them.
    #[serde(flatten)]
    pub done: PacketCounts,
    /// Mean delay of the delayed packets, in milliseconds.
    pub mean_delay_ms: f64,
    /// Delays in more detail, by direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Box<DelaysReport>>,
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
        let delay_ns: u64 = counters.delay_ns.iter().sum();
        Self {
            matched: counters.matched(),
            done: (*counters).into(),
            mean_delay_ms: delay_ns as f64 / 1e6 / counters.delayed.max(1) as f64,
            delay: DelaysReport::of(counts).map(Box::new),
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
        self.done += other.done;
        self.mean_delay_ms = delay_ms / self.done.delayed.max(1) as f64;
        if let Some(delay) = &other.delay {
            **self.delay.get_or_insert_default() += &**delay;
        }
        self.egress += other.egress;
        self.ingress += other.ingress;
    }
}

impl Totals {
    /// How long packets were delayed in all, in milliseconds.
    #[must_use]
    pub fn delay_ms(&self) -> f64 {
        self.mean_delay_ms * self.done.delayed as f64
    }

    /// Whether no packet fell under a rule, not even one that was then left alone.
    #[must_use]
    pub const fn is_untouched(&self) -> bool {
        self.matched == 0 && self.done.protected == 0 && self.done.expired == 0
    }
}

//! The report of packet faults in JSON.

use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attached, counts::Counts, delays::DelaysReport};
use crate::fault::counts::PacketCounts;

/// The place at which a program is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttachedReport {
    /// A readable name of the network namespace.
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
    /// Packets; a GSO packet counts once.
    pub packets: u64,
    /// Bytes, including link-layer headers.
    pub bytes: u64,
}

/// Packet counters of one rule or several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// Packets that a rule matched.
    pub matched: u64,
    /// Counters of effects.
    #[serde(flatten)]
    pub done: PacketCounts,
    /// Mean delay of the delayed packets, in milliseconds.
    pub mean_delay_ms: f64,
    /// Delays by direction, in detail.
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
    /// The sum of delays in milliseconds.
    #[must_use]
    pub fn delay_ms(&self) -> f64 {
        self.mean_delay_ms * self.done.delayed as f64
    }

    /// Whether no packet matched, including those skipped by protection or expiry.
    #[must_use]
    pub const fn is_untouched(&self) -> bool {
        self.matched == 0 && self.done.protected == 0 && self.done.expired == 0
    }
}

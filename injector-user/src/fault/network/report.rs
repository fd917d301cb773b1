//! The report of packet faults in JSON.

use std::{
    fmt::{self, Display, Formatter},
    ops::AddAssign,
};

use injector_common::packet::Direction;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attached, counts::Counts, delays::DelaysReport};
use crate::{
    fault::counts::PacketCounts,
    spec::{packet::profile::Expansion, rule::Rule},
};

/// An interface to which programs are attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttachedReport {
    /// A readable name of the network namespace.
    pub netns: String,
    /// Its inode.
    pub netns_inode: u64,
    /// The interface.
    pub interface: String,
    /// The hook: `tcx`, `clsact`, `xdp-native` or `xdp-generic`.
    pub hook: String,
    /// The directions of the packets, as seen from the interface's host.
    pub directions: Vec<Way>,
}

/// The direction of a packet, as seen from the faulted host.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "Direction")]
pub enum Way {
    /// Sent.
    Egress,
    /// Received.
    Ingress,
}

impl From<Direction> for Way {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Egress => Self::Egress,
            Direction::Ingress => Self::Ingress,
        }
    }
}

impl AttachedReport {
    /// The reports of programs: one for each interface and hook, with its directions.
    pub fn all<'a>(attached: impl IntoIterator<Item = &'a Attached>) -> Vec<Self> {
        let mut reports: Vec<Self> = Vec::new();
        for Attached { netns, interface, hook, direction } in attached {
            let hook = hook.to_string();
            let found = reports.iter_mut().find(|report| {
                report.netns_inode == netns.inode()
                    && report.interface == *interface
                    && report.hook == hook
            });
            let way = Way::from(*direction);
            match found {
                Some(report) if report.directions.contains(&way) => {}
                Some(report) => {
                    report.directions.push(way);
                    report.directions.sort_unstable();
                }
                None => reports.push(Self {
                    netns: netns.label().into(),
                    netns_inode: netns.inode(),
                    interface: interface.clone(),
                    hook,
                    directions: vec![way],
                }),
            }
        }
        reports
    }
}

impl Display for AttachedReport {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let Self { netns, interface, hook, .. } = self;
        match netns.as_str() {
            "current" => write!(f, "{interface} ({hook})"),
            netns => write!(f, "{interface} in {netns} ({hook})"),
        }
    }
}

/// A rule, and what it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RuleReport {
    /// Its number, from 0, in the order in which rules are matched.
    pub rule: usize,
    /// Its name: by default, that of its faults.
    pub name: String,
    /// The packets that it matches.
    #[serde(rename = "match")]
    pub packets: String,
    /// The link profile that it has, with the faults of the rule that follow from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Expansion>,
    /// What it did. Absent where rules are only listed.
    #[serde(flatten)]
    pub counts: Option<Totals>,
    /// Whether its name was given and does not say what its faults are.
    #[serde(skip)]
    pub is_named: bool,
}

impl RuleReport {
    /// Describes a rule.
    #[must_use]
    pub fn new(number: usize, rule: &Rule, counts: Option<Totals>) -> Self {
        Self {
            rule: number,
            name: rule.name.clone(),
            packets: rule.match_text(),
            profile: rule.expansion.clone(),
            counts,
            is_named: rule.is_named,
        }
    }

    /// The same without counters.
    #[must_use]
    pub fn without_counts(&self) -> Self {
        Self {
            counts: None,
            name: self.name.clone(),
            packets: self.packets.clone(),
            profile: self.profile.clone(),
            ..*self
        }
    }

    /// Describes rules without their counters.
    #[must_use]
    pub fn list(rules: &[Rule]) -> Vec<Self> {
        rules.iter().enumerate().map(|(number, rule)| Self::new(number, rule, None)).collect()
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

//! The timeline of a scenario run: JSON lines, to correlate with measurements of the system under test.

use std::{collections::BTreeMap, iter::Sum, ops::AddAssign, time::Duration};

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    fault::{
        clock::report::ClocksReport,
        counts::{PacketCounts, ProcessCounts},
        network::{
            self,
            report::{AttachedReport, Traffic},
        },
        process,
    },
    kernel::clock,
    report::{HostReport, TargetReport},
    spec::scenario::{amount::Amount, partition::Sides},
    target::peers::Resolved,
};

/// A line of a timeline.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Line {
    /// The wall-clock time (RFC 3339).
    pub time: String,
    /// The time by `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
    /// The time since the start of the scenario, by the monotonic clock, in milliseconds.
    pub elapsed_ms: f64,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// A line as it is written.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TimelineLine")]
pub struct WrittenLine<'a> {
    /// The line.
    #[serde(flatten)]
    pub line: &'a Line,
    /// Lines dropped so far, because the reader was too slow or a write failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reports_dropped: Option<u64>,
    /// The version of the JSON output.
    pub schema_version: u32,
}

/// An event.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Everything is prepared and the scenario starts.
    Started {
        /// The scenario's file.
        scenario: String,
        /// The PID of injector.
        pid: u32,
        /// The seed of random choices and decisions.
        seed: u64,
        /// The machine, and its versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<HostReport>,
        /// The text of the scenario's file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// Time until the scenario ends, in milliseconds. Absent if it does not end by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_ms: Option<u64>,
        /// The number of planned changes.
        changes: usize,
        /// The targets.
        targets: Vec<TargetLine>,
        /// The first 256 partitions, by the name of the fault.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        partitions: BTreeMap<String, Sides>,
    },
    /// The active faults changed.
    Change {
        /// The index of the change, from 0.
        change: usize,
        /// The planned time since the start, in milliseconds.
        planned_ms: f64,
        /// The time since the start when the last target was changed, in milliseconds.
        actual_ms: f64,
        /// The planned time by `CLOCK_MONOTONIC`.
        planned_monotonic_ns: u64,
        /// The actual time by the same clock.
        actual_monotonic_ns: u64,
        /// The planned time by the wall clock.
        planned_time: String,
        /// The actual time by the same clock.
        actual_time: String,
        /// The changed targets.
        targets: Vec<TargetChange>,
    },
    /// Programs were attached to interfaces that appeared later.
    Attached {
        /// The name of the target.
        name: String,
        /// These interfaces.
        attached: Vec<AttachedReport>,
    },
    /// A target is gone: its cgroup was removed, or its container, pod or process has ended.
    Gone {
        /// The name of the target.
        name: String,
        /// Display name of the cgroup, container, pod or process.
        title: String,
    },
    /// A target is back and is faulted as before.
    Followed {
        /// The name of the target.
        name: String,
        /// Display name of the new cgroup, container, pod or process.
        title: String,
        /// The interfaces to which programs are attached so far; those in other namespaces follow as its processes
        /// enter them.
        attached: Vec<AttachedReport>,
    },
    /// Peers that the active rules of a target match have other addresses. The counters continue.
    Changed {
        /// The name of the target.
        name: String,
        /// The peers, with their new addresses.
        resolved: Vec<Resolved>,
    },
    /// Periodic counters.
    Sample {
        /// The counters of each target since the start.
        #[schemars(with = "BTreeMap<String, Counts>")]
        targets: Totals,
    },
    /// A warning.
    Warning {
        /// The message.
        message: String,
    },
    /// An error, after which everything is undone.
    Failed {
        /// The message.
        error: String,
    },
    /// Everything is undone.
    Ended {
        /// The reason.
        reason: Reason,
        /// The number of changes made.
        changes: usize,
        /// The lateness of changes.
        late: Late,
        /// The total counters of each target.
        #[schemars(with = "BTreeMap<String, Counts>")]
        targets: Totals,
        /// The counters of each fault, by target and fault. Faults of clocks only have none.
        #[schemars(with = "BTreeMap<String, BTreeMap<String, Counts>>")]
        faults: IndexMap<String, Totals>,
        /// The processes whose clocks were faulted, by target.
        clocks: BTreeMap<String, ClocksReport>,
    },
}

/// Why a scenario ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "EndReason")]
pub enum Reason {
    /// The planned end was reached.
    Done,
    /// A signal or key requested it.
    Asked,
    /// An error occurred.
    Failed,
}

/// A target of a scenario.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TargetLine {
    /// The name.
    pub name: String,
    /// Display name of what the target is.
    pub title: String,
    /// The target as requested.
    pub target: TargetReport,
    /// The interfaces to which programs are attached.
    pub attached: Vec<AttachedReport>,
    /// The addresses, if partitions need them.
    pub addresses: Vec<String>,
    /// The processes that are prepared for clock faults, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<ClocksReport>,
}

/// The change of a target.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TargetChange {
    /// The name of the target.
    pub name: String,
    /// The active faults.
    pub active: Vec<String>,
    /// The amounts of active ramps, by the name of the fault.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub amounts: BTreeMap<String, Vec<Amount>>,
    /// The active partitions, by the name of the fault.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub partitions: BTreeMap<String, Sides>,
    /// The faults active until now, with their counters since the previous change.
    #[schemars(with = "BTreeMap<String, Counts>")]
    pub replaced: Totals,
    /// The counters of the target since the start, when the change was made.
    pub before: Counts,
    /// The same counters once no packet was in flight between old and new rules.
    pub after: Counts,
}

/// The lateness of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Late {
    /// The median, in milliseconds.
    pub p50_ms: f64,
    /// The 99th percentile, in milliseconds.
    pub p99_ms: f64,
    /// The maximum, in milliseconds.
    pub max_ms: f64,
}

impl Late {
    /// By how much each was.
    #[must_use]
    pub fn of(late: &[Duration]) -> Self {
        let mut sorted = late.to_vec();
        sorted.sort_unstable();
        let at = |part: f64| {
            // The smallest that is not exceeded by more than the rest.
            let place = (part * sorted.len() as f64).ceil() as usize;
            sorted.get(place.saturating_sub(1)).copied().unwrap_or_default().as_secs_f64() * 1e3
        };
        Self { p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

/// What was done, by the name of the target or fault, in the order of the scenario.
pub type Totals = IndexMap<String, Counts>;

/// What was done to packets and processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "TimelineCounts")]
pub struct Counts {
    /// Packets that rules matched.
    pub matched: u64,
    /// What was done to them.
    #[serde(flatten)]
    pub packets: PacketCounts,
    /// Matched packets that were sent.
    pub egress: Traffic,
    /// Matched packets that were received.
    pub ingress: Traffic,
    /// What was done to processes.
    #[serde(flatten)]
    pub processes: ProcessCounts,
}

impl From<&network::counts::Counts> for Counts {
    fn from(counts: &network::counts::Counts) -> Self {
        let counters = counts.counters;
        let traffic = |direction: usize| Traffic {
            packets: counters.packets[direction],
            bytes: counters.bytes[direction],
        };
        Self {
            matched: counters.matched(),
            packets: counters.into(),
            egress: traffic(0),
            ingress: traffic(1),
            processes: ProcessCounts::default(),
        }
    }
}

impl From<&process::Statistics> for Counts {
    fn from(statistics: &process::Statistics) -> Self {
        Self { processes: statistics.into(), ..Self::default() }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.matched += other.matched;
        self.packets += other.packets;
        self.egress += other.egress;
        self.ingress += other.ingress;
        self.processes += other.processes;
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut sum, counts| {
            sum += counts;
            sum
        })
    }
}

impl Counts {
    /// Whether no packet matched that was not protected or late.
    #[must_use]
    pub const fn is_untouched(&self) -> bool {
        self.matched == 0 && self.packets.protected == 0 && self.packets.expired == 0
    }

    /// What was done, for people: each counter that is not 0, as `3 dropped`.
    pub fn done_in_words(&self) -> impl Iterator<Item = String> {
        let done = self.packets.each().chain(self.processes.each());
        done.filter(|(_, count)| *count > 0).map(|(counter, count)| counter.text(count))
    }
}

/// When a scenario started, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The wall clock.
    pub wall: jiff::Timestamp,
    /// The time by `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
}

impl Origin {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self { wall: jiff::Timestamp::now(), monotonic_ns: clock::monotonic_ns() }
    }

    /// Since then, in milliseconds.
    #[must_use]
    pub fn elapsed_ms(self, monotonic_ns: u64) -> f64 {
        monotonic_ns.saturating_sub(self.monotonic_ns) as f64 / 1e6
    }

    /// The wall clock at a time by the monotonic one, as it was set at the start.
    #[must_use]
    pub fn wall_at(self, monotonic_ns: u64) -> String {
        let since = monotonic_ns.saturating_sub(self.monotonic_ns);
        (self.wall + Duration::from_nanos(since)).to_string()
    }

    /// A line for what happens now.
    #[must_use]
    pub fn line(self, event: Event) -> Line {
        let monotonic_ns = clock::monotonic_ns();
        Line {
            time: jiff::Timestamp::now().to_string(),
            monotonic_ns,
            elapsed_ms: self.elapsed_ms(monotonic_ns),
            event,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_told_by_quantiles() {
        let late: Vec<Duration> = (1..=1000).rev().map(Duration::from_millis).collect();
        assert_eq!(Late::of(&late), Late { p50_ms: 500.0, p99_ms: 990.0, max_ms: 1000.0 });
        assert_eq!(Late::of(&[]), Late::default());
    }
}

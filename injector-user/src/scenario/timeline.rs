//! What is written down of a run: one JSON object a line, so that a graph of what was tested can be laid over it.

use std::{collections::BTreeMap, iter::Sum, ops::AddAssign, time::Duration};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::{
    fault::{
        counts::{Counter, PacketCounts, ProcessCounts},
        network, process,
    },
    kernel::clock,
};

/// A line of a timeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// The wall clock, as RFC 3339 has it.
    pub time: String,
    /// `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
    /// Since the start of the scenario, by the monotonic clock.
    pub elapsed_ms: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Everything is in place, and the time of the scenario begins.
    Started {
        /// The scenario's file.
        scenario: String,
        /// The process that carries it out.
        pid: u32,
        /// What its choices and decisions follow from.
        seed: u64,
        /// When it ends, if it does by itself.
        length_ms: Option<f64>,
        /// How many changes are planned.
        changes: usize,
        /// What is faulted.
        targets: Vec<TargetLine>,
    },
    /// What is active has changed.
    Change {
        /// Which change, from 0.
        change: usize,
        /// When it was planned, from the start.
        planned_ms: f64,
        /// When it was done at the last of the targets, likewise.
        actual_ms: f64,
        /// When it was planned, by `CLOCK_MONOTONIC`.
        planned_monotonic_ns: u64,
        /// When it was done, likewise.
        actual_monotonic_ns: u64,
        /// When it was planned, by the wall clock.
        planned_time: String,
        /// When it was done, likewise.
        actual_time: String,
        /// The targets for which something changed.
        targets: Vec<TargetChange>,
    },
    /// A target is gone: its cgroup was removed, or its container, pod or process has ended.
    Gone {
        /// The name of the target.
        target: String,
        /// Which cgroup, container, pod or process.
        what: String,
    },
    /// It is there again, and is faulted as before.
    Followed {
        /// The name of the target.
        target: String,
        /// What it is now.
        what: String,
        /// Where programs are attached by now; where its processes are still on the way to, they will be soon.
        attached: Vec<String>,
    },
    /// Counters, now and then.
    Sample {
        /// Of each target, from the start.
        targets: Totals,
    },
    /// Something that is probably not as it was meant.
    Warning {
        /// What.
        message: String,
    },
    /// Something failed, and everything is undone.
    Failed {
        /// What.
        error: String,
    },
    /// Everything is undone.
    Ended {
        /// Why.
        reason: Reason,
        /// How many changes were made.
        changes: usize,
        /// How late they were.
        late: Late,
        /// What was done to each target, altogether.
        targets: Totals,
        /// What each fault did to each target, by target and fault.
        faults: IndexMap<String, Totals>,
        /// In how many processes of each target clocks were set wrong.
        clocks: BTreeMap<String, u64>,
    },
}

/// Why a scenario ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It was over.
    Done,
    /// A signal or a key asked for it.
    Asked,
    /// Something failed.
    Failed,
}

/// A target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetLine {
    /// Its name.
    pub name: String,
    /// Where programs are attached.
    pub attached: Vec<String>,
    /// Its addresses, as far as partitions need them.
    pub addresses: Vec<String>,
    /// In how many processes clocks are ready to go wrong.
    pub clocks: u64,
}

/// What changed for a target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetChange {
    /// Its name.
    pub target: String,
    /// What is active now.
    pub active: Vec<String>,
    /// What no longer is, or was until now, with what it did while it was active since the change before.
    pub replaced: Totals,
    /// Counters of the target when the change was made, from the start.
    pub before: Counts,
    /// The same when it was done and nothing was under way any more.
    pub after: Counts,
}

/// How late changes were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Late {
    /// Half of them were not later.
    pub p50_ms: f64,
    /// 99 of 100 were not later.
    pub p99_ms: f64,
    /// None was later.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Packets that rules matched.
    pub matched: u64,
    /// What was done to them.
    #[serde(flatten)]
    pub packets: PacketCounts,
    /// Matched packets that were sent.
    pub egress_packets: u64,
    /// Bytes of the matched packets that were sent.
    pub egress_bytes: u64,
    /// Matched packets that were received.
    pub ingress_packets: u64,
    /// Bytes of the matched packets that were received.
    pub ingress_bytes: u64,
    /// What was done to processes.
    #[serde(flatten)]
    pub processes: ProcessCounts,
}

impl From<&network::counts::Counts> for Counts {
    fn from(counts: &network::counts::Counts) -> Self {
        let counters = counts.counters;
        Self {
            matched: counters.matched(),
            packets: counters.into(),
            egress_packets: counters.packets[0],
            egress_bytes: counters.bytes[0],
            ingress_packets: counters.packets[1],
            ingress_bytes: counters.bytes[1],
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
        self.egress_packets += other.egress_packets;
        self.egress_bytes += other.egress_bytes;
        self.ingress_packets += other.ingress_packets;
        self.ingress_bytes += other.ingress_bytes;
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
    /// What was done, for people: each counter that is not 0, as `3 dropped`.
    pub fn done_in_words(&self) -> impl Iterator<Item = String> {
        let done = self.packets.each().chain(self.processes.each());
        done.filter(|(_, count)| *count > 0)
            .map(|(Counter { label, .. }, count)| format!("{count} {label}"))
    }
}

/// When a scenario started, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The wall clock.
    pub wall: jiff::Timestamp,
    /// `CLOCK_MONOTONIC`.
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

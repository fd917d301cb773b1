//! An active fault and its published state.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    api::{Fault, Phase, Reason},
    board::{Board, What},
    plan::Terms,
    sum::Sum,
};
use crate::{
    fault::network::{
        counts::Counts,
        report::{RuleReport, Totals},
    },
    injection::{
        UNMATCHED_TIME,
        worker::{Status, Worker},
    },
    kernel::clock::monotonic_ns,
    spec::target::TargetSpec,
    target::peers::{Addresses, Resolved},
};

/// Interval of reports to watchers, in renewals.
pub const REPORT_ROUNDS: u32 = 4;

/// An active fault.
pub struct Active {
    pub number: u64,
    /// Its published state.
    pub fault: Fault,
    /// When its lease or duration ends, by `CLOCK_MONOTONIC`.
    pub ends_ns: u64,
    /// When it ends at the latest.
    pub last_ns: u64,
    pub lease: Option<Duration>,
    /// The worker of its clock and process faults.
    pub worker: Option<Worker>,
    /// The group that contains its rules.
    pub group: Option<u64>,
    /// Statistics of its ended parts, if it selects pods.
    pub ended_parts: Option<Sum>,
    /// Whether counters changed since the last report to watchers.
    pub is_news: bool,
    /// Whether a new warning is unpublished.
    pub is_warned: bool,
    /// When to explain why no packet has matched, and how long to wait after that.
    pub explanation: (Instant, Duration),
}

impl Active {
    /// The reason if it ends by itself.
    pub fn reason(&self) -> Reason {
        if self.ends_ns < self.last_ns { Reason::Lapsed } else { Reason::Expired }
    }

    /// When to explain why no packet has matched a fault that starts now.
    pub fn first_explanation() -> (Instant, Duration) {
        (Instant::now() + UNMATCHED_TIME, UNMATCHED_TIME)
    }

    /// Whether it has rules that matched no packet.
    pub fn is_unmatched(&self) -> bool {
        self.group.is_some() && self.fault.packets.is_untouched()
    }

    /// Whether it is time to explain why no packet has matched. The intervals double.
    pub fn must_explain(&mut self) -> bool {
        let (at, wait) = self.explanation;
        let is_due = self.is_unmatched() && at <= Instant::now();
        if is_due {
            self.explanation = (Instant::now() + wait, wait.saturating_mul(2));
        }
        is_due
    }

    /// Publishes changes, and notifies watchers at intervals.
    pub fn report(&mut self, is_changed: bool, board: &Board, rounds: u32) {
        let is_changed = is_changed || self.is_warned;
        self.is_warned = false;
        self.is_news |= is_changed;
        if self.is_news && rounds.is_multiple_of(REPORT_ROUNDS) {
            self.is_news = false;
            board.put(What::Counted, self.fault.clone());
        } else if is_changed {
            board.update(self.fault.clone());
        }
    }

    /// Updates the addresses of its peers; returns whether they changed.
    pub fn readdress(&mut self, addresses: &Addresses) -> bool {
        let now = addresses.iter().map(|(peer, addresses)| (peer.to_string(), addresses));
        let now: BTreeMap<String, &Vec<IpAddr>> = now.collect();
        let mut is_changed = false;
        for Resolved { name, addresses } in &mut self.fault.resolved {
            if let Some(&now) = now.get(name) {
                is_changed |= note(addresses, now);
            }
        }
        is_changed
    }

    /// Updates the counters of its rules; returns whether they changed.
    pub fn count(&mut self, counts: &[Counts]) -> bool {
        // The group and its counters are gone; the last values remain valid.
        if counts.is_empty() {
            return false;
        }
        let all = Totals::from(&counts.iter().sum::<Counts>());
        if all == self.fault.packets {
            return false;
        }
        // Clones if readers still share the published version.
        let rules = Arc::make_mut(&mut self.fault.rules);
        for (status, counts) in rules.iter_mut().zip(counts) {
            status.counts = Some(counts.into());
        }
        if !all.is_untouched() {
            self.fault.unmatched = None;
        }
        self.fault.packets = all;
        true
    }

    /// Updates the statistics of clock and process faults; returns whether they changed.
    pub fn take(&mut self, status: &Status) -> bool {
        let is_news = note(&mut self.fault.clocks, &status.clocks);
        note(&mut self.fault.processes, &status.processes) || is_news
    }
}

/// A fault that is about to start, with zero statistics.
pub fn new_fault(terms: Terms, target: TargetSpec, by: String, seed: u64, ends_ns: u64) -> Fault {
    let rule = |(number, rule)| RuleReport::new(number, rule, Some(Totals::default()));
    let faults = &terms.faults;
    let milliseconds = |time: Duration| time.as_millis() as u64;
    Fault {
        kinds: terms.kinds(),
        phase: Phase::Active,
        reason: None,
        error: None,
        owner: by,
        title: target.title(),
        target,
        part_of: None,
        seed,
        created: jiff::Timestamp::now().to_string(),
        ends: wall(ends_ns),
        for_ms: terms.lasts.map(milliseconds),
        lease_ms: terms.lease.map(milliseconds),
        attached: Vec::new(),
        resolved: Vec::new(),
        packets: Totals::default(),
        unmatched: None,
        rules: Arc::new(faults.rules.iter().enumerate().map(rule).collect()),
        more_rules: 0,
        clock: faults.clock.as_ref().map(|fault| fault.name.clone()),
        process: faults.processes.as_ref().map(|faults| faults.name.clone()),
        clocks: None,
        processes: None,
        pods: None,
        gone: false,
        warnings: Vec::new(),
        name: terms.name,
    }
}

/// Stores a new value; returns whether it changed.
pub fn note<T: Clone + PartialEq>(told: &mut T, now: &T) -> bool {
    let is_news = told != now;
    if is_news {
        told.clone_from(now);
    }
    is_news
}

/// The remaining time until a time of `CLOCK_MONOTONIC`.
pub fn left(at_ns: u64) -> Duration {
    Duration::from_nanos(at_ns.saturating_sub(monotonic_ns()))
}

/// The wall-clock time that corresponds to a time of `CLOCK_MONOTONIC`.
pub fn wall(at_ns: u64) -> String {
    (jiff::Timestamp::now() + left(at_ns)).to_string()
}

#[cfg(test)]
mod tests {
    use injector_common::counter::RuleCounters;
    use serde_json::json;

    use super::*;

    fn active() -> Active {
        let mut fault = json!({
            "name": "a",
            "phase": "active",
            "owner": "a test",
            "target": {"host": true},
            "kinds": ["network"],
            "seed": 1,
            "created": "",
            "ends": "",
            "rules": [{"rule": 0, "name": "b", "match": "all packets"}],
        });
        let totals = serde_json::to_value(Totals::default()).expect("plain data");
        for object in ["", "/rules/0"] {
            let fields = fault.pointer_mut(object).and_then(|object| object.as_object_mut());
            fields.expect("an object").extend(totals.as_object().expect("an object").clone());
        }
        Active {
            number: 1,
            fault: serde_json::from_value(fault).expect("a fault"),
            ends_ns: 0,
            last_ns: 0,
            lease: None,
            worker: None,
            group: None,
            ended_parts: None,
            is_news: false,
            is_warned: false,
            explanation: Active::first_explanation(),
        }
    }

    #[test]
    fn counts_outlive_what_they_were_read_from() {
        let mut active = active();
        let counters = RuleCounters { packets: [3, 0], dropped: 2, ..RuleCounters::default() };
        let counts = [Counts { counters, delays: None }];
        assert!(active.count(&counts));
        assert!(!active.count(&counts));
        assert!(!active.count(&[]));
        assert_eq!((active.fault.packets.matched, active.fault.packets.done.dropped), (3, 2));
        assert_eq!(active.fault.rules[0].counts.as_ref(), Some(&active.fault.packets));
    }
}

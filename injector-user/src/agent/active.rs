//! A fault that acts, and what is told of it.

use std::{sync::Arc, time::Duration};

use super::{
    api::{Fault, Phase, Reason, RuleStatus},
    board::{Board, What},
    plan::Terms,
    sum::Sum,
};
use crate::{
    fault::network::{counts::Counts, report::Totals},
    injection::worker::{Status, Worker},
    kernel::clock::monotonic_ns,
    spec::{rule::Rule, target::TargetSpec},
};

/// How often watchers are told of what faults do, in renewals.
pub const TOLD: u32 = 4;

/// A fault that acts.
pub struct Active {
    pub number: u64,
    /// What is told of it.
    pub fault: Fault,
    /// When it ends, by `CLOCK_MONOTONIC`, unless its lease is renewed.
    pub ends_ns: u64,
    /// When it ends in any case.
    pub last_ns: u64,
    pub lease: Option<Duration>,
    /// Keeps its clock and process faults going.
    pub worker: Option<Worker>,
    /// The group that its rules are in.
    pub group: Option<u64>,
    /// What its ended parts did, if it is of pods that labels select.
    pub ended_parts: Option<Sum>,
    /// Something has been counted that watchers were not told.
    pub is_news: bool,
    /// There is a warning that was not written down.
    pub is_warned: bool,
}

impl Active {
    /// Why it ends by itself.
    pub fn reason(&self) -> Reason {
        if self.ends_ns < self.last_ns { Reason::Lapsed } else { Reason::Expired }
    }

    /// Writes down what has changed, and tells watchers now and then.
    pub fn report(&mut self, is_changed: bool, board: &Board, rounds: u32) {
        let is_changed = is_changed || self.is_warned;
        self.is_warned = false;
        self.is_news |= is_changed;
        if self.is_news && rounds.is_multiple_of(TOLD) {
            self.is_news = false;
            board.put(What::Counted, self.fault.clone());
        } else if is_changed {
            board.update(self.fault.clone());
        }
    }

    /// Notes what its rules did; returns whether that is news.
    pub fn count(&mut self, counts: &[Counts]) -> bool {
        // Its group has gone, and the counters with it: what was read of them last is still true.
        if counts.is_empty() {
            return false;
        }
        let all = Totals::from(&counts.iter().sum::<Counts>());
        if all == self.fault.packets {
            return false;
        }
        // What was told before stays with those who have it.
        let rules = Arc::make_mut(&mut self.fault.rules);
        for (status, counts) in rules.iter_mut().zip(counts) {
            status.packets = counts.into();
        }
        self.fault.packets = all;
        true
    }

    /// Notes what was done to clocks and processes; returns whether that is news.
    pub fn look(&mut self) -> bool {
        let Some(worker) = &self.worker else { return false };
        self.take(&worker.status())
    }

    /// Notes that this was done to clocks and processes; returns whether that is news.
    pub fn take(&mut self, status: &Status) -> bool {
        let is_news = note(&mut self.fault.clocks, &status.clocks);
        note(&mut self.fault.processes, &status.processes) || is_news
    }
}

/// A fault that is about to act, and has done nothing yet.
pub fn new_fault(terms: Terms, target: TargetSpec, by: String, seed: u64, ends_ns: u64) -> Fault {
    let rule = |rule: &Rule| RuleStatus { name: rule.name.clone(), packets: Totals::default() };
    let milliseconds = |time: Duration| time.as_millis() as u64;
    Fault {
        kinds: terms.kinds(),
        phase: Phase::Active,
        reason: None,
        error: None,
        owner: by,
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
        rules: Arc::new(terms.faults.rules.iter().map(rule).collect()),
        clocks: None,
        processes: None,
        pods: None,
        gone: false,
        warnings: Vec::new(),
        name: terms.name,
    }
}

/// Notes what is so now; returns whether that is news.
pub fn note<T: Clone + PartialEq>(told: &mut T, now: &T) -> bool {
    let is_news = told != now;
    if is_news {
        told.clone_from(now);
    }
    is_news
}

/// How long it is until a time of `CLOCK_MONOTONIC`.
pub fn left(at_ns: u64) -> Duration {
    Duration::from_nanos(at_ns.saturating_sub(monotonic_ns()))
}

/// What the wall clock will show then.
pub fn wall(at_ns: u64) -> String {
    (jiff::Timestamp::now() + left(at_ns)).to_string()
}

#[cfg(test)]
mod tests {
    use injector_common::counter::RuleCounters;
    use serde_json::json;

    use super::*;

    fn active() -> Active {
        let fault = json!({
            "name": "a",
            "phase": "active",
            "owner": "a test",
            "target": {"host": true},
            "kinds": ["network"],
            "seed": 1,
            "created": "",
            "ends": "",
            "packets": Totals::default(),
            "rules": [RuleStatus { name: "b".into(), packets: Totals::default() }],
        });
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
        assert_eq!(active.fault.rules[0].packets, active.fault.packets);
    }
}

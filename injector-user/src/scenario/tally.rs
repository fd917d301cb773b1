//! What a fault did to a target, in numbers that can be added up.

use std::{iter::Sum, ops::AddAssign, time::Duration};

use injector_common::counter::RuleCounters;

use crate::fault::{network::counts::Counts, process::Statistics};

/// What was done to a target.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// To its packets.
    pub packets: RuleCounters,
    /// To its processes.
    pub processes: ProcessTally,
}

/// What was done to processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessTally {
    /// Pauses that have ended.
    pub pauses: u64,
    /// Those that there was nothing for.
    pub skipped: u64,
    /// How long the processes stood.
    pub paused: Duration,
    /// Signals that were sent.
    pub signals: u64,
    /// Those that could not be sent.
    pub unsent: u64,
    /// System calls that were to fail or not.
    pub calls: u64,
    /// Those of them that failed.
    pub failed_calls: u64,
    /// For how long processes waited for processor time because of a limit.
    pub throttled: Duration,
}

impl From<&Counts> for Tally {
    fn from(counts: &Counts) -> Self {
        Self { packets: counts.counters, ..Self::default() }
    }
}

impl From<Statistics> for Tally {
    fn from(statistics: Statistics) -> Self {
        let ms = |ms: f64| Duration::from_secs_f64(ms.max(0.0) / 1e3);
        let pauses = statistics.pauses.unwrap_or_default();
        let kills = &statistics.kills;
        let throttled = statistics.limits.iter().filter_map(|limit| limit.throttled_ms);
        let processes = ProcessTally {
            pauses: pauses.done,
            skipped: pauses.skipped,
            paused: ms(pauses.stopped_ms),
            signals: kills.iter().map(|kill| kill.sent).sum(),
            unsent: kills.iter().map(|kill| kill.failed).sum(),
            calls: statistics.errnos.iter().map(|errno| errno.matched).sum(),
            failed_calls: statistics.errnos.iter().map(|errno| errno.failed).sum(),
            throttled: ms(throttled.sum()),
        };
        Self { processes, ..Self::default() }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.processes += other.processes;
    }
}

impl AddAssign for ProcessTally {
    fn add_assign(&mut self, other: Self) {
        self.pauses += other.pauses;
        self.skipped += other.skipped;
        self.paused += other.paused;
        self.signals += other.signals;
        self.unsent += other.unsent;
        self.calls += other.calls;
        self.failed_calls += other.failed_calls;
        self.throttled += other.throttled;
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |mut sum, tally| {
            sum += tally;
            sum
        })
    }
}

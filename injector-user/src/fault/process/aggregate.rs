//! Sums of statistics over several targets.

use std::ops::AddAssign;

use super::{ErrnoStatistics, KillStatistics, LimitStatistics, PauseStatistics, Statistics};

impl AddAssign<&Self> for Statistics {
    fn add_assign(&mut self, other: &Self) {
        match (&mut self.pauses, &other.pauses) {
            (Some(all), Some(pauses)) => *all += pauses,
            (all @ None, pauses) => all.clone_from(pauses),
            (Some(_), None) => {}
        }
        add(&mut self.kills, &other.kills);
        add(&mut self.errnos, &other.errnos);
        add(&mut self.limits, &other.limits);
    }
}

/// Adds element by element: both lists are in the requested order.
fn add<T: Clone + for<'a> AddAssign<&'a T>>(all: &mut Vec<T>, others: &[T]) {
    for (one, other) in all.iter_mut().zip(others) {
        *one += other;
    }
    let known = all.len().min(others.len());
    all.extend_from_slice(&others[known..]);
}

impl AddAssign<&Self> for PauseStatistics {
    fn add_assign(&mut self, other: &Self) {
        self.done += other.done;
        self.planned_ms += other.planned_ms;
        self.stopped_ms += other.stopped_ms;
        self.latest_ms = self.latest_ms.max(other.latest_ms);
        self.skipped += other.skipped;
        self.unsettled += other.unsettled;
        self.starting += other.starting;
    }
}

impl AddAssign<&Self> for KillStatistics {
    fn add_assign(&mut self, other: &Self) {
        self.sent += other.sent;
        self.failed += other.failed;
        self.starting += other.starting;
        if let Some(calls) = other.calls {
            *self.calls.get_or_insert_default() += calls;
        }
    }
}

impl AddAssign<&Self> for ErrnoStatistics {
    fn add_assign(&mut self, other: &Self) {
        self.matched += other.matched;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.missed += other.missed;
    }
}

impl AddAssign<&Self> for LimitStatistics {
    fn add_assign(&mut self, other: &Self) {
        if let Some(throttled_ms) = other.throttled_ms {
            *self.throttled_ms.get_or_insert_default() += throttled_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_targets_are_summed() {
        let one = Statistics {
            pauses: Some(PauseStatistics { done: 2, latest_ms: 3.0, ..PauseStatistics::default() }),
            kills: vec![KillStatistics {
                name: "a".into(),
                sent: 1,
                failed: 0,
                starting: 0,
                calls: None,
            }],
            limits: vec![LimitStatistics { limit: "cpu.max".into(), throttled_ms: Some(1.5) }],
            ..Statistics::default()
        };
        let mut all = Statistics::default();
        all += &one;
        assert_eq!(all, one);
        all += &Statistics {
            pauses: Some(PauseStatistics { done: 1, latest_ms: 2.0, ..PauseStatistics::default() }),
            ..one
        };
        let pauses = all.pauses.expect("there are some");
        assert_eq!((pauses.done, pauses.latest_ms), (3, 3.0));
        assert_eq!((all.kills.len(), all.kills[0].sent), (1, 2));
        assert_eq!(all.limits[0].throttled_ms, Some(3.0));
    }
}

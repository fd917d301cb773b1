//! The counters of rules, as read from the eBPF side.

use std::{iter::Sum, ops::AddAssign};

use injector_common::counter::RuleCounters;

use super::delays::Delays;

/// The counters of one rule or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Counters of effects.
    pub counters: RuleCounters,
    /// The histogram of delays, if the rules hold packets.
    pub delays: Option<Delays>,
}

impl AddAssign<&Self> for Counts {
    fn add_assign(&mut self, other: &Self) {
        self.counters += other.counters;
        match (&mut self.delays, &other.delays) {
            (Some(delays), Some(more)) => *delays += more,
            (delays @ None, Some(more)) => *delays = Some(more.clone()),
            (_, None) => {}
        }
    }
}

impl<'a> Sum<&'a Self> for Counts {
    fn sum<I: Iterator<Item = &'a Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut sum, counts| {
            sum += counts;
            sum
        })
    }
}

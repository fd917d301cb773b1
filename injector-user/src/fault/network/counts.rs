//! What rules did to packets, as the kernel side counted it.

use std::{iter::Sum, ops::AddAssign};

use injector_common::counter::{Delays, RuleCounters};

/// What one rule did, or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How often it did what.
    pub counters: RuleCounters,
    /// For how long it held packets back, if it holds any.
    pub delays: Option<Box<Delays>>,
}

impl AddAssign<&Self> for Counts {
    fn add_assign(&mut self, other: &Self) {
        self.counters += other.counters;
        match (&mut self.delays, &other.delays) {
            (Some(delays), Some(more)) => **delays += more,
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

//! For how long packets were held back, as it is told.

use std::ops::AddAssign;

use injector_common::{
    counter::{DELAY_BOUNDS, Delays},
    packet::Direction,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::counts::Counts;

/// For how long packets were held back, by their direction; what was not held is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DelaysReport {
    /// Those that were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<DelayReport>,
    /// Those that were received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<DelayReport>,
}

/// For how long packets of one direction were to be held back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DelayReport {
    /// How many packets.
    pub count: u64,
    /// For how long all together, in milliseconds.
    pub sum_ms: f64,
    /// Half of them for no longer, in milliseconds. Between the bounds of a bucket it is interpolated.
    pub p50_ms: f64,
    /// 99 % of them for no longer, likewise.
    pub p99_ms: f64,
    /// How many for how long; buckets without any are left out.
    pub buckets: Vec<DelayBucket>,
}

/// Packets that were held for longer than the bound before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DelayBucket {
    /// And for no longer than this, in milliseconds. The last one has no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to_ms: Option<f64>,
    /// How many.
    pub count: u64,
}

/// The longest delay of a bucket of the kernel side, in milliseconds.
fn bound_ms(bucket: usize) -> Option<f64> {
    Delays::bound_ns(bucket).map(|ns| ns as f64 / 1e6)
}

impl DelaysReport {
    /// Of what was counted; `None` if nothing was held.
    #[must_use]
    pub fn of(counts: &Counts) -> Option<Self> {
        let delays = counts.delays.as_ref()?;
        let of = |direction: Direction| {
            let direction = direction as usize;
            let sum_ms = counts.counters.delay_ns[direction] as f64 / 1e6;
            DelayReport::new(delays.of(direction), sum_ms)
        };
        let report = Self { egress: of(Direction::Egress), ingress: of(Direction::Ingress) };
        (report != Self::default()).then_some(report)
    }
}

impl DelayReport {
    /// Of the counts of all buckets; `None` if all are 0.
    fn new(counts: &[u64], sum_ms: f64) -> Option<Self> {
        let count = counts.iter().sum();
        let with_bounds = counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let buckets = with_bounds
            .map(|(bucket, &count)| DelayBucket { up_to_ms: bound_ms(bucket), count })
            .collect();
        let [p50_ms, p99_ms] = [0.5, 0.99].map(|part| quantile(counts, part));
        (count > 0).then_some(Self { count, sum_ms, p50_ms, p99_ms, buckets })
    }

    /// The counts of all buckets.
    fn counts(&self) -> Vec<u64> {
        let count = |bucket| {
            let is_it = |told: &&DelayBucket| told.up_to_ms == bound_ms(bucket);
            self.buckets.iter().find(is_it).map_or(0, |told| told.count)
        };
        (0..=DELAY_BOUNDS).map(count).collect()
    }

    /// For all bounds in seconds, how many packets were held for no longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let counts = self.counts().into_iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        let seconds = |bucket| Delays::bound_ns(bucket).map(|ns| ns as f64 / 1e9);
        (0..).map_while(seconds).zip(counts)
    }
}

/// The delay that a part of all packets does not exceed, in milliseconds: as if the delays within a bucket were evenly
/// spread. Beyond the last bound, that is the answer.
fn quantile(counts: &[u64], part: f64) -> f64 {
    let mut left = part * counts.iter().sum::<u64>() as f64;
    let mut lower = 0.0;
    for (bucket, &count) in counts.iter().enumerate() {
        let Some(upper) = bound_ms(bucket) else { break };
        if count > 0 && left <= count as f64 {
            return lower + (upper - lower) * left / count as f64;
        }
        left -= count as f64;
        lower = upper;
    }
    lower
}

impl AddAssign<&Self> for DelaysReport {
    fn add_assign(&mut self, other: &Self) {
        add(&mut self.egress, other.egress.as_ref());
        add(&mut self.ingress, other.ingress.as_ref());
    }
}

fn add(to: &mut Option<DelayReport>, other: Option<&DelayReport>) {
    match (to.as_mut(), other) {
        (Some(one), Some(other)) => {
            let mut counts = one.counts();
            counts.iter_mut().zip(other.counts()).for_each(|(count, other)| *count += other);
            *to = DelayReport::new(&counts, one.sum_ms + other.sum_ms);
        }
        (None, Some(other)) => *to = Some(other.clone()),
        (_, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use injector_common::counter::RuleCounters;

    use super::*;

    fn held(direction: usize, delays_ns: &[u64]) -> Counts {
        let mut delays = Delays::default();
        let mut counters = RuleCounters::default();
        for &delay_ns in delays_ns {
            delays.counts[Delays::place(direction, delay_ns)] += 1;
            counters.delay_ns[direction] += delay_ns;
        }
        Counts { counters, delays: Some(delays.into()) }
    }

    #[test]
    fn delays_are_told_by_direction_with_quantiles() {
        let report = DelaysReport::of(&held(0, &[5_000_000; 100])).expect("some were held");
        assert_eq!(report.ingress, None);
        let egress = report.egress.expect("some were held");
        assert_eq!((egress.count, egress.sum_ms), (100, 500.0));
        assert_eq!(egress.buckets, [DelayBucket { up_to_ms: Some(6.0), count: 100 }]);
        assert!((egress.p50_ms - 5.0).abs() < 1e-9 && (egress.p99_ms - 5.98).abs() < 1e-9);
        assert_eq!(DelaysReport::of(&held(0, &[])), None);
        assert_eq!(DelaysReport::of(&Counts::default()), None);
    }

    #[test]
    fn what_is_added_up_is_as_if_counted_together() {
        let (one, other) = ([1, 62_501, 70_000_000_000], [3_000_000, 3_000_001]);
        let mut counts = held(1, &one);
        counts += &held(1, &other);
        let mut report = DelaysReport::of(&held(1, &one)).expect("some were held");
        report += &DelaysReport::of(&held(1, &other)).expect("some were held");
        report += &DelaysReport::default();
        assert_eq!(Some(&report), DelaysReport::of(&counts).as_ref());
        let ingress = report.ingress.expect("some were held");
        let told: Vec<_> = ingress.buckets.iter().map(|told| (told.up_to_ms, told.count)).collect();
        let bounds = [Some(0.0625), Some(0.09375), Some(3.0), Some(4.0), None];
        assert_eq!(told, bounds.map(|bound| (bound, 1)));
        let cumulative: Vec<_> = ingress.cumulative().collect();
        assert_eq!(cumulative.len(), DELAY_BOUNDS);
        assert_eq!((cumulative[0], cumulative[DELAY_BOUNDS - 1]), ((62.5e-6, 1), (65.536, 4)));
        let text = serde_json::to_string(&ingress).expect("JSON");
        assert_eq!(serde_json::from_str::<DelayReport>(&text).expect("the same"), ingress);
    }
}

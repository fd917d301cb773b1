//! The report of packet delays.

use std::ops::AddAssign;

use injector_common::{
    counter::{DELAY_BOUNDS, Delays},
    packet::Direction,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::counts::Counts;

/// Delays of held packets, by direction. A direction without held packets is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DelaysReport {
    /// Sent packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<DelayReport>,
    /// Received packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<DelayReport>,
}

/// Delays of held packets of one direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DelayReport {
    /// The number of held packets.
    pub count: u64,
    /// The sum of delays in milliseconds.
    pub sum_ms: f64,
    /// The median in milliseconds, interpolated within its bucket.
    pub p50_ms: f64,
    /// The 99th percentile in milliseconds, interpolated within its bucket.
    pub p99_ms: f64,
    /// The histogram, without empty buckets.
    pub buckets: Vec<DelayBucket>,
}

/// Packets held for longer than the previous bucket's bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DelayBucket {
    /// The upper bound, inclusive, in milliseconds. The last bucket has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to_ms: Option<f64>,
    /// The number of packets.
    pub count: u64,
}

/// The upper bound of a bucket of the eBPF side, in milliseconds.
fn bound_ms(bucket: usize) -> Option<f64> {
    Delays::bound_ns(bucket).map(|ns| ns as f64 / 1e6)
}

impl DelaysReport {
    /// The report of counted delays; `None` if no packet was held.
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
    /// The report of all buckets' counts; `None` if all are 0.
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
            let is_it = |reported: &&DelayBucket| reported.up_to_ms == bound_ms(bucket);
            self.buckets.iter().find(is_it).map_or(0, |reported| reported.count)
        };
        (0..=DELAY_BOUNDS).map(count).collect()
    }

    /// The cumulative counts by upper bound in seconds, as in a Prometheus histogram.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let counts = self.counts().into_iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        let seconds = |bucket| Delays::bound_ns(bucket).map(|ns| ns as f64 / 1e9);
        (0..).map_while(seconds).zip(counts)
    }
}

/// The delay in milliseconds that a fraction of the packets does not exceed, interpolated linearly
/// within its bucket. At most the last bound.
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
    fn delays_are_reported_by_direction_with_quantiles() {
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
    fn the_sum_of_reports_is_the_report_of_the_sum() {
        let (one, other) = ([1, 62_501, 70_000_000_000], [3_000_000, 3_000_001]);
        let mut counts = held(1, &one);
        counts += &held(1, &other);
        let mut report = DelaysReport::of(&held(1, &one)).expect("some were held");
        report += &DelaysReport::of(&held(1, &other)).expect("some were held");
        report += &DelaysReport::default();
        assert_eq!(Some(&report), DelaysReport::of(&counts).as_ref());
        let ingress = report.ingress.expect("some were held");
        let reported: Vec<_> =
            ingress.buckets.iter().map(|reported| (reported.up_to_ms, reported.count)).collect();
        let bounds = [Some(0.0625), Some(0.09375), Some(3.0), Some(4.0), None];
        assert_eq!(reported, bounds.map(|bound| (bound, 1)));
        let cumulative: Vec<_> = ingress.cumulative().collect();
        assert_eq!(cumulative.len(), DELAY_BOUNDS);
        assert_eq!((cumulative[0], cumulative[DELAY_BOUNDS - 1]), ((62.5e-6, 1), (65.536, 4)));
        let text = serde_json::to_string(&ingress).expect("JSON");
        assert_eq!(serde_json::from_str::<DelayReport>(&text).expect("the same"), ingress);
    }
}

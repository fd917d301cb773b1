//! The report of packet delays.

use std::{collections::BTreeMap, ops::AddAssign};

use injector_common::{histogram, packet::Direction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::counts::Counts;
use crate::kernel::object::DelayCells;

/// Number of buckets of a report with an upper bound.
const BOUNDS: usize = 41;

/// Counts of packets by delay in nanoseconds: the middle of a bucket of the eBPF side.
type Samples = BTreeMap<u64, u64>;

/// The delays of held packets by [`Direction`], as counted by the eBPF side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delays {
    samples: [Samples; 2],
}

impl From<&DelayCells> for Delays {
    fn from(cells: &DelayCells) -> Self {
        let resolution = cells.resolution;
        let mut directions = cells.counts.chunks(histogram::buckets(resolution) as usize);
        let mut of = || {
            let counts = (0..).zip(directions.next().unwrap_or_default());
            let used = counts.filter(|(_, count)| **count > 0);
            used.map(|(bucket, count)| (middle_ns(resolution, bucket), *count)).collect()
        };
        Self { samples: [of(), of()] }
    }
}

impl AddAssign<&Self> for Delays {
    fn add_assign(&mut self, other: &Self) {
        let pairs = self.samples.iter_mut().zip(&other.samples);
        pairs.for_each(|(samples, others)| add_samples(samples, others));
    }
}

fn add_samples(samples: &mut Samples, others: &Samples) {
    for (&delay_ns, count) in others {
        *samples.entry(delay_ns).or_default() += count;
    }
}

/// The middle of a bucket of the eBPF side.
fn middle_ns(resolution: u32, bucket: u32) -> u64 {
    let (lower, upper) = histogram::bounds_ns(resolution, bucket);
    f64::midpoint(lower, upper).round() as u64
}

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
    /// The shortest delay in milliseconds.
    #[serde(default)]
    pub min_ms: f64,
    /// The median in milliseconds, within 1 %.
    pub p50_ms: f64,
    /// The 99th percentile in milliseconds, within 1 %.
    pub p99_ms: f64,
    /// The longest delay in milliseconds.
    #[serde(default)]
    pub max_ms: f64,
    /// The histogram, without empty buckets.
    pub buckets: Vec<DelayBucket>,
    /// What the quantiles were computed from; empty if the report was parsed.
    #[serde(skip)]
    samples: Samples,
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

/// The bucket of a report that contains a delay; the last, [`BOUNDS`], has no upper bound.
fn report_bucket(delay_ns: u64) -> usize {
    (0..BOUNDS).find(|bucket| bound_ns(*bucket) >= Some(delay_ns)).unwrap_or(BOUNDS)
}

/// The upper bound of a bucket of a report, in nanoseconds: 1/16 ms, 3/32, 1/8, 3/16 … 1, 1.5, 2, 3,
/// 4, 6, 8 ms … 65.536 s. All are bounds of the eBPF side's buckets as well.
const fn bound_ns(bucket: usize) -> Option<u64> {
    if bucket >= BOUNDS {
        return None;
    }
    let halves = if bucket.is_multiple_of(2) { 4 } else { 3 };
    Some((31_250 * halves) << bucket.div_ceil(2) >> 1)
}

fn bound_ms(bucket: usize) -> Option<f64> {
    bound_ns(bucket).map(ms)
}

/// Milliseconds of nanoseconds.
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

impl DelaysReport {
    /// The report of counted delays; `None` if no packet was held.
    #[must_use]
    pub fn of(counts: &Counts) -> Option<Self> {
        let (delays, counters) = (counts.delays.as_ref()?, &counts.counters);
        let of = |direction: Direction| {
            let direction = direction as usize;
            DelayReport::new(
                delays.samples[direction].clone(),
                ms(counters.delay_ns[direction]),
                ms(counters.min_delay_ns(direction)),
                ms(counters.max_delay_ns[direction]),
            )
        };
        let report = Self { egress: of(Direction::Egress), ingress: of(Direction::Ingress) };
        (report != Self::default()).then_some(report)
    }
}

impl DelayReport {
    /// The report of samples; `None` if there are none.
    fn new(samples: Samples, sum_ms: f64, min_ms: f64, max_ms: f64) -> Option<Self> {
        let count = samples.values().sum();
        if count == 0 {
            return None;
        }
        let mut counts = [0; BOUNDS + 1];
        for (&delay_ns, count) in &samples {
            counts[report_bucket(delay_ns)] += count;
        }
        let used = counts.into_iter().enumerate().filter(|(_, count)| *count > 0);
        let buckets =
            used.map(|(bucket, count)| DelayBucket { up_to_ms: bound_ms(bucket), count }).collect();
        // The counters of another CPU may be one packet behind the histogram.
        let max_ms = max_ms.max(min_ms);
        let [p50_ms, p99_ms] =
            [0.5, 0.99].map(|part| ms(quantile_ns(&samples, part)).clamp(min_ms, max_ms));
        Some(Self { count, sum_ms, min_ms, p50_ms, p99_ms, max_ms, buckets, samples })
    }

    /// The counts of all buckets.
    fn counts(&self) -> Vec<u64> {
        let count = |bucket| {
            let is_it = |reported: &&DelayBucket| reported.up_to_ms == bound_ms(bucket);
            self.buckets.iter().find(is_it).map_or(0, |reported| reported.count)
        };
        (0..=BOUNDS).map(count).collect()
    }

    /// The samples; those of a parsed report are at the bounds of its buckets.
    fn samples(&self) -> Samples {
        if !self.samples.is_empty() {
            return self.samples.clone();
        }
        let counts = self.counts().into_iter().enumerate().filter(|(_, count)| *count > 0);
        counts.map(|(bucket, count)| (bound_ns(bucket).unwrap_or(u64::MAX), count)).collect()
    }

    /// The cumulative counts by upper bound in seconds, as in a Prometheus histogram.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let counts = self.counts().into_iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        let seconds = |bucket| bound_ns(bucket).map(|ns| ns as f64 / 1e9);
        (0..).map_while(seconds).zip(counts)
    }
}

/// The delay that a fraction of the packets does not exceed; 0 without samples.
fn quantile_ns(samples: &Samples, part: f64) -> u64 {
    let mut left = (part * samples.values().sum::<u64>() as f64).ceil() as u64;
    for (&delay_ns, &count) in samples {
        if left <= count {
            return delay_ns;
        }
        left -= count;
    }
    0
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
            let mut samples = one.samples();
            add_samples(&mut samples, &other.samples());
            *to = DelayReport::new(
                samples,
                one.sum_ms + other.sum_ms,
                one.min_ms.min(other.min_ms),
                one.max_ms.max(other.max_ms),
            );
        }
        (None, Some(other)) => *to = Some(other.clone()),
        (_, None) => {}
    }
}

#[cfg(test)]
mod tests;

//! The layout of delay histograms: log-linear buckets, so that the relative error is bounded.
//!
//! Each doubling of the delay is divided into 2^resolution buckets of equal width. The bounds of a
//! lower resolution are a subset of those of a higher one. They are multiples of 1/64 of 1/32 ms,
//! so that powers of two of 1/32 ms are bounds, as are 3/2 of them.

/// The highest resolution: 64 buckets for each doubling. The middle of a bucket is within 0.8 % of
/// each of its values.
pub const MAX_RESOLUTION: u32 = 6;

/// The lowest resolution.
pub const MIN_RESOLUTION: u32 = 1;

/// 1/32 ms.
const STEP_NS: u64 = 31_250;

/// The range below `STEP_NS >> LINEAR_SHIFT` (488 ns) is linear.
const LINEAR_SHIFT: u32 = 6;

/// The number of doublings above the linear range.
const DOUBLINGS: u32 = 33;

/// The longest delay that has a bucket of its own, about 70 minutes. The last bucket also contains
/// all longer delays.
pub const MAX_NS: u64 = STEP_NS << (DOUBLINGS - LINEAR_SHIFT);

/// The number of buckets of a direction.
#[inline(always)]
#[must_use]
pub const fn buckets(resolution: u32) -> u32 {
    (DOUBLINGS + 1) << resolution
}

/// The bucket of a delay. A bucket contains delays up to its upper bound, inclusive.
#[inline(always)]
#[must_use]
pub const fn bucket(resolution: u32, delay_ns: u64) -> u32 {
    let delay_ns = if delay_ns > MAX_NS { MAX_NS } else { delay_ns };
    let resolution = resolution & 7;
    // In units of the linear range's buckets.
    let units = (delay_ns << (resolution + LINEAR_SHIFT)).saturating_sub(1) / STEP_NS;
    let power = (units | 1).ilog2();
    let shift = power.saturating_sub(resolution);
    (shift << resolution) + (units >> shift) as u32
}

/// The bounds of a bucket in nanoseconds: above the first, up to the second.
#[must_use]
pub fn bounds_ns(resolution: u32, bucket: u32) -> (f64, f64) {
    let shift = (bucket >> resolution).saturating_sub(1);
    let first = u64::from(bucket - (shift << resolution)) << shift;
    let unit = STEP_NS as f64 / f64::from(1u32 << (resolution + LINEAR_SHIFT));
    (first as f64 * unit, (first + (1 << shift)) as f64 * unit)
}

/// The highest resolution at which the histograms of so many rules, each with two directions, fit
/// into `cells` counters.
#[must_use]
pub fn resolution_for(rules: usize, cells: u32) -> u32 {
    let fits = |resolution: &u32| rules as u64 * cells_of(*resolution) <= cells.into();
    (MIN_RESOLUTION..=MAX_RESOLUTION).rev().find(fits).unwrap_or(MIN_RESOLUTION)
}

/// The number of counters of a rule: both directions.
#[must_use]
pub const fn cells_of(resolution: u32) -> u64 {
    2 * buckets(resolution) as u64
}

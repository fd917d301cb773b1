//! Robust statistics of measurements.

use serde::Serialize;

/// A median with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Estimate {
    /// The median of the sample.
    pub median: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

impl Estimate {
    /// The estimate from independent values, by order statistics: the number of values below the true
    /// median is binomial (n, 1/2) for any distribution. Fewer than six values give an infinite
    /// interval.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        // The number of values left out at each end has a tail probability of at most 2.5 %.
        let mut left_out = None;
        let mut term = values.iter().fold(1.0, |term, _| term / 2.0);
        let mut below = term;
        for number in 0..count / 2 {
            if below > 0.025 {
                break;
            }
            left_out = Some(number);
            term *= (count - number) as f64 / (number + 1) as f64;
            below += term;
        }
        let (low, high) = left_out.map_or((f64::NEG_INFINITY, f64::INFINITY), |left_out| {
            (sorted[left_out], sorted[count - 1 - left_out])
        });
        Self { median: median(&sorted), low, high }
    }

    /// The cost in percent that follows from a ratio of rates.
    pub fn cost(self) -> Self {
        let cost = |ratio| (1.0 - ratio) * 100.0;
        Self { median: cost(self.median), low: cost(self.high), high: cost(self.low) }
    }
}

/// The median; of an even number of values, the mean of the middle two.
///
/// NaN without values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Half the interquartile range.
pub fn spread(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.len() < 2 {
        return 0.0;
    }
    let half = sorted.len() / 2;
    (median(&sorted[sorted.len() - half..]) - median(&sorted[..half])) / 2.0
}

/// The largest value.
pub fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]).total_cmp(&2.0), std::cmp::Ordering::Equal);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).total_cmp(&2.5), std::cmp::Ordering::Equal);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_interval_is_that_of_the_tables() {
        let interval = |count| {
            let values: Vec<f64> = (1..=count).map(f64::from).collect();
            let Estimate { low, high, .. } = Estimate::of(&values);
            (low as i64, high as i64)
        };
        assert_eq!(interval(6), (1, 6));
        assert_eq!(interval(8), (1, 8));
        assert_eq!(interval(12), (3, 10));
        assert_eq!(interval(20), (6, 15));
        assert!(Estimate::of(&[1.0; 5]).high.is_infinite());
    }

    #[test]
    fn the_spread_ignores_outliers() {
        let spread = spread(&[1.0, 2.0, 3.0, 4.0, 1e9]);
        assert!(spread > 0.9 && spread.is_finite());
    }
}

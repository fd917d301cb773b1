//! The little statistics that is needed.

use serde::Serialize;

/// A median, and where the true one is with 95 % confidence.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Estimate {
    /// Of what was measured.
    pub median: f64,
    /// The least that the true one may be.
    pub low: f64,
    /// The most.
    pub high: f64,
}

impl Estimate {
    /// From independent values, by their order alone: how many of them are below the true median is
    /// binomial (n, 1/2), whatever their distribution. It takes six values to be 95 % sure of anything; of
    /// fewer, the interval has no ends.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        // As many may be left out at each end as are 2.5 % likely to lie on one side of the true median.
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

    /// What a ratio of rates costs, in percent.
    pub fn cost(self) -> Self {
        let cost = |ratio| (1.0 - ratio) * 100.0;
        Self { median: cost(self.median), low: cost(self.high), high: cost(self.low) }
    }
}

/// The value in the middle, of an even number of values the mean of the two there.
///
/// NaN if there are none.
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

/// Half the distance between the quartiles: how far values usually lie from the median.
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

//! The little statistics that is needed.

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
    fn the_spread_ignores_outliers() {
        let spread = spread(&[1.0, 2.0, 3.0, 4.0, 1e9]);
        assert!(spread > 0.9 && spread.is_finite());
    }
}

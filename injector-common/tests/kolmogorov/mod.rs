//! The Kolmogorov-Smirnov test, with a bound for any number of samples.

/// Panics if independent `samples` are further from the distribution function `cdf` than those of a right
/// implementation are in one of 10^6 cases, and `inexact` more, by which `cdf` itself may be off.
///
/// The bound is that of Dvoretzky, Kiefer and Wolfowitz with Massart's constant ("The tight constant in the
/// Dvoretzky-Kiefer-Wolfowitz inequality", 1990): P(distance > e) <= 2 exp(-2 n e^2) for any n and any
/// distribution, discrete ones included.
pub fn assert_distributed(samples: Vec<f64>, cdf: impl Fn(f64) -> f64, inexact: f64, what: &str) {
    const LEVEL: f64 = 1e-6;
    assert!(samples.len() >= 10_000, "{what}: too few samples to tell");
    let critical = ((2.0 / LEVEL).ln() / (2.0 * samples.len() as f64)).sqrt();
    let (distance, at) = distance(samples, cdf);
    assert!(
        distance <= critical + inexact,
        "{what}: {distance} from the distribution at {at}, critical value {critical}"
    );
}

/// The maximum difference between the empirical distribution and `cdf`, and its place.
fn distance(mut samples: Vec<f64>, cdf: impl Fn(f64) -> f64) -> (f64, f64) {
    samples.sort_unstable_by(f64::total_cmp);
    let count = samples.len() as f64;
    let (mut most, mut below) = ((0.0, 0.0), 0);
    for equal in samples.chunk_by(|a, b| a.total_cmp(b).is_eq()) {
        let value = equal[0];
        let up_to = below + equal.len();
        // Between two samples the share is constant and `cdf` grows, so the extremes are at the samples and
        // just before them.
        for (share, expected) in [(up_to, cdf(value)), (below, cdf(value.next_down()))] {
            let difference = (share as f64 / count - expected).abs();
            if difference > most.0 {
                most = (difference, value);
            }
        }
        below = up_to;
    }
    most
}

//! Distributions of jitter: the tables of netem's distributions (iproute2's `netem/`), and tables
//! from files.
//!
//! A table is the inverse of a cumulative distribution function at even steps. A uniformly drawn
//! entry is the deviation from the mean delay in units of 1/8192 of the jitter.

use std::{
    collections::HashMap,
    f64::consts::SQRT_2,
    iter,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::Duration,
};

use injector_common::model::delay::{DISTRIBUTION_SCALE_SHIFT, MAX_TABLE};
use statrs::function::erf::erfc_inv;
use thiserror::Error;

use super::{packet::delay::MAX_DELAY, source, trace::Traces, value::HumanDuration};

/// Equally likely values, in units of 1/8192 of the jitter.
pub type Table = Arc<[i32]>;

/// Number of units per jitter.
const SCALE: f64 = (1u32 << DISTRIBUTION_SCALE_SHIFT) as f64;

/// Why a file is not a valid distribution.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DistributionError {
    /// The file cannot be read.
    #[error("cannot read the distribution in {path}: {reason}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The requester may not read files.
    #[error("{0}: the agent reads no files for others; name a distribution, or do without")]
    Closed(PathBuf),
    /// The file has no values.
    #[error("{0}: there is no value in it")]
    Empty(PathBuf),
    /// A value is invalid.
    #[error("{path}: line {line}: `{value}` is not {expected}")]
    Value {
        /// Path of the file.
        path: PathBuf,
        /// Line of the value.
        line: usize,
        /// The value.
        value: String,
        /// The expected form.
        expected: &'static str,
    },
    /// The file has more values than netem accepts.
    #[error("{0}: there are more than {MAX_TABLE} values, which is the most that netem takes")]
    TooMany(PathBuf),
    /// All samples are equal.
    #[error("{0}: all samples are the same, which leaves nothing for the jitter to be spread by")]
    Constant(PathBuf),
    /// The file is a table, but samples are required.
    #[error(
        "{path}: its values have no units; samples are durations such as 12.3ms, and a table of netem's goes with \
         a delay: T,jitter=J,dist={path}"
    )]
    NoUnits {
        /// Path of the file.
        path: PathBuf,
    },
}

/// A distribution that was read from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Custom {
    /// The table of the distribution.
    pub table: Table,
    /// Mean and standard deviation of the samples; `None` if the file is a table.
    pub moments: Option<(HumanDuration, HumanDuration)>,
}

/// A cache that reads each file once, however many rules name it.
#[derive(Debug, Default)]
pub struct Files {
    read: HashMap<PathBuf, Custom>,
    pub(super) traces: Traces,
    pub(super) is_closed: bool,
}

impl Files {
    /// Creates a cache that refuses to read, for requesters without permission to the files.
    #[must_use]
    pub fn closed() -> Self {
        Self { is_closed: true, ..Self::default() }
    }

    /// The jitter distribution in the file.
    pub fn distribution(&mut self, path: &Path) -> Result<Table, DistributionError> {
        let custom = self.read(path)?;
        match custom.moments {
            Some((_, deviation)) if deviation == HumanDuration::default() => {
                Err(DistributionError::Constant(path.into()))
            }
            _ => Ok(custom.table.clone()),
        }
    }

    /// The distribution of the samples in the file, with their mean and standard deviation.
    pub fn samples(
        &mut self,
        path: &Path,
    ) -> Result<(Table, HumanDuration, HumanDuration), DistributionError> {
        let custom = self.read(path)?;
        let (mean, deviation) =
            custom.moments.ok_or_else(|| DistributionError::NoUnits { path: path.into() })?;
        Ok((custom.table.clone(), mean, deviation))
    }

    fn read(&mut self, path: &Path) -> Result<&Custom, DistributionError> {
        if self.is_closed {
            return Err(DistributionError::Closed(path.into()));
        }
        if !self.read.contains_key(path) {
            self.read.insert(path.into(), parse(path, &text_of(path)?)?);
        }
        Ok(&self.read[path])
    }
}

/// Quantiles of the standard normal distribution.
#[must_use]
pub fn normal() -> Table {
    static TABLE: LazyLock<Table> = LazyLock::new(|| tabulate(normal_quantile));
    TABLE.clone()
}

/// netem's Pareto distribution with exponent 3, shifted to mean 0 and truncated at 4 times the
/// jitter.
#[must_use]
pub fn pareto() -> Table {
    static TABLE: LazyLock<Table> = LazyLock::new(|| tabulate(pareto_quantile));
    TABLE.clone()
}

/// netem's mixture: a quarter of the normal quantile plus three quarters of the Pareto quantile.
#[must_use]
pub fn paretonormal() -> Table {
    static TABLE: LazyLock<Table> =
        LazyLock::new(|| tabulate(|p| 0.25 * normal_quantile(p) + 0.75 * pareto_quantile(p)));
    TABLE.clone()
}

/// Evaluates `quantile` at the midpoints of equal steps of probability.
fn tabulate(quantile: impl Fn(f64) -> f64) -> Table {
    (0..MAX_TABLE).map(|step| scaled(quantile((step as f64 + 0.5) / MAX_TABLE as f64))).collect()
}

/// Converts a multiple of the jitter to a table entry.
fn scaled(multiple: f64) -> i32 {
    (multiple * SCALE).round() as i32
}

fn normal_quantile(p: f64) -> f64 {
    -SQRT_2 * erfc_inv(2.0 * p)
}

fn pareto_quantile(p: f64) -> f64 {
    let most = f64::from(i16::MAX) / SCALE;
    (((1.0 - p).powf(-1.0 / 3.0) - 1.5) * 4.0 / 3.0).min(most)
}

fn text_of(path: &Path) -> Result<String, DistributionError> {
    source::read(path, source::MAX_BYTES)
        .map_err(|error| DistributionError::Read { path: path.into(), reason: error.to_string() })
}

/// Expected form of the values of a netem table.
const A_NUMBER: &str = "a whole number from -32768 to 32767, as netem has them";

/// Expected form of the values of other files.
const A_SAMPLE: &str = "a duration from 0s to 60s with its unit, such as 12.3ms (a table of netem's, without \
                        units, starts with a whole number)";

/// Parses whole numbers as a table, like netem's `get_distribution()`, and other values as samples.
fn parse(path: &Path, text: &str) -> Result<Custom, DistributionError> {
    let mut values = (1..)
        .zip(text.lines())
        .flat_map(|(line, text)| {
            let (text, _) = text.split_once('#').unwrap_or((text, ""));
            text.split_whitespace().zip(iter::repeat(line))
        })
        .peekable();
    let wrong = |(value, line): (&str, usize), expected| DistributionError::Value {
        path: path.into(),
        line,
        // Truncated, because the file may contain anything.
        value: value.chars().take(40).collect(),
        expected,
    };
    let &(first, _) = values.peek().ok_or_else(|| DistributionError::Empty(path.into()))?;
    if first.parse::<i64>().is_ok() {
        let mut table = Vec::new();
        for value in values {
            let number: i16 = value.0.parse().map_err(|_| wrong(value, A_NUMBER))?;
            if table.len() == MAX_TABLE {
                return Err(DistributionError::TooMany(path.into()));
            }
            table.push(i32::from(number));
        }
        return Ok(Custom { table: table.into(), moments: None });
    }
    let mut samples = Vec::new();
    for value in values {
        let sample: Option<HumanDuration> =
            value.0.parse().ok().filter(|sample: &HumanDuration| sample.0 <= MAX_DELAY);
        let sample = sample.ok_or_else(|| wrong(value, A_SAMPLE))?;
        samples.push(sample.0.as_nanos() as u64);
    }
    Ok(empirical(samples))
}

/// The distribution of `samples` in nanoseconds, which must not be empty.
fn empirical(mut samples: Vec<u64>) -> Custom {
    samples.sort_unstable();
    let values: Vec<f64> = if samples.len() > MAX_TABLE {
        resampled(&samples, MAX_TABLE)
    } else {
        samples.iter().map(|&sample| sample as f64).collect()
    };
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    let deviation = variance.sqrt();
    let normalised = |value: &f64| {
        if deviation > 0.0 { scaled((value - mean) / deviation) } else { 0 }
    };
    let span = |nanoseconds: f64| HumanDuration(Duration::from_nanos(nanoseconds.round() as u64));
    Custom {
        table: values.iter().map(normalised).collect(),
        moments: Some((span(mean), span(deviation))),
    }
}

/// The means of `count` equal parts of `sorted`, which must have more elements.
///
/// A sample on a boundary is divided between both parts, which preserves the overall mean.
fn resampled(sorted: &[u64], count: usize) -> Vec<f64> {
    // In units in which a sample has width `count` and a part has the width of the number of
    // samples.
    let part = sorted.len();
    (0..count)
        .map(|number| {
            let (from, to) = (number * part, (number + 1) * part);
            let share = |sample: usize| {
                let units = to.min((sample + 1) * count) - from.max(sample * count);
                sorted[sample] as f64 * units as f64
            };
            (from / count..to.div_ceil(count)).map(share).sum::<f64>() / part as f64
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use injector_common::model::delay::MAX_NS;
    use proptest::prelude::*;
    use statrs::distribution::{ContinuousCDF, Normal};

    use super::*;

    fn parsed(text: &str) -> Result<Custom, DistributionError> {
        parse(Path::new("f"), text)
    }

    fn moments(table: &Table) -> (f64, f64) {
        let values = || table.iter().map(|&value| f64::from(value) / SCALE);
        let mean = values().sum::<f64>() / table.len() as f64;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>();
        (mean, (variance / table.len() as f64).sqrt())
    }

    /// The Kolmogorov-Smirnov distance between the table and `cdf`, for values up to `most`.
    fn kolmogorov_smirnov(table: &Table, most: f64, cdf: impl Fn(f64) -> f64) -> f64 {
        let count = table.len() as f64;
        let mut worst: f64 = 0.0;
        for (number, &value) in table.iter().enumerate() {
            let value = f64::from(value) / SCALE;
            if value < most {
                let (below, upto) = (number as f64 / count, (number + 1) as f64 / count);
                worst = worst.max((cdf(value) - below).abs()).max((cdf(value) - upto).abs());
            }
        }
        worst
    }

    fn pareto_cdf(value: f64) -> f64 {
        1.0 - (value * 0.75 + 1.5).powi(-3)
    }

    #[test]
    fn tables_follow_their_distributions() {
        let normal_distribution = Normal::standard();
        // Half a step plus half a unit at the maximum density, which is below 3 in all
        // distributions.
        let close = 0.5 / MAX_TABLE as f64 + 0.5 / SCALE * 3.0;
        let distance = kolmogorov_smirnov(&normal(), 9.0, |x| normal_distribution.cdf(x));
        assert!(distance < close, "{distance}");
        let cut = f64::from(i16::MAX) / SCALE;
        let distance = kolmogorov_smirnov(&pareto(), cut, pareto_cdf);
        assert!(distance < close, "{distance}");
        // The quantile function is the sum of both. Bisection inverts it.
        let paretonormal_cdf = |x: f64| {
            let (mut low, mut high) = (0.0, 1.0);
            for _ in 0..50 {
                let p = f64::midpoint(low, high);
                let pareto = ((1.0 - p).cbrt().recip() - 1.5) * 4.0 / 3.0;
                let quantile = 0.25 * normal_distribution.inverse_cdf(p) + 0.75 * pareto;
                if quantile < x { low = p } else { high = p }
            }
            low
        };
        // The range in which the Pareto part is not truncated.
        let most = 0.25 * normal_distribution.inverse_cdf(pareto_cdf(cut)) + 0.75 * cut;
        let distance = kolmogorov_smirnov(&paretonormal(), most, paretonormal_cdf);
        assert!(distance < close, "{distance}");
    }

    #[test]
    fn tables_have_the_moments_that_they_should_have() {
        let (mean, deviation) = moments(&normal());
        assert!(mean.abs() < 1e-6 && (deviation - 1.0).abs() < 1e-3, "{mean} {deviation}");
        // The mean lacks the truncated tail, 4/3 * ∫ (x - 4.5) 3x^-4 dx from 4.5 on.
        let (mean, _) = moments(&pareto());
        assert!((mean + 4.0 / 3.0 / (2.0 * 4.5 * 4.5)).abs() < 1e-3, "{mean}");
        let (mean, _) = moments(&paretonormal());
        assert!((mean + 1.0 / (2.0 * 4.5 * 4.5)).abs() < 1e-3, "{mean}");
    }

    #[test]
    fn tables_rise_and_are_as_long_and_wide_as_netems() {
        for table in [normal(), pareto(), paretonormal()] {
            assert_eq!(table.len(), MAX_TABLE);
            assert!(table.is_sorted());
        }
        // From iproute2's netem/*.c: the 2.5%, 50% and 97.5% quantiles of the normal distribution,
        // and both ends of the Pareto distribution.
        let normal = normal();
        assert!((normal[409] + 16_056).abs() < 8, "{}", normal[409]);
        assert!(normal[8192] <= 1 && normal[8191] >= -1);
        assert_eq!(normal[0], -normal[MAX_TABLE - 1]);
        let pareto = pareto();
        assert!((pareto[0] + 5461).abs() <= 1, "{}", pareto[0]);
        assert_eq!(pareto[MAX_TABLE - 1], 32_767);
    }

    #[test]
    fn tables_are_read_as_netem_reads_them() {
        let custom = parsed("# a comment\n -3 0\t4\n\n5 # the last\n").expect("valid");
        assert_eq!(*custom.table, [-3, 0, 4, 5]);
        assert_eq!(custom.moments, None);
        let most = "0 ".repeat(MAX_TABLE);
        assert_eq!(parsed(&most).map(|custom| custom.table.len()), Ok(MAX_TABLE));
        let error = parsed(&format!("{most} 0")).expect_err("one more");
        assert_eq!(error, DistributionError::TooMany("f".into()));
    }

    #[test]
    fn what_is_no_distribution_is_refused_with_the_place() {
        for (text, line, value) in [
            ("1 2\n3 x", 2, "x"),
            ("1\n1.5", 2, "1.5"),
            ("32767 32768", 1, "32768"),
            ("1 2ms", 1, "2ms"),
            ("1ms 2", 1, "2"),
            ("1ms\n\n-2ms", 3, "-2ms"),
            ("1ms 60.000000001s", 1, "60.000000001s"),
            ("# hello\nhello", 2, "hello"),
            ("0.5", 1, "0.5"),
            // Slightly more than 2^64 ns.
            ("1ms 18446744074s", 1, "18446744074s"),
        ] {
            let found = parsed(text);
            let Err(DistributionError::Value { line: at, value: what, .. }) = &found else {
                panic!("{text}: {found:?}");
            };
            assert_eq!((*at, what.as_str()), (line, value), "{text}");
        }
        for text in ["", "\n# nothing\n"] {
            assert_eq!(parsed(text), Err(DistributionError::Empty("f".into())));
        }
    }

    #[test]
    fn samples_become_multiples_of_their_deviation_around_their_mean() {
        let custom = parsed("10ms 20ms # two\n 30ms 40ms").expect("valid");
        let (mean, deviation) = custom.moments.expect("samples");
        assert_eq!(mean.0, Duration::from_millis(25));
        // The square root of 125 ms².
        assert_eq!(deviation.0, Duration::from_nanos(11_180_340));
        assert_eq!(*custom.table, [-10_991, -3664, 3664, 10_991]);
    }

    #[test]
    fn samples_that_do_not_differ_are_a_delay_but_no_distribution() {
        let path = std::env::temp_dir().join(format!("injector-samples-{}", std::process::id()));
        std::fs::write(&path, "5ms 5ms").expect("a file");
        let mut files = Files::default();
        let (table, mean, deviation) = files.samples(&path).expect("samples");
        assert_eq!((mean.0, deviation.0), (Duration::from_millis(5), Duration::ZERO));
        assert!(table.iter().all(|&value| value == 0));
        assert_eq!(files.distribution(&path), Err(DistributionError::Constant(path.clone())));
        std::fs::write(&path, "1 2").expect("a file");
        assert!(files.samples(&path).is_ok(), "it is read once");
        let error = Files::default().samples(&path).expect_err("no units");
        assert_eq!(error, DistributionError::NoUnits { path: path.clone() });
        std::fs::remove_file(&path).expect("it is there");
        assert!(matches!(
            Files::default().distribution(&path),
            Err(DistributionError::Read { .. })
        ));
    }

    #[test]
    fn endless_files_are_refused() {
        let error = Files::default().distribution(Path::new("/dev/zero")).expect_err("endless");
        assert!(error.to_string().contains("/dev/zero: it is a device"), "{error}");
    }

    proptest! {
        #[test]
        fn delays_drawn_from_samples_are_the_samples(
            samples in prop::collection::vec(0..=MAX_NS, 1..200),
        ) {
            let custom = empirical(samples.clone());
            let (mean, deviation) = custom.moments.expect("samples");
            let (mean, deviation) = (mean.0.as_nanos() as f64, deviation.0.as_nanos() as f64);
            let mut sorted = samples;
            sorted.sort_unstable();
            prop_assert_eq!(custom.table.len(), sorted.len());
            for (&value, &sample) in custom.table.iter().zip(&sorted) {
                let delay = mean + f64::from(value) * deviation / SCALE;
                // Half a unit of the table, plus the rounding errors of both moments.
                let exact = deviation / SCALE / 2.0 + 1.0 + f64::from(value.abs()) / SCALE;
                prop_assert!((delay - sample as f64).abs() <= exact, "{} {}", delay, sample);
            }
        }

        #[test]
        fn resampling_keeps_the_mean_and_every_quantile(
            samples in prop::collection::vec(0..=MAX_NS, 33..300),
        ) {
            let count = 32;
            let mut sorted = samples;
            sorted.sort_unstable();
            let fewer = resampled(&sorted, count);
            prop_assert_eq!(fewer.len(), count);
            let sum: f64 = sorted.iter().map(|&sample| sample as f64).sum();
            let means = (fewer.iter().sum::<f64>() / count as f64, sum / sorted.len() as f64);
            prop_assert!((means.0 - means.1).abs() < 1.0, "{:?}", means);
            for (number, &value) in fewer.iter().enumerate() {
                let at = |number: usize| sorted[(number * sorted.len() / count).min(sorted.len() - 1)];
                let (low, high) = (at(number) as f64, at(number + 1) as f64);
                prop_assert!(low - 1.0 <= value && value <= high + 1.0, "{} {} {}", low, value, high);
            }
        }
    }
}

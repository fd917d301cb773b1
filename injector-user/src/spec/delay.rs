//! Delays, and packets that are let go ahead of delayed ones.

use std::{
    fmt::{self, Display, Formatter},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use injector_common::model::delay::MAX_NS;

use super::{
    distribution::{self, DistributionError, Files, Table},
    fault::{Every, FaultError, Odds, correlation, parameters},
    value::{Percent, Span, percent_pattern, serde_as_text},
};

serde_as_text! {
    DelaySpec: "a delay such as 50ms or 50ms,jitter=10ms",
    Reorder: "a reordering such as 25% or 25%,corr=50%,gap=5"
        pattern concat!("^", percent_pattern!(), "(, *(corr=", percent_pattern!(), "|gap=[0-9]+)){0,2}$"),
}

/// The longest delay and the longest jitter.
pub const LONGEST: Duration = Duration::from_nanos(MAX_NS);

/// A delay as written.
#[derive(Clone, Debug, PartialEq)]
pub enum DelaySpec {
    /// A mean, and what there is around it.
    Around {
        /// The mean.
        latency: Span,
        /// What there is around it; nothing if absent.
        jitter: Option<Jitter>,
    },
    /// Drawn from samples.
    Samples {
        /// The file that has them.
        path: PathBuf,
        /// Correlation of one packet's random number with the next one's.
        correlation: Percent,
    },
}

/// How delays differ from their mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Jitter {
    /// How far: half the width if they are spread evenly, else what the distribution counts in.
    pub scale: Span,
    /// How they are spread.
    pub distribution: Distribution,
    /// Correlation of one packet's random number with the next one's.
    pub correlation: Percent,
}

/// How something is spread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// Evenly.
    #[default]
    Uniform,
    /// Normally.
    Normal,
    /// By Pareto's distribution.
    Pareto,
    /// By netem's mixture of both.
    ParetoNormal,
    /// As a file has it.
    File(PathBuf),
}

impl FromStr for DelaySpec {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let malformed = || FaultError::Delay(text.into());
        let (first, [jitter, dist, corr]) =
            parameters(text, ["jitter", "dist", "corr"]).ok_or_else(malformed)?;
        let correlation = correlation(text, corr)?;
        if let Some(path) = first.strip_prefix("samples=") {
            if path.is_empty() || jitter.is_some() || dist.is_some() {
                return Err(malformed());
            }
            return Ok(Self::Samples { path: path.into(), correlation });
        }
        let latency = span(first)?;
        let jitter = match jitter {
            Some(jitter) => Some(Jitter {
                scale: span(jitter)?,
                distribution: dist.map(Distribution::named).unwrap_or_default(),
                correlation,
            }),
            None if dist.is_some() || corr.is_some() => {
                return Err(FaultError::NoJitter(text.into()));
            }
            None => None,
        };
        Ok(Self::Around { latency, jitter })
    }
}

/// A duration for which packets can be held.
fn span(text: &str) -> Result<Span, FaultError> {
    let span: Span = text.parse()?;
    if span.0 > LONGEST { Err(FaultError::DelayRange(text.into())) } else { Ok(span) }
}

impl Display for DelaySpec {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let correlation = match self {
            Self::Around { latency, jitter: None } => return latency.fmt(f),
            Self::Around { latency, jitter: Some(jitter) } => {
                write!(f, "{latency},jitter={}", jitter.scale)?;
                if jitter.distribution != Distribution::Uniform {
                    write!(f, ",dist={}", jitter.distribution)?;
                }
                jitter.correlation
            }
            Self::Samples { path, correlation } => {
                write!(f, "samples={}", path.display())?;
                *correlation
            }
        };
        if correlation > Percent::default() {
            write!(f, ",corr={correlation}")?;
        }
        Ok(())
    }
}

impl Distribution {
    /// The distribution of this name; what is no name of one is a file.
    pub(super) fn named(name: &str) -> Self {
        match name {
            "uniform" => Self::Uniform,
            "normal" => Self::Normal,
            "pareto" => Self::Pareto,
            "paretonormal" => Self::ParetoNormal,
            path => Self::File(path.into()),
        }
    }

    /// Its table; `None` if it needs none.
    fn table(&self, files: &mut Files) -> Result<Option<Table>, DistributionError> {
        Ok(match self {
            Self::Uniform => None,
            Self::Normal => Some(distribution::normal()),
            Self::Pareto => Some(distribution::pareto()),
            Self::ParetoNormal => Some(distribution::paretonormal()),
            Self::File(path) => Some(files.distribution(path)?),
        })
    }
}

impl Display for Distribution {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Normal => f.write_str("normal"),
            Self::Pareto => f.write_str("pareto"),
            Self::ParetoNormal => f.write_str("paretonormal"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// A delay, with all that files say about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delay {
    /// The mean.
    pub latency: Span,
    /// How far delays are from it, in the terms of their distribution.
    pub jitter: Span,
    /// How they are spread; evenly if absent.
    pub table: Option<Table>,
    /// Correlation of one packet's random number with the next one's.
    pub correlation: Percent,
}

impl DelaySpec {
    /// Reads what it takes from files, so that they may change afterwards.
    pub fn load(&self, files: &mut Files) -> Result<Delay, DistributionError> {
        Ok(match self {
            Self::Around { latency, jitter: None } => {
                Delay { latency: *latency, ..Delay::default() }
            }
            Self::Around { latency, jitter: Some(jitter) } => Delay {
                latency: *latency,
                jitter: jitter.scale,
                table: jitter.distribution.table(files)?,
                correlation: jitter.correlation,
            },
            Self::Samples { path, correlation } => {
                let (table, latency, jitter) = files.samples(path)?;
                Delay { latency, jitter, table: Some(table), correlation: *correlation }
            }
        })
    }
}

/// Which packets are let go at once, so that they overtake delayed ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reorder {
    /// The chance of those that may be.
    pub odds: Odds,
    /// Every how many packets one may be.
    pub gap: Every,
}

impl FromStr for Reorder {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (probability, [corr, gap]) =
            parameters(text, ["corr", "gap"]).ok_or_else(|| FaultError::Reorder(text.into()))?;
        Ok(Self {
            odds: Odds { probability: probability.parse()?, correlation: correlation(text, corr)? },
            gap: gap.map_or(Ok(Every(1)), str::parse)?,
        })
    }
}

impl Display for Reorder {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        self.odds.fmt(f)?;
        if self.gap != Every(1) {
            write!(f, ",gap={}", self.gap)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::value::ValueError;

    #[test]
    fn delays_print_as_they_were_written() {
        for text in [
            "50ms",
            "0ns",
            "60s",
            "50ms,jitter=10ms",
            "50ms,jitter=0ns,dist=normal",
            "1.5s,jitter=60s,corr=25%",
            "50ms,jitter=10ms,dist=normal",
            "50ms,jitter=10ms,dist=pareto,corr=0.5%",
            "50ms,jitter=250µs,dist=paretonormal",
            "50ms,jitter=10ms,dist=./normal",
            "50ms,jitter=10ms,dist=/usr/lib/tc/experimental.dist,corr=99.99%",
            "samples=ping.txt",
            "samples=a=b c,corr=1%",
        ] {
            let printed = text.parse::<DelaySpec>().map(|delay| delay.to_string());
            assert_eq!(printed, Ok(text.into()));
        }
        for (text, printed) in [
            ("0s", "0ns"),
            ("1m", "60s"),
            (" 50ms , corr=25% , jitter=1500us", "50ms,jitter=1.5ms,corr=25%"),
            ("50ms,dist=uniform,jitter=10ms,corr=0%", "50ms,jitter=10ms"),
        ] {
            let delay = text.parse::<DelaySpec>().map(|delay| delay.to_string());
            assert_eq!(delay, Ok(printed.into()), "{text}");
        }
    }

    #[test]
    fn wrong_delays_are_refused_by_what_is_wrong() {
        let error = |text: &str| text.parse::<DelaySpec>().expect_err(text);
        for text in [
            "50ms,10ms",
            "50ms,jitter",
            "50ms,jitter=",
            "50ms,jitter=10ms,dist=",
            "50ms,jitter=10ms,jitter=20ms",
            "50ms,jiter=10ms",
            "50ms,",
            "samples=",
            "samples=a,jitter=10ms",
            "samples=a,dist=normal",
            "jitter=10ms,samples=a,",
        ] {
            assert_eq!(error(text), FaultError::Delay(text.into()));
        }
        for text in ["50ms,dist=normal", "50ms,corr=25%"] {
            assert_eq!(error(text), FaultError::NoJitter(text.into()));
        }
        for text in ["", "50", "-1ms", "50ms jitter=10ms", "50%"] {
            assert_eq!(error(text), ValueError::Span(text.into()).into());
        }
        assert_eq!(error("61s"), FaultError::DelayRange("61s".into()));
        assert_eq!(error("1s,jitter=60.1s"), FaultError::DelayRange("60.1s".into()));
        let text = "50ms,jitter=10ms,corr=100%";
        assert_eq!(error(text), FaultError::FullCorrelation(text.into()));
    }

    #[test]
    fn a_delay_has_all_that_it_takes_once_it_is_loaded() {
        let load = |text: &str| {
            text.parse::<DelaySpec>().expect(text).load(&mut Files::default()).expect(text)
        };
        let delay = load("50ms,jitter=10ms,dist=pareto,corr=50%");
        assert_eq!(delay.latency.0.as_millis(), 50);
        assert_eq!(delay.jitter.0.as_millis(), 10);
        assert_eq!(delay.table, Some(distribution::pareto()));
        assert_eq!(delay.correlation, Percent::from_fraction(0.5));
        assert_eq!(load("50ms,jitter=10ms").table, None);

        let path = std::env::temp_dir().join(format!("injector-delays-{}", std::process::id()));
        std::fs::write(&path, "10ms 30ms").expect("a file");
        let from_samples = load(&format!("samples={}", path.display()));
        let around = load(&format!("1s,jitter=3s,dist={}", path.display()));
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!(from_samples.latency.0.as_millis(), 20);
        assert_eq!(from_samples.jitter.0.as_millis(), 10);
        assert_eq!(from_samples.table.as_deref(), Some([-8192, 8192].as_slice()));
        assert_eq!((around.latency.0.as_secs(), around.jitter.0.as_secs()), (1, 3));
        assert_eq!(around.table, from_samples.table);
    }

    #[test]
    fn reorderings_print_as_they_were_written() {
        for text in ["25%", "0%", "25%,corr=50%", "25%,gap=5", "100%,corr=0.5%,gap=4294967295"] {
            let printed = text.parse::<Reorder>().map(|reorder| reorder.to_string());
            assert_eq!(printed, Ok(text.into()));
        }
        let printed = "25%,gap=1,corr=0%".parse::<Reorder>().map(|reorder| reorder.to_string());
        assert_eq!(printed, Ok("25%".into()));
    }

    #[test]
    fn wrong_reorderings_are_refused_by_what_is_wrong() {
        let error = |text: &str| text.parse::<Reorder>().expect_err(text);
        for text in ["25%,50%", "25%,gap=", "25%,gap=1,gap=2", "25%,gap=1,dist=normal"] {
            assert_eq!(error(text), FaultError::Reorder(text.into()));
        }
        for text in ["", "101%", "gap=5"] {
            assert_eq!(error(text), ValueError::Percent(text.into()).into());
        }
        assert_eq!(error("25%,gap=0"), FaultError::Every("0".into()));
        assert_eq!(error("1%,corr=100%"), FaultError::FullCorrelation("1%,corr=100%".into()));
    }
}

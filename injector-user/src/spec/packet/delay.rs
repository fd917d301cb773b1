//! Delay of packets.

use std::{
    fmt::{self, Display, Formatter},
    path::PathBuf,
    time::Duration,
};

use injector_common::model::delay::{self as model, MAX_NS};

use super::{Compiler, PacketFault, PacketInfo};
use crate::spec::{
    distribution::{self, DistributionError, Files, Table},
    fault::{FaultError, correlation},
    info::{Effect, Info, Trial},
    interpolate::{Interpolate, interpolate},
    parameters::{CORRELATION, DISTRIBUTION, Given, Parameter, Value, malformed, values},
    rule::RuleError,
    value::{HumanDuration, Percent},
};

values!(DelaySpec);
interpolate!(Jitter { scale, distribution, correlation, ordered });

/// Maximum delay and maximum jitter.
pub const MAX_DELAY: Duration = Duration::from_nanos(MAX_NS);

/// A delay, as specified.
#[derive(Clone, Debug, PartialEq)]
pub enum DelaySpec {
    /// A mean delay with optional jitter.
    Around {
        /// The mean.
        latency: HumanDuration,
        /// Jitter around the mean; `None` for a constant delay.
        jitter: Option<Jitter>,
    },
    /// Delays drawn from samples.
    Samples {
        /// File with the samples.
        path: PathBuf,
        /// Correlation of the random numbers of consecutive packets.
        correlation: Percent,
        /// Whether each flow keeps its order.
        ordered: bool,
    },
}

/// Variation of delays around their mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Jitter {
    /// Half the width of a uniform distribution, else the unit of the distribution's values.
    pub scale: HumanDuration,
    /// The distribution.
    pub distribution: Distribution,
    /// Correlation of the random numbers of consecutive packets.
    pub correlation: Percent,
    /// Whether each flow keeps its order.
    pub ordered: bool,
}

/// The distribution of jitter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// Uniform distribution.
    #[default]
    Uniform,
    /// Normal distribution.
    Normal,
    /// Pareto distribution.
    Pareto,
    /// netem's mixture of normal and Pareto distributions.
    ParetoNormal,
    /// Distribution from a file.
    File(PathBuf),
}

impl Value for DelaySpec {
    type Error = FaultError;

    const NAME: &'static str = "a delay";
    const SYNTAX: &'static str =
        "T[,jitter=J[,dist=D][,corr=C][,ordered]] or samples=FILE[,corr=C][,ordered]";
    const EXAMPLE: &'static str = "50ms or 50ms,jitter=10ms,dist=normal,corr=25%";
    const REQUIRED: usize = 0;
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::amount("time", "How long packets are held, 0s to 60s, such as 50ms."),
        Parameter::new(
            "samples",
            "A file of samples that delays are drawn from, instead of `time`.",
        ),
        Parameter::amount("jitter", "How far delays vary around `time`, 0s to 60s."),
        DISTRIBUTION,
        CORRELATION,
        Parameter::switch("ordered", "Packets of the same flow do not overtake each other."),
    ];

    fn from_parameters(given: &Given) -> Result<Self, FaultError> {
        let (correlation, ordered) = (correlation(given)?, given.has("ordered"));
        let (jitter, distribution) = (given.get("jitter"), given.get("dist"));
        if let Some(path) = given.get("samples") {
            if given.has("time") || jitter.is_some() || distribution.is_some() {
                return Err(malformed::<Self>(given.text()).into());
            }
            return Ok(Self::Samples { path: path.into(), correlation, ordered });
        }
        let Some(time) = given.get("time") else {
            return Err(malformed::<Self>(given.text()).into());
        };
        let latency = span(time)?;
        let jitter = match jitter {
            Some(jitter) => Some(Jitter {
                scale: span(jitter)?,
                distribution: distribution.map(Distribution::named).unwrap_or_default(),
                correlation,
                ordered,
            }),
            None if distribution.is_some() || given.has("corr") || ordered => {
                return Err(FaultError::NoJitter(given.text().into()));
            }
            None => None,
        };
        Ok(Self::Around { latency, jitter })
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let (mut parameters, correlation, ordered) = match self {
            Self::Around { latency, jitter: None } => return vec![("time", latency.to_string())],
            Self::Around { latency, jitter: Some(jitter) } => {
                let mut parameters =
                    vec![("time", latency.to_string()), ("jitter", jitter.scale.to_string())];
                if jitter.distribution != Distribution::Uniform {
                    parameters.push(("dist", jitter.distribution.to_string()));
                }
                (parameters, jitter.correlation, jitter.ordered)
            }
            Self::Samples { path, correlation, ordered } => {
                (vec![("samples", path.display().to_string())], *correlation, *ordered)
            }
        };
        if correlation > Percent::default() {
            parameters.push(("corr", correlation.to_string()));
        }
        if ordered {
            parameters.push(("ordered", true.to_string()));
        }
        parameters
    }
}

impl Interpolate for DelaySpec {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        match (self, to) {
            (
                Self::Around { latency, jitter },
                Self::Around { latency: to_latency, jitter: to_jitter },
            ) => Some(Self::Around {
                latency: latency.between(to_latency, part)?,
                jitter: jitter.between(to_jitter, part)?,
            }),
            _ => (self == to).then(|| self.clone()),
        }
    }
}

/// Parses a duration for which packets can be held.
fn span(text: &str) -> Result<HumanDuration, FaultError> {
    let span: HumanDuration = text.parse()?;
    if span.0 > MAX_DELAY { Err(FaultError::DelayRange(text.into())) } else { Ok(span) }
}

impl PacketFault for DelaySpec {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "delay",
            instead: "tc qdisc add dev IF root netem delay 100ms, for all sent packets of an interface",
            value: "T[,jitter=J[,dist=D][,corr=C][,ordered]]|samples=F[,corr=C][,ordered]",
            placeholder: "T[,...]",
            help: "Delay packets by T in each direction",
            detail: "By default the rule is for both directions, so that a round trip over a link takes 2T longer: \
                     see --rtt and --direction. T and J are 0s to 60s, with their unit: 250us, 50ms, 1.5s. J is how \
                     much more or less; D is uniform (the default), normal, pareto, paretonormal or a file, of \
                     netem's values or of samples; C is the correlation of one delay with the next. Or the delays \
                     are drawn from a file of samples. With ordered, packets of the same flow do not \
                     overtake each other. down=...,up=... gives one for received and one for sent packets.",
            examples: &[
                "50ms",
                "0s",
                "50ms,jitter=10ms,dist=normal,corr=25%",
                "50ms,jitter=10ms,ordered",
            ],
            trial: Some(Trial {
                options: "--delay 100ms --direction egress",
                effect: Effect::Late(1, Duration::from_millis(99)),
            }),
        },
        holds: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(delay: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        let delay = delay.load(compiler.files)?;
        compiler.impairment.hold().delay = delay.compile();
        compiler.impairment.table =
            delay.table.filter(|_| delay.jitter != HumanDuration::default());
        Ok(())
    }
}

impl Distribution {
    /// The distribution with this name. Any other name is the path of a file.
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "uniform" => Self::Uniform,
            "normal" => Self::Normal,
            "pareto" => Self::Pareto,
            "paretonormal" => Self::ParetoNormal,
            path => Self::File(path.into()),
        }
    }

    /// The table of the distribution; `None` if it requires none.
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

/// A delay with the distribution loaded from files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delay {
    /// The mean delay.
    pub latency: HumanDuration,
    /// The jitter, in the units of the distribution.
    pub jitter: HumanDuration,
    /// The distribution; `None` is uniform.
    pub table: Option<Table>,
    /// Correlation of the random numbers of consecutive packets.
    pub correlation: Percent,
    /// Whether each flow keeps its order.
    pub ordered: bool,
}

impl Delay {
    /// The delay in the kernel's format, without the index of the table.
    #[must_use]
    pub fn compile(&self) -> model::Delay {
        model::Delay {
            latency_ns: self.latency.nanoseconds(),
            jitter_ns: self.jitter.nanoseconds(),
            correlation: model::Delay::correlation_from(self.correlation.fraction()),
            ordered: self.ordered.into(),
            ..model::Delay::default()
        }
    }
}

impl DelaySpec {
    /// Loads the distribution, so that the file may change afterwards.
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
                ordered: jitter.ordered,
            },
            Self::Samples { path, correlation, ordered } => {
                let (table, latency, jitter) = files.samples(path)?;
                let (correlation, ordered) = (*correlation, *ordered);
                Delay { latency, jitter, table: Some(table), correlation, ordered }
            }
        })
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
            "0s",
            "60s",
            "50ms,jitter=10ms",
            "50ms,jitter=0s,dist=normal",
            "1.5s,jitter=60s,corr=25%",
            "50ms,jitter=10ms,dist=normal",
            "50ms,jitter=10ms,dist=pareto,corr=0.5%",
            "50ms,jitter=250µs,dist=paretonormal",
            "50ms,jitter=10ms,dist=./normal",
            "50ms,jitter=10ms,dist=/usr/lib/tc/experimental.dist,corr=99.99%",
            "50ms,jitter=10ms,ordered",
            "50ms,jitter=10ms,dist=pareto,corr=25%,ordered",
            "samples=ping.txt",
            "samples=ping.txt,ordered",
            "samples=a=b c,corr=1%",
        ] {
            let printed = text.parse::<DelaySpec>().map(|delay| delay.to_string());
            assert_eq!(printed, Ok(text.into()));
        }
        for (text, printed) in [
            ("0s", "0s"),
            ("1m", "60s"),
            (" 50ms , corr=25% , jitter=1500us", "50ms,jitter=1.5ms,corr=25%"),
            ("50ms,dist=uniform,jitter=10ms,corr=0%", "50ms,jitter=10ms"),
            ("50ms, ordered, jitter=10ms", "50ms,jitter=10ms,ordered"),
        ] {
            let delay = text.parse::<DelaySpec>().map(|delay| delay.to_string());
            assert_eq!(delay, Ok(printed.into()), "{text}");
        }
    }

    #[test]
    fn the_order_is_a_boolean_in_objects() {
        let read = |ordered| {
            let object = serde_json::json!({"time": "5ms", "jitter": "1ms", "ordered": ordered});
            serde_json::from_value::<DelaySpec>(object).map(|delay| delay.to_string())
        };
        assert_eq!(read(Some(true.into())).expect("valid"), "5ms,jitter=1ms,ordered");
        for absent in [Some(false.into()), None::<serde_json::Value>] {
            assert_eq!(read(absent).expect("valid"), "5ms,jitter=1ms");
        }
        assert!(read(Some("true".into())).is_err());
        let load = |text: &str| {
            text.parse::<DelaySpec>().expect(text).load(&mut Files::default()).expect(text)
        };
        assert!(load("5ms,jitter=1ms,ordered").compile().orders_flows());
        assert!(!load("5ms,jitter=1ms").compile().orders_flows());
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
            "50ms,jitter=10ms,order",
            "50ms,jitter=10ms,ordered=true",
            "50ms,jitter=10ms,ordered,ordered",
            "50ms,",
            "samples=",
            "samples=a,jitter=10ms",
            "samples=a,dist=normal",
            "jitter=10ms,samples=a,",
        ] {
            assert_eq!(error(text), malformed::<DelaySpec>(text).into());
        }
        for text in ["50ms,dist=normal", "50ms,corr=25%", "50ms,ordered"] {
            assert_eq!(error(text), FaultError::NoJitter(text.into()));
        }
        assert_eq!(error("50").to_string(), "`50` has no unit: write 50ms, or 50s for seconds");
        for text in ["", "-1ms", "50ms jitter=10ms", "50%"] {
            assert_eq!(error(text), ValueError::HumanDuration(text.into()).into());
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
}

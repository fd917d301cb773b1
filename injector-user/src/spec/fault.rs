//! Common parts of packet faults: probabilities, and errors of parameters.

use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
};

use injector_common::model::chance::{Chance, Probability};
use thiserror::Error;

use super::{
    packet::profile::PROFILES,
    parameters::Given,
    value::{Percent, ValueError},
};

/// Why a fault's parameters are invalid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FaultError {
    /// A value could not be parsed.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A correlation of 100%, with which the outcome would never change.
    #[error(
        "`{0}`: a correlation of 100% would keep the first outcome for ever; write 0% to 99.99%"
    )]
    FullCorrelation(String),
    /// Transition probabilities out of one state with a sum above 1.
    #[error("`{text}`: {sum} must not be more than 100% together")]
    Sum {
        /// The text.
        text: String,
        /// The parameters of the sum.
        sum: &'static str,
    },
    /// Not a packet count.
    #[error("`{0}` is not a count of packets: write a whole number from 1 to 4294967295")]
    Every(String),
    /// An MTU is out of range.
    #[error("`{0}` is not an MTU: write a number of bytes from 576 to 65535")]
    Mtu(String),
    /// A delay or jitter is out of range.
    #[error("`{0}` is too long: a delay and its jitter are 0s to 60s each")]
    DelayRange(String),
    /// A distribution or correlation was given without jitter.
    #[error(
        "`{0}`: dist, corr and ordered are about the jitter; give jitter=J as well, for instance jitter=10ms"
    )]
    NoJitter(String),
    /// Not the name of a link profile.
    #[error("`{0}` is not a profile: write one of {names}", names = profile_names())]
    Profile(String),
    /// Not a rate.
    #[error(
        "`{0}` is not a rate: write a number and a unit as tc does (bit, kbit, mbit, gbit, tbit; kibit, …; bps, \
         kbps, … for bytes a second), for instance 1.5mbit"
    )]
    BitRate(String),
    /// A rate is out of range.
    #[error("`{0}` is out of range: a rate is 1kbit to 1tbit")]
    BitRateRange(String),
    /// Not a size.
    #[error(
        "`{0}` is not a size: write a number and a unit as tc does (b, k, kb, m, mb, g, gb, kbit, mbit, gbit), for \
         instance 64kb, up to 4294967295 bytes"
    )]
    Size(String),
    /// Not an overhead.
    #[error(
        "`{0}` is not an overhead: write a whole number of bytes, which may be negative, for instance 24"
    )]
    Overhead(String),
    /// Not a queue limit.
    #[error(
        "`{0}` is not the length of a queue: write a time up to 1h, for instance 200ms, or a size, for instance 64kb"
    )]
    Queue(String),
    /// A queue limit that may be a time or a size.
    #[error("the length of a queue `{text}` could be a time or a size: write {time} or {size}")]
    AmbiguousQueue {
        /// The text.
        text: String,
        /// Its meaning as a time.
        time: String,
        /// Its meaning as a size.
        size: String,
    },
}

/// A probability per packet, and the correlation of the outcomes of consecutive packets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Odds {
    /// Long-run probability.
    pub probability: Percent,
    /// Lag-1 autocorrelation of the outcomes.
    pub correlation: Percent,
}

impl Odds {
    /// Reads the parameters `probability` and `corr`.
    pub fn of(given: &Given) -> Result<Self, FaultError> {
        Ok(Self { probability: given.required("probability")?, correlation: correlation(given)? })
    }

    /// The parameters as text.
    #[must_use]
    pub fn parameters(self) -> Vec<(&'static str, String)> {
        let mut parameters = vec![("probability", self.probability.to_string())];
        if self.correlation > Percent::default() {
            parameters.push(("corr", self.correlation.to_string()));
        }
        parameters
    }

    /// The probability in the kernel's format.
    #[must_use]
    pub fn chance(self) -> Chance {
        Chance::new(self.probability.fraction(), self.correlation.fraction())
    }
}

/// Defines a fault type around [`Odds`], with the syntax `P[,corr=C]`.
macro_rules! odds {
    ($(#[$meta:meta])* $name:ident, $article:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct $name(pub $crate::spec::fault::Odds);

        impl $crate::spec::parameters::Value for $name {
            type Error = $crate::spec::fault::FaultError;

            const NAME: &'static str = $article;
            const SYNTAX: &'static str = "P[,corr=C] with percentages";
            const EXAMPLE: &'static str = "1% or 1%,corr=25%";
            const PATTERN: Option<&'static str> =
                Some("^[0-9.]+ *%(, *(corr|correlation)=[0-9.]+ *%)?$");
            const PARAMETERS: &'static [$crate::spec::parameters::Parameter] = &[
                $crate::spec::parameters::Parameter::percent(
                    "probability",
                    "How many of the packets, 0% to 100%.",
                ),
                $crate::spec::parameters::CORRELATION,
            ];

            fn from_parameters(given: &$crate::spec::parameters::Given) -> Result<Self, Self::Error> {
                $crate::spec::fault::Odds::of(given).map(Self)
            }

            fn parameters(&self) -> Vec<(&'static str, String)> {
                self.0.parameters()
            }
        }

        $crate::spec::parameters::values!($name);
        $crate::spec::interpolate::interpolate!($name { 0 });
    };
}
pub(super) use odds;

/// The names of all link profiles.
fn profile_names() -> String {
    PROFILES.iter().map(|profile| profile.name).collect::<Vec<_>>().join(", ")
}

/// Every N-th packet, with N of at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Every(pub u32);

impl FromStr for Every {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let number = text.parse().ok().filter(|&n| n >= 1);
        number.map(Self).ok_or_else(|| FaultError::Every(text.into()))
    }
}

impl Display for Every {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Parses the parameter `corr`; defaults to 0.
pub(super) fn correlation(given: &Given) -> Result<Percent, FaultError> {
    let correlation = given.parse("corr")?.unwrap_or_default();
    if correlation == Percent::ALL {
        return Err(FaultError::FullCorrelation(given.text().into()));
    }
    Ok(correlation)
}

/// Converts a percentage to the kernel's format.
pub(super) fn probability(percent: Percent) -> Probability {
    Probability::from_fraction(percent.fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_is_at_least_1() {
        assert_eq!("1".parse(), Ok(Every(1)));
        for text in ["0", "-1", "1.5", "4294967296", ""] {
            assert_eq!(text.parse::<Every>(), Err(FaultError::Every(text.into())));
        }
    }
}

//! The parameters of packet faults, in netem's terms (tc-netem(8)).

use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
};

use thiserror::Error;

use super::value::{Percent, ValueError, percent_pattern, serde_as_text};

/// Why a fault's parameters could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FaultError {
    /// A percentage in it is none.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Not `P[,corr=C]`.
    #[error(
        "`{0}` is not a chance: write P[,corr=C] with percentages, for instance 1% or 1%,corr=25%"
    )]
    Odds(String),
    /// A correlation of 1, with which nothing ever changes.
    #[error(
        "`{0}`: a correlation of 100% would keep the first outcome for ever; write 0% to 99.99%"
    )]
    FullCorrelation(String),
    /// Wrong number of parameters.
    #[error("`{text}` has the wrong number of parameters: write {expected}")]
    Count {
        /// What was given.
        text: String,
        /// What the fault takes.
        expected: &'static str,
    },
    /// Transition probabilities out of one state that sum to more than 1.
    #[error("`{text}`: {sum} must not be more than 100% together")]
    Sum {
        /// What was given.
        text: String,
        /// Which parameters.
        sum: &'static str,
    },
    /// Not a count of packets.
    #[error("`{0}` is not a count of packets: write a whole number from 1 to 4294967295")]
    Every(String),
    /// Not a delay.
    #[error(
        "`{0}` is not a delay: write T[,jitter=J[,dist=D][,corr=C]] or samples=FILE[,corr=C], for instance 50ms or \
         50ms,jitter=10ms,dist=normal,corr=25%"
    )]
    Delay(String),
    /// A delay or a jitter beyond what packets are held for.
    #[error("`{0}` is too long: a delay and its jitter are 0s to 60s each")]
    DelayRange(String),
    /// Says how something is spread that is not.
    #[error(
        "`{0}`: dist and corr are about the jitter; give jitter=J as well, for instance jitter=10ms"
    )]
    NoJitter(String),
    /// Not `P[,corr=C][,gap=N]`.
    #[error(
        "`{0}` is not a reordering: write P[,corr=C][,gap=N], for instance 25% or 25%,corr=50%,gap=5"
    )]
    Reorder(String),
    /// Not `R[,burst=B][,overhead=N][,queue=T|N]`.
    #[error(
        "`{0}` is not a limited rate: write R[,burst=B][,overhead=N][,queue=T|N], for instance 1mbit or \
         1mbit,burst=16kb,overhead=24,queue=200ms"
    )]
    Rate(String),
    /// Not bits a second.
    #[error(
        "`{0}` is not a rate: write a number and a unit as tc does (bit, kbit, mbit, gbit, tbit; kibit, …; bps, \
         kbps, … for bytes a second), for instance 1.5mbit; a bare number is bits a second"
    )]
    BitRate(String),
    /// Bits a second beyond what is limited to.
    #[error("`{0}` is out of range: a rate is 1kbit to 1tbit")]
    BitRateRange(String),
    /// Not a number of bytes.
    #[error(
        "`{0}` is not a size: write a number and a unit as tc does (b, k, kb, m, mb, g, gb, kbit, mbit, gbit), for \
         instance 64kb, up to 4294967295 bytes; a bare number is bytes"
    )]
    Size(String),
    /// Not a number of bytes, which may be negative.
    #[error(
        "`{0}` is not an overhead: write a whole number of bytes, which may be negative, for instance 24"
    )]
    Overhead(String),
    /// Neither a time nor a size.
    #[error(
        "`{0}` is not the length of a queue: write a time up to 1h, for instance 200ms, or a size, for instance 64kb"
    )]
    Queue(String),
    /// A time as well as a size.
    #[error("the length of a queue `{text}` could be a time or a size: write {time} or {size}")]
    AmbiguousQueue {
        /// What was given.
        text: String,
        /// What it is as a time.
        time: String,
        /// What it is as a size.
        size: String,
    },
}

serde_as_text! {
    Odds: "a chance such as 1% or 1%,corr=25%"
        pattern concat!("^", percent_pattern!(), "(, *corr=", percent_pattern!(), ")?$"),
    LossState: "p13,p31,p32,p23,p14 as percentages"
        pattern concat!("^", percent_pattern!(), "(, *", percent_pattern!(), "){0,4}$"),
    LossGemodel: "p,r,1-h,1-k as percentages"
        pattern concat!("^", percent_pattern!(), "(, *", percent_pattern!(), "){0,3}$"),
    Every: "a whole number, 1 or more",
}

/// A chance per packet, with the correlation between one packet's outcome and the next one's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Odds {
    /// How often in the long run.
    pub probability: Percent,
    /// Lag-1 autocorrelation of the outcomes.
    pub correlation: Percent,
}

impl FromStr for Odds {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let Some((probability, rest)) = text.split_once(',') else {
            return Ok(Self { probability: text.parse()?, ..Self::default() });
        };
        let correlation =
            rest.trim().strip_prefix("corr=").ok_or_else(|| FaultError::Odds(text.into()))?;
        Ok(Self {
            probability: probability.parse()?,
            correlation: self::correlation(text, Some(correlation))?,
        })
    }
}

impl Display for Odds {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}", self.probability)?;
        if self.correlation > Percent::default() {
            write!(f, ",corr={}", self.correlation)?;
        }
        Ok(())
    }
}

/// Every N-th packet, N at least 1.
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

/// netem's 4-state Markov model of loss. States: 1 received in a gap, 2 received in a burst, 3 lost in
/// a burst, 4 lost alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossState {
    /// Gap to burst loss.
    pub p13: Percent,
    /// Burst loss to gap; 100% - p13 if left out.
    pub p31: Percent,
    /// Burst loss to received in the burst; 0% if left out.
    pub p32: Percent,
    /// Received in the burst to burst loss; 100% if left out.
    pub p23: Percent,
    /// Gap to a single loss; 0% if left out.
    pub p14: Percent,
}

impl FromStr for LossState {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let given = percents(text, 5, "p13[,p31[,p32[,p23[,p14]]]]")?;
        let or = |index: usize, default| given.get(index).copied().unwrap_or(default);
        let p13 = given[0];
        let state = Self {
            p13,
            p31: or(1, rest_of(p13)),
            p32: or(2, Percent::default()),
            p23: or(3, Percent::ALL),
            p14: or(4, Percent::default()),
        };
        let excess = |a: Percent, b: Percent| a.fraction() + b.fraction() > 1.0 + 1e-9;
        if excess(state.p13, state.p14) {
            return Err(FaultError::Sum { text: text.into(), sum: "p13 and p14" });
        }
        if excess(state.p31, state.p32) {
            return Err(FaultError::Sum { text: text.into(), sum: "p31 and p32" });
        }
        Ok(state)
    }
}

impl Display for LossState {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{},{},{},{},{}", self.p13, self.p31, self.p32, self.p23, self.p14)
    }
}

/// The Gilbert-Elliott model of loss, with netem's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossGemodel {
    /// Good to bad.
    pub p: Percent,
    /// Bad to good; 100% - p if left out.
    pub r: Percent,
    /// 1-h: loss in the bad state; 100% if left out.
    pub loss_in_bad: Percent,
    /// 1-k: loss in the good state; 0% if left out.
    pub loss_in_good: Percent,
}

impl FromStr for LossGemodel {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let given = percents(text, 4, "p[,r[,1-h[,1-k]]]")?;
        let or = |index: usize, default| given.get(index).copied().unwrap_or(default);
        Ok(Self {
            p: given[0],
            r: or(1, rest_of(given[0])),
            loss_in_bad: or(2, Percent::ALL),
            loss_in_good: or(3, Percent::default()),
        })
    }
}

impl Display for LossGemodel {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{},{},{},{}", self.p, self.r, self.loss_in_bad, self.loss_in_good)
    }
}

/// The correlation given in `text`; none if there is none.
pub(super) fn correlation(text: &str, given: Option<&str>) -> Result<Percent, FaultError> {
    let correlation: Percent = given.map(str::parse).transpose()?.unwrap_or_default();
    if correlation == Percent::ALL {
        return Err(FaultError::FullCorrelation(text.into()));
    }
    Ok(correlation)
}

/// Takes `text` apart: what comes first, and the values of those of `names` that follow as `name=value`, in any
/// order. `None` if it is made up otherwise.
pub(super) fn parameters<'a, const N: usize>(
    text: &'a str,
    names: [&str; N],
) -> Option<(&'a str, [Option<&'a str>; N])> {
    let mut parts = text.split(',').map(str::trim);
    let first = parts.next()?;
    let mut values = [None; N];
    for part in parts {
        let (name, value) = part.split_once('=').filter(|(_, value)| !value.is_empty())?;
        let index = names.iter().position(|known| *known == name)?;
        if values[index].replace(value).is_some() {
            return None;
        }
    }
    Some((first, values))
}

/// One to `most` percentages, separated by commas.
fn percents(text: &str, most: usize, expected: &'static str) -> Result<Vec<Percent>, FaultError> {
    let percents: Vec<Percent> =
        text.split(',').map(|part| part.trim().parse()).collect::<Result<_, _>>()?;
    if percents.len() > most {
        return Err(FaultError::Count { text: text.into(), expected });
    }
    Ok(percents)
}

fn rest_of(percent: Percent) -> Percent {
    // Both are within 0 to 1, and so is the difference.
    Percent::from_fraction(1.0 - percent.fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_the_default_of_netem() {
        let state: LossState = "10%".parse().expect("valid");
        assert_eq!(state.to_string(), "10%,90%,0%,100%,0%");
        let gemodel: LossGemodel = "1%".parse().expect("valid");
        assert_eq!(gemodel.to_string(), "1%,99%,100%,0%");
    }

    #[test]
    fn probabilities_out_of_one_state_do_not_exceed_1() {
        assert!("60%,10%,10%,10%,40%".parse::<LossState>().is_ok());
        assert!("60%,10%,10%,10%,41%".parse::<LossState>().is_err());
        assert!("10%,60%,41%".parse::<LossState>().is_err());
    }

    #[test]
    fn odds_take_a_correlation() {
        assert_eq!(
            "1%,corr=25%".parse::<Odds>().map(|odds| odds.to_string()),
            Ok("1%,corr=25%".into())
        );
        assert_eq!("1%".parse::<Odds>().map(|odds| odds.to_string()), Ok("1%".into()));
        for text in ["1%,25%", "1%,corr=", "1%,corr=101%", "1%,corr=100%", ",corr=1%", ""] {
            assert!(text.parse::<Odds>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_is_at_least_1() {
        assert_eq!("1".parse(), Ok(Every(1)));
        for text in ["0", "-1", "1.5", "4294967296", ""] {
            assert_eq!(text.parse::<Every>(), Err(FaultError::Every(text.into())));
        }
    }
}

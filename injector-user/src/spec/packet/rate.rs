//! Rate limits, in tc's syntax (tc(8), tc-netem(8)).

use std::{
    fmt::{self, Display, Formatter},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use injector_common::model::rate as model;

use super::{
    Compiler, PacketFault, PacketInfo,
    trace::{LOOP, overhead, played},
};
use crate::spec::{
    fault::FaultError,
    info::{Effect, Info, Trial},
    interpolate::{Interpolate, interpolate},
    parameters::{Given, Parameter, Value, malformed, values},
    rule::RuleError,
    trace::Played,
    value::{HumanDuration, no_unit},
};

values!(Rate);
interpolate!(Limit { bits, burst, overhead, queue });

/// Minimum default queue limit, in nanoseconds.
const QUEUE_NS: u64 = 100_000_000;

/// Minimum default queue limit in bytes, ten large packets, for slow links.
const QUEUE_BYTES: u64 = 15_000;

/// Length of an Ethernet header.
const ETHERNET_HEADER: i32 = 14;

/// Minimum rate, in bits per second.
const MIN_BITS: f64 = 1e3;

/// Maximum rate, in bits per second.
const MAX_BITS: f64 = 1e12;

/// Maximum queue limit as a time.
const MAX_QUEUE: Duration = Duration::from_hours(1);

/// A rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rate {
    /// A constant rate.
    Constant(Limit),
    /// The opportunities of a trace of mahimahi.
    Trace {
        /// Path of the file.
        path: PathBuf,
        /// Whether the trace starts again at its last time.
        is_loop: bool,
        /// Bytes that the link adds to each packet; may be negative.
        overhead: i32,
        /// Queue limit, above which packets are dropped; `None` for the default.
        queue: Option<Size>,
    },
}

/// A constant rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Rate at which packets leave.
    pub bits: BitRate,
    /// Amount that may leave immediately after an idle time.
    pub burst: Size,
    /// Bytes that the link adds to each packet; may be negative.
    pub overhead: i32,
    /// Queue limit, above which packets are dropped; `None` for the default.
    pub queue: Option<Queue>,
}

/// A rate in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitRate(pub u64);

/// A size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A queue limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Maximum time that a packet waits.
    Time(HumanDuration),
    /// Maximum number of bytes ahead of a packet.
    Size(Size),
}

impl Value for Rate {
    type Error = FaultError;

    const NAME: &'static str = "a limited rate";
    const SYNTAX: &'static str =
        "R[,burst=B][,overhead=N][,queue=T|SIZE] or trace=FILE[,loop][,overhead=N][,queue=SIZE]";
    const EXAMPLE: &'static str =
        "1mbit or 1mbit,burst=16kb,overhead=24,queue=200ms or trace=lte.up,loop";
    const REQUIRED: usize = 0;
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::amount("rate", "Bits a second, 1kbit to 1tbit, in tc's units, such as 1.5mbit."),
        Parameter::new(
            "trace",
            "A packet-delivery trace of mahimahi, instead of `rate`: a time in ms in each line, at which 1500 bytes pass.",
        ),
        LOOP,
        Parameter::amount(
            "burst",
            "Bytes that leave at once after a pause, such as 16kb; default 0.",
        ),
        Parameter::new("overhead", "Bytes added to each packet's length; may be negative."),
        Parameter::amount(
            "queue",
            "Length of the queue as a time, such as 200ms, or a size, such as 64kb; packets beyond it are dropped. A trace requires a size.",
        ),
    ];

    fn from_parameters(given: &Given) -> Result<Self, FaultError> {
        if let Some(path) = given.get("trace") {
            if given.has("rate") || given.has("burst") {
                return Err(malformed::<Self>(given.text()).into());
            }
            return Ok(Self::Trace {
                path: path.into(),
                is_loop: given.has("loop"),
                overhead: overhead(given)?,
                queue: given.parse("queue")?,
            });
        }
        if given.has("loop") || !given.has("rate") {
            return Err(malformed::<Self>(given.text()).into());
        }
        Ok(Self::Constant(Limit {
            bits: given.required("rate")?,
            burst: given.parse("burst")?.unwrap_or_default(),
            overhead: overhead(given)?,
            queue: given.parse("queue")?,
        }))
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let limit = match self {
            Self::Constant(limit) => limit,
            Self::Trace { path, is_loop, overhead, queue } => {
                let mut parameters = vec![("trace", path.display().to_string())];
                parameters.extend(played(*is_loop, *overhead, *queue));
                return parameters;
            }
        };
        let mut parameters = vec![("rate", limit.bits.to_string())];
        if limit.burst > Size::default() {
            parameters.push(("burst", limit.burst.to_string()));
        }
        if limit.overhead != 0 {
            parameters.push(("overhead", limit.overhead.to_string()));
        }
        match limit.queue {
            Some(Queue::Time(time)) => parameters.push(("queue", time.to_string())),
            Some(Queue::Size(size)) => parameters.push(("queue", size.to_string())),
            None => {}
        }
        parameters
    }
}

impl Interpolate for Rate {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        match (self, to) {
            (Self::Constant(from), Self::Constant(to)) => {
                from.between(to, part).map(Self::Constant)
            }
            _ => (self == to).then(|| self.clone()),
        }
    }
}

impl PacketFault for Rate {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "rate",
            instead: "tc qdisc add dev IF root netem rate 1mbit, for all sent packets of an interface",
            value: "R[,burst=B][,overhead=N][,queue=T|SIZE]|trace=F[,loop][,queue=SIZE]",
            placeholder: "R[,...]",
            help: "Limit the rate to R in each direction",
            detail: "R is 1kbit to 1tbit; units are tc's: 1.5mbit, 100kbps (bytes a second). After a pause, B bytes \
                     leave at once (default 0). N bytes are added to each packet's length. Packets that would wait \
                     longer than the queue limit (a time such as 200ms, or a size such as 64kb) are dropped; by \
                     default 100ms or the time that 15,000 bytes take, whichever is longer. With trace=F, packets leave \
                     as in mahimahi: each line of the file F is a time in ms at which 1,500 bytes of IP packets may \
                     leave; with loop, the trace starts again at its last time. down=...,up=... gives one for \
                     received and one for sent packets.",
            examples: &["1mbit", "1mbit,queue=200ms", "64kbit,burst=16kb,overhead=24"],
            trial: Some(Trial {
                options: "--rate 80kbit --direction egress",
                // Two packets of 1,000 bytes are ahead, at 10,000 bytes per second.
                effect: Effect::Late(3, Duration::from_millis(190)),
            }),
        },
        holds: true,
        ..PacketInfo::DEFAULT
    };

    fn compile(rate: &Self, compiler: &mut Compiler) -> Result<(), RuleError> {
        match rate {
            Self::Constant(limit) => compiler.impairment.hold().rate = limit.compile(),
            Self::Trace { path, is_loop, overhead, queue } => {
                let table = compiler.files.opportunities(path, *is_loop)?;
                let queue = queue.map(|queue| queue.0);
                // Opportunities are for the bytes of IP packets.
                let overhead = overhead.saturating_sub(ETHERNET_HEADER);
                compiler.impairment.play(Played { table, queue, overhead });
            }
        }
        Ok(())
    }
}

impl Limit {
    /// The rate in the kernel's format.
    fn compile(&self) -> model::Rate {
        let link = model::Rate::new(self.bits.0, self.burst.0, 0, self.overhead);
        let queue_ns = match self.queue {
            Some(Queue::Time(time)) => time.nanoseconds(),
            Some(Queue::Size(size)) => link.time_of(size.0),
            None => link.time_of(QUEUE_BYTES).max(QUEUE_NS),
        };
        model::Rate { queue_ns, ..link }
    }
}

impl Interpolate for Queue {
    fn between(&self, to: &Self, part: f64) -> Option<Self> {
        match (self, to) {
            (Self::Time(from), Self::Time(to)) => from.between(to, part).map(Self::Time),
            (Self::Size(from), Self::Size(to)) => from.between(to, part).map(Self::Size),
            _ => None,
        }
    }
}

/// Whether `text` is a number of 0 or more without a unit.
fn is_number(text: &str) -> bool {
    number_and_unit(text).is_some_and(|(_, unit)| unit.is_empty())
}

/// Splits a number of 0 or more from its unit, which is returned in lower case.
fn number_and_unit(text: &str) -> Option<(f64, String)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim().to_ascii_lowercase()))
}

impl FromStr for BitRate {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let bits = number_and_unit(text).and_then(|(number, unit)| {
            let bits = unit.strip_suffix("bit").or_else(|| unit.strip_suffix("bit/s"));
            let bytes = || unit.strip_suffix("bps");
            let (prefix, scale) = match (bits, bytes()) {
                (Some(prefix), _) => (prefix, 1.0),
                (None, Some(prefix)) => (prefix, 8.0),
                (None, None) => return None,
            };
            let factor: f64 = match prefix {
                "" => 1.0,
                "k" => 1e3,
                "m" => 1e6,
                "g" => 1e9,
                "t" => 1e12,
                "ki" => 1024.0,
                "mi" => 1024.0 * 1024.0,
                "gi" => 1024.0 * 1024.0 * 1024.0,
                "ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
                _ => return None,
            };
            Some(number * factor * scale)
        });
        let bits = bits.ok_or_else(|| {
            if is_number(text) {
                let meant = format!("{text}kbit, or {text}mbit");
                no_unit(text, meant).into()
            } else {
                FaultError::BitRate(text.into())
            }
        })?;
        if (MIN_BITS..=MAX_BITS).contains(&bits) {
            Ok(Self(bits.round() as u64))
        } else {
            Err(FaultError::BitRateRange(text.into()))
        }
    }
}

impl Display for BitRate {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let units = [
            (1_000_000_000_000, "tbit"),
            (1_000_000_000, "gbit"),
            (1_000_000, "mbit"),
            (1000, "kbit"),
        ];
        in_units(f, self.0, &units, "bit")
    }
}

impl FromStr for Size {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let bytes = number_and_unit(text).and_then(|(number, unit)| {
            let factor = match unit.as_str() {
                "b" => 1.0,
                "k" | "kb" => 1024.0,
                "m" | "mb" => 1024.0 * 1024.0,
                "g" | "gb" => 1024.0 * 1024.0 * 1024.0,
                "kbit" => 1024.0 / 8.0,
                "mbit" => 1024.0 * 1024.0 / 8.0,
                "gbit" => 1024.0 * 1024.0 * 1024.0 / 8.0,
                _ => return None,
            };
            // Truncate to whole bytes, as tc does.
            let bytes = (number * factor).floor();
            (bytes <= f64::from(u32::MAX)).then_some(bytes as u64)
        });
        bytes.map(Self).ok_or_else(|| {
            if is_number(text) {
                no_unit(text, format!("{text}b for bytes, or {text}kb")).into()
            } else {
                FaultError::Size(text.into())
            }
        })
    }
}

impl Display for Size {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        in_units(f, self.0, &[(1 << 30, "gb"), (1 << 20, "mb"), (1 << 10, "kb")], "b")
    }
}

/// Writes a number in the first of `units` of which it is a multiple, or else in `unit`.
fn in_units(f: &mut Formatter, number: u64, units: &[(u64, &str)], unit: &str) -> fmt::Result {
    let fits = |&&(factor, _): &&(u64, &str)| number != 0 && number.is_multiple_of(factor);
    let &(factor, unit) = units.iter().find(fits).unwrap_or(&(1, unit));
    write!(f, "{}{unit}", number / factor)
}

impl FromStr for Queue {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let time = text.parse().ok().filter(|time: &HumanDuration| time.0 <= MAX_QUEUE);
        match (time, text.parse::<Size>().ok()) {
            (Some(time), None) => Ok(Self::Time(time)),
            (None, Some(size)) => Ok(Self::Size(size)),
            // The suffix `m` may mean minutes or mebibytes.
            (Some(time), Some(size)) => Err(FaultError::AmbiguousQueue {
                text: text.into(),
                time: time.to_string(),
                size: size.to_string(),
            }),
            (None, None) if is_number(text) => {
                Err(no_unit(text, format!("{text}ms for a time, or {text}kb for a size")).into())
            }
            (None, None) => Err(FaultError::Queue(text.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_parse_as_tc_users_write_them() {
        for (text, bits) in [
            ("1000bit", 1000),
            ("1kbit", 1000),
            ("1.5mbit", 1_500_000),
            ("1Mbit", 1_000_000),
            ("1Mbit/s", 1_000_000),
            ("100 Mbit/s", 100_000_000),
            ("1gbit", 1_000_000_000),
            ("1tbit", 1_000_000_000_000),
            ("1kibit", 1024),
            ("1Mibit", 1 << 20),
            ("1Gibit", 1 << 30),
            ("125bps", 1000),
            ("1kbps", 8000),
            ("1MBps", 8_000_000),
            ("1gbps", 8_000_000_000),
            ("1KiBps", 8192),
        ] {
            assert_eq!(text.parse(), Ok(BitRate(bits)), "{text}");
        }
        for text in ["999bit", "1tibit", "1.001tbit", "1000gbps", "0bit", "0.9kbit"] {
            assert_eq!(text.parse::<BitRate>(), Err(FaultError::BitRateRange(text.into())));
        }
        for text in [
            "",
            "bit",
            "mbit",
            "-1mbit",
            "1e6",
            "inf",
            "1mb",
            "1xbit",
            "1bps/s",
            "1.2.3mbit",
            "1mbit/",
        ] {
            assert_eq!(text.parse::<BitRate>(), Err(FaultError::BitRate(text.into())));
        }
        let error = "1.5".parse::<BitRate>().expect_err("no unit").to_string();
        assert_eq!(error, "`1.5` has no unit: write 1.5kbit, or 1.5mbit");
    }

    #[test]
    fn sizes_parse_as_tc_users_write_them() {
        for (text, bytes) in [
            ("0b", 0),
            ("1500b", 1500),
            ("16k", 16_384),
            ("16KB", 16_384),
            ("1.5kb", 1536),
            ("1mb", 1 << 20),
            ("2g", 2 << 30),
            ("8kbit", 1024),
            ("1mbit", 1 << 17),
            ("4294967295b", u64::from(u32::MAX)),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "kb", "-1", "1tb", "4gb", "1e3", "4294967296b", "1 2"] {
            assert_eq!(text.parse::<Size>(), Err(FaultError::Size(text.into())), "{text}");
        }
        let error = "1500".parse::<Size>().expect_err("no unit").to_string();
        assert_eq!(error, "`1500` has no unit: write 1500b for bytes, or 1500kb");
    }

    #[test]
    fn a_queue_is_a_time_or_a_size_but_not_both() {
        for (text, milliseconds) in [("200ms", 200), ("1.5s", 1500), ("0s", 0), ("1h", 3_600_000)] {
            assert_eq!(
                text.parse(),
                Ok(Queue::Time(HumanDuration(Duration::from_millis(milliseconds))))
            );
        }
        for (text, bytes) in [("0b", 0), ("1500b", 1500), ("64kb", 65_536), ("1mb", 1 << 20)] {
            assert_eq!(text.parse(), Ok(Queue::Size(Size(bytes))), "{text}");
        }
        let error = "1m".parse::<Queue>().expect_err("ambiguous").to_string();
        assert!(error.contains("60s") && error.contains("1mb"), "{error}");
        for text in ["", "-1ms", "61h", "1tb", "5%", "ms"] {
            assert_eq!(text.parse::<Queue>(), Err(FaultError::Queue(text.into())), "{text}");
        }
        let error = "200".parse::<Queue>().expect_err("no unit").to_string();
        assert_eq!(error, "`200` has no unit: write 200ms for a time, or 200kb for a size");
    }

    #[test]
    fn limited_rates_print_as_they_were_written() {
        for text in [
            "1kbit",
            "1001bit",
            "1500kbit",
            "1tbit",
            "1mbit,burst=16kb",
            "1mbit,burst=1500b,overhead=-4,queue=200ms",
            "1mbit,overhead=24,queue=64kb",
            "1mbit,queue=0b",
            "1mbit,queue=0s",
            "1mbit,queue=3gb",
            "trace=lte.up",
            "trace=a=b c,loop,overhead=4,queue=64kb",
        ] {
            assert_eq!(text.parse::<Rate>().map(|rate| rate.to_string()), Ok(text.into()));
        }
        let printed =
            "1000kbit, queue=1000us ,overhead=+0".parse::<Rate>().map(|rate| rate.to_string());
        assert_eq!(printed, Ok("1mbit,queue=1ms".into()));
    }

    #[test]
    fn wrong_limited_rates_are_refused_by_what_is_wrong() {
        let error = |text: &str| text.parse::<Rate>().expect_err(text);
        for text in
            ["1mbit,16kb", "1mbit,burst=", "1mbit,burst=1,burst=2", "1mbit,limit=5", "1mbit,"]
        {
            assert_eq!(error(text), malformed::<Rate>(text).into());
        }
        assert_eq!(error(""), FaultError::BitRate(String::new()));
        for text in ["trace=", "trace=a,burst=1", "1mbit,loop", "1mbit,trace=a", "trace=a,"] {
            assert_eq!(error(text), malformed::<Rate>(text).into());
        }
        assert_eq!(error("trace=a,queue=1s"), FaultError::Size("1s".into()));
        assert_eq!(error("10bit"), FaultError::BitRateRange("10bit".into()));
        assert_eq!(error("1mbit,burst=1s"), FaultError::Size("1s".into()));
        assert_eq!(error("1mbit,overhead=1kb"), FaultError::Overhead("1kb".into()));
        assert_eq!(error("1mbit,queue=x"), FaultError::Queue("x".into()));
    }
}

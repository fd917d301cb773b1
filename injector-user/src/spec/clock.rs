//! Clock faults, as specified.

use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use injector_common::model::clock::Clock;
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    info::{Effect, Info, Trial, fault_spec},
    interpolate::{Difference, Interpolate as _, interpolate},
    packet::Field as _,
    parameters::{Given, Parameter, Value, values},
    value::{HumanDuration, ValueError, no_unit},
};

/// Maximum clock offset in either direction. The kernel's own clocks end in 2262.
pub const FURTHEST: SignedDuration = SignedDuration::from_hours(100 * 365 * 24);

/// Maximum drift in ppm: a clock runs up to 10 times as fast.
const FASTEST_PPM: f64 = 9e6;

/// Minimum interval between steps.
const MIN_PERIOD: Duration = Duration::from_micros(1);

/// Why a clock fault is invalid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClockError {
    /// A duration could not be parsed.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Not an offset.
    #[error(
        "`{0}` is not an offset: write a signed duration (+1h, -500ms), or a time as RFC 3339 has it behind an @ \
         (@2038-01-19T03:14:00Z)"
    )]
    Offset(String),
    /// An offset is out of range.
    #[error(
        "`{0}` is too far off: clocks can be set off by 100 years of 365 days in either direction"
    )]
    OffsetRange(String),
    /// Not a set of clocks.
    #[error(
        "`{0}` is not a clock: write realtime, monotonic, boottime, tai or all, several with + between them"
    )]
    Clocks(String),
    /// Not a drift.
    #[error(
        "`{0}` is not a drift: write millionths (ppm), negative if the clock is to run slow, for instance 200ppm"
    )]
    Drift(String),
    /// A drift is out of range: the clock would run backward or too fast.
    #[error(
        "`{0}` is out of range: a drift is above -1000000ppm (the clock stands) and up to 9000000ppm"
    )]
    DriftRange(String),
    /// A slew without an offset.
    #[error("`{0}`: slew is the time in which an offset is reached; the offset is 0")]
    NothingToSlew(String),
    /// An interval between steps is too short.
    #[error("`{0}` is too short: steps come 1us apart at the least")]
    Period(String),
    /// Mutually exclusive steps.
    #[error("--clock-jump, --clock-strobe and --clock-freeze exclude each other")]
    Steps,
    /// A frozen clock with drift or slew.
    #[error(
        "--clock-freeze goes with an offset, but not with drift or slew, as a clock that stands does neither"
    )]
    FrozenDrift,
    /// A clock selection without a fault.
    #[error(
        "--clock says which clocks, but not what to change: give an offset, a drift, or one of --clock-jump, --clock-strobe, --clock-freeze"
    )]
    NoFault,
    /// A permission to step back without a fault that it applies to.
    #[error("--allow-backward goes with --clock, --clock-jump or --clock-strobe")]
    NothingAllowed,
    /// A steady clock would step back.
    #[error(
        "this would set the {clocks} clock back {when}, which programs do not expect of it: leave it out of clock=, or \
         give --allow-backward to test that"
    )]
    Backward {
        /// The clocks.
        clocks: &'static str,
        /// When they would step back.
        when: &'static str,
    },
}

values!(Shift, Jump, Strobe);
interpolate! {
    Shift { offset, clocks, drift_ppm, slew }
    Jump { offset, at, every }
    Strobe { offset, period }
}

/// A clock offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// A relative offset.
    By(SignedDuration),
    /// The value of the realtime clock at the start.
    To(Timestamp),
}

impl Offset {
    /// The offset in nanoseconds, if the faults start when the true realtime clock reads
    /// `realtime_ns`.
    #[must_use]
    pub fn nanoseconds(self, realtime_ns: i64) -> i64 {
        let ns = match self {
            Self::By(offset) => offset.as_nanos(),
            Self::To(time) => time.as_nanosecond() - i128::from(realtime_ns),
        };
        ns as i64
    }

    const fn is_zero(self) -> bool {
        matches!(self, Self::By(offset) if offset.is_zero())
    }
}

impl FromStr for Offset {
    type Err = ClockError;

    fn from_str(text: &str) -> Result<Self, ClockError> {
        let malformed = || ClockError::Offset(text.into());
        let far = || ClockError::OffsetRange(text.into());
        if let Some(time) = text.strip_prefix('@') {
            let time: Timestamp = time.parse().map_err(|_| malformed())?;
            // Limits the clock to the range 1870 to 2169, whatever the true time is.
            let (first, last) =
                (Timestamp::UNIX_EPOCH - FURTHEST, Timestamp::UNIX_EPOCH + 2 * FURTHEST);
            return if time < first || time > last { Err(far()) } else { Ok(Self::To(time)) };
        }
        let (is_negative, length) = match text.strip_prefix('-') {
            Some(length) => (true, length),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        // `parse` would also accept a second sign, and "ago".
        if !length.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return Err(malformed());
        }
        let length: SignedDuration = length.parse().map_err(|_| {
            if length.parse::<f64>().is_ok() {
                no_unit(text, format!("{text}s for seconds, or {text}ms")).into()
            } else {
                malformed()
            }
        })?;
        if length.is_negative() {
            return Err(malformed());
        }
        if length > FURTHEST {
            return Err(far());
        }
        Ok(Self::By(if is_negative { -length } else { length }))
    }
}

impl Display for Offset {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::By(offset) => {
                let sign = if offset.is_negative() { '-' } else { '+' };
                write!(f, "{sign}{}", HumanDuration(offset.unsigned_abs()))
            }
            Self::To(time) => write!(f, "@{time}"),
        }
    }
}

/// A selection of clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// `CLOCK_REALTIME`.
    pub realtime: bool,
    /// `CLOCK_MONOTONIC`, including `CLOCK_MONOTONIC_RAW`.
    pub monotonic: bool,
    /// `CLOCK_BOOTTIME`.
    pub boottime: bool,
    /// `CLOCK_TAI`.
    pub tai: bool,
}

impl Clocks {
    const NONE: Self = Self { realtime: false, monotonic: false, boottime: false, tai: false };
    const ALL: Self = Self { realtime: true, monotonic: true, boottime: true, tai: true };

    /// Whether `clock` is selected.
    #[must_use]
    pub const fn has(self, clock: Clock) -> bool {
        match clock {
            Clock::Realtime => self.realtime,
            Clock::Monotonic | Clock::MonotonicRaw => self.monotonic,
            Clock::Boottime => self.boottime,
            Clock::Tai => self.tai,
        }
    }

    /// Display name of the selected clocks that normally never step back.
    const fn steady(self) -> Option<&'static str> {
        match (self.monotonic, self.boottime) {
            (true, true) => Some("monotonic and the boottime"),
            (true, false) => Some("monotonic"),
            (false, true) => Some("boottime"),
            (false, false) => None,
        }
    }
}

impl Default for Clocks {
    fn default() -> Self {
        Self { realtime: true, ..Self::NONE }
    }
}

impl FromStr for Clocks {
    type Err = ClockError;

    fn from_str(text: &str) -> Result<Self, ClockError> {
        text.split('+').try_fold(Self::NONE, |clocks, name| {
            Ok(match name.trim() {
                "realtime" => Self { realtime: true, ..clocks },
                "monotonic" => Self { monotonic: true, ..clocks },
                "boottime" => Self { boottime: true, ..clocks },
                "tai" => Self { tai: true, ..clocks },
                "all" => Self::ALL,
                _ => return Err(ClockError::Clocks(text.into())),
            })
        })
    }
}

impl Display for Clocks {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("all");
        }
        let names = [
            (self.realtime, "realtime"),
            (self.monotonic, "monotonic"),
            (self.boottime, "boottime"),
            (self.tai, "tai"),
        ];
        let names: Vec<&str> =
            names.into_iter().filter_map(|(is, name)| is.then_some(name)).collect();
        f.write_str(&names.join("+"))
    }
}

/// An offset and rate change of clocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shift {
    /// The offset.
    pub offset: Offset,
    /// The affected clocks.
    pub clocks: Clocks,
    /// Drift in ppm; positive values run fast.
    pub drift_ppm: f64,
    /// Time over which the offset is reached; 0 applies it immediately.
    pub slew: HumanDuration,
}

impl Default for Shift {
    fn default() -> Self {
        Self {
            offset: Offset::By(SignedDuration::ZERO),
            clocks: Clocks::default(),
            drift_ppm: 0.0,
            slew: HumanDuration::default(),
        }
    }
}

impl Value for Shift {
    type Error = ClockError;

    const NAME: &'static str = "a clock fault";
    const SYNTAX: &'static str = "OFFSET[,clock=CLOCKS][,drift=PPM][,slew=T]";
    const EXAMPLE: &'static str = "+1h, -500ms,clock=all or 0s,drift=200ppm";
    const REQUIRED: usize = 0;
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::amount(
            "offset",
            "How far clocks are set off, such as +1h, or the time that they show, such as @2038-01-19T03:14:00Z.",
        ),
        CLOCKS,
        Parameter::amount(
            "drift",
            "How much too fast clocks run, in millionths, such as 200ppm; may be negative.",
        ),
        Parameter::amount("slew", "The time in which the offset is reached; at once if left out."),
    ];

    fn from_parameters(given: &Given) -> Result<Self, ClockError> {
        let zero = Offset::By(SignedDuration::ZERO);
        let shift = Self {
            offset: given.parse("offset")?.unwrap_or(zero),
            clocks: given.parse("clock")?.unwrap_or_default(),
            drift_ppm: given.get("drift").map_or(Ok(0.0), parse_drift)?,
            slew: given.parse("slew")?.unwrap_or_default(),
        };
        if given.has("slew") && shift.offset.is_zero() {
            return Err(ClockError::NothingToSlew(given.text().into()));
        }
        Ok(shift)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = vec![("offset", self.offset.to_string())];
        if self.clocks != Clocks::default() {
            parameters.push(("clock", self.clocks.to_string()));
        }
        if self.drift_ppm != 0.0 {
            parameters.push(("drift", format!("{}ppm", self.drift_ppm)));
        }
        if !self.slew.0.is_zero() {
            parameters.push(("slew", self.slew.to_string()));
        }
        parameters
    }
}

impl ClockFaultPart for Shift {
    const INFO: Info = Info {
        name: "clock",
        instead: "faketime(1) of libfaketime, for programs that are linked dynamically",
        value: "OFFSET[,clock=CLOCKS][,drift=PPM][,slew=T]",
        placeholder: "OFFSET[,...]",
        help: "Offset the clocks, for instance by +1h",
        detail: "Or set them, for instance to @2038-01-19T03:14:00Z. CLOCKS are realtime (the default), monotonic, boottime, tai or all, several with + between them; drift=200ppm \
                 makes them run too fast by 200 millionths, drift=-200ppm too slow; with slew the offset is reached little by little.",
        examples: &["+1h", "-500ms,clock=all", "+0s,drift=200ppm", "+1s,slew=10s"],
        trial: Some(Trial { options: "--clock +1h", effect: Effect::Process }),
    };
}

const CLOCKS: Parameter = Parameter::new(
    "clock",
    "Which clocks: realtime (default), monotonic, boottime, tai or all, several with + between them.",
);

fn parse_drift(text: &str) -> Result<f64, ClockError> {
    let malformed = || ClockError::Drift(text.into());
    let stripped = text.strip_suffix("ppm");
    let number = stripped.unwrap_or(text).trim();
    // `parse` would also accept "inf", "nan" and "1e1".
    if !number.bytes().all(|byte| byte.is_ascii_digit() || b"+-.".contains(&byte)) {
        return Err(malformed());
    }
    let ppm: f64 = number.parse().map_err(|_| malformed())?;
    if stripped.is_none() {
        return Err(no_unit(text, format!("{text}ppm")).into());
    }
    if ppm > -1e6 && ppm <= FASTEST_PPM {
        Ok(ppm)
    } else {
        Err(ClockError::DriftRange(text.into()))
    }
}

/// A sudden offset after a delay, optionally repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump {
    /// The offset of each step.
    pub offset: SignedDuration,
    /// Time from the start to the first step.
    pub at: HumanDuration,
    /// Interval of repetitions; `None` steps once.
    pub every: Option<HumanDuration>,
}

impl Value for Jump {
    type Error = ClockError;

    const NAME: &'static str = "a jump";
    const SYNTAX: &'static str = "OFFSET,at=T[,every=T]";
    const EXAMPLE: &'static str = "-2s,at=10s or +100ms,at=0s,every=1s";
    const REQUIRED: usize = 2;
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::amount("offset", "How far clocks jump, such as -2s."),
        Parameter::amount("at", "When they jump, from the start."),
        Parameter::amount("every", "And again after each such time, 1us or longer."),
    ];

    fn from_parameters(given: &Given) -> Result<Self, ClockError> {
        Ok(Self {
            at: given.required("at")?,
            every: given.get("every").map(parse_period).transpose()?,
            offset: relative(given.get("offset").unwrap_or_default())?,
        })
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let offset = Offset::By(self.offset).to_string();
        let mut parameters = vec![("offset", offset), ("at", self.at.to_string())];
        parameters.extend(self.every.map(|every| ("every", every.to_string())));
        parameters
    }
}

impl ClockFaultPart for Jump {
    const INFO: Info = Info {
        name: "clock-jump",
        value: "OFFSET,at=T[,every=T]",
        placeholder: "OFFSET,at=T[,...]",
        help: "Let the clocks jump by OFFSET",
        detail: "Once, or repeatedly.",
        examples: &["-2s,at=10s", "+100ms,at=0s,every=1s"],
        ..Info::DEFAULT
    };
}

/// An offset that is alternately applied and removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strobe {
    /// The offset.
    pub offset: SignedDuration,
    /// Length of each phase with and without the offset.
    pub period: HumanDuration,
}

impl Value for Strobe {
    type Error = ClockError;

    const NAME: &'static str = "a strobe";
    const SYNTAX: &'static str = "OFFSET,period=T";
    const EXAMPLE: &'static str = "+200ms,period=10ms";
    const REQUIRED: usize = 2;
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::amount("offset", "How far clocks are off, half of the time, such as +200ms."),
        Parameter::amount("period", "For how long they are off, and then right, 1us or longer."),
    ];

    fn from_parameters(given: &Given) -> Result<Self, ClockError> {
        let [offset, period] = ["offset", "period"].map(|name| given.get(name).unwrap_or_default());
        Ok(Self { offset: relative(offset)?, period: parse_period(period)? })
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let offset = Offset::By(self.offset).to_string();
        vec![("offset", offset), ("period", self.period.to_string())]
    }
}

impl ClockFaultPart for Strobe {
    const INFO: Info = Info {
        name: "clock-strobe",
        value: "OFFSET,period=T",
        help: "Alternate true time and an offset",
        examples: &["+200ms,period=10ms"],
        ..Info::DEFAULT
    };
}

/// Freezes clocks.
#[derive(Clone, Copy, Debug)]
pub struct Freeze;

impl ClockFaultPart for Freeze {
    const INFO: Info = Info { name: "clock-freeze", help: "Stop the clocks", ..Info::DEFAULT };
}

/// Allows steady clocks to step back.
#[derive(Clone, Copy, Debug)]
pub struct AllowBackward;

impl ClockFaultPart for AllowBackward {
    const INFO: Info = Info {
        name: "allow-backward",
        help: "Let monotonic clocks step back",
        detail: "monotonic and boottime never step back by themselves.",
        ..Info::DEFAULT
    };
}

fn parse_period(text: &str) -> Result<HumanDuration, ClockError> {
    let period: HumanDuration = text.parse()?;
    if period.0 < MIN_PERIOD { Err(ClockError::Period(text.into())) } else { Ok(period) }
}

fn relative(text: &str) -> Result<SignedDuration, ClockError> {
    match text.parse()? {
        Offset::By(offset) if !offset.is_zero() => Ok(offset),
        _ => Err(ClockError::Offset(text.into())),
    }
}

/// The table of the parts of a clock fault, in the format of the table of packet faults.
macro_rules! clock_faults {
    ($callback:ident! { $($args:tt)* }) => {
        $callback! { $($args)*
            { #[arg(allow_hyphen_values = true)] clock, Shift, Option<Shift> }
            { #[arg(allow_hyphen_values = true)] clock_jump, Jump, Option<Jump> }
            { #[arg(allow_hyphen_values = true)] clock_strobe, Strobe, Option<Strobe> }
            { clock_freeze, Freeze, bool }
            { allow_backward, AllowBackward, bool }
        }
    };
}

/// A part of a clock fault.
pub trait ClockFaultPart {
    /// Name and help of the option.
    const INFO: Info;
}

clock_faults!(fault_spec! {
    /// Clock faults as written: the options of the command line and the keys of a rule file are these fields.
    ClockSpec by ClockFaultPart of Info, below "Clock faults", [] []
});

/// A validated clock fault.
#[derive(Clone, Debug, PartialEq)]
pub struct ClockFault {
    /// Offset and drift from the start.
    pub shift: Shift,
    /// Steps at later times.
    pub steps: Option<Steps>,
    /// Whether the clocks are frozen.
    pub frozen: bool,
    /// Whether steady clocks may step back.
    allow_backward: bool,
    /// Display name, as written by the user.
    pub name: String,
}

/// Steps of a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steps {
    /// Steps that add up.
    Jump(Jump),
    /// Steps that are alternately applied and undone.
    Strobe(Strobe),
}

impl ClockSpec {
    /// Validates the fault; `None` if there is none.
    pub fn check(&self) -> Result<Option<ClockFault>, ClockError> {
        let shift = self.clock.unwrap_or_default();
        let steps = match (self.clock_jump, self.clock_strobe) {
            (Some(_), Some(_)) => return Err(ClockError::Steps),
            (Some(jump), None) => Some(Steps::Jump(jump)),
            (None, Some(strobe)) => Some(Steps::Strobe(strobe)),
            (None, None) => None,
        };
        if self.clock_freeze && steps.is_some() {
            return Err(ClockError::Steps);
        }
        if self.clock_freeze && (shift.drift_ppm != 0.0 || !shift.slew.0.is_zero()) {
            return Err(ClockError::FrozenDrift);
        }
        let has_fault = steps.is_some()
            || self.clock_freeze
            || !shift.offset.is_zero()
            || shift.drift_ppm != 0.0;
        if !has_fault {
            return match self {
                Self { clock: Some(_), .. } => Err(ClockError::NoFault),
                Self { allow_backward: true, .. } => Err(ClockError::NothingAllowed),
                _ => Ok(None),
            };
        }
        Ok(Some(ClockFault {
            shift,
            steps,
            frozen: self.clock_freeze,
            allow_backward: self.allow_backward,
            name: self.to_string(),
        }))
    }
}

macro_rules! titles {
    ($({ $(#[$attribute:meta])* $field:ident, $fault:ty, $type:ty })*) => {
        impl Display for ClockSpec {
            fn fmt(&self, f: &mut Formatter) -> fmt::Result {
                let mut words: Vec<String> = Vec::new();
                $(if self.$field.given().is_some() {
                    let name = <$fault>::INFO.name;
                    words.push(self.$field.text().map_or(name.into(), |text| format!("{name} {text}")));
                })*
                words.retain(|word| word != AllowBackward::INFO.name);
                f.write_str(&words.join(" "))
            }
        }
    };
}

clock_faults!(titles! {});

impl ClockFault {
    /// Checks that no steady clock steps back at the start, during the fault, or at its end.
    ///
    /// `outlived` tells whether processes may outlive the fault: the end of a positive offset is a
    /// step back.
    pub fn check_backward(&self, realtime_ns: i64, outlived: bool) -> Result<(), ClockError> {
        let Some(clocks) = self.shift.clocks.steady().filter(|_| !self.allow_backward) else {
            return Ok(());
        };
        let offset = self.shift.offset.nanoseconds(realtime_ns);
        let slew = self.shift.slew.0.as_nanos() as f64;
        // A negative slew faster than time itself.
        let is_slewed_back =
            slew > 0.0 && offset as f64 / slew + self.shift.drift_ppm / 1e6 <= -1.0;
        let is_set_back = (slew == 0.0 && offset < 0) || is_slewed_back;
        let (steps_back, steps_ahead) = match self.steps {
            Some(Steps::Jump(jump)) => (jump.offset.is_negative(), !jump.offset.is_negative()),
            Some(Steps::Strobe(_)) => (true, false),
            None => (false, false),
        };
        let is_ahead = offset > 0 || self.shift.drift_ppm > 0.0 || steps_ahead;
        let when = if is_set_back {
            "at the start"
        } else if steps_back {
            "on the way"
        } else if is_ahead && outlived {
            "at the end of the fault"
        } else {
            return Ok(());
        };
        Err(ClockError::Backward { clocks, when })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parameters::malformed;

    #[test]
    fn shifts_print_as_they_were_written() {
        for text in [
            "+3600s",
            "-500ms",
            "+0s,drift=200ppm",
            "+1s,clock=all,drift=-12.5ppm,slew=600s",
            "@2038-01-19T03:14:00Z,clock=realtime+tai",
        ] {
            assert_eq!(text.parse::<Shift>().map(|shift| shift.to_string()), Ok(text.into()));
        }
        for (text, printed) in [
            ("1h", "+3600s"),
            ("drift=5ppm", "+0s,drift=5ppm"),
            ("clock=monotonic+boottime", "+0s,clock=monotonic+boottime"),
            ("-1h30m , clock=tai+realtime", "-5400s,clock=realtime+tai"),
        ] {
            assert_eq!(text.parse::<Shift>().map(|shift| shift.to_string()), Ok(printed.into()));
        }
    }

    #[test]
    fn wrong_shifts_are_refused_by_what_is_wrong() {
        let error = |text: &str| text.parse::<Shift>().expect_err(text);
        for text in ["", "+-1s", "--1s", "+1s ago", "1 parsec", "@yesterday", "@2038-01-19"] {
            assert_eq!(error(text), ClockError::Offset(text.into()), "{text}");
        }
        for text in ["+101y", "@2262-01-01T00:00:00Z", "-2000000h"] {
            let found = error(text);
            let expected = [ClockError::OffsetRange(text.into()), ClockError::Offset(text.into())];
            assert!(expected.contains(&found), "{text}: {found}");
        }
        for (text, number, meant) in [
            ("+1", "+1", "+1s for seconds, or +1ms"),
            ("0", "0", "0s for seconds, or 0ms"),
            ("1s,drift=200", "200", "200ppm"),
        ] {
            assert_eq!(error(text), no_unit(number, meant.into()).into(), "{text}");
        }
        assert_eq!(error("1s,clock=cpu"), ClockError::Clocks("cpu".into()));
        assert_eq!(error("1s,drift=fast"), ClockError::Drift("fast".into()));
        assert_eq!(error("1s,drift=-1000000ppm"), ClockError::DriftRange("-1000000ppm".into()));
        assert_eq!(error("slew=1s"), ClockError::NothingToSlew("slew=1s".into()));
        assert_eq!(error("1s,clok=all"), malformed::<Shift>("1s,clok=all").into());
    }

    #[test]
    fn steps_print_as_they_were_written() {
        for text in ["-2s,at=10s", "+100ms,at=0s,every=1s"] {
            assert_eq!(text.parse::<Jump>().map(|jump| jump.to_string()), Ok(text.into()));
        }
        let strobe = "+200ms,period=10ms";
        assert_eq!(strobe.parse::<Strobe>().map(|strobe| strobe.to_string()), Ok(strobe.into()));
        assert_eq!("1s".parse::<Jump>(), Err(malformed::<Jump>("1s").into()));
        assert!(matches!("0s,at=1s".parse::<Jump>(), Err(ClockError::Offset(_))));
        assert!(matches!("1s,period=10ns".parse::<Strobe>(), Err(ClockError::Period(_))));
    }

    fn fault(clock: &str, jump: Option<&str>, strobe: Option<&str>, freeze: bool) -> ClockFault {
        let spec = ClockSpec {
            clock: Some(clock.parse().expect(clock)),
            clock_jump: jump.map(|jump| jump.parse().expect(jump)),
            clock_strobe: strobe.map(|strobe| strobe.parse().expect(strobe)),
            clock_freeze: freeze,
            allow_backward: false,
        };
        spec.check().expect("valid").expect("a fault")
    }

    #[test]
    fn steady_clocks_are_not_set_back_unless_that_is_allowed() {
        let back = |fault: ClockFault, outlived| {
            let allowed = ClockFault { allow_backward: true, ..fault.clone() };
            assert_eq!(allowed.check_backward(0, outlived), Ok(()));
            fault.check_backward(0, outlived).err().map(|error| match error {
                ClockError::Backward { when, .. } => when,
                error => panic!("{error}"),
            })
        };
        let start = Some("at the start");
        assert_eq!(back(fault("-1h", None, None, false), true), None);
        assert_eq!(back(fault("-1h,clock=all", None, None, false), false), start);
        assert_eq!(back(fault("-1h,clock=all,slew=30m", None, None, false), false), start);
        assert_eq!(back(fault("-1h,clock=all,slew=2h", None, None, false), true), None);
        assert_eq!(back(fault("-1us,clock=boottime", None, None, false), false), start);
        assert_eq!(back(fault("drift=-500000ppm,clock=all", None, None, false), true), None);
        let end = Some("at the end of the fault");
        assert_eq!(back(fault("+1h,clock=all", None, None, false), true), end);
        assert_eq!(back(fault("+1h,clock=all", None, None, false), false), None);
        assert_eq!(back(fault("drift=1ppm,clock=monotonic", None, None, false), true), end);
        assert_eq!(back(fault("clock=monotonic", None, None, true), true), None);
        let way = Some("on the way");
        let monotonic = "clock=monotonic";
        assert_eq!(back(fault(monotonic, Some("-1s,at=1s"), None, false), false), way);
        assert_eq!(back(fault(monotonic, Some("+1s,at=1s"), None, false), false), None);
        assert_eq!(back(fault(monotonic, None, Some("+1s,period=1s"), false), false), way);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let check = |spec: ClockSpec| spec.check();
        let clock = |text: &str| Some(text.parse().expect(text));
        let jump = Some("1s,at=1s".parse().expect("a jump"));
        let strobe = Some("1s,period=1s".parse().expect("a strobe"));
        assert_eq!(check(ClockSpec::default()), Ok(None));
        let spec = ClockSpec { clock: clock("clock=all"), ..ClockSpec::default() };
        assert_eq!(check(spec), Err(ClockError::NoFault));
        let spec = ClockSpec { allow_backward: true, ..ClockSpec::default() };
        assert_eq!(check(spec), Err(ClockError::NothingAllowed));
        let spec = ClockSpec { clock_jump: jump, clock_strobe: strobe, ..ClockSpec::default() };
        assert_eq!(check(spec), Err(ClockError::Steps));
        let spec = ClockSpec { clock_jump: jump, clock_freeze: true, ..ClockSpec::default() };
        assert_eq!(check(spec), Err(ClockError::Steps));
        let spec =
            ClockSpec { clock: clock("drift=1ppm"), clock_freeze: true, ..ClockSpec::default() };
        assert_eq!(check(spec), Err(ClockError::FrozenDrift));
    }
}

//! Values in user input: percentages, durations, addresses, port sets, protocols, TCP flags.
//!
//! Each parses from the notation of tc and Kubernetes, prints in the same notation, and
//! (de)serialises through it, so that the command line and rule files accept the same text.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

use injector_common::packet::{protocol, tcp_flag};
use ipnet::IpNet;
use thiserror::Error;

use super::peer::{self, Peer};

/// Whether a value is the default of its type: the predicate of `skip_serializing_if`.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A value that could not be parsed. Callers add the name of the flag.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ValueError {
    /// Not a percentage.
    #[error("`{0}` is not a percentage: write 0% to 100%, for instance 20% or 0.1%")]
    Percent(String),
    /// A number without a percent sign.
    #[error("`{text}` has no % sign: write {meant}")]
    NoPercentSign {
        /// The text.
        text: String,
        /// The percentages that it may mean.
        meant: String,
    },
    /// Not a value with these parameters.
    #[error("`{text}` is not {name}: write {syntax}, for instance {example}")]
    Malformed {
        /// The text.
        text: String,
        /// Name of the expected value.
        name: &'static str,
        /// Its syntax.
        syntax: &'static str,
        /// Examples.
        example: &'static str,
    },
    /// A fault duration of 0.
    #[error("`{0}` is no time: faults last longer than 0s")]
    NoTime(HumanDuration),
    /// Not a duration.
    #[error(
        "`{0}` is not a duration: write a number and a unit (us, ms, s, m, h), for instance 50ms, 1.5s or 1m30s"
    )]
    HumanDuration(String),
    /// A number without a unit.
    #[error("`{text}` has no unit: write {meant}")]
    NoUnit {
        /// The text.
        text: String,
        /// The values that it may mean.
        meant: String,
    },
    /// Not an address, prefix or host name.
    #[error(
        "`{0}` is not an address: write an IP address, a CIDR prefix (10.0.0.0/8, prefix length 0 to 32; \
         fd00::/64, prefix length 0 to 128), a host name, or one of {forms}",
        forms = peer::forms()
    )]
    Remote(String),
    /// A peer without a name.
    #[error("`{kind}:` has no name: write {kind}:{form}, for instance {kind}:{example}")]
    NoPeerName {
        /// Kind of the peer.
        kind: &'static str,
        /// Form of its name.
        form: &'static str,
        /// Example of a name.
        example: &'static str,
    },
    /// A peer of a kind that does not exist.
    #[error(
        "`{text}`: there is no kind of peer `{kind}`: write {forms}, an IP address, a CIDR prefix or a host name",
        forms = peer::forms()
    )]
    PeerKind {
        /// The text.
        text: String,
        /// The kind.
        kind: String,
    },
    /// A peer that is not a pod.
    #[error("`pod:{0}` is not a pod: write pod:NAMESPACE/NAME, for instance pod:default/web-0")]
    PeerPod(String),
    /// A peer that is not in the cluster.
    #[error("`{kind}:{name}` is not a peer: write {kind}:{form}, for instance {kind}:{example}")]
    ClusterPeer {
        /// Kind of the peer.
        kind: &'static str,
        /// The text behind it.
        name: String,
        /// Form of its name.
        form: &'static str,
        /// Example of a name.
        example: &'static str,
    },
    /// A peer that is not a systemd unit that has processes.
    #[error(
        "`unit:{0}` is not a systemd unit with processes: write unit:NAME, for instance unit:nginx"
    )]
    PeerUnit(String),
    /// A URL as a peer.
    #[error("`{text}` is a URL: write its host, {host}")]
    PeerUrl {
        /// The text.
        text: String,
        /// The host.
        host: String,
    },
    /// A peer with a port.
    #[error(
        "`{text}` has a port: write {host}, and the port as --remote-port {port} (in files, remote-port: {port})"
    )]
    PeerPort {
        /// The text.
        text: String,
        /// The part before the port.
        host: String,
        /// The port.
        port: String,
    },
    /// Not a set of ports.
    #[error(
        "`{0}` is not a set of ports: write ports from 0 to 65535, ranges (8000-8100), lists (80,443) and \
         exclusions (!22)"
    )]
    Ports(String),
    /// The exclusions cover all included ports.
    #[error("the set of ports `{0}` is empty: everything in it is excluded again")]
    NoPorts(String),
    /// Not an IP protocol.
    #[error(
        "`{0}` is not a protocol: write tcp, udp, icmp, icmpv6, sctp, dccp, udplite or a number from 0 to 255"
    )]
    Protocol(String),
    /// Not a set of TCP flags.
    #[error(
        "`{0}` is not a set of TCP flags: write a list of fin, syn, rst, psh, ack, urg, ece, cwr, with ! before \
         those that must not be set, for instance syn,!ack"
    )]
    TcpFlags(String),
}

/// Implements serde through `FromStr` and `Display`. Accepts bare numbers, as YAML parses them.
///
/// With a `pattern`, the schema accepts only text, and a bare number is refused with a reason.
macro_rules! serde_as_text {
    ($($type:ty: $expecting:literal $(pattern $pattern:expr)?),+ $(,)?) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::spec::value::from_text(deserializer, $expecting)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let pattern: [&str; _] = [$($pattern)?];
                $crate::spec::value::text_schema($expecting, pattern.first().copied())
            }
        }
    )+};
}
pub(super) use serde_as_text;

/// The schema of a value that is parsed from text.
pub(super) fn text_schema(description: &str, pattern: Option<&str>) -> schemars::Schema {
    match pattern {
        Some(pattern) => schemars::json_schema!({
            "type": "string", "pattern": pattern, "description": description,
        }),
        None => schemars::json_schema!({
            "type": ["string", "number"], "description": description,
        }),
    }
}

/// Deserialises a value through `FromStr`, from a string or a bare number.
pub(super) fn from_text<'de, T, D>(deserializer: D, expecting: &str) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: serde::Deserializer<'de>,
{
    struct Visitor<'a, T>(&'a str, std::marker::PhantomData<T>);

    impl<T: FromStr<Err: Display>> serde::de::Visitor<'_> for Visitor<'_, T> {
        type Value = T;

        fn expecting(&self, f: &mut Formatter) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<T, E> {
            let words = if value { "yes, on and true" } else { "no, off and false" };
            let hint = format!("unquoted, YAML reads {words} as a boolean");
            match value.to_string().parse::<T>() {
                Ok(_) => Err(E::custom(format!("this is not {}: quote it ({hint})", self.0))),
                Err(error) => Err(E::custom(format!("{error} ({hint})"))),
            }
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }
    }

    deserializer.deserialize_any(Visitor(expecting, std::marker::PhantomData))
}

serde_as_text! {
    Percent: "a percentage such as 20%" pattern PERCENT,
    HumanDuration: "a duration such as 50ms" pattern WITH_UNIT,
    Remote: "an address, a CIDR prefix, a host name or a peer such as container:web",
    PortSet: "ports such as 80,8000-8100,!8080",
    Protocol: "a protocol such as tcp",
    TcpFlags: "TCP flags such as syn,!ack",
}

/// Pattern of a percentage.
pub(super) const PERCENT: &str = "^[0-9.]+ *%$";

/// Pattern of text whose first part has a unit.
pub(super) const WITH_UNIT: &str = "^[^,]*[^-+0-9., ]";

/// The error for a number without a unit, which may be `meant`.
pub(super) fn no_unit(text: &str, meant: String) -> ValueError {
    ValueError::NoUnit { text: text.into(), meant }
}

/// A percentage, stored as a fraction from 0 to 1.
///
/// The % sign is required, because `0.1` could mean 0.1% or 10%.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Percent(f64);

impl Percent {
    /// 100 %.
    pub const ALL: Self = Self(1.0);

    /// Creates a percentage from a fraction, clamped to 0 to 1.
    #[must_use]
    pub const fn from_fraction(fraction: f64) -> Self {
        Self(fraction.clamp(0.0, 1.0))
    }

    /// The fraction, from 0 to 1.
    #[must_use]
    pub const fn fraction(self) -> f64 {
        self.0
    }

    /// The rest up to 100 %, rounded as it is printed.
    #[must_use]
    pub fn complement(self) -> Self {
        Self::from_fraction(rounded(100.0 - rounded(self.0 * 100.0)) / 100.0)
    }
}

impl FromStr for Percent {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::Percent(text.into());
        let percent = percent_number(text, 100.0)?.ok_or_else(error)?;
        if percent > 100.0 { Err(error()) } else { Ok(Self(percent / 100.0)) }
    }
}

/// Parses the number before a % sign; `None` if `text` is not a percentage.
///
/// A number without the sign is an error, which suggests percentages up to `most`.
pub(super) fn percent_number(text: &str, most: f64) -> Result<Option<f64>, ValueError> {
    let trimmed = text.trim();
    let digits = trimmed.strip_suffix('%').unwrap_or(trimmed).trim_end();
    // `parse` would also accept "inf", "nan" and "1e1".
    if !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Ok(None);
    }
    let Ok(number) = digits.parse::<f64>() else { return Ok(None) };
    if trimmed.ends_with('%') {
        return Ok(Some(number));
    }
    let as_fraction = number * 100.0;
    let meant = if number > 0.0 && number <= 1.0 && as_fraction <= most {
        format!("{digits}% (or {}%)", rounded(as_fraction))
    } else {
        format!("{digits}%")
    };
    Err(ValueError::NoPercentSign { text: text.into(), meant })
}

/// Undoes the rounding error of a multiplication or division by 100, so that 0.1% prints as 0.1%.
fn rounded(percent: f64) -> f64 {
    (percent * 1e12).round() / 1e12
}

impl Display for Percent {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}%", rounded(self.0 * 100.0))
    }
}

/// A duration of 0 or more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// The duration in nanoseconds, for the kernel.
    #[must_use]
    pub fn nanoseconds(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Checks that a fault's duration is not 0.
    pub fn more_than_zero(self) -> Result<Self, ValueError> {
        if self.0.is_zero() { Err(ValueError::NoTime(self)) } else { Ok(self) }
    }
}

impl FromStr for HumanDuration {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let is_number = text.trim().parse::<f64>().is_ok();
        let error = || {
            if is_number && !text.trim().starts_with('-') {
                let text = text.trim();
                no_unit(text, format!("{text}ms, or {text}s for seconds"))
            } else {
                ValueError::HumanDuration(text.into())
            }
        };
        let span: jiff::SignedDuration = text.trim().parse().map_err(|_| error())?;
        Duration::try_from(span).map(Self).map_err(|_| error())
    }
}

impl Display for HumanDuration {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        if self.0.is_zero() { f.pad("0s") } else { f.pad(&format!("{:?}", self.0)) }
    }
}

/// Lifetime of faults: a duration greater than 0, or unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// The faults end after this duration.
    For(HumanDuration),
    /// The faults last until they are ended.
    Forever,
}

impl FromStr for Lifetime {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.trim() {
            "forever" => Ok(Self::Forever),
            text => Ok(Self::For(text.parse::<HumanDuration>()?.more_than_zero()?)),
        }
    }
}

/// A peer: an address prefix, or a name whose addresses are looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Remote {
    /// An address or a prefix.
    Net(IpNet),
    /// A name.
    Peer(Peer),
}

impl FromStr for Remote {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self::Net(net.trunc()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address.to_canonical().into()));
        }
        if let Some(peer) = Peer::parse_local(text) {
            return peer.map(Self::Peer);
        }
        let is_label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_name = name.len() <= 253 && name.split('.').all(is_label);
        // A mistyped address must not be looked up as a host name.
        let is_number = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if is_name && !is_number {
            Ok(Self::Peer(Peer::Host(text.into())))
        } else {
            Err(ValueError::Remote(text.into()))
        }
    }
}

impl Display for Remote {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Peer(peer) => peer.fmt(f),
        }
    }
}

/// A set of ports: the included ranges (all ports if there are only exclusions), minus the excluded
/// ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortSet {
    text: String,
    /// Ascending, disjoint and not adjacent.
    ranges: Vec<(u16, u16)>,
}

impl PortSet {
    /// The ports as ascending, disjoint ranges.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u16>> {
        self.ranges.iter().map(|&(first, last)| first..=last)
    }
}

impl FromStr for PortSet {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::Ports(text.into());
        let (mut included, mut excluded) = (Vec::new(), Vec::new());
        for item in text.split(',').map(str::trim) {
            let (ranges, item) = match item.strip_prefix('!') {
                Some(rest) => (&mut excluded, rest),
                None => (&mut included, item),
            };
            let port = |text: &str| {
                // `parse` would also accept "+80".
                let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                digits.then(|| text.parse::<u16>().ok()).flatten().ok_or_else(error)
            };
            let (first, last) = match item.split_once('-') {
                Some((first, last)) => (port(first)?, port(last)?),
                None => (port(item)?, port(item)?),
            };
            if first > last {
                return Err(error());
            }
            ranges.push((u32::from(first), u32::from(last)));
        }
        if included.is_empty() {
            included.push((0, u32::from(u16::MAX)));
        }
        let ranges = subtract(merge(included), &merge(excluded));
        if ranges.is_empty() {
            return Err(ValueError::NoPorts(text.into()));
        }
        Ok(Self {
            text: text.into(),
            ranges: ranges.into_iter().map(|(first, last)| (first as u16, last as u16)).collect(),
        })
    }
}

/// Sorts ranges and merges those that overlap or touch.
fn merge(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// Subtracts `excluded` from `included`. Both must be merged by [`merge`].
fn subtract(included: Vec<(u32, u32)>, excluded: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut left = Vec::new();
    for (mut first, last) in included {
        for &(from, to) in excluded {
            if to < first || from > last {
                continue;
            }
            if from > first {
                left.push((first, from - 1));
            }
            first = to + 1;
        }
        if first <= last {
            left.push((first, last));
        }
    }
    left
}

impl Display for PortSet {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// An IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

const PROTOCOLS: [(&str, u8); 8] = [
    ("tcp", protocol::TCP),
    ("udp", protocol::UDP),
    ("icmp", protocol::ICMP),
    ("icmpv6", protocol::ICMPV6),
    ("ipv6-icmp", protocol::ICMPV6),
    ("sctp", protocol::SCTP),
    ("dccp", protocol::DCCP),
    ("udplite", protocol::UDPLITE),
];

impl FromStr for Protocol {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let name = text.to_ascii_lowercase();
        let named = PROTOCOLS.iter().find(|(known, _)| *known == name).map(|&(_, number)| number);
        named
            .or_else(|| text.parse().ok())
            .map(Self)
            .ok_or_else(|| ValueError::Protocol(text.into()))
    }
}

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match PROTOCOLS.iter().find(|&&(_, number)| number == self.0) {
            Some((name, _)) => name.fmt(f),
            None => self.0.fmt(f),
        }
    }
}

/// TCP flags that must be set, and flags that must be clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags {
    /// Flags that must be set, as in [`tcp_flag`].
    pub set: u8,
    /// Flags to test. Tested flags that are not in `set` must be clear.
    pub mask: u8,
}

impl TcpFlags {
    /// Whether a segment can match both.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        (self.set ^ other.set) & self.mask & other.mask == 0
    }
}

const TCP_FLAGS: [(&str, u8); 8] = [
    ("fin", tcp_flag::FIN),
    ("syn", tcp_flag::SYN),
    ("rst", tcp_flag::RST),
    ("psh", tcp_flag::PSH),
    ("ack", tcp_flag::ACK),
    ("urg", tcp_flag::URG),
    ("ece", tcp_flag::ECE),
    ("cwr", tcp_flag::CWR),
];

impl FromStr for TcpFlags {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::TcpFlags(text.into());
        let mut flags = Self::default();
        for item in text.split(',').map(|item| item.trim().to_ascii_lowercase()) {
            let (clear, name) = match item.strip_prefix('!') {
                Some(name) => (true, name),
                None => (false, item.as_str()),
            };
            let (_, bit) = TCP_FLAGS.iter().find(|(known, _)| *known == name).ok_or_else(error)?;
            if flags.mask & bit != 0 {
                return Err(error());
            }
            flags.mask |= bit;
            if !clear {
                flags.set |= bit;
            }
        }
        Ok(flags)
    }
}

impl Display for TcpFlags {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let mut separator = "";
        for (name, bit) in TCP_FLAGS.iter().filter(|(_, bit)| self.mask & bit != 0) {
            let sign = if self.set & bit == 0 { "!" } else { "" };
            write!(f, "{separator}{sign}{name}")?;
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentages_parse_as_tc_users_write_them() {
        for (text, fraction) in [
            ("0%", 0.0),
            ("20%", 0.2),
            ("20 %", 0.2),
            ("0.1%", 0.001),
            (".5%", 0.005),
            ("100%", 1.0),
        ] {
            assert_eq!(text.parse(), Ok(Percent(fraction)), "{text}");
        }
        for text in ["", "%", "101%", "-1%", "nan", "inf", "1e1", "20%%", "a%", "0x1", "1.2.3"] {
            assert_eq!(text.parse::<Percent>(), Err(ValueError::Percent(text.into())), "{text}");
        }
    }

    #[test]
    fn percentages_have_their_sign() {
        for (text, words) in [
            ("0.1", "write 0.1% (or 10%)"),
            ("0.2", "write 0.2% (or 20%)"),
            ("1", "write 1% (or 100%)"),
            ("20", "write 20%"),
            ("0", "write 0%"),
            ("101", "write 101%"),
        ] {
            let error = text.parse::<Percent>().expect_err(text).to_string();
            assert!(error.ends_with(words), "{text}: {error}");
        }
    }

    #[test]
    fn faults_last_for_more_than_no_time() {
        let second = Lifetime::For(HumanDuration(Duration::from_secs(1)));
        assert_eq!("1s".parse(), Ok(second));
        assert_eq!("forever".parse(), Ok(Lifetime::Forever));
        for text in ["0s", "0", "0ms", "", "ever", "-1s"] {
            assert!(text.parse::<Lifetime>().is_err(), "{text}");
        }
    }

    #[test]
    fn percentages_print_as_they_were_written() {
        for text in ["0%", "20%", "0.1%", "33.333%", "0.0001%", "100%"] {
            let percent: Percent = text.parse().expect("valid");
            assert_eq!(percent.to_string(), text);
        }
    }

    #[test]
    fn durations_parse_as_kubernetes_users_write_them() {
        for (text, milliseconds) in [
            ("50ms", 50),
            ("1.5s", 1500),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("0s", 0),
            ("1000us", 1),
        ] {
            assert_eq!(
                text.parse(),
                Ok(HumanDuration(Duration::from_millis(milliseconds))),
                "{text}"
            );
        }
        for text in ["", "5", "-5s", "5 parsecs", "ms"] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_mistyped_address_is_not_taken_for_a_host_name() {
        for text in
            ["10.0.0.999", "10.0.0.0/33", "fd00::/129", "1.2.3", "", "a b", "-", "a..b", "fd00::g"]
        {
            assert_eq!(text.parse::<Remote>(), Err(ValueError::Remote(text.into())));
        }
    }

    #[test]
    fn remotes_keep_the_prefix_and_lose_the_host_bits() {
        for (text, printed) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("fd00::1", "fd00::1/128"),
            ("fd00::1/64", "fd00::/64"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("db.example.com", "db.example.com"),
        ] {
            assert_eq!(text.parse::<Remote>().map(|remote| remote.to_string()), Ok(printed.into()));
        }
    }

    #[test]
    fn wrong_ports_are_refused() {
        for text in ["", "65536", "-1", "80-", "90-80", "http", "80,,90", "+80", "!", "80 90"] {
            assert_eq!(text.parse::<PortSet>(), Err(ValueError::Ports(text.into())), "{text}");
        }
        assert_eq!("80,!80".parse::<PortSet>(), Err(ValueError::NoPorts("80,!80".into())));
    }

    #[test]
    fn tcp_flags_name_what_is_set_and_what_is_not() {
        assert_eq!("syn,!ack".parse(), Ok(TcpFlags { set: 0x02, mask: 0x12 }));
        for text in ["", "syn,syn", "syn,!syn", "foo"] {
            assert!(text.parse::<TcpFlags>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_port_is_in_the_set_iff_it_is_included_and_not_excluded(
            items in prop::collection::vec((any::<bool>(), 0u16..200, 0u16..40), 1..8),
            probe in 0u16..260,
        ) {
            let text: Vec<String> = items
                .iter()
                .map(|(exclude, first, more)| {
                    format!("{}{}-{}", if *exclude { "!" } else { "" }, first, first + more)
                })
                .collect();
            let contains = |exclude| {
                items.iter().any(|&(e, first, more)| e == exclude && (first..=first + more).contains(&probe))
            };
            let included = contains(false) || items.iter().all(|&(exclude, ..)| exclude);
            let expected = included && !contains(true);
            match text.join(",").parse::<PortSet>() {
                Ok(set) => {
                    prop_assert_eq!(set.ranges().any(|range| range.contains(&probe)), expected);
                    let ranges: Vec<_> = set.ranges().collect();
                    prop_assert!(ranges.windows(2).all(|w| u32::from(*w[0].end()) + 1 < u32::from(*w[1].start())));
                }
                Err(error) => {
                    prop_assert!(matches!(error, ValueError::NoPorts(_)));
                    prop_assert!(!expected);
                }
            }
        }
    }
}

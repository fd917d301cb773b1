//! Named link profiles: the rate, delay and loss of typical access links.

use std::{
    borrow::Cow,
    fmt::{self, Display, Formatter},
    str::FromStr,
    time::Duration,
};

use clap::{ValueEnum, builder::PossibleValue};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    Compiler, PacketFault, PacketInfo,
    delay::DelaySpec,
    loss::Loss,
    rate::{BitRate, Limit, Rate, Size},
    ways::Ways,
};
use crate::spec::{
    fault::{FaultError, Odds},
    info::Info,
    rule::{Direction, RuleError, RuleSpec},
    value::{HumanDuration, Percent},
};

/// A link as its user sees it: `down` is for received packets, `up` for sent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The name.
    pub name: &'static str,
    /// The received direction.
    pub down: Link,
    /// The sent direction.
    pub up: Link,
    /// Where the figures are from.
    pub source: &'static str,
}

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Rate in kbit/s.
    pub rate_kbit: u32,
    /// Delay in ms.
    pub delay_ms: u32,
    /// Lost packets in percent.
    pub loss_percent: u32,
}

/// The profile of a rule, and the faults of the rule with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RuleProfile")]
pub struct Expansion {
    /// The name of the profile.
    #[serde(rename = "name")]
    pub profile: String,
    /// The faults of the rule.
    pub faults: String,
}

const WEBPAGETEST: &str = "WebPageTest, www/settings/connectivity.ini.sample";
const WEBPAGETEST_2015: &str =
    "WebPageTest, www/settings/connectivity.ini.sample of 2015-04-16 (commit 0c6c27a05)";

/// The table of profiles, slowest first: rates down and up in kbit/s, delays down and up in ms, loss in
/// percent, and the source.
pub static PROFILES: &[Profile] = &[
    Profile::new(
        "2g-rural",
        [20, 18],
        [650, 650],
        2,
        "Facebook Augmented Traffic Control, utils/profiles/2G-DevelopingRural.json",
    ),
    Profile::new("2g", [35, 32], rtt(1300), 0, WEBPAGETEST_2015),
    Profile::new("dialup", [49, 30], rtt(120), 0, WEBPAGETEST),
    Profile::new(
        "edge-lossy",
        [240, 200],
        [400, 440],
        1,
        "Facebook Augmented Traffic Control, utils/profiles/Edge-Lossy.json",
    ),
    Profile::new("edge", [240, 200], rtt(840), 0, WEBPAGETEST),
    Profile::new("3g-slow", [780, 330], rtt(200), 0, WEBPAGETEST_2015),
    Profile::new(
        "satellite",
        [1000, 256],
        rtt(600),
        0,
        "Loadero, wiki.loadero.com/test-creation/participant-configuration/network-conditions",
    ),
    Profile::new("dsl", [1500, 384], rtt(50), 0, WEBPAGETEST),
    Profile::new("3g", [1600, 768], rtt(300), 0, WEBPAGETEST),
    Profile::new("3g-fast", [1600, 768], rtt(150), 0, WEBPAGETEST),
    Profile::new("cable", [5000, 1000], rtt(28), 0, WEBPAGETEST),
    Profile::new(
        "4g",
        [9000, 1500],
        rtt(60),
        0,
        "Chrome DevTools \"Fast 4G\", front_end/core/sdk/NetworkManager.ts",
    ),
    Profile::new("fios", [20_000, 5000], rtt(4), 0, WEBPAGETEST),
];

/// The delays of both directions for a source that has only the round-trip time.
const fn rtt(ms: u32) -> [u32; 2] {
    [ms / 2, ms - ms / 2]
}

impl Profile {
    const fn new(
        name: &'static str,
        [down_kbit, up_kbit]: [u32; 2],
        [down_ms, up_ms]: [u32; 2],
        loss_percent: u32,
        source: &'static str,
    ) -> Self {
        Self {
            name,
            down: Link { rate_kbit: down_kbit, delay_ms: down_ms, loss_percent },
            up: Link { rate_kbit: up_kbit, delay_ms: up_ms, loss_percent },
            source,
        }
    }

    /// The round-trip time in ms.
    #[must_use]
    pub const fn rtt_ms(&self) -> u32 {
        self.down.delay_ms + self.up.delay_ms
    }

    /// The value of both directions, or those of each.
    fn ways<T: PartialEq>(&self, value: impl Fn(Link) -> T) -> Ways<T> {
        let (down, up) = (value(self.down), value(self.up));
        if down == up { Ways::Both(up) } else { Ways::Each { down: Some(down), up: Some(up) } }
    }

    fn rate(&self) -> Ways<Rate> {
        self.ways(|link| {
            Rate::Constant(Limit {
                bits: BitRate(u64::from(link.rate_kbit) * 1000),
                burst: Size::default(),
                overhead: 0,
                queue: None,
            })
        })
    }

    fn delay(&self) -> Ways<DelaySpec> {
        self.ways(|link| constant(HumanDuration(Duration::from_millis(link.delay_ms.into()))))
    }

    fn loss(&self) -> Option<Ways<Loss>> {
        let loss = self.ways(|link| {
            let probability = Percent::from_fraction(f64::from(link.loss_percent) / 100.0);
            Loss(Odds { probability, correlation: Percent::default() })
        });
        (self.down.loss_percent + self.up.loss_percent > 0).then_some(loss)
    }

    /// The options that the profile stands for.
    #[must_use]
    pub fn options(&self) -> String {
        let mut options = format!("--rate {} --delay {}", self.rate().text(), self.delay().text());
        if let Some(loss) = self.loss() {
            options = format!("{options} --loss {}", loss.text());
        }
        options
    }

    /// Adds the values of the profile to a rule, except those that the rule has itself.
    pub fn fill(&self, rule: &mut RuleSpec) -> Result<(), RuleError> {
        let direction = rule.direction.unwrap_or_default();
        if rule.rate.is_none() {
            rule.rate = only(self.rate(), direction);
        }
        if let Some(rtt) = rule.rtt {
            // The rates of the directions usually differ, and so each has a rule, to which a
            // round-trip time cannot apply.
            rule.delay = Some(Ways::Both(constant(rtt.half(rule)?)));
            rule.rtt = None;
        } else if rule.delay.is_none() {
            rule.delay = only(self.delay(), direction);
        }
        let has_loss = rule.loss.is_some()
            || rule.loss_every.is_some()
            || rule.loss_state.is_some()
            || rule.loss_gemodel.is_some();
        if !has_loss {
            rule.loss = self.loss().and_then(|loss| only(loss, direction));
        }
        Ok(())
    }
}

/// A delay without jitter.
const fn constant(latency: HumanDuration) -> DelaySpec {
    DelaySpec::Around { latency, jitter: None }
}

/// The values of the directions of a rule.
fn only<T: Clone>(ways: Ways<T>, direction: Direction) -> Option<Ways<T>> {
    if direction == Direction::Both { Some(ways) } else { ways.of(direction) }
}

impl Display for Profile {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl FromStr for Profile {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let known = PROFILES.iter().find(|profile| profile.name == text);
        known.copied().ok_or_else(|| FaultError::Profile(text.into()))
    }
}

impl ValueEnum for Profile {
    fn value_variants<'a>() -> &'a [Self] {
        PROFILES
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name).help(self.options()))
    }
}

impl Serialize for Profile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for Profile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Profile {
    fn schema_name() -> Cow<'static, str> {
        "Profile".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = PROFILES.iter().map(|profile| profile.name).collect();
        json_schema!({"description": "a link profile", "type": "string", "enum": names})
    }
}

impl PacketFault for Profile {
    type Value = Self;

    const INFO: PacketInfo = PacketInfo {
        info: Info {
            name: "profile",
            value: "NAME",
            help: "Rate, delay and loss of a link, such as 3g",
            detail: "Stands for --rate, --delay and --loss by direction: down=... is for received and up=... for sent packets. Each of these options, \
                     and --rtt or another loss model, replaces that value of the profile. `injector profiles` lists all profiles with their \
                     values and sources.",
            examples: &["3g", "cable"],
            ..Info::DEFAULT
        },
        holds: true,
        ..PacketInfo::DEFAULT
    };

    /// The values are in the rule already; see [`Profile::fill`].
    fn compile(_: &Self, _: &mut Compiler) -> Result<(), RuleError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::packet;

    /// The fields of a rule that it has after its profile was added.
    fn filled(yaml: &str) -> serde_json::Value {
        let mut rule: RuleSpec = serde_saphyr::from_str(yaml).expect(yaml);
        let profile = rule.profile.expect(yaml);
        profile.fill(&mut rule).expect(yaml);
        rule.profile = None;
        let json = serde_json::to_value(rule).expect("plain data");
        let given = |(_, value): &(String, serde_json::Value)| {
            !value.is_null() && *value != serde_json::Value::Bool(false)
        };
        json.as_object().expect("an object").clone().into_iter().filter(given).collect()
    }

    #[test]
    fn each_profile_has_the_figures_of_its_source() {
        // Rates in kbit/s, delays in ms, loss in percent: down, up.
        let figures: [(&str, [u32; 2], [u32; 2], u32); 13] = [
            ("2g-rural", [20, 18], [650, 650], 2),
            ("2g", [35, 32], [650, 650], 0),
            ("dialup", [49, 30], [60, 60], 0),
            ("edge-lossy", [240, 200], [400, 440], 1),
            ("edge", [240, 200], [420, 420], 0),
            ("3g-slow", [780, 330], [100, 100], 0),
            ("satellite", [1000, 256], [300, 300], 0),
            ("dsl", [1500, 384], [25, 25], 0),
            ("3g", [1600, 768], [150, 150], 0),
            ("3g-fast", [1600, 768], [75, 75], 0),
            ("cable", [5000, 1000], [14, 14], 0),
            ("4g", [9000, 1500], [30, 30], 0),
            ("fios", [20_000, 5000], [2, 2], 0),
        ];
        assert_eq!(PROFILES.len(), figures.len());
        for (profile, (name, rates, delays, loss)) in PROFILES.iter().zip(figures) {
            assert_eq!(profile.name, name);
            assert!(!profile.source.is_empty(), "{name}");
            let rule = RuleSpec { profile: Some(*profile), ..RuleSpec::default() };
            let rules = rule.check().expect(name);
            let ways = [Direction::Ingress, Direction::Egress];
            assert_eq!(rules.len(), ways.len(), "{name}");
            for (number, (rule, direction)) in rules.iter().zip(ways).enumerate() {
                assert_eq!(rule.matching.direction, direction, "{name}");
                let hold = rule.impairment.hold.expect("it holds packets");
                let ms = u64::from(delays[number]);
                assert_eq!(hold.delay.latency_ns, ms * 1_000_000, "{name}");
                let bits = u64::from(rates[number]) * 1000;
                let rate: Rate = format!("{bits}bit").parse().expect("a rate");
                let expected = RuleSpec { rate: Some(Ways::Both(rate)), ..RuleSpec::default() };
                let expected = expected.check().expect("valid").remove(0).impairment;
                assert_eq!(hold.rate, expected.hold.expect("it holds packets").rate, "{name}");
                let delay = Some(Ways::Both(constant(HumanDuration(Duration::from_millis(ms)))));
                let odds: Loss = format!("{loss}%").parse().expect("a loss");
                let odds = (loss > 0).then_some(Ways::Both(odds));
                let expected = RuleSpec { loss: odds, delay, ..RuleSpec::default() };
                let expected = expected.check().expect("valid").remove(0).impairment;
                assert_eq!(rule.impairment.rule.loss, expected.rule.loss, "{name}");
            }
        }
    }

    #[test]
    fn names_are_found_and_unknown_ones_are_refused_with_a_list() {
        for profile in PROFILES {
            assert_eq!(profile.name.parse(), Ok(*profile));
            let same = PROFILES.iter().filter(|other| other.name == profile.name);
            assert_eq!(same.count(), 1, "{profile}");
        }
        let error = "5g".parse::<Profile>().expect_err("unknown").to_string();
        assert!(error.starts_with("`5g` is not a profile"), "{error}");
        assert!(PROFILES.iter().all(|profile| error.contains(profile.name)), "{error}");
        let error = serde_saphyr::from_str::<RuleSpec>("{profile: 5g}").expect_err("unknown");
        assert!(error.to_string().contains("`5g` is not a profile"), "{error}");
    }

    #[test]
    fn options_replace_the_values_of_the_profile_each_kind_apart() {
        use serde_json::json;

        let rate = "down=1600kbit,up=768kbit";
        for (yaml, expected) in [
            ("{profile: 3g}", json!({"rate": rate, "delay": "150ms"})),
            ("{profile: 3g, loss: 2%}", json!({"rate": rate, "delay": "150ms", "loss": "2%"})),
            ("{profile: 3g, rtt: 50ms}", json!({"rate": rate, "delay": "25ms"})),
            (
                "{profile: 3g, delay: down=10ms, rate: 2mbit}",
                json!({"rate": "2mbit", "delay": "down=10ms"}),
            ),
            (
                "{profile: edge-lossy, loss-every: 3}",
                json!({
                    "rate": "down=240kbit,up=200kbit",
                    "delay": "down=400ms,up=440ms",
                    "loss-every": "3",
                }),
            ),
            (
                "{profile: edge-lossy, direction: egress}",
                json!({"direction": "egress", "rate": "200kbit", "delay": "440ms", "loss": "1%"}),
            ),
        ] {
            assert_eq!(filled(yaml), expected, "{yaml}");
        }
    }

    #[test]
    fn rules_tell_their_profile_and_what_it_stands_for() {
        let check = |yaml: &str| serde_saphyr::from_str::<RuleSpec>(yaml).expect(yaml).check();
        let names = |yaml: &str| -> Vec<String> {
            check(yaml).expect(yaml).into_iter().map(|rule| rule.name).collect()
        };
        assert_eq!(
            names("{profile: 2g-rural, reorder: 1%}"),
            [
                "down: profile 2g-rural, loss 2%, delay 650ms, reorder 1%, rate 20kbit",
                "up: profile 2g-rural, loss 2%, delay 650ms, reorder 1%, rate 18kbit",
            ]
        );
        assert_eq!(
            names("{profile: 3g, direction: ingress}"),
            ["profile 3g, delay 150ms, rate 1600kbit"]
        );
        // Nothing of the profile applies to sent packets.
        assert_eq!(
            names("{profile: 3g, rate: down=1mbit, delay: down=1ms}"),
            ["down: profile 3g, delay 1ms, rate 1mbit"]
        );
        for (yaml, error) in [
            ("{profile: 3g, rtt: 50ms, direction: egress}", packet::rtt::ONE_WAY),
            ("{profile: 3g, rtt: 50ms, delay: 1ms}", packet::rtt::WITH_DELAY),
            ("{profile: 3g, rtt: 121s}", packet::rtt::TOO_LONG),
        ] {
            assert_eq!(check(yaml), Err(RuleError::Fault(error)), "{yaml}");
        }
    }
}

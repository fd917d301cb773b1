//! Packet rules: which packets to match, and what to do with them.

use std::time::Duration;

use clap::{Args, ValueEnum};
use injector_common::{packet::protocol, rule::RULE_CLAMPS};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    distribution::{DistributionError, Files},
    info::fault_spec,
    interpolate::{Difference, Interpolate as _},
    list::{OneOrMany, one_or_many},
    matching::Matching,
    packet::{
        self, Compiler, Field as _, Impairment, PacketFault, PacketInfo, packet_faults,
        profile::Expansion, ways::Ways,
    },
    trace::TraceError,
    value::{HumanDuration, PortSet, Protocol, Remote, TcpFlags, ValueError},
};

/// Why a rule is invalid.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    /// The rule has no fault.
    #[error("no fault was asked for: give at least one of {}", standalone())]
    NoFault,
    /// A remote match beside a partition, which would have no effect.
    #[error("--remote has no effect on --partition, which names its own addresses")]
    RemoteWithPartition,
    /// A TCP-only match or fault with another protocol.
    #[error("--{0} matches TCP only; leave --protocol out or make it tcp")]
    TcpOnly(&'static str),
    /// A port match with a protocol that has no ports.
    #[error("--remote-port and --local-port do not go with --protocol {0}, which has no ports")]
    NoPorts(Protocol),
    /// A fault conflicts with the rest of the rule.
    #[error("{0}")]
    Fault(&'static str),
    /// A value is out of range.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A delay file is invalid.
    #[error(transparent)]
    Distribution(#[from] DistributionError),
    /// A trace is invalid.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// No rules were given.
    #[error("there is no rule in it")]
    NoRules,
    /// Too many rules.
    #[error("there are {0} rules; the most is {max}", max = injector_common::rule::MAX_RULES)]
    TooMany(usize),
    /// A fault that XDP cannot apply.
    #[error("--xdp works on received packets of a whole host: --{0} is not available with it")]
    Xdp(&'static str),
}

/// Error for a rule that names directions by its values and otherwise as well.
pub const ONE_DIRECTION: &str = "down= and up= are the directions of the rule: leave --direction and --rtt out, or give one value";

/// Which way packets go, seen from the faulted host.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Sent packets.
    Egress,
    /// Received packets.
    Ingress,
    /// Sent and received packets.
    #[default]
    Both,
}

packet_faults!(fault_spec! {
    /// A rule as written: the options of the command line and the keys of a rule file are these fields.
    RuleSpec by PacketFault of PacketInfo, below "Faults",
    [
        /// What the rule is called in the output; files only.
        #[arg(skip)]
        pub name: Option<String>,

        /// How long the rule acts, from the start of the run or from the change that brought it; files only.
        #[arg(skip)]
        pub r#for: Option<HumanDuration>,
    ]
    [
        /// egress, ingress or both [default: both]
        ///
        /// The direction of the packets, as seen from the faulted host.
        #[arg(long, value_name = "DIRECTION", hide_possible_values = true, help_heading = "Match")]
        pub direction: Option<Direction>,

        /// Protocol such as tcp, or its number; repeatable
        ///
        /// tcp, udp, icmp, icmpv6, sctp, dccp, udplite, or a number from 0 to 255.
        #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', help_heading = "Match")]
        #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
        #[schemars(with = "OneOrMany<Protocol>")]
        pub protocol: Vec<Protocol>,

        /// Peer address, prefix or name; repeatable
        ///
        /// A name is a host name, container:NAME, pod:NAMESPACE/NAME, unit:NAME, netns:NAME or cgroup:PATH. Its
        /// addresses are followed: host names are looked up every 5 s, the others every second, and all on SIGHUP. With
        /// the agent of a Kubernetes node also pods:NAMESPACE/SELECTOR and service:NAMESPACE/NAME.
        #[arg(long, value_name = "PEER", value_delimiter = ',', help_heading = "Match")]
        #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
        #[schemars(with = "OneOrMany<Remote>")]
        pub remote: Vec<Remote>,

        /// Ports of the peer, such as 80,8000-8100,!8080
        ///
        /// Lists (80,443), ranges (8000-8100) and exclusions (!22).
        #[arg(long, value_name = "PORTS", help_heading = "Match")]
        pub remote_port: Option<PortSet>,

        /// Local ports, in the same form
        #[arg(long, value_name = "PORTS", help_heading = "Match")]
        pub local_port: Option<PortSet>,

        /// TCP flags that are set, or with ! not set
        ///
        /// For instance syn,!ack: the first segment of a connection.
        #[arg(long, value_name = "FLAGS", help_heading = "Match")]
        pub tcp_flags: Option<TcpFlags>,

        /// TCP segments with payload only
        #[arg(long, help_heading = "Match")]
        pub data_only: bool,

        /// IP packets longer than BYTES, header included
        ///
        /// The length is that on the wire, also if the kernel has yet to split the packet, or has merged it. With --loss 100%, a path-MTU black hole:
        /// small packets pass, large ones are dropped.
        #[arg(long, value_name = "BYTES", help_heading = "Match")]
        pub longer_than: Option<u16>,
    ]
});

macro_rules! compile_faults {
    ($({ $(#[$attribute:meta])* $field:ident, $fault:ty, $type:ty })*) => {
        impl RuleSpec {
            /// The given faults with their values as text, in table order.
            fn given(&self) -> Vec<(&'static PacketInfo, Option<String>)> {
                let mut given: Vec<(&'static PacketInfo, _)> = Vec::new();
                $(if self.$field.given().is_some() {
                    given.push((&<$fault>::INFO, self.$field.text()));
                })*
                given
            }

            /// Compiles the rule's faults for the kernel.
            fn compile(&self, files: &mut Files) -> Result<Impairment, RuleError> {
                let impairment = Impairment::default();
                let mut compiler = Compiler { rule: self, files, impairment };
                $(if let Some(value) = self.$field.given() {
                    <$fault>::compile(value, &mut compiler)?;
                })*
                Ok(compiler.impairment)
            }
        }
    };
}

packet_faults!(compile_faults! {});

/// The options of faults that need no other fault.
#[must_use]
pub fn standalone() -> String {
    let faults = FAULTS.iter().filter(|fault| !fault.is_modifier);
    faults.map(|fault| format!("--{}", fault.name)).collect::<Vec<_>>().join(", ")
}

/// A validated rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// Display name.
    pub name: String,
    /// Whether the name was given, instead of made from the faults.
    pub is_named: bool,
    /// Which packets to match.
    pub matching: Matching,
    /// Duration of the rule; `None` lasts until the end of the run.
    pub lasts: Option<HumanDuration>,
    /// What to do with matching packets.
    pub impairment: Impairment,
    /// The profile, if the rule has one.
    pub expansion: Option<Expansion>,
}

impl Rule {
    /// The packets that the rule matches, for people, and what a delay adds to a round trip.
    #[must_use]
    pub fn match_text(&self) -> String {
        let delay_ns = self.impairment.hold.map_or(0, |hold| hold.delay.latency_ns);
        match (self.matching.direction, delay_ns) {
            (Direction::Both, 1..) => {
                let longer = HumanDuration(Duration::from_nanos(2 * delay_ns));
                let packets = self.matching.packets();
                format!("{packets}, each way (a round trip takes {longer} longer)")
            }
            _ => self.matching.to_string(),
        }
    }

    /// The rule with the packets that it matches, for people. `name` may contain more than its name.
    #[must_use]
    pub fn describe(&self, name: &str) -> String {
        let of = if self.is_named { ":" } else { " of" };
        format!("{name}{of} {}", self.match_text())
    }

    /// Whether the rule clamps the MSS of new connections.
    #[must_use]
    pub fn clamps_mss(&self) -> bool {
        self.impairment.rule.flags & RULE_CLAMPS != 0 && self.matching.may_match(protocol::TCP)
    }
}

impl RuleSpec {
    /// Validates the rule. A partition becomes a separate rule before the other faults.
    pub fn check(&self) -> Result<Vec<Rule>, RuleError> {
        self.check_with(&mut Files::default())
    }

    /// Validates one of several rules that share a file cache. Values that differ by direction make
    /// it two rules.
    pub fn check_with(&self, files: &mut Files) -> Result<Vec<Rule>, RuleError> {
        let Some(profile) = self.profile else { return self.check_directions(files) };
        let mut spec = self.clone();
        profile.fill(&mut spec)?;
        spec.check_directions(files)
    }

    /// Validates a rule that has the values of its profile.
    fn check_directions(&self, files: &mut Files) -> Result<Vec<Rule>, RuleError> {
        let differ = self.loss.as_ref().is_some_and(Ways::differ)
            || self.delay.as_ref().is_some_and(Ways::differ)
            || self.rate.as_ref().is_some_and(Ways::differ);
        let traced = match &self.trace {
            Some(trace) => trace.ways(files)?,
            None => Ways::Both(()),
        };
        let is_one = self.direction.unwrap_or_default() != Direction::Both;
        if !differ && (is_one || !traced.differ()) {
            return self.check_one(files);
        }
        if is_one || self.rtt.is_some() {
            return Err(RuleError::Fault(ONE_DIRECTION));
        }
        let mut rules = Vec::new();
        for (way, direction) in [("down", Direction::Ingress), ("up", Direction::Egress)] {
            let mut spec = self.clone();
            spec.direction = Some(direction);
            spec.loss = self.loss.as_ref().and_then(|loss| loss.of(direction));
            spec.delay = self.delay.as_ref().and_then(|delay| delay.of(direction));
            spec.rate = self.rate.as_ref().and_then(|rate| rate.of(direction));
            spec.trace = self.trace.clone().filter(|_| traced.of(direction).is_some());
            if spec.given().iter().all(|(info, _)| info.is_modifier || is_profile(info)) {
                continue;
            }
            let title = |rule: Rule| match &self.name {
                Some(_) => rule,
                None => Rule { name: format!("{way}: {}", rule.name), ..rule },
            };
            rules.extend(spec.check_one(files)?.into_iter().map(title));
        }
        Ok(rules)
    }

    /// The peers that the rule names.
    pub fn remotes(&self) -> impl Iterator<Item = &Remote> {
        self.remote.iter().chain(&self.partition)
    }

    /// Validates a rule whose values are the same in all its directions.
    fn check_one(&self, files: &mut Files) -> Result<Vec<Rule>, RuleError> {
        self.r#for.map(HumanDuration::more_than_zero).transpose()?;
        let mut impairment = self.compile(files)?;
        let given = self.given();
        let is_partition = |info: &PacketInfo| info.name == packet::partition::Partition::INFO.name;
        let impairs = given.iter().any(|(info, _)| !info.is_modifier && !is_partition(info));
        if !impairs && self.partition.is_empty() {
            return Err(RuleError::NoFault);
        }
        if !impairs && !self.remote.is_empty() {
            return Err(RuleError::RemoteWithPartition);
        }
        impairment.not_by_xdp =
            given.iter().find(|(info, _)| !info.by_xdp).map(|(info, _)| info.name);
        let matching = self.matching(&given)?;
        let mut rules = Vec::new();
        if !self.partition.is_empty() {
            rules.push(Rule {
                name: self.name.clone().unwrap_or_else(|| "partition".into()),
                is_named: self.name.is_some(),
                matching: Matching { remotes: self.partition.clone(), ..matching.clone() },
                lasts: self.r#for,
                impairment: Impairment::drop_all(),
                expansion: None,
            });
        }
        if impairs {
            let expansion = self.profile.map(|profile| {
                let given: Vec<_> =
                    given.iter().filter(|(info, _)| !is_profile(info)).cloned().collect();
                Expansion { profile: profile.name.into(), faults: title(&given) }
            });
            rules.push(Rule {
                name: self.name.clone().unwrap_or_else(|| title(&given)),
                is_named: self.name.is_some(),
                matching,
                lasts: self.r#for,
                impairment,
                expansion,
            });
        }
        Ok(rules)
    }

    fn matching(
        &self,
        given: &[(&'static PacketInfo, Option<String>)],
    ) -> Result<Matching, RuleError> {
        use protocol::{ICMP, ICMPV6, TCP};

        let tcp = Protocol(TCP);
        let only_tcp = self.protocol.iter().all(|&protocol| protocol == tcp);
        let matches = [(self.tcp_flags.is_some(), "tcp-flags"), (self.data_only, "data-only")];
        let faults = given.iter().map(|(info, _)| (info.tcp_only, info.name));
        let mut wants_tcp = matches.into_iter().chain(faults);
        if let Some((_, name)) = wants_tcp.find(|(wants_tcp, _)| *wants_tcp && !only_tcp) {
            return Err(RuleError::TcpOnly(name));
        }
        if (self.remote_port.is_some() || self.local_port.is_some())
            && let Some(&protocol) = self.protocol.iter().find(|p| matches!(p.0, ICMP | ICMPV6))
        {
            return Err(RuleError::NoPorts(protocol));
        }
        let needs_tcp = self.tcp_flags.is_some() || self.data_only;
        Ok(Matching {
            direction: self.direction.unwrap_or_default(),
            protocols: if needs_tcp { vec![tcp] } else { self.protocol.clone() },
            remotes: self.remote.clone(),
            remote_ports: self.remote_port.clone(),
            local_ports: self.local_port.clone(),
            tcp_flags: self.tcp_flags,
            data_only: self.data_only,
            longer_than: self.longer_than,
        })
    }
}

fn is_profile(info: &PacketInfo) -> bool {
    info.name == packet::profile::Profile::INFO.name
}

/// Display name of a rule without a name. Omits the corruption mode and partitions.
fn title(given: &[(&'static PacketInfo, Option<String>)]) -> String {
    let hidden = [packet::corrupt::CorruptMode::INFO.name, packet::partition::Partition::INFO.name];
    let shown = given.iter().filter(|(info, _)| !hidden.contains(&info.name));
    let words = shown.map(|(info, value)| match value {
        Some(value) => format!("{} {value}", info.name),
        None => info.name.into(),
    });
    words.collect::<Vec<String>>().join(", ")
}

/// Restricts rules to received packets, which XDP sees. Refuses faults that XDP cannot apply.
pub fn check_for_xdp(rules: &mut [Rule]) -> Result<(), RuleError> {
    for rule in rules {
        if rule.matching.direction == Direction::Egress {
            return Err(RuleError::Xdp("direction egress"));
        }
        if let Some(name) = rule.impairment.not_by_xdp {
            return Err(RuleError::Xdp(name));
        }
        rule.matching.direction = Direction::Ingress;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::IpAddr};

    use injector_common::rule::RULE_ECN;

    use super::*;
    use crate::spec::peer::Peer;

    fn spec(yaml: &str) -> RuleSpec {
        serde_saphyr::from_str(yaml).expect("valid YAML")
    }

    #[test]
    fn a_partition_comes_before_the_other_faults() {
        let rules =
            spec("{partition: [10.0.0.0/8, fd00::/8], loss: 1%, direction: egress}").check();
        let rules = rules.expect("valid");
        assert_eq!(rules.len(), 2);
        assert_eq!(rules[0].name, "partition");
        assert_eq!(rules[0].matching.remotes.len(), 2);
        assert_eq!(rules[0].matching.direction, Direction::Egress);
        assert_eq!(rules[1].name, "loss 1%");
        assert!(rules[1].matching.remotes.is_empty());
    }

    #[test]
    fn contradictions_are_refused() {
        for (yaml, error) in [
            ("{}", RuleError::NoFault),
            ("{remote: 10.0.0.1}", RuleError::NoFault),
            ("{loss: 1%, loss-every: 3}", RuleError::Fault(packet::loss::SEVERAL)),
            ("{partition: 10.0.0.1, remote: 10.0.0.2}", RuleError::RemoteWithPartition),
            (
                "{loss: 1%, for: 0s}",
                RuleError::Value(ValueError::NoTime(HumanDuration(Duration::ZERO))),
            ),
            ("{reset: true, protocol: udp}", RuleError::TcpOnly("reset")),
            ("{loss: 1%, data-only: true, protocol: [tcp, udp]}", RuleError::TcpOnly("data-only")),
            ("{loss: 1%, protocol: icmp, local-port: 1}", RuleError::NoPorts(Protocol(1))),
            ("{loss: 1%, corrupt-mode: wire}", RuleError::Fault(packet::corrupt::MODE_ALONE)),
            ("{delay: 50ms, rtt: 50ms}", RuleError::Fault(packet::rtt::WITH_DELAY)),
            ("{rtt: 50ms, direction: egress}", RuleError::Fault(packet::rtt::ONE_WAY)),
            ("{rtt: 121s}", RuleError::Fault(packet::rtt::TOO_LONG)),
            ("{reorder: 25%}", RuleError::Fault(packet::reorder::ALONE)),
            ("{reorder: 25%, rate: 1mbit}", RuleError::Fault(packet::reorder::ALONE)),
            ("{reorder: 25%, delay: 0s}", RuleError::Fault(packet::reorder::ALONE)),
            ("{reorder: 25%, delay: '0s,jitter=5ms'}", RuleError::Fault(packet::reorder::ALONE)),
            (
                "{reorder: 25%, delay: '9ms,jitter=5ms,ordered'}",
                RuleError::Fault(packet::reorder::ORDERED),
            ),
            ("{ecn: true}", RuleError::Fault(packet::ecn::ALONE)),
            ("{ecn: true, corrupt: 1%, delay: 50ms}", RuleError::Fault(packet::ecn::ALONE)),
            ("{ecn: true, partition: 10.0.0.1}", RuleError::Fault(packet::ecn::ALONE)),
            ("{rate: down=1mbit, direction: egress}", RuleError::Fault(ONE_DIRECTION)),
            ("{rate: down=1mbit, rtt: 10ms}", RuleError::Fault(ONE_DIRECTION)),
            ("{delay: down=1ms, loss: up=1%, ecn: true}", RuleError::Fault(packet::ecn::ALONE)),
            ("{mtu: 1500}", RuleError::NoFault),
            ("{loss: 1%, mtu: 1500, protocol: udp}", RuleError::Fault(packet::mtu::NO_TCP)),
            ("{too-big: true}", RuleError::Fault(packet::too_big::NO_MTU)),
            ("{too-big: true, longer-than: 551}", RuleError::Fault(packet::too_big::NO_MTU)),
        ] {
            assert_eq!(spec(yaml).check(), Err(error), "{yaml}");
        }
    }

    #[test]
    fn values_by_direction_make_two_rules() {
        let names = |yaml: &str| -> Vec<(Direction, String)> {
            let rules = spec(yaml).check().expect(yaml);
            rules.into_iter().map(|rule| (rule.matching.direction, rule.name)).collect()
        };
        let (down, up) = (Direction::Ingress, Direction::Egress);
        assert_eq!(
            names("{rate: 'down=1.6mbit,up=750kbit', delay: 20ms, loss: up=1%}"),
            [
                (down, "down: delay 20ms, rate 1600kbit".into()),
                (up, "up: loss 1%, delay 20ms, rate 750kbit".into()),
            ]
        );
        assert_eq!(names("{rate: {up: 1mbit}}"), [(up, "up: rate 1mbit".into())]);
        assert_eq!(
            names("{name: a, delay: 'down=1ms,up=2ms'}"),
            [(down, "a".into()), (up, "a".into())]
        );
    }

    #[test]
    fn rules_of_the_loopback_are_known_by_their_addresses() {
        let localhost = Peer::Host("localhost".into());
        let known = BTreeMap::from([(localhost, vec![IpAddr::from([127, 0, 0, 1])])]);
        for (remote, is_of_loopback) in [
            ("127.0.0.1", true),
            ("127.0.0.0/8", true),
            ("[127.0.0.1, '::1']", true),
            ("127.0.0.0/7", false),
            ("'::/127'", false),
            ("[127.0.0.1, 10.0.0.1]", false),
            ("localhost", true),
            ("example.com", false),
        ] {
            let rules = spec(&format!("{{loss: 1%, remote: {remote}}}")).check().expect(remote);
            assert_eq!(rules[0].matching.is_of_loopback(&known), is_of_loopback, "{remote}");
        }
        assert!(!spec("{loss: 1%}").check().expect("valid")[0].matching.is_of_loopback(&known));
    }

    #[test]
    fn rules_say_what_they_match() {
        for (yaml, text) in [
            ("{loss: 20%}", "loss 20% of all packets, both ways"),
            (
                "{loss: 100%, protocol: tcp, remote-port: 8081}",
                "loss 100% of tcp to port 8081, both ways",
            ),
            (
                "{loss: 1%, remote: [10.0.0.1, 'fd00::/64', db], remote-port: '80,443', direction: ingress}",
                "loss 1% of packets from 10.0.0.1, fd00::/64 or db, port 80,443, received",
            ),
            (
                "{loss: 1%, protocol: [tcp, udp], local-port: 5432, direction: egress}",
                "loss 1% of tcp or udp at local port 5432, sent",
            ),
            (
                "{loss: 1%, tcp-flags: 'syn,!ack', longer-than: 1400}",
                "loss 1% of tcp with flags syn,!ack longer than 1400 bytes, both ways",
            ),
            ("{reset: true, data-only: true}", "reset of tcp with data, both ways"),
            (
                "{delay: 200ms, remote: 10.0.0.1}",
                "delay 200ms of packets to 10.0.0.1, each way (a round trip takes 400ms longer)",
            ),
            ("{rtt: 50ms}", "rtt 50ms of all packets, each way (a round trip takes 50ms longer)"),
            ("{delay: 200ms, direction: egress}", "delay 200ms of all packets, sent"),
            ("{partition: 10.0.0.7}", "partition of packets to 10.0.0.7, both ways"),
            ("{loss: 1%, name: bus}", "bus: all packets, both ways"),
        ] {
            let rule = spec(yaml).check().expect(yaml).remove(0);
            assert_eq!(rule.describe(&rule.name), text, "{yaml}");
        }
    }

    #[test]
    fn a_fault_of_0_percent_is_a_fault() {
        assert_eq!(spec("{loss: 0%}").check().map(|rules| rules.len()), Ok(1));
        assert_eq!(spec("{delay: 0s}").check().map(|rules| rules.len()), Ok(1));
    }

    #[test]
    fn packets_are_held_as_the_rule_says() {
        let checked = |yaml: &str| spec(yaml).check().expect(yaml).remove(0);
        let hold = |rule: &Rule| rule.impairment.hold.expect("it holds packets");
        let marks = |rule: &Rule| rule.impairment.rule.flags & RULE_ECN != 0;
        let rule = checked("{delay: 50ms, rate: 1mbit}");
        assert_eq!(rule.name, "delay 50ms, rate 1mbit");
        assert_eq!(hold(&rule).delay.latency_ns, 50_000_000);
        // 8 µs per byte.
        assert_eq!(hold(&rule).rate.cost, 8000 << 20);

        let rule = checked("{rtt: 25ms, reorder: '25%,gap=5', direction: both}");
        assert_eq!(rule.name, "rtt 25ms, reorder 25%,gap=5");
        assert_eq!(hold(&rule).delay.latency_ns, 12_500_000);
        assert_eq!(hold(&rule).delay.gap, 5);
        assert!(spec("{rtt: 120s}").check().is_ok());

        let rule = checked("{rate: 64kbit, loss-every: 3, ecn: true}");
        assert_eq!(rule.name, "loss-every 3, rate 64kbit, ecn");
        assert!(marks(&rule));

        let rules = spec("{partition: 10.0.0.1, delay: 50ms, loss: 1%, ecn: true}").check();
        let rules = rules.expect("valid");
        assert!(rules[0].impairment.hold.is_none() && !marks(&rules[0]));
        assert!(rules[1].impairment.hold.is_some() && marks(&rules[1]));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        for delay in ["50ms,jitter=5ms,dist=/nonexistent/dist", "samples=/nonexistent/dist"] {
            let error = spec(&format!("{{delay: '{delay}'}}")).check().expect_err("no such file");
            let text = error.to_string();
            assert!(text.contains("/nonexistent/dist: No such file"), "{text}");
        }
    }

    #[test]
    fn what_is_written_out_is_read_back_the_same() {
        let spec = spec(
            "{delay: '50ms,jitter=5ms,dist=normal,corr=25%', reorder: '1%,gap=2', rate: '1mbit,queue=64kb', ecn: true}",
        );
        let json = serde_json::to_string(&spec).expect("plain data");
        assert_eq!(serde_json::from_str::<RuleSpec>(&json).expect("just written"), spec);
    }

    #[test]
    fn xdp_refuses_what_it_cannot_do() {
        let check = |yaml: &str| check_for_xdp(&mut spec(yaml).check().expect(yaml));
        assert_eq!(check("{loss: 1%, corrupt: 1%}"), Ok(()));
        for (yaml, name) in [
            ("{loss: 1%, direction: egress}", "direction egress"),
            ("{duplicate: 1%}", "duplicate"),
            ("{delay: 0s}", "delay"),
            ("{rtt: 50ms, reorder: 25%}", "rtt"),
            ("{rate: 1mbit}", "rate"),
            ("{loss: 1%, ecn: true}", "ecn"),
            ("{reset: true}", "reset"),
        ] {
            assert_eq!(check(yaml), Err(RuleError::Xdp(name)), "{yaml}");
        }
    }

    #[test]
    fn the_command_line_takes_what_a_file_takes() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            rule: RuleSpec,
        }
        let parse = |line: &str| {
            <Line as clap::Parser>::try_parse_from(line.split(' ')).map(|line| line.rule)
        };
        let rule = parse("x --delay 50ms,jitter=5ms --reorder 1% --rate 1mbit,queue=1s --ecn");
        let file = "{delay: '50ms,jitter=5ms', reorder: 1%, rate: '1mbit,queue=1s', ecn: true}";
        assert_eq!(rule.expect("valid"), spec(file));
        assert_eq!(parse("x --rtt 50ms").expect("valid"), spec("{rtt: 50ms}"));
        for line in ["x --rtt 50ms --delay 50ms", "x --delay 61s", "x --rate 1", "x --reorder x"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(serde_saphyr::from_str::<RuleSpec>("{los: 1%}").is_err());
    }
}

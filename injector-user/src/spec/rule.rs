//! A rule: which packets, and what is to happen to them.

use clap::{Args, ValueEnum};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    delay::{Delay, DelaySpec, LONGEST, Reorder},
    distribution::{DistributionError, Files},
    fault::{Every, LossGemodel, LossState, Odds},
    list::{OneOrMany, one_or_many},
    rate::Rate,
    value::{Percent, PortSet, Protocol, Remote, Span, TcpFlags, ValueError},
};

/// Why a rule makes no sense.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    /// No fault.
    #[error(
        "no fault was asked for: give at least one of --loss, --loss-every, --loss-state, --loss-gemodel, \
         --corrupt, --duplicate, --delay, --rtt, --rate, --partition, --reset"
    )]
    NoFault,
    /// Several loss models.
    #[error("only one of loss, loss-every, loss-state and loss-gemodel can be used in one rule")]
    SeveralLossModels,
    /// A match that nothing uses.
    #[error("--remote has no effect on --partition, which names its own addresses")]
    RemoteWithPartition,
    /// A TCP match with another protocol.
    #[error("--{0} matches TCP only; leave --protocol out or make it tcp")]
    TcpOnly(&'static str),
    /// A port match with a protocol that has no ports.
    #[error("--remote-port and --local-port do not go with --protocol {0}, which has no ports")]
    NoPorts(Protocol),
    /// A mode without corruption.
    #[error("--corrupt-mode goes with --corrupt")]
    ModeWithoutCorrupt,
    /// A delay each way, and half of one each way.
    #[error("--rtt is a delay of half of it each way: give either --rtt or --delay")]
    RttWithDelay,
    /// Both ways, and one way only.
    #[error(
        "--rtt delays both ways, half of it each: leave --direction out, or use --delay for one way only"
    )]
    RttOneWay,
    /// Half of it is longer than packets are held for.
    #[error("`{0}` is too long: a round-trip time is 0s to {most}", most = Span(2 * LONGEST))]
    RttRange(Span),
    /// Nothing to overtake.
    #[error(
        "--reorder lets packets overtake delayed ones: give --delay or --rtt of more than 0 as well"
    )]
    ReorderWithoutDelay,
    /// Nothing to do instead.
    #[error(
        "--ecn marks packets that would be lost: give --rate or one of --loss, --loss-every, --loss-state, \
         --loss-gemodel as well"
    )]
    EcnWithoutLoss,
    /// A value in it is out of range.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A file of delays cannot be used.
    #[error(transparent)]
    Distribution(#[from] DistributionError),
    /// No rules.
    #[error("there is no rule in it")]
    NoRules,
    /// Too many rules.
    #[error("there are {0} rules; the most is {max}", max = injector_common::rule::MAX_RULES)]
    TooMany(usize),
    /// A fault that XDP cannot do.
    #[error("--xdp works on received packets of a whole host: {0} cannot be had with it")]
    Xdp(&'static str),
}

/// Which way packets go, seen from the faulted host.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema,
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

/// How a corrupted packet meets its receiver.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum CorruptMode {
    /// A checksum is wrong, so the receiving kernel drops it.
    #[default]
    Wire,
    /// The checksum is right, so the receiving application reads wrong data.
    Silent,
}

/// A rule as written: the options of the command line and the keys of a rule file are these fields.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RuleSpec {
    /// What the rule is called in the output; files only.
    #[arg(skip)]
    pub name: Option<String>,

    /// How long the rule acts, from the start of the run or from the change that brought it; files only.
    #[arg(skip)]
    pub r#for: Option<Span>,

    /// Lose packets at random, P of them; C is the correlation of one loss with the next
    #[arg(long, value_name = "P[,corr=C]", help_heading = "Faults", group = "loss-model")]
    pub loss: Option<Odds>,

    /// Lose every N-th packet
    #[arg(long, value_name = "N", help_heading = "Faults", group = "loss-model")]
    pub loss_every: Option<Every>,

    /// Lose packets by netem's 4-state Markov model
    #[arg(
        long,
        value_name = "p13[,p31[,p32[,p23[,p14]]]]",
        help_heading = "Faults",
        group = "loss-model"
    )]
    pub loss_state: Option<LossState>,

    /// Lose packets by the Gilbert-Elliott model
    #[arg(long, value_name = "p[,r[,1-h[,1-k]]]", help_heading = "Faults", group = "loss-model")]
    pub loss_gemodel: Option<LossGemodel>,

    /// Flip a bit in P of the packets
    #[arg(long, value_name = "P[,corr=C]", help_heading = "Faults")]
    pub corrupt: Option<Odds>,

    /// Whether the receiver's kernel notices (wire: it drops the packet) or not (silent: the
    /// application reads wrong data) [default: wire]
    #[arg(long, value_name = "MODE", help_heading = "Faults")]
    pub corrupt_mode: Option<CorruptMode>,

    /// Send P of the packets twice
    #[arg(long, value_name = "P[,corr=C]", help_heading = "Faults")]
    pub duplicate: Option<Odds>,

    /// Hold packets back for T, one way, in each direction that the rule is for
    ///
    /// By default that is both, so that a round trip over a link takes 2T longer: see --rtt and --direction. T and J
    /// are 0s to 60s, with their unit: 250us, 50ms, 1.5s. J is how much more or less; D is uniform (the default),
    /// normal, pareto, paretonormal or a file, of netem's values or of samples; C is the correlation of one delay
    /// with the next. Or the delays are drawn from a file of samples.
    #[arg(
        long,
        value_name = "T[,jitter=J[,dist=D][,corr=C]]|samples=FILE[,corr=C]",
        help_heading = "Faults"
    )]
    pub delay: Option<DelaySpec>,

    /// Make round trips T longer: sent packets are held back for half of it, received ones for the other half
    #[arg(long, value_name = "T", help_heading = "Faults", conflicts_with = "delay")]
    pub rtt: Option<Span>,

    /// Let P of the packets overtake those that --delay or --rtt holds back
    ///
    /// With N, only after N-1 packets that were held back.
    #[arg(long, value_name = "P[,corr=C][,gap=N]", help_heading = "Faults")]
    pub reorder: Option<Reorder>,

    /// Let packets leave at R bits a second, in each direction
    ///
    /// R is 1kbit to 1tbit; units are tc's: 1.5mbit, 100kbps (bytes a second). After a pause, B bytes leave at once
    /// (default 0). N bytes are added to each packet's length. What would wait for longer than the queue is, a time
    /// (200ms) or a size (64kb), is lost; by default 100ms or the time that 15,000 bytes take, whichever is longer.
    #[arg(long, value_name = "R[,burst=B][,overhead=N][,queue=T|SIZE]", help_heading = "Faults")]
    pub rate: Option<Rate>,

    /// Mark packets as having met congestion (ECN) instead of losing them, where both ends understand that
    #[arg(long, help_heading = "Faults")]
    pub ecn: bool,

    /// Lose all packets to and from these addresses; with --direction, one way only
    #[arg(long, value_name = "CIDR", value_delimiter = ',', help_heading = "Faults")]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "OneOrMany<Remote>")]
    pub partition: Vec<Remote>,

    /// Reset matching TCP connections, each once, by an RST to the local side
    #[arg(long, help_heading = "Faults")]
    pub reset: bool,

    /// Which way the packets go [default: both]
    #[arg(long, value_name = "DIRECTION", help_heading = "Match")]
    pub direction: Option<Direction>,

    /// Only this protocol: tcp, udp, icmp, icmpv6, sctp, … or a number; repeatable
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', help_heading = "Match")]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "OneOrMany<Protocol>")]
    pub protocol: Vec<Protocol>,

    /// Only packets to or from these addresses, prefixes or host names (resolved once); repeatable
    #[arg(long, value_name = "CIDR", value_delimiter = ',', help_heading = "Match")]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "OneOrMany<Remote>")]
    pub remote: Vec<Remote>,

    /// Only these ports of the peer: lists (80,443), ranges (8000-8100), exclusions (!22)
    #[arg(long, value_name = "PORTS", help_heading = "Match")]
    pub remote_port: Option<PortSet>,

    /// Only these ports of this host, written likewise
    #[arg(long, value_name = "PORTS", help_heading = "Match")]
    pub local_port: Option<PortSet>,

    /// Only TCP segments with these flags set, and those behind ! not set, for instance syn,!ack
    #[arg(long, value_name = "FLAGS", help_heading = "Match")]
    pub tcp_flags: Option<TcpFlags>,

    /// Only TCP segments with payload
    #[arg(long, help_heading = "Match")]
    pub data_only: bool,
}

/// Which packets a rule is for. Empty and absent fields match everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matching {
    /// Which way they go.
    pub direction: Direction,
    /// Their protocols.
    pub protocols: Vec<Protocol>,
    /// Their peers.
    pub remotes: Vec<Remote>,
    /// Ports of the peer.
    pub remote_ports: Option<PortSet>,
    /// Ports of this host.
    pub local_ports: Option<PortSet>,
    /// TCP flags.
    pub tcp_flags: Option<TcpFlags>,
    /// Only TCP segments with payload.
    pub data_only: bool,
}

impl Matching {
    /// Whether there may be packets that this and the other match; host names may stand for any address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let both = Direction::Both;
        (self.direction == other.direction || self.direction == both || other.direction == both)
            && overlap(&self.protocols, &other.protocols, |a, b| a == b)
            && overlap(&self.remotes, &other.remotes, |a, b| match (a, b) {
                (Remote::Net(a), Remote::Net(b)) => a.contains(b) || b.contains(a),
                _ => true,
            })
            && share(self.remote_ports.as_ref(), other.remote_ports.as_ref())
            && share(self.local_ports.as_ref(), other.local_ports.as_ref())
            && self.tcp_flags.is_none_or(|a| other.tcp_flags.is_none_or(|b| a.overlaps(b)))
    }
}

/// Whether there may be something that is in both lists; an empty one is everything.
fn overlap<T>(a: &[T], b: &[T], same: impl Fn(&T, &T) -> bool) -> bool {
    a.is_empty() || b.is_empty() || a.iter().any(|a| b.iter().any(|b| same(a, b)))
}

fn share(a: Option<&PortSet>, b: Option<&PortSet>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return true };
    a.ranges().any(|a| b.ranges().any(|b| a.start() <= b.end() && b.start() <= a.end()))
}

/// Which packets are lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// At random.
    Random(Odds),
    /// Every N-th.
    Every(Every),
    /// By the 4-state Markov model.
    State(LossState),
    /// By the Gilbert-Elliott model.
    Gemodel(LossGemodel),
}

/// A rule that has been checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// What the output calls it.
    pub name: String,
    /// Which packets.
    pub matching: Matching,
    /// How long the rule acts; until the end of the run if absent.
    pub lasts: Option<Span>,
    /// Which packets are lost.
    pub loss: Option<Loss>,
    /// Which are corrupted.
    pub corrupt: Option<Odds>,
    /// How they are corrupted.
    pub corrupt_mode: CorruptMode,
    /// Which are doubled.
    pub duplicate: Option<Odds>,
    /// For how long they are held back.
    pub delay: Option<Delay>,
    /// Which overtake those that are held back.
    pub reorder: Option<Reorder>,
    /// How fast they leave.
    pub rate: Option<Rate>,
    /// Whether packets are marked instead of being lost.
    pub ecn: bool,
    /// Whether connections are reset.
    pub reset: bool,
}

impl RuleSpec {
    /// Checks the rule. A partition becomes a rule of its own, ahead of the other faults.
    pub fn check(&self) -> Result<Vec<Rule>, RuleError> {
        self.check_with(&mut Files::default())
    }

    /// Checks one of several rules that may name the same files.
    pub fn check_with(&self, files: &mut Files) -> Result<Vec<Rule>, RuleError> {
        self.r#for.map(Span::more_than_zero).transpose()?;
        let loss = self.loss_model()?;
        if self.corrupt_mode.is_some() && self.corrupt.is_none() {
            return Err(RuleError::ModeWithoutCorrupt);
        }
        if self.ecn && loss.is_none() && self.rate.is_none() {
            return Err(RuleError::EcnWithoutLoss);
        }
        let delay = self.delay_each_way(files)?;
        let delays = delay.as_ref().is_some_and(|delay| !delay.latency.0.is_zero());
        if self.reorder.is_some() && !delays {
            return Err(RuleError::ReorderWithoutDelay);
        }
        let impairs = loss.is_some()
            || self.corrupt.is_some()
            || self.duplicate.is_some()
            || delay.is_some()
            || self.rate.is_some()
            || self.reset;
        if !impairs && self.partition.is_empty() {
            return Err(RuleError::NoFault);
        }
        if !impairs && !self.remote.is_empty() {
            return Err(RuleError::RemoteWithPartition);
        }
        let matching = self.matching()?;
        let mut rules = Vec::new();
        if !self.partition.is_empty() {
            rules.push(Rule {
                name: self.name.clone().unwrap_or_else(|| "partition".into()),
                matching: Matching { remotes: self.partition.clone(), ..matching.clone() },
                lasts: self.r#for,
                loss: Some(Loss::Random(Odds { probability: Percent::ALL, ..Odds::default() })),
                ..Rule::default()
            });
        }
        if impairs {
            rules.push(Rule {
                name: self.name.clone().unwrap_or_else(|| self.title()),
                matching,
                lasts: self.r#for,
                loss,
                corrupt: self.corrupt,
                corrupt_mode: self.corrupt_mode.unwrap_or_default(),
                duplicate: self.duplicate,
                delay,
                reorder: self.reorder,
                rate: self.rate,
                ecn: self.ecn,
                reset: self.reset,
            });
        }
        Ok(rules)
    }

    fn loss_model(&self) -> Result<Option<Loss>, RuleError> {
        let models = [
            self.loss.map(Loss::Random),
            self.loss_every.map(Loss::Every),
            self.loss_state.map(Loss::State),
            self.loss_gemodel.map(Loss::Gemodel),
        ];
        let mut given = models.into_iter().flatten();
        let loss = given.next();
        if given.next().is_some() { Err(RuleError::SeveralLossModels) } else { Ok(loss) }
    }

    /// The delay, also if it is given as a round trip's.
    fn delay_each_way(&self, files: &mut Files) -> Result<Option<Delay>, RuleError> {
        match (&self.delay, self.rtt) {
            (None, None) => Ok(None),
            (Some(delay), None) => Ok(Some(delay.load(files)?)),
            (Some(_), Some(_)) => Err(RuleError::RttWithDelay),
            (None, Some(_)) if self.direction.unwrap_or_default() != Direction::Both => {
                Err(RuleError::RttOneWay)
            }
            (None, Some(rtt)) if rtt.0 > 2 * LONGEST => Err(RuleError::RttRange(rtt)),
            (None, Some(rtt)) => Ok(Some(Delay { latency: Span(rtt.0 / 2), ..Delay::default() })),
        }
    }

    fn matching(&self) -> Result<Matching, RuleError> {
        use injector_common::packet::protocol::{ICMP, ICMPV6, TCP};

        let tcp = Protocol(TCP);
        let only_tcp = self.protocol.iter().all(|&protocol| protocol == tcp);
        let wants_tcp = [
            (self.tcp_flags.is_some(), "tcp-flags"),
            (self.data_only, "data-only"),
            (self.reset, "reset"),
        ];
        if let Some((_, name)) = wants_tcp.into_iter().find(|(given, _)| *given && !only_tcp) {
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
        })
    }

    /// The faults, for a rule without a name.
    fn title(&self) -> String {
        let mut parts = Vec::new();
        if let Some(loss) = self.loss {
            parts.push(format!("loss {loss}"));
        }
        if let Some(every) = self.loss_every {
            parts.push(format!("loss-every {every}"));
        }
        if let Some(state) = self.loss_state {
            parts.push(format!("loss-state {state}"));
        }
        if let Some(gemodel) = self.loss_gemodel {
            parts.push(format!("loss-gemodel {gemodel}"));
        }
        if let Some(corrupt) = self.corrupt {
            parts.push(format!("corrupt {corrupt}"));
        }
        if let Some(duplicate) = self.duplicate {
            parts.push(format!("duplicate {duplicate}"));
        }
        if let Some(delay) = &self.delay {
            parts.push(format!("delay {delay}"));
        }
        if let Some(rtt) = self.rtt {
            parts.push(format!("rtt {rtt}"));
        }
        if let Some(reorder) = self.reorder {
            parts.push(format!("reorder {reorder}"));
        }
        if let Some(rate) = self.rate {
            parts.push(format!("rate {rate}"));
        }
        if self.ecn {
            parts.push("ecn".into());
        }
        if self.reset {
            parts.push("reset".into());
        }
        parts.join(", ")
    }
}

/// Refuses what XDP cannot do: it sees received packets only, neither sockets nor copies, and holds nothing.
pub fn check_for_xdp(rules: &[Rule]) -> Result<(), RuleError> {
    for rule in rules {
        if rule.matching.direction == Direction::Egress {
            return Err(RuleError::Xdp("--direction egress"));
        }
        let refused = [
            (rule.duplicate.is_some(), "--duplicate"),
            (rule.delay.is_some(), "a delay (--delay, --rtt)"),
            (rule.reorder.is_some(), "--reorder"),
            (rule.rate.is_some(), "--rate"),
            (rule.ecn, "--ecn"),
            (rule.reset, "--reset"),
        ];
        if let Some((_, name)) = refused.into_iter().find(|(asked, _)| *asked) {
            return Err(RuleError::Xdp(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("{loss: 1%, loss-every: 3}", RuleError::SeveralLossModels),
            ("{partition: 10.0.0.1, remote: 10.0.0.2}", RuleError::RemoteWithPartition),
            (
                "{loss: 1%, for: 0s}",
                RuleError::Value(ValueError::NoTime(Span(std::time::Duration::ZERO))),
            ),
            ("{reset: true, protocol: udp}", RuleError::TcpOnly("reset")),
            ("{loss: 1%, data-only: true, protocol: [tcp, udp]}", RuleError::TcpOnly("data-only")),
            ("{loss: 1%, protocol: icmp, local-port: 1}", RuleError::NoPorts(Protocol(1))),
            ("{loss: 1%, corrupt-mode: wire}", RuleError::ModeWithoutCorrupt),
            ("{delay: 50ms, rtt: 50ms}", RuleError::RttWithDelay),
            ("{rtt: 50ms, direction: egress}", RuleError::RttOneWay),
            ("{rtt: 121s}", RuleError::RttRange("121s".parse().expect("valid"))),
            ("{reorder: 25%}", RuleError::ReorderWithoutDelay),
            ("{reorder: 25%, rate: 1mbit}", RuleError::ReorderWithoutDelay),
            ("{reorder: 25%, delay: 0s}", RuleError::ReorderWithoutDelay),
            ("{reorder: 25%, delay: '0s,jitter=5ms'}", RuleError::ReorderWithoutDelay),
            ("{ecn: true}", RuleError::EcnWithoutLoss),
            ("{ecn: true, corrupt: 1%, delay: 50ms}", RuleError::EcnWithoutLoss),
            ("{ecn: true, partition: 10.0.0.1}", RuleError::EcnWithoutLoss),
        ] {
            assert_eq!(spec(yaml).check(), Err(error), "{yaml}");
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
        let rule = checked("{delay: 50ms, rate: 1mbit}");
        assert_eq!(rule.name, "delay 50ms, rate 1mbit");
        assert_eq!(rule.delay.expect("a delay").latency.0.as_millis(), 50);
        assert_eq!(rule.rate.expect("a rate").bits.0, 1_000_000);

        let rule = checked("{rtt: 25ms, reorder: '25%,gap=5', direction: both}");
        assert_eq!(rule.name, "rtt 25ms, reorder 25%,gap=5");
        assert_eq!(rule.delay.expect("a delay").latency.0.as_micros(), 12_500);
        assert_eq!(rule.reorder.map(|reorder| reorder.gap), Some(Every(5)));
        assert!(spec("{rtt: 120s}").check().is_ok());

        // A bare number is bits a second.
        let rule = checked("{rate: 64000, loss-every: 3, ecn: true}");
        assert_eq!(rule.name, "loss-every 3, rate 64kbit, ecn");
        assert!(rule.ecn);

        let rules = spec("{partition: 10.0.0.1, delay: 50ms, loss: 1%, ecn: true}").check();
        let rules = rules.expect("valid");
        assert!(rules[0].delay.is_none() && !rules[0].ecn);
        assert!(rules[1].delay.is_some() && rules[1].ecn);
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
        let check = |yaml: &str| check_for_xdp(&spec(yaml).check().expect(yaml));
        assert_eq!(check("{loss: 1%, corrupt: 1%}"), Ok(()));
        for (yaml, name) in [
            ("{loss: 1%, direction: egress}", "--direction egress"),
            ("{duplicate: 1%}", "--duplicate"),
            ("{delay: 0s}", "a delay (--delay, --rtt)"),
            ("{rtt: 50ms, reorder: 25%}", "a delay (--delay, --rtt)"),
            ("{rate: 1mbit}", "--rate"),
            ("{loss: 1%, ecn: true}", "--ecn"),
            ("{reset: true}", "--reset"),
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

//! Why no packet matched: what passed instead, and in what that differs from the rules.

use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use injector_common::{
    packet::{self, protocol},
    unmatched::{Count, Kind, property},
};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    kernel::{conntrack::Translation, interface::Passed},
    spec::{
        matching::Matching,
        rule::{Direction, Rule},
        value::{PortSet, Protocol, Remote, TcpFlags},
    },
    target::peers::Addresses,
    words::plural,
};

/// Maximum number of rules that are explained.
const EXPLAINED: usize = 8;

/// Packets of the target that no rule matched and that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    direction: packet::Direction,
    protocol: Protocol,
    remote: IpAddr,
    /// The local and the remote port, if known.
    ports: Option<(u16, u16)>,
    tcp_flags: u8,
    has_data: bool,
    /// The length of the longest packet on the wire.
    longest: u32,
    packets: u64,
}

impl From<(Kind, Count)> for Flow {
    fn from((kind, count): (Kind, Count)) -> Self {
        let has = |property| kind.properties & property != 0;
        let direction = if has(property::INGRESS) {
            packet::Direction::Ingress
        } else {
            packet::Direction::Egress
        };
        let words = kind.remote.map(u32::to_ne_bytes);
        let remote = if has(property::V6) {
            let octets: [u8; 16] = std::array::from_fn(|at| words[at / 4][at % 4]);
            Ipv6Addr::from(octets).into()
        } else {
            Ipv4Addr::from(words[0]).into()
        };
        Self {
            direction,
            protocol: Protocol(kind.protocol),
            remote,
            ports: has(property::HAS_PORTS).then_some((kind.local_port, kind.remote_port)),
            tcp_flags: kind.tcp_flags,
            has_data: has(property::HAS_DATA),
            longest: count.longest,
            packets: count.packets,
        }
    }
}

impl Flow {
    /// Whether both are of the same kind, whatever their number and their length.
    fn is_like(&self, other: &Self) -> bool {
        let Self { longest, packets, .. } = *self;
        *self == Self { longest, packets, ..other.clone() }
    }

    /// The flow with its local and its remote port exchanged.
    fn swapped(&self) -> Self {
        Self { ports: self.ports.map(|(local, remote)| (remote, local)), ..self.clone() }
    }
}

/// The number of received packets.
#[must_use]
pub fn received(flows: &[Flow]) -> u64 {
    let received = flows.iter().filter(|flow| flow.direction == packet::Direction::Ingress);
    received.map(|flow| flow.packets).sum()
}

/// What was seen while no packet matched.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Packets that the target sent.
    pub sent: u64,
    /// Packets that the target received, if that was looked at.
    pub received: u64,
    /// The packets by kind. Of much traffic, only a part is counted.
    pub flows: Vec<Flow>,
    /// What passed on interfaces with programs, the target's or not.
    pub attached: Passed,
    /// Interfaces in the same namespaces without programs on which packets passed.
    pub elsewhere: BTreeMap<String, u64>,
    /// The names of the interfaces, if the target is restricted to some.
    pub interfaces: Vec<String>,
    /// Translated peers in the target's namespaces.
    pub translations: Vec<Translation>,
    /// Cgroups in which sockets of the target's processes were created, with their number.
    pub strangers: BTreeMap<String, usize>,
    /// Whether the target tells processes apart.
    pub has_processes: bool,
}

/// The kinds of packets that passed, with their number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PeerTraffic {
    /// The protocol.
    protocol: String,
    /// The peer, with its port unless the local one is that of a service.
    peer: String,
    /// The local port, if it is that of a service.
    #[serde(skip_serializing_if = "Option::is_none")]
    local_port: Option<u16>,
    /// Sent packets.
    sent: u64,
    /// Received packets.
    received: u64,
}

impl PeerTraffic {
    /// The peer with the numbers of packets.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{self}: {} sent, {} received", self.sent, self.received)
    }
}

impl Display for PeerTraffic {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let to = if self.sent > 0 { "to" } else { "from" };
        write!(f, "{} {to} {}", self.protocol, self.peer)?;
        match self.local_port {
            Some(port) => write!(f, " at local port {port}"),
            None => Ok(()),
        }
    }
}

/// Why no packet matched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The packets that passed.
    pub seen: String,
    /// The likely causes, as far as they are known: one for each of the first 8 rules, or one for all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

/// Names a rule in an explanation.
pub type Label = fn(usize, &Rule) -> String;

/// Names a rule by its number.
#[must_use]
pub fn by_number(number: usize, rule: &Rule) -> String {
    format!("rule {number} ({})", rule.describe(&rule.name))
}

/// Names a rule without its number.
#[must_use]
pub fn by_name(_number: usize, rule: &Rule) -> String {
    rule.describe(&rule.name)
}

/// Messages for the log: `event` with the packets that passed, then the causes.
#[must_use]
pub fn messages(event: &str, explanation: Option<&Explanation>) -> Vec<String> {
    let Some(Explanation { seen, causes }) = explanation else { return vec![event.into()] };
    std::iter::once(format!("{event}; {seen}")).chain(causes.iter().cloned()).collect()
}

/// A condition of a rule, in the order of preference as an explanation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Direction,
    RemotePort,
    LocalPort,
    Remote,
    Protocol,
    Data,
    TcpFlags,
    Length,
}

impl Observed {
    /// What was seen since an earlier observation of the same target.
    #[must_use]
    pub fn since(mut self, before: Option<&Self>) -> Self {
        let Some(before) = before else { return self };
        self.sent = self.sent.saturating_sub(before.sent);
        self.received = self.received.saturating_sub(before.received);
        self.attached = self.attached.since(before.attached);
        for flow in &mut self.flows {
            let old = before.flows.iter().find(|old| flow.is_like(old));
            flow.packets = flow.packets.saturating_sub(old.map_or(0, |old| old.packets));
        }
        self.flows.retain(|flow| flow.packets > 0);
        for (name, packets) in &mut self.elsewhere {
            let old = before.elsewhere.get(name).copied().unwrap_or_default();
            *packets = packets.saturating_sub(old);
        }
        self.elsewhere.retain(|_, packets| *packets > 0);
        self
    }

    /// The peers of the packets, most packets first.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerTraffic> {
        // A service has one port on its side, and its clients have many, or one above it.
        let (mut remote, mut local) = (BTreeMap::<_, u64>::new(), BTreeMap::<_, u64>::new());
        for flow in &self.flows {
            if let Some((local_port, remote_port)) = flow.ports {
                *remote.entry((flow.protocol, flow.remote, remote_port)).or_default() +=
                    flow.packets;
                *local.entry((flow.protocol, local_port)).or_default() += flow.packets;
            }
        }
        let mut peers: BTreeMap<_, [u64; 2]> = BTreeMap::new();
        for flow in &self.flows {
            let (port, local_port) = match flow.ports {
                Some((local_port, port)) => {
                    let at_peer = remote.get(&(flow.protocol, flow.remote, port));
                    match local.get(&(flow.protocol, local_port)).cmp(&at_peer) {
                        Ordering::Greater => (None, Some(local_port)),
                        Ordering::Equal if local_port < port => (None, Some(local_port)),
                        _ => (Some(port), None),
                    }
                }
                None => (None, None),
            };
            let counts = peers.entry((flow.protocol, flow.remote, port, local_port)).or_default();
            counts[flow.direction as usize] += flow.packets;
        }
        let mut peers: Vec<PeerTraffic> = peers
            .into_iter()
            .map(|((protocol, remote, port, local_port), [sent, received])| PeerTraffic {
                protocol: protocol.to_string(),
                peer: match (remote, port) {
                    (remote, None) => remote.to_string(),
                    (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
                    (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
                },
                local_port,
                sent,
                received,
            })
            .collect();
        peers.sort_by_key(|peer| Reverse(peer.sent + peer.received));
        peers
    }

    /// Explains why none of the rules matched.
    #[must_use]
    pub fn explain(&self, rules: &[Rule], addresses: &Addresses, label: Label) -> Explanation {
        let mut causes = Vec::new();
        if !self.strangers.is_empty() {
            causes.push(self.older_sockets());
        }
        if self.flows.is_empty() {
            if causes.is_empty() && self.sent + self.received == 0 {
                causes.extend(self.no_traffic(rules, addresses));
            }
        } else {
            for (number, rule) in rules.iter().enumerate().take(EXPLAINED) {
                if let Some(cause) = self.difference(&rule.matching, addresses) {
                    causes.push(format!("{}: likely cause: {cause}", label(number, rule)));
                }
            }
        }
        Explanation { seen: self.seen(), causes }
    }

    fn seen(&self) -> String {
        let of = if self.has_processes { " of the target" } else { "" };
        if self.sent + self.received == 0 {
            return format!("saw no packet{of}");
        }
        let packets = if self.sent + self.received == 1 { "packet" } else { "packets" };
        let Self { sent, received, .. } = self;
        let most = self.peers().first().map(|peer| format!("; most: {peer}")).unwrap_or_default();
        format!("saw {sent} sent, {received} received {packets}{of}{most}")
    }

    fn older_sockets(&self) -> String {
        let cgroups: Vec<String> = self
            .strangers
            .iter()
            .map(|(cgroup, count)| {
                format!("{} in the cgroup {cgroup}", plural(*count as u64, "socket"))
            })
            .collect();
        format!(
            "likely cause: older sockets: the target's processes created {} before they came to the target, so their \
             packets do not belong to it; use --pid or --process",
            cgroups.join(", ")
        )
    }

    /// The cause if the target had no packet at all.
    fn no_traffic(&self, rules: &[Rule], addresses: &Addresses) -> Option<String> {
        let only = |direction| {
            !rules.is_empty() && rules.iter().all(|rule| rule.matching.direction == direction)
        };
        if only(Direction::Egress) && self.attached.received > 0 {
            return Some(format!(
                "likely cause: direction: only sent packets match, and none was sent (packets received: {})",
                self.attached.received
            ));
        }
        if only(Direction::Ingress) && self.attached.sent > 0 {
            return Some(format!(
                "likely cause: direction: only received packets match, and none was received (packets sent: {})",
                self.attached.sent
            ));
        }
        if let Some((name, packets)) = self.elsewhere.iter().max_by_key(|(_, packets)| **packets) {
            let mut matchings = rules.iter().map(|rule| &rule.matching);
            if self.interfaces.is_empty() && matchings.all(|it| it.is_of_loopback(addresses)) {
                return Some(format!(
                    "likely cause: peer: only packets of loopback addresses match, but {packets} passed on {name}"
                ));
            }
            let here = if self.interfaces.is_empty() {
                "the faulted interfaces".to_owned()
            } else {
                self.interfaces.join(", ")
            };
            return Some(format!(
                "likely cause: interface: no packet passed on {here}, but {packets} passed on {name}, which is not \
                 faulted"
            ));
        }
        None
    }

    /// In what the packets that are most similar differ from those that match.
    fn difference(&self, matching: &Matching, addresses: &Addresses) -> Option<String> {
        if let Some(cause) = self.translated(matching, addresses) {
            return Some(cause);
        }
        let misses = |flow: &Flow| misses(matching, addresses, flow);
        // By what they differ in, with the number of packets.
        let mut differences: BTreeMap<(usize, Vec<Condition>, bool, String), u64> = BTreeMap::new();
        for flow in &self.flows {
            if let Some(ports) = flow.ports
                && (matching.remote_ports.is_some() || matching.local_ports.is_some())
                && !misses(flow).is_empty()
                && misses(&flow.swapped()).is_empty()
            {
                return Some(swapped(matching, ports));
            }
            let conditions = misses(flow);
            let texts: Vec<String> =
                conditions.iter().map(|condition| condition.text(matching, flow)).collect();
            // Over a loopback, both ends are seen. The port of the service tells more.
            let is_of_client = flow.ports.is_some_and(|(local, remote)| {
                conditions.iter().any(|condition| match condition {
                    Condition::RemotePort => remote > local,
                    Condition::LocalPort => local > remote,
                    _ => false,
                })
            });
            let key = (conditions.len(), conditions, is_of_client, texts.join("; "));
            *differences.entry(key).or_default() += flow.packets;
        }
        let best = differences
            .into_iter()
            .min_by_key(|((count, conditions, is_of_client, _), packets)| {
                (*count, conditions.clone(), *is_of_client, Reverse(*packets))
            })?
            .0;
        match best {
            // It would have matched: it passed before the rule was active, or after.
            (0, ..) => None,
            (1 | 2, .., text) => Some(text),
            _ => Some("no similar packet passed".into()),
        }
    }

    /// The cause if the kernel replaces the peers that the rule matches.
    fn translated(&self, matching: &Matching, addresses: &Addresses) -> Option<String> {
        let is_seen = |address| self.flows.iter().any(|flow| flow.remote == address);
        let asked = |translation: &&Translation| {
            !matching.remotes.is_empty()
                && contains(&matching.remotes, addresses, translation.asked)
                && !contains(&matching.remotes, addresses, translation.actual)
        };
        let mut translations = self.translations.iter();
        if let Some(Translation { asked, actual }) =
            translations.clone().filter(|found| is_seen(found.actual)).find(asked)
        {
            return Some(format!(
                "translated addresses: packets to {asked} have the peer {actual} here (NAT); match {actual}"
            ));
        }
        // Received packets are translated back after they are seen, so their socket is not found.
        let is_of_socket = self.has_processes && matching.remotes.is_empty();
        let Translation { asked, .. } = translations.find(|found| {
            is_of_socket && matching.direction == Direction::Ingress && is_seen(found.actual)
        })?;
        Some(format!(
            "translated addresses: received packets of connections to {asked} have another peer (NAT), so they are not \
             known to be the target's; match the remote address {asked}"
        ))
    }
}

/// The conditions of a rule that a packet does not meet.
fn misses(matching: &Matching, addresses: &Addresses, flow: &Flow) -> Vec<Condition> {
    let (local, remote) = flow.ports.unzip();
    let has_port = |set: &Option<PortSet>, port: Option<u16>| {
        set.as_ref().is_none_or(|set| {
            port.is_some_and(|port| set.ranges().any(|range| range.contains(&port)))
        })
    };
    let direction = match flow.direction {
        packet::Direction::Egress => Direction::Egress,
        packet::Direction::Ingress => Direction::Ingress,
    };
    // Others miss the protocol already.
    let is_tcp = flow.protocol.0 == protocol::TCP;
    let has_flags = |TcpFlags { set, mask }| flow.tcp_flags & mask == set;
    let conditions = [
        (
            Condition::Direction,
            matching.direction == Direction::Both || matching.direction == direction,
        ),
        (Condition::RemotePort, has_port(&matching.remote_ports, remote)),
        (Condition::LocalPort, has_port(&matching.local_ports, local)),
        (
            Condition::Remote,
            matching.remotes.is_empty() || contains(&matching.remotes, addresses, flow.remote),
        ),
        (Condition::Protocol, matching.may_match(flow.protocol.0)),
        (Condition::Data, !matching.data_only || !is_tcp || flow.has_data),
        (Condition::TcpFlags, !is_tcp || matching.tcp_flags.is_none_or(has_flags)),
        (
            Condition::Length,
            matching.longer_than.is_none_or(|limit| flow.longest > u32::from(limit)),
        ),
    ];
    conditions.into_iter().filter(|(_, is_met)| !is_met).map(|(condition, _)| condition).collect()
}

impl Condition {
    /// In what the packets do not meet the condition.
    fn text(self, matching: &Matching, flow: &Flow) -> String {
        let ports = |set: &Option<PortSet>| set.as_ref().map(ToString::to_string);
        let only = |side: &str, set: &Option<PortSet>, port: Option<u16>| {
            let set = ports(set).unwrap_or_default();
            match port {
                Some(port) => format!("port: only {side} port {set} matches, but it is {port}"),
                None => {
                    format!("port: only {side} port {set} matches, but the packets have no ports")
                }
            }
        };
        match self {
            Self::Direction => match flow.direction {
                packet::Direction::Egress => {
                    "direction: only received packets match, but these were sent".into()
                }
                packet::Direction::Ingress => {
                    "direction: only sent packets match, but these were received".into()
                }
            },
            Self::RemotePort => only("remote", &matching.remote_ports, flow.ports.map(|p| p.1)),
            Self::LocalPort => only("local", &matching.local_ports, flow.ports.map(|p| p.0)),
            Self::Remote => {
                let (direction, remotes) = (matching.direction, matching.remotes.clone());
                let matching = Matching { direction, remotes, ..Matching::default() };
                format!("peer: only {} match, but the peer is {}", matching.packets(), flow.remote)
            }
            Self::Protocol => {
                let matching =
                    Matching { protocols: matching.protocols.clone(), ..Matching::default() };
                format!(
                    "protocol: only {} matches, but it is {}",
                    matching.packets(),
                    flow.protocol
                )
            }
            Self::Data => "data: only segments with data match, but these have none".into(),
            Self::TcpFlags => {
                let wanted = matching.tcp_flags.map(|flags| flags.to_string()).unwrap_or_default();
                let found = TcpFlags { set: flow.tcp_flags, mask: flow.tcp_flags };
                format!("TCP flags: only segments with {wanted} match, but these have {found}")
            }
            Self::Length => format!(
                "length: only packets longer than {} bytes match, but the longest has {}",
                matching.longer_than.unwrap_or_default(),
                flow.longest
            ),
        }
    }
}

/// The cause for a rule that names the port of the one side as that of the other.
fn swapped(matching: &Matching, (local, remote): (u16, u16)) -> String {
    if matching.remote_ports.is_some() {
        format!("swapped ports: {local} is the local port here, not the remote one")
    } else {
        format!("swapped ports: {remote} is the remote port here, not the local one")
    }
}

/// Whether an address is one of these peers.
fn contains(remotes: &[Remote], addresses: &Addresses, address: IpAddr) -> bool {
    remotes.iter().any(|remote| match remote {
        Remote::Net(net) => net.contains(&IpNet::from(address)),
        Remote::Peer(peer) => addresses.get(peer).is_some_and(|found| found.contains(&address)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::rule::RuleSpec;

    fn flow(direction: packet::Direction, local: u16, remote: u16, packets: u64) -> Flow {
        Flow {
            direction,
            protocol: Protocol(protocol::TCP),
            remote: IpAddr::from([10, 0, 0, 2]),
            ports: Some((local, remote)),
            tcp_flags: 0x18,
            has_data: true,
            longest: 1500,
            packets,
        }
    }

    fn client() -> Observed {
        use packet::Direction::{Egress, Ingress};
        let flows = vec![
            flow(Egress, 40_000, 8080, 4),
            flow(Ingress, 40_000, 8080, 3),
            flow(Egress, 40_001, 8080, 4),
        ];
        Observed { sent: 8, received: 3, flows, has_processes: true, ..Observed::default() }
    }

    fn server() -> Observed {
        use packet::Direction::{Egress, Ingress};
        let flows = vec![
            flow(Ingress, 5432, 40_000, 4),
            flow(Egress, 5432, 40_000, 4),
            flow(Ingress, 5432, 40_001, 4),
        ];
        Observed { sent: 4, received: 8, flows, has_processes: true, ..Observed::default() }
    }

    fn explain(observed: &Observed, yaml: &str) -> String {
        let spec: RuleSpec = serde_saphyr::from_str(yaml).expect("valid YAML");
        let rules = spec.check().expect("valid");
        let causes = observed.explain(&rules, &Addresses::new(), by_number).causes;
        causes.join("\n")
    }

    #[test]
    fn what_was_seen_is_named_by_the_port_of_the_service() {
        assert_eq!(
            client().seen(),
            "saw 8 sent, 3 received packets of the target; most: tcp to 10.0.0.2:8080"
        );
        assert_eq!(
            server().seen(),
            "saw 4 sent, 8 received packets of the target; most: tcp to 10.0.0.2 at local port 5432"
        );
        assert_eq!(Observed::default().seen(), "saw no packet");
    }

    #[test]
    fn the_condition_that_is_not_met_is_named() {
        for (yaml, cause) in [
            (
                "{loss: 1%, remote-port: 8081}",
                "port: only remote port 8081 matches, but it is 8080",
            ),
            ("{loss: 1%, local-port: 8080}", "swapped ports: 8080 is the remote port here"),
            (
                "{loss: 1%, remote: 10.0.0.9}",
                "peer: only packets to 10.0.0.9 match, but the peer is 10.0.0.2",
            ),
            ("{loss: 1%, protocol: udp}", "protocol: only udp matches, but it is tcp"),
            (
                "{loss: 1%, tcp-flags: urg}",
                "TCP flags: only segments with urg match, but these have psh,ack",
            ),
            (
                "{loss: 1%, longer-than: 9000}",
                "length: only packets longer than 9000 bytes match, but the longest has 1500",
            ),
            (
                "{loss: 1%, remote: 10.0.0.9, remote-port: 8081}",
                "port: only remote port 8081 matches, but it is 8080; peer: only",
            ),
            ("{loss: 1%, remote: 10.0.0.9, remote-port: 1, protocol: udp}", "no similar packet"),
        ] {
            let text = explain(&client(), yaml);
            assert!(text.contains(&format!("): likely cause: {cause}")), "{yaml}: {text}");
        }
        let text = explain(&server(), "{loss: 1%, remote-port: 5432}");
        assert!(text.contains("swapped ports: 5432 is the local port here"), "{text}");
        let mut sender = client();
        sender.flows.retain(|flow| flow.direction == packet::Direction::Egress);
        let text = explain(&sender, "{loss: 1%, direction: ingress}");
        assert!(text.contains("direction: only received packets match"), "{text}");
    }

    #[test]
    fn over_a_loopback_the_port_of_the_service_is_named() {
        use packet::Direction::{Egress, Ingress};
        let flows = vec![flow(Egress, 8080, 40_000, 9), flow(Ingress, 40_000, 8080, 5)];
        let observed = Observed { sent: 9, received: 5, flows, ..Observed::default() };
        let text = explain(&observed, "{loss: 1%, remote-port: 8081}");
        assert!(text.ends_with("only remote port 8081 matches, but it is 8080"), "{text}");
    }

    #[test]
    fn packets_from_before_the_start_do_not_count() {
        let before = client();
        let mut now = client();
        now.sent += 2;
        now.flows[2].packets += 2;
        now.flows[2].longest = 9000;
        let since = now.since(Some(&before));
        assert_eq!((since.sent, since.received), (2, 0));
        let [flow] = &since.flows[..] else { panic!("{since:?}") };
        assert_eq!((flow.ports, flow.packets), (Some((40_001, 8080)), 2));
    }

    #[test]
    fn translated_peers_are_named() {
        let asked = IpAddr::from([192, 0, 2, 1]);
        let translation = Translation { asked, actual: IpAddr::from([10, 0, 0, 2]) };
        let observed = Observed { translations: vec![translation], ..client() };
        let text = explain(&observed, "{loss: 1%, remote: 192.0.2.1}");
        assert!(text.contains("packets to 192.0.2.1 have the peer 10.0.0.2"), "{text}");
        let text = explain(&observed, "{loss: 1%, direction: ingress, protocol: udp}");
        assert!(text.contains("match the remote address 192.0.2.1"), "{text}");
        let text = explain(&observed, "{loss: 1%, remote: 10.0.0.9}");
        assert!(text.contains("likely cause: peer"), "{text}");
    }

    #[test]
    fn without_traffic_it_says_where_there_was_some() {
        let elsewhere = BTreeMap::from([("eth1".to_owned(), 7)]);
        let observed = Observed {
            elsewhere,
            interfaces: vec!["eth0".into()],
            attached: Passed { received: 5, sent: 0 },
            ..Observed::default()
        };
        let text = explain(&observed, "{loss: 1%}");
        assert!(text.contains("no packet passed on eth0, but 7 passed on eth1"), "{text}");
        let text = explain(&observed, "{loss: 1%, direction: egress}");
        assert!(text.contains("only sent packets match, and none was sent"), "{text}");
        let observed =
            Observed { strangers: BTreeMap::from([("/old".to_owned(), 3)]), ..Observed::default() };
        let text = explain(&observed, "{loss: 1%}");
        assert!(text.contains("older sockets: the target's processes created 3 sockets"), "{text}");
        assert_eq!(explain(&Observed::default(), "{loss: 1%}"), "");
    }
}

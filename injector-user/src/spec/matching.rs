//! The packets that a rule matches, and how that is told.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

use injector_common::packet::protocol;
use ipnet::IpNet;

use super::{
    peer::Peer,
    rule::Direction,
    value::{PortSet, Protocol, Remote, TcpFlags},
};

/// The packets that a rule matches. Empty and absent fields match everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Matching {
    /// Direction of the packets.
    pub direction: Direction,
    /// IP protocols.
    pub protocols: Vec<Protocol>,
    /// Peer addresses.
    pub remotes: Vec<Remote>,
    /// Ports of the peer.
    pub remote_ports: Option<PortSet>,
    /// Ports of this host.
    pub local_ports: Option<PortSet>,
    /// TCP flags.
    pub tcp_flags: Option<TcpFlags>,
    /// Match only TCP segments with payload.
    pub data_only: bool,
    /// Match only IP packets longer than this on the wire.
    pub longer_than: Option<u16>,
}

impl Matching {
    /// Whether some packet may match both. Peers given by name may get any address.
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

    /// The packets, without their direction, for people.
    #[must_use]
    pub fn packets(&self) -> String {
        let is_everything = Self { direction: Direction::Both, ..self.clone() } == Self::default();
        if is_everything {
            return "all packets".into();
        }
        let mut words = vec![match self.protocols.as_slice() {
            [] => "packets".into(),
            protocols => any_of(protocols),
        }];
        if let Some(flags) = self.tcp_flags {
            words.push(format!("with flags {flags}"));
        }
        if self.data_only {
            words.push("with data".into());
        }
        if let Some(length) = self.longer_than {
            words.push(format!("longer than {length} bytes"));
        }
        let to = if self.direction == Direction::Ingress { "from" } else { "to" };
        match (self.remotes.as_slice(), &self.remote_ports) {
            ([], None) => {}
            ([], Some(ports)) => words.push(format!("{to} port {ports}")),
            (remotes, None) => words.push(format!("{to} {}", any_of(remotes))),
            (remotes, Some(ports)) => words.push(format!("{to} {}, port {ports}", any_of(remotes))),
        }
        if let Some(ports) = &self.local_ports {
            words.push(format!("at local port {ports}"));
        }
        words.join(" ")
    }

    /// Whether packets of a protocol may match.
    #[must_use]
    pub fn may_match(&self, protocol: u8) -> bool {
        self.protocols.is_empty() || self.protocols.contains(&Protocol(protocol))
    }

    /// Whether only packets on a loopback match, by their addresses and those of their peers.
    #[must_use]
    pub fn is_of_loopback(&self, addresses: &BTreeMap<Peer, Vec<IpAddr>>) -> bool {
        let is_of_loopback = |remote: &Remote| match remote {
            Remote::Net(IpNet::V4(net)) => net.network().is_loopback() && net.prefix_len() >= 8,
            Remote::Net(IpNet::V6(net)) => net.addr().is_loopback() && net.prefix_len() == 128,
            Remote::Peer(peer) => {
                let found = addresses.get(peer).map(Vec::as_slice).unwrap_or_default();
                !found.is_empty() && found.iter().all(IpAddr::is_loopback)
            }
        };
        !self.remotes.is_empty() && self.remotes.iter().all(is_of_loopback)
    }

    /// The TCP connections to which matching packets belong.
    #[must_use]
    pub fn connection(&self) -> Self {
        Self {
            direction: Direction::Both,
            protocols: vec![Protocol(protocol::TCP)],
            tcp_flags: None,
            data_only: false,
            longer_than: None,
            ..self.clone()
        }
    }
}

/// Whether the lists may have something in common. An empty list contains everything.
fn overlap<T>(a: &[T], b: &[T], same: impl Fn(&T, &T) -> bool) -> bool {
    a.is_empty() || b.is_empty() || a.iter().any(|a| b.iter().any(|b| same(a, b)))
}

fn share(a: Option<&PortSet>, b: Option<&PortSet>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return true };
    a.ranges().any(|a| b.ranges().any(|b| a.start() <= b.end() && b.start() <= a.end()))
}

impl Display for Matching {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let direction = match self.direction {
            Direction::Egress => "sent",
            Direction::Ingress => "received",
            Direction::Both => "both ways",
        };
        write!(f, "{}, {direction}", self.packets())
    }
}

/// "a, b or c"; of many, only the first ones.
fn any_of(values: &[impl Display]) -> String {
    /// The maximum number of values listed.
    const LISTED: usize = 4;

    let (listed, rest) = values.split_at(values.len().min(LISTED));
    let mut words: Vec<String> = listed.iter().map(|value| short(&value.to_string())).collect();
    let last = if rest.is_empty() { words.pop() } else { Some(format!("{} others", rest.len())) };
    match (words.join(", "), last) {
        (words, Some(last)) if words.is_empty() => last,
        (words, last) => format!("{words} or {}", last.unwrap_or_default()),
    }
}

/// An address as a prefix, without the length of a whole address.
fn short(text: &str) -> String {
    match text.parse::<IpNet>() {
        Ok(net) if net.prefix_len() == net.max_prefix_len() => net.addr().to_string(),
        _ => text.to_owned(),
    }
}

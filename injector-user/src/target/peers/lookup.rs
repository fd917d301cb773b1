//! One look-up of the addresses of a peer.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    time::Duration,
};

use super::feed::Feed;

use crate::{
    spec::{peer::Peer, target::TargetSpec},
    target::{ResolveError, Target},
};

/// How a peer is looked up, and what is kept between look-ups.
#[derive(Debug)]
pub(super) enum Lookup {
    /// A host name, by the resolver of the system: the first of these names that has addresses.
    Host(Vec<String>),
    /// Addresses that another part of the program keeps up to date.
    Feed(Arc<Feed>),
    /// The addresses of a target on this machine.
    Local {
        spec: Box<TargetSpec>,
        /// The target, as long as it exists.
        target: Option<Box<Target>>,
        /// Whether addresses that are only valid on a link or a machine count if there are no others.
        any: bool,
    },
}

impl Lookup {
    /// The look-up of a peer; `None` for a target of a scenario.
    pub fn of(peer: &Peer) -> Option<Self> {
        match peer {
            Peer::Host(name) => Some(Self::Host(vec![name.clone()])),
            Peer::Local(..) => {
                Some(Self::Local { spec: peer.target()?.into(), target: None, any: true })
            }
            Peer::Cluster(_) | Peer::Target(_) => None,
        }
    }

    /// The look-up of a target, by the addresses by which others reach it.
    pub fn of_target(spec: TargetSpec) -> Self {
        Self::Local { spec: spec.into(), target: None, any: false }
    }

    /// Whether name servers may be asked, which may take long.
    pub const fn is_host(&self) -> bool {
        matches!(self, Self::Host(_))
    }

    /// The time between look-ups.
    pub const fn interval(&self) -> Duration {
        Duration::from_secs(if self.is_host() { 5 } else { 1 })
    }

    /// Looks the addresses up. There is at least one, except from a feed; they are in ascending order.
    pub fn run(&mut self, peer: &Peer) -> Result<Vec<IpAddr>, ResolveError> {
        let mut addresses = match self {
            Self::Host(names) => {
                let mut found = Ok(Vec::new());
                for name in names {
                    found = (name.as_str(), 0).to_socket_addrs().map(Iterator::collect);
                    if found.is_ok() {
                        break;
                    }
                }
                let found: Vec<SocketAddr> = found
                    .map_err(|source| ResolveError::Host { name: peer.to_string(), source })?;
                found.into_iter().map(|address| address.ip().to_canonical()).collect()
            }
            Self::Feed(feed) => {
                return feed.addresses().ok_or_else(|| ResolveError::NoAddress(peer.to_string()));
            }
            Self::Local { spec, target, any } => best(of_target(spec, target)?, *any),
        };
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(ResolveError::NoAddress(peer.to_string()));
        }
        Ok(addresses)
    }
}

fn of_target(
    spec: &TargetSpec,
    target: &mut Option<Box<Target>>,
) -> Result<Vec<IpAddr>, ResolveError> {
    // An open namespace would outlive its processes, so nothing of a target that is gone is kept.
    let kept = target.take().filter(|target| !target.is_gone());
    let found = match kept {
        Some(found) => found,
        None => Target::resolve(spec, false)?.into(),
    };
    let addresses = found.addresses()?;
    // A namespace by name may be replaced at any time.
    *target = found.has_processes().then_some(found);
    Ok(addresses)
}

/// The addresses that are valid everywhere; if there are none and `any` is set, those that are valid
/// on a link, or else on a machine.
pub(super) fn best(addresses: Vec<IpAddr>, any: bool) -> Vec<IpAddr> {
    let widest = addresses.iter().map(scope).max().unwrap_or(Scope::Machine);
    let wanted = if any { widest } else { Scope::Global };
    addresses.into_iter().filter(|address| scope(address) == wanted).collect()
}

/// Where an address is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    Machine,
    Link,
    Global,
}

pub(super) fn scope(address: &IpAddr) -> Scope {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match (address.is_loopback(), is_link_local) {
        (true, _) => Scope::Machine,
        (_, true) => Scope::Link,
        _ => Scope::Global,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn addresses_that_are_valid_everywhere_come_first() {
        let all = addresses(&["127.0.0.1", "fe80::1", "10.0.0.1", "fd00::1"]);
        assert_eq!(best(all.clone(), true), all[2..]);
        assert_eq!(best(all.clone(), false), all[2..]);
        assert_eq!(best(all[..2].to_vec(), true), all[1..2]);
        assert_eq!(best(all[..1].to_vec(), true), all[..1]);
        assert!(best(all[..2].to_vec(), false).is_empty());
        assert!(best(Vec::new(), true).is_empty());
    }
}

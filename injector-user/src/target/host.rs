//! Resolves host names once, before any fault is applied, and reports the addresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, ToSocketAddrs as _},
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ResolveError;
use crate::spec::{rule::Rule, value::Remote};

/// What a host name was resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resolved {
    /// The name as written.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Replaces the host names in `rules` with their addresses. Resolves each name once.
pub fn resolve(rules: &mut [Rule]) -> Result<Vec<Resolved>, ResolveError> {
    let mut known: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for rule in rules {
        let mut remotes = Vec::with_capacity(rule.matching.remotes.len());
        for remote in rule.matching.remotes.drain(..) {
            let Remote::Host(name) = remote else {
                remotes.push(remote);
                continue;
            };
            if !known.contains_key(&name) {
                known.insert(name.clone(), addresses(&name)?);
            }
            let nets = known[&name].iter().map(|&address| Remote::Net(IpNet::from(address)));
            remotes.extend(nets);
        }
        rule.matching.remotes = remotes;
    }
    Ok(known.into_iter().map(|(name, addresses)| Resolved { name, addresses }).collect())
}

fn addresses(name: &str) -> Result<Vec<IpAddr>, ResolveError> {
    let found = (name, 0)
        .to_socket_addrs()
        .map_err(|source| ResolveError::Host { name: name.into(), source })?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(ResolveError::NoAddress(name.into()));
    }
    Ok(addresses)
}

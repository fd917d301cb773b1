//! Finds peers of rules that are the target itself, a common mistake: `--remote` is the other end.

use std::net::IpAddr;

use super::NetworkError;
use crate::{
    kernel::{interface, netns::Netns},
    spec::{rule::Rule, value::Remote},
    target::peers::Addresses,
};

/// The peers in rules that are addresses of all these namespaces. Only packets that a namespace sends
/// to itself have them.
pub fn peers<'a>(
    rules: &[Rule],
    addresses: &Addresses,
    namespaces: impl IntoIterator<Item = &'a Netns>,
) -> Result<Vec<IpAddr>, NetworkError> {
    let remotes = rules.iter().flat_map(|rule| &rule.matching.remotes);
    let mut peers: Vec<IpAddr> = remotes.flat_map(|remote| singles(remote, addresses)).collect();
    peers.sort_unstable();
    peers.dedup();
    let mut is_any = false;
    for netns in namespaces {
        if peers.is_empty() {
            break;
        }
        let own = interface::addresses(netns)?;
        peers.retain(|peer| own.contains(peer));
        is_any = true;
    }
    Ok(if is_any { peers } else { Vec::new() })
}

/// The addresses that are not of the loopback; none of a prefix.
fn singles(remote: &Remote, addresses: &Addresses) -> Vec<IpAddr> {
    let all = match remote {
        Remote::Net(net) if net.prefix_len() == net.max_prefix_len() => vec![net.addr()],
        Remote::Net(_) => Vec::new(),
        Remote::Peer(peer) => addresses.get(peer).cloned().unwrap_or_default(),
    };
    all.into_iter().filter(|address| !address.is_loopback()).collect()
}

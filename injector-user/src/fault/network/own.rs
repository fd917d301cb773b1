//! Finds peers of rules that are the target itself, a common mistake: `--remote` is the other end.

use std::net::IpAddr;

use super::NetworkError;
use crate::{
    kernel::{interface, netns::Netns},
    spec::{rule::Rule, value::Remote},
};

/// The peers in rules that are addresses of all these namespaces. Only packets that a namespace sends
/// to itself have them.
pub fn peers<'a>(
    rules: &[Rule],
    namespaces: impl IntoIterator<Item = &'a Netns>,
) -> Result<Vec<IpAddr>, NetworkError> {
    let remotes = rules.iter().flat_map(|rule| &rule.matching.remotes);
    let mut peers: Vec<IpAddr> = remotes.filter_map(single).collect();
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

/// The address, if it is one that is not of the loopback.
fn single(remote: &Remote) -> Option<IpAddr> {
    match remote {
        Remote::Net(net) if net.prefix_len() == net.max_prefix_len() => {
            Some(net.addr()).filter(|address| !address.is_loopback())
        }
        Remote::Net(_) | Remote::Host(_) => None,
    }
}

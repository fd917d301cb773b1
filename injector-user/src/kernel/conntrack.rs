//! Connections whose addresses the kernel translates (NAT), by `ctnetlink`
//! (`linux/netfilter/nfnetlink_conntrack.h`).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use indexmap::IndexSet;
use nix::sys::socket::SockProtocol;

use super::{
    KernelError,
    netlink::{attribute, dump},
    netns::Netns,
    sysctl,
};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const GET: u16 = 1 << 8 | 1;

/// Length of `struct nfgenmsg`.
const GENERIC: usize = 4;

/// Attributes of a connection.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;

/// The attribute of a tuple that has the addresses.
const ADDRESSES: u16 = 1;

/// Number of connections that are looked at.
const MAX_CONNECTIONS: usize = 100_000;

/// A connection to a peer that the kernel replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Translation {
    /// The peer that was asked for.
    pub asked: IpAddr,
    /// The peer in the packets.
    pub actual: IpAddr,
}

/// The translated peers in a namespace. Empty if it tracks no connections.
pub fn translations(netns: &Netns) -> Result<Vec<Translation>, KernelError> {
    // Without connections the request could load the kernel's module for nothing.
    let count = sysctl::get(netns, "netfilter/nf_conntrack_count")?;
    if count.map_or(true, |count| count == "0") {
        return Ok(Vec::new());
    }
    netns.run(|| list().map_err(KernelError::Conntrack))?
}

fn list() -> io::Result<Vec<Translation>> {
    let (mut found, mut seen) = (IndexSet::new(), 0);
    // Any family.
    dump(SockProtocol::NetlinkNetFilter, GET, &[0; GENERIC], |body| {
        seen += 1;
        found.extend(translation(body));
        seen < MAX_CONNECTIONS
    })?;
    Ok(found.into_iter().collect())
}

/// The connection's peer as asked for and as in the packets, if they differ.
fn translation(body: &[u8]) -> Option<Translation> {
    let connection = body.get(GENERIC..)?;
    let (_, asked) = addresses(connection, ORIGINAL)?;
    let (actual, _) = addresses(connection, REPLY)?;
    (asked != actual).then_some(Translation { asked, actual })
}

/// The source and the destination of a tuple.
fn addresses(connection: &[u8], tuple: u16) -> Option<(IpAddr, IpAddr)> {
    let addresses = attribute(attribute(connection, tuple)?, ADDRESSES)?;
    let v4 = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(attribute(addresses, kind)?).ok()?));
    let v6 = |kind| Some(Ipv6Addr::from(<[u8; 16]>::try_from(attribute(addresses, kind)?).ok()?));
    match (v4(1), v4(2)) {
        (Some(source), Some(destination)) => Some((source.into(), destination.into())),
        _ => Some((v6(3)?.into(), v6(4)?.into())),
    }
}

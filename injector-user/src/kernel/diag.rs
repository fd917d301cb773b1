//! In which cgroup sockets were created, by `NETLINK_SOCK_DIAG` (`sock_diag(7)`).

use std::{collections::HashMap, io};

use nix::sys::socket::SockProtocol;

use super::{
    KernelError,
    netlink::{attribute, dump, u32_at},
    netns::Netns,
};

/// `SOCK_DIAG_BY_FAMILY` (`linux/sock_diag.h`).
const BY_FAMILY: u16 = 20;

/// `INET_DIAG_CGROUP_ID` (`linux/inet_diag.h`, Linux 5.9).
const CGROUP_ID: u16 = 21;

/// Lengths of `inet_diag_req_v2` and `inet_diag_msg`.
const REQUEST: usize = 56;
const ANSWER: usize = 72;

/// Where `inet_diag_msg` has the inode.
const INODE_AT: usize = 68;

/// The ID of the cgroup in which each TCP and UDP socket of a namespace was created, by the inode of
/// the socket.
pub fn cgroups_of_sockets(netns: &Netns) -> Result<HashMap<u64, u64>, KernelError> {
    netns.run(|| {
        let mut found = HashMap::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
                list(family, protocol, &mut found).map_err(KernelError::SocketDump)?;
            }
        }
        Ok(found)
    })?
}

fn list(family: i32, protocol: i32, found: &mut HashMap<u64, u64>) -> io::Result<()> {
    // No extension; all states, of any address.
    let mut request = vec![family as u8, protocol as u8, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.resize(REQUEST, 0);
    dump(SockProtocol::NetlinkSockDiag, BY_FAMILY, &request, |body| {
        if let (Some(inode), Some(cgroup)) = (u32_at(body, INODE_AT), cgroup_in(body))
            && inode != 0
        {
            found.insert(inode.into(), cgroup);
        }
        true
    })
}

/// The attribute with the cgroup's ID.
fn cgroup_in(body: &[u8]) -> Option<u64> {
    let value = attribute(body.get(ANSWER..)?, CGROUP_ID)?;
    Some(u64::from_ne_bytes(value.try_into().ok()?))
}

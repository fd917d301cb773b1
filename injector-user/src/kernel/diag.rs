//! In which cgroup sockets were created, by `NETLINK_SOCK_DIAG` (`sock_diag(7)`).

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::{KernelError, netns::Netns};

/// `SOCK_DIAG_BY_FAMILY` (`linux/sock_diag.h`).
const BY_FAMILY: u16 = 20;

/// `INET_DIAG_CGROUP_ID` (`linux/inet_diag.h`, Linux 5.9).
const CGROUP_ID: u16 = 21;

/// Lengths of `struct nlmsghdr`, `inet_diag_req_v2` and `inet_diag_msg`, and of an attribute's header.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;
const ATTRIBUTE: usize = 4;

/// Where `inet_diag_msg` has the inode.
const INODE_AT: usize = 68;

/// The ID of the cgroup in which each TCP and UDP socket of a namespace was created, by the inode of
/// the socket.
pub fn cgroups_of_sockets(netns: &Netns) -> Result<HashMap<u64, u64>, KernelError> {
    netns.run(|| {
        let mut found = HashMap::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
                dump(family, protocol, &mut found).map_err(KernelError::SocketDump)?;
            }
        }
        Ok(found)
    })?
}

fn dump(family: i32, protocol: i32, found: &mut HashMap<u64, u64>) -> io::Result<()> {
    let netlink: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    // The sequence number and the port, then the family, the protocol and no extension.
    request.extend([0; 8]);
    request.extend([family as u8, protocol as u8, 0, 0]);
    // All states, of any address.
    request.extend(u32::MAX.to_ne_bytes());
    request.resize(HEADER + REQUEST, 0);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if !take(&buffer[..length], found)? {
            return Ok(());
        }
    }
}

/// Takes the sockets of a part of an answer. Returns whether more follow.
fn take(mut messages: &[u8], found: &mut HashMap<u64, u64>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(messages, 0), u16_at(messages, 4)) {
        let length = length as usize;
        let Some(body) = messages.get(HEADER..length) else { break };
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(false),
            libc::NLMSG_ERROR => {
                let code = u32_at(body, 0).unwrap_or_default().cast_signed();
                return Err(io::Error::from_raw_os_error(-code));
            }
            _ => {
                if let (Some(inode), Some(cgroup)) = (u32_at(body, INODE_AT), cgroup_in(body))
                    && inode != 0
                {
                    found.insert(inode.into(), cgroup);
                }
            }
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// The attribute with the cgroup's ID.
fn cgroup_in(body: &[u8]) -> Option<u64> {
    let mut attributes = body.get(ANSWER..)?;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(ATTRIBUTE..length)?;
        if u16_at(attributes, 2)? == CGROUP_ID {
            return Some(u64::from_ne_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

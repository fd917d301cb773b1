//! Change notifications for links, qdiscs and filters of a network namespace, which avoid polling.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use super::{KernelError, netns::Netns};

/// The multicast groups of links and of traffic control (`linux/rtnetlink.h`).
const GROUPS: u32 = 1 | 8;

/// The handle of a clsact qdisc.
const CLSACT: u32 = 0xffff_0000;

/// The changes since the last call of [`Monitor::changes`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether anything has changed.
    pub any: bool,
    /// The indexes of interfaces that lost a clsact qdisc, even if it has been added again.
    pub removed: BTreeSet<u32>,
}

/// A netlink socket that receives change notifications.
#[derive(Debug)]
pub struct Monitor {
    socket: OwnedFd,
    /// Changes not returned yet.
    pending: Changes,
}

impl Monitor {
    /// Monitors a namespace. The first call of [`Self::changes`] reports a change.
    pub fn new(netns: &Netns) -> Result<Self, KernelError> {
        let open = || {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let protocol = SockProtocol::NetlinkRoute;
            let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
            Ok(socket)
        };
        let socket =
            netns.run(open)?.map_err(|error: nix::Error| KernelError::Netlink(error.into()))?;
        Ok(Self { socket, pending: Changes { any: true, ..Changes::default() } })
    }

    /// The changes since the last call.
    pub fn changes(&mut self) -> Result<Changes, KernelError> {
        let mut changes = std::mem::take(&mut self.pending);
        let mut buffer = vec![0; 1 << 15];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => {
                    changes.any = true;
                    changes.removed.extend(removed(&buffer[..length.min(buffer.len())]));
                }
                // The socket's buffer overflowed: messages are lost.
                Err(nix::Error::ENOBUFS) => changes.any = true,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Ok(changes),
                Err(error) => return Err(KernelError::Netlink(io::Error::from(error))),
            }
        }
    }
}

/// Parses the interfaces that lost a clsact qdisc from messages (`struct nlmsghdr`, `struct tcmsg`).
fn removed(mut messages: &[u8]) -> Vec<u32> {
    const HEADER: usize = 16;
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
    };
    let mut found = Vec::new();
    while let Some(length) = word(messages, 0)
        && length as usize >= HEADER
    {
        let is_removal = messages.get(4..6) == Some(&libc::RTM_DELQDISC.to_ne_bytes());
        if is_removal
            && let (Some(index), Some(CLSACT)) =
                (word(messages, HEADER + 4), word(messages, HEADER + 8))
        {
            found.push(index);
        }
        let next = (length as usize).next_multiple_of(4);
        messages = messages.get(next..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        clsact,
        interface::{self, Interface},
    };

    #[test]
    fn a_removed_qdisc_is_reported_even_if_added_again() {
        Netns::scratch(|| {
            let netns = Netns::current()?;
            let lo: Interface = interface::list(&netns)?.remove(0);
            let mut monitor = Monitor::new(&netns)?;
            assert!(monitor.changes()?.any);
            assert_eq!(monitor.changes()?, Changes::default());
            clsact::add_qdisc(&netns, &lo).map_err(KernelError::Thread)?;
            let added = monitor.changes()?;
            assert_eq!(added, Changes { any: true, removed: BTreeSet::new() });
            let mut remove = std::process::Command::new("tc");
            remove.args(["qdisc", "del", "dev", "lo", "clsact"]);
            assert!(remove.status().expect("iproute2 is installed").success());
            clsact::add_qdisc(&netns, &lo).map_err(KernelError::Thread)?;
            let changes = monitor.changes()?;
            assert_eq!(changes.removed, BTreeSet::from([lo.index]));
            assert_eq!(monitor.changes()?, Changes::default());
            Ok(())
        })
        .expect("a namespace of its own");
    }

    #[test]
    fn broken_messages_are_nothing() {
        assert!(removed(&[]).is_empty());
        assert!(removed(&[16, 0, 0, 0, 37]).is_empty());
        let mut message = [0u8; 24];
        message[..4].copy_from_slice(&17u32.to_ne_bytes());
        message[4..6].copy_from_slice(&libc::RTM_DELQDISC.to_ne_bytes());
        assert!(removed(&message[..17]).is_empty());
    }
}

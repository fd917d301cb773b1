//! Dumps of netlink protocols that `rtnetlink` does not speak.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Lengths of `struct nlmsghdr` and of an attribute's header.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;

/// Requests a dump in the calling thread's namespace. Calls `take` with the body of each message, until
/// it returns false.
pub(super) fn dump(
    protocol: SockProtocol,
    kind: u16,
    body: &[u8],
    mut take: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let netlink: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    // The sequence number and the port.
    request.extend([0; 8]);
    request.extend(body);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if !each(&buffer[..length], &mut take)? {
            return Ok(());
        }
    }
}

/// Calls `take` with the messages of a part of a dump. Returns whether more parts are wanted.
fn each(mut messages: &[u8], take: &mut impl FnMut(&[u8]) -> bool) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(messages, 0), u16_at(messages, 4)) {
        let length = length as usize;
        let Some(body) = messages.get(HEADER..length) else { break };
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(false),
            libc::NLMSG_ERROR => {
                let code = u32_at(body, 0).unwrap_or_default().cast_signed();
                return Err(io::Error::from_raw_os_error(-code));
            }
            _ if !take(body) => return Ok(false),
            _ => {}
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// The value of the attribute of this kind.
pub(super) fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    /// Flags of the kind: nested, and in network byte order.
    const FLAGS: u16 = 0xc000;

    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(ATTRIBUTE..length)?;
        if u16_at(attributes, 2)? & !FLAGS == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The number at this offset.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

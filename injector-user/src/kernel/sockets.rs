//! Sockets of other processes.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockaddrLike as _, SockaddrStorage, getsockname};

use super::{descriptor::owned, pidfd::Handle};

/// The sockets among the open files of a process, as number and inode. Empty if it has ended.
#[must_use]
pub fn of_process(pid: i32) -> Vec<(i32, u64)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let sockets = entries.filter_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some((entry.file_name().to_str()?.parse().ok()?, inode.parse().ok()?))
    });
    sockets.collect()
}

/// Whether it is a socket for packets of IP: not one of the Unix domain, for instance.
#[must_use]
pub fn is_of_ip(socket: &OwnedFd) -> bool {
    let Ok(name) = getsockname::<SockaddrStorage>(socket.as_raw_fd()) else { return false };
    let family = name.family();
    matches!(family, Some(AddressFamily::Inet | AddressFamily::Inet6 | AddressFamily::Packet))
}

/// Duplicates an open file of a process (`pidfd_getfd(2)`, Linux 5.6).
pub fn duplicate(process: &Handle, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers; returns a new descriptor.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

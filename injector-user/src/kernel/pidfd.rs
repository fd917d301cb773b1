//! Waiting for the end of processes that are not our children.

use std::{
    io,
    os::fd::{AsFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits, for so long at the most, until a process has ended with all its threads, so that all files are closed that
/// it alone had open (`pidfd_open(2)`, Linux 5.3). One that is not there has ended.
pub fn wait_for_end(pid: u32, patience: Duration) -> io::Result<()> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) };
    }
    // SAFETY: a new descriptor, which nobody else knows.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout)?;
    Ok(())
}

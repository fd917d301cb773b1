//! Waiting for and signalling processes that are not children, by pidfd.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use procfs::process::{Process, Stat};

use super::descriptor::owned;

/// Waits for at most `timeout` until a process has ended with all its threads, so that its files are
/// closed (`pidfd_open(2)`, Linux 5.3). Returns at once if there is no such process, or if it has
/// another start time than `started`, unless that is 0.
pub fn wait_for_end(pid: u32, started: u64, timeout: Duration) -> io::Result<()> {
    let fd = match open(pid.cast_signed()) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        opened => opened?,
    };
    let is_other = |stat: Stat| started != 0 && stat.starttime != started;
    if stat(pid.cast_signed()).is_none_or(is_other) {
        return Ok(());
    }
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout)?;
    Ok(())
}

/// A handle of a process, immune to reuse of its PID.
#[derive(Debug)]
pub struct Handle {
    /// The PID.
    pub pid: i32,
    /// The start time in clock ticks since boot (`proc_pid_stat(5)`).
    pub started: u64,
    fd: OwnedFd,
}

impl Handle {
    /// Opens a process; `None` if there is none.
    #[must_use]
    pub fn open(pid: i32) -> Option<Self> {
        let fd = open(pid).ok()?;
        let stat = stat(pid)?;
        Some(Self { pid, started: stat.starttime, fd })
    }

    /// Opens the process with this start time; `None` if it is gone.
    #[must_use]
    pub fn find(pid: i32, started: u64) -> Option<Self> {
        Self::open(pid).filter(|handle| handle.started == started)
    }

    /// Sends a signal (`pidfd_send_signal(2)`, Linux 5.1).
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the kernel makes up the information of a signal that has none.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether it is stopped by a signal, not by a debugger.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.starttime == self.started && stat.state == 'T')
    }

    /// Whether it has not ended, though its parent may not have been told.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
    }

    /// Whether it is runnable or waiting: neither stopped nor ended.
    #[must_use]
    pub fn runs(&self) -> bool {
        stat(self.pid).is_some_and(|stat| {
            stat.starttime == self.started && !matches!(stat.state, 'T' | 't' | 'Z' | 'X')
        })
    }
}

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers; returns a new descriptor.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

fn stat(pid: i32) -> Option<Stat> {
    Process::new(pid).and_then(|process| process.stat()).ok()
}

//! Processes that are not our children: waiting for their end, and signals.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use procfs::process::{Process, Stat};

/// Waits, for so long at the most, until a process has ended with all its threads, so that all files are closed that
/// it alone had open (`pidfd_open(2)`, Linux 5.3). One that is not there has ended, and so has one that was made at
/// another time, if that is given (not 0).
pub fn wait_for_end(pid: u32, started: u64, patience: Duration) -> io::Result<()> {
    let fd = match open(pid.cast_signed()) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        opened => opened?,
    };
    let is_other = |stat: Stat| started != 0 && stat.starttime != started;
    if stat(pid.cast_signed()).is_none_or(is_other) {
        return Ok(());
    }
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout)?;
    Ok(())
}

/// A process that cannot be taken for another one with its number.
#[derive(Debug)]
pub struct Handle {
    /// Its number.
    pub pid: i32,
    /// When it was made, in clock ticks since the boot (`proc_pid_stat(5)`).
    pub started: u64,
    fd: OwnedFd,
}

impl Handle {
    /// Opens a process; `None` if it is not there.
    #[must_use]
    pub fn open(pid: i32) -> Option<Self> {
        let fd = open(pid).ok()?;
        let stat = stat(pid)?;
        Some(Self { pid, started: stat.starttime, fd })
    }

    /// Opens the process that was made at this time; `None` if it is not there any more.
    #[must_use]
    pub fn find(pid: i32, started: u64) -> Option<Self> {
        Self::open(pid).filter(|handle| handle.started == started)
    }

    /// Sends it a signal (`pidfd_send_signal(2)`, Linux 5.1).
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the kernel makes up the information of a signal that has none.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether it has been stopped, but not by a debugger.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.starttime == self.started && stat.state == 'T')
    }

    /// Whether it runs, or would if it were its turn: it has neither ended nor been stopped.
    #[must_use]
    pub fn runs(&self) -> bool {
        stat(self.pid).is_some_and(|stat| {
            stat.starttime == self.started && !matches!(stat.state, 'T' | 't' | 'Z' | 'X')
        })
    }
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn stat(pid: i32) -> Option<Stat> {
    Process::new(pid).and_then(|process| process.stat()).ok()
}

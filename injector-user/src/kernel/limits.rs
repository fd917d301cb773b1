//! Resource limits of this process and priorities of its threads.

use nix::{
    errno::Errno,
    sys::{
        prctl::set_timerslack,
        resource::{Resource, getrlimit, rlim_t, setrlimit},
    },
};

/// The limit of open files, soft and hard.
pub type Files = (rlim_t, rlim_t);

/// The limit of open files of this process.
pub fn files() -> nix::Result<Files> {
    getrlimit(Resource::RLIMIT_NOFILE)
}

/// Raises the soft limit of open files to the hard limit.
pub fn raise_files() -> nix::Result<()> {
    let (_, hard) = files()?;
    set_files((hard, hard))
}

/// Sets the limit. Async-signal-safe.
pub fn set_files((soft, hard): Files) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
}

/// Gives the calling thread and the threads that it starts a high priority and exact timers: for
/// threads that mostly sleep and must wake in time.
pub fn prefer_this_thread() -> nix::Result<()> {
    /// Half of the range of negative nice values.
    const NICE: i32 = -10;
    // 1 ns is the minimum; by default, the kernel may delay timers by 50 µs.
    set_timerslack(1)?;
    // SAFETY: takes no pointers. On Linux a priority is a thread's, and 0 is the calling one (setpriority(2)).
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) }).map(drop)
}

//! Limits of this process, and priorities of its threads.

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

/// Lets this process have as many files open as it may.
pub fn raise_files() -> nix::Result<()> {
    let (_, hard) = files()?;
    set_files((hard, hard))
}

/// Sets the limit. Async-signal-safe.
pub fn set_files((soft, hard): Files) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
}

/// Has the calling thread, and those that it will start, run before others that want a processor, and sleep no longer
/// than they say: for one that sleeps nearly always, and must not be late.
pub fn prefer_this_thread() -> nix::Result<()> {
    /// Half of what there is.
    const NICE: i32 = -10;
    // The least there is, in nanoseconds; by default the kernel may add 50 µs to each sleep.
    set_timerslack(1)?;
    // SAFETY: takes no pointers. On Linux a priority is a thread's, and 0 is the calling one (setpriority(2)).
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) }).map(drop)
}

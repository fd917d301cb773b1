//! Limits of this process.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

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

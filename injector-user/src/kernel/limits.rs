//! Limits of this process.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// The limit of open files, soft and hard.
pub type Files = (rlim_t, rlim_t);

/// Lets this process have as many files open as it may: it has one for each process whose clocks it faults.
/// Returns the limit before.
pub fn raise_files() -> nix::Result<Files> {
    let before = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, before.1, before.1)?;
    Ok(before)
}

/// Sets the limit. Async-signal-safe.
pub fn set_files((soft, hard): Files) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
}

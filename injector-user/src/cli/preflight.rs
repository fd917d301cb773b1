//! Checks of the environment before anything is attached.
//!
//! A missing prerequisite would otherwise surface while faults are active, or as a panic in a
//! library.

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit};
use rand::{TryRng as _, rngs::SysRng};

/// Minimum stack size of the main thread, in bytes. The command-line parser alone takes more than
/// 256 KiB in a debug build.
const MIN_STACK: u64 = 1 << 20;

/// Minimum limit of open files. The maps, programs and links of a session take about 60.
const MIN_FILES: u64 = 128;

/// Checks the stack limit. Must run first, because the command-line parser needs the stack.
pub fn check_stack() -> Result<()> {
    let (soft, _) = getrlimit(Resource::RLIMIT_STACK).context("cannot read the stack limit")?;
    if soft < MIN_STACK {
        bail!(
            "the stack limit is {} KiB, but injector needs {} KiB: raise it with `ulimit -s {1}`",
            soft >> 10,
            MIN_STACK >> 10
        );
    }
    Ok(())
}

/// Checks the requirements of every command.
pub fn check() -> Result<()> {
    let (soft, _) =
        getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    if soft < MIN_FILES {
        bail!(
            "the limit of open files is {soft}, but injector needs {MIN_FILES}: raise it with \
             `ulimit -n 1024`"
        );
    }
    SysRng.try_next_u64().map(drop).context(
        "cannot get random numbers from the kernel (getrandom, /dev/urandom): mount /dev, or \
         allow getrandom(2)",
    )
}

/// Checks the requirements of faults: parts of /dev and /sys.
pub fn check_mounts() -> Result<()> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("cannot open /dev/null: injector needs a populated /dev")?;
    match aya::util::nr_cpus() {
        Ok(_) => Ok(()),
        Err((path, error)) => bail!(
            "cannot read {path}: {error}; injector needs sysfs: mount it with \
             `mount -t sysfs sysfs /sys`"
        ),
    }
}

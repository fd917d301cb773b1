//! Checks of the environment that come before anything is attached. What is missing would otherwise
//! be noticed when faults act already, or end the process by a panic in a library.

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit};
use rand::{TryRng as _, rngs::SysRng};

/// The smallest stack of the main thread, in bytes. The parser of the command line alone takes more
/// than 256 KiB in a debug build.
const LEAST_STACK: u64 = 1 << 20;

/// The smallest limit of open files: maps, programs and links of a session take about 60.
const LEAST_FILES: u64 = 128;

/// Checks the stack, which the parser of the command line needs. To be called first.
pub fn check_stack() -> Result<()> {
    let (soft, _) = getrlimit(Resource::RLIMIT_STACK).context("cannot read the stack limit")?;
    if soft < LEAST_STACK {
        bail!(
            "the stack limit is {} KiB, but injector needs {} KiB: raise it with `ulimit -s {1}`",
            soft >> 10,
            LEAST_STACK >> 10
        );
    }
    Ok(())
}

/// Checks what every command needs.
pub fn check() -> Result<()> {
    let (soft, _) =
        getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    if soft < LEAST_FILES {
        bail!(
            "the limit of open files is {soft}, but injector needs {LEAST_FILES}: raise it with \
             `ulimit -n 1024`"
        );
    }
    SysRng.try_next_u64().map(drop).context(
        "cannot get random numbers from the kernel (getrandom, /dev/urandom): mount /dev, or \
         allow getrandom(2)",
    )
}

/// Checks what faults need: parts of /dev and /sys.
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

//! The guardian: a child process that waits for injector to die and then undoes the journal.
//!
//! It executes the same program again, whichever that is: this crate, linked into it, takes over
//! before `main` if the environment requests it. A child that only forked would share memory and
//! locks with threads that do not exist in it.

use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use super::{LifetimeError, cleanup, journal::Journal};

/// Environment variable that contains a guardian's slot.
const VARIABLE: &str = "INJECTOR_GUARDIAN";

/// The first argument of a guardian.
const NAME: &str = "guardian";

/// Whether [`enter`] ran in this process, and will therefore run in a child.
static CAN_ENTER: AtomicBool = AtomicBool::new(false);

/// Called by the C library before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static ENTER: extern "C" fn() = enter;

/// Runs the guardian instead of the program, if the process was started as one.
extern "C" fn enter() {
    CAN_ENTER.store(true, Relaxed);
    let Some(slot) = std::env::var(VARIABLE).ok().and_then(|slot| slot.parse().ok()) else {
        return;
    };
    // The variable may be set by accident, so check the command line too.
    let is_guardian = |line: Vec<u8>| line.split(|&byte| byte == 0).nth(1) == Some(NAME.as_bytes());
    if !std::fs::read("/proc/self/cmdline").is_ok_and(is_guardian) {
        return;
    }
    // The name would be "exe". Failure is harmless.
    let _ = nix::sys::prctl::set_name(c"injector-guard");
    let code = i32::from(run(slot).is_err());
    // SAFETY: ends the process; the host program has not started, so it has nothing to clean up.
    unsafe { libc::_exit(code) }
}

/// A running guardian.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
}

impl Guardian {
    /// Starts the guardian of a slot.
    ///
    /// It detects injector's death by the end of its standard input: only injector holds the other
    /// end.
    pub fn start(slot: u32) -> Result<Self, LifetimeError> {
        if !CAN_ENTER.load(Relaxed) {
            let error = "this program was linked without .init_array of its libraries";
            return Err(LifetimeError::Guardian(io::Error::other(error)));
        }
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("injector")
            .args([NAME, &slot.to_string()])
            .env(VARIABLE, slot.to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: setsid and close_range are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                // A new session, so that signals of the terminal do not reach it.
                nix::unistd::setsid()?;
                // Not every program sets close-on-exec. Before Linux 5.11 inherited descriptors
                // stay open.
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
                Ok(())
            });
        }
        command.spawn().map(|child| Self { child }).map_err(LifetimeError::Guardian)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Releases the guardian and waits for it to end.
    pub fn dismiss(mut self) {
        drop(self.child.stdin.take());
        // If it was killed, there is nothing left for it to do.
        let _ = self.child.wait();
    }
}

/// Waits for the end of standard input, then settles the journal.
fn run(slot: u32) -> Result<(), LifetimeError> {
    let mut rest = Vec::new();
    // Nothing is ever written to it. However reading ends, wait for the owner's lock next.
    let _: io::Result<usize> = io::stdin().read_to_end(&mut rest);
    let settled = match Journal::inherit(slot)? {
        Some(journal) => journal.settle().map(drop),
        None => Ok(()),
    };
    // The owner may have had other slots, or have kept others' leftovers in use.
    cleanup::sweep();
    settled
}

//! The guardian: a child that waits for our death, and then undoes what is in our journal.
//!
//! It runs the program that started it, whichever that is: this crate, linked into it, takes over before `main` where the
//! environment says so. A child that only forked would share locks with threads that it does not have, and memory.

use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use super::{LifetimeError, cleanup, journal::Journal};

/// What the environment of a guardian says: its slot.
const VARIABLE: &str = "INJECTOR_GUARDIAN";

/// What the command line of a guardian says.
const NAME: &str = "guardian";

/// Whether [`enter`] was called, so that it will be in a child as well.
static CAN_ENTER: AtomicBool = AtomicBool::new(false);

/// Called by the C library before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static ENTER: extern "C" fn() = enter;

/// Becomes a guardian instead of the program that this is, if it was started as one.
extern "C" fn enter() {
    CAN_ENTER.store(true, Relaxed);
    let Some(slot) = std::env::var(VARIABLE).ok().and_then(|slot| slot.parse().ok()) else {
        return;
    };
    // Somebody may have set the variable who did not mean that.
    let is_guardian = |line: Vec<u8>| line.split(|&byte| byte == 0).nth(1) == Some(NAME.as_bytes());
    if !std::fs::read("/proc/self/cmdline").is_ok_and(is_guardian) {
        return;
    }
    // It was "exe". If that fails, it stays.
    let _ = nix::sys::prctl::set_name(c"injector-guard");
    let code = i32::from(run(slot).is_err());
    // SAFETY: ends the process; the program that this is has not begun, so it has nothing to do at its end.
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
    /// It learns of our death by the end of its standard input, of which only we hold the other end.
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
                // A session of its own, so that no terminal's signals reach it.
                nix::unistd::setsid()?;
                // Not all programs mark all of their descriptors. Before Linux 5.11 those stay open.
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

    /// Lets it go and waits for its end.
    pub fn dismiss(mut self) {
        drop(self.child.stdin.take());
        // It cannot be helped if it was killed; there is nothing left for it to do.
        let _ = self.child.wait();
    }
}

/// What the guardian does: waits for the end of its standard input, then settles the journal.
fn run(slot: u32) -> Result<(), LifetimeError> {
    let mut rest = Vec::new();
    // Nothing is ever written to it. Whatever ends the reading, the owner's lock is waited for next.
    let _: io::Result<usize> = io::stdin().read_to_end(&mut rest);
    let settled = match Journal::inherit(slot)? {
        Some(journal) => journal.settle().map(drop),
        None => Ok(()),
    };
    // Its owner may have had other slots, and may have kept in use what others have left.
    cleanup::sweep();
    settled
}

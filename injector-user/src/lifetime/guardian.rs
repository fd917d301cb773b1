//! The guardian: a child that waits for our death, and then undoes what is in our journal.

use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use super::{LifetimeError, cleanup, journal::Journal};

/// The hidden subcommand that the guardian runs as.
pub const SUBCOMMAND: &str = "guardian";

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
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(SUBCOMMAND)
            .arg(slot.to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: setsid is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                // A session of its own, so that no terminal's signals reach it.
                nix::unistd::setsid()?;
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
pub fn run(slot: u32) -> Result<(), LifetimeError> {
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

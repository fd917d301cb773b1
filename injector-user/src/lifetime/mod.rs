//! Nothing outlives us.
//!
//! Most of what injector does ends with its process: programs are attached by file descriptors. What
//! the kernel does not undo by itself is an [`action::Action`]: it is written to the
//! [`journal`] before it is done, and undone by us, else by the [`guardian`], a child that only
//! waits for our death, else by the next start of any injector command ([`cleanup`]).

pub mod action;
pub mod cleanup;
pub mod guardian;
pub mod instance;
pub mod journal;
pub mod lease;

use std::{io, path::PathBuf};

use thiserror::Error;

/// The bookkeeping failed.
#[derive(Debug, Error)]
pub enum LifetimeError {
    /// The journal's folder or a journal cannot be used.
    #[error("cannot use {path}, where injector keeps its journals")]
    Journal {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// All journals are taken.
    #[error(
        "{} injectors are running already, which is the most (`injector list` shows them)",
        journal::SLOTS
    )]
    NoSlot,
    /// The guardian cannot be started.
    #[error("cannot start the guardian process")]
    Guardian(#[source] io::Error),
    /// Something cannot be done; it is undone as far as it was.
    #[error("failed: {what}")]
    Do {
        /// What was to be done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Something cannot be undone now. It stays in the journal for the next start.
    #[error("cannot undo: {what}")]
    Undo {
        /// What was done.
        what: String,
        /// Why it stays.
        source: io::Error,
    },
}

//! Cleanup: no fault outlives injector.
//!
//! Most faults end with the process, because programs are attached by file descriptors. Changes
//! that the kernel does not undo by itself are [`action::Action`]s. Each is written to the
//! [`journal`] before it is performed. Injector undoes it at its end. If injector dies, the
//! [`guardian`], a child that waits for that, undoes it; failing that, the next injector command
//! does ([`cleanup`]).

pub mod action;
pub mod cleanup;
pub mod guardian;
pub mod instance;
pub mod journal;
pub mod lease;

use std::{io, path::PathBuf};

use thiserror::Error;

/// Journaling, performing or undoing an action failed.
#[derive(Debug, Error)]
pub enum LifetimeError {
    /// The journal directory or a journal cannot be used.
    #[error("cannot use {path}, where injector keeps its journals")]
    Journal {
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// All slots are taken.
    #[error(
        "{} injectors are running already, which is the most: stop one of them (`injector list` shows them)",
        journal::SLOTS
    )]
    NoSlot,
    /// The guardian cannot be started.
    #[error("cannot start the guardian process")]
    Guardian(#[source] io::Error),
    /// An action failed; any part of it that was performed is undone.
    #[error("failed: {what}")]
    Do {
        /// The action.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// An action cannot be undone now. It stays in the journal for the next start.
    #[error("cannot undo: {what}")]
    Undo {
        /// The action.
        what: String,
        /// The reason.
        source: io::Error,
    },
}

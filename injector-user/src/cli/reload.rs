//! Rereads rule files while faults are active.
//!
//! A separate thread reads, because disks and name servers may be slow. The process can exit
//! without waiting for it.

use std::{path::PathBuf, thread};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use crate::{
    spec::{Faults, file},
    target::host,
};

/// Rereads one rule file on request.
pub struct Reload {
    path: PathBuf,
    reading: Option<oneshot::Receiver<Result<Faults>>>,
    /// Another read was requested during the current one, so the file may have changed since.
    again: bool,
}

impl Reload {
    /// Creates a reader of this file.
    pub const fn new(path: PathBuf) -> Self {
        Self { path, reading: None, again: false }
    }

    /// Starts to read, now or after the read in progress. Returns whether one is in progress.
    pub fn ask(&mut self) -> bool {
        self.again = self.reading.is_some();
        if !self.again {
            self.begin();
        }
        self.again
    }

    fn begin(&mut self) {
        let (sender, receiver) = oneshot::channel();
        let path = self.path.clone();
        let read = move || {
            // If the receiver is gone, the session has ended.
            let _ = sender.send(read(&path));
        };
        // If no thread can be started, the sender is dropped, and the receiver reports that as a
        // failure.
        let _ = thread::Builder::new().name("rules".into()).spawn(read);
        self.reading = Some(receiver);
    }

    /// Waits for the faults that were read, with host names resolved. Never ready unless requested.
    pub async fn next(&mut self) -> Result<Faults> {
        let Some(reading) = &mut self.reading else { return std::future::pending().await };
        let read = reading.await;
        self.reading = None;
        if std::mem::take(&mut self.again) {
            self.begin();
        }
        read.context("no thread can be started to read them")?
    }
}

fn read(path: &std::path::Path) -> Result<Faults> {
    let mut faults = file::read(path)?;
    host::resolve(&mut faults.rules)?;
    Ok(faults)
}

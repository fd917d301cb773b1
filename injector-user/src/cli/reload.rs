//! Rereads rule files while faults are active.
//!
//! A separate thread reads, because disks and name servers may be slow. The process can exit
//! without waiting for it.

use std::{path::PathBuf, thread};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use crate::{
    spec::{Faults, file},
    target::peers::{self, Peers},
};

/// Rereads one rule file on request.
pub struct Reload {
    path: PathBuf,
    peers: Peers,
    reading: Option<oneshot::Receiver<Result<Faults>>>,
    /// Another read was requested during the current one, so the file may have changed since.
    again: bool,
}

impl Reload {
    /// Creates a reader of this file. Peers that its rules name are added to `peers`.
    pub const fn new(path: PathBuf, peers: Peers) -> Self {
        Self { path, peers, reading: None, again: false }
    }

    /// Whether a read is in progress.
    pub const fn is_reading(&self) -> bool {
        self.reading.is_some()
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
        let (path, peers) = (self.path.clone(), self.peers.clone());
        let read = move || {
            // If the receiver is gone, the session has ended.
            let _ = sender.send(read(&path, &peers));
        };
        // If no thread can be started, the sender is dropped, and the receiver reports that as a
        // failure.
        let _ = thread::Builder::new().name("rules".into()).spawn(read);
        self.reading = Some(receiver);
    }

    /// Waits for the faults that were read, with their peers looked up. Never ready unless requested.
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

fn read(path: &std::path::Path, peers: &Peers) -> Result<Faults> {
    let faults = file::read(path)?;
    peers.resolve(&peers::of_rules(&faults.rules))?;
    Ok(faults)
}

//! Rule files that are read again while faults act: by a thread of their own, as disks may be slow and
//! name servers silent. Whatever that thread waits for, the process can end without it.

use std::{path::PathBuf, thread};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use crate::{
    spec::{Faults, file},
    target::host,
};

/// Reads one rule file again and again, when asked.
pub struct Reload {
    path: PathBuf,
    reading: Option<oneshot::Receiver<Result<Faults>>>,
    /// It was asked for while it was under way: the file may be another since.
    again: bool,
}

impl Reload {
    /// Of this file.
    pub const fn new(path: PathBuf) -> Self {
        Self { path, reading: None, again: false }
    }

    /// Begins to read, now or after what is under way. Returns whether something is.
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
            // If nobody waits any more, the session has ended.
            let _ = sender.send(read(&path));
        };
        // Without a thread the sender is dropped, which is said as any other failure.
        let _ = thread::Builder::new().name("rules".into()).spawn(read);
        self.reading = Some(receiver);
    }

    /// What was read, with host names resolved; never ready unless it was asked for.
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

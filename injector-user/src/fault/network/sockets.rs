//! Tags the sockets that the processes of a set have; the eBPF side tags those that they create.
//!
//! A socket may come without being created: a connection that waited to be accepted when the
//! listener was tagged, a descriptor that another process passes. So the processes are looked at
//! again and again.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::NetworkError;
use crate::{
    kernel::{object::Object, pidfd::Handle, sockets},
    target::processes::ProcessSet,
};

/// At most this share of the time is spent on looking: one in so many.
const SHARE: u32 = 50;

/// The maximum number of looks at the start, each of which found a socket that the last did not.
const MAX_ROUNDS: u32 = 8;

/// The sockets of a set of processes.
#[derive(Debug)]
pub struct Sockets {
    set: ProcessSet,
    /// The inodes of the sockets that are tagged.
    tagged: HashSet<u64>,
    next: Instant,
}

impl Sockets {
    /// Tags what the processes have and create from now on.
    pub fn tag(object: &mut Object, set: &ProcessSet) -> Result<Self, NetworkError> {
        object.tag_new_sockets()?;
        let mut sockets = Self { set: set.clone(), tagged: HashSet::new(), next: Instant::now() };
        // A listener may hand out a connection before it is tagged.
        for _ in 0..MAX_ROUNDS {
            if !sockets.scan(object) {
                break;
            }
        }
        Ok(sockets)
    }

    /// Tags what the processes have got since, unless that was looked at too recently.
    pub fn look(&mut self, object: &mut Object) {
        let start = Instant::now();
        if start >= self.next {
            self.scan(object);
            self.next = start + start.elapsed().min(Duration::from_secs(1)) * SHARE;
        }
    }

    /// Returns whether there was a new one.
    fn scan(&mut self, object: &mut Object) -> bool {
        let mut present = HashSet::new();
        let mut is_new = false;
        for pid in self.set.processes() {
            // The handle refers to this process or none, even if its ID is reused.
            let Some(process) = Handle::open(pid).filter(|_| self.set.contains(pid)) else {
                continue;
            };
            for (number, inode) in sockets::of_process(pid) {
                if self.tagged.contains(&inode) || present.contains(&inode) {
                    present.insert(inode);
                    continue;
                }
                let tagged = sockets::duplicate(&process, number)
                    .map_err(|error| error.to_string())
                    .and_then(|socket| object.tag(&socket).map_err(|error| error.to_string()));
                match tagged {
                    Ok(()) => {
                        present.insert(inode);
                        is_new = true;
                    }
                    // It may be closed, or another file by now.
                    Err(error) => tracing::debug!(pid, number, error, "a socket is not tagged"),
                }
            }
        }
        self.tagged = present;
        is_new
    }
}

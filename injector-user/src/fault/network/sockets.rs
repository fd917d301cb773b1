//! Tags the sockets that the target's processes have. Those that a set of processes creates are tagged
//! by the eBPF side; those that the processes of a cgroup create belong to the cgroup.
//!
//! A socket may come without being created: a connection that waited to be accepted when the
//! listener was tagged, a descriptor that another process passes. So the processes are looked at
//! again and again.

use std::{
    collections::HashSet,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use super::NetworkError;
use crate::{
    kernel::{netns::Netns, object::Object, sockets},
    target::Whose,
};

/// At most this share of the time is spent on looking: one in so many.
const SHARE: u32 = 50;

/// The maximum number of looks at the start, each of which found a socket that the last did not.
const MAX_ROUNDS: u32 = 8;

/// The sockets that processes have.
#[derive(Debug)]
pub struct Sockets {
    whose: Whose,
    /// The inodes of the sockets that are tagged.
    tagged: HashSet<u64>,
    /// The network namespaces of sockets for packets.
    namespaces: Vec<Netns>,
    next: Instant,
}

impl Sockets {
    /// Tags what the processes have and create from now on.
    pub fn tag(object: &mut Object, whose: &Whose) -> Result<Self, NetworkError> {
        if matches!(whose, Whose::Processes(_)) {
            object.tag_new_sockets()?;
        }
        let mut sockets = Self {
            whose: whose.clone(),
            tagged: HashSet::new(),
            namespaces: Vec::new(),
            next: Instant::now(),
        };
        // A listener may hand out a connection before it is tagged.
        for _ in 0..MAX_ROUNDS {
            if !sockets.scan(object) {
                break;
            }
        }
        Ok(sockets)
    }

    /// Tags what these processes have from now on.
    pub fn rebind(&mut self, whose: &Whose) {
        self.whose = whose.clone();
        self.next = Instant::now();
    }

    /// The network namespaces of the sockets. Those of a passed one may be none of the processes'.
    pub fn namespaces(&self) -> &[Netns] {
        &self.namespaces
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
        for process in self.whose.handles() {
            let pid = process.pid;
            for (number, inode) in sockets::of_process(pid) {
                if self.tagged.contains(&inode) || present.contains(&inode) {
                    present.insert(inode);
                    continue;
                }
                let tagged = sockets::duplicate(&process, number)
                    .map_err(|error| error.to_string())
                    .and_then(|socket| match object.tag(&socket) {
                        Ok(()) => Ok(socket),
                        Err(error) => Err(error.to_string()),
                    });
                match tagged {
                    Ok(socket) => {
                        present.insert(inode);
                        add_namespace(&mut self.namespaces, &socket);
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

/// Adds the namespace of a socket for packets.
fn add_namespace(namespaces: &mut Vec<Netns>, socket: &OwnedFd) {
    if !sockets::is_of_ip(socket) {
        return;
    }
    match Netns::of_socket(socket) {
        Ok(netns) if !namespaces.contains(&netns) => namespaces.push(netns),
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "the namespace of a socket is not known"),
    }
}

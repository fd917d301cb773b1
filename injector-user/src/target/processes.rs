//! A target that is a set of processes: named ones, and what they start from then on.

use std::sync::{Arc, OnceLock};

use procfs::process::{Process, all_processes};

use super::{ResolveError, cgroup::proc_error};
use crate::kernel::{members::Members, pidfd::Handle, tree::ProcessTree};

/// A process by its PID and start time, which together survive PID reuse.
pub type Identity = (i32, u64);

/// A set of processes.
#[derive(Clone, Debug)]
pub struct ProcessSet {
    /// The named processes.
    named: Vec<Identity>,
    /// Whether their descendants that run at the start belong to it.
    with_descendants: bool,
    /// How it is named in messages.
    name: String,
    /// What follows the set, from the start of the faults on.
    tree: OnceLock<Arc<ProcessTree>>,
}

impl PartialEq for ProcessSet {
    fn eq(&self, other: &Self) -> bool {
        self.named == other.named && self.with_descendants == other.with_descendants
    }
}

impl ProcessSet {
    /// A set that is not followed yet.
    #[must_use]
    pub const fn new(named: Vec<Identity>, with_descendants: bool, name: String) -> Self {
        Self { named, with_descendants, name, tree: OnceLock::new() }
    }

    /// How it is named in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is named at the start.
    #[must_use]
    pub fn title(&self) -> String {
        let (children, pronoun) = match (self.with_descendants, self.named.len()) {
            (true, _) => ("their descendants and ", "they start"),
            (false, 1) => ("", "it starts"),
            (false, _) => ("", "they start"),
        };
        format!("{} and {children}what {pronoun}", self.name)
    }

    /// The processes that were named, which may have ended.
    #[must_use]
    pub fn named(&self) -> &[Identity] {
        &self.named
    }

    /// Follows the set from now on.
    pub fn track(&self) -> Result<(), ResolveError> {
        if self.tree.get().is_some() {
            return Ok(());
        }
        let mut tree = ProcessTree::load()?;
        for &process in &self.named {
            add(&mut tree, process)?;
        }
        if self.with_descendants {
            // A process that was not in the set may have started another meanwhile.
            while add_children(&mut tree)? {}
        }
        if tree.processes().is_empty() {
            return Err(ResolveError::Ended(self.name.clone()));
        }
        // If another thread was faster, its tree serves as well.
        let _ = self.tree.set(Arc::new(tree));
        Ok(())
    }

    /// What follows the set, after [`Self::track`].
    pub fn tree(&self) -> Result<&Arc<ProcessTree>, ResolveError> {
        self.track()?;
        self.tree.get().ok_or_else(|| ResolveError::Ended(self.name.clone()))
    }

    /// The set as eBPF programs know it.
    pub fn members(&self) -> Result<Members, ResolveError> {
        Ok(Members::Set(Arc::clone(self.tree()?)))
    }

    /// The present processes.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        match self.tree.get() {
            Some(tree) => tree.processes().into_iter().collect(),
            None => self.named.iter().filter(|it| is_there(**it)).map(|&(pid, _)| pid).collect(),
        }
    }

    /// Whether a process belongs to it.
    #[must_use]
    pub fn contains(&self, pid: i32) -> bool {
        match self.tree.get() {
            Some(tree) => tree.contains(pid),
            None => self.named.iter().any(|&(named, _)| named == pid),
        }
    }

    /// The number of processes that were started by its processes and for which there was no room.
    pub fn missed(&self) -> Result<u64, ResolveError> {
        Ok(self.tree()?.missed()?)
    }

    /// Whether all of its processes have ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.processes().is_empty()
    }
}

/// All processes of this PID namespace that can be read.
fn readable() -> Result<impl Iterator<Item = Process>, ResolveError> {
    Ok(all_processes().map_err(|error| proc_error("/proc", error))?.flatten())
}

fn is_there((pid, started): Identity) -> bool {
    Handle::find(pid, started).is_some_and(|process| process.is_alive())
}

/// Adds a process unless it has ended.
fn add(tree: &mut ProcessTree, process: Identity) -> Result<(), ResolveError> {
    tree.add(process.0)?;
    // Only what ends from now on is removed by itself.
    if !is_there(process) {
        tree.remove(process.0);
    }
    Ok(())
}

/// Adds the children of all processes of the set. Returns whether there were any.
fn add_children(tree: &mut ProcessTree) -> Result<bool, ResolveError> {
    let (there, own) = (tree.processes(), std::process::id().cast_signed());
    let mut is_new = false;
    for process in readable()? {
        let Ok(stat) = process.stat() else { continue };
        if there.contains(&stat.ppid) && !there.contains(&stat.pid) && stat.pid != own {
            add(tree, (stat.pid, stat.starttime))?;
            is_new |= tree.contains(stat.pid);
        }
    }
    Ok(is_new)
}

/// The present processes of which `comm` and the file name of the executable match, but not this
/// one. Threads of the kernel have no executable.
pub fn find(matches: impl Fn(&str, &str) -> bool) -> Result<Vec<Identity>, ResolveError> {
    let own = std::process::id().cast_signed();
    let mut found = Vec::new();
    for process in readable()? {
        let (Ok(stat), Ok(executable)) = (process.stat(), process.exe()) else { continue };
        let executable = executable.file_name().unwrap_or_default().to_string_lossy();
        // The kernel says so if the file was replaced, as by an update.
        let executable = executable.strip_suffix(" (deleted)").unwrap_or(&executable);
        let is_meant = stat.pid != own && matches(&stat.comm, executable);
        if is_meant && is_there((stat.pid, stat.starttime)) {
            found.push((stat.pid, stat.starttime));
        }
    }
    Ok(found)
}

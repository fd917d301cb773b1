//! Whose processes: a cgroup's, or one.

use super::ProcessFaultError;
use crate::{
    kernel::pidfd::Handle,
    lifetime::instance::Instance,
    target::{
        Target,
        cgroup::{Cgroup, Hierarchy},
    },
};

/// The processes to fault.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Their cgroup.
    pub cgroup: Cgroup,
    /// The only one of them that is meant, if one was named, and when it was made, which no other with its number was.
    process: Option<(i32, u64)>,
    /// Processes of our own, which may be in the cgroup.
    own: Vec<i32>,
}

impl Scope {
    /// The processes of a target. `--pid` means that process: whatever else lives in its cgroup is left alone.
    pub fn of(target: &Target, instance: &Instance) -> Result<Self, ProcessFaultError> {
        let cgroup = target.cgroup.clone().ok_or(ProcessFaultError::NoProcesses)?;
        let mut own = vec![std::process::id().cast_signed()];
        own.extend(instance.guardian());
        if let Some((pid, started)) = target.process {
            if own.contains(&pid) {
                return Err(ProcessFaultError::Itself(pid));
            }
            Handle::find(pid, started).ok_or(ProcessFaultError::Gone(pid))?;
        }
        Ok(Self { cgroup, process: target.process, own })
    }

    /// The only process that is meant, if one was named.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.process.map(|(pid, _)| pid)
    }

    /// Injector, and its guardian if it has one; else 0, which no process is.
    #[must_use]
    pub fn own_processes(&self) -> [i32; 2] {
        [0, 1].map(|number| self.own.get(number).copied().unwrap_or_default())
    }

    /// Whether injector, or its guardian, is in the cgroup.
    #[must_use]
    pub fn has_ourselves(&self) -> bool {
        let there = self.cgroup.processes();
        self.own.iter().any(|pid| there.contains(pid))
    }

    /// The processes that are there now, but for our own.
    #[must_use]
    pub fn processes(&self) -> Vec<Handle> {
        if let Some((pid, started)) = self.process {
            return Handle::find(pid, started).into_iter().collect();
        }
        let Ok(hierarchy) = Hierarchy::find() else { return Vec::new() };
        let holds = |pid| {
            let path = hierarchy.path_of_process(pid);
            path.is_ok_and(|path| path.starts_with(&self.cgroup.path))
        };
        let pids = self.cgroup.processes();
        let handles =
            pids.into_iter().filter(|pid| !self.own.contains(pid)).filter_map(Handle::open);
        // Now that the number is held, it can be told whose it is.
        let handles = handles.filter(|handle| holds(handle.pid)).collect();
        // Else they may be of another one that has been made by its path.
        if self.cgroup.is_there() { handles } else { Vec::new() }
    }
}

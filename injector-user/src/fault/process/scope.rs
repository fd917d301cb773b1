//! The processes of a target: all of a cgroup, or a single one.

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
    /// The PID and start time of the single target process, if any. The start time tells it from a
    /// later process with the same PID.
    process: Option<(i32, u64)>,
    /// Processes of the injector, which may be in the cgroup.
    own: Vec<i32>,
}

impl Scope {
    /// The processes of a target. `--pid` selects a single process, not its cgroup.
    pub fn of(target: &Target, instance: &Instance) -> Result<Self, ProcessFaultError> {
        let cgroup = target.cgroup.clone().ok_or(ProcessFaultError::NoProcesses)?;
        let mut own = vec![std::process::id().cast_signed()];
        own.extend(instance.guardian());
        if let Some((pid, started)) = target.process() {
            if own.contains(&pid) {
                return Err(ProcessFaultError::Itself(pid));
            }
            Handle::find(pid, started).ok_or(ProcessFaultError::Gone(pid))?;
        }
        Ok(Self { cgroup, process: target.process(), own })
    }

    /// The PID of the single target process, if any.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.process.map(|(pid, _)| pid)
    }

    /// The PIDs of injector and its guardian; 0 if there is no guardian.
    #[must_use]
    pub fn own_processes(&self) -> [i32; 2] {
        [0, 1].map(|number| self.own.get(number).copied().unwrap_or_default())
    }

    /// Whether injector or its guardian is in the cgroup.
    #[must_use]
    pub fn contains_injector(&self) -> bool {
        let there = self.cgroup.processes();
        self.own.iter().any(|pid| there.contains(pid))
    }

    /// The present processes, without those of the injector.
    #[must_use]
    pub fn processes(&self) -> Vec<Handle> {
        if let Some((pid, started)) = self.process {
            return Handle::find(pid, started).into_iter().collect();
        }
        let Ok(hierarchy) = Hierarchy::find() else { return Vec::new() };
        let contains = |pid| {
            let path = hierarchy.path_of_process(pid);
            path.is_ok_and(|path| path.starts_with(&self.cgroup.path))
        };
        let pids = self.cgroup.processes();
        let handles =
            pids.into_iter().filter(|pid| !self.own.contains(pid)).filter_map(Handle::open);
        // Check the cgroup after opening the pidfd, which keeps the PID from being reused.
        let handles = handles.filter(|handle| contains(handle.pid)).collect();
        // A cgroup recreated at the same path is a different target.
        if self.cgroup.is_there() { handles } else { Vec::new() }
    }
}

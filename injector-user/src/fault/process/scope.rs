//! The processes of a target: all of a cgroup, or a set.

use super::ProcessFaultError;
use crate::{
    kernel::{members::Members, pidfd::Handle},
    lifetime::instance::Instance,
    target::{
        Target, Whose,
        cgroup::{Cgroup, Hierarchy},
        processes::ProcessSet,
    },
};

/// The processes to fault.
#[derive(Clone, Debug)]
pub struct Scope {
    group: Group,
    members: Members,
    /// Processes of the injector, which may be among them.
    own: Vec<i32>,
}

/// How they belong together.
#[derive(Clone, Debug)]
pub enum Group {
    /// They are in a cgroup.
    Cgroup(Cgroup),
    /// They were named, or started by such.
    Set(ProcessSet),
}

impl Scope {
    /// The processes of a target.
    pub fn of(target: &Target, instance: &Instance) -> Result<Self, ProcessFaultError> {
        let mut own = vec![std::process::id().cast_signed()];
        own.extend(instance.guardian());
        let members = target.whose.members()?.ok_or(ProcessFaultError::NoProcesses)?;
        let group = match &target.whose {
            Whose::All => return Err(ProcessFaultError::NoProcesses),
            Whose::Cgroup(cgroup) => Group::Cgroup(cgroup.clone()),
            Whose::Processes(set) => {
                if let Some((pid, _)) = set.named().iter().find(|(pid, _)| own.contains(pid)) {
                    return Err(ProcessFaultError::Itself(*pid));
                }
                Group::Set(set.clone())
            }
        };
        Ok(Self { group, members, own })
    }

    /// How they belong together.
    #[must_use]
    pub const fn group(&self) -> &Group {
        &self.group
    }

    /// The processes as eBPF programs know them.
    #[must_use]
    pub const fn members(&self) -> &Members {
        &self.members
    }

    /// The PIDs of injector and its guardian; 0 if there is no guardian.
    #[must_use]
    pub fn own_processes(&self) -> [i32; 2] {
        [0, 1].map(|number| self.own.get(number).copied().unwrap_or_default())
    }

    /// The present processes, without those of the injector.
    #[must_use]
    pub fn processes(&self) -> Vec<Handle> {
        match &self.group {
            Group::Cgroup(cgroup) => self.of_cgroup(cgroup),
            // Check it again after opening the pidfd, which keeps the PID from being reused.
            Group::Set(set) => self.others(set.processes(), |pid| set.contains(pid)),
        }
    }

    fn of_cgroup(&self, cgroup: &Cgroup) -> Vec<Handle> {
        let Ok(hierarchy) = Hierarchy::find() else { return Vec::new() };
        let contains = |pid| {
            let path = hierarchy.path_of_process(pid);
            path.is_ok_and(|path| path.starts_with(&cgroup.path))
        };
        // Check the cgroup after opening the pidfd, which keeps the PID from being reused.
        let handles = self.others(cgroup.processes(), contains);
        // A cgroup recreated at the same path is a different target.
        if cgroup.is_there() { handles } else { Vec::new() }
    }

    fn others(&self, pids: Vec<i32>, contains: impl Fn(i32) -> bool) -> Vec<Handle> {
        let others = pids.into_iter().filter(|pid| !self.own.contains(pid));
        others.filter_map(Handle::open).filter(|handle| contains(handle.pid)).collect()
    }

    /// Whether injector or its guardian is in the cgroup.
    #[must_use]
    pub fn contains_injector(&self, cgroup: &Cgroup) -> bool {
        let there = cgroup.processes();
        self.own.iter().any(|pid| there.contains(pid))
    }
}

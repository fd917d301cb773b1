//! The processes of a target: all of a cgroup, or a set.

use std::{
    fmt::{self, Debug, Formatter},
    path::PathBuf,
    sync::Arc,
};

use super::ProcessFaultError;
use crate::{
    kernel::{members::Members, pidfd::Handle},
    lifetime::instance::Instance,
    target::{
        Target, Whose,
        cgroup::{Cgroup, Hierarchy, populated_below},
        kind::Processes,
        processes::ProcessSet,
    },
};

/// The processes to fault.
#[derive(Clone)]
pub struct Scope {
    group: Group,
    /// The kind of processes in the cgroup, if it is known.
    kind: Option<Arc<dyn Processes>>,
    members: Members,
    /// Processes of the injector, which may be among them.
    own: Vec<i32>,
}

impl Debug for Scope {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.debug_struct("Scope")
            .field("group", &self.group)
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
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
        Ok(Self { group, kind: target.kind().cloned(), members, own })
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
        let spared = self.spared(cgroup);
        let contains = |pid| {
            let path = hierarchy.path_of_process(pid);
            path.is_ok_and(|path| {
                path.starts_with(&cgroup.path)
                    && !spared.iter().any(|spared| path.starts_with(spared))
            })
        };
        // Check the cgroup after opening the pidfd, which keeps the PID from being reused.
        let handles = self.others(cgroup.processes(), contains);
        // A cgroup recreated at the same path is a different target.
        if cgroup.is_there() { handles } else { Vec::new() }
    }

    fn spared(&self, cgroup: &Cgroup) -> Vec<PathBuf> {
        self.kind.as_ref().map(|kind| kind.spared(cgroup)).unwrap_or_default()
    }

    /// How many containers are being started, so that they are not among its processes.
    #[must_use]
    pub fn starting(&self) -> u64 {
        match (&self.group, &self.kind) {
            (Group::Cgroup(cgroup), Some(kind)) => kind.starting(cgroup),
            _ => 0,
        }
    }

    /// The cgroups that contain all its processes: the cgroup itself, or those below it.
    pub fn parts(&self, cgroup: &Cgroup) -> Vec<Cgroup> {
        let is_divided = self.kind.as_ref().is_some_and(|kind| kind.is_divided());
        let Some(hierarchy) = Hierarchy::find().ok().filter(|_| is_divided) else {
            return vec![cgroup.clone()];
        };
        let spared = self.spared(cgroup);
        let mut below = populated_below(&cgroup.path);
        below.retain(|path| !spared.contains(path));
        below.iter().filter_map(|path| hierarchy.open(path).ok()).collect()
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

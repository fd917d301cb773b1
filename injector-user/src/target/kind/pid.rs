//! A single process.

use std::sync::Arc;

use super::{Processes, Resolved};
use crate::{
    kernel::{netns::Netns, pidfd::Handle},
    spec::target::TargetSpec,
    target::{
        ResolveError,
        cgroup::{Cgroup, Hierarchy},
    },
};

/// A process by its PID and start time, which together survive PID reuse.
struct Process {
    pid: i32,
    started: u64,
}

pub(super) fn find(spec: &TargetSpec) -> Result<Option<Resolved>, ResolveError> {
    let Some(pid) = spec.pid else { return Ok(None) };
    let started = Handle::open(pid).ok_or(ResolveError::NoProcess(pid))?.started;
    let cgroup = Hierarchy::find()?.of_process(pid)?;
    // A named namespace takes precedence.
    let namespaces = match spec.netns {
        Some(_) => Vec::new(),
        None => vec![Netns::of_process(pid)?],
    };
    // The values above belong to the named process only if it still exists.
    if Handle::find(pid, started).is_none() {
        return Err(ResolveError::NoProcess(pid));
    }
    let processes = Arc::new(Process { pid, started });
    Ok(Some(Resolved { cgroup, processes, namespaces, follows: false }))
}

impl Processes for Process {
    fn identity(&self) -> String {
        format!("process {} of {}", self.pid, self.started)
    }

    fn process(&self) -> Option<(i32, u64)> {
        Some((self.pid, self.started))
    }

    fn is_gone(&self, cgroup: &Cgroup) -> bool {
        !cgroup.is_there() || Handle::find(self.pid, self.started).is_none()
    }

    fn can_return(&self) -> bool {
        false
    }
}

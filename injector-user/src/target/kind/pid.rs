//! Processes by number.

use super::Resolved;
use crate::{
    kernel::{netns::Netns, pidfd::Handle},
    spec::target::{TargetSpec, pids},
    target::{ResolveError, Whose, processes::ProcessSet},
};

pub(super) fn find(spec: &TargetSpec) -> Result<Option<Resolved>, ResolveError> {
    if spec.pid.is_empty() {
        return Ok(None);
    }
    let mut named = Vec::new();
    let mut namespaces: Vec<Netns> = Vec::new();
    for &pid in &spec.pid {
        let process = Handle::open(pid).filter(Handle::is_alive);
        let process = process.ok_or(ResolveError::NoProcess(pid))?;
        if !named.contains(&(pid, process.started)) {
            named.push((pid, process.started));
        }
        let netns = Netns::of_process(pid)?;
        if !namespaces.contains(&netns) {
            namespaces.push(netns);
        }
    }
    let numbers: Vec<i32> = named.iter().map(|&(pid, _)| pid).collect();
    Ok(Some(of(spec, named, namespaces, pids(&numbers))))
}

/// A set of processes, followed into any namespace.
pub(super) fn of(
    spec: &TargetSpec,
    named: Vec<(i32, u64)>,
    namespaces: Vec<Netns>,
    name: String,
) -> Resolved {
    Resolved {
        whose: Whose::Processes(ProcessSet::new(named, spec.tree, name)),
        processes: None,
        namespaces,
        follows: true,
    }
}

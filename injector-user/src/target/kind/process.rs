//! Processes by name, perhaps only those of a cgroup, container, pod or unit.

use super::{Resolved, pid};
use crate::{
    spec::target::{ProcessName, TargetSpec},
    target::{ResolveError, Whose, add_namespaces, processes},
};

/// The processes of this name, among those of `group` if there is one.
pub(super) fn find(
    spec: &TargetSpec,
    name: &ProcessName,
    group: Option<&Resolved>,
) -> Result<Resolved, ResolveError> {
    let mut named = processes::find(|comm, executable| name.matches(comm, executable))?;
    if let Some(Resolved { whose: Whose::Cgroup(cgroup), .. }) = group {
        let there = cgroup.processes();
        named.retain(|(pid, _)| there.contains(pid));
    }
    let title = group.and_then(|group| group.processes.as_ref()?.title().map(str::to_owned));
    let place = match (group, title) {
        (None, _) => String::new(),
        (Some(_), Some(title)) => format!("of {title} "),
        (Some(_), None) => "of the cgroup ".into(),
    };
    if named.is_empty() {
        return Err(ResolveError::NoProcessNamed { name: name.to_string(), place });
    }
    let mut namespaces = Vec::new();
    add_namespaces(&mut namespaces, named.iter().map(|&(pid, _)| pid));
    let noun = if named.len() == 1 { "process" } else { "processes" };
    let name = format!("{} {noun} {place}named {name}", named.len());
    Ok(pid::of(spec, named, namespaces, name))
}

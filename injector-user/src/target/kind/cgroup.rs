//! The processes of a cgroup, and of the next one at its path.

use std::sync::Arc;

use super::{Processes, Resolved, Successor};
use crate::{
    kernel::netns::Netns,
    spec::target::TargetSpec,
    target::{
        ResolveError, Whose, add_namespaces,
        cgroup::{Cgroup, Hierarchy},
    },
};

struct AtPath;

pub(super) fn find(spec: &TargetSpec) -> Result<Option<Resolved>, ResolveError> {
    let (cgroup, namespaces) = match (&spec.cgroup, spec.cgroup_of) {
        (Some(path), _) => {
            let cgroup = Hierarchy::find()?.open(path)?;
            let namespaces = own_namespace(&cgroup)?;
            (cgroup, namespaces)
        }
        (None, Some(pid)) => (Hierarchy::find()?.of_process(pid)?, vec![Netns::of_process(pid)?]),
        (None, None) => return Ok(None),
    };
    Ok(Some(Resolved {
        whose: Whose::Cgroup(cgroup),
        processes: Some(Arc::new(AtPath)),
        namespaces,
        follows: true,
    }))
}

/// Injector's own namespace, if a process of the cgroup is in it, or if there is none yet.
fn own_namespace(cgroup: &Cgroup) -> Result<Vec<Netns>, ResolveError> {
    let own = Netns::current()?;
    let mut used = Vec::new();
    add_namespaces(&mut used, cgroup.processes());
    Ok(if used.is_empty() || used.contains(&own) { vec![own] } else { Vec::new() })
}

impl Processes for AtPath {
    fn identity(&self) -> String {
        "cgroup".into()
    }

    fn successor(&self, hierarchy: &Hierarchy, cgroup: &Cgroup) -> Option<Successor> {
        Some((hierarchy.open(&cgroup.path).ok()?, Arc::new(Self)))
    }
}

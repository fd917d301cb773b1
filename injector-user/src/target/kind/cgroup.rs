//! The processes of a cgroup, and of the next one at its path.

use std::sync::Arc;

use super::{Processes, Resolved, Successor};
use crate::{
    kernel::netns::Netns,
    spec::target::TargetSpec,
    target::{
        ResolveError, Whose,
        cgroup::{Cgroup, Hierarchy},
    },
};

struct AtPath;

pub(super) fn find(spec: &TargetSpec) -> Result<Option<Resolved>, ResolveError> {
    let (cgroup, netns) = match (&spec.cgroup, spec.cgroup_of) {
        (Some(path), _) => (Hierarchy::find()?.open(path)?, Netns::current()?),
        (None, Some(pid)) => (Hierarchy::find()?.of_process(pid)?, Netns::of_process(pid)?),
        (None, None) => return Ok(None),
    };
    Ok(Some(Resolved {
        whose: Whose::Cgroup(cgroup),
        processes: Some(Arc::new(AtPath)),
        namespaces: vec![netns],
        follows: true,
    }))
}

impl Processes for AtPath {
    fn identity(&self) -> String {
        "cgroup".into()
    }

    fn successor(&self, hierarchy: &Hierarchy, cgroup: &Cgroup) -> Option<Successor> {
        Some((hierarchy.open(&cgroup.path).ok()?, Arc::new(Self)))
    }
}

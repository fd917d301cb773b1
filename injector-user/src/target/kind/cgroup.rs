//! The processes of a cgroup, and of the next one at its path.

use std::sync::Arc;

use super::{Processes, Resolved, Successor};
use crate::{
    kernel::netns::Netns,
    spec::target::TargetSpec,
    target::{
        ResolveError,
        cgroup::{Cgroup, Hierarchy},
    },
};

struct AtPath;

pub(super) fn find(spec: &TargetSpec) -> Result<Option<Resolved>, ResolveError> {
    let Some(path) = &spec.cgroup else { return Ok(None) };
    Ok(Some(Resolved {
        cgroup: Hierarchy::find()?.open(path)?,
        processes: Arc::new(AtPath),
        namespaces: vec![Netns::current()?],
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

//! The containers of a pod.

use super::{
    Resolved,
    container::{Found, Roots, find_pod, find_pod_by_uid},
};
use crate::{
    spec::target::{PodName, TargetSpec},
    target::{ResolveError, cgroup::Hierarchy},
};

pub(super) fn find(spec: &TargetSpec) -> Result<Option<Resolved>, ResolveError> {
    let Some(name) = &spec.pod else { return Ok(None) };
    let hierarchy = Hierarchy::find()?;
    find_pod(&Roots::of_host(&hierarchy), name)?.open(&hierarchy).map(Some)
}

/// A pod that Kubernetes runs on this machine, by its UID. In the host's namespace, its packets are
/// matched by cgroup.
pub fn of_pod(name: &PodName, uid: &str, with_sandbox: bool) -> Result<Resolved, ResolveError> {
    let hierarchy = Hierarchy::find()?;
    let found = find_pod_by_uid(&Roots::of_host(&hierarchy), name, uid)?;
    Found { with_sandbox, ..found }.open(&hierarchy)
}

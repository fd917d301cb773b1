//! The kinds of targets that name processes, one module each: how their cgroup is found, when they
//! are gone, and what replaces them.

mod cgroup;
mod command;
pub mod container;
mod pid;
mod pod;
mod process;
pub mod unit;

use std::{path::PathBuf, sync::Arc};

use super::{
    ResolveError, Whose,
    cgroup::{Cgroup, Hierarchy},
};
use crate::{kernel::netns::Netns, spec::target::TargetSpec};

pub use command::of_command;
pub use pod::of_pod;

/// Finds the processes that a target names, if they are of its kind.
type Find = fn(&TargetSpec) -> Result<Option<Resolved>, ResolveError>;

/// All kinds. A target names at most one.
const KINDS: [Find; 5] = [cgroup::find, pid::find, container::find_named, pod::find, unit::find];

/// Processes that were found.
pub struct Resolved {
    /// Their cgroup or set.
    pub whose: Whose,
    /// Their kind, if it is a cgroup.
    pub processes: Option<Arc<dyn Processes>>,
    /// Namespaces to attach in, regardless of the processes.
    pub namespaces: Vec<Netns>,
    /// Whether to follow the processes into other namespaces.
    pub follows: bool,
}

/// The processes of a cgroup, which may go and be replaced.
pub trait Processes: Send + Sync {
    /// Tells apart targets that share a cgroup.
    fn identity(&self) -> String;

    /// Display name, if they are not named by their cgroup.
    fn title(&self) -> Option<&str> {
        None
    }

    /// Whether sockets that they hold are theirs if they were created in other cgroups.
    fn owns_held_sockets(&self) -> bool {
        false
    }

    /// The cgroups below theirs that kills and pauses leave out.
    fn spared(&self, _cgroup: &Cgroup) -> Vec<PathBuf> {
        Vec::new()
    }

    /// How many containers in their cgroup are being started, which is why kills and pauses leave them out.
    fn starting(&self, _cgroup: &Cgroup) -> u64 {
        0
    }

    /// Whether kills and pauses act on each cgroup below theirs, because others may appear there.
    fn is_divided(&self) -> bool {
        false
    }

    /// Whether they are gone.
    fn is_gone(&self, cgroup: &Cgroup) -> bool {
        !cgroup.is_there()
    }

    /// Whether others may replace them after they are gone.
    fn can_return(&self) -> bool {
        true
    }

    /// Those that replace them, with their cgroup. The cause of a failure is irrelevant: what cannot
    /// be opened is being removed.
    fn successor(&self, _hierarchy: &Hierarchy, _cgroup: &Cgroup) -> Option<Successor> {
        None
    }
}

/// The cgroup of the processes that replace others, and how it is named.
pub type Successor = (Cgroup, Arc<dyn Processes>);

/// Finds the processes that a target names, if it names any.
pub fn find(spec: &TargetSpec) -> Result<Option<Resolved>, ResolveError> {
    let mut found = None;
    for find in KINDS {
        found = find(spec)?;
        if found.is_some() {
            break;
        }
    }
    match &spec.process {
        Some(name) => process::find(spec, name, found.as_ref()).map(Some),
        None => Ok(found),
    }
}

//! Whose calls and events the programs of an object act on.

use std::sync::Arc;

use aya::EbpfLoader;

use super::{KernelError, cgroup::CgroupKey, pid_namespace, tree::ProcessTree};

/// The processes on which programs act.
#[derive(Clone, Debug)]
pub enum Members {
    /// Those of a cgroup and its descendants.
    Cgroup(CgroupKey),
    /// Those of a set.
    Set(Arc<ProcessTree>),
}

impl Default for Members {
    /// Those of no cgroup.
    fn default() -> Self {
        Self::Cgroup(CgroupKey::default())
    }
}

impl Members {
    /// Has the programs of an object act on them.
    pub(super) fn set_in<'a>(&'a self, loader: &mut EbpfLoader<'a>) -> Result<(), KernelError> {
        match self {
            Self::Cgroup(key) => {
                loader
                    .override_global("CGROUP_ID", &key.id, true)
                    .override_global("CGROUP_LEVEL", &key.level, true)
                    .override_global("OF_PROCESSES", &0_u32, true);
                pid_namespace::set_in(loader)
            }
            Self::Set(tree) => {
                loader.override_global("OF_PROCESSES", &1_u32, true);
                tree.share(loader)
            }
        }
    }
}

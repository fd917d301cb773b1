//! Faults: install, observe, remove.

pub mod clock;
pub mod counts;
pub mod network;
pub mod process;

use thiserror::Error;

use self::{
    clock::{ClockFaultError, Clocks},
    network::{Network, NetworkError},
    process::{ProcessFaultError, Processes},
};
use crate::{
    lifetime::instance::Instance,
    target::{ResolveError, Target},
};

/// Why faults cannot go on in the cgroup that has taken the place of their target's.
#[derive(Debug, Error)]
pub enum RetargetError {
    /// It cannot be looked for.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Those of packets.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Those of clocks.
    #[error(transparent)]
    Clock(#[from] ClockFaultError),
    /// Those of processes.
    #[error(transparent)]
    Process(#[from] ProcessFaultError),
}

/// Has all faults of a target go on where that is now, see [`Target::follow`].
pub fn retarget<'a>(
    instance: &mut Instance,
    target: &Target,
    network: Option<&mut Network>,
    clocks: Option<&mut Clocks>,
    processes: impl IntoIterator<Item = &'a mut Processes>,
) -> Result<(), RetargetError> {
    let retarget = || -> Result<(), RetargetError> {
        if let Some(network) = network {
            network.retarget(instance, target.clone())?;
        }
        if let (Some(clocks), Some(cgroup)) = (clocks, &target.cgroup) {
            clocks.retarget(instance, cgroup)?;
        }
        for processes in processes {
            processes.retarget(instance, target)?;
        }
        Ok(())
    };
    match retarget() {
        // It is gone already, and the next one will be followed.
        Err(error) if target.is_gone() => {
            tracing::debug!(%error, "gone before it could be faulted");
            Ok(())
        }
        result => result,
    }
}

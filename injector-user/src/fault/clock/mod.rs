//! Clock faults: install, change, remove.
//!
//! Programs read clocks from the vDSO, code that the kernel maps into each process, and hardly ever by a system
//! call. So the faulted processes have that code patched ([`crate::kernel::vdso`]), each of them for itself.

mod follower;
pub mod skew;

use std::time::Duration;

use thiserror::Error;

use follower::Follower;
pub use follower::Statistics;
use skew::Timed;

use crate::{
    kernel::{
        KernelError,
        clock::{TrueTime, true_time},
        limits, vdso,
    },
    lifetime::{LifetimeError, action::Action, instance::Instance},
    spec::clock::{ClockError, ClockFault},
    target::cgroup::Cgroup,
};

/// Why clock faults cannot be installed or changed.
#[derive(Debug, Error)]
pub enum ClockFaultError {
    /// What was asked makes no sense here.
    #[error(transparent)]
    Spec(#[from] ClockError),
    /// No cgroup.
    #[error(
        "clocks are faulted for the processes of a cgroup: name one with --cgroup or --pid, or use `injector run`"
    )]
    NoCgroup,
    /// The kernel said no.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Something cannot be done so that it can be undone.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
    /// The kernel does not let processes be patched.
    #[error(transparent)]
    Unwritable(#[from] vdso::Unwritable),
    /// There cannot be as many open files as it may take.
    #[error("cannot raise the limit of open files")]
    Files(#[source] nix::Error),
}

/// Installed clock faults. Dropping them puts clocks right.
#[derive(Debug)]
pub struct Clocks {
    follower: Follower,
    /// What the clocks read when the faults end.
    ends: TrueTime,
    outlived: bool,
    /// The journal's number of what is to be undone.
    action: u32,
}

impl Clocks {
    /// Makes the clocks of all processes of `cgroup` go wrong, for as long as the injector lives, and not longer
    /// than `lasts`. Faults act when this returns. `outlived` says whether processes may go on after their end.
    pub fn install(
        instance: &mut Instance,
        cgroup: Option<&Cgroup>,
        fault: &ClockFault,
        lasts: Option<Duration>,
        outlived: bool,
    ) -> Result<Self, ClockFaultError> {
        let cgroup = cgroup.ok_or(ClockFaultError::NoCgroup)?;
        let now = true_time();
        fault.check_backward(now[0], outlived)?;
        vdso::check()?;
        // One for each process.
        limits::raise_files().map_err(ClockFaultError::Files)?;
        let owner = u64::from(std::process::id()) << 32 | u64::from(rand::random::<u32>());
        let ends = skew::later(now, lasts);
        let timed = Timed::starting(fault, now, ends);
        let action = Action::SkewClocks { owner, cgroup: cgroup.path.clone() };
        // What is done is done by the thread; the journal must know first.
        let action = instance.perform(action, || Ok(()))?;
        let mut spared = vec![std::process::id().cast_signed()];
        spared.extend(instance.guardian());
        match Follower::start(owner, cgroup.clone(), spared, timed) {
            Ok(follower) => Ok(Self { follower, ends, outlived, action }),
            Err(error) => {
                instance.undo(action)?;
                Err(error.into())
            }
        }
    }

    /// Checks another fault, or none, that is to begin now; nothing is changed.
    pub fn check(&self, fault: Option<&ClockFault>) -> Result<Timed, ClockFaultError> {
        let now = true_time();
        let Some(fault) = fault else { return Ok(Timed::right()) };
        fault.check_backward(now[0], self.outlived)?;
        Ok(Timed::starting(fault, now, self.ends))
    }

    /// Makes clocks go wrong in another way.
    pub fn set(&self, timed: Timed) {
        self.follower.set(timed);
    }

    /// What became of processes.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.follower.statistics()
    }

    /// Puts all clocks right. Statistics stay.
    pub fn end(&mut self, instance: &mut Instance) -> Result<(), ClockFaultError> {
        self.follower.end();
        Ok(instance.was_undone(self.action)?)
    }
}

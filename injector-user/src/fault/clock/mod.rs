//! Clock faults: install, change, remove.
//!
//! Programs read clocks from the vDSO, code that the kernel maps into each process, and hardly ever by a system
//! call. So the faulted processes have that code patched ([`crate::kernel::vdso`]), each of them for itself. Probes
//! ([`crate::kernel::clock_probe`]) see to system calls, where the kernel lets them.

pub mod engine;
mod follower;
pub mod report;
pub mod skew;

use std::time::Duration;

use injector_common::probe::ProbeCounters;
use thiserror::Error;

use engine::{Chosen, Engine};
use follower::Follower;
pub use follower::Statistics;
use skew::Timed;

use crate::{
    kernel::{
        KernelError,
        clock::{TrueTime, true_time},
        clock_probe::{ClockProbe, ClockProbeError},
        limits, vdso,
    },
    lifetime::{LifetimeError, action::Action, instance::Instance},
    spec::{
        clock::{ClockError, ClockFault},
        target::TargetError,
    },
    target::cgroup::Cgroup,
};

/// Why clock faults cannot be installed or changed.
#[derive(Debug, Error)]
pub enum ClockFaultError {
    /// What was asked makes no sense here.
    #[error(transparent)]
    Spec(#[from] ClockError),
    /// No processes.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The kernel said no.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Something cannot be done so that it can be undone.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
    /// The kernel does not let processes be patched.
    #[error(
        "--engine vdso is not available on this kernel (leave --engine out, or try --engine probe)"
    )]
    Unwritable(#[from] vdso::Unwritable),
    /// Neither way works.
    #[error("clocks cannot be faulted here. Engine vdso: {vdso}. Engine probe")]
    NoEngine {
        /// Why processes cannot be patched.
        vdso: vdso::Unwritable,
        /// Why probes cannot be used.
        source: ClockProbeError,
    },
    /// The kernel does not take probes.
    #[error("--engine probe is not available on this kernel")]
    Probe(#[from] ClockProbeError),
    /// There cannot be as many open files as it may take.
    #[error("cannot raise the limit of open files")]
    Files(#[source] nix::Error),
}

/// Installed clock faults. Dropping them puts clocks right.
#[derive(Debug)]
pub struct Clocks {
    patched: Option<Patched>,
    probe: Option<ClockProbe>,
    /// Which of them were chosen, for the cgroup that takes the place of this one.
    chosen: Vec<Engine>,
    /// What the probes did that are gone.
    counted: Option<ProbeCounters>,
    /// What became of processes of the cgroups before this one.
    before: Statistics,
    timed: Timed,
    /// What the clocks read when the faults end.
    ends: TrueTime,
    outlived: bool,
}

/// Processes with a patched vDSO.
#[derive(Debug)]
struct Patched {
    follower: Follower,
    /// The journal's number of what is to be undone.
    action: u32,
}

impl Clocks {
    /// Makes the clocks of all processes of `cgroup` go wrong, for as long as the injector lives, and not longer
    /// than `lasts`. Faults act when this returns. `outlived` says whether processes may go on after their end;
    /// `engines` are those that were asked for, if any. Without a fault all is made ready for one to come.
    pub fn install(
        instance: &mut Instance,
        cgroup: Option<&Cgroup>,
        fault: Option<&ClockFault>,
        lasts: Option<Duration>,
        outlived: bool,
        engines: &[Engine],
    ) -> Result<Self, ClockFaultError> {
        let cgroup = cgroup.ok_or(TargetError::Clock)?;
        if let Some(fault) = fault {
            fault.check_backward(true_time()[0], outlived)?;
        }
        let Chosen { vdso, probe } = engine::choose(engines, cgroup)?;
        let now = true_time();
        let ends = skew::later(now, lasts);
        let timed = fault.map_or_else(Timed::right, |fault| Timed::starting(fault, now, ends));
        let patched = if vdso { Some(Patched::start(instance, cgroup, timed)?) } else { None };
        let before = Statistics::default();
        let chosen = Vec::new();
        let mut clocks =
            Self { patched, probe, chosen, counted: None, before, timed, ends, outlived };
        clocks.chosen = clocks.engines();
        clocks.renew();
        Ok(clocks)
    }

    /// Which engines make clocks go wrong.
    #[must_use]
    pub fn engines(&self) -> Vec<Engine> {
        let patched = self.patched.as_ref().map(|_| Engine::Vdso);
        patched.into_iter().chain(self.probe.as_ref().map(|_| Engine::Probe)).collect()
    }

    /// Makes the clocks of another cgroup's processes go wrong from now on, by the same engines and the same times: of one
    /// that has taken the place of the one before.
    pub fn retarget(
        &mut self,
        instance: &mut Instance,
        cgroup: &Cgroup,
    ) -> Result<(), ClockFaultError> {
        self.before = self.statistics();
        self.end(instance)?;
        self.patched = None;
        let Chosen { vdso, probe } = engine::choose(&self.chosen, cgroup)?;
        self.probe = probe;
        if vdso {
            self.patched = Some(Patched::start(instance, cgroup, self.timed)?);
        }
        self.renew();
        Ok(())
    }

    /// Renews the lease of the probes; to be called more often than every [`skew::LEASE`].
    pub fn renew(&mut self) {
        if let Some(probe) = &mut self.probe {
            probe.set(&self.timed.renewed(true_time()));
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
    pub fn set(&mut self, timed: Timed) {
        self.timed = timed;
        if let Some(patched) = &self.patched {
            patched.follower.set(timed);
        }
        self.renew();
    }

    /// What became of processes.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut statistics = self.before.clone();
        if let Some(patched) = &self.patched {
            statistics.add(patched.follower.statistics());
        }
        statistics
    }

    /// What the probes did, if there are any.
    pub fn calls(&mut self) -> Option<ProbeCounters> {
        let Some(probe) = &mut self.probe else { return self.counted };
        let mut counters = probe.counters();
        counters += self.counted.unwrap_or_default();
        Some(counters)
    }

    /// Puts all clocks right. Statistics stay.
    pub fn end(&mut self, instance: &mut Instance) -> Result<(), ClockFaultError> {
        self.counted = self.calls();
        self.probe = None;
        if let Some(patched) = &mut self.patched {
            patched.follower.end();
            instance.was_undone(patched.action)?;
        }
        Ok(())
    }
}

impl Patched {
    fn start(
        instance: &mut Instance,
        cgroup: &Cgroup,
        timed: Timed,
    ) -> Result<Self, ClockFaultError> {
        // One for each process.
        limits::raise_files().map_err(ClockFaultError::Files)?;
        let owner = u64::from(std::process::id()) << 32 | u64::from(rand::random::<u32>());
        let inode = Some(cgroup.id);
        let action = Action::SkewClocks { owner, cgroup: cgroup.path.clone(), inode };
        // What is done is done by the thread; the journal must know first.
        let action = instance.perform(action, || Ok(()))?;
        let mut spared = vec![std::process::id().cast_signed()];
        spared.extend(instance.guardian());
        match Follower::start(owner, cgroup.clone(), spared, timed) {
            Ok(follower) => Ok(Self { follower, action }),
            Err(error) => {
                instance.undo(action)?;
                Err(error.into())
            }
        }
    }
}

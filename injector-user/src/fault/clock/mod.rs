//! Clock faults: installing, changing and removing them.
//!
//! Programs usually read clocks from the vDSO, code that the kernel maps into each process, and
//! rarely by system call. The vDSO engine patches that code in each target process
//! ([`crate::kernel::vdso`]). The probe engine rewrites the results of system calls
//! ([`crate::kernel::clock_probe`]), on kernels that allow it.

pub mod engine;
pub mod report;
pub mod skew;
mod tracker;

use std::time::Duration;

use injector_common::probe::ProbeCounters;
use thiserror::Error;

use engine::{Chosen, Engine};
use skew::Timed;
use tracker::ProcessTracker;
pub use tracker::Statistics;

use crate::{
    kernel::{
        KernelError,
        clock::{TrueTime, true_time},
        clock_probe::{ClockProbe, ClockProbeError},
        limits,
        members::Members,
        pid_namespace, vdso,
    },
    lifetime::{LifetimeError, action::Action, instance::Instance},
    spec::{
        clock::{ClockError, ClockFault},
        target::TargetError,
    },
    target::{ResolveError, Whose},
};

/// Why clock faults cannot be installed or changed.
#[derive(Debug, Error)]
pub enum ClockFaultError {
    /// The fault is not possible here.
    #[error(transparent)]
    Spec(#[from] ClockError),
    /// The target has no processes.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The processes cannot be followed.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A kernel operation failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An action could not be journaled or undone.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
    /// The kernel does not allow patching processes.
    #[error(
        "--engine vdso is not available on this kernel (leave --engine out, or try --engine probe)"
    )]
    Vdso(#[from] vdso::Unusable),
    /// Neither engine is available.
    #[error(
        "no engine for clock faults is available on this kernel. Engine vdso: {vdso}. Engine probe"
    )]
    NoEngine {
        /// Why processes cannot be patched.
        vdso: vdso::Unusable,
        /// Why probes cannot be used.
        source: ClockProbeError,
    },
    /// The kernel does not allow the probes.
    #[error("--engine probe is not available on this kernel")]
    Probe(#[from] ClockProbeError),
    /// The limit of open files is too low.
    #[error("cannot raise the limit of open files")]
    Files(#[source] nix::Error),
}

/// Installed clock faults. Dropping them restores all clocks.
#[derive(Debug)]
pub struct Clocks {
    patched: Option<Patched>,
    probe: Option<ClockProbe>,
    /// The chosen engines, for rebinding to a new cgroup.
    chosen: Vec<Engine>,
    /// Counters of detached probes.
    detached: Option<ProbeCounters>,
    /// Statistics of earlier cgroups.
    before: Statistics,
    timed: Timed,
    /// The clock readings at the end of the faults.
    ends: TrueTime,
    outlived: bool,
}

/// Processes with a patched vDSO.
#[derive(Debug)]
struct Patched {
    tracker: ProcessTracker,
    /// The ID of the journaled action.
    action: u32,
}

impl Clocks {
    /// Prepares all processes of a target for clock faults; clocks stay true until [`Self::set`].
    /// `outlived` says whether processes may outlive the faults. `engines` are the requested
    /// engines; if empty, the best available ones.
    pub fn install(
        instance: &mut Instance,
        whose: &Whose,
        outlived: bool,
        engines: &[Engine],
    ) -> Result<Self, ClockFaultError> {
        // The engines would find other processes, and blame the kernel.
        pid_namespace::check()?;
        let members = whose.members()?.ok_or(TargetError::Clock)?;
        let Chosen { vdso, probe } = engine::choose(engines, &members)?;
        let (timed, ends) = (Timed::right(), skew::later(true_time(), None));
        let patched =
            if vdso { Some(Patched::start(instance, whose, &members, timed)?) } else { None };
        let before = Statistics::default();
        let chosen = Vec::new();
        let mut clocks =
            Self { patched, probe, chosen, detached: None, before, timed, ends, outlived };
        clocks.chosen = clocks.engines();
        clocks.renew()?;
        Ok(clocks)
    }

    /// The engines in use.
    #[must_use]
    pub fn engines(&self) -> Vec<Engine> {
        let patched = self.patched.as_ref().map(|_| Engine::Vdso);
        patched.into_iter().chain(self.probe.as_ref().map(|_| Engine::Probe)).collect()
    }

    /// Moves the faults to the cgroup that replaces the previous one, with the same engines and
    /// times.
    pub fn rebind(
        &mut self,
        instance: &mut Instance,
        whose: &Whose,
    ) -> Result<(), ClockFaultError> {
        let members = whose.members()?.ok_or(TargetError::Clock)?;
        self.before = self.statistics();
        self.end(instance)?;
        self.patched = None;
        let Chosen { vdso, probe } = engine::choose(&self.chosen, &members)?;
        self.probe = probe;
        if vdso {
            self.patched = Some(Patched::start(instance, whose, &members, self.timed)?);
        }
        self.renew()
    }

    /// Renews the lease of the probes. Call more often than every
    /// [`crate::lifetime::lease::CLOCK_LEASE`].
    pub fn renew(&mut self) -> Result<(), ClockFaultError> {
        if let Some(probe) = &mut self.probe {
            probe.set(&self.timed.renewed(true_time()));
        }
        if let Some(patched) = &mut self.patched {
            patched.tracker.check().map_err(KernelError::from)?;
        }
        Ok(())
    }

    /// Limits the duration of all faults that start from now on.
    pub fn end_after(&mut self, lasts: Option<Duration>) {
        self.ends = skew::later(true_time(), lasts);
    }

    /// Validates a fault, or none, that would start now, without changing anything.
    pub fn check(&self, fault: Option<&ClockFault>) -> Result<Timed, ClockFaultError> {
        let now = true_time();
        let Some(fault) = fault else { return Ok(Timed::right()) };
        fault.check_backward(now[0], self.outlived)?;
        Ok(Timed::starting(fault, now, self.ends))
    }

    /// Changes the skew.
    pub fn set(&mut self, timed: Timed) -> Result<(), ClockFaultError> {
        self.timed = timed;
        if let Some(patched) = &mut self.patched {
            patched.tracker.set(timed).map_err(KernelError::from)?;
        }
        self.renew()
    }

    /// Statistics of processes, over all cgroups so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut statistics = self.before.clone();
        if let Some(patched) = &self.patched {
            statistics.add(patched.tracker.statistics());
        }
        statistics
    }

    /// The probes' counters; `None` if the probe engine is not used.
    pub fn calls(&mut self) -> Option<ProbeCounters> {
        let Some(probe) = &mut self.probe else { return self.detached };
        let mut counters = probe.counters();
        counters += self.detached.unwrap_or_default();
        Some(counters)
    }

    /// Restores all clocks. Statistics stay.
    pub fn end(&mut self, instance: &mut Instance) -> Result<(), ClockFaultError> {
        self.detached = self.calls();
        self.probe = None;
        if let Some(patched) = &mut self.patched {
            match patched.tracker.end() {
                Ok(()) => instance.was_undone(patched.action)?,
                Err(error) => {
                    instance.undo(patched.action)?;
                    return Err(KernelError::from(error).into());
                }
            }
        }
        Ok(())
    }
}

impl Patched {
    fn start(
        instance: &mut Instance,
        whose: &Whose,
        members: &Members,
        timed: Timed,
    ) -> Result<Self, ClockFaultError> {
        // The tracker keeps a file open for each process.
        limits::raise_files().map_err(ClockFaultError::Files)?;
        let owner = u64::from(std::process::id()) << 32 | u64::from(rand::random::<u32>());
        let (cgroup, processes) = match whose {
            Whose::All => return Err(TargetError::Clock.into()),
            Whose::Cgroup(cgroup) => (Some(cgroup), Vec::new()),
            Whose::Processes(set) => (None, set.processes()),
        };
        let inode = cgroup.map(|cgroup| cgroup.id);
        let cgroup = cgroup.map(|cgroup| cgroup.path.clone());
        let action = Action::SkewClocks { owner, cgroup, inode, processes };
        // The tracker thread acts; the journal entry must come first.
        let action = instance.perform(action, || Ok(()))?;
        let mut excluded = vec![std::process::id().cast_signed()];
        excluded.extend(instance.guardian());
        match ProcessTracker::start(owner, whose.clone(), members, excluded, timed) {
            Ok(tracker) => Ok(Self { tracker, action }),
            Err(error) => {
                instance.undo(action)?;
                Err(error.into())
            }
        }
    }
}

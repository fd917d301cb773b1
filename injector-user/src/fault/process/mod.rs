//! Process faults: install, do what is due, remove.
//!
//! Nothing here has a thread of its own: who installed [`Processes`] calls [`Processes::step`] whenever
//! [`Processes::due`] has come.

mod failer;
mod killer;
mod limit;
mod pauser;
pub mod probe;
mod scope;
mod stopper;
mod sum;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use injector_common::model::random;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    kernel::{
        KernelError, clock,
        hook::{Engine, HookError},
    },
    lifetime::{LifetimeError, instance::Instance},
    spec::process::{CpuLimit, IoLimit, ProcessFaults},
    target::Target,
};
pub use failer::ErrnoStatistics;
use failer::Failer;
pub use killer::KillStatistics;
use killer::Killer;
pub use limit::LimitStatistics;
use limit::Limits;
pub use pauser::PauseStatistics;
use pauser::Pauser;
pub use scope::Scope;
use stopper::Stopper;

/// Random streams of packet rules have the numbers of the rules; this is none of those.
const PAUSES: u32 = u32::MAX;

/// That of the first kind of failing system calls; the others have those below.
const FAILURES: u32 = PAUSES - 1;

/// Why process faults cannot be installed.
#[derive(Debug, Error)]
pub enum ProcessFaultError {
    /// No processes.
    #[error(
        "processes are faulted by their cgroup or one by one: name them with --cgroup, --container, --pod or --pid, or \
         use `injector run`"
    )]
    NoProcesses,
    /// The process ended.
    #[error("there is no process {0} any more")]
    Gone(i32),
    /// Injector cannot stop itself.
    #[error("process {0} is injector itself")]
    Itself(i32),
    /// It is frozen, and would run afterwards.
    #[error("{0} is frozen already (cgroup.freeze is 1): there is nothing to pause")]
    Frozen(PathBuf),
    /// A limit is of a cgroup.
    #[error(
        "--cpu and --io limit a whole cgroup, with all that lives in it: if that is meant, name it by --cgroup {0}"
    )]
    LimitOfProcess(PathBuf),
    /// The controller cannot be had.
    #[error("cgroup v2 has no {controller} controller here: {reason}")]
    NoController {
        /// Which.
        controller: &'static str,
        /// Why.
        reason: String,
    },
    /// There is a tighter limit.
    #[error("{0} is limited more tightly already ({1})")]
    Tighter(PathBuf, String),
    /// A limit or a device cannot be read.
    #[error("cannot read {path}")]
    Limit {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No block device.
    #[error("there is no block device whose I/O could be limited")]
    NoDevice,
    /// System calls cannot be made to fail.
    #[error("system calls cannot be made to fail here (`injector doctor` says which can)")]
    Errno(#[from] HookError),
    /// The kernel said no.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Something cannot be done so that it can be undone.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
}

/// What the faults did so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Statistics {
    /// Pauses, if any were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pauses: Option<PauseStatistics>,
    /// Signals, in the order in which they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kills: Vec<KillStatistics>,
    /// Failing system calls, in the order in which they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errnos: Vec<ErrnoStatistics>,
    /// Limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitStatistics>,
}

impl Statistics {
    /// Whether some fault that was asked for did nothing.
    #[must_use]
    pub fn idle(&self) -> Vec<String> {
        let mut idle = Vec::new();
        if self.pauses.as_ref().is_some_and(|pauses| pauses.done == 0) {
            idle.push("nothing was paused".into());
        }
        for kill in self.kills.iter().filter(|kill| kill.sent == 0) {
            idle.push(format!("no signal was sent by kill {}", kill.name));
        }
        for errno in self.errnos.iter().filter(|errno| errno.matched == 0) {
            idle.push(format!("no system call matched errno {}", errno.name));
        }
        idle
    }
}

/// Installed process faults.
#[derive(Debug)]
pub struct Processes {
    pauser: Option<Pauser>,
    killer: Killer,
    failer: Failer,
    limits: Limits,
    cpu: Option<CpuLimit>,
    io: Option<IoLimit>,
}

impl Processes {
    /// Makes everything ready; times count from now. Faults of the kernel side do not last longer than `lasts`. System
    /// calls fail by `engine`, or by the best one.
    pub fn install(
        instance: &mut Instance,
        target: &Target,
        faults: &ProcessFaults,
        seed: u64,
        lasts: Option<Duration>,
        engine: Option<Engine>,
    ) -> Result<Self, ProcessFaultError> {
        // It may be in the cgroup as well, and must not be stopped with it.
        instance.guard()?;
        let scope = Scope::of(target, instance)?;
        Self::install_on(instance, &scope, faults, seed, lasts, engine)
    }

    /// The same for processes that have been found.
    pub fn install_on(
        instance: &mut Instance,
        scope: &Scope,
        faults: &ProcessFaults,
        seed: u64,
        lasts: Option<Duration>,
        engine: Option<Engine>,
    ) -> Result<Self, ProcessFaultError> {
        let ends_ns = lasts.map_or(u64::MAX, clock::deadline_ns);
        let killer = Killer::install(scope, &faults.kills, ends_ns)?;
        let failures = &faults.failures;
        let failer = Failer::install(scope, failures, engine, seed, FAILURES, ends_ns)?;
        let limits = Limits::install(instance, scope, faults.cpu, faults.io.as_ref())?;
        let pauser = match &faults.pause {
            Some(pause) => {
                let stream = random::stream(seed, PAUSES);
                Some(Pauser::new(scope.clone(), pause.clone(), stream)?)
            }
            None => None,
        };
        Ok(Self { pauser, killer, failer, limits, cpu: faults.cpu, io: faults.io.clone() })
    }

    /// Faults the processes of the cgroup that has taken the place of the one before. Times and
    /// counts go on.
    pub fn retarget(
        &mut self,
        instance: &mut Instance,
        target: &Target,
    ) -> Result<(), ProcessFaultError> {
        let scope = Scope::of(target, instance)?;
        self.killer.retarget(&scope)?;
        self.failer.retarget(&scope)?;
        self.limits.end(instance)?;
        let limits = Limits::install(instance, &scope, self.cpu, self.io.as_ref())?;
        self.limits = limits.after(&self.limits);
        match &mut self.pauser {
            Some(pauser) => pauser.retarget(instance, scope),
            None => Ok(()),
        }
    }

    /// Whether the faults can be installed, as far as that can be told beforehand; nothing is touched.
    pub fn check(scope: &Scope, faults: &ProcessFaults) -> Result<(), ProcessFaultError> {
        limit::check(scope, faults.cpu, faults.io.as_ref())?;
        for failure in &faults.failures {
            failer::check(Engine::best(), failure.hook.name)?;
        }
        if faults.pause.is_some() {
            Stopper::new(scope.clone())?;
        }
        Ok(())
    }

    /// When [`Self::step`] has something to do, if ever.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let pauser = self.pauser.as_ref().and_then(Pauser::due);
        pauser.into_iter().chain(self.killer.due()).chain(self.failer.due()).min()
    }

    /// Does what is due.
    pub fn step(&mut self, instance: &mut Instance) -> Result<(), ProcessFaultError> {
        let now = Instant::now();
        // The end of a pause is never late because of something else.
        if let Some(pauser) = &mut self.pauser {
            pauser.step(instance, now)?;
        }
        self.killer.step(now);
        self.failer.step(now)?;
        Ok(())
    }

    /// Ends the pause that is on, if one is, so that processes can take the signals that they are sent.
    pub fn interrupt(&mut self, instance: &mut Instance) -> Result<(), ProcessFaultError> {
        match &mut self.pauser {
            Some(pauser) => pauser.go_on(instance),
            None => Ok(()),
        }
    }

    /// What the faults did so far.
    pub fn statistics(&mut self) -> Result<Statistics, ProcessFaultError> {
        Ok(Statistics {
            pauses: self.pauser.as_ref().map(Pauser::statistics),
            kills: self.killer.statistics()?,
            errnos: self.failer.statistics()?,
            limits: self.limits.statistics(),
        })
    }

    /// Ends all of them. Statistics stay.
    pub fn end(&mut self, instance: &mut Instance) -> Result<(), ProcessFaultError> {
        if let Some(pauser) = &mut self.pauser {
            pauser.end(instance)?;
        }
        self.killer.end()?;
        self.failer.end()?;
        self.limits.end(instance)?;
        Ok(())
    }
}

//! Process faults: installing, running and removing them.
//!
//! No thread is created here: the owner of [`Processes`] must call [`Processes::step`] at each
//! [`Processes::next_deadline`].

mod aggregate;
mod killer;
mod limit;
mod pauser;
pub mod probe;
mod scope;
mod stopper;
mod syscall_failure;

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
    output::chain,
    spec::{
        process::{ProcessFaults, cpu::CpuLimit, errno::INSTEAD, io::IoLimit},
        target::process_options,
    },
    target::ResolveError,
};
pub use killer::KillStatistics;
use killer::Killer;
pub use limit::LimitStatistics;
use limit::Limits;
pub use pauser::PauseStatistics;
use pauser::Pauser;
pub use scope::{Group, Scope};
use stopper::Stopper;
pub use syscall_failure::ErrnoStatistics;
use syscall_failure::SyscallFailures;

/// The random stream of pauses. Streams of packet rules have the rules' indexes, counted from 0.
const PAUSE_STREAM: u32 = u32::MAX;

/// The random stream of the first syscall failure; further failures count down from it.
const FIRST_ERRNO_STREAM: u32 = PAUSE_STREAM - 1;

/// Why process faults cannot be installed.
#[derive(Debug, Error)]
pub enum ProcessFaultError {
    /// The target has no processes.
    #[error(
        "process faults require a cgroup or a process: name them with {}, or use `injector run`",
        process_options()
    )]
    NoProcesses,
    /// The processes cannot be followed.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Injector cannot stop itself.
    #[error("process {0} is injector itself")]
    Itself(i32),
    /// The cgroup is frozen; the end of a pause would thaw it.
    #[error("{0} is frozen already (cgroup.freeze is 1): nothing to pause")]
    Frozen(PathBuf),
    /// Limits apply to cgroups, not to processes.
    #[error(
        "--cpu and --io limit a whole cgroup with all its processes: to do so, use --cgroup-of {0}"
    )]
    LimitOfProcess(i32),
    /// The controller is not available.
    #[error("cgroup v2 has no {controller} controller on this system: {reason}")]
    NoController {
        /// The controller or file.
        controller: &'static str,
        /// The reason.
        reason: String,
    },
    /// A tighter limit is set already.
    #[error("{0} already has a tighter limit ({1})")]
    Tighter(PathBuf, String),
    /// A limit or a device cannot be read.
    #[error("cannot read {path}")]
    Limit {
        /// The controller or file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// There is no block device.
    #[error("no block device found to limit")]
    NoDevice,
    /// Syscall failures are not available.
    #[error(
        "cannot fail these system calls on this kernel: {}; `injector doctor` lists which can fail; without injector: \
         {INSTEAD}",
        chain(.0)
    )]
    Errno(HookError),
    /// A kernel operation failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An action could not be journaled or undone.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
}

impl From<HookError> for ProcessFaultError {
    fn from(error: HookError) -> Self {
        Self::Errno(error)
    }
}

/// Statistics of process faults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "ProcessStatistics")]
pub struct Statistics {
    /// Pauses, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pauses: Option<PauseStatistics>,
    /// Signals, in the requested order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kills: Vec<KillStatistics>,
    /// Syscall failures, in the requested order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errnos: Vec<ErrnoStatistics>,
    /// Limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitStatistics>,
}

impl Statistics {
    /// A message for each requested fault that did nothing.
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
    syscall_failures: SyscallFailures,
    limits: Option<Limits>,
    cpu: Option<CpuLimit>,
    io: Option<IoLimit>,
}

impl Processes {
    /// Prepares everything; times count from now. Faults inside the kernel end after `lasts` at the
    /// latest. Syscall failures use `engine`, or the best available one.
    pub fn install(
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
        let syscall_failures =
            SyscallFailures::install(scope, failures, engine, seed, FIRST_ERRNO_STREAM, ends_ns)?;
        let limits = Limits::install(instance, scope, faults.cpu, faults.io.as_ref())?;
        let pauser = match &faults.pause {
            Some(pause) => {
                let stream = random::stream(seed, PAUSE_STREAM);
                Some(Pauser::new(scope.clone(), pause.clone(), stream)?)
            }
            None => None,
        };
        Ok(Self {
            pauser,
            killer,
            syscall_failures,
            limits,
            cpu: faults.cpu,
            io: faults.io.clone(),
        })
    }

    /// Moves the faults to the cgroup that replaces the previous one. Times and counts continue.
    pub fn rebind(
        &mut self,
        instance: &mut Instance,
        scope: &Scope,
    ) -> Result<(), ProcessFaultError> {
        self.killer.rebind(scope)?;
        self.syscall_failures.rebind(scope)?;
        if let Some(before) = &mut self.limits {
            before.end(instance)?;
            let limits = Limits::install(instance, scope, self.cpu, self.io.as_ref())?;
            self.limits = limits.map(|limits| limits.after(before));
        }
        match &mut self.pauser {
            Some(pauser) => pauser.rebind(instance, scope.clone()),
            None => Ok(()),
        }
    }

    /// Checks whether the faults can be installed, as far as possible without changing anything.
    pub fn check(
        scope: &Scope,
        faults: &ProcessFaults,
        engine: Option<Engine>,
    ) -> Result<(), ProcessFaultError> {
        limit::check(scope, faults.cpu, faults.io.as_ref())?;
        for failure in &faults.failures {
            syscall_failure::check(engine.unwrap_or_else(Engine::best), failure.hook.name)?;
        }
        if faults.pause.is_some() {
            Stopper::new(scope.clone())?;
        }
        Ok(())
    }

    /// When [`Self::step`] is next due, if ever.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let pauser = self.pauser.as_ref().and_then(Pauser::due);
        pauser.into_iter().chain(self.killer.due()).chain(self.syscall_failures.due()).min()
    }

    /// Runs faults that are due.
    pub fn step(&mut self, instance: &mut Instance) -> Result<(), ProcessFaultError> {
        let now = Instant::now();
        // First, so that other faults never delay the end of a pause.
        if let Some(pauser) = &mut self.pauser {
            pauser.step(instance, now)?;
        }
        self.killer.step(now);
        self.syscall_failures.step(now)?;
        Ok(())
    }

    /// Ends a running pause, so that processes can handle signals sent to them.
    pub fn interrupt(&mut self, instance: &mut Instance) -> Result<(), ProcessFaultError> {
        match &mut self.pauser {
            Some(pauser) => pauser.resume(instance),
            None => Ok(()),
        }
    }

    /// The statistics so far.
    pub fn statistics(&mut self) -> Result<Statistics, ProcessFaultError> {
        Ok(Statistics {
            pauses: self.pauser.as_ref().map(Pauser::statistics),
            kills: self.killer.statistics()?,
            errnos: self.syscall_failures.statistics()?,
            limits: self.limits.as_mut().map(Limits::statistics).unwrap_or_default(),
        })
    }

    /// Ends all faults. Statistics stay.
    pub fn end(&mut self, instance: &mut Instance) -> Result<(), ProcessFaultError> {
        if let Some(pauser) = &mut self.pauser {
            pauser.end(instance)?;
        }
        self.killer.end()?;
        self.syscall_failures.end()?;
        match &mut self.limits {
            Some(limits) => limits.end(instance),
            None => Ok(()),
        }
    }
}

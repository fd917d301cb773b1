//! Stops and resumes all processes of a target.

use std::{
    collections::HashSet,
    fs, thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    ProcessFaultError,
    scope::{Group, Scope},
};
use crate::{
    lifetime::{
        action::{Action, StoppedProcess},
        instance::Instance,
    },
    target::cgroup::{Cgroup, FREEZE, says},
};

/// How long to wait until all processes have stopped.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(50);

/// The maximum number of scans for processes forked while others were being stopped.
const MAX_ROUNDS: u32 = 8;

/// The mechanism that stops processes.
#[derive(Debug)]
enum Mechanism {
    /// The cgroup freezer, which processes cannot observe.
    Freezer(Cgroup),
    /// `SIGSTOP` to each process.
    Signals,
}

/// Stops and resumes a target.
#[derive(Debug)]
pub struct Stopper {
    scope: Scope,
    mechanism: Mechanism,
    /// Journaled actions to undo.
    actions: Vec<u32>,
}

/// The result of stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All processes have stopped.
    Stopped,
    /// Some processes have not stopped yet.
    Unsettled,
    /// There was nothing to stop, or it was stopped already.
    Nothing,
}

impl Outcome {
    /// The outcome of stopping two cgroups.
    const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, outcome) | (outcome, Self::Nothing) => outcome,
            (Self::Stopped, Self::Stopped) => Self::Stopped,
            _ => Self::Unsettled,
        }
    }
}

impl Stopper {
    /// Chooses the mechanism. Fails if the cgroup is frozen already.
    pub fn new(scope: Scope) -> Result<Self, ProcessFaultError> {
        let mechanism = match scope.group() {
            Group::Cgroup(cgroup) => match fs::read_to_string(cgroup.path.join(FREEZE)) {
                Ok(state) if state.trim() == "1" => {
                    return Err(ProcessFaultError::Frozen(cgroup.path.clone()));
                }
                Ok(_) if !scope.contains_injector(cgroup) => Mechanism::Freezer(cgroup.clone()),
                // Before Linux 5.2, or where the freezer would stop injector itself.
                _ => Mechanism::Signals,
            },
            Group::Set(_) => Mechanism::Signals,
        };
        Ok(Self { scope, mechanism, actions: Vec::new() })
    }

    /// The name of the mechanism, for reports.
    pub fn name(&self) -> &'static str {
        match self.mechanism {
            Mechanism::Freezer(_) => "cgroup.freeze",
            Mechanism::Signals => "SIGSTOP",
        }
    }

    /// Stops all present processes.
    pub fn stop(&mut self, instance: &mut Instance) -> Result<Outcome, ProcessFaultError> {
        match &self.mechanism {
            Mechanism::Freezer(cgroup) => {
                let mut outcome = Outcome::Nothing;
                for cgroup in self.scope.parts(cgroup) {
                    outcome = outcome.and(self.freeze(instance, &cgroup)?);
                }
                Ok(outcome)
            }
            Mechanism::Signals => self.stop_each(instance),
        }
    }

    fn freeze(
        &mut self,
        instance: &mut Instance,
        cgroup: &Cgroup,
    ) -> Result<Outcome, ProcessFaultError> {
        let path = cgroup.path.clone();
        let state = fs::read_to_string(path.join(FREEZE));
        let is_running = state.is_ok_and(|state| state.trim() == "0");
        if !is_running || !says(&path, "populated 1") || !cgroup.is_there() {
            return Ok(Outcome::Nothing);
        }
        let action = Action::FreezeCgroup { path: path.clone(), inode: cgroup.id };
        let frozen = instance.perform(action, || match cgroup.write(FREEZE, "1") {
            // The cgroup was removed just now.
            Err(_) if !cgroup.is_there() => Ok(()),
            written => written,
        })?;
        self.actions.push(frozen);
        Ok(settle(|| says(&path, "frozen 1")))
    }

    fn stop_each(&mut self, instance: &mut Instance) -> Result<Outcome, ProcessFaultError> {
        let mut seen = HashSet::new();
        let mut stopped = Vec::new();
        // The next round finds processes forked by one that was not stopped yet.
        for _ in 0..MAX_ROUNDS {
            let mut handles = self.scope.processes();
            // Processes that are stopped already must not be resumed later.
            handles.retain(|handle| seen.insert(handle.pid) && handle.runs());
            if handles.is_empty() {
                break;
            }
            let processes = handles
                .iter()
                .map(|handle| StoppedProcess { pid: handle.pid, started: handle.started })
                .collect();
            let action = instance.perform(Action::StopProcesses { processes }, || {
                for handle in &handles {
                    // The process may have ended.
                    let _ = handle.signal(Signal::SIGSTOP as i32);
                }
                Ok(())
            })?;
            self.actions.push(action);
            stopped.extend(handles);
        }
        if stopped.is_empty() {
            return Ok(Outcome::Nothing);
        }
        Ok(settle(|| stopped.iter().all(|handle| !handle.runs())))
    }

    /// How many containers of a stopped pod run, because they were started meanwhile or are being started.
    #[must_use]
    pub fn starting(&self) -> u64 {
        let Mechanism::Freezer(cgroup) = &self.mechanism else { return 0 };
        let parts = self.scope.parts(cgroup);
        let started = parts.iter().filter(|part| {
            fs::read_to_string(part.path.join(FREEZE)).is_ok_and(|state| state.trim() == "0")
        });
        self.scope.starting() + started.count() as u64
    }

    /// Resumes everything that was stopped.
    pub fn resume(&mut self, instance: &mut Instance) -> Result<(), ProcessFaultError> {
        while let Some(&action) = self.actions.last() {
            instance.undo(action)?;
            self.actions.pop();
        }
        Ok(())
    }
}

/// Waits for at most [`SETTLE_TIMEOUT`].
fn settle(is_settled: impl Fn() -> bool) -> Outcome {
    let end = Instant::now() + SETTLE_TIMEOUT;
    while !is_settled() {
        if Instant::now() > end {
            return Outcome::Unsettled;
        }
        thread::sleep(Duration::from_micros(200));
    }
    Outcome::Stopped
}

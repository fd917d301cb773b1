//! Stops all processes of a target, and has them go on.

use std::{
    collections::HashSet,
    fs, thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{ProcessFaultError, scope::Scope};
use crate::{
    lifetime::{
        action::{Action, StoppedProcess},
        instance::Instance,
    },
    target::cgroup::{FREEZE, says},
};

/// How long all processes may take to stand.
const SETTLING: Duration = Duration::from_millis(50);

/// How often to look for processes that were made while others were stopped.
const ROUNDS: u32 = 8;

/// How processes are stopped.
#[derive(Debug)]
enum Means {
    /// By the freezer of cgroups, which no process can see.
    Freezer,
    /// By `SIGSTOP`, one by one.
    Signals,
}

/// What stops a target.
#[derive(Debug)]
pub struct Stopper {
    scope: Scope,
    means: Means,
    /// What is to be undone.
    actions: Vec<u32>,
}

/// What came of stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All stand.
    Stopped,
    /// It has been ordered, but not all stand yet.
    Unsettled,
    /// There was nothing to stop, or others have stopped it.
    Nothing,
}

impl Stopper {
    /// Chooses the means. A cgroup that is frozen already is refused.
    pub fn new(scope: Scope) -> Result<Self, ProcessFaultError> {
        let freeze = scope.cgroup.path.join(FREEZE);
        let is_own = scope.pid().is_some() || scope.has_ourselves();
        let means = match fs::read_to_string(freeze) {
            Ok(state) if state.trim() == "1" && scope.pid().is_none() => {
                return Err(ProcessFaultError::Frozen(scope.cgroup.path));
            }
            Ok(_) if !is_own => Means::Freezer,
            // Before Linux 5.2; or the freezer would stop others, or us.
            _ => Means::Signals,
        };
        Ok(Self { scope, means, actions: Vec::new() })
    }

    /// The means, for reports.
    pub fn name(&self) -> &'static str {
        match self.means {
            Means::Freezer => "cgroup.freeze",
            Means::Signals => "SIGSTOP",
        }
    }

    /// Stops what is there.
    pub fn stop(&mut self, instance: &mut Instance) -> Result<Outcome, ProcessFaultError> {
        match self.means {
            Means::Freezer => self.freeze(instance),
            Means::Signals => self.stop_each(instance),
        }
    }

    fn freeze(&mut self, instance: &mut Instance) -> Result<Outcome, ProcessFaultError> {
        let cgroup = &self.scope.cgroup;
        let path = cgroup.path.clone();
        let state = fs::read_to_string(path.join(FREEZE));
        let is_running = state.is_ok_and(|state| state.trim() == "0");
        if !is_running || !says(&path, "populated 1") || !cgroup.is_there() {
            return Ok(Outcome::Nothing);
        }
        let action = Action::FreezeCgroup { path: path.clone(), inode: cgroup.id };
        let frozen = instance.perform(action, || match cgroup.write(FREEZE, "1") {
            // It was removed just now.
            Err(_) if !cgroup.is_there() => Ok(()),
            written => written,
        })?;
        self.actions.push(frozen);
        Ok(settle(|| says(&path, "frozen 1")))
    }

    fn stop_each(&mut self, instance: &mut Instance) -> Result<Outcome, ProcessFaultError> {
        let mut seen = HashSet::new();
        let mut stopped = Vec::new();
        // What has been made by one that was not stopped yet shows in the next round.
        for _ in 0..ROUNDS {
            let mut handles = self.scope.processes();
            // Those that others have stopped stay so, and are not ours to let go on.
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
                    // It may have ended.
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

    /// Has everything go on that this has stopped.
    pub fn go_on(&mut self, instance: &mut Instance) -> Result<(), ProcessFaultError> {
        while let Some(&action) = self.actions.last() {
            instance.undo(action)?;
            self.actions.pop();
        }
        Ok(())
    }
}

/// Waits, but not for long.
fn settle(is_settled: impl Fn() -> bool) -> Outcome {
    let end = Instant::now() + SETTLING;
    while !is_settled() {
        if Instant::now() > end {
            return Outcome::Unsettled;
        }
        thread::sleep(Duration::from_micros(200));
    }
    Outcome::Stopped
}

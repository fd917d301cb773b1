//! Signals, sent at a time by userspace, or at a system call by the eBPF side.

use std::{collections::HashSet, time::Instant};

use injector_common::process::CallCounters;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ProcessFaultError, scope::Scope};
use crate::{
    kernel::{KernelError, calls::CallWatch},
    spec::{
        process::{
            Syscall,
            kill::{Kill, When},
        },
        value::is_default,
    },
};

/// The maximum number of scans for processes forked while others were being killed.
const MAX_ROUNDS: u32 = 8;

/// Statistics of a signal fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KillStatistics {
    /// The fault as specified.
    pub name: String,
    /// Signals sent.
    pub sent: u64,
    /// Signals that could not be sent.
    pub failed: u64,
    /// Containers that were spared because their runtime was starting them.
    #[serde(skip_serializing_if = "is_default")]
    pub starting: u64,
    /// System calls counted, if the fault waits for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
}

/// One signal fault.
#[derive(Debug)]
struct Kind {
    kill: Kill,
    /// When userspace sends the next signal.
    next: Option<Instant>,
    /// The eBPF program that sends it at a system call.
    watch: Option<CallWatch>,
    /// Counters of the watches before this one.
    before: CallCounters,
    statistics: KillStatistics,
}

/// Sends signals.
#[derive(Debug)]
pub struct Killer {
    scope: Scope,
    kinds: Vec<Kind>,
    ends_ns: u64,
}

impl Killer {
    /// Arms the faults. Times and calls count from now; calls until `ends_ns` of
    /// `CLOCK_MONOTONIC`.
    pub fn install(scope: &Scope, kills: &[Kill], ends_ns: u64) -> Result<Self, ProcessFaultError> {
        let now = Instant::now();
        let install = |&kill: &Kill| {
            let (next, watch) = match kill.when {
                When::Timed { at, .. } => (Some(now + at.0), None),
                When::Call { syscall, count } => {
                    (None, Some(watch(scope, kill, syscall, count, ends_ns)?))
                }
            };
            let calls = watch.is_some().then_some(0);
            let statistics =
                KillStatistics { name: kill.to_string(), sent: 0, failed: 0, starting: 0, calls };
            Ok(Kind { kill, next, watch, before: CallCounters::default(), statistics })
        };
        let kinds = kills.iter().map(install).collect::<Result<_, KernelError>>()?;
        Ok(Self { scope: scope.clone(), kinds, ends_ns })
    }

    /// Sends them to another target from now on. Calls are counted on; what waited for one and has sent its signal is
    /// done.
    pub fn rebind(&mut self, scope: &Scope) -> Result<(), KernelError> {
        self.scope = scope.clone();
        for kind in &mut self.kinds {
            let (Some(counted), When::Call { syscall, count }) = (kind.count()?, kind.kill.when)
            else {
                continue;
            };
            // If the new watch fails, the old one stays and the next rebind tries again.
            kind.watch = match count.saturating_sub(counted.calls) {
                0 => None,
                left => Some(watch(scope, kind.kill, syscall, left, self.ends_ns)?),
            };
            kind.before = counted;
        }
        Ok(())
    }

    /// When the next signal is due.
    pub fn due(&self) -> Option<Instant> {
        self.kinds.iter().filter_map(|kind| kind.next).min()
    }

    /// Sends the signals that are due.
    pub fn step(&mut self, now: Instant) {
        for kind in &mut self.kinds {
            let Some(next) = kind.next.filter(|&next| now >= next) else { continue };
            kind.next = match kind.kill.when {
                // Missed signals are not sent later.
                When::Timed { every: Some(every), .. } => Some((next + every.0).max(now)),
                _ => None,
            };
            send(&self.scope, kind);
        }
    }

    /// The statistics so far.
    pub fn statistics(&mut self) -> Result<Vec<KillStatistics>, KernelError> {
        for kind in &mut self.kinds {
            kind.count()?;
        }
        Ok(self.kinds.iter().map(|kind| kind.statistics.clone()).collect())
    }

    /// Stops sending signals.
    pub fn end(&mut self) -> Result<(), KernelError> {
        self.statistics()?;
        for kind in &mut self.kinds {
            kind.next = None;
            kind.watch = None;
        }
        Ok(())
    }
}

impl Kind {
    /// Updates the statistics from the eBPF side, if it sends the signal.
    fn count(&mut self) -> Result<Option<CallCounters>, KernelError> {
        let Some(watch) = &self.watch else { return Ok(None) };
        let mut counters = watch.counters()?;
        counters += self.before;
        self.statistics.sent = counters.sent;
        self.statistics.failed = counters.failed;
        self.statistics.calls = Some(counters.calls);
        Ok(Some(counters))
    }
}

/// Starts a watch that sends a signal at the `count`-th call from now on.
fn watch(
    scope: &Scope,
    kill: Kill,
    syscall: Syscall,
    count: u64,
    ends_ns: u64,
) -> Result<CallWatch, KernelError> {
    let (number, signal) = (syscall.number(), kill.signal.0.cast_unsigned());
    CallWatch::start(scope.members(), number, count, signal, ends_ns)
}

/// Sends the signal to all present processes.
fn send(scope: &Scope, kind: &mut Kind) {
    let signal = kind.kill.signal.0;
    kind.statistics.starting += scope.starting();
    let mut seen = HashSet::new();
    // SIGKILL must also reach processes forked meanwhile; other signals need not.
    let rounds = if signal == libc::SIGKILL { MAX_ROUNDS } else { 1 };
    for _ in 0..rounds {
        let mut handles = scope.processes();
        handles.retain(|handle| seen.insert((handle.pid, handle.started)));
        if handles.is_empty() {
            return;
        }
        for handle in handles {
            match handle.signal(signal) {
                Ok(()) => kind.statistics.sent += 1,
                // The process ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => {
                    tracing::debug!(pid = handle.pid, %error, "cannot send a signal");
                    kind.statistics.failed += 1;
                }
            }
        }
    }
}

//! Syscall failures (`--errno`): loads the eBPF programs that fail calls and renews their leases.

use std::time::Instant;

use injector_common::{errno::ErrnoCounters, model::random};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scope::Scope;
use crate::{
    kernel::{
        KernelError, clock,
        errno::{Config, FailingCalls, Hooks},
        hook::{Engine, HookError},
        members::Members,
    },
    lifetime::lease::{LEASE, RENEWAL},
    spec::process::errno::{Failure, Subject},
};

/// Statistics of a syscall failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrnoStatistics {
    /// The fault as specified.
    pub name: String,
    /// How the program is attached.
    pub engine: Engine,
    /// The kernel function at which calls fail.
    pub hook: String,
    /// Calls that matched.
    pub matched: u64,
    /// Matched calls that failed.
    pub failed: u64,
    /// Calls that did not fail because their path could not be determined.
    pub unknown: u64,
    /// Calls of any process for which the kernel skipped the program.
    pub missed: u64,
}

/// One syscall failure.
#[derive(Debug)]
struct Kind {
    failure: Failure,
    /// Its random stream.
    stream: u64,
    calls: Option<FailingCalls>,
    /// Counters of earlier targets.
    before: ErrnoCounters,
    missed_before: u64,
    statistics: ErrnoStatistics,
}

/// Active syscall failures.
#[derive(Debug)]
pub struct SyscallFailures {
    kinds: Vec<Kind>,
    /// The attach points, if there is any failure.
    hooks: Option<Hooks>,
    ends_ns: u64,
    renewal: Option<Instant>,
}

impl SyscallFailures {
    /// Calls fail from now until `ends_ns` of `CLOCK_MONOTONIC`. Random streams count down from
    /// `first_stream`.
    pub fn install(
        scope: &Scope,
        failures: &[Failure],
        engine: Option<Engine>,
        seed: u64,
        first_stream: u32,
        ends_ns: u64,
    ) -> Result<Self, HookError> {
        if failures.is_empty() {
            return Ok(Self { kinds: Vec::new(), hooks: None, ends_ns, renewal: None });
        }
        let engine = engine.unwrap_or_else(Engine::best);
        let passed = failures.iter().map(|failure| failure.hook.name).collect();
        let hooks = Hooks::find(engine, passed)?;
        let mut kinds = Vec::with_capacity(failures.len());
        for (failure, stream) in failures.iter().zip((0..=first_stream).rev()) {
            let stream = random::stream(seed, stream);
            let config = config(scope, failure, stream);
            let statistics = ErrnoStatistics {
                name: failure.to_string(),
                engine,
                hook: engine.function(failure.hook.name),
                matched: 0,
                failed: 0,
                unknown: 0,
                missed: 0,
            };
            kinds.push(Kind {
                failure: failure.clone(),
                stream,
                calls: Some(FailingCalls::start(&config, &hooks)?),
                before: ErrnoCounters::default(),
                missed_before: 0,
                statistics,
            });
        }
        let mut syscall_failures = Self { kinds, hooks: Some(hooks), ends_ns, renewal: None };
        syscall_failures.renew(Instant::now())?;
        Ok(syscall_failures)
    }

    /// Has the calls of other processes fail from now on. Counts go on.
    pub fn rebind(&mut self, scope: &Scope) -> Result<(), HookError> {
        let Some(hooks) = &self.hooks else { return Ok(()) };
        for kind in &mut self.kinds {
            let Some(last) = &mut kind.calls else { continue };
            // If this fails, the next rebind tries again.
            let next = FailingCalls::start(&config(scope, &kind.failure, kind.stream), hooks)?;
            kind.before += last.counters()?;
            kind.missed_before += last.missed();
            kind.calls = Some(next);
        }
        Ok(self.renew(Instant::now())?)
    }

    /// When the lease must be renewed.
    pub const fn due(&self) -> Option<Instant> {
        self.renewal
    }

    /// Renews the lease if due.
    pub fn step(&mut self, now: Instant) -> Result<(), KernelError> {
        if self.renewal.is_some_and(|renewal| renewal <= now) { self.renew(now) } else { Ok(()) }
    }

    fn renew(&mut self, now: Instant) -> Result<(), KernelError> {
        let until = clock::deadline_ns(LEASE).min(self.ends_ns);
        let active = self.kinds.iter_mut().filter_map(|kind| kind.calls.as_mut());
        self.renewal = None;
        for calls in active {
            calls.renew(until)?;
            self.renewal = Some(now + RENEWAL);
        }
        Ok(())
    }

    /// The statistics so far.
    pub fn statistics(&mut self) -> Result<Vec<ErrnoStatistics>, KernelError> {
        for Kind { calls, statistics, before, missed_before, .. } in &mut self.kinds {
            if let Some(calls) = calls {
                let mut counters = calls.counters()?;
                counters += *before;
                let ErrnoCounters { matched, failed, unknown } = counters;
                statistics.matched = matched;
                statistics.failed = failed;
                statistics.unknown = unknown;
                statistics.missed = *missed_before + calls.missed();
            }
        }
        Ok(self.kinds.iter().map(|kind| kind.statistics.clone()).collect())
    }

    /// Ends all failures. Statistics stay.
    pub fn end(&mut self) -> Result<(), KernelError> {
        self.renewal = None;
        let active: Vec<_> = self.kinds.iter_mut().filter_map(|kind| kind.calls.as_mut()).collect();
        if active.is_empty() {
            return Ok(());
        }
        // Expire the lease before the last read, so that every failed call is counted.
        for calls in active {
            calls.renew(0)?;
        }
        clock::wait_for_readers();
        self.statistics()?;
        self.kinds.iter_mut().for_each(|kind| kind.calls = None);
        Ok(())
    }
}

/// Checks that a program can be attached at a hook, by one that matches no call.
pub fn check(engine: Engine, hook: &'static str) -> Result<(), HookError> {
    let config = Config {
        members: Members::default(),
        own: [0; 2],
        calls: Vec::new(),
        hook,
        program: program(Subject::None),
        errno: 0,
        probability: 0.0,
        stream: 0,
        glob: None,
        remote: None,
    };
    FailingCalls::start(&config, &Hooks::find(engine, vec![hook])?).map(drop)
}

fn config(scope: &Scope, failure: &Failure, stream: u64) -> Config {
    Config {
        members: scope.members().clone(),
        own: scope.own_processes(),
        calls: failure.calls.iter().map(|call| call.number()).collect(),
        hook: failure.hook.name,
        program: program(failure.subject()),
        errno: failure.errno as i32,
        probability: failure.probability.fraction(),
        stream,
        glob: failure.glob(),
        remote: failure.remote(),
    }
}

/// The name of the eBPF program that extracts the subject of a call.
const fn program(subject: Subject) -> &'static str {
    match subject {
        Subject::File => "on_file",
        Subject::Path => "on_path",
        Subject::Entry => "on_entry",
        Subject::Address => "on_address",
        Subject::Message => "on_message",
        Subject::Peer => "on_peer",
        Subject::None => "on_any",
    }
}

//! System calls that fail, by the eBPF side; here their lease is renewed.

use std::time::Instant;

use injector_common::{errno::ErrnoCounters, model::random};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scope::Scope;
use crate::{
    fault::network::{LEASE, RENEWAL},
    kernel::{
        KernelError, clock,
        errno::{Config, FailingCalls, Hooks},
        hook::{Engine, HookError},
    },
    spec::errno::{Failure, Subject},
    target::cgroup::Cgroup,
};

/// What became of failing system calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrnoStatistics {
    /// As it was written.
    pub name: String,
    /// How the program came to the hook.
    pub engine: Engine,
    /// The kernel's function at which calls fail.
    pub hook: String,
    /// Calls that matched.
    pub matched: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Calls that did not fail because their path could not be told.
    pub unknown: u64,
    /// Calls of whatever process that the kernel kept from the program.
    pub missed: u64,
}

/// One kind of failure.
#[derive(Debug)]
struct Kind {
    failure: Failure,
    /// Of its random numbers.
    stream: u64,
    calls: Option<FailingCalls>,
    /// What was counted at a target before this one.
    before: ErrnoCounters,
    missed_before: u64,
    statistics: ErrnoStatistics,
}

/// Has system calls fail.
#[derive(Debug)]
pub struct Failer {
    kinds: Vec<Kind>,
    /// Where calls fail, if any do.
    hooks: Option<Hooks>,
    ends_ns: u64,
    renewal: Option<Instant>,
}

impl Failer {
    /// Calls fail from now on, up to `ends_ns` of `CLOCK_MONOTONIC`. The streams of their random numbers go down from
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
        let mut failer = Self { kinds, hooks: Some(hooks), ends_ns, renewal: None };
        failer.renew(Instant::now())?;
        Ok(failer)
    }

    /// Has the calls of other processes fail from now on. Counts go on.
    pub fn retarget(&mut self, scope: &Scope) -> Result<(), HookError> {
        let Some(hooks) = &self.hooks else { return Ok(()) };
        for kind in &mut self.kinds {
            let Some(last) = &mut kind.calls else { continue };
            // If that cannot be, it is tried again the next time.
            let next = FailingCalls::start(&config(scope, &kind.failure, kind.stream), hooks)?;
            kind.before += last.counters()?;
            kind.missed_before += last.missed();
            kind.calls = Some(next);
        }
        Ok(self.renew(Instant::now())?)
    }

    /// When there is something to do.
    pub const fn due(&self) -> Option<Instant> {
        self.renewal
    }

    /// Does what is due.
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

    /// What became of them so far.
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

    /// Nothing fails any more.
    pub fn end(&mut self) -> Result<(), KernelError> {
        self.renewal = None;
        let active: Vec<_> = self.kinds.iter_mut().filter_map(|kind| kind.calls.as_mut()).collect();
        if active.is_empty() {
            return Ok(());
        }
        // No call may fail that is not counted.
        for calls in active {
            calls.renew(0)?;
        }
        clock::wait_for_readers();
        self.statistics()?;
        self.kinds.iter_mut().for_each(|kind| kind.calls = None);
        Ok(())
    }
}

/// A program at a hook that no call passes for it to see, to find out whether it can be there.
pub fn check(engine: Engine, hook: &'static str) -> Result<(), HookError> {
    let nowhere = Cgroup { path: "/".into(), id: 0, level: 0 };
    let config = Config {
        cgroup: &nowhere,
        pid: None,
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

fn config<'a>(scope: &'a Scope, failure: &Failure, stream: u64) -> Config<'a> {
    Config {
        cgroup: &scope.cgroup,
        pid: scope.pid(),
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

/// The eBPF side's name for the program that tells what a call is about.
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

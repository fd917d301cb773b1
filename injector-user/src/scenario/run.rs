//! Runs a scenario: commits each change at its time and reports events.

use std::{
    collections::BTreeMap,
    future, io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    time::{Duration, Instant},
};

use indexmap::IndexMap;
use ipnet::IpNet;
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{io::unix::AsyncFd, time::MissedTickBehavior};

use super::{
    stage::{Changed, Stage, StageError},
    timeline::{Counts, Event, Late, Line, Origin, Reason, TargetChange, TargetLine, Totals},
};
use crate::{
    injection::{Options, until},
    kernel::clock::monotonic_ns,
    lifetime::{
        journal::Owner,
        lease::{LEASE, RENEWAL},
    },
    output,
    spec::scenario::{
        Scenario,
        plan::{Part, Plan},
    },
};

/// Less urgent work does not start if a change is due within this time.
const QUIET: Duration = Duration::from_millis(30);

/// A scenario and its run options.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its name, for messages.
    pub name: String,
    /// The scenario.
    pub scenario: &'a Scenario,
    /// Its plan.
    pub plan: &'a Plan,
    /// The seed of its random choices.
    pub seed: u64,
    /// The injection options, with the peers that the plan names.
    pub options: Options,
    /// The interval of counter samples.
    pub sample: Duration,
}

/// The outcome of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether a target was removed before the end and did not return.
    pub is_taken: bool,
}

/// Runs a scenario until it ends or `stop` is ready, then undoes everything. Events go to `tell`. A
/// failure is reported as an event and then returned.
pub async fn run(
    request: &Request<'_>,
    owner: &Owner,
    stop: impl Future<Output = io::Result<()>>,
    tell: impl FnMut(Line),
) -> Result<Result<Outcome, StageError>, StageError> {
    let Request { scenario, plan, seed, options, .. } = request;
    let stage = Stage::set(scenario, plan, *seed, owner, options)?;
    let mut run = Run::begin(request, stage, tell)?;
    let watched = run.watch(stop).await;
    run.finish(watched)
}

/// A running scenario.
struct Run<'a, T> {
    request: &'a Request<'a>,
    tell: T,
    stage: Stage,
    origin: Origin,
    /// The index of the next change.
    next: usize,
    is_prepared: bool,
    late: Vec<Duration>,
    /// When leases were last renewed.
    renewed_ns: u64,
}

impl<'a, T: FnMut(Line)> Run<'a, T> {
    fn begin(request: &'a Request<'a>, stage: Stage, tell: T) -> Result<Self, StageError> {
        let Request { scenario, plan, .. } = request;
        let places = stage.attached().into_iter().zip(stage.clocks());
        let targets = scenario.targets.keys().zip(places).zip(stage.addresses());
        let targets = targets
            .map(|((name, (attached, clocks)), addresses)| TargetLine {
                name: name.clone(),
                attached,
                addresses: addresses.into_iter().map(|it| IpNet::from(it).to_string()).collect(),
                clocks: clocks.unwrap_or_default(),
            })
            .collect();
        let mut run = Self {
            request,
            tell,
            stage,
            origin: Origin::now(),
            next: 0,
            is_prepared: false,
            late: Vec::new(),
            renewed_ns: monotonic_ns(),
        };
        run.prepare(None)?;
        // Time starts when everything is ready.
        run.origin = Origin::now();
        run.say(Event::Started {
            scenario: request.name.clone(),
            pid: std::process::id(),
            seed: request.seed,
            length_ms: plan.length.map(|length| length.as_secs_f64() * 1e3),
            changes: plan.changes.len(),
            targets,
        });
        Ok(run)
    }

    fn say(&mut self, event: Event) {
        (self.tell)(self.origin.line(event));
    }

    /// Prepares the next change, given when the scenario started, if it has.
    fn prepare(&mut self, origin_ns: Option<u64>) -> Result<(), StageError> {
        if !self.is_prepared && self.next < self.request.plan.changes.len() {
            self.stage.prepare(self.request.plan, self.next, origin_ns)?;
            self.is_prepared = true;
        }
        Ok(())
    }

    /// When the next change, or the end, is due.
    fn due_ns(&self) -> Option<u64> {
        let at = match self.request.plan.changes.get(self.next) {
            Some(change) => Some(change.at),
            None => self.request.plan.length,
        };
        at.map(|at| self.origin.monotonic_ns.saturating_add(at.as_nanos() as u64))
    }

    /// When to wake up: for a change or a process fault.
    fn wake_ns(&self) -> Option<u64> {
        let at_ns = |at: Instant| monotonic_ns().saturating_add(until(at).as_nanos() as u64);
        let processes = self.stage.next_deadline().map(at_ns);
        self.due_ns().into_iter().chain(processes).min()
    }

    async fn watch(
        &mut self,
        stop: impl Future<Output = io::Result<()>>,
    ) -> Result<Reason, StageError> {
        let timer = Timer::new().map_err(StageError::Timer)?;
        tokio::pin!(stop);
        let mut renewal = tokio::time::interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut samples = tokio::time::interval(self.request.sample.max(Duration::from_millis(10)));
        samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
        samples.tick().await;
        loop {
            // Process faults first, so that a change never delays the end of a pause.
            self.stage.step()?;
            timer.get_ref().set(self.wake_ns()).map_err(StageError::Timer)?;
            tokio::select! {
                biased;
                // Before changes, which can be due again and again on a machine that is too slow for them.
                stopped = &mut stop => {
                    stopped.map_err(StageError::Stop)?;
                    return Ok(Reason::Asked);
                }
                () = future::ready(()), if self.is_renewal_urgent() => self.renew()?,
                ready = timer.readable() => {
                    // The number of expirations does not matter; the clock is read.
                    ready.map_err(StageError::Timer)?.clear_ready();
                    if self.due_ns().is_some_and(|due| due <= monotonic_ns()) {
                        if self.next == self.request.plan.changes.len() {
                            return Ok(Reason::Done);
                        }
                        self.change()?;
                    }
                }
                _ = renewal.tick() => self.renew()?,
                _ = samples.tick() => if !self.is_busy() { self.sample()? },
            }
        }
    }

    /// Whether a change is so close that no other work should start.
    fn is_busy(&self) -> bool {
        self.due_ns().is_some_and(|due| due < monotonic_ns() + QUIET.as_nanos() as u64)
    }

    /// Whether leases must be renewed even if that delays a change.
    fn is_renewal_urgent(&self) -> bool {
        monotonic_ns().saturating_sub(self.renewed_ns) >= (LEASE / 5).as_nanos() as u64
    }

    fn change(&mut self) -> Result<(), StageError> {
        let number = self.next;
        let planned_ns =
            self.origin.monotonic_ns + self.request.plan.changes[number].at.as_nanos() as u64;
        self.prepare(Some(self.origin.monotonic_ns))?;
        let actual_ns = self.stage.commit(self.request.plan, number)?;
        self.next += 1;
        self.is_prepared = false;
        let changed = self.stage.settle(self.request.plan, number)?;
        // The next change may be close, so it is prepared before any output.
        self.prepare(Some(self.origin.monotonic_ns))?;
        self.late.push(Duration::from_nanos(actual_ns.saturating_sub(planned_ns)));
        let targets = changed.into_iter().map(|changed| self.describe(changed)).collect();
        self.say(Event::Change {
            change: number,
            planned_ms: self.origin.elapsed_ms(planned_ns),
            actual_ms: self.origin.elapsed_ms(actual_ns),
            planned_monotonic_ns: planned_ns,
            actual_monotonic_ns: actual_ns,
            planned_time: self.origin.wall_at(planned_ns),
            actual_time: self.origin.wall_at(actual_ns),
            targets,
        });
        Ok(())
    }

    fn describe(&self, changed: Changed) -> TargetChange {
        let name = |part: usize| self.request.plan.parts[part].name.clone();
        let replaced = self.by_name(changed.replaced);
        TargetChange {
            target: self.request.plan.targets[changed.target].clone(),
            active: changed.parts.into_iter().map(name).collect(),
            replaced,
            before: changed.before,
            after: changed.after,
        }
    }

    /// Sums the counters of parts by name; several parts may share one.
    fn by_name(&self, parts: BTreeMap<usize, Counts>) -> Totals {
        let mut sums = Totals::new();
        for (part, counts) in parts {
            *sums.entry(self.request.plan.parts[part].name.clone()).or_default() += counts;
        }
        sums
    }

    fn renew(&mut self) -> Result<(), StageError> {
        // Changes take precedence unless leases would expire.
        if self.is_busy() && !self.is_renewal_urgent() {
            return Ok(());
        }
        let renewed = self.stage.renew();
        self.renewed_ns = monotonic_ns();
        self.say_events();
        renewed
    }

    fn say_events(&mut self) {
        for event in self.stage.take_events() {
            self.say(event);
        }
    }

    fn sample(&mut self) -> Result<(), StageError> {
        let targets = self.totals()?;
        self.say(Event::Sample { targets });
        Ok(())
    }

    fn totals(&mut self) -> Result<Totals, StageError> {
        let counts = self.stage.counts()?;
        let totals = counts.into_iter().map(|parts| parts.into_values().sum::<Counts>());
        Ok(self.request.plan.targets.iter().cloned().zip(totals).collect())
    }

    /// Messages about active faults that did nothing.
    fn idle(&self, totals: &Totals, faults: &IndexMap<String, Totals>) -> Vec<String> {
        // A partition drops packets at their senders. The nodes that send nothing need not see any.
        let did_part = |fault: &String| {
            parts(self.request.plan, fault).any(Part::is_partition)
                && faults.values().any(|faults| faults.get(fault).is_some_and(|it| it.matched > 0))
        };
        let is_idle = |fault: &String| {
            parts(self.request.plan, fault).any(Part::has_rules) && !did_part(fault)
        };
        let untouched: Vec<&str> = faults
            .iter()
            .filter(|(target, faults)| totals[*target].matched == 0 && faults.keys().any(is_idle))
            .map(|(target, _)| target.as_str())
            .collect();
        let mut messages = Vec::new();
        if !untouched.is_empty() {
            messages.push(format!("no packet matched at {}", untouched.join(", ")));
        }
        for (target, faults) in faults {
            for (fault, counts) in faults {
                let Some(processes) = parts(self.request.plan, fault).find_map(Part::processes)
                else {
                    continue;
                };
                if processes.pause.is_some() && counts.processes.pauses == 0 {
                    messages.push(format!("nothing was paused at {target} by {fault}"));
                }
                if !processes.kills.is_empty() && counts.processes.signals == 0 {
                    messages.push(format!("no signal was sent at {target} by {fault}"));
                }
                if !processes.failures.is_empty() && counts.processes.calls_matched == 0 {
                    messages.push(format!("no system call matched at {target} by {fault}"));
                }
            }
        }
        messages
    }

    /// Undoes everything and reports the totals.
    fn finish(
        mut self,
        watched: Result<Reason, StageError>,
    ) -> Result<Result<Outcome, StageError>, StageError> {
        let (mut reason, mut error) = match watched {
            Ok(reason) => (reason, None),
            Err(error) => (Reason::Failed, Some(error)),
        };
        if error.is_none() {
            // A target may have gone since the last check.
            if let Err(failure) = self.stage.follow() {
                (reason, error) = (Reason::Failed, Some(failure));
            }
            self.say_events();
        }
        // Dropping retries and logs whatever cannot be undone now.
        if let Err(failure) = self.stage.detach() {
            error.get_or_insert(failure);
        }
        self.say_events();
        if let Some(error) = &error {
            self.say(Event::Failed { error: output::chain(error) });
        }
        let targets = self.totals()?;
        let counters = self.stage.counts()?.into_iter().map(|parts| self.by_name(parts));
        let names = &self.request.plan.targets;
        let faults: IndexMap<String, Totals> = names.iter().cloned().zip(counters).collect();
        let clocks = names.iter().cloned().zip(self.stage.clocks());
        let clocks = clocks.filter_map(|(name, count)| Some((name, count?))).collect();
        let taken = self.stage.taken();
        for target in &taken {
            let message =
                format!("{target} was removed before the scenario ended, and did not return");
            self.say(Event::Warning { message });
        }
        if reason != Reason::Failed {
            for message in self.idle(&targets, &faults) {
                self.say(Event::Warning { message });
            }
        }
        let (late, changes) = (Late::of(&self.late), self.next);
        self.say(Event::Ended { reason, changes, late, targets, faults, clocks });
        self.stage.end()?;
        Ok(error.map_or(Ok(Outcome { is_taken: !taken.is_empty() }), Err))
    }
}

/// The parts with this name.
fn parts<'a>(plan: &'a Plan, name: &'a str) -> impl Iterator<Item = &'a Part> {
    plan.parts.iter().filter(move |part| part.name == name)
}

/// A timer with a resolution finer than tokio's milliseconds.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    fn new() -> io::Result<AsyncFd<Self>> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        // SAFETY: a Timer owns its descriptor, which it neither closes nor replaces.
        Ok(unsafe { AsyncFd::register(Self(timer))? })
    }

    /// Sets the expiration by `CLOCK_MONOTONIC`; `None` disarms the timer.
    fn set(&self, at_ns: Option<u64>) -> io::Result<()> {
        let set = match at_ns {
            // 0 would disarm the timer.
            Some(at) => self.0.set(
                Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(at.max(1)))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            ),
            None => self.0.unset(),
        };
        Ok(set?)
    }
}

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
    fault::{
        clock::report::ClocksReport,
        network::unmatched::{self, Explanation},
    },
    injection::{Options, until},
    kernel::clock::monotonic_ns,
    lifetime::{
        journal::Owner,
        lease::{LEASE, RENEWAL},
    },
    output,
    report::HostReport,
    spec::scenario::{
        Scenario,
        plan::{Part, Plan},
    },
};

/// Less urgent work does not start if a change is due within this time.
const QUIET: Duration = Duration::from_millis(30);

/// More partitions are not listed at the start.
const LISTED_PARTITIONS: usize = 256;

/// A scenario and its run options.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its name, for messages.
    pub name: String,
    /// The text of its file.
    pub text: Option<String>,
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
    fn begin(request: &'a Request<'a>, mut stage: Stage, tell: T) -> Result<Self, StageError> {
        let Request { scenario, plan, .. } = request;
        let places = stage.attached().into_iter().zip(stage.clocks());
        let targets = scenario.targets.iter().zip(places).zip(stage.addresses());
        let targets = targets
            .map(|(((name, spec), (attached, clocks)), addresses)| TargetLine {
                name: name.clone(),
                title: spec.title(),
                target: spec.into(),
                attached,
                addresses: addresses.into_iter().map(|it| IpNet::from(it).to_string()).collect(),
                clocks,
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
        let partitions: Vec<usize> =
            plan.partitions.keys().copied().take(LISTED_PARTITIONS).collect();
        run.say(Event::Started {
            scenario: request.name.clone(),
            pid: std::process::id(),
            seed: request.seed,
            host: Some(HostReport::current()),
            text: request.text.clone(),
            for_ms: plan.length.map(|length| length.as_millis() as u64),
            changes: plan.changes.len(),
            targets,
            partitions: plan.partitions(&partitions),
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
        let mut unmatched = tokio::time::interval(Duration::from_secs(1));
        unmatched.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                _ = unmatched.tick() => if !self.is_busy() { self.watch_unmatched()? },
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
            name: self.request.plan.targets[changed.target].clone(),
            amounts: self.request.plan.amounts(&changed.parts),
            partitions: self.request.plan.partitions(&changed.parts),
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

    /// Warns of targets at which no packet has matched for a while.
    fn watch_unmatched(&mut self) -> Result<(), StageError> {
        if !self.stage.is_counting() {
            return Ok(());
        }
        let faults = self.faults()?;
        for (number, target) in self.request.plan.targets.iter().enumerate() {
            let is_untouched = faults[target].values().all(Counts::is_untouched);
            if !self.stage.count_unmatched(number, is_untouched)? {
                continue;
            }
            if let Some(explanation) = self.explain(number, &faults) {
                for message in unmatched::messages("no packet has matched yet", Some(&explanation))
                {
                    let message = format!("target {target}: {message}");
                    self.say(Event::Warning { message });
                }
            }
        }
        Ok(())
    }

    /// Explains why no packet matched at a target, if one should have.
    fn explain(&mut self, target: usize, faults: &IndexMap<String, Totals>) -> Option<Explanation> {
        let plan = self.request.plan;
        let is_idle = |part: usize| is_idle(plan, &plan.parts[part].name, faults);
        self.stage.explain(plan, target, is_idle)
    }

    /// Messages about active faults that did nothing.
    fn idle(
        &self,
        faults: &IndexMap<String, Totals>,
        explanations: &BTreeMap<String, Explanation>,
    ) -> Vec<String> {
        let plan = self.request.plan;
        let mut messages = Vec::new();
        for (target, of_target) in faults {
            let is_tried = of_target.keys().any(|fault| is_idle(plan, fault, faults));
            if !is_tried || of_target.values().any(|counts| counts.matched > 0) {
                continue;
            }
            let (event, explanation) = if of_target.values().all(Counts::is_untouched) {
                ("no packet matched", explanations.get(target))
            } else {
                (
                    "no packet was faulted: all that matched were protected, or came after the end",
                    None,
                )
            };
            let found = unmatched::messages(event, explanation).into_iter();
            messages.extend(found.map(|message| format!("target {target}: {message}")));
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

    /// The counters of each fault, by target and fault. Clock faults have none.
    fn faults(&mut self) -> Result<IndexMap<String, Totals>, StageError> {
        let counters = self.stage.counts()?.into_iter().map(|mut parts| {
            parts.retain(|&part, _| self.request.plan.parts[part].has_counters());
            self.by_name(parts)
        });
        Ok(self.request.plan.targets.iter().cloned().zip(counters).collect())
    }

    /// Explains why no packet matched, by target. To be called while programs are attached.
    fn explanations(&mut self) -> BTreeMap<String, Explanation> {
        // Errors are reported when the counters are read for the end.
        let Ok(faults) = self.faults() else { return BTreeMap::new() };
        let untouched = faults
            .iter()
            .enumerate()
            .filter(|(_, (_, counts))| counts.values().all(Counts::is_untouched));
        let explained = untouched.filter_map(|(number, (target, _))| {
            Some((target.clone(), self.explain(number, &faults)?))
        });
        explained.collect()
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
        let explanations = self.explanations();
        // Dropping retries and logs whatever cannot be undone now.
        if let Err(failure) = self.stage.detach() {
            error.get_or_insert(failure);
        }
        self.say_events();
        if let Some(error) = &error {
            self.say(Event::Failed { error: output::chain(error) });
        }
        let targets = self.totals()?;
        let faults = self.faults()?;
        let names = &self.request.plan.targets;
        let clocks = names.iter().cloned().zip(self.stage.clocks());
        let clocks: BTreeMap<String, ClocksReport> =
            clocks.filter_map(|(name, count)| Some((name, count?))).collect();
        let taken = self.stage.taken();
        for target in &taken {
            let message =
                format!("{target} was removed before the scenario ended, and did not return");
            self.say(Event::Warning { message });
        }
        if reason != Reason::Failed {
            let had_clock = |target: &String| {
                names
                    .iter()
                    .position(|name| name == target)
                    .is_some_and(|number| self.stage.had_clock(number))
            };
            let idle_clocks: Vec<String> = clocks
                .iter()
                .filter(|(target, report)| had_clock(target) && report.is_untouched())
                .map(|(target, _)| format!("target {target}: no process had its clocks faulted"))
                .collect();
            for message in self.idle(&faults, &explanations).into_iter().chain(idle_clocks) {
                self.say(Event::Warning { message });
            }
        }
        let (late, changes) = (Late::of(&self.late), self.next);
        self.say(Event::Ended { reason, changes, late, targets, faults, clocks });
        self.stage.end()?;
        Ok(error.map_or(Ok(Outcome { is_taken: !taken.is_empty() }), Err))
    }
}

/// Whether a fault has rules and should have matched packets, but did not. A partition drops packets
/// at their senders, so the nodes that send nothing need not see any.
fn is_idle(plan: &Plan, fault: &str, faults: &IndexMap<String, Totals>) -> bool {
    let did_part = || {
        parts(plan, fault).any(Part::is_partition)
            && faults.values().any(|faults| faults.get(fault).is_some_and(|it| it.matched > 0))
    };
    parts(plan, fault).any(Part::has_rules) && !did_part()
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

//! Pauses: their schedule, execution and statistics.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use injector_common::model::{
    delay::{Delay as DelayModel, Memory, Tables, UNIFORM},
    random,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ProcessFaultError,
    scope::Scope,
    stopper::{Outcome, Stopper},
};
use crate::{
    lifetime::instance::Instance,
    spec::{
        packet::delay::Delay,
        process::{MIN_DURATION, pause::Pause},
        value::is_default,
    },
};

/// Statistics of pauses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PauseStatistics {
    /// The mechanism that stops processes.
    pub by: Cow<'static, str>,
    /// Pauses that have ended.
    pub done: u64,
    /// The total planned duration in ms.
    pub planned_ms: f64,
    /// The total time in ms for which the target was stopped.
    pub stopped_ms: f64,
    /// The maximum delay of a start, in ms.
    pub latest_ms: f64,
    /// Pauses skipped because there was nothing to stop or it was stopped already.
    pub skipped: u64,
    /// Pauses in which not every process stopped within 50 ms.
    pub unsettled: u64,
    /// Containers that were not paused because their runtime started them during a pause.
    #[serde(skip_serializing_if = "is_default")]
    pub starting: u64,
}

/// The start times and lengths of pauses, a function of the seed and the pause's number only.
#[derive(Debug)]
struct Schedule {
    pause: Pause,
    stream: u64,
    number: u64,
}

/// The distribution table of a delay, if any.
struct Table<'a>(&'a Delay);

impl Tables for Table<'_> {
    fn value(&self, _: u32, random: u32) -> i32 {
        let Some(table) = &self.0.table else { return 0 };
        let index = (u64::from(random) * table.len() as u64) >> 32;
        table.get(index as usize).copied().unwrap_or_default()
    }
}

/// Samples a time from a delay distribution.
fn sample(distribution: &Delay, random: u64) -> Duration {
    let model = DelayModel {
        latency_ns: distribution.latency.0.as_nanos() as u64,
        jitter_ns: distribution.jitter.0.as_nanos() as u64,
        distribution: if distribution.table.is_some() { UNIFORM + 1 } else { UNIFORM },
        ..DelayModel::default()
    };
    let (sample, _) = model.step(Memory::default(), random, &Table(distribution));
    Duration::from_nanos(sample.unwrap_or_default()).max(MIN_DURATION)
}

impl Schedule {
    /// The length of the next pause, and the time from its start to that of the one after it.
    fn next(&mut self) -> (Duration, Option<Duration>) {
        let draw = |number| random::draw(self.stream, 2 * self.number + number);
        let length = sample(&self.pause.length, draw(0));
        let interval = self.pause.interval.as_ref().map(|interval| sample(interval, draw(1)));
        self.number += 1;
        (length, interval)
    }
}

/// The state of the target.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Running.
    Running,
    /// Stopped.
    Paused { since: Instant, until: Instant },
}

/// Pauses the target by a schedule.
#[derive(Debug)]
pub struct Pauser {
    stopper: Stopper,
    schedule: Schedule,
    state: State,
    /// When the next pause starts.
    next: Option<Instant>,
    statistics: PauseStatistics,
}

impl Pauser {
    /// Schedules the pauses; times count from now.
    pub fn new(scope: Scope, pause: Pause, stream: u64) -> Result<Self, ProcessFaultError> {
        let stopper = Stopper::new(scope)?;
        let statistics =
            PauseStatistics { by: stopper.name().into(), ..PauseStatistics::default() };
        let next = Some(Instant::now() + pause.at);
        let schedule = Schedule { pause, stream, number: 0 };
        Ok(Self { stopper, schedule, state: State::Running, next, statistics })
    }

    /// Stops another target from now on.
    pub fn rebind(
        &mut self,
        instance: &mut Instance,
        scope: Scope,
    ) -> Result<(), ProcessFaultError> {
        self.resume(instance)?;
        self.stopper = Stopper::new(scope)?;
        self.statistics.by = self.stopper.name().into();
        Ok(())
    }

    /// When the next pause starts or the current one ends.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Paused { until, .. } => Some(until),
            State::Running => self.next,
        }
    }

    /// Starts or ends a pause if due.
    pub fn step(&mut self, instance: &mut Instance, now: Instant) -> Result<(), ProcessFaultError> {
        match self.state {
            State::Paused { until, .. } if now >= until => self.resume(instance),
            State::Running if self.next.is_some_and(|next| now >= next) => {
                let planned = self.next.take().unwrap_or(now);
                self.pause(instance, planned, now)
            }
            _ => Ok(()),
        }
    }

    fn pause(
        &mut self,
        instance: &mut Instance,
        planned: Instant,
        now: Instant,
    ) -> Result<(), ProcessFaultError> {
        let (length, interval) = self.schedule.next();
        // The target must run for a moment between two pauses.
        self.next = interval.map(|interval| (planned + interval).max(now + length + MIN_DURATION));
        let outcome = self.stopper.stop(instance)?;
        if outcome == Outcome::Nothing {
            self.statistics.skipped += 1;
            return Ok(());
        }
        let since = Instant::now();
        self.state = State::Paused { since, until: since + length };
        let statistics = &mut self.statistics;
        statistics.unsettled += u64::from(outcome == Outcome::Unsettled);
        statistics.planned_ms += length.as_secs_f64() * 1e3;
        let late = since.saturating_duration_since(planned).as_secs_f64() * 1e3;
        statistics.latest_ms = statistics.latest_ms.max(late);
        Ok(())
    }

    /// Ends the running pause, if any.
    pub fn resume(&mut self, instance: &mut Instance) -> Result<(), ProcessFaultError> {
        if let State::Paused { since, .. } = self.state {
            self.statistics.starting += self.stopper.starting();
            self.stopper.resume(instance)?;
            self.state = State::Running;
            self.statistics.done += 1;
            self.statistics.stopped_ms += since.elapsed().as_secs_f64() * 1e3;
        }
        Ok(())
    }

    /// The statistics so far.
    pub fn statistics(&self) -> PauseStatistics {
        self.statistics.clone()
    }

    /// Resumes the target and cancels further pauses.
    pub fn end(&mut self, instance: &mut Instance) -> Result<(), ProcessFaultError> {
        self.next = None;
        self.resume(instance)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::spec::process::ProcessSpec;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        spec: ProcessSpec,
    }

    fn schedule(pause: &str, seed: u64) -> Vec<(Duration, Option<Duration>)> {
        let line = Line::try_parse_from(["x", "--pause", pause]).expect("valid");
        let pause = line.spec.check().expect("valid").and_then(|faults| faults.pause);
        let pause = pause.expect("a pause");
        let mut schedule = Schedule { pause, stream: random::stream(seed, 0), number: 0 };
        (0..1000).map(|_| schedule.next()).collect()
    }

    const GC: &str = "50ms,jitter=40ms,dist=pareto,every=1s,every-jitter=300ms,every-dist=normal";

    #[test]
    fn the_same_seed_gives_the_same_pauses_and_another_one_others() {
        assert_eq!(schedule(GC, 7), schedule(GC, 7));
        assert_ne!(schedule(GC, 7), schedule(GC, 8));
    }

    #[test]
    fn lengths_and_intervals_follow_their_distributions() {
        let pauses = schedule(GC, 7);
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let lengths: Vec<f64> = pauses.iter().map(|(length, _)| length.as_secs_f64()).collect();
        // netem's Pareto distribution begins 2/3 of the jitter below the mean.
        let shortest = lengths.iter().copied().fold(f64::MAX, f64::min);
        assert!((shortest - 0.0233).abs() < 0.001, "{shortest}");
        assert!(lengths.iter().any(|&length| length > 0.15), "no long tail");
        // Its standard deviation is 1.15 jitters: 4.5 of the mean's are 6.6 ms.
        assert!((mean(lengths) - 0.05).abs() < 0.0066);
        let interval = |(_, interval): &(_, Option<Duration>)| interval.expect("one").as_secs_f64();
        assert!((mean(pauses.iter().map(interval).collect()) - 1.0).abs() < 0.045);
        let even = schedule("2s,every=5s", 7);
        assert!(
            even.iter()
                .all(|pause| *pause == (Duration::from_secs(2), Some(Duration::from_secs(5))))
        );
    }
}

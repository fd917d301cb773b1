//! `injector apply`: a scenario.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{self, IsTerminal as _, Read as _},
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use indexmap::IndexMap;
use nix::sys::{
    signal::Signal,
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{io::unix::AsyncFd, time::MissedTickBehavior};

use super::{FAILED, args::Output, session, signals::Signals};
use crate::{
    fault::network::{LEASE, RENEWAL},
    kernel::clock::monotonic_ns,
    output::{self, Importance, Writer},
    scenario::{
        stage::{Changed, Stage},
        timeline::{Counts, Event, Late, Line, Origin, Reason, TargetChange, TargetLine, Totals},
    },
    spec::{
        SpecError,
        scenario::{
            self, Scenario,
            plan::{Part, Plan, plan},
        },
        value::Span,
    },
};

/// What is not urgent is not begun if a change is due within this time.
const QUIET: Duration = Duration::from_millis(30);

/// Run a scenario: a timeline of faults on several targets
///
/// The command ends with the scenario, on Enter at a terminal, or on SIGINT or SIGTERM, and undoes all faults. If a step
/// fails, all faults are undone as well. See docs/scenarios.md. The file's JSON Schema is docs/scenario.schema.json.
#[derive(Args, Debug)]
#[command(after_help = "Example: injector apply scenario.yaml --seed 7 --timeline run.jsonl")]
pub struct ApplyArgs {
    /// Scenario file, in YAML or JSON
    file: PathBuf,

    /// Print the plan without applying it
    ///
    /// Does not check that the targets exist.
    #[arg(long)]
    check: bool,

    /// Seed of all random decisions
    ///
    /// The default is the scenario's seed, or else a random one.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Write the timeline to this file
    ///
    /// The file has one JSON object per line: a change, or a sample of the counters.
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,

    /// Sample the counters this often
    #[arg(long, value_name = "T", default_value = "1s")]
    sample: Span,

    /// Report format; json is the timeline
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "human|json",
        hide_possible_values = true
    )]
    output: Output,
}

/// Carries it out.
pub fn run(args: &ApplyArgs, verbose: bool) -> Result<ExitCode> {
    let scenario = scenario::read(&args.file).map_err(SpecError::from)?;
    let seed = args.seed.or(scenario.seed).unwrap_or_else(rand::random);
    let mut plan = plan(&args.file, &scenario, seed).map_err(SpecError::from)?;
    if args.check {
        output::print(describe_plan(&plan, seed, args.output)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let owner = session::start()?;
    Stage::resolve(&mut plan)?;
    // Opening a named pipe waits for its reader: Ctrl-C ends that as long as signals are not taken.
    let book = Book::open(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let mut signals = Signals::take().context("cannot take signals")?;
        let log_level = if verbose { session::VERBOSE_LOG } else { 0 };
        let stage = Stage::set(&scenario, &plan, seed, &owner, log_level)?;
        let mut run = Run::begin(args, &scenario, &plan, seed, stage, &book)?;
        let watched = run.watch(&mut signals, &book).await;
        run.finish(watched, &book)
    });
    let code = session::finish(&book.reports, code);
    match &book.timeline {
        Some(timeline) => session::finish(timeline, code),
        None => code,
    }
}

/// Where lines go.
struct Book {
    output: Output,
    reports: Writer,
    timeline: Option<Writer>,
}

impl Book {
    fn open(args: &ApplyArgs) -> Result<Self> {
        let timeline = match &args.timeline {
            Some(path) => {
                let name = path.display().to_string();
                let file = File::create(path).with_context(|| format!("cannot write to {name}"))?;
                Some(Writer::file(file, name).context("cannot write the timeline")?)
            }
            None => None,
        };
        let reports = Writer::stdout().context("cannot report")?;
        Ok(Self { output: args.output, reports, timeline })
    }

    fn say(&self, line: &Line) -> Result<()> {
        let json = serde_json::to_string(line)? + "\n";
        let importance = match &line.event {
            Event::Sample { .. } => Importance::Progress,
            Event::Ended { .. } => Importance::Last,
            _ => Importance::Event,
        };
        let text = match self.output {
            Output::Json => json.clone(),
            Output::Human => human(line),
        };
        if !text.is_empty() {
            self.reports.push(text, importance);
        }
        if let Some(timeline) = &self.timeline {
            timeline.push(json, importance);
        }
        Ok(())
    }
}

/// A scenario that is being carried out.
struct Run<'a> {
    args: &'a ApplyArgs,
    plan: &'a Plan,
    stage: Stage,
    origin: Origin,
    /// The next change.
    next: usize,
    is_prepared: bool,
    late: Vec<Duration>,
    /// When leases were renewed last.
    renewed_ns: u64,
}

impl<'a> Run<'a> {
    fn begin(
        args: &'a ApplyArgs,
        scenario: &Scenario,
        plan: &'a Plan,
        seed: u64,
        stage: Stage,
        book: &Book,
    ) -> Result<Self> {
        let places = stage.attached().into_iter().zip(stage.clocks());
        let targets = scenario.targets.keys().zip(places).zip(stage.addresses());
        let targets = targets
            .map(|((name, (attached, clocks)), addresses)| TargetLine {
                name: name.clone(),
                attached,
                addresses: addresses.iter().map(ToString::to_string).collect(),
                clocks: clocks.unwrap_or_default(),
            })
            .collect();
        let mut run = Self {
            args,
            plan,
            stage,
            origin: Origin::now(),
            next: 0,
            is_prepared: false,
            late: Vec::new(),
            renewed_ns: monotonic_ns(),
        };
        run.prepare()?;
        // The time begins when everything is ready.
        run.origin = Origin::now();
        book.say(&run.origin.line(Event::Started {
            scenario: args.file.display().to_string(),
            pid: std::process::id(),
            seed,
            length_ms: plan.length.map(|length| length.as_secs_f64() * 1e3),
            changes: plan.changes.len(),
            targets,
        }))?;
        Ok(run)
    }

    fn prepare(&mut self) -> Result<()> {
        if !self.is_prepared && self.next < self.plan.changes.len() {
            self.stage.prepare(self.plan, self.next)?;
            self.is_prepared = true;
        }
        Ok(())
    }

    /// When the next thing is to happen: a change, or the end.
    fn due_ns(&self) -> Option<u64> {
        let at = match self.plan.changes.get(self.next) {
            Some(change) => Some(change.at),
            None => self.plan.length,
        };
        at.map(|at| self.origin.monotonic_ns.saturating_add(at.as_nanos() as u64))
    }

    /// When there is something to do: what is planned, or what is due to processes.
    fn wake_ns(&self) -> Option<u64> {
        let until = self.stage.due().map(|due| due.saturating_duration_since(Instant::now()));
        let processes = until.map(|until| monotonic_ns().saturating_add(until.as_nanos() as u64));
        self.due_ns().into_iter().chain(processes).min()
    }

    async fn watch(&mut self, signals: &mut Signals, book: &Book) -> Result<Reason> {
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )
        .context("cannot make a timer")?;
        // SAFETY: a Timer owns its descriptor, which it neither closes nor replaces.
        let timer =
            unsafe { AsyncFd::register(Timer(timer)) }.context("cannot wait for a timer")?;
        let mut keys = Keys::open();
        let mut renewal = tokio::time::interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut samples = tokio::time::interval(self.args.sample.0.max(Duration::from_millis(10)));
        samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
        samples.tick().await;
        loop {
            // The end of a pause is not late because of a change.
            self.stage.step()?;
            if self.due_ns().is_some_and(|due| due <= monotonic_ns()) {
                if self.next == self.plan.changes.len() {
                    return Ok(Reason::Done);
                }
                self.change(book)?;
                continue;
            }
            timer.get_ref().set(self.wake_ns())?;
            tokio::select! {
                biased;
                ready = timer.readable() => {
                    // How often it went off does not matter; the clock is looked at.
                    ready.context("cannot wait for a timer")?.clear_ready();
                }
                arrived = signals.next() => {
                    let signal = arrived.context("cannot read signals")?.signal;
                    if !matches!(signal, Signal::SIGUSR1 | Signal::SIGUSR2) {
                        return Ok(Reason::Asked);
                    }
                }
                () = keys.enter() => return Ok(Reason::Asked),
                _ = renewal.tick() => self.renew(book)?,
                _ = samples.tick() => if !self.is_busy() { self.sample(book)? },
            }
        }
    }

    /// Whether a change is so close that nothing else should be begun.
    fn is_busy(&self) -> bool {
        self.due_ns().is_some_and(|due| due < monotonic_ns() + QUIET.as_nanos() as u64)
    }

    fn change(&mut self, book: &Book) -> Result<()> {
        let number = self.next;
        let planned_ns = self.origin.monotonic_ns + self.plan.changes[number].at.as_nanos() as u64;
        self.prepare()?;
        let actual_ns = self.stage.commit(self.plan, number)?;
        self.next += 1;
        self.is_prepared = false;
        let changed = self.stage.settle(self.plan, number)?;
        // The next one may be close, so it comes before anything is written.
        self.prepare()?;
        self.late.push(Duration::from_nanos(actual_ns.saturating_sub(planned_ns)));
        let targets = changed.into_iter().map(|changed| self.describe(changed)).collect();
        book.say(&self.origin.line(Event::Change {
            change: number,
            planned_ms: self.origin.elapsed_ms(planned_ns),
            actual_ms: self.origin.elapsed_ms(actual_ns),
            planned_monotonic_ns: planned_ns,
            actual_monotonic_ns: actual_ns,
            planned_time: self.origin.wall_at(planned_ns),
            actual_time: self.origin.wall_at(actual_ns),
            targets,
        }))
    }

    fn describe(&self, changed: Changed) -> TargetChange {
        let name = |part: usize| self.plan.parts[part].name.clone();
        let replaced = self.by_name(changed.replaced);
        TargetChange {
            target: self.plan.targets[changed.target].clone(),
            active: changed.parts.into_iter().map(name).collect(),
            replaced,
            before: changed.before,
            after: changed.after,
        }
    }

    /// The counters of parts by their names, of which several parts may have one.
    fn by_name(&self, parts: BTreeMap<usize, Counts>) -> Totals {
        let mut sums = Totals::new();
        for (part, counts) in parts {
            *sums.entry(self.plan.parts[part].name.clone()).or_default() += counts;
        }
        sums
    }

    fn renew(&mut self, book: &Book) -> Result<()> {
        let age = Duration::from_nanos(monotonic_ns().saturating_sub(self.renewed_ns));
        // A change comes first, but not if leases ran out over it.
        if self.is_busy() && age < LEASE / 5 {
            return Ok(());
        }
        let events = self.stage.renew(self.plan)?;
        self.renewed_ns = monotonic_ns();
        for event in events {
            book.say(&self.origin.line(event))?;
        }
        Ok(())
    }

    fn sample(&mut self, book: &Book) -> Result<()> {
        let targets = self.totals()?;
        book.say(&self.origin.line(Event::Sample { targets }))
    }

    fn totals(&mut self) -> Result<Totals> {
        let counts = self.stage.counts()?;
        let totals = counts.into_iter().map(|parts| parts.into_values().sum::<Counts>());
        Ok(self.plan.targets.iter().cloned().zip(totals).collect())
    }

    /// The parts of this name.
    fn parts<'b>(&self, name: &'b str) -> impl Iterator<Item = &Part> + use<'_, 'b> {
        self.plan.parts.iter().filter(move |part| part.name == name)
    }

    /// What did nothing, though it was active.
    fn idle(&self, totals: &Totals, faults: &IndexMap<String, Totals>) -> Vec<String> {
        let has_rules = |fault: &String| self.parts(fault).any(Part::has_rules);
        let untouched: Vec<&str> = faults
            .iter()
            .filter(|(target, faults)| totals[*target].matched == 0 && faults.keys().any(has_rules))
            .map(|(target, _)| target.as_str())
            .collect();
        let mut messages = Vec::new();
        if !untouched.is_empty() {
            messages.push(format!("no packet matched at {}", untouched.join(", ")));
        }
        for (target, faults) in faults {
            for (fault, counts) in faults {
                let Some(processes) = self.parts(fault).find_map(Part::processes) else { continue };
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

    /// Undoes everything and says what was done.
    fn finish(mut self, watched: Result<Reason>, book: &Book) -> Result<ExitCode> {
        let (mut reason, mut error) = match watched {
            Ok(reason) => (reason, None),
            Err(error) => (Reason::Failed, Some(error)),
        };
        if error.is_none() {
            // A target may have gone since it was last looked for.
            match self.stage.follow(self.plan) {
                Ok(events) => {
                    events.into_iter().try_for_each(|event| book.say(&self.origin.line(event)))?;
                }
                Err(failure) => (reason, error) = (Reason::Failed, Some(failure.into())),
            }
        }
        // Whatever cannot be undone now is, or is said not to be, when everything is dropped.
        if let Err(failure) = self.stage.detach() {
            error.get_or_insert(failure.into());
        }
        for event in self.stage.last_warnings() {
            book.say(&self.origin.line(event))?;
        }
        if let Some(error) = &error {
            let error = format!("{error:#}");
            book.say(&self.origin.line(Event::Failed { error }))?;
        }
        let targets = self.totals()?;
        let counters = self.stage.counts()?.into_iter().map(|parts| self.by_name(parts));
        let faults: IndexMap<String, Totals> =
            self.plan.targets.iter().cloned().zip(counters).collect();
        let clocks = self.plan.targets.iter().cloned().zip(self.stage.clocks());
        let clocks = clocks.filter_map(|(name, count)| Some((name, count?))).collect();
        let taken = self.stage.taken();
        for target in &taken {
            let message =
                format!("{target} was removed before the scenario ended, and did not return");
            book.say(&self.origin.line(Event::Warning { message }))?;
        }
        if reason != Reason::Failed {
            for message in self.idle(&targets, &faults) {
                book.say(&self.origin.line(Event::Warning { message }))?;
            }
        }
        let (late, changes) = (Late::of(&self.late), self.next);
        let ended = Event::Ended { reason, changes, late, targets, faults, clocks };
        book.say(&self.origin.line(ended))?;
        self.stage.end()?;
        match error {
            // It has been said.
            Some(_) if self.args.output == Output::Json => Ok(ExitCode::from(FAILED)),
            Some(error) => Err(error),
            None if taken.is_empty() => Ok(ExitCode::SUCCESS),
            None => Ok(ExitCode::from(FAILED)),
        }
    }
}

/// A timer that tokio's, which count in milliseconds, are too coarse for.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    /// Has it go off at a time by `CLOCK_MONOTONIC`; not at all if there is none.
    fn set(&self, at_ns: Option<u64>) -> Result<()> {
        let set = match at_ns {
            // 0 would stop it.
            Some(at) => self.0.set(
                Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(at.max(1)))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            ),
            None => self.0.unset(),
        };
        set.context("cannot set a timer")
    }
}

/// Enter, on a terminal. The terminal stays in its mode, so that there is nothing to put back.
struct Keys {
    terminal: Option<AsyncFd<io::Stdin>>,
}

impl Keys {
    fn open() -> Self {
        let stdin = io::stdin();
        let terminal = stdin
            .is_terminal()
            // SAFETY: standard input stays open, and what it is.
            .then(|| unsafe { AsyncFd::register(stdin) }.ok())
            .flatten();
        Self { terminal }
    }

    /// Returns when it is pressed.
    async fn enter(&mut self) {
        loop {
            let Some(terminal) = &mut self.terminal else { return std::future::pending().await };
            let Ok(mut ready) = terminal.readable_mut().await else {
                self.terminal = None;
                continue;
            };
            // In the background, what is typed is not for us, and reading it would stop this process.
            // SAFETY: takes no pointers.
            let foreground = unsafe { libc::tcgetpgrp(ready.get_inner().as_raw_fd()) };
            let is_ours = foreground == nix::unistd::getpgrp().as_raw();
            if !is_ours {
                ready.clear_ready();
                continue;
            }
            let mut typed = [0; 256];
            match ready.get_inner_mut().read(&mut typed) {
                Ok(0) | Err(_) => self.terminal = None,
                Ok(_) => return,
            }
        }
    }
}

fn describe_plan(plan: &Plan, seed: u64, output: Output) -> Result<String> {
    /// More changes than that are not listed for people.
    const LISTED: usize = 200;

    let mut text = String::new();
    let names = |parts: &[usize]| -> Vec<&str> {
        parts.iter().map(|&part| plan.parts[part].name.as_str()).collect()
    };
    if output == Output::Human {
        let end = plan
            .length
            .map_or("does not end by itself".into(), |length| format!("ends after {length:?}"));
        let (targets, changes) = (plan.targets.len(), plan.changes.len());
        writeln!(text, "{targets} targets, {changes} changes, {end} (seed {seed})")?;
    }
    for change in
        plan.changes.iter().take(if output == Output::Human { LISTED } else { usize::MAX })
    {
        for (target, parts) in &change.sets {
            let target = plan.targets[*target].as_str();
            match output {
                Output::Json => {
                    let at_ms = change.at.as_secs_f64() * 1e3;
                    let line = serde_json::json!({
                        "event": "planned", "planned_ms": at_ms, "target": target, "active": names(parts),
                    });
                    writeln!(text, "{line}")?;
                }
                Output::Human => {
                    writeln!(text, "{:>10?}  {target}: {}", change.at, listed(&names(parts)))?;
                }
            }
        }
    }
    if output == Output::Human && plan.changes.len() > LISTED {
        writeln!(text, "and {} more changes", plan.changes.len() - LISTED)?;
    }
    Ok(text)
}

fn listed<T: AsRef<str>>(names: &[T]) -> String {
    if names.is_empty() {
        return "nothing".into();
    }
    names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" + ")
}

fn human(line: &Line) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_human(&mut text, line);
    text
}

fn write_human(text: &mut String, line: &Line) -> std::fmt::Result {
    let elapsed = line.elapsed_ms / 1e3;
    match &line.event {
        Event::Started { scenario, seed, length_ms, changes, targets, .. } => {
            let end = length_ms.map(|ms| format!(" for {:.3} s", ms / 1e3)).unwrap_or_default();
            writeln!(text, "injector: {scenario}{end}: {changes} changes (seed {seed})")?;
            for target in targets {
                writeln!(text, "injector:   {}: {}", target.name, listed(&target.attached))?;
            }
            if io::stdin().is_terminal() {
                writeln!(text, "injector: Enter ends it")?;
            }
        }
        Event::Change { actual_ms, targets, .. } => {
            for change in targets {
                let active = listed(&change.active);
                writeln!(text, "injector: {:9.3} s  {}: {active}", actual_ms / 1e3, change.target)?;
            }
        }
        Event::Gone { target, what } => {
            writeln!(text, "injector: {target} ({what}) is gone")?;
        }
        Event::Followed { target, what, .. } => {
            writeln!(text, "injector: {target} ({what}) is there again: faulting it")?;
        }
        Event::Sample { .. } => {}
        Event::Warning { message } => writeln!(text, "injector: warning: {message}")?,
        Event::Failed { .. } => {
            writeln!(text, "injector: {elapsed:9.3} s  failed; everything is undone")?;
        }
        Event::Ended { changes, late, faults, clocks, .. } => {
            writeln!(
                text,
                "injector: {elapsed:9.3} s  ended after {changes} changes, of which 99 % were at most {:.3} ms late",
                late.p99_ms
            )?;
            for (target, faults) in faults {
                for (fault, counts) in faults {
                    let mut words: Vec<String> = counts.done_in_words().collect();
                    if counts.matched > 0 || words.is_empty() {
                        words.insert(0, format!("{} packets matched", counts.matched));
                    }
                    writeln!(text, "injector:   {target}: {fault}: {}", words.join(", "))?;
                }
            }
            for (target, count) in clocks {
                writeln!(text, "injector:   {target}: clocks of {count} programs and processes")?;
            }
        }
    }
    Ok(())
}

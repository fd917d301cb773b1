//! `injector apply`: runs a scenario.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{self, IsTerminal as _, Read as _},
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::sys::signal::Signal;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::io::unix::AsyncFd;

use super::{
    FAILED,
    args::{Engines, Output},
    session,
    signals::{Arrived, Signals},
};
use crate::{
    output::{self, Importance, Writer},
    report::{self, SCHEMA_VERSION},
    scenario::{
        run::{self, Request},
        stage::Stage,
        timeline::{Event, Line, WrittenLine},
    },
    spec::{
        SpecError,
        scenario::{
            self,
            amount::Amount,
            partition::Sides,
            plan::{Plan, plan},
        },
        value::HumanDuration,
    },
    target::peers::{self, Peers, Resolved},
    words::plural,
};

/// Longer scenarios are not copied to their timeline.
const MAX_TEXT: usize = 256 << 10;

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
    sample: HumanDuration,

    #[command(flatten)]
    engines: Engines,

    /// Report format
    ///
    /// json is the timeline.
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "human|json",
        hide_possible_values = true
    )]
    output: Output,
}

/// Runs the scenario.
pub fn run(args: &ApplyArgs, debug: bool) -> Result<ExitCode> {
    let text = scenario::read_text(&args.file).map_err(SpecError::from)?;
    let scenario = scenario::parse(&args.file, &text).map_err(SpecError::from)?;
    let seed = args.seed.or(scenario.seed).unwrap_or_else(rand::random);
    let plan = plan(&args.file, &scenario, seed).map_err(SpecError::from)?;
    if args.check {
        output::print(describe_plan(&plan, seed, args.output)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = session::options(&args.engines, None, debug)?;
    options.network.is_final = true;
    let owner = session::start()?;
    options.peers = Stage::resolve(&plan)?;
    let peers = options.peers.clone();
    // Opening a named pipe blocks until it has a reader. Ctrl-C must still work, so signals are
    // taken afterwards.
    let book = Book::open(args)?;
    let request = Request {
        name: args.file.display().to_string(),
        text: Some(text).filter(|text| text.len() <= MAX_TEXT),
        scenario: &scenario,
        plan: &plan,
        seed,
        options,
        sample: args.sample.0,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let mut signals = Signals::take().context("cannot take signals")?;
        let ended =
            run::run(&request, &owner, stop(&mut signals, &peers), |line| book.say(&line)).await?;
        match ended {
            // The error was reported as an event.
            Err(_) if args.output == Output::Json => Ok(ExitCode::from(FAILED)),
            ended => Ok(if ended?.is_taken { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }),
        }
    });
    let code = session::finish(&book.reports, code);
    match &book.timeline {
        Some(timeline) => session::finish(timeline, code),
        None => code,
    }
}

/// Waits for a request to stop: a signal, or Enter. Meanwhile, SIGHUP looks up the peers, unless the
/// terminal was closed.
async fn stop(signals: &mut Signals, peers: &Peers) -> io::Result<()> {
    let mut keys = Keys::open();
    loop {
        tokio::select! {
            biased;
            arrived = signals.next() => {
                let Arrived { signal, from_terminal } = arrived?;
                match signal {
                    Signal::SIGUSR1 | Signal::SIGUSR2 => {}
                    Signal::SIGHUP if !from_terminal && peers.may_change() => peers.look_up_now(),
                    _ => return Ok(()),
                }
            }
            () = keys.enter() => return Ok(()),
        }
    }
}

/// The destinations of timeline lines.
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

    fn say(&self, line: &Line) {
        if let Err(error) = self.try_say(line) {
            output::complain(&format!("cannot report: {error:#}"));
        }
    }

    fn try_say(&self, line: &Line) -> Result<()> {
        let dropped = |writer: &Writer| Some(writer.dropped()).filter(|&dropped| dropped > 0);
        let json = |writer| -> Result<String> {
            let reports_dropped = dropped(writer);
            let line = WrittenLine { line, reports_dropped, schema_version: SCHEMA_VERSION };
            Ok(serde_json::to_string(&line)? + "\n")
        };
        let importance = match &line.event {
            Event::Sample { .. } => Importance::Progress,
            Event::Ended { .. } => Importance::Last,
            _ => Importance::Event,
        };
        let mut text = match self.output {
            Output::Json => json(&self.reports)?,
            Output::Human => human(line),
        };
        if self.output == Output::Human
            && importance == Importance::Last
            && let Some(dropped) = dropped(&self.reports)
        {
            let dropped = plural(dropped, "report");
            writeln!(text, "injector: {dropped} dropped or not read")?;
        }
        if !text.is_empty() {
            self.reports.push(text, importance);
        }
        if let Some(timeline) = &self.timeline {
            timeline.push(json(timeline)?, importance);
        }
        Ok(())
    }
}

/// The Enter key on a terminal. The terminal mode is not changed, so nothing must be restored.
struct Keys {
    terminal: Option<AsyncFd<io::Stdin>>,
}

impl Keys {
    fn open() -> Self {
        let stdin = io::stdin();
        let terminal = stdin
            .is_terminal()
            // SAFETY: standard input stays open and is not replaced.
            .then(|| unsafe { AsyncFd::register(stdin) }.ok())
            .flatten();
        Self { terminal }
    }

    /// Waits until Enter is pressed.
    async fn enter(&mut self) {
        loop {
            let Some(terminal) = &mut self.terminal else { return std::future::pending().await };
            let Ok(mut ready) = terminal.readable_mut().await else {
                self.terminal = None;
                continue;
            };
            // In the background, input is for other processes, and reading it would stop this one
            // (SIGTTIN).
            // SAFETY: `tcgetpgrp` takes no pointers.
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

/// A planned change of a target.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Planned")]
pub struct PlannedChange<'a> {
    /// `planned`.
    event: &'static str,
    /// The time since the start, in milliseconds.
    planned_ms: f64,
    /// The name of the target.
    name: &'a str,
    /// The faults that are active from then on.
    active: Vec<&'a str>,
    /// The amounts of active ramps, by the name of the fault.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    amounts: BTreeMap<String, Vec<Amount>>,
    /// The active partitions, by the name of the fault.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    partitions: BTreeMap<String, Sides>,
}

fn describe_plan(plan: &Plan, seed: u64, output: Output) -> Result<String> {
    /// Maximum number of changes listed in text output.
    const LISTED: usize = 200;

    let mut text = String::new();
    let names = |parts: &[usize]| -> Vec<&str> {
        parts.iter().map(|&part| plan.parts[part].name.as_str()).collect()
    };
    if output == Output::Human {
        let end = plan
            .length
            .map_or("does not end by itself".into(), |length| format!("ends after {length:?}"));
        let targets = plural(plan.targets.len() as u64, "target");
        let changes = plural(plan.changes.len() as u64, "change");
        writeln!(text, "{targets}, {changes}, {end} (seed {seed})")?;
    }
    for change in
        plan.changes.iter().take(if output == Output::Human { LISTED } else { usize::MAX })
    {
        for (target, parts) in &change.sets {
            let name = plan.targets[*target].as_str();
            match output {
                Output::Json => {
                    let planned_ms = change.at.as_secs_f64() * 1e3;
                    let (active, amounts) = (names(parts), plan.amounts(parts));
                    let event = "planned";
                    let partitions = plan.partitions(parts);
                    let planned =
                        PlannedChange { event, planned_ms, name, active, amounts, partitions };
                    text += &report::line(&planned)?;
                }
                Output::Human => {
                    writeln!(
                        text,
                        "{:>10}  {name}: {}",
                        HumanDuration(change.at),
                        listed(&names(parts))
                    )?;
                }
            }
        }
    }
    if output == Output::Human && plan.changes.len() > LISTED {
        writeln!(text, "and {} more changes", plan.changes.len() - LISTED)?;
    }
    Ok(text)
}

fn listed<T: ToString>(names: &[T]) -> String {
    if names.is_empty() {
        return "nothing".into();
    }
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ")
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
        Event::Started { scenario, seed, for_ms, changes, targets, .. } => {
            let end = for_ms.map(|ms| format!(" for {:.3} s", ms as f64 / 1e3));
            let end = end.unwrap_or_default();
            let changes = plural(*changes as u64, "change");
            writeln!(text, "injector: {scenario}{end}: {changes} (seed {seed})")?;
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
                writeln!(text, "injector: {:9.3} s  {}: {active}", actual_ms / 1e3, change.name)?;
            }
        }
        Event::Attached { name, attached } => {
            writeln!(text, "injector: {name}: also on {}", listed(attached))?;
        }
        Event::Gone { name, title } => {
            writeln!(text, "injector: {name} ({title}) is gone")?;
        }
        Event::Followed { name, title, .. } => {
            writeln!(text, "injector: {name} ({title}) is there again: faulting it")?;
        }
        Event::Changed { name: target, resolved } => {
            for Resolved { name, addresses } in resolved {
                writeln!(text, "injector: {target}: {name} is {} now", peers::list(addresses))?;
            }
        }
        Event::Sample { .. } => {}
        Event::Warning { message } => writeln!(text, "injector: warning: {message}")?,
        Event::Failed { .. } => {
            writeln!(text, "injector: {elapsed:9.3} s  failed; everything is undone")?;
        }
        Event::Ended { changes, late, faults, clocks, .. } => {
            let late = match changes {
                0 => String::new(),
                1 => format!(", {:.3} ms late", late.max_ms),
                _ => format!(", of which 99 % were at most {:.3} ms late", late.p99_ms),
            };
            let changes = plural(*changes as u64, "change");
            writeln!(text, "injector: {elapsed:9.3} s  ended after {changes}{late}")?;
            for (target, faults) in faults {
                for (fault, counts) in faults {
                    let mut words: Vec<String> = counts.done_in_words().collect();
                    if counts.matched > 0 {
                        words.insert(0, format!("{} matched", plural(counts.matched, "packet")));
                    } else if words.is_empty() {
                        words.push("nothing matched".into());
                    }
                    writeln!(text, "injector:   {target}: {fault}: {}", words.join(", "))?;
                }
            }
            for (target, clocks) in clocks {
                for line in clocks.applied().into_iter().chain(clocks.calls_text()) {
                    writeln!(text, "injector:   {target}: {line}")?;
                }
            }
        }
    }
    Ok(())
}

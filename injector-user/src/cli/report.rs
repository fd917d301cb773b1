//! What a session says: events as JSON lines, or the same for people.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{self, IsTerminal as _, Write},
    time::Duration,
};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use injector_common::counter::{RuleCounters, SeenCounters};
use jiff::Timestamp;
use serde::Serialize;

use super::args::{Output, SessionArgs};
use crate::{
    fault::{
        clock,
        network::{
            Attached,
            hold::{self, Engine},
        },
    },
    target::host::Resolved,
};

/// Something that a session says.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// Faults are active.
    Started {
        /// What is faulted.
        target: &'a str,
        /// The process that faults it.
        pid: u32,
        /// What the decisions follow from.
        seed: u64,
        /// When the faults end, in milliseconds from now.
        #[serde(skip_serializing_if = "Option::is_none")]
        for_ms: Option<u64>,
        /// Where the programs are attached.
        attached: Vec<AttachedReport<'a>>,
        /// The rules' names.
        rules: Vec<&'a str>,
        /// What host names were resolved to.
        resolved: &'a [Resolved],
        /// How packets are held back, if any rule does.
        #[serde(skip_serializing_if = "Option::is_none")]
        engine: Option<Engine>,
        /// How clocks go wrong, if they do.
        #[serde(skip_serializing_if = "Option::is_none")]
        clock: Option<&'a str>,
        /// In how many processes they do so far.
        #[serde(skip_serializing_if = "Option::is_none")]
        clocks: Option<ClocksReport>,
        /// From the start of the process until the faults were active.
        startup_ms: f64,
    },
    /// Programs were attached to interfaces that have come since.
    Attached {
        /// Where.
        attached: Vec<AttachedReport<'a>>,
    },
    /// The rules were replaced.
    Changed {
        /// The new rules' names.
        rules: Vec<&'a str>,
        /// What the old rules did.
        replaced: Vec<RuleReport<'a>>,
        /// How clocks go wrong now, if they do.
        #[serde(skip_serializing_if = "Option::is_none")]
        clock: Option<&'a str>,
    },
    /// Once a second.
    Progress {
        /// Since the start.
        elapsed_ms: u64,
        /// All rules together.
        #[serde(flatten)]
        total: Totals,
        /// Processes with faulted clocks.
        #[serde(skip_serializing_if = "Option::is_none")]
        clocks: Option<ClocksReport>,
    },
    /// Something that is probably not as it was meant.
    Warning {
        /// What.
        message: &'a str,
    },
    /// The faults have ended.
    Summary {
        /// Since the start.
        elapsed_ms: u64,
        /// What the decisions followed from.
        seed: u64,
        /// All rules together.
        #[serde(flatten)]
        total: Totals,
        /// Each rule.
        rules: Vec<RuleReport<'a>>,
        /// What was seen on the interfaces.
        seen: SeenReport,
        /// What became of packets that were held back, if any rule does.
        #[serde(skip_serializing_if = "Option::is_none")]
        held: Option<HeldReport>,
        /// Processes with faulted clocks, if clocks were faulted.
        #[serde(skip_serializing_if = "Option::is_none")]
        clocks: Option<ClocksReport>,
    },
}

/// Where a program is attached.
#[derive(Debug, Serialize)]
pub struct AttachedReport<'a> {
    netns: &'a str,
    netns_inode: u64,
    interface: &'a str,
    hook: String,
}

impl<'a> From<&'a Attached> for AttachedReport<'a> {
    fn from(attached: &'a Attached) -> Self {
        Self {
            netns: attached.netns.label(),
            netns_inode: attached.netns.inode(),
            interface: &attached.interface,
            hook: attached.hook.to_string(),
        }
    }
}

/// Packets and bytes of one direction.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Traffic {
    packets: u64,
    bytes: u64,
}

/// Counters, of one rule or of all.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Totals {
    /// Packets that a rule matched.
    pub matched: u64,
    dropped: u64,
    corrupted: u64,
    duplicated: u64,
    reset: u64,
    delayed: u64,
    /// For how long on average, in milliseconds.
    mean_delay_ms: f64,
    reordered: u64,
    queued: u64,
    queue_dropped: u64,
    marked: u64,
    protected: u64,
    expired: u64,
    skipped: u64,
    egress: Traffic,
    ingress: Traffic,
}

impl From<RuleCounters> for Totals {
    fn from(counters: RuleCounters) -> Self {
        let traffic = |direction: usize| Traffic {
            packets: counters.packets[direction],
            bytes: counters.bytes[direction],
        };
        Self {
            matched: counters.matched(),
            dropped: counters.dropped,
            corrupted: counters.corrupted,
            duplicated: counters.duplicated,
            reset: counters.reset,
            delayed: counters.delayed,
            mean_delay_ms: counters.delay_ns as f64 / 1e6 / counters.delayed.max(1) as f64,
            reordered: counters.reordered,
            queued: counters.queued,
            queue_dropped: counters.queue_dropped,
            marked: counters.marked,
            protected: counters.protected,
            expired: counters.expired,
            skipped: counters.skipped,
            egress: traffic(0),
            ingress: traffic(1),
        }
    }
}

impl Totals {
    /// Whether no packet fell under a rule, not even one that was then left alone.
    #[must_use]
    pub const fn is_untouched(&self) -> bool {
        self.matched == 0 && self.protected == 0 && self.expired == 0
    }
}

/// The sum over all rules.
#[must_use]
pub fn total(counters: &[RuleCounters]) -> Totals {
    let mut sum = RuleCounters::default();
    for &rule in counters {
        sum += rule;
    }
    sum.into()
}

/// One rule's counters.
#[derive(Debug, Serialize)]
pub struct RuleReport<'a> {
    rule: usize,
    name: &'a str,
    #[serde(flatten)]
    totals: Totals,
}

/// Each rule's counters.
#[must_use]
pub fn each<'a>(names: &[&'a str], counters: &[RuleCounters]) -> Vec<RuleReport<'a>> {
    let report =
        |(rule, (&name, &counters))| RuleReport { rule, name, totals: Totals::from(counters) };
    names.iter().zip(counters).enumerate().map(report).collect()
}

/// What was seen on the attached interfaces, matched or not.
#[derive(Debug, Serialize)]
pub struct SeenReport {
    egress: u64,
    ingress: u64,
    not_ip: u64,
    unparsed: u64,
}

impl From<SeenCounters> for SeenReport {
    fn from(seen: SeenCounters) -> Self {
        Self {
            egress: seen.packets[0],
            ingress: seen.packets[1],
            not_ip: seen.not_ip,
            unparsed: seen.unparsed,
        }
    }
}

/// What became of packets that were held back.
#[derive(Debug, Serialize)]
pub struct HeldReport {
    /// How they were held.
    engine: Engine,
    /// Dropped because more waited than fit.
    dropped: u64,
    /// Still waiting when the faults ended, and lost with them.
    lost: u64,
}

impl From<(Engine, hold::Statistics)> for HeldReport {
    fn from((engine, statistics): (Engine, hold::Statistics)) -> Self {
        Self { engine, dropped: statistics.dropped, lost: statistics.held }
    }
}

/// Processes whose clocks were faulted.
#[derive(Debug, Serialize)]
pub struct ClocksReport {
    /// Programs: those that ran, and those executed since.
    patched: u64,
    /// Processes made by faulted ones.
    inherited: u64,
    /// Processes that are there now.
    present: u64,
    /// Processes that could not be faulted, by the reason.
    refused: BTreeMap<&'static str, u64>,
}

impl From<clock::Statistics> for ClocksReport {
    fn from(statistics: clock::Statistics) -> Self {
        let clock::Statistics { patched, inherited, present, refused } = statistics;
        Self { patched, inherited, present, refused }
    }
}

impl ClocksReport {
    /// Whether no process was faulted.
    #[must_use]
    pub const fn is_untouched(&self) -> bool {
        self.patched == 0 && self.inherited == 0
    }
}

#[derive(Serialize)]
struct Line<'a> {
    /// RFC 3339.
    time: String,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

/// Prints events.
pub struct Reporter {
    output: Output,
    sink: Box<dyn Write>,
    /// The live line, on a terminal.
    live: Option<ProgressBar>,
}

impl Reporter {
    /// To the file that was asked for, else to `default`: standard output, or standard error where that
    /// is the command's.
    pub fn new(args: &SessionArgs, default: Stream) -> Result<Self> {
        let sink: Box<dyn Write> = match (&args.output_file, default) {
            (Some(path), _) => Box::new(
                File::create(path)
                    .with_context(|| format!("cannot write to {}", path.display()))?,
            ),
            (None, Stream::Stdout) => Box::new(io::stdout()),
            (None, Stream::Stderr) => Box::new(io::stderr()),
        };
        // The command of `run` has the terminal for itself.
        let live = args.output == Output::Human
            && args.output_file.is_none()
            && default == Stream::Stdout
            && io::stdout().is_terminal()
            && io::stderr().is_terminal();
        let live = live.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(
                ProgressStyle::with_template("{elapsed} {msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar
        });
        Ok(Self { output: args.output, sink, live })
    }

    /// Whether somebody wants to hear of progress.
    #[must_use]
    pub fn wants_progress(&self) -> bool {
        self.output == Output::Json || self.live.is_some()
    }

    /// Prints an event.
    pub fn say(&mut self, event: &Event) -> Result<()> {
        let text = match self.output {
            Output::Json => {
                serde_json::to_string(&Line { time: Timestamp::now().to_string(), event })? + "\n"
            }
            Output::Human => human(event),
        };
        if let Some(live) = &self.live {
            match event {
                Event::Progress { .. } => live.set_message(text.trim_end().to_owned()),
                Event::Summary { .. } => {
                    live.finish_and_clear();
                    write(&mut self.sink, &text)?;
                }
                _ => live.suspend(|| write(&mut self.sink, &text))?,
            }
            return Ok(());
        }
        if self.output == Output::Human && matches!(event, Event::Progress { .. }) {
            return Ok(());
        }
        Ok(write(&mut self.sink, &text)?)
    }
}

/// Where events go by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

fn write(sink: &mut dyn Write, text: &str) -> io::Result<()> {
    sink.write_all(text.as_bytes())?;
    sink.flush()
}

fn human(event: &Event) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = match event {
        Event::Started {
            target,
            seed,
            for_ms,
            attached,
            rules,
            resolved,
            engine,
            clock,
            clocks,
            ..
        } => started(&mut text, target, *seed, *for_ms, attached, rules, resolved)
            .and_then(|()| {
                let Some(engine) = engine else { return Ok(()) };
                writeln!(text, "injector:   packets are held by the {engine} engine")
            })
            .and_then(|()| {
                let (Some(clock), Some(clocks)) = (clock, clocks) else { return Ok(()) };
                writeln!(text, "injector:   {clock}")?;
                clocks_line(&mut text, clocks)
            }),
        Event::Attached { attached } => writeln!(text, "injector: also on {}", places(attached)),
        Event::Changed { rules, replaced, clock } => {
            writeln!(text, "injector: {} rules replaced the rules before, which did:", rules.len())
                .and_then(|()| replaced.iter().try_for_each(|rule| rule_line(&mut text, rule)))
                .and_then(|()| clock.map_or(Ok(()), |clock| writeln!(text, "injector:   {clock}")))
        }
        Event::Progress { total, clocks, .. } => match clocks {
            Some(clocks) => {
                writeln!(text, "{}, {} processes with wrong clocks", counts(total), clocks.present)
            }
            None => writeln!(text, "{}", counts(total)),
        },
        Event::Warning { message } => writeln!(text, "injector: warning: {message}"),
        Event::Summary { elapsed_ms, total, rules, seen, held, clocks, .. } => {
            summary(&mut text, *elapsed_ms, total, rules, seen)
                .and_then(|()| held.as_ref().map_or(Ok(()), |held| held_line(&mut text, held)))
                .and_then(|()| {
                    clocks.as_ref().map_or(Ok(()), |clocks| clocks_line(&mut text, clocks))
                })
        }
    };
    text
}

fn started(
    text: &mut String,
    target: &str,
    seed: u64,
    for_ms: Option<u64>,
    attached: &[AttachedReport],
    rules: &[&str],
    resolved: &[Resolved],
) -> std::fmt::Result {
    /// More rules than that are not listed.
    const LISTED: usize = 10;

    for Resolved { name, addresses } in resolved {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        writeln!(text, "injector: {name} is {}", addresses.join(", "))?;
    }
    let end = for_ms.map(|ms| format!(" for {:?}", Duration::from_millis(ms))).unwrap_or_default();
    let places = match attached {
        [] => String::new(),
        attached => format!(" on {}", places(attached)),
    };
    writeln!(text, "injector: faulting {target}{end}{places} (seed {seed})")?;
    for (number, name) in rules.iter().enumerate().take(LISTED) {
        writeln!(text, "injector:   rule {number}: {name}")?;
    }
    if rules.len() > LISTED {
        writeln!(text, "injector:   and {} more rules", rules.len() - LISTED)?;
    }
    Ok(())
}

fn places(attached: &[AttachedReport]) -> String {
    let mut places: Vec<String> = Vec::new();
    for AttachedReport { netns, interface, hook, .. } in attached {
        let place = if *netns == "current" {
            format!("{interface} ({hook})")
        } else {
            format!("{interface} in {netns} ({hook})")
        };
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places.join(", ")
}

fn summary(
    text: &mut String,
    elapsed_ms: u64,
    total: &Totals,
    rules: &[RuleReport],
    seen: &SeenReport,
) -> std::fmt::Result {
    /// More rules than that are shown only if they matched.
    const SHOWN: usize = 20;

    let elapsed = Duration::from_millis(elapsed_ms);
    writeln!(text, "injector: {elapsed:?}: {}", counts(total))?;
    let many = rules.len() > SHOWN;
    let quiet = rules.iter().filter(|rule| rule.totals.matched == 0).count();
    for rule in rules.iter().filter(|rule| !many || rule.totals.matched > 0) {
        rule_line(text, rule)?;
    }
    if many && quiet > 0 {
        writeln!(text, "injector:   {quiet} rules matched nothing")?;
    }
    if seen.unparsed > 0 {
        let unparsed = seen.unparsed;
        writeln!(
            text,
            "injector: {unparsed} packets had broken or too many headers and passed unchanged"
        )?;
    }
    Ok(())
}

fn clocks_line(text: &mut String, clocks: &ClocksReport) -> std::fmt::Result {
    let ClocksReport { patched, inherited, refused, .. } = clocks;
    writeln!(
        text,
        "injector: the clocks of {patched} programs went wrong, and of {inherited} processes that they made"
    )?;
    for (reason, count) in refused {
        writeln!(text, "injector: {count} processes kept the true time: {reason}")?;
    }
    Ok(())
}

fn held_line(text: &mut String, held: &HeldReport) -> std::fmt::Result {
    for (count, what) in [
        (held.dropped, "were dropped as more packets waited than fit"),
        (held.lost, "still waited at the end and were lost"),
    ] {
        if count > 0 {
            writeln!(text, "injector: {count} packets {what}")?;
        }
    }
    Ok(())
}

fn rule_line(text: &mut String, rule: &RuleReport) -> std::fmt::Result {
    let RuleReport { rule, name, totals } = rule;
    writeln!(text, "injector:   rule {rule} ({name}): {}", counts(totals))?;
    for (way, traffic) in [("egress", totals.egress), ("ingress", totals.ingress)] {
        if traffic.packets > 0 {
            writeln!(
                text,
                "injector:     {way} {} packets, {} bytes",
                traffic.packets, traffic.bytes
            )?;
        }
    }
    Ok(())
}

fn counts(totals: &Totals) -> String {
    let mut text = format!("{} packets matched", totals.matched);
    for (count, what) in [
        (totals.dropped, "dropped"),
        (totals.corrupted, "corrupted"),
        (totals.duplicated, "duplicated"),
        (totals.reset, "connections reset"),
        (totals.delayed, "delayed"),
        (totals.reordered, "reordered"),
        (totals.queued, "queued"),
        (totals.queue_dropped, "dropped by the full queue"),
        (totals.marked, "marked (ECN)"),
        (totals.protected, "protected"),
        (totals.expired, "passed after the end"),
        (totals.skipped, "could not be impaired"),
    ] {
        if count > 0 {
            // Writing to a string cannot fail.
            let _ = write!(text, ", {count} {what}");
        }
    }
    text
}

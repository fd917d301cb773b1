//! The output of a session: events as JSON lines, or as text.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs::File,
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;

use super::{
    args::{Output, SessionArgs},
    event::{Event, EventLine, HeldReport, Lasts, SeenReport},
};
use crate::{
    fault::{
        clock::report::ClocksReport,
        network::{
            delays::DelayReport,
            report::{AttachedReport, RuleReport, Totals},
            unmatched::{self, Explanation},
        },
        process,
    },
    output::{self, Importance, Writer},
    report::SCHEMA_VERSION,
    spec::packet::profile::Expansion,
    target::{
        peers::{self, Resolved},
        pods::{PodState, PodStatus},
    },
    words::plural,
};

/// Prints events without ever blocking on the reader.
pub struct Reporter {
    output: Output,
    writer: Writer,
    /// Whether progress is shown in a live line on a terminal.
    is_live: bool,
}

impl Reporter {
    /// Writes to the file given by the options, or else to `default`.
    ///
    /// `default` is standard output, or standard error if standard output belongs to the command.
    pub fn new(args: &SessionArgs, default: Stream) -> Result<Self> {
        // `run` gets no live line, because its command owns the terminal.
        let is_live = args.output == Output::Human
            && args.output_file.is_none()
            && default == Stream::Stdout
            && io::stdout().is_terminal()
            && io::stderr().is_terminal();
        let writer = match (&args.output_file, default) {
            (Some(path), _) => {
                let name = path.display().to_string();
                let file = File::create(path).with_context(|| format!("cannot write to {name}"))?;
                Writer::file(file, name)
            }
            (None, Stream::Stdout) if is_live => live(),
            (None, Stream::Stdout) => Writer::stdout(),
            (None, Stream::Stderr) => output::stderr().cloned().ok_or_else(|| {
                io::Error::other("standard error needs a thread, and none can be started")
            }),
        };
        let writer = writer.context("cannot report")?;
        Ok(Self { output: args.output, writer, is_live })
    }

    /// The writer of the reports, to wait for at the end.
    #[must_use]
    pub fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// Whether progress events are used.
    #[must_use]
    pub fn wants_progress(&self) -> bool {
        self.output == Output::Json || self.is_live
    }

    /// Warns about each kind of fault that had no effect. Returns whether there is one.
    ///
    /// Kinds that were not requested are `None`. `explanation` says why no packet matched, if that is
    /// known.
    pub fn warn_of_idle(
        &mut self,
        packets: Option<&Totals>,
        explanation: Option<&Explanation>,
        clocks: Option<&ClocksReport>,
        processes: Option<&process::Statistics>,
    ) -> Result<bool> {
        let mut untouched = Vec::new();
        if let Some(total) = packets.filter(|total| total.matched == 0) {
            if total.is_untouched() {
                let event = "no packet matched: nothing was faulted";
                untouched = unmatched::messages(event, explanation);
            } else {
                let message =
                    "no packet was faulted: all that matched were protected, or came after the end";
                untouched.push(message.into());
            }
        }
        let clocks = clocks
            .is_some_and(ClocksReport::is_untouched)
            .then_some("no process had its clocks faulted");
        let processes: Vec<String> =
            processes.into_iter().flat_map(process::Statistics::idle).collect();
        let mut is_idle = false;
        let packets = untouched.iter().map(String::as_str);
        for message in packets.chain(clocks).chain(processes.iter().map(String::as_str)) {
            is_idle = true;
            self.say(&Event::Warning { message })?;
        }
        Ok(is_idle)
    }

    /// Warns during the run that no packet has matched.
    pub fn warn_of_unmatched(&mut self, explanation: &Explanation) -> Result<()> {
        for message in unmatched::messages("no packet has matched yet", Some(explanation)) {
            self.say(&Event::Warning { message: &message })?;
        }
        Ok(())
    }

    /// Prints an event.
    pub fn say(&mut self, event: &Event) -> Result<()> {
        let importance = match event {
            Event::Progress { .. } => Importance::Progress,
            Event::Summary { .. } => Importance::Last,
            _ => Importance::Event,
        };
        if self.output == Output::Human && importance == Importance::Progress && !self.is_live {
            return Ok(());
        }
        let reports_dropped = self.writer.dropped();
        let mut text = match self.output {
            Output::Json => {
                let time = Timestamp::now().to_string();
                let line =
                    EventLine { time, event, reports_dropped, schema_version: SCHEMA_VERSION };
                serde_json::to_string(&line)? + "\n"
            }
            Output::Human => human(event),
        };
        if self.output == Output::Human && importance == Importance::Last && reports_dropped > 0 {
            // Writing to a string cannot fail.
            let dropped = plural(reports_dropped, "report");
            let _ = writeln!(text, "injector: {dropped} dropped or not read");
        }
        self.writer.push(text, importance);
        Ok(())
    }
}

/// A live line on standard error for progress, and standard output for everything else.
fn live() -> io::Result<Writer> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(
        ProgressStyle::with_template("{elapsed} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    let mut stdout = output::Stream::new(io::stdout());
    let sink = move |text: &str, importance| match importance {
        Importance::Progress => {
            bar.set_message(text.trim_end().to_owned());
            Ok(())
        }
        Importance::Event => bar.suspend(|| stdout.write(text)),
        Importance::Last => {
            bar.finish_and_clear();
            stdout.write(text)
        }
    };
    Writer::start(output::STDOUT.into(), Box::new(sink))
}

/// The default destination of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

fn human(event: &Event) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = match event {
        Event::Started {
            title,
            pid,
            seed,
            for_ms,
            is_endless,
            attached,
            rules,
            user,
            sudo_user,
            loopback_mtu,
            resolved,
            engine,
            clock,
            clock_engines,
            clocks,
            process,
            ..
        } => started(&mut text, title, *seed, *for_ms, attached, resolved)
            .and_then(|()| {
                if !is_endless {
                    return Ok(());
                }
                writeln!(text, "injector:   until Ctrl-C or `kill {pid}` (--for 30s sets an end)")
            })
            .and_then(|()| user_line(&mut text, *user, *sudo_user))
            .and_then(|()| rule_lines(&mut text, rules))
            .and_then(|()| {
                let Some(mtu) = loopback_mtu else { return Ok(()) };
                writeln!(text, "injector:   new TCP connections over loopback: mtu {mtu} (default)")
            })
            .and_then(|()| {
                let Some(engine) = engine else { return Ok(()) };
                writeln!(text, "injector:   packets are held by the {engine} engine")
            })
            .and_then(|()| {
                let (Some(clock), Some(clocks)) = (clock, clocks) else { return Ok(()) };
                let engines: Vec<String> = clock_engines.iter().map(ToString::to_string).collect();
                writeln!(text, "injector:   {clock} (engine {})", engines.join(", "))?;
                clocks_line(&mut text, clocks)
            })
            .and_then(|()| {
                process.map_or(Ok(()), |process| writeln!(text, "injector:   {process}"))
            }),
        Event::Attached { attached } => writeln!(text, "injector: also on {}", places(attached)),
        Event::Gone { title, is_final: true } => {
            writeln!(text, "injector: {title} is gone")
        }
        Event::Gone { title, .. } => {
            writeln!(text, "injector: {title} is gone: waiting for it to return")
        }
        Event::Followed { title, attached } => {
            let places = places(attached);
            let on = if places.is_empty() { "" } else { " on " };
            writeln!(text, "injector: {title} is there again: faulting it{on}{places}")
        }
        Event::Pods { pods: [] } => writeln!(text, "injector: no pod is selected now"),
        Event::Pods { pods } => pods.iter().try_for_each(|pod| pod_line(&mut text, pod)),
        Event::Changed { resolved, .. } if !resolved.is_empty() => {
            peers_changed(&mut text, resolved)
        }
        Event::Changed { rules, replaced, clock, .. } => {
            let (rules_are, before) =
                (plural(rules.len() as u64, "rule"), "replaced the rules before");
            writeln!(text, "injector: {rules_are} {before}, which did:")
                .and_then(|()| replaced.iter().try_for_each(|rule| rule_line(&mut text, rule)))
                .and_then(|()| writeln!(text, "injector: the rules are now:"))
                .and_then(|()| rule_lines(&mut text, rules))
                .and_then(|()| clock.map_or(Ok(()), |clock| writeln!(text, "injector:   {clock}")))
        }
        Event::Progress { has_rules, total, clocks, processes, .. } => {
            progress(&mut text, total, *has_rules, clocks.as_ref(), processes.as_ref())
        }
        Event::Unmatched { sent, received, packets } => {
            unmatched_lines(&mut text, *sent, *received, packets)
        }
        Event::Warning { message } => writeln!(text, "injector: warning: {message}"),
        Event::Summary { elapsed_ms, total, rules, seen, held, clocks, processes, .. } => {
            summary(&mut text, *elapsed_ms, total, rules, seen.as_ref())
                .and_then(|()| held.as_ref().map_or(Ok(()), |held| held_line(&mut text, held)))
                .and_then(|()| {
                    clocks.as_ref().map_or(Ok(()), |clocks| clocks_line(&mut text, clocks))
                })
                .and_then(|()| {
                    processes
                        .as_ref()
                        .map_or(Ok(()), |processes| process_lines(&mut text, processes))
                })
        }
    };
    text
}

fn started(
    text: &mut String,
    title: &str,
    seed: u64,
    for_ms: Option<Lasts>,
    attached: &[AttachedReport],
    resolved: &[Resolved],
) -> std::fmt::Result {
    for Resolved { name, addresses } in resolved {
        writeln!(text, "injector: {name} is {}", peers::list(addresses))?;
    }
    let end = for_ms.map(|Lasts(span)| format!(" for {span}")).unwrap_or_default();
    let places = match attached {
        [] => String::new(),
        attached => format!(" on {}", places(attached)),
    };
    writeln!(text, "injector: faulting {title}{end}{places} (seed {seed})")
}

/// Writes as whom the command runs, if that was given or may surprise.
fn user_line(text: &mut String, user: Option<&str>, sudo_user: Option<&OsStr>) -> std::fmt::Result {
    match (user, sudo_user.map(OsStr::to_string_lossy)) {
        (Some(user), _) => writeln!(text, "injector:   the command runs as {user}"),
        (None, Some(user)) => {
            writeln!(text, "injector:   the command runs as root (--user {user} runs it as {user})")
        }
        (None, None) => Ok(()),
    }
}

/// Writes a line for each rule, with the packets that it matches.
fn rule_lines(text: &mut String, rules: &[RuleReport]) -> std::fmt::Result {
    /// Maximum number of rules listed.
    const LISTED: usize = 10;

    for RuleReport { rule, name, packets, profile, is_named, .. } in rules.iter().take(LISTED) {
        // A rule without a name has the name of its faults.
        let hidden = profile.as_ref().filter(|expansion| !name.ends_with(&expansion.faults));
        let hidden = hidden
            .map(|Expansion { profile, faults }| format!(" (profile {profile}: {faults})"))
            .unwrap_or_default();
        let of = if *is_named { ":" } else { " of" };
        writeln!(text, "injector:   rule {rule}: {name}{hidden}{of} {packets}")?;
    }
    if rules.len() > LISTED {
        writeln!(text, "injector:   and {} more rules", rules.len() - LISTED)?;
    }
    Ok(())
}

/// Writes what no rule matched.
fn unmatched_lines(
    text: &mut String,
    sent: u64,
    received: u64,
    packets: &[unmatched::PeerTraffic],
) -> std::fmt::Result {
    /// Maximum number of peers listed.
    const LISTED: usize = 20;

    writeln!(text, "injector: saw {sent} sent, {received} received packets, matched or not")?;
    for peer in packets.iter().take(LISTED) {
        writeln!(text, "injector:   not matched: {}", peer.line())?;
    }
    if packets.len() > LISTED {
        writeln!(text, "injector:   and those of {} more peers", packets.len() - LISTED)?;
    }
    Ok(())
}

/// Writes a line for each peer whose addresses changed.
fn peers_changed(text: &mut String, resolved: &[Resolved]) -> std::fmt::Result {
    resolved.iter().try_for_each(|Resolved { name, addresses }| {
        writeln!(text, "injector: {name} is {} now", peers::list(addresses))
    })
}

fn pod_line(text: &mut String, pod: &PodStatus) -> std::fmt::Result {
    let PodStatus { name, state, message, .. } = pod;
    let state = match state {
        PodState::Injecting => "is faulted",
        PodState::Waiting => "waits to be faulted",
        PodState::Failed => "cannot be faulted",
        PodState::Stopped => "is faulted no more",
        PodState::Done => "was faulted",
    };
    let why = message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    writeln!(text, "injector: pod {name} {state}{why}")
}

fn places(attached: &[AttachedReport]) -> String {
    let places: Vec<String> = attached.iter().map(ToString::to_string).collect();
    places.join(", ")
}

fn summary(
    text: &mut String,
    elapsed_ms: u64,
    total: &Totals,
    rules: &[RuleReport],
    seen: Option<&SeenReport>,
) -> std::fmt::Result {
    /// Above this number of rules, only those that matched are shown.
    const SHOWN: usize = 20;

    let elapsed = Duration::from_millis(elapsed_ms);
    if rules.is_empty() {
        writeln!(text, "injector: the faults have ended after {elapsed:?}")?;
    } else {
        writeln!(text, "injector: {elapsed:?}: {}", counts(total))?;
    }
    let many = rules.len() > SHOWN;
    let has_matched = |rule: &&RuleReport| rule.counts.as_ref().is_some_and(|it| it.matched > 0);
    let quiet = rules.len() - rules.iter().filter(has_matched).count();
    for rule in rules.iter().filter(|rule| !many || has_matched(rule)) {
        rule_line(text, rule)?;
    }
    if many && quiet > 0 {
        writeln!(text, "injector:   {} matched nothing", plural(quiet as u64, "rule"))?;
    }
    let Some(seen) = seen else { return Ok(()) };
    if seen.unparsed > 0 {
        let unparsed = plural(seen.unparsed, "packet");
        writeln!(text, "injector: {unparsed} had broken or too many headers and passed unchanged")?;
    }
    if seen.shared > 0 {
        let shared = plural(seen.shared, "packet");
        writeln!(
            text,
            "injector: {shared} skipped: multicast and broadcast have several receivers, so they belong \
             to no cgroup"
        )?;
    }
    if seen.translated > 0 {
        let translated = plural(seen.translated, "packet");
        writeln!(
            text,
            "injector: {translated} skipped on the loopback: their addresses are translated (NAT), so \
             sent packets cannot be answered by a reset; --direction ingress resets such connections"
        )?;
    }
    Ok(())
}

fn clocks_line(text: &mut String, clocks: &ClocksReport) -> std::fmt::Result {
    let ClocksReport { refused, calls, .. } = clocks;
    if let Some(applied) = clocks.applied() {
        writeln!(text, "injector: {applied}")?;
    }
    for (reason, count) in refused {
        let processes = plural(*count, "process");
        writeln!(text, "injector: {processes} kept the true time: {reason}")?;
    }
    let Some(calls) = calls else { return Ok(()) };
    if let Some(calls) = clocks.calls_text() {
        writeln!(text, "injector: {calls}")?;
    }
    for (count, thing, what) in [
        (calls.vdso_hidden, "new program", "had no vDSO"),
        (calls.vdso_not_hidden, "new program", "kept the true time: the vDSO was not found"),
        (calls.deadlines_left, "deadline", "left unchanged"),
        (calls.failed, "result", "or deadlines could not be written"),
    ] {
        if count > 0 {
            writeln!(text, "injector: {} {what}", plural(count, thing))?;
        }
    }
    Ok(())
}

fn process_lines(text: &mut String, statistics: &process::Statistics) -> std::fmt::Result {
    if let Some(pauses) =
        statistics.pauses.as_ref().filter(|pauses| pauses.done + pauses.skipped > 0)
    {
        let process::PauseStatistics { by, done, planned_ms, stopped_ms, latest_ms, .. } = pauses;
        writeln!(
            text,
            "injector: {} by {by}: {stopped_ms:.1} ms stopped, {planned_ms:.1} ms planned; the latest began \
             {latest_ms:.1} ms late",
            plural(*done, "pause")
        )?;
        for (count, what) in [
            (pauses.skipped, "skipped, as nothing ran that could be stopped"),
            (pauses.unsettled, "began before all processes had stopped"),
        ] {
            if count > 0 {
                writeln!(text, "injector: {} {what}", plural(count, "pause"))?;
            }
        }
        starting_line(text, pauses.starting, "paused")?;
    }
    for process::LimitStatistics { limit, throttled_ms } in &statistics.limits {
        write!(text, "injector: limited by {limit}")?;
        if let Some(throttled_ms) = throttled_ms {
            write!(text, ": {throttled_ms:.1} ms of waiting")?;
        }
        writeln!(text)?;
    }
    for kill in &statistics.kills {
        let process::KillStatistics { name, sent, failed, starting, calls } = kill;
        write!(text, "injector: kill {name}: {} sent", plural(*sent, "signal"))?;
        if let Some(calls) = calls {
            write!(text, ", {} seen", plural(*calls, "call"))?;
        }
        if *failed > 0 {
            write!(text, ", {failed} could not be sent")?;
        }
        writeln!(text)?;
        starting_line(text, *starting, "killed")?;
    }
    statistics.errnos.iter().try_for_each(|errno| errno_line(text, errno))
}

/// Containers that are never `done` while their runtime starts them.
fn starting_line(text: &mut String, starting: u64, done: &str) -> std::fmt::Result {
    if starting == 0 {
        return Ok(());
    }
    writeln!(
        text,
        "injector: {} not {done}, as the runtime was starting {}",
        plural(starting, "container"),
        if starting == 1 { "it" } else { "them" }
    )
}

fn errno_line(text: &mut String, errno: &process::ErrnoStatistics) -> std::fmt::Result {
    let process::ErrnoStatistics { name, engine, hook, matched, failed, unknown, missed } = errno;
    writeln!(
        text,
        "injector: errno {name}: {failed} of {} failed, by {engine} at {hook}",
        plural(*matched, "call")
    )?;
    for (count, what) in [
        (*unknown, "did not fail, as the path is not known"),
        (*missed, "of any process not shown to injector by the kernel"),
    ] {
        if count > 0 {
            writeln!(text, "injector: {} {what}", plural(count, "call"))?;
        }
    }
    Ok(())
}

/// Writes the live line.
fn progress(
    text: &mut String,
    total: &Totals,
    has_rules: bool,
    clocks: Option<&ClocksReport>,
    processes: Option<&process::Statistics>,
) -> std::fmt::Result {
    let mut counters = Vec::new();
    if let Some(process::Statistics { pauses, kills, errnos, .. }) = processes {
        if let Some(pauses) = pauses {
            counters.push(plural(pauses.done, "pause"));
        }
        if !kills.is_empty() {
            counters.push(plural(kills.iter().map(|kill| kill.sent).sum(), "signal"));
        }
        if !errnos.is_empty() {
            let failed = errnos.iter().map(|errno| errno.failed).sum();
            counters.push(format!("{} failed", plural(failed, "call")));
        }
    }
    if has_rules {
        counters.push(counts(total));
    }
    if let Some(clocks) = clocks {
        counters.push(format!("{} with the clock offset", plural(clocks.present, "process")));
    }
    writeln!(text, "{}", counters.join(", "))
}

fn held_line(text: &mut String, held: &HeldReport) -> std::fmt::Result {
    for (count, what) in [
        (held.dropped, "dropped because the queue was full"),
        (held.lost, "dropped: still delayed when the faults ended (TCP sends them again)"),
    ] {
        if count > 0 {
            writeln!(text, "injector: {} {what}", plural(count, "packet"))?;
        }
    }
    Ok(())
}

fn rule_line(text: &mut String, rule: &RuleReport) -> std::fmt::Result {
    let RuleReport { rule, name, counts: totals, .. } = rule;
    let Some(totals) = totals else { return Ok(()) };
    writeln!(text, "injector:   rule {rule} ({name}): {}", counts(totals))?;
    let delays = totals.delay.as_deref();
    let directions = [
        ("egress", totals.egress, delays.and_then(|delays| delays.egress.as_ref())),
        ("ingress", totals.ingress, delays.and_then(|delays| delays.ingress.as_ref())),
    ];
    for (way, traffic, delay) in directions {
        if traffic.packets > 0 {
            writeln!(
                text,
                "injector:     {way} {}, {}",
                plural(traffic.packets, "packet"),
                plural(traffic.bytes, "byte")
            )?;
        }
        if let Some(DelayReport { min_ms, p50_ms, p99_ms, max_ms, .. }) = delay {
            writeln!(
                text,
                "injector:     {way} delays: min {min_ms:.3} ms, median {p50_ms:.3} ms, p99 {p99_ms:.3} ms, \
                 max {max_ms:.3} ms"
            )?;
        }
    }
    Ok(())
}

/// The packets that matched and what was done to them, without zeros.
pub fn counts(totals: &Totals) -> String {
    let mut text = format!("{} matched", plural(totals.matched, "packet"));
    for (counter, count) in totals.done.each() {
        if count > 0 {
            // Writing to a string cannot fail.
            let _ = write!(text, ", {}", counter.text(count));
        }
    }
    text
}

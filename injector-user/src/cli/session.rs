//! What `run` and `inject` have in common: from the options to active faults, and to their end.

use std::{
    ffi::OsString,
    process::{ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{io::unix::AsyncFd, process::Child, time::MissedTickBehavior};

use super::{
    NOTHING_MATCHED,
    args::{RulesArgs, SessionArgs},
    cleanup, privileges,
    report::{self, Event, Reporter},
    signals::Signals,
};
use crate::{
    fault::network::{Network, Options, RENEWAL},
    kernel::clock,
    lifetime::{instance::Instance, journal::Owner},
    spec::{SpecError, rule::Rule},
    target::{Target, host},
};

/// The kernel side's log level for `--verbose`.
const VERBOSE_LOG: u8 = aya_log::Level::Debug as u8;

/// More rules than that are not read every second.
const COUNTED_RULES: usize = 4096;

/// How a session ended.
pub enum End {
    /// The command ended.
    Command(ExitStatus),
    /// Its time was over, or a signal asked for the end.
    Asked,
}

/// Active faults.
pub struct Session<'a> {
    instance: &'a mut Instance,
    args: &'a SessionArgs,
    rules_args: &'a RulesArgs,
    rules: Vec<Rule>,
    seed: u64,
    network: Network,
    reporter: Reporter,
    started: Instant,
}

/// The rules as they were asked for, checked and resolved.
pub struct Asked {
    pub rules: Vec<Rule>,
    pub seed: u64,
    pub resolved: Vec<host::Resolved>,
}

impl Asked {
    /// Reads and checks the rules; nothing is touched.
    pub fn read(rules: &RulesArgs, session: &SessionArgs) -> Result<Self, SpecError> {
        let (file_seed, rules) = rules.read()?;
        let seed = session.seed.or(file_seed).unwrap_or_else(rand::random);
        Ok(Self { rules, seed, resolved: Vec::new() })
    }

    /// Resolves the host names.
    pub fn resolve(mut self) -> Result<Self> {
        self.resolved = host::resolve(&mut self.rules)?;
        Ok(self)
    }
}

/// What is to be done, all of it checked.
pub struct Plan {
    pub asked: Asked,
    pub target: Target,
    /// The target, for people.
    pub title: String,
    pub options: Options,
}

/// Undoes what dead injectors left, and registers this one.
pub fn start_instance() -> Result<Instance> {
    privileges::check()?;
    cleanup::undo_first();
    let owner = Owner {
        pid: std::process::id(),
        started: jiff::Timestamp::now().to_string(),
        command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
    };
    Ok(Instance::start(owner)?)
}

/// How to install, from the options.
pub fn options(args: &SessionArgs, instance: &Instance, seed: u64, verbose: bool) -> Options {
    Options {
        judged_bit: 1 << instance.slot(),
        seed,
        lasts: args.duration.map(|span| span.0),
        engine: args.engine,
        log_level: if verbose { VERBOSE_LOG } else { 0 },
        ..Options::default()
    }
}

impl<'a> Session<'a> {
    /// Installs the faults and says so.
    pub fn start(
        instance: &'a mut Instance,
        args: &'a SessionArgs,
        rules_args: &'a RulesArgs,
        plan: Plan,
        mut reporter: Reporter,
    ) -> Result<Self> {
        let Plan { asked: Asked { rules, seed, resolved }, target, title, options } = plan;
        let network = Network::install(instance, target, &rules, options)?;
        let started = Instant::now();
        let attached = network.attached();
        reporter.say(&Event::Started {
            target: &title,
            pid: std::process::id(),
            seed,
            for_ms: args.duration.map(|span| span.0.as_millis() as u64),
            attached: attached.iter().map(Into::into).collect(),
            rules: names(&rules),
            resolved: &resolved,
            engine: network.engine(),
            startup_ms: since_exec().unwrap_or_default().as_secs_f64() * 1e3,
        })?;
        Ok(Self { instance, args, rules_args, rules, seed, network, reporter, started })
    }

    /// Keeps the faults up until the end; hands signals on to `command` if there is one.
    pub async fn watch(
        &mut self,
        signals: &mut Signals,
        mut command: Option<&mut Child>,
    ) -> Result<End> {
        let mut renewal = tokio::time::interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut progress = tokio::time::interval(Duration::from_secs(1));
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        progress.tick().await;
        let end = self.args.duration.map(|span| self.started + span.0);
        let logger = self.network.object().logger()?;
        // SAFETY: the logger owns its ring buffer's descriptor, which it neither closes nor replaces.
        let mut logger = unsafe { AsyncFd::register(logger) }.context("cannot watch the log")?;
        loop {
            tokio::select! {
                biased;
                status = wait(&mut command) => return Ok(End::Command(status.context("cannot wait for the command")?)),
                arrived = signals.next() => {
                    let arrived = arrived.context("cannot read signals")?;
                    match &command {
                        Some(child) => if !arrived.from_terminal && let Some(pid) = child.id() {
                            // It may have ended meanwhile.
                            let _ = kill(Pid::from_raw(pid.cast_signed()), arrived.signal);
                        },
                        None if arrived.signal == Signal::SIGHUP && self.rules_args.rules.is_some() => self.change()?,
                        None if matches!(arrived.signal, Signal::SIGUSR1 | Signal::SIGUSR2) => {}
                        None => return Ok(End::Asked),
                    }
                }
                () = until(end) => {
                    if command.is_none() {
                        return Ok(End::Asked);
                    }
                    // The command goes on without faults.
                    self.network.detach(self.instance)?;
                    let Some(child) = &mut command else { return Ok(End::Asked) };
                    return Ok(End::Command(outlast(signals, child).await?));
                }
                _ = renewal.tick() => {
                    self.network.renew()?;
                    let new = self.network.attach(self.instance)?;
                    if !new.is_empty() {
                        self.reporter.say(&Event::Attached { attached: new.iter().map(Into::into).collect() })?;
                    }
                }
                _ = progress.tick() => self.progress()?,
                ready = logger.readable_mut() => {
                    let mut ready = ready.context("cannot read the log")?;
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
            }
        }
    }

    /// Ends the faults, says what they did, and gives the exit code if that is not the command's.
    pub fn end(mut self) -> Result<ExitCode> {
        self.network.detach(self.instance)?;
        let counters = self.network.rule_counters()?;
        let total = report::total(&counters);
        let seen = self.network.seen_counters()?;
        if total.matched == 0 {
            let message = if total.is_untouched() {
                "no packet matched: nothing was faulted"
            } else {
                "no packet was faulted: all that matched were protected, or came after the end"
            };
            self.reporter.say(&Event::Warning { message })?;
        }
        let names = names(&self.rules);
        self.reporter.say(&Event::Summary {
            elapsed_ms: self.started.elapsed().as_millis() as u64,
            seed: self.seed,
            rules: report::each(&names, &counters),
            total,
            seen: seen.into(),
            held: self.network.held().map(Into::into),
        })?;
        let missed = self.args.require_match && total.matched == 0;
        Ok(if missed { ExitCode::from(NOTHING_MATCHED) } else { ExitCode::SUCCESS })
    }

    fn progress(&mut self) -> Result<()> {
        if !self.reporter.wants_progress() || self.rules.len() > COUNTED_RULES {
            return Ok(());
        }
        let total = report::total(&self.network.rule_counters()?);
        let elapsed_ms = self.started.elapsed().as_millis() as u64;
        self.reporter.say(&Event::Progress { elapsed_ms, total })
    }

    /// Reads the rule file again. If it cannot be used, the rules stay as they are.
    fn change(&mut self) -> Result<()> {
        let read = || -> Result<Vec<Rule>> {
            let (_, mut rules) = self.rules_args.read()?;
            host::resolve(&mut rules)?;
            Ok(rules)
        };
        let replaced = read().and_then(|rules| {
            self.network.replace(self.instance, &rules)?;
            Ok(std::mem::replace(&mut self.rules, rules))
        });
        match replaced {
            Ok(old) => {
                let counters = self.network.replaced_counters()?;
                let replaced = report::each(&names(&old), &counters);
                self.reporter.say(&Event::Changed { rules: names(&self.rules), replaced })
            }
            Err(error) => {
                let message = format!("the rules stay as they were: {error:#}");
                self.reporter.say(&Event::Warning { message: &message })
            }
        }
    }
}

fn names(rules: &[Rule]) -> Vec<&str> {
    rules.iter().map(|rule| rule.name.as_str()).collect()
}

async fn wait(command: &mut Option<&mut Child>) -> std::io::Result<ExitStatus> {
    match command {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for the command, handing signals on.
async fn outlast(signals: &mut Signals, child: &mut Child) -> Result<ExitStatus> {
    loop {
        tokio::select! {
            status = child.wait() => return status.context("cannot wait for the command"),
            arrived = signals.next() => {
                let arrived = arrived.context("cannot read signals")?;
                if !arrived.from_terminal && let Some(pid) = child.id() {
                    let _ = kill(Pid::from_raw(pid.cast_signed()), arrived.signal);
                }
            }
        }
    }
}

/// The time since this process was executed, as far as the kernel's clock ticks tell (`proc_pid_stat(5)`).
fn since_exec() -> Option<Duration> {
    let stat = procfs::process::Process::myself().ok()?.stat().ok()?;
    let ticks = procfs::ticks_per_second();
    let started = Duration::from_nanos(stat.starttime.checked_mul(1_000_000_000 / ticks)?);
    Duration::from_nanos(clock::monotonic_ns()).checked_sub(started)
}

/// A command line for people.
pub fn words(command: &[OsString]) -> String {
    command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

//! The common parts of `run` and `inject`: from options to active faults, and to their end.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    process::{ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use injector_common::counter::SeenCounters;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::Child;

use super::{
    FAILED, NOTHING_MATCHED,
    args::{Engines, FaultArgs, SessionArgs},
    cleanup,
    event::{self, Event, Lasts},
    privileges,
    reload::Reload,
    report::Reporter,
    signals::{Arrived, Signals},
    user,
};
use crate::{
    fault::{
        clock::Clocks,
        network::{
            self, Network,
            counts::Counts,
            links,
            report::{AttachedReport, RuleReport},
            unmatched::{self, Observed},
        },
        process::Statistics,
    },
    injection::{
        self, FaultSet, Injection, Options, UNMATCHED_TIME,
        drive::{Driver, Tick},
    },
    kernel::clock,
    lifetime::{instance::SharedInstance, journal::Owner},
    output::{self, OutputError, Writer},
    report::{Faulted, HostReport, TargetReport},
    spec::{Faults, SpecError, packet::mtu::Mtu, value::HumanDuration},
    target::{
        Target,
        cgroup::{self, populated_below},
        peers::{self, Resolved},
    },
};

/// Log level of the eBPF programs for `--debug`.
pub const DEBUG_LOG: u8 = aya_log::Level::Debug as u8;

/// Above this number of rules, counters are not read every second.
const COUNTED_RULES: usize = 4096;

/// Time for processes to exit that the command left in its cgroup.
const END_TIMEOUT: Duration = Duration::from_millis(200);

/// How a session ended.
pub enum End {
    /// The command exited.
    Command(ExitStatus),
    /// The time limit or a signal ended it.
    RequestedFaults,
}

/// Active faults.
pub struct Session<'a> {
    args: &'a SessionArgs,
    /// Rereads the rule file, if there is one.
    reload: Option<Reload>,
    /// See [`Plan::made`].
    made: Option<u32>,
    /// Whether the faults have ended.
    is_ended: bool,
    /// The target, for those who list running injectors.
    faulted: Faulted,
    faults: Faults,
    seed: u64,
    injection: Injection<u32>,
    reporter: Reporter,
    started: Instant,
    /// Whether packets are counted that no rule matches.
    is_counting: bool,
    /// Whether it was explained during the run why nothing matches.
    is_explained: bool,
    /// What was seen until the faults ended, if it matters.
    observed: Option<Observed>,
}

/// The requested faults, validated and resolved.
pub struct RequestedFaults {
    pub faults: Faults,
    pub seed: u64,
    pub options: Options,
    pub resolved: Vec<Resolved>,
}

impl RequestedFaults {
    /// Reads and validates the faults without applying anything.
    pub fn read(faults: &FaultArgs, session: &SessionArgs, debug: bool) -> Result<Self, SpecError> {
        let can_change = faults.rules.is_some();
        let faults = faults.read()?;
        let seed = session.seed.or(faults.seed).unwrap_or_else(rand::random);
        let mut options = options(&session.engines, session.lasts(), debug)?;
        options.network.is_final = !can_change;
        Ok(Self { faults, seed, options, resolved: Vec::new() })
    }

    /// Looks up the peers.
    pub fn resolve(mut self) -> Result<Self> {
        self.resolved = self.options.peers.resolve(&peers::of_rules(&self.faults.rules))?;
        Ok(self)
    }
}

/// A validated session that is ready to start.
pub struct Plan {
    pub asked: RequestedFaults,
    pub target: Target,
    /// The target as requested.
    pub spec: TargetReport,
    /// Display name of the target.
    pub title: String,
    /// Journal number of the target's cgroup, if it was created for this session.
    pub made: Option<u32>,
    /// The user of the command, if one was given.
    pub user: Option<String>,
    /// The limit for packets of new connections over the loopback, if it was not requested.
    pub loopback_mtu: Option<Mtu>,
}

/// Undoes the changes of dead injectors and registers this one.
pub fn start_instance() -> Result<SharedInstance> {
    Ok(SharedInstance::start(start()?)?)
}

/// Undoes the changes of dead injectors and returns this process's identity.
pub fn start() -> Result<Owner> {
    privileges::check()?;
    // Must run before other threads start, because they would stay in the old namespace.
    if let Err(error) = cgroup::enter_host_namespace() {
        tracing::warn!(%error, "cannot enter the host's cgroup namespace: which cgroup a process is in is not known");
    }
    privileges::reach_hierarchy();
    cleanup::undo_first();
    Ok(Owner::current())
}

/// Waits up to one second for pending reports. If a report could not be written, an otherwise
/// successful exit code becomes a failure.
pub fn finish(reports: &Writer, code: Result<ExitCode>) -> Result<ExitCode> {
    let finished = reports.finish();
    let code = code?;
    match finished {
        Ok(()) => Ok(code),
        Err(failure) => {
            // Other errors were reported when they occurred.
            if matches!(failure, OutputError::Blocked(_)) {
                output::complain(&format!("warning: {failure}"));
            }
            Ok(if code == ExitCode::SUCCESS { ExitCode::from(FAILED) } else { code })
        }
    }
}

/// Builds the injection options.
pub fn options(
    engines: &Engines,
    lasts: Option<HumanDuration>,
    debug: bool,
) -> Result<Options, SpecError> {
    let network = network::Options {
        lasts: lasts.map(|span| span.0),
        engine: engines.delay()?,
        log_level: if debug { DEBUG_LOG } else { 0 },
        ..network::Options::default()
    };
    let (clock, errno) = (engines.clock(), engines.errno());
    Ok(Options { network, clock, errno, ..Options::default() })
}

impl<'a> Session<'a> {
    /// Installs the faults and reports the start.
    pub fn start(
        instance: SharedInstance,
        args: &'a SessionArgs,
        fault_args: &'a FaultArgs,
        plan: Plan,
        mut reporter: Reporter,
    ) -> Result<Self> {
        let Plan {
            asked: RequestedFaults { faults, seed, options, resolved },
            target,
            spec,
            title,
            made,
            user,
            loopback_mtu,
        } = plan;
        let sudo_user = made.filter(|_| user.is_none()).and_then(|_| user::who_ran_sudo());
        let mut injection =
            Injection::prepare(target, instance, FaultSet::of(&faults, seed), &[], options)?;
        injection.start()?;
        injection.count_unmatched(true)?;
        let started = Instant::now();
        let faulted = Faulted { title, target: spec, ..Faulted::default() };
        injection.instance().describe(&faulted.clone().with_faults(&faults))?;
        reporter.say(&Event::Started {
            title: &faulted.title,
            target: &faulted.target,
            pid: std::process::id(),
            seed,
            host: Some(HostReport::current().into()),
            for_ms: args.lasts().map(Lasts),
            // A command ends its faults.
            is_endless: args.lasts().is_none() && made.is_none(),
            attached: AttachedReport::all(&injection.attached()),
            rules: RuleReport::list(&faults.rules),
            user: user.as_deref(),
            sudo_user: sudo_user.as_deref(),
            loopback_mtu: loopback_mtu.map(|mtu| mtu.0),
            resolved: &resolved,
            engine: injection.network().and_then(Network::engine),
            clock: faults.clock.as_ref().map(|fault| fault.name.as_str()),
            clock_engines: injection.clocks().map(Clocks::engines).unwrap_or_default(),
            clocks: injection.clocks_report(),
            process: faults.processes.as_ref().map(|faults| faults.name.as_str()),
            startup_ms: since_exec().unwrap_or_default().as_secs_f64() * 1e3,
        })?;
        let peers = injection.peers();
        let reload = fault_args.rules.clone().map(|path| Reload::new(path, peers.clone()));
        let is_ended = false;
        let mut session = Self {
            args,
            reload,
            made,
            is_ended,
            faulted,
            faults,
            seed,
            injection,
            reporter,
            started,
            is_counting: true,
            is_explained: false,
            observed: None,
        };
        session.say_events()?;
        Ok(session)
    }

    /// Keeps the faults active until the end. Forwards signals to `command` if there is one.
    pub async fn watch(
        &mut self,
        signals: &mut Signals,
        mut command: Option<&mut Child>,
    ) -> Result<End> {
        let ends = self.args.lasts().map(|span| self.started + span.0);
        let mut driver = Driver::new(&mut self.injection, ends)?;
        loop {
            tokio::select! {
                biased;
                status = wait(&mut command) => return Ok(End::Command(status.context("cannot wait for the command")?)),
                arrived = signals.next() => {
                    let arrived = arrived.context("cannot read signals")?;
                    if command.is_some() {
                        // The command must receive its signals immediately, even while paused.
                        self.injection.interrupt()?;
                    }
                    match &command {
                        Some(child) => if !arrived.from_terminal && let Some(pid) = child.id() {
                            // The command may have exited meanwhile.
                            let _ = kill(Pid::from_raw(pid.cast_signed()), arrived.signal);
                        },
                        None if arrived.signal == Signal::SIGHUP && self.can_refresh(arrived) => self.refresh()?,
                        None if matches!(arrived.signal, Signal::SIGUSR1 | Signal::SIGUSR2) => {}
                        None => return Ok(End::RequestedFaults),
                    }
                }
                read = reread(&mut self.reload) => self.change(read)?,
                tick = driver.next(&mut self.injection) => match (tick?, &mut command) {
                    (Tick::Event(event), _) => self.say(&event)?,
                    (Tick::Progress, _) => {
                        self.progress()?;
                        self.watch_unmatched()?;
                    }
                    (Tick::Expired, None) => return Ok(End::RequestedFaults),
                    (Tick::Expired, Some(child)) => {
                        // The command continues without faults.
                        self.end_faults()?;
                        return Ok(End::Command(outlast(signals, child).await?));
                    }
                },
            }
        }
    }

    /// Reports an event.
    fn say(&mut self, event: &injection::Event) -> Result<()> {
        self.reporter.say(&match event {
            injection::Event::Attached(attached) => {
                Event::Attached { attached: AttachedReport::all(attached) }
            }
            injection::Event::Gone { target, is_final } => {
                Event::Gone { title: target, is_final: *is_final }
            }
            injection::Event::Restarted { target, attached } => {
                Event::Followed { title: target, attached: AttachedReport::all(attached) }
            }
            injection::Event::PeersChanged(resolved) => Event::Changed {
                rules: RuleReport::list(&self.faults.rules),
                replaced: Vec::new(),
                clock: None,
                resolved,
            },
            injection::Event::Warning(message) => Event::Warning { message },
        })
    }

    fn say_events(&mut self) -> Result<()> {
        while let Some(event) = self.injection.next_event() {
            self.say(&event)?;
        }
        Ok(())
    }

    fn end_faults(&mut self) -> Result<()> {
        // Reading the counters of many rules would hold up the end.
        let is_unexplained = self.faults.rules.len() <= COUNTED_RULES
            && self.is_untouched().is_ok_and(|is_untouched| is_untouched);
        if !self.is_ended && (self.args.verbose || is_unexplained) {
            self.observed = self.injection.observed();
        }
        self.is_ended = true;
        Ok(self.injection.end()?)
    }

    /// Whether no rule has matched a packet.
    fn is_untouched(&mut self) -> Result<bool> {
        Ok(event::total(&self.counts()?).is_untouched())
    }

    /// Stops counting unmatched packets once one has matched. Explains once why none has.
    fn watch_unmatched(&mut self) -> Result<()> {
        if !self.is_counting
            || self.injection.network().is_none()
            || self.faults.rules.len() > COUNTED_RULES
        {
            return Ok(());
        }
        let is_untouched = self.is_untouched()?;
        self.is_counting = is_untouched || self.args.verbose;
        self.injection.count_unmatched(self.is_counting)?;
        if is_untouched && !self.is_explained && self.started.elapsed() >= UNMATCHED_TIME {
            self.is_explained = true;
            if let Some(explanation) =
                self.injection.explain(&self.faults.rules, unmatched::by_number)
            {
                self.reporter.warn_of_unmatched(&explanation)?;
            }
        }
        Ok(())
    }

    /// Ends the faults after an error that prevents them from continuing, and reports it.
    pub fn fail(&mut self, error: &anyhow::Error) {
        // Report earlier events first.
        let _ = self.say_events();
        if let Err(error) = self.end_faults() {
            tracing::error!(%error, "cannot end all faults now: what is left ends with injector");
        }
        let message = format!("the faults have ended: {error:#}");
        // The error is reported again at exit.
        let _ = self.reporter.say(&Event::Warning { message: &message });
    }

    /// Ends the faults, reports their effects, and returns the exit code if it is not the
    /// command's.
    /// `exit_code` is the command's, if there is one.
    pub fn end(mut self, exit_code: Option<u8>) -> Result<ExitCode> {
        // The target may have gone since the last check.
        if !self.is_ended && self.injection.target().is_gone() {
            self.injection.follow()?;
        }
        self.say_events()?;
        self.end_faults()?;
        self.leave_cgroup()?;
        self.say_events()?;
        let counts = self.counts()?;
        let total = event::total(&counts);
        let seen = match self.injection.network_mut() {
            Some(network) => network.seen_counters()?,
            None => SeenCounters::default(),
        };
        let clocks = self.injection.clocks_report();
        let processes = self.process_statistics()?;
        let packets = self.injection.network().is_some().then_some(&total);
        if let Some(observed) = self.observed.as_ref().filter(|_| self.args.verbose) {
            self.reporter.say(&Event::Unmatched {
                sent: observed.sent,
                received: observed.received,
                packets: observed.peers(),
            })?;
        }
        let explain = |observed: &Observed| {
            observed.explain(&self.faults.rules, self.injection.addresses(), unmatched::by_number)
        };
        let explanation = self.observed.as_ref().map(explain);
        let missed = self.reporter.warn_of_idle(
            packets,
            explanation.as_ref(),
            clocks.as_ref(),
            processes.as_ref(),
        )?;
        let is_taken = self.injection.is_taken();
        if is_taken {
            let target = self.injection.target().name();
            let message =
                format!("{target} was removed before the faults ended, and did not return");
            self.reporter.say(&Event::Warning { message: &message })?;
        }
        self.reporter.say(&Event::Summary {
            elapsed_ms: self.started.elapsed().as_millis() as u64,
            seed: self.seed,
            rules: event::each(&self.faults.rules, &counts),
            total,
            seen: Some(seen.into()),
            held: self.injection.network().and_then(Network::held).map(Into::into),
            clocks,
            processes,
            exit_code,
        })?;
        Ok(match (is_taken, self.args.require_match && missed) {
            (true, _) => ExitCode::from(FAILED),
            (_, true) => ExitCode::from(NOTHING_MATCHED),
            _ => ExitCode::SUCCESS,
        })
    }

    /// Removes the cgroup that was created for the command, if no other process uses it.
    fn leave_cgroup(&mut self) -> Result<()> {
        let (Some(made), Some(cgroup)) = (self.made, self.injection.target().cgroup()) else {
            return Ok(());
        };
        let end = Instant::now() + END_TIMEOUT;
        while !populated_below(&cgroup.path).is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.injection.instance().undo(made)?;
        if !cgroup.is_there() {
            return Ok(());
        }
        let used = populated_below(&cgroup.path);
        let used: Vec<String> = used.iter().map(|path| path.display().to_string()).collect();
        let message = format!(
            "the cgroup {} stays, as processes run in cgroups that the command made in it ({}): once they have ended, \
             `injector cleanup` or the next start of injector removes it",
            cgroup.path.display(),
            used.join(", "),
        );
        self.reporter.say(&Event::Warning { message: &message })
    }

    fn counts(&mut self) -> Result<Vec<Counts>> {
        Ok(self.injection.rules_mut().counts()?.into_values().collect())
    }

    fn process_statistics(&mut self) -> Result<Option<Statistics>> {
        Ok(self.injection.process_statistics()?.pop().map(|(_, statistics)| statistics))
    }

    fn progress(&mut self) -> Result<()> {
        if !self.reporter.wants_progress() || self.faults.rules.len() > COUNTED_RULES {
            return Ok(());
        }
        let total = event::total(&self.counts()?);
        let elapsed_ms = self.started.elapsed().as_millis() as u64;
        let clocks = self.injection.clocks_report();
        let processes = self.process_statistics()?;
        let has_rules = !self.faults.rules.is_empty();
        self.reporter.say(&Event::Progress { elapsed_ms, has_rules, total, clocks, processes })
    }

    /// Whether SIGHUP refreshes something. If the terminal is closed, it ends the faults unless they
    /// are those of a file.
    fn can_refresh(&self, arrived: Arrived) -> bool {
        let has_peers = self.injection.peers().may_change() && !arrived.from_terminal;
        self.reload.is_some() || has_peers
    }

    /// Looks up the peers, and requests a reread of the rule file if there is one.
    fn refresh(&mut self) -> Result<()> {
        self.injection.peers().look_up_now();
        if self.reload.as_mut().is_some_and(Reload::ask) {
            let message = "the rule file is still being read and its host names looked up: \
                           it is read once more after that";
            self.reporter.say(&Event::Warning { message })?;
        }
        Ok(())
    }

    /// Replaces the faults with the reread ones. Keeps the current ones if the new ones are
    /// unusable.
    fn change(&mut self, read: Result<Faults>) -> Result<()> {
        let changed = read.and_then(|faults| self.try_change(faults));
        // The next rules may match other peers.
        if !self.reload.as_ref().is_some_and(Reload::is_reading) {
            self.injection.peers().retain(&peers::of_rules(&self.faults.rules));
        }
        match changed {
            Ok((old, replaced)) => self.reporter.say(&Event::Changed {
                rules: RuleReport::list(&self.faults.rules),
                replaced: event::some(&old.rules, &replaced),
                clock: self.faults.clock.as_ref().map(|fault| fault.name.as_str()),
                resolved: &[],
            }),
            Err(error) => {
                let message = format!("the rules stay as they were: {error:#}");
                self.reporter.say(&Event::Warning { message: &message })
            }
        }
    }

    /// Replaces the faults. Rules that stay the same keep their counters. Returns the previous faults
    /// and the counters of their other rules, by number.
    fn try_change(&mut self, faults: Faults) -> Result<(Faults, BTreeMap<u32, Counts>)> {
        if faults.processes != self.faults.processes {
            bail!("process faults cannot be changed while they act: restart with them");
        }
        self.injection.swap(FaultSet::of(&faults, self.seed))?;
        let kept = links::kept(&self.faults.rules, &faults.rules);
        let replaced = self.injection.rules_mut().rename(&kept);
        let faulted = self.faulted.clone().with_faults(&faults);
        self.injection.instance().describe(&faulted)?;
        Ok((std::mem::replace(&mut self.faults, faults), replaced))
    }
}

async fn wait(command: &mut Option<&mut Child>) -> std::io::Result<ExitStatus> {
    match command {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

async fn reread(reload: &mut Option<Reload>) -> Result<Faults> {
    match reload {
        Some(reload) => reload.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for the command and forwards signals to it.
pub async fn outlast(signals: &mut Signals, child: &mut Child) -> Result<ExitStatus> {
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

/// Time since this process was executed, with the resolution of clock ticks (`proc_pid_stat(5)`).
fn since_exec() -> Option<Duration> {
    let stat = procfs::process::Process::myself().ok()?.stat().ok()?;
    let ticks = procfs::ticks_per_second();
    let started = Duration::from_nanos(stat.starttime.checked_mul(1_000_000_000 / ticks)?);
    Duration::from_nanos(clock::monotonic_ns()).checked_sub(started)
}

/// Formats a command line for display.
pub fn words(command: &[OsString]) -> String {
    command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

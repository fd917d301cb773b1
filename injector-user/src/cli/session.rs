//! What `run` and `inject` have in common: from the options to active faults, and to their end.

use std::{
    ffi::OsString,
    process::{ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya_log::EbpfLogger;
use injector_common::counter::SeenCounters;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{io::unix::AsyncFd, process::Child, time::MissedTickBehavior};

use super::{
    FAILED, NOTHING_MATCHED,
    args::{FaultArgs, SessionArgs},
    cleanup, privileges,
    reload::Reload,
    report::{self, Event, Reporter},
    signals::Signals,
};
use crate::{
    fault::{
        clock::{Clocks, report::ClocksReport},
        network::{Network, Options, RENEWAL, counts::Counts, hold::Engine},
        process::Processes,
        retarget,
    },
    kernel::{clock, pidfd::Handle},
    lifetime::{instance::Instance, journal::Owner},
    output::{self, OutputError, Writer},
    spec::{Faults, SpecError, clock::ClockFault, process::ProcessFaults, rule::Rule},
    target::{
        Followed, Target,
        cgroup::{self, populated_below},
        host,
    },
};

/// The kernel side's log level for `--verbose`.
pub const VERBOSE_LOG: u8 = aya_log::Level::Debug as u8;

/// More rules than that are not read every second.
const COUNTED_RULES: usize = 4096;

/// How long processes may take to end that the command has left in cgroups of its own.
const BREATH: Duration = Duration::from_millis(200);

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
    /// The rule file, if there is one.
    reload: Option<Reload>,
    target: Target,
    /// See [`Plan::made`].
    made: Option<u32>,
    /// The faults have ended.
    is_detached: bool,
    rules: Vec<Rule>,
    clock: Option<ClockFault>,
    seed: u64,
    network: Option<Network>,
    clocks: Option<Clocks>,
    process_faults: Option<ProcessFaults>,
    processes: Option<Processes>,
    reporter: Reporter,
    started: Instant,
}

/// The faults as they were asked for, checked and resolved.
pub struct Asked {
    pub rules: Vec<Rule>,
    pub clock: Option<ClockFault>,
    /// How to delay packets, if that was said.
    pub engine: Option<Engine>,
    pub processes: Option<ProcessFaults>,
    pub seed: u64,
    pub resolved: Vec<host::Resolved>,
}

impl Asked {
    /// Reads and checks the faults; nothing is touched.
    pub fn read(faults: &FaultArgs, session: &SessionArgs) -> Result<Self, SpecError> {
        let Faults { seed, rules, clock, processes } = faults.read()?;
        let seed = session.seed.or(seed).unwrap_or_else(rand::random);
        let engine = session.delay_engine()?;
        Ok(Self { rules, clock, processes, engine, seed, resolved: Vec::new() })
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
    /// Whether processes of the target may go on after the faults.
    pub outlived: bool,
    /// The number of what made the target's cgroup, if it was made for this.
    pub made: Option<u32>,
}

/// Undoes what dead injectors left, and registers this one.
pub fn start_instance() -> Result<Instance> {
    Ok(Instance::start(start()?)?)
}

/// Undoes what dead injectors left; returns who this one is.
pub fn start() -> Result<Owner> {
    privileges::check()?;
    // There are no other threads yet, which would stay behind.
    if let Err(error) = cgroup::enter_host_namespace() {
        tracing::warn!(%error, "cannot enter the host's cgroup namespace: which cgroup a process is in is not known");
    }
    cleanup::undo_first();
    Ok(Owner {
        pid: std::process::id(),
        ticks: Handle::open(std::process::id().cast_signed()).map_or(0, |own| own.started),
        started: jiff::Timestamp::now().to_string(),
        command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
    })
}

/// Waits for the reports of what has ended, for a second at most; what could not be reported fails
/// what was right otherwise.
pub fn finish(reports: &Writer, code: Result<ExitCode>) -> Result<ExitCode> {
    let finished = reports.finish();
    let code = code?;
    match finished {
        Ok(()) => Ok(code),
        Err(failure) => {
            // Otherwise it was said when it happened.
            if matches!(failure, OutputError::Blocked(_)) {
                output::complain(&format!("warning: {failure}"));
            }
            Ok(if code == ExitCode::SUCCESS { ExitCode::from(FAILED) } else { code })
        }
    }
}

/// How to install, from the options.
pub fn options(args: &SessionArgs, instance: &Instance, asked: &Asked, verbose: bool) -> Options {
    let &Asked { seed, engine, .. } = asked;
    Options {
        judged_bit: 1 << instance.slot(),
        seed,
        lasts: args.lasts().map(|span| span.0),
        engine,
        log_level: if verbose { VERBOSE_LOG } else { 0 },
        ..Options::default()
    }
}

impl<'a> Session<'a> {
    /// Installs the faults and says so.
    pub fn start(
        instance: &'a mut Instance,
        args: &'a SessionArgs,
        fault_args: &'a FaultArgs,
        plan: Plan,
        mut reporter: Reporter,
    ) -> Result<Self> {
        let Plan { asked, target, title, options, outlived, made } = plan;
        let Asked { rules, clock, processes: process_faults, seed, resolved, .. } = asked;
        let mut clocks = match &clock {
            Some(fault) => {
                let cgroup = target.cgroup.as_ref();
                let engines = args.clock_engines();
                Some(Clocks::install(
                    instance,
                    cgroup,
                    Some(fault),
                    options.lasts,
                    outlived,
                    &engines,
                )?)
            }
            None => None,
        };
        // Nothing is due before it is watched, so whatever is refused later leaves nothing stopped.
        let processes = match &process_faults {
            Some(faults) => {
                let (lasts, engine) = (options.lasts, args.errno_engine());
                Some(Processes::install(instance, &target, faults, seed, lasts, engine)?)
            }
            None => None,
        };
        let network = if rules.is_empty() {
            None
        } else {
            Some(Network::install(instance, target.clone(), &rules, options)?)
        };
        let started = Instant::now();
        let attached = network.as_ref().map(Network::attached).unwrap_or_default();
        reporter.say(&Event::Started {
            target: &title,
            pid: std::process::id(),
            seed,
            for_ms: args.lasts().map(report::Lasts),
            attached: attached.iter().map(Into::into).collect(),
            rules: names(&rules),
            resolved: &resolved,
            engine: network.as_ref().and_then(Network::engine),
            clock: clock.as_ref().map(|fault| fault.name.as_str()),
            clock_engines: clocks.as_ref().map(Clocks::engines).unwrap_or_default(),
            clocks: clocks.as_mut().map(ClocksReport::of),
            process: process_faults.as_ref().map(|faults| faults.name.as_str()),
            startup_ms: since_exec().unwrap_or_default().as_secs_f64() * 1e3,
        })?;
        let mut session = Self {
            instance,
            args,
            reload: fault_args.rules.clone().map(Reload::new),
            target,
            made,
            is_detached: false,
            rules,
            clock,
            seed,
            network,
            clocks,
            process_faults,
            processes,
            reporter,
            started,
        };
        session.warn(false)?;
        Ok(session)
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
        let end = self.args.lasts().map(|span| self.started + span.0);
        let mut logger = match &mut self.network {
            Some(network) => {
                let logger = network.object().logger()?;
                // SAFETY: the logger owns its ring buffer's descriptor, which it neither closes nor replaces.
                Some(unsafe { AsyncFd::register(logger) }.context("cannot watch the log")?)
            }
            None => None,
        };
        loop {
            tokio::select! {
                biased;
                status = wait(&mut command) => return Ok(End::Command(status.context("cannot wait for the command")?)),
                arrived = signals.next() => {
                    let arrived = arrived.context("cannot read signals")?;
                    if command.is_some() {
                        self.interrupt()?;
                    }
                    match &command {
                        Some(child) => if !arrived.from_terminal && let Some(pid) = child.id() {
                            // It may have ended meanwhile.
                            let _ = kill(Pid::from_raw(pid.cast_signed()), arrived.signal);
                        },
                        None if arrived.signal == Signal::SIGHUP && self.reload.is_some() => self.ask_for_change()?,
                        None if matches!(arrived.signal, Signal::SIGUSR1 | Signal::SIGUSR2) => {}
                        None => return Ok(End::Asked),
                    }
                }
                read = reread(&mut self.reload) => self.change(read)?,
                () = until(end) => {
                    if command.is_none() {
                        return Ok(End::Asked);
                    }
                    // The command goes on without faults.
                    self.detach()?;
                    let Some(child) = &mut command else { return Ok(End::Asked) };
                    return Ok(End::Command(outlast(signals, child).await?));
                }
                () = until(self.processes.as_ref().and_then(Processes::due)) => self.step()?,
                _ = renewal.tick() => self.renew()?,
                _ = progress.tick() => self.progress()?,
                ready = flush(&mut logger) => ready.context("cannot read the log")?,
            }
        }
    }

    /// Goes on for a while, also on what is new.
    fn renew(&mut self) -> Result<()> {
        while let Some(followed) = self.target.follow()? {
            self.follow(followed)?;
        }
        if let Some(clocks) = &mut self.clocks {
            clocks.renew();
        }
        let Some(network) = &mut self.network else { return Ok(()) };
        network.renew()?;
        let new = network.attach(self.instance)?;
        if !new.is_empty() {
            let attached = new.iter().map(Into::into).collect();
            self.reporter.say(&Event::Attached { attached })?;
        }
        self.warn(false)
    }

    /// Tells what others did to the packet faults.
    fn warn(&mut self, is_end: bool) -> Result<()> {
        let Some(network) = &mut self.network else { return Ok(()) };
        for message in network.warnings(is_end) {
            self.reporter.say(&Event::Warning { message: &message })?;
        }
        Ok(())
    }

    /// Has the faults go on in the cgroup that has taken the place of the one before, or says that it is gone.
    fn follow(&mut self, followed: Followed) -> Result<()> {
        let (network, clocks) = (self.network.as_mut(), self.clocks.as_mut());
        let target = &self.target.name();
        match followed {
            Followed::Gone => self.reporter.say(&Event::Gone { target, is_final: false }),
            Followed::Lost => self.reporter.say(&Event::Gone { target, is_final: true }),
            Followed::Again => {
                let processes = self.processes.as_mut();
                retarget(self.instance, &self.target, network, clocks, processes)?;
                let attached = self.network.as_ref().map(Network::attached).unwrap_or_default();
                let attached = attached.iter().map(Into::into).collect();
                self.reporter.say(&Event::Followed { target, attached })
            }
        }
    }

    /// Does what is due to processes.
    fn step(&mut self) -> Result<()> {
        match &mut self.processes {
            Some(processes) => Ok(processes.step(self.instance)?),
            None => Ok(()),
        }
    }

    /// The command is to see its signals at once, though it be paused.
    fn interrupt(&mut self) -> Result<()> {
        match &mut self.processes {
            Some(processes) => Ok(processes.interrupt(self.instance)?),
            None => Ok(()),
        }
    }

    fn detach(&mut self) -> Result<()> {
        self.is_detached = true;
        if let Some(processes) = &mut self.processes {
            processes.end(self.instance)?;
        }
        if let Some(network) = &mut self.network {
            network.detach(self.instance)?;
        }
        if let Some(clocks) = &mut self.clocks {
            clocks.end(self.instance)?;
        }
        Ok(())
    }

    /// Ends the faults, which cannot go on, and says why.
    pub fn fail(&mut self, error: &anyhow::Error) {
        if let Err(error) = self.detach() {
            tracing::error!(%error, "cannot end all faults now: what is left ends with injector");
        }
        let message = format!("the faults have ended: {error:#}");
        // The error is said at the end as well.
        let _ = self.reporter.say(&Event::Warning { message: &message });
    }

    /// Ends the faults, says what they did, and gives the exit code if that is not the command's.
    pub fn end(mut self) -> Result<ExitCode> {
        // It may have gone since it was last looked for.
        if !self.is_detached
            && let Some(followed @ (Followed::Gone | Followed::Lost)) = self.target.follow()?
        {
            self.follow(followed)?;
        }
        self.detach()?;
        self.leave_cgroup()?;
        self.warn(true)?;
        let counts = self.counts()?;
        let total = report::total(&counts);
        let seen = match &mut self.network {
            Some(network) => network.seen_counters()?,
            None => SeenCounters::default(),
        };
        let clocks = self.clocks.as_mut().map(ClocksReport::of);
        let processes = self.processes.as_mut().map(Processes::statistics).transpose()?;
        let packets = self.network.is_some().then_some(&total);
        let missed = self.reporter.warn_of_idle(packets, clocks.as_ref(), processes.as_ref())?;
        let is_taken = self.is_taken();
        if is_taken {
            let target = self.target.name();
            let message =
                format!("{target} was removed before the faults ended, and did not return");
            self.reporter.say(&Event::Warning { message: &message })?;
        }
        let names = names(&self.rules);
        self.reporter.say(&Event::Summary {
            elapsed_ms: self.started.elapsed().as_millis() as u64,
            seed: self.seed,
            rules: report::each(&names, &counts),
            total,
            seen: seen.into(),
            held: self.network.as_ref().and_then(Network::held).map(Into::into),
            clocks,
            processes,
        })?;
        Ok(match (is_taken, self.args.require_match && missed) {
            (true, _) => ExitCode::from(FAILED),
            (_, true) => ExitCode::from(NOTHING_MATCHED),
            _ => ExitCode::SUCCESS,
        })
    }

    /// Whether the target was taken away from the faults.
    fn is_taken(&self) -> bool {
        let kills = self.process_faults.as_ref().is_some_and(|faults| !faults.kills.is_empty());
        self.target.is_taken(kills)
    }

    /// Removes the cgroup that was made for the command, if nobody else uses it.
    fn leave_cgroup(&mut self) -> Result<()> {
        let (Some(made), Some(cgroup)) = (self.made, &self.target.cgroup) else { return Ok(()) };
        let end = Instant::now() + BREATH;
        while !populated_below(&cgroup.path).is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.instance.undo(made)?;
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
        self.network.as_mut().map_or(Ok(Vec::new()), |network| Ok(network.counts()?))
    }

    fn progress(&mut self) -> Result<()> {
        if !self.reporter.wants_progress() || self.rules.len() > COUNTED_RULES {
            return Ok(());
        }
        let total = report::total(&self.counts()?);
        let elapsed_ms = self.started.elapsed().as_millis() as u64;
        let clocks = self.clocks.as_mut().map(ClocksReport::of);
        let processes = self.processes.as_mut().map(Processes::statistics).transpose()?;
        self.reporter.say(&Event::Progress { elapsed_ms, total, clocks, processes })
    }

    /// Has the rule file read again.
    fn ask_for_change(&mut self) -> Result<()> {
        if self.reload.as_mut().is_some_and(Reload::ask) {
            let message = "the rule file is still being read and its host names looked up: \
                           it is read once more after that";
            self.reporter.say(&Event::Warning { message })?;
        }
        Ok(())
    }

    /// Changes the faults to what was read. If that cannot be used, they stay as they are.
    fn change(&mut self, read: Result<Faults>) -> Result<()> {
        match read.and_then(|faults| self.try_change(faults)) {
            Ok(old) => {
                let counts = match &mut self.network {
                    Some(network) => network.replaced_counts()?,
                    None => Vec::new(),
                };
                let replaced = report::each(&names(&old), &counts);
                self.reporter.say(&Event::Changed {
                    rules: names(&self.rules),
                    replaced,
                    clock: self.clock.as_ref().map(|fault| fault.name.as_str()),
                })
            }
            Err(error) => {
                let message = format!("the rules stay as they were: {error:#}");
                self.reporter.say(&Event::Warning { message: &message })
            }
        }
    }

    /// Returns the rules before.
    fn try_change(&mut self, faults: Faults) -> Result<Vec<Rule>> {
        let Faults { rules, clock, processes, .. } = faults;
        if processes != self.process_faults {
            bail!("process faults cannot be changed while they act: restart with them");
        }
        // Whatever can be refused comes first, so that nothing is changed by half.
        let timed = match (&self.clocks, &clock) {
            (Some(clocks), clock) if *clock != self.clock => Some(clocks.check(clock.as_ref())?),
            (None, Some(_)) => bail!("none of the first faults was one of clocks: restart with it"),
            _ => None,
        };
        match &mut self.network {
            Some(network) => network.replace(self.instance, &rules)?,
            None if rules.is_empty() => {}
            None => bail!("none of the first faults was one of packets: restart with them"),
        }
        if let (Some(clocks), Some(timed)) = (&mut self.clocks, timed) {
            clocks.set(timed);
        }
        self.clock = clock;
        Ok(std::mem::replace(&mut self.rules, rules))
    }
}

/// Hands on what the eBPF side's log says, when there is something.
async fn flush(
    logger: &mut Option<AsyncFd<EbpfLogger<&'static dyn log::Log>>>,
) -> std::io::Result<()> {
    match logger {
        Some(logger) => {
            let mut ready = logger.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
            Ok(())
        }
        None => std::future::pending().await,
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

async fn reread(reload: &mut Option<Reload>) -> Result<Faults> {
    match reload {
        Some(reload) => reload.next().await,
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

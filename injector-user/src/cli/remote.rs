//! `injector inject --agent`: sends the fault to an agent.

use std::{path::PathBuf, process::ExitCode, time::Duration, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::time::{Interval, MissedTickBehavior};

use super::{
    FAILED, NOTHING_MATCHED,
    args::{FaultArgs, SessionArgs},
    event::{Event, Lasts},
    report::{Reporter, Stream},
    session,
    signals::Signals,
};
use crate::{
    agent::{
        api::{Fault, FaultRequest, Phase, Reason},
        client::{Client, ClientError, Endpoint},
    },
    fault::network::report::RuleReport,
    output,
    report::TargetReport,
    spec::{
        SpecError,
        file::FaultsSpec,
        rule::{Rule, RuleSpec},
        source,
        target::TargetSpec,
        value::HumanDuration,
    },
    target::{
        peers::Resolved,
        pods::{PodState, PodStatus},
    },
};

/// Maximum time that the fault outlives this command.
const LEASE: Duration = Duration::from_secs(10);

/// Interval between renewals of the lease.
const RENEWAL: Duration = Duration::from_secs(2);

/// Maximum time that an agent may be unreachable. After that, the lease has expired.
const UNREACHABLE_TIMEOUT: Duration = LEASE;

/// Maximum size of the token file.
const MAX_TOKEN: u64 = 1 << 20;

/// Which agent, and how to be let in.
#[derive(Args, Debug)]
pub struct AgentOptions {
    /// Use the agent at this socket or URL
    ///
    /// A URL is http://HOST:PORT or https://HOST:PORT. The fault ends with this command, or at the latest 10s after it.
    #[arg(long, value_name = "SOCKET|URL", help_heading = "Agent")]
    pub agent: Option<String>,

    /// CA certificate that verifies the agent
    #[arg(long, value_name = "FILE", help_heading = "Agent", requires = "agent")]
    pub agent_ca: Option<PathBuf>,

    /// File that has the token for the agent
    #[arg(long, value_name = "FILE", help_heading = "Agent", requires = "agent")]
    pub agent_token: Option<PathBuf>,
}

impl AgentOptions {
    /// Creates a client of that agent.
    pub fn client(&self, at: &str) -> Result<Client> {
        let at: Endpoint = at.parse()?;
        let token = match &self.agent_token {
            Some(path) => {
                let text = source::read(path, MAX_TOKEN)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let text = text.trim();
                // A line of the agent's own token file is accepted as well.
                Some(text.split_once(':').map_or(text, |(_, token)| token).to_owned())
            }
            None => None,
        };
        Ok(Client::new(at, token, self.agent_ca.as_deref())?)
    }
}

/// Whether the command line is wrong, rather than the agent.
#[must_use]
pub fn is_usage(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::Endpoint(_) | ClientError::NoScheme(_)))
}

/// Builds the request from the options.
pub fn request(
    target: &TargetSpec,
    faults: &FaultArgs,
    session: &SessionArgs,
    protect: Option<bool>,
) -> Result<FaultRequest, SpecError> {
    // Validating here reports errors in terms of the options, and reads files with the permissions
    // of the user who names them.
    let loaded = faults.load()?;
    let checked = faults.check(loaded.as_ref())?;
    target.check(false)?;
    if checked.clock.is_some() {
        target.check_for_clocks()?;
    }
    let FaultsSpec { seed, rules, clocks, processes } = loaded.unwrap_or_else(|| FaultsSpec {
        seed: None,
        rules: if checked.rules.is_empty() { Vec::new() } else { vec![faults.rule.clone()] },
        clocks: faults.clock.clone(),
        processes: faults.process.clone(),
    });
    let target = TargetSpec { protect: protect.or(target.protect), ..target.clone() };
    Ok(FaultRequest {
        name: None,
        target,
        seed: session.seed.or(seed),
        rules,
        clocks,
        processes,
        r#for: session.lasts(),
        lease: Some(HumanDuration(LEASE)),
    })
}

/// Creates the fault at the agent and renews its lease until the end.
pub fn run(
    mut client: Client,
    request: &FaultRequest,
    session: &SessionArgs,
    title: &str,
) -> Result<ExitCode> {
    if !session.engines.engines.is_empty() {
        bail!("--engine: the agent chooses engines itself");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Opening a named pipe blocks until it has a reader. Ctrl-C must still work, so signals are
    // taken afterwards.
    let reporter = Reporter::new(session, Stream::Stdout)?;
    let reports = reporter.writer();
    let code = runtime.block_on(async {
        let mut signals = Signals::take().context("cannot take signals")?;
        let fault = tokio::select! {
            biased;
            asked = end_of(&mut signals) => {
                asked?;
                bail!("ended before the agent answered: a fault that it begins ends after {LEASE:?}");
            }
            created = client.create(request) => created?,
        };
        let mut remote = Remote {
            client,
            name: fault.name.clone(),
            reporter,
            started: Instant::now(),
            resolved: fault.resolved.clone(),
            pods: Vec::new(),
            has_faulted_pods: false,
            is_explained: false,
        };
        let rules = request.rules.iter().map(RuleSpec::check).collect::<Result<Vec<_>, _>>()?;
        remote.say_started(&fault, &rules.concat(), title, session)?;
        let ended = remote.watch(&mut signals).await;
        match ended {
            Ok(fault) => remote.finish(&fault, session.require_match),
            Err(error) => {
                // If the deletion fails as well, the fault ends with its lease.
                let deletion = remote.client.delete(&remote.name);
                let _ = tokio::time::timeout(Duration::from_secs(1), deletion).await;
                Err(error)
            }
        }
    });
    // Do not wait for a name lookup that hangs.
    runtime.shutdown_background();
    session::finish(&reports, code)
}

struct Remote {
    client: Client,
    name: String,
    reporter: Reporter,
    started: Instant,
    /// The addresses of peers that were reported last.
    resolved: Vec<Resolved>,
    /// The pod states that were reported last.
    pods: Vec<PodStatus>,
    has_faulted_pods: bool,
    /// Whether it was explained why nothing matches.
    is_explained: bool,
}

impl Remote {
    fn say_started(
        &mut self,
        fault: &Fault,
        rules: &[Rule],
        title: &str,
        session: &SessionArgs,
    ) -> Result<()> {
        let target = format!("{title} by the agent, as {}", fault.name);
        self.reporter.say(&Event::Started {
            title: &target,
            target: &TargetReport::from(&fault.target),
            pid: std::process::id(),
            seed: fault.seed,
            host: None,
            for_ms: session.lasts().map(Lasts),
            is_endless: session.lasts().is_none(),
            attached: fault.attached.clone(),
            rules: RuleReport::list(rules),
            user: None,
            sudo_user: None,
            loopback_mtu: None,
            resolved: &fault.resolved,
            engine: None,
            clock: fault.clock.as_deref(),
            clock_engines: Vec::new(),
            clocks: fault.clocks.clone(),
            process: fault.process.as_deref(),
            startup_ms: self.started.elapsed().as_secs_f64() * 1e3,
        })
    }

    /// Keeps the fault active until the end, and returns its final state.
    async fn watch(&mut self, signals: &mut Signals) -> Result<Fault> {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let (mut renewed, mut heard) = (Instant::now(), Instant::now());
        loop {
            // A signal must not wait for an unresponsive agent, so it cancels the request.
            tokio::select! {
                biased;
                asked = end_of(signals) => {
                    asked?;
                    return self.delete().await;
                }
                fault = refresh(&mut self.client, &self.name, &mut renewed, &mut ticks) => {
                    match fault {
                        Ok(fault) if fault.phase == Phase::Ended => return Ok(fault),
                        Ok(fault) => {
                            heard = Instant::now();
                            self.say_pods(&fault)?;
                            self.say_peers(&fault)?;
                            self.say_unmatched(&fault)?;
                            self.say_progress(&fault)?;
                        }
                        Err(error @ ClientError::Refused(_)) => return Err(error.into()),
                        Err(error) if heard.elapsed() > UNREACHABLE_TIMEOUT => return Err(error.into()),
                        Err(error) => tracing::warn!(%error, "trying again"),
                    }
                }
            }
        }
    }

    async fn delete(&mut self) -> Result<Fault> {
        let deleted =
            tokio::time::timeout(UNREACHABLE_TIMEOUT, self.client.delete(&self.name)).await;
        let late =
            || format!("the agent does not answer: the fault ends {LEASE:?} after it last did");
        Ok(deleted.with_context(late)??)
    }

    /// Reports the faulted pods when they change.
    fn say_pods(&mut self, fault: &Fault) -> Result<()> {
        let Some(pods) = &fault.pods else { return Ok(()) };
        self.has_faulted_pods |= pods.iter().any(|pod| pod.state == PodState::Injecting);
        // A higher match count alone is not a change.
        let is_same = |(one, other): (&PodStatus, &PodStatus)| {
            *one == PodStatus { matched: one.matched, ..other.clone() }
        };
        if pods.len() != self.pods.len() || !self.pods.iter().zip(&**pods).all(is_same) {
            self.reporter.say(&Event::Pods { pods })?;
            self.pods.clone_from(pods);
        }
        Ok(())
    }

    /// Reports peers whose addresses changed.
    fn say_peers(&mut self, fault: &Fault) -> Result<()> {
        let is_new = |peer: &&Resolved| !self.resolved.contains(peer);
        let changed: Vec<Resolved> = fault.resolved.iter().filter(is_new).cloned().collect();
        if changed.is_empty() {
            return Ok(());
        }
        self.resolved.clone_from(&fault.resolved);
        self.reporter.say(&Event::Changed {
            rules: fault.rules.iter().map(RuleReport::without_counts).collect(),
            replaced: Vec::new(),
            clock: fault.clock.as_deref(),
            resolved: &changed,
        })
    }

    /// Explains once why no packet has matched.
    fn say_unmatched(&mut self, fault: &Fault) -> Result<()> {
        match &fault.unmatched {
            Some(explanation) if !self.is_explained => {
                self.is_explained = true;
                self.reporter.warn_of_unmatched(explanation)
            }
            _ => Ok(()),
        }
    }

    fn say_progress(&mut self, fault: &Fault) -> Result<()> {
        if !self.reporter.wants_progress() {
            return Ok(());
        }
        self.reporter.say(&Event::Progress {
            elapsed_ms: self.started.elapsed().as_millis() as u64,
            has_rules: !fault.rules.is_empty(),
            total: fault.packets.clone(),
            clocks: fault.clocks.clone(),
            processes: fault.processes.clone(),
        })
    }

    /// Reports the results and returns the exit code.
    fn finish(mut self, fault: &Fault, require_match: bool) -> Result<ExitCode> {
        self.say_pods(fault)?;
        let packets = (!fault.rules.is_empty()).then_some(&fault.packets);
        let mut missed = self.reporter.warn_of_idle(
            packets,
            fault.unmatched.as_ref(),
            fault.clocks.as_ref(),
            fault.processes.as_ref(),
        )?;
        if fault.pods.is_some() && !self.has_faulted_pods {
            missed = true;
            let message = "no pod was faulted: none of the agent's node was selected and ran";
            self.reporter.say(&Event::Warning { message })?;
        }
        self.reporter.say(&Event::Summary {
            elapsed_ms: self.started.elapsed().as_millis() as u64,
            seed: fault.seed,
            rules: fault.rules.to_vec(),
            total: fault.packets.clone(),
            seen: None,
            held: None,
            clocks: fault.clocks.clone(),
            processes: fault.processes.clone(),
            exit_code: None,
        })?;
        match fault.reason {
            Some(Reason::Deleted | Reason::Expired) | None => {}
            Some(reason) => {
                let error = fault.error.as_deref().map(|error| format!(": {error}"));
                let error = error.unwrap_or_default();
                output::complain(&format!("the fault ended early: {reason}{error}"));
                return Ok(ExitCode::from(FAILED));
            }
        }
        let missed = require_match && missed;
        Ok(if missed { ExitCode::from(NOTHING_MATCHED) } else { ExitCode::SUCCESS })
    }
}

/// Waits for the next tick, then queries the fault, or renews its lease if that is due.
async fn refresh(
    client: &mut Client,
    name: &str,
    renewed: &mut Instant,
    ticks: &mut Interval,
) -> Result<Fault, ClientError> {
    ticks.tick().await;
    let is_due = renewed.elapsed() >= RENEWAL;
    let fault = if is_due { client.renew(name).await } else { client.get(name).await };
    match fault {
        Ok(fault) if is_due => {
            *renewed = Instant::now();
            Ok(fault)
        }
        // The fault has ended, or the agent was restarted and never had it.
        Err(error) if error.is_not_found() => client.get(name).await,
        fault => fault,
    }
}

/// Waits for a signal that ends the session.
async fn end_of(signals: &mut Signals) -> Result<()> {
    use nix::sys::signal::Signal;
    loop {
        let signal = signals.next().await.context("cannot read signals")?.signal;
        if !matches!(signal, Signal::SIGUSR1 | Signal::SIGUSR2) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::fd::AsRawFd as _};

    use super::*;
    use crate::{
        cli::args::Output,
        spec::{clock::ClockSpec, process::ProcessSpec, rule::RuleSpec},
    };

    #[test]
    fn rules_may_come_from_what_can_be_read_once() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(b"seed: 7\nrules: [{loss: 1%}, {loss: 2%}]\n").expect("room in the pipe");
        drop(writer);
        let faults = FaultArgs {
            rules: Some(format!("/proc/self/fd/{}", reader.as_raw_fd()).into()),
            rule: RuleSpec::default(),
            clock: ClockSpec::default(),
            process: ProcessSpec::default(),
        };
        let session = SessionArgs {
            duration: None,
            seed: None,
            engines: crate::cli::args::Engines::default(),
            verbose: false,
            require_match: false,
            output: Output::default(),
            output_file: None,
        };
        let target = TargetSpec { host: true, ..TargetSpec::default() };
        let request = request(&target, &faults, &session, None).expect("a request");
        assert_eq!((request.seed, request.rules.len()), (Some(7), 2));
    }
}

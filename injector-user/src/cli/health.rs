//! The agent's health and faults, for `injector list`.

use std::{fmt::Write as _, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};

use super::{args::Output, list, remote::AgentOptions, report::counts};
use crate::agent::{
    SOCKET,
    api::{Fault, Health, Phase},
    client::ClientError,
};
use crate::{fault::network::unmatched, report, words::plural};

/// An agent that does not answer within this time is unhealthy.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(4);

/// Prints the agent's health.
///
/// Needs only permission to query the agent, and is fast enough for frequent probes.
pub fn print(options: &AgentOptions, output: Output) -> Result<ExitCode> {
    let mut client = options.client(options.agent.as_deref().unwrap_or(SOCKET))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = async { tokio::time::timeout(HEALTH_TIMEOUT, client.health()).await };
    let health = runtime.block_on(asked).context("the agent does not answer")??;
    let text = match output {
        Output::Json => report::line(&health)?,
        Output::Human => {
            format!("{}: {}\n", health.status, plural(health.active as u64, "active fault"))
        }
    };
    crate::output::print(text)?;
    Ok(if health.status == Health::OK { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line per active fault of the given agent, or of this host's agent if one runs.
pub fn faults(options: &AgentOptions, output: Output) -> Result<String> {
    let mut text = String::new();
    let at = match &options.agent {
        Some(at) => at.as_str(),
        None if Path::new(SOCKET).exists() => SOCKET,
        None => return Ok(text),
    };
    let mut client = options.client(at)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let list = match runtime.block_on(client.list()) {
        Ok(list) => list,
        // A dead agent left its socket behind.
        Err(ClientError::Connect { .. }) if options.agent.is_none() => return Ok(text),
        Err(error) => return Err(error.into()),
    };
    for fault in list.faults.iter().filter(|fault| fault.phase == Phase::Active) {
        match output {
            Output::Json => text += &report::line(fault)?,
            Output::Human => describe(&mut text, fault)?,
        }
    }
    Ok(text)
}

fn describe(text: &mut String, fault: &Fault) -> std::fmt::Result {
    let kinds: Vec<String> = fault.kinds.iter().map(ToString::to_string).collect();
    let packets = (!fault.rules.is_empty()).then(|| format!(": {}", counts(&fault.packets)));
    writeln!(
        text,
        "   fault  {}  {} ({}), until {}, for {}{}",
        fault.created,
        fault.name,
        kinds.join(", "),
        fault.ends,
        fault.owner,
        packets.unwrap_or_default()
    )?;
    writeln!(text, "  target  {}", fault.title)?;
    list::rule_lines(text, &fault.rules, fault.more_rules)?;
    let others = fault.clock.iter().chain(&fault.process);
    others.into_iter().try_for_each(|fault| writeln!(text, "          {fault}"))?;
    let unmatched = fault.unmatched.iter();
    let unmatched =
        unmatched.flat_map(|it| unmatched::messages("no packet has matched yet", Some(it)));
    let mut warnings = fault.warnings.iter().cloned().chain(unmatched);
    warnings.try_for_each(|message| writeln!(text, "   warning  {message}"))
}

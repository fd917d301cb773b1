//! `injector list`: what is running.

use std::{fmt::Write as _, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;

use super::{args::Output, cleanup, privileges, remote::AgentOptions};
use crate::{
    agent::{
        SOCKET,
        api::{Fault, Health, Phase},
        client::ClientError,
    },
    lifetime::instance,
    output,
};

/// An agent that says how it is only after this time is not well.
const HEALTH_PATIENCE: Duration = Duration::from_secs(4);

/// List running injectors and the faults of the agent
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Output format
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "human|json",
        hide_possible_values = true
    )]
    output: Output,

    /// Check only whether the agent is healthy
    #[arg(long)]
    health: bool,

    #[command(flatten)]
    agent: AgentOptions,
}

/// Prints one line an injector, and one a fault of the agent.
pub fn run(args: &ListArgs) -> Result<ExitCode> {
    if args.health {
        return health(args);
    }
    privileges::check()?;
    cleanup::undo_first();
    let mut running = instance::running()?;
    // An agent has several slots.
    let mut owners = Vec::new();
    running.retain(|injector| {
        let is_new = !owners.contains(&injector.owner);
        owners.push(injector.owner.clone());
        is_new
    });
    let faults = faults(args)?;
    let mut text = String::new();
    if args.output == Output::Human && running.is_empty() && faults.is_empty() {
        text.push_str("no injector is running\n");
    }
    for injector in running {
        match args.output {
            Output::Json => writeln!(text, "{}", serde_json::to_string(&injector)?)?,
            Output::Human => {
                let owner = &injector.owner;
                let command = owner.command.join(" ");
                writeln!(text, "{:>8}  {}  {command}", owner.pid, owner.started)?;
            }
        }
    }
    for fault in faults {
        match args.output {
            Output::Json => writeln!(text, "{}", serde_json::to_string(&fault)?)?,
            Output::Human => describe(&mut text, &fault)?,
        }
    }
    output::print(text)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints how the agent is. Takes nothing but the right to ask it, and little time: probes do this all along.
fn health(args: &ListArgs) -> Result<ExitCode> {
    let mut client = args.agent.client(args.agent.agent.as_deref().unwrap_or(SOCKET))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = async { tokio::time::timeout(HEALTH_PATIENCE, client.health()).await };
    let health = runtime.block_on(asked).context("the agent does not answer")??;
    let text = match args.output {
        Output::Json => serde_json::to_string(&health)?,
        Output::Human => format!("{}: {} faults act", health.status, health.active),
    };
    output::print(text + "\n")?;
    Ok(if health.status == Health::OK { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(text: &mut String, fault: &Fault) -> std::fmt::Result {
    let kinds: Vec<String> = fault.kinds.iter().map(ToString::to_string).collect();
    let packets = &fault.packets;
    writeln!(
        text,
        "   fault  {}  {} ({}), until {}, for {}: {} packets matched, {} dropped",
        fault.created,
        fault.name,
        kinds.join(", "),
        fault.ends,
        fault.owner,
        packets.matched,
        packets.done.dropped
    )?;
    fault.warnings.iter().try_for_each(|message| writeln!(text, "   warning  {message}"))
}

/// The faults that act by the agent that was named, or else by this host's, if there is one.
fn faults(args: &ListArgs) -> Result<Vec<Fault>> {
    let at = match &args.agent.agent {
        Some(at) => at.as_str(),
        None if Path::new(SOCKET).exists() => SOCKET,
        None => return Ok(Vec::new()),
    };
    let mut client = args.agent.client(at)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(client.list()) {
        Ok(list) => {
            Ok(list.faults.into_iter().filter(|fault| fault.phase == Phase::Active).collect())
        }
        // What a dead agent left.
        Err(ClientError::Connect { .. }) if args.agent.agent.is_none() => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

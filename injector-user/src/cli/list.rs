//! `injector list`: lists running injectors and faults.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Result;
use clap::Args;

use super::{
    args::{Output, OutputArgs},
    cleanup, privileges,
};
#[cfg(feature = "agent")]
use super::{health, remote::AgentOptions};
use crate::{lifetime::instance, output};

/// List running injectors and the faults of the agent
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    format: OutputArgs,

    /// Check only whether the agent is healthy
    #[cfg(feature = "agent")]
    #[arg(long)]
    health: bool,

    #[cfg(feature = "agent")]
    #[command(flatten)]
    agent: AgentOptions,
}

/// Prints one line per injector and one per fault of the agent.
pub fn run(args: &ListArgs) -> Result<ExitCode> {
    #[cfg(feature = "agent")]
    if args.health {
        return health::print(&args.agent, args.format.output);
    }
    privileges::prepare()?;
    cleanup::undo_first();
    let mut running = instance::running()?;
    // An agent occupies several slots.
    let mut owners = Vec::new();
    running.retain(|injector| {
        let is_new = !owners.contains(&injector.owner);
        owners.push(injector.owner.clone());
        is_new
    });
    #[cfg(feature = "agent")]
    let faults = health::faults(&args.agent, args.format.output)?;
    #[cfg(not(feature = "agent"))]
    let faults = String::new();
    let mut text = String::new();
    if args.format.output == Output::Human && running.is_empty() && faults.is_empty() {
        text.push_str("no injector is running\n");
    }
    for injector in running {
        match args.format.output {
            Output::Json => writeln!(text, "{}", serde_json::to_string(&injector)?)?,
            Output::Human => {
                let owner = &injector.owner;
                let command = owner.command.join(" ");
                writeln!(text, "{:>8}  {}  {command}", owner.pid, owner.started)?;
            }
        }
    }
    output::print(text + &faults)?;
    Ok(ExitCode::SUCCESS)
}

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
use crate::{
    fault::network::report::RuleReport,
    lifetime::instance,
    output,
    report::{self, Faulted},
};

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
    let running = instance::running::<Faulted>()?;
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
            Output::Json => text += &report::line(&injector)?,
            Output::Human => {
                let owner = &injector.owner;
                let command = owner.command.join(" ");
                writeln!(text, "{:>8}  {}  {command}", owner.pid, owner.started)?;
                injector.targets.iter().try_for_each(|target| describe(&mut text, target))?;
            }
        }
    }
    output::print(text + &faults)?;
    Ok(ExitCode::SUCCESS)
}

fn describe(text: &mut String, target: &Faulted) -> std::fmt::Result {
    let Faulted { name, title, rules, more_rules, clock, process, .. } = target;
    let name = name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
    writeln!(text, "  target  {name}{title}")?;
    rule_lines(text, rules, *more_rules)?;
    clock.iter().chain(process).try_for_each(|fault| writeln!(text, "          {fault}"))
}

/// Writes a line for each rule, with the packets that it matches.
pub fn rule_lines(text: &mut String, rules: &[RuleReport], more_rules: usize) -> std::fmt::Result {
    for RuleReport { rule, name, packets, .. } in rules {
        writeln!(text, "          rule {rule}: {name}: {packets}")?;
    }
    if more_rules > 0 {
        writeln!(text, "          and {more_rules} more rules")?;
    }
    Ok(())
}

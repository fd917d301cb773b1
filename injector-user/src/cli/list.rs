//! `injector list`: what is running.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{args::Output, cleanup, privileges};
use crate::lifetime::instance;

/// List the running injectors of this host
#[derive(Args, Debug)]
pub struct ListArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

/// Prints one line an injector.
pub fn run(args: &ListArgs) -> Result<ExitCode> {
    privileges::check()?;
    cleanup::undo_first();
    let running = instance::running()?;
    if args.output == Output::Human && running.is_empty() {
        println!("no injector is running");
    }
    for injector in running {
        match args.output {
            Output::Json => println!("{}", serde_json::to_string(&injector)?),
            Output::Human => {
                let owner = &injector.owner;
                println!("{:>8}  {}  {}", owner.pid, owner.started, owner.command.join(" "));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

//! `injector guardian`: started by injector itself, see [`crate::lifetime::guardian`].

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::lifetime::guardian;

/// Wait for the end of standard input, then undo what is in a journal
#[derive(Args, Debug)]
pub struct GuardianArgs {
    /// The journal's slot
    slot: u32,
}

/// Waits and undoes.
pub fn run(args: &GuardianArgs) -> Result<ExitCode> {
    guardian::run(args.slot)?;
    Ok(ExitCode::SUCCESS)
}

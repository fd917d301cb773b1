//! `injector cleanup`: undoes what dead injectors left.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{FAILED, privileges};
use crate::lifetime::cleanup::cleanup;

/// Undo whatever a dead injector left; every start of injector does so too
#[derive(Args, Debug)]
pub struct CleanupArgs {}

/// Cleans up and says what was done.
pub fn run(_: &CleanupArgs) -> Result<ExitCode> {
    privileges::check()?;
    let (undone, failures) = cleanup();
    for action in &undone {
        println!("undone: {action}");
    }
    let failed = !failures.is_empty();
    for failure in failures {
        eprintln!("injector: {:#}", anyhow::Error::from(failure));
    }
    if undone.is_empty() && !failed {
        println!("nothing was left");
    }
    Ok(if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// What every command begins with: undoes what dead injectors left, and says so on standard error.
pub fn undo_first() {
    let (undone, failures) = cleanup();
    for action in undone {
        eprintln!("injector: undid what a dead injector had done: {action}");
    }
    for failure in failures {
        eprintln!("injector: warning: {:#}", anyhow::Error::from(failure));
    }
}

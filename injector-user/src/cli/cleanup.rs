//! `injector cleanup`: undoes the changes that dead injectors left behind.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Result;
use clap::Args;

use super::{FAILED, privileges};
use crate::{lifetime::cleanup::cleanup, output};

/// Undo what dead injectors left behind
///
/// Every start of injector does so too.
#[derive(Args, Debug)]
pub struct CleanupArgs {}

/// Cleans up and says what was done.
pub fn run(_: &CleanupArgs) -> Result<ExitCode> {
    privileges::prepare()?;
    let (undone, failures) = cleanup();
    let mut text = String::new();
    for leftover in &undone {
        writeln!(text, "{leftover}")?;
    }
    let failed = !failures.is_empty();
    if undone.is_empty() && !failed {
        text.push_str("nothing was left\n");
    }
    for failure in failures {
        output::complain(&format!("{:#}", anyhow::Error::from(failure)));
    }
    output::print(text)?;
    Ok(if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// Undoes the changes of dead injectors and reports them on standard error. Every command starts
/// with this.
pub fn undo_first() {
    let (undone, failures) = cleanup();
    for leftover in undone {
        output::complain(&format!("cleaned up: {leftover}"));
    }
    for failure in failures {
        output::complain(&format!("warning: {:#}", anyhow::Error::from(failure)));
    }
}

//! `injector man` and `injector completions`, generated from the command-line definition.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use clap_complete::Shell;

use crate::output;

/// Print a completion script for a shell
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// bash, elvish, fish, powershell or zsh
    #[arg(hide_possible_values = true)]
    shell: Shell,
}

/// Print the man page, or write all man pages to a directory
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Directory for the man pages of all commands
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Prints the completion script.
pub fn completions(args: &CompletionsArgs, command: &mut clap::Command) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "injector", &mut script);
    output::print(script)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints or writes the man pages.
pub fn man(args: &ManArgs, command: clap::Command) -> Result<ExitCode> {
    if let Some(folder) = &args.folder {
        if !folder.is_dir() {
            let folder = folder.display();
            bail!("there is no directory {folder}: create it first, with mkdir -p {folder}");
        }
        clap_mangen::generate_to(command, folder)
            .with_context(|| format!("cannot write to {}", folder.display()))?;
    } else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        output::print(page)?;
    }
    Ok(ExitCode::SUCCESS)
}

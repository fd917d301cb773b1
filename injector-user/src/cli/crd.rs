//! `injector crd`: prints the definition of the custom resource.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{kubernetes::crd, output};

/// Print the custom resource definition of `FaultInjection`
#[derive(Args, Debug)]
pub struct CrdArgs {}

/// Prints it.
pub fn run(_: &CrdArgs) -> Result<ExitCode> {
    output::print(crd::definition_yaml()?)?;
    Ok(ExitCode::SUCCESS)
}

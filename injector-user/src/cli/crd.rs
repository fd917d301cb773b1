//! `injector crd`: the custom resource's definition.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{kubernetes::crd, output};

/// Print the definition of the Kubernetes resource `FaultInjection`, which `injector agent --kubernetes` carries out
#[derive(Args, Debug)]
pub struct CrdArgs {}

/// Prints it.
pub fn run(_: &CrdArgs) -> Result<ExitCode> {
    output::print(crd::definition_yaml()?)?;
    Ok(ExitCode::SUCCESS)
}

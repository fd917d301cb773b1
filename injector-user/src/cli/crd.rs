//! `injector crd`: the custom resource's definition.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Result;
use clap::Args;

use crate::kubernetes::crd;

/// Print the definition of the Kubernetes resource `FaultInjection`, which `injector agent --kubernetes` carries out
#[derive(Args, Debug)]
pub struct CrdArgs {}

/// Prints it.
pub fn run(_: &CrdArgs) -> Result<ExitCode> {
    io::stdout().write_all(crd::definition_yaml()?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

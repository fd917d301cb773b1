//! `injector doctor`: what works on this kernel.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{args::Output, privileges};
use crate::{
    kernel::probe::{self, Finding, Verdict},
    target::cgroup::Hierarchy,
};

/// Tell which faults, engines and hooks work on this kernel, by trying them in a scratch namespace
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

/// Prints one line a probe.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    privileges::check()?;
    for finding in findings()? {
        match args.output {
            Output::Json => println!("{}", serde_json::to_string(&finding)?),
            Output::Human => match &finding.verdict {
                Verdict::Ok => println!("ok   {:<24} {}", finding.subject, finding.serves),
                Verdict::Unavailable { reason, remedy } => {
                    println!("no   {:<24} {}", finding.subject, finding.serves);
                    println!("     {:<24} why: {reason}", "");
                    println!("     {:<24} remedy: {remedy}", "");
                }
            },
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn findings() -> Result<Vec<Finding>> {
    let cgroup = Verdict::of(
        Hierarchy::find(),
        "mount the cgroup v2 hierarchy, and run in the host's cgroup namespace",
    );
    let mut findings =
        vec![Finding { subject: "cgroup v2", serves: "run, --cgroup, --pid", verdict: cgroup }];
    findings.extend(probe::hooks()?);
    Ok(findings)
}

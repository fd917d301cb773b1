//! `injector doctor`: what works on this kernel.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{args::Output, cleanup, privileges};
use crate::{
    fault::process,
    kernel::probe::{self, Finding, Verdict},
    output,
    target::cgroup::Hierarchy,
};

/// Tell which faults, engines and hooks work on this kernel, by trying them in a scratch namespace
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

/// The hooks by which a fault can be had here, and those by which it cannot.
#[derive(Debug, Serialize)]
struct FaultFinding {
    fault: &'static str,
    works_by: Vec<&'static str>,
    not_by: Vec<&'static str>,
}

/// Prints one line a means of the kernel, then one a fault.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    privileges::check()?;
    cleanup::undo_first();
    let findings = findings()?;
    let mut text = String::new();
    for finding in &findings {
        match args.output {
            Output::Json => writeln!(text, "{}", serde_json::to_string(&finding)?)?,
            Output::Human => describe(&mut text, finding)?,
        }
    }
    for fault in probe::faults().chain(process::probe::FAULTS) {
        let finding = FaultFinding::of(fault, &findings);
        match args.output {
            Output::Json => writeln!(text, "{}", serde_json::to_string(&finding)?)?,
            Output::Human => {
                let verdict = if finding.works_by.is_empty() { "no" } else { "ok" };
                let means = finding.works_by.join(", ");
                writeln!(text, "{verdict:<4} --{fault:<18} by {means}")?;
            }
        }
    }
    output::print(text)?;
    Ok(ExitCode::SUCCESS)
}

fn describe(text: &mut String, finding: &Finding) -> std::fmt::Result {
    let Finding { subject, serves, .. } = finding;
    match &finding.verdict {
        Verdict::Ok => writeln!(text, "ok   {subject:<20} {serves}"),
        Verdict::Unavailable { reason, remedy } => {
            writeln!(text, "no   {subject:<20} {serves}")?;
            writeln!(text, "     {:<20} why: {reason}", "")?;
            writeln!(text, "     {:<20} remedy: {remedy}", "")
        }
    }
}

impl FaultFinding {
    fn of(fault: &'static str, findings: &[Finding]) -> Self {
        let serving = findings.iter().filter(|finding| finding.faults.contains(&fault));
        let (works, fails): (Vec<_>, Vec<_>) = serving.partition(|finding| finding.verdict.is_ok());
        let subjects = |findings: Vec<&Finding>| findings.iter().map(|f| f.subject).collect();
        Self { fault, works_by: subjects(works), not_by: subjects(fails) }
    }
}

fn findings() -> Result<Vec<Finding>> {
    let cgroup = Finding {
        subject: "cgroup v2",
        faults: &[],
        serves: "run, --cgroup, --pid",
        verdict: Verdict::of(
            Hierarchy::find(),
            "mount the cgroup v2 hierarchy, and run in the host's cgroup namespace",
        ),
    };
    let mut findings = vec![cgroup];
    findings.extend(probe::hooks()?);
    findings.extend(probe::clocks());
    findings.extend(process::probe::findings());
    Ok(findings)
}

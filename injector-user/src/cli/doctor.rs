//! `injector doctor`: reports which faults work on this kernel.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{
    args::{Output, OutputArgs},
    cleanup, privileges, trial,
};
use crate::{
    fault::process,
    kernel::{
        needs::Needs,
        probe::{self, Finding, Mechanism, Verdict},
    },
    output,
    spec::{
        self, clock,
        info::{Info, Trial},
        rule,
    },
    target::cgroup::Hierarchy,
};

/// Test which faults, engines and hooks work on this kernel
///
/// Applies each fault once, in a scratch network namespace and to processes of its own, and observes the effect. The
/// exit code is 0 whatever works, and 1 if the test itself fails. JSON has one object per line: a `subject` (a hook or
/// an engine) or a `fault`, with its `verdict` (`ok` or `unavailable`) and `reason`; a `remedy`, which this kernel
/// lacks, and what serves `instead`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    format: OutputArgs,
}

/// Whether a fault works here, and through which kernel mechanism.
#[derive(Debug, Serialize)]
struct FaultFinding {
    fault: &'static str,
    /// Result of the trial.
    verdict: &'static str,
    /// Why the trial failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    works_by: Vec<&'static str>,
    not_by: Vec<&'static str>,
    /// What else serves, if the fault does not work.
    #[serde(skip_serializing_if = "str::is_empty")]
    instead: &'static str,
}

/// Kernel mechanisms with a trial: the subject, the engine to request, and the name of the trial.
const TRIALS: [(&str, Option<&str>, &str); 7] = [
    ("engine edt", Some("edt"), "delay"),
    ("engine tap", Some("tap"), "delay"),
    ("engine vdso", Some("vdso"), "clock"),
    ("engine probe", Some("probe"), "clock"),
    ("engine lsm", Some("lsm"), "errno"),
    ("engine fmod-ret", Some("fmod-ret"), "errno"),
    ("sys_enter", None, trial::KILL_AFTER),
];

/// Prints one line per kernel mechanism, then one per fault.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    privileges::prepare()?;
    cleanup::undo_first();
    let mut findings = findings()?;
    let faults = probe::on_loopback(|| try_all(&mut findings))?;
    let mut text = String::new();
    for finding in &findings {
        match args.format.output {
            Output::Json => writeln!(text, "{}", serde_json::to_string(&finding)?)?,
            Output::Human => describe(&mut text, finding)?,
        }
    }
    for finding in &faults {
        match args.format.output {
            Output::Json => writeln!(text, "{}", serde_json::to_string(&finding)?)?,
            Output::Human => finding.describe(&mut text)?,
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
            if remedy.is_empty() {
                return Ok(());
            }
            writeln!(text, "     {:<20} remedy: {remedy}", "")
        }
    }
}

/// The packet faults with a trial that a mechanism serves.
fn served(by: Mechanism) -> Vec<&'static str> {
    let tried = rule::FAULTS.iter().filter(|fault| fault.trial.is_some());
    let served = tried.filter(|fault| match by {
        Mechanism::Hook => !fault.holds,
        Mechanism::Xdp => fault.by_xdp,
        Mechanism::Hold => fault.holds,
    });
    served.map(|fault| fault.name).collect()
}

/// All faults with a trial.
fn trials() -> impl Iterator<Item = (&'static Info, Trial)> {
    let packets = rule::FAULTS.iter().map(|fault| &fault.info);
    let others = clock::FAULTS.iter().chain(spec::process::FAULTS).copied();
    packets.chain(others).filter_map(|fault| Some((fault, fault.trial?)))
}

/// The trial of a fault, or of `--kill after=`.
fn trial_of(fault: &str) -> Option<Trial> {
    let after = (trial::KILL_AFTER, trial::KILL_AFTER_TRIAL);
    let all = trials().map(|(info, trial)| (info.name, trial)).chain([after]);
    all.into_iter().find_map(|(name, trial)| (name == fault).then_some(trial))
}

/// Tries each fault once, and corrects the findings for mechanisms whose trial fails.
fn try_all(findings: &mut [Finding]) -> Vec<FaultFinding> {
    for finding in findings.iter_mut().filter(|finding| finding.verdict.is_ok()) {
        let means = TRIALS.iter().find(|(subject, ..)| *subject == finding.subject);
        if let Some(&(_, engine, fault)) = means
            && let Some(trial) = trial_of(fault)
            && let Err(reason) = trial::carry_out(
                fault,
                trial,
                &engine.map_or(vec![], |engine| vec!["--engine", engine]),
            )
        {
            finding.verdict = Verdict::Unavailable { reason, remedy: String::new() };
        }
    }
    trials()
        .map(|(info, trial)| {
            FaultFinding::of(info, findings, trial::carry_out(info.name, trial, &[]))
        })
        .collect()
}

impl FaultFinding {
    fn describe(&self, text: &mut String) -> std::fmt::Result {
        let Self { fault, reason, works_by, instead, .. } = self;
        match reason {
            Some(reason) => {
                writeln!(text, "no   --{fault}")?;
                writeln!(text, "     {:<20} why: {reason}", "")?;
                // The reason may name it already.
                if instead.is_empty() || reason.contains(instead) {
                    return Ok(());
                }
                writeln!(text, "     {:<20} instead: {instead}", "")
            }
            None if works_by.is_empty() => writeln!(text, "ok   --{fault}"),
            None => writeln!(text, "ok   --{fault:<18} by {}", works_by.join(", ")),
        }
    }

    fn of(info: &'static Info, findings: &[Finding], outcome: Result<(), String>) -> Self {
        let Info { name: fault, instead, .. } = *info;
        let serving = findings.iter().filter(|finding| finding.faults.contains(&fault));
        let (works, fails): (Vec<_>, Vec<_>) = serving.partition(|finding| finding.verdict.is_ok());
        let subjects = |findings: Vec<&Finding>| findings.iter().map(|f| f.subject).collect();
        let (works_by, not_by) = (subjects(works), subjects(fails));
        match outcome {
            Ok(()) => Self { fault, verdict: "ok", reason: None, works_by, not_by, instead: "" },
            Err(reason) => Self {
                fault,
                verdict: "unavailable",
                reason: Some(reason),
                works_by: Vec::new(),
                not_by: [works_by, not_by].concat(),
                instead,
            },
        }
    }
}

fn findings() -> Result<Vec<Finding>> {
    let cgroup = Finding {
        subject: "cgroup v2",
        faults: Vec::new(),
        serves: "run, --cgroup, --pid",
        verdict: Verdict::of(
            Hierarchy::find(),
            &Needs::other("mount the cgroup v2 hierarchy, and run in the host's cgroup namespace"),
        ),
    };
    let mut findings = vec![cgroup];
    findings.extend(probe::hooks(served)?);
    findings.extend(probe::clocks());
    findings.extend(process::probe::findings());
    Ok(findings)
}

//! `cargo xtask bench packets`: the overhead of the packet programs.

pub mod agent;
pub mod clock;
pub mod delay;
mod frames;
mod injector;
mod link;
mod namespace;
mod numbers;
pub mod page;
mod peer;
mod places;
mod report;
mod rules;
pub mod scenario;
mod startup;
mod target;
mod test_run;
mod throughput;
mod traffic;
pub mod wire;

use std::{
    process::{self, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use injector::Injector;
use report::Report;

/// Measure the overhead of packet faults: throughput, time a packet, start-up
///
/// Needs root. Runs in its own network namespaces, which end with it in any case.
/// Exits with 1 if a target is missed.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Take 1 minute instead of 5, with more noise
    #[arg(long)]
    quick: bool,

    /// Output format
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,

    /// Parts to measure
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
}

/// The format of the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables in Markdown.
    #[default]
    Human,
    /// One JSON object.
    Json,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Traffic over a veth pair.
    Throughput,
    /// Nanoseconds a packet by `BPF_PROG_TEST_RUN`.
    TestRun,
    /// From exec to active fault.
    Startup,
}

/// Runs the benchmark and prints the report.
pub fn packets(args: &Args) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark loads eBPF programs: run it as root");
    let wants = |part| args.only.is_empty() || args.only.contains(&part);
    let needs_injector = wants(Part::Startup) || wants(Part::Throughput);
    let injector = needs_injector.then(Injector::build).transpose()?;
    exit_after(Duration::from_mins(if args.quick { 2 } else { 10 }));
    let mut report = Report::new(args.quick)?;
    if wants(Part::TestRun) {
        report.test_run = test_run::measure(args.quick).context("BPF_PROG_TEST_RUN")?;
    }
    if let Some(injector) = &injector
        && wants(Part::Startup)
    {
        report.startup = Some(startup::measure(injector, args.quick).context("start-up")?);
    }
    if let Some(injector) = &injector
        && wants(Part::Throughput)
    {
        report.throughput = Some(throughput::measure(injector, args.quick).context("throughput")?);
    }
    report.check_targets();
    match args.output {
        Output::Human => print!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends the process after this time, and with it everything that it created.
fn exit_after(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("bench: still not done after {limit:?}; something is stuck");
        process::exit(1);
    });
}

/// Prints progress.
fn progress(what: &str) {
    eprintln!("bench: {what}");
}

//! `cargo xtask bench packets`: what the packet programs cost.

pub mod agent;
pub mod clock;
pub mod delay;
mod frames;
mod injector;
mod link;
mod namespace;
mod numbers;
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

use std::{
    process::{self, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use injector::Injector;
use report::Report;

/// Measures what the injector costs per packet: throughput, nanoseconds, start-up
///
/// Needs root, and makes its own network namespaces, which are gone when it ends, however it ends.
/// Exits with 1 if a target is missed.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Take a minute instead of 5, with more noise in the figures
    #[arg(long)]
    quick: bool,

    /// How to report
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,

    /// Measure these parts only
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
}

/// How the report is printed.
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
    watch(Duration::from_mins(if args.quick { 2 } else { 10 }));
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
    report.judge();
    match args.output {
        Output::Human => print!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends the process if it takes longer than this; all that it made goes with it.
fn watch(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("bench: still not done after {limit:?}; something is stuck");
        process::exit(1);
    });
}

/// Tells the operator how far the benchmark is.
fn say(what: &str) {
    eprintln!("bench: {what}");
}

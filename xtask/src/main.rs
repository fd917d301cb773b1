//! `cargo xtask`: benchmarks and tests in virtual machines.

mod bench;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Benchmarks, and tests in virtual machines
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(BenchArgs),
    Vm(vm::Args),
}

/// Measure the overhead of injector
#[derive(Args)]
struct BenchArgs {
    /// Write the output to the page of this machine in docs/performance as well
    #[arg(long, global = true)]
    write: bool,

    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    Packets(bench::Args),
    Clock(bench::clock::Args),
    Delay(bench::delay::Args),
    Scenario(bench::scenario::Args),
    Agent(bench::agent::Args),
    Wire(bench::wire::Args),
}

impl Bench {
    fn name(&self) -> &'static str {
        match self {
            Self::Packets(_) => "packets",
            Self::Clock(_) => "clock",
            Self::Delay(_) => "delay",
            Self::Scenario(_) => "scenario",
            Self::Agent(_) => "agent",
            Self::Wire(_) => "wire",
        }
    }

    fn run(&self) -> Result<ExitCode> {
        match self {
            Self::Packets(args) => bench::packets(args),
            Self::Clock(args) => bench::clock::clock(args),
            Self::Delay(args) => bench::delay::delay(args),
            Self::Scenario(args) => bench::scenario::run(args),
            Self::Agent(args) => bench::agent::run(args),
            Self::Wire(args) => bench::wire::run(args),
        }
    }
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Bench(BenchArgs { write: true, bench }) => bench::page::write(bench.name()),
        Command::Bench(BenchArgs { write: false, bench }) => bench.run(),
        Command::Vm(args) => vm::run(&args),
    }
}

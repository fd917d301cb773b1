//! `cargo xtask`: benchmarks and tests in virtual machines.

mod bench;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Benchmarks, and tests in virtual machines
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the overhead of injector
    #[command(subcommand)]
    Bench(Bench),
    Vm(vm::Args),
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

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Bench(Bench::Packets(args)) => bench::packets(&args),
        Command::Bench(Bench::Clock(args)) => bench::clock::clock(&args),
        Command::Bench(Bench::Delay(args)) => bench::delay::delay(&args),
        Command::Bench(Bench::Scenario(args)) => bench::scenario::run(&args),
        Command::Bench(Bench::Agent(args)) => bench::agent::run(&args),
        Command::Bench(Bench::Wire(args)) => bench::wire::run(&args),
        Command::Vm(args) => vm::run(&args),
    }
}

//! `cargo xtask`: what cargo cannot do alone.

mod bench;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// What cargo cannot do alone
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures what the injector costs
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    Packets(bench::Args),
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Bench(Bench::Packets(args)) => bench::packets(&args),
    }
}

//! Options of benchmarks that run on this machine and in virtual machines.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use super::injector::Injector;

/// Where to run a benchmark, how thoroughly, and with which binary.
#[derive(clap::Args, Debug)]
pub struct Places {
    /// Measure on this machine only
    #[arg(long)]
    here: bool,

    /// Measure in the virtual machines only
    #[arg(long, conflicts_with = "here")]
    vm: bool,

    /// Take less time, with more noise in the figures
    #[arg(long)]
    pub quick: bool,

    /// The binary to measure, instead of building it
    #[arg(long, value_name = "PATH")]
    pub injector: Option<PathBuf>,
}

impl Places {
    /// The binary to measure.
    pub fn injector(&self) -> Result<Injector> {
        self.injector.clone().map_or_else(Injector::build, |path| Ok(Injector::at(path)))
    }

    /// Runs a benchmark here, and then `cargo xtask bench NAME` in the virtual machines, once with each
    /// list of options. Emulation is slow, so these must be short.
    pub fn run(
        &self,
        name: &str,
        runs: &[&[&str]],
        here: impl FnOnce() -> Result<bool>,
    ) -> Result<ExitCode> {
        let mut good = true;
        if !self.vm {
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
            println!("\n## Linux {}\n", release.trim());
            good &= here()?;
        }
        if !self.here {
            let quick = self.quick.then_some("--quick");
            let runs: Vec<Vec<&str>> =
                runs.iter().map(|run| run.iter().copied().chain(quick).collect()).collect();
            good &= crate::vm::bench(name, &runs)?;
        }
        Ok(ExitCode::from(u8::from(!good)))
    }
}

//! Options shared by several commands.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::fault::{clock, network::hold};
use crate::kernel::hook;
use crate::spec::{
    Faults, SpecError,
    clock::ClockSpec,
    distribution::Files,
    file,
    file::FaultsSpec,
    process::ProcessSpec,
    rule::{RuleError, RuleSpec},
    value::{HumanDuration, Lifetime},
};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Human,
    /// JSON, one object a line.
    Json,
}

/// `--output` of commands that list what there is.
#[derive(Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// Output format
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "human|json",
        hide_possible_values = true
    )]
    pub output: Output,
}

/// Ways to fault of which there is more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The best that work here
    Auto,
    /// Delays in the kernel, by `sch_fq`: exact, and cheap
    Edt,
    /// Delays in userspace, behind a TAP device: for kernels without `sch_fq`
    Tap,
    /// Clocks by patching the vDSO of each process
    Vdso,
    /// Clocks by probes on system calls; alone, new programs are left without vDSO
    Probe,
    /// Failing system calls by programs of the BPF LSM
    Lsm,
    /// Failing system calls by programs that replace what a security hook returns, for kernels where the BPF LSM is not
    /// active
    FmodRet,
}

/// The faults: from the command line, or from a file.
#[derive(Args, Debug)]
pub struct FaultArgs {
    /// Read the faults from this file
    ///
    /// The file is YAML or JSON and has up to 65,536 rules. On SIGHUP it is read again, and all rules change at once.
    #[arg(long, value_name = "FILE", help_heading = "Faults")]
    pub rules: Option<PathBuf>,

    #[command(flatten)]
    pub rule: RuleSpec,

    #[command(flatten)]
    pub clock: ClockSpec,

    #[command(flatten)]
    pub process: ProcessSpec,
}

/// The choice of engines.
#[derive(Args, Debug, Default)]
pub struct Engines {
    /// auto, edt, tap, vdso, probe, lsm or fmod-ret
    ///
    /// The mechanism of delays (edt, tap), clock faults (vdso, probe) and system call failures (lsm, fmod-ret). The
    /// default is auto: the best that works on this kernel. For several, separate them by commas.
    #[arg(
        long = "engine",
        value_enum,
        value_delimiter = ',',
        value_name = "ENGINE",
        hide_possible_values = true
    )]
    pub engines: Vec<Engine>,
}

/// What `run` and `inject` have in common.
#[derive(Args, Debug)]
pub struct SessionArgs {
    /// End the faults after T, for instance 30s or 5m
    ///
    /// `forever` is until they are ended. It is the default except with `inject --host` and `inject --interface`, which
    /// require --for.
    #[arg(long = "for", value_name = "T|forever")]
    pub duration: Option<Lifetime>,

    /// Seed of all random decisions
    ///
    /// Decisions are a function of the seed, the rule and the packet's number.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    #[command(flatten)]
    pub engines: Engines,

    /// Report the packets that no rule matched
    ///
    /// At the end, with their peers and ports. If no packet matched at all, they and the likely cause are reported
    /// anyway. Has no effect with --agent.
    #[arg(short, long)]
    pub verbose: bool,

    /// Exit with 3 if no packet matched
    #[arg(long)]
    pub require_match: bool,

    /// Report format
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "human|json",
        hide_possible_values = true
    )]
    pub output: Output,

    /// Write reports to this file
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
}

impl FaultArgs {
    /// Loads the rule file, if one is given.
    pub fn load(&self) -> Result<Option<FaultsSpec>, SpecError> {
        let Some(path) = &self.rules else { return Ok(None) };
        let is_bare = self.rule == RuleSpec::default()
            && self.clock == ClockSpec::default()
            && self.process == ProcessSpec::default();
        if is_bare { Ok(Some(file::load(path)?)) } else { Err(SpecError::RulesAndRule) }
    }

    /// Reads and validates the faults.
    pub fn read(&self) -> Result<Faults, SpecError> {
        self.check(self.load()?.as_ref())
    }

    /// Validates the faults. `loaded` holds the rule file's contents, if one is given.
    pub fn check(&self, loaded: Option<&FaultsSpec>) -> Result<Faults, SpecError> {
        if let Some((path, spec)) = self.rules.as_ref().zip(loaded) {
            return Ok(spec.check_with(path, &mut Files::default())?);
        }
        let clock = self.clock.check()?;
        let processes = self.process.check()?;
        // Such a fault needs no packet rule, but a rule that is given must be valid.
        let is_enough = clock.is_some() || processes.is_some();
        let rules = if is_enough && self.rule == RuleSpec::default() {
            Vec::new()
        } else {
            self.rule.check().map_err(|error| match error {
                RuleError::NoFault => SpecError::NoFault,
                error => error.into(),
            })?
        };
        Ok(Faults { seed: None, rules, clock, processes })
    }
}

impl SessionArgs {
    /// Duration of the faults; `None` if they last until they are ended.
    #[must_use]
    pub fn lasts(&self) -> Option<HumanDuration> {
        match self.duration {
            Some(Lifetime::For(span)) => Some(span),
            Some(Lifetime::Forever) | None => None,
        }
    }
}

impl Engines {
    /// The engine for delays, if one is given.
    pub fn delay(&self) -> Result<Option<hold::Engine>, SpecError> {
        let engine = |engine| match engine {
            Engine::Edt => Some(hold::Engine::Edt),
            Engine::Tap => Some(hold::Engine::Tap),
            _ => None,
        };
        let engines: Vec<_> = self.engines.iter().copied().filter_map(engine).collect();
        match engines[..] {
            [] => Ok(None),
            [engine] => Ok(Some(engine)),
            _ => Err(SpecError::Engines),
        }
    }

    /// The engine for syscall failures, if one is given.
    #[must_use]
    pub fn errno(&self) -> Option<hook::Engine> {
        self.engines.iter().find_map(|engine| match engine {
            Engine::Lsm => Some(hook::Engine::Lsm),
            Engine::FmodRet => Some(hook::Engine::FmodRet),
            _ => None,
        })
    }

    /// The engines for clocks, if any are given.
    #[must_use]
    pub fn clock(&self) -> Vec<clock::engine::Engine> {
        let engine = |engine| match engine {
            Engine::Vdso => Some(clock::engine::Engine::Vdso),
            Engine::Probe => Some(clock::engine::Engine::Probe),
            _ => None,
        };
        self.engines.iter().copied().filter_map(engine).collect()
    }
}

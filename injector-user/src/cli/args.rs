//! Options that several commands share.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::fault::network::hold::Engine;
use crate::spec::{Faults, SpecError, clock::ClockSpec, file, rule::RuleSpec, value::Span};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Human,
    /// JSON, one object a line.
    Json,
}

/// The faults: from the command line, or from a file.
#[derive(Args, Debug)]
pub struct FaultArgs {
    /// Take the rules from this file, in YAML or JSON, up to 65,536 of them; SIGHUP reads it again and
    /// changes all rules at once
    #[arg(long, value_name = "FILE", help_heading = "Faults")]
    pub rules: Option<PathBuf>,

    #[command(flatten)]
    pub rule: RuleSpec,

    #[command(flatten)]
    pub clock: ClockSpec,
}

/// What `run` and `inject` have in common.
#[derive(Args, Debug)]
pub struct SessionArgs {
    /// End the faults after this time, for instance 30s or 5m
    #[arg(long = "for", value_name = "T")]
    pub duration: Option<Span>,

    /// Make the decisions repeatable: they are a function of seed, rule and packet number alone
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// How delayed packets are held back [default: the best that works here]
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub engine: Option<Engine>,

    /// Exit with 3 if no packet matched
    #[arg(long)]
    pub require_match: bool,

    /// How to report
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,

    /// Report to this file
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
}

impl FaultArgs {
    /// The faults, checked.
    pub fn read(&self) -> Result<Faults, SpecError> {
        let is_bare = self.rule == RuleSpec::default() && self.clock == ClockSpec::default();
        if let Some(path) = &self.rules {
            return if is_bare { Ok(file::read(path)?) } else { Err(SpecError::RulesAndRule) };
        }
        let clock = self.clock.check()?;
        // A clock fault needs no rule beside it; a rule that was begun must be right.
        let rules = match &clock {
            Some(_) if self.rule == RuleSpec::default() => Vec::new(),
            _ => self.rule.check()?,
        };
        Ok(Faults { seed: None, rules, clock })
    }
}

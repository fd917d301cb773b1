//! Options that several commands share.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::fault::network::hold::Engine;
use crate::spec::{
    SpecError, file,
    rule::{Rule, RuleSpec},
    value::Span,
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

/// The faults: from the command line, or from a file.
#[derive(Args, Debug)]
pub struct RulesArgs {
    /// Take the rules from this file, in YAML or JSON, up to 65,536 of them; SIGHUP reads it again and
    /// changes all rules at once
    #[arg(long, value_name = "FILE", help_heading = "Faults")]
    pub rules: Option<PathBuf>,

    #[command(flatten)]
    pub rule: RuleSpec,
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

impl RulesArgs {
    /// The rules, checked, and the file's seed if it has one.
    pub fn read(&self) -> Result<(Option<u64>, Vec<Rule>), SpecError> {
        match &self.rules {
            Some(_) if self.rule != RuleSpec::default() => Err(SpecError::RulesAndRule),
            Some(path) => Ok(file::read(path)?),
            None => Ok((None, self.rule.check()?)),
        }
    }
}

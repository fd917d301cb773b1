//! What was asked: parsed and validated before anything is touched.

pub mod clock;
pub mod distribution;
pub mod fault;
pub mod file;
pub mod info;
pub mod interpolate;
pub mod list;
pub mod packet;
pub mod parameters;
pub mod process;
pub mod rule;
pub mod scenario;
pub mod source;
pub mod target;
pub mod value;
#[cfg(test)]
mod values_tests;
mod yaml;
pub use yaml::YamlError;

use thiserror::Error;

/// All faults of a session, checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// What random decisions follow from, if a file says so.
    pub seed: Option<u64>,
    /// Packet faults, in order.
    pub rules: Vec<rule::Rule>,
    /// The clock fault.
    pub clock: Option<clock::ClockFault>,
    /// The faults of processes.
    pub processes: Option<process::ProcessFaults>,
}

/// What was asked makes no sense, whatever the machine. Exit code 2.
#[derive(Debug, Error)]
pub enum SpecError {
    /// One rule contradicts itself.
    #[error(transparent)]
    Rule(#[from] rule::RuleError),
    /// A clock fault contradicts itself.
    #[error(transparent)]
    Clock(#[from] clock::ClockError),
    /// A process fault contradicts itself.
    #[error(transparent)]
    Process(#[from] process::ProcessError),
    /// The target contradicts itself.
    #[error(transparent)]
    Target(#[from] target::TargetError),
    /// A rule file and a rule on the command line.
    #[error(
        "--rules takes all faults and matches from the file; leave the other fault and match options out"
    )]
    RulesAndRule,
    /// Two engines for one thing.
    #[error("--engine: packets are delayed by one engine, edt or tap")]
    Engines,
    /// A wide target without an end.
    #[error(
        "--{0} faults everything that passes there, so it requires --for: give a time, for instance --for 30s, or \
         --for forever to fault until injector is stopped"
    )]
    NoEnd(&'static str),
    /// The rule file cannot be used.
    #[error(transparent)]
    File(#[from] file::FileError),
    /// The scenario cannot be used.
    #[error(transparent)]
    Scenario(#[from] scenario::ScenarioError),
}

//! Fault specifications, parsed and validated before anything is changed.

pub mod clock;
pub mod distribution;
pub mod fault;
pub mod file;
pub mod info;
pub mod interpolate;
pub mod list;
pub mod matching;
pub mod packet;
pub mod parameters;
pub mod peer;
pub mod process;
pub mod rule;
pub mod scenario;
pub mod source;
pub mod target;
pub mod trace;
pub mod value;
#[cfg(test)]
mod values_tests;
mod yaml;
pub use yaml::YamlError;

use thiserror::Error;

use clock::ClockFaultPart as _;

/// All validated faults of a session.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Seed of random decisions, if a file sets it.
    pub seed: Option<u64>,
    /// Packet faults, in order.
    pub rules: Vec<rule::Rule>,
    /// The clock fault.
    pub clock: Option<clock::ClockFault>,
    /// The process faults.
    pub processes: Option<process::ProcessFaults>,
}

/// The specification is invalid on any machine. Exit code 2.
#[derive(Debug, Error)]
pub enum SpecError {
    /// No fault was given.
    #[error("no fault was asked for: give at least one of {}", all_faults())]
    NoFault,
    /// A packet rule is invalid.
    #[error(transparent)]
    Rule(#[from] rule::RuleError),
    /// A clock fault is invalid.
    #[error(transparent)]
    Clock(#[from] clock::ClockError),
    /// A process fault is invalid.
    #[error(transparent)]
    Process(#[from] process::ProcessError),
    /// The target is invalid.
    #[error(transparent)]
    Target(#[from] target::TargetError),
    /// A rule file was combined with a rule on the command line.
    #[error(
        "--rules takes all faults and matches from the file; leave the other fault and match options out"
    )]
    RulesAndRule,
    /// Two engines for the same kind of fault.
    #[error("--engine: packets are delayed by one engine, edt or tap")]
    Engines,
    /// A target that covers all traffic, without an end.
    #[error(
        "--{0} faults everything that passes there, so it requires --for: give a time, for instance --for 30s, or \
         --for forever to fault until injector is stopped"
    )]
    NoEnd(&'static str),
    /// The rule file is invalid.
    #[error(transparent)]
    File(#[from] file::FileError),
    /// The scenario is invalid.
    #[error(transparent)]
    Scenario(#[from] scenario::ScenarioError),
}

/// The options of all faults, by what they fault.
fn all_faults() -> String {
    let list = |faults: &[&info::Info]| {
        let is_fault = |fault: &&&info::Info| fault.name != clock::AllowBackward::INFO.name;
        let faults = faults.iter().filter(is_fault);
        faults.map(|fault| format!("--{}", fault.name)).collect::<Vec<_>>().join(", ")
    };
    format!(
        "{} for packets; {} for clocks; {} for processes",
        rule::standalone(),
        list(clock::FAULTS),
        list(process::FAULTS)
    )
}

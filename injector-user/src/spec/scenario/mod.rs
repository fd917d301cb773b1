//! Scenarios: timelines of faults on targets.

pub mod partition;
pub mod plan;
mod ramp;
pub mod random;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use thiserror::Error;

use super::{
    file::{FaultsSpec, FileError},
    interpolate::Difference,
    list::{OneOrMany, list, one_or_many},
    source,
    target::{TargetError, TargetSpec},
    value::HumanDuration,
    yaml::{self, YamlError},
};
use partition::Shape;

/// Why a scenario cannot be used.
#[derive(Debug, Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("cannot read the scenario {path}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not a valid scenario.
    #[error("not a valid scenario")]
    Parse(#[source] YamlError),
    /// The scenario has no targets.
    #[error("{0}: there are no targets")]
    NoTargets(PathBuf),
    /// The scenario has a length of 0.
    #[error("{0}: `for` must be more than 0s")]
    NoTime(PathBuf),
    /// A target is invalid.
    #[error("{path}: target {name}")]
    Target {
        /// Path of the file.
        path: PathBuf,
        /// Name of the target.
        name: String,
        /// The cause.
        source: TargetError,
    },
    /// A fault is invalid.
    #[error("{path}: fault {name}")]
    Fault {
        /// Path of the file.
        path: PathBuf,
        /// Name of the fault.
        name: String,
        /// The cause.
        source: Box<StepError>,
    },
    /// A step is invalid.
    #[error("{path}: step {number} of the timeline")]
    Step {
        /// Path of the file.
        path: PathBuf,
        /// Number of the step, from 1.
        number: usize,
        /// The cause.
        source: Box<StepError>,
    },
}

/// Why a step is invalid.
#[derive(Debug, Error)]
pub enum StepError {
    /// A fault of the step is invalid.
    #[error(transparent)]
    Faults(#[from] FileError),
    /// A seed in a fault, which would have no effect.
    #[error("a fault has no seed of its own: the scenario has one")]
    Seed,
    /// A rule with its own duration.
    #[error("a rule in a scenario has no `for`: the step of the timeline says for how long")]
    RuleFor,
    /// Not exactly one action.
    #[error("give exactly one of faults, ramp, partition and choose")]
    What,
    /// A choice with targets but without faults.
    #[error("a choice with nothing to do takes a weight only")]
    ChoiceWhat,
    /// The target does not exist.
    #[error("there is no target {0}")]
    NoTarget(String),
    /// The fault does not exist.
    #[error("there is no fault {0}")]
    NoFault(String),
    /// A ramp without a duration.
    #[error("a ramp takes the time that `for` says: give it")]
    RampFor,
    /// A ramp with too few or too many steps.
    #[error("a ramp takes 2 to 1000 steps")]
    RampSteps,
    /// The ends of a ramp cannot be interpolated.
    #[error("the ends of a ramp must be alike but for amounts: {0}")]
    Ramp(#[from] Difference),
    /// A repetition without an end.
    #[error("`every` without `times` needs the scenario's `for`, else there is no end to it")]
    Endless,
    /// A repetition count without an interval.
    #[error("`times` goes with `every`")]
    TimesWithoutEvery,
    /// Repetitions overlap.
    #[error("`every` must be more than 0, and `for` be given and not longer than it")]
    Overlap,
    /// A step with a duration of 0.
    #[error("`for` must be more than 0")]
    NoTime,
    /// A step that starts after the end of the scenario.
    #[error("it comes at {at}, but the scenario ends at {end}")]
    TooLate {
        /// Start of the step.
        at: HumanDuration,
        /// End of the scenario.
        end: HumanDuration,
    },
    /// The weights of all choices are 0.
    #[error("the weights of a choice must not all be 0")]
    NoWeight,
    /// A partition has too few nodes.
    #[error("the partition {shape} takes {least} different nodes at the least")]
    TooFewNodes {
        /// Shape of the partition.
        shape: &'static str,
        /// Minimum number of nodes.
        least: usize,
    },
    /// A node is listed twice.
    #[error("the node {0} is there twice")]
    NodeTwice(String),
    /// A node is neither a target nor a peer.
    #[error("the node {0} is neither a target nor an address, nor a peer such as container:NAME")]
    NoNode(String),
    /// A partition without a shape.
    #[error("a partition takes a `shape`, or `isolate` with a node")]
    NoShape,
    /// A partition without nodes.
    #[error("a partition takes `nodes`; only `isolate` goes without, and then means all targets")]
    NoNodes,
    /// A node to isolate with a shape that isolates none.
    #[error("`isolate` goes with the shape `one` or without a shape, but not with `{0}`")]
    Isolate(&'static str),
    /// A primary is missing, unknown, or not supported by the shape.
    #[error(
        "the partition primary-minority, and no other, takes a `primary`, which is one of its nodes"
    )]
    Primary,
    /// A partition of two nodes that are both not targets.
    #[error("nothing can be cut between {0} and {1}: neither of them is a target")]
    NoCut(String, String),
    /// A partition with separate targets.
    #[error("a partition takes no `on`: its nodes say where")]
    PartitionOn,
    /// Two simultaneous faults of a kind of which a target can have only one.
    #[error(
        "at {at} two faults are about the {what} of {target}, of which there may be one at a time"
    )]
    Two {
        /// Time of the conflict.
        at: HumanDuration,
        /// The kind of fault.
        what: &'static str,
        /// The target.
        target: String,
    },
    /// The plan has too many changes.
    #[error("the timeline has more than {} changes", plan::MAX_CHANGES)]
    TooLong,
}

/// A scenario: what goes wrong with which targets, and when.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// What random choices and the decisions about packets follow from; --seed overrides it.
    #[serde(default)]
    pub seed: Option<u64>,
    /// When the scenario ends; by default when its last step does, or not by itself if a step does not end.
    #[serde(default)]
    pub r#for: Option<HumanDuration>,
    /// What is faulted, by names of your own: the options of `injector inject`.
    pub targets: BTreeMap<String, TargetSpec>,
    /// Faults, by names of your own: each is written as a rule file.
    #[serde(default)]
    pub faults: BTreeMap<String, FaultsSpec>,
    /// What happens. Of steps that are active at the same target, the rules of the first one in the file come first;
    /// partitions come before all others.
    #[serde(deserialize_with = "list")]
    #[schemars(length(min = 1))]
    pub timeline: Vec<Step>,
}

/// A step of the timeline: one of faults, ramp, partition and choose.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Step {
    /// When it begins, from the start of the scenario.
    pub at: HumanDuration,
    /// How long it lasts; until the end of the scenario if absent.
    pub r#for: Option<HumanDuration>,
    /// And again so much after each beginning.
    pub every: Option<HumanDuration>,
    /// How many times altogether; as often as there is time if absent.
    pub times: Option<u32>,
    /// At which targets; at all if absent.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(with = "OneOrMany<String>")]
    pub on: Vec<String>,
    /// These faults, all at once: names, or faults as they are written below `faults`.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(with = "OneOrMany<FaultRef>")]
    pub faults: Vec<FaultRef>,
    /// A fault that turns into another little by little.
    pub ramp: Option<Ramp>,
    /// A partition.
    pub partition: Option<PartitionSpec>,
    /// One of these, drawn at random each time.
    #[serde(deserialize_with = "list")]
    #[schemars(length(min = 1))]
    pub choose: Vec<Choice>,
}

/// A fault by its name, or in full.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
pub enum FaultRef {
    /// One of `faults`.
    Named(String),
    /// In full.
    Inline(Box<FaultsSpec>),
}

/// A fault that turns into another in even steps: the two must be alike but for amounts.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ramp {
    /// The fault of the first step.
    pub from: FaultRef,
    /// The fault of the last step.
    pub to: FaultRef,
    /// How many steps, evenly over `for`.
    pub steps: u32,
}

/// A partition: its shape, or the node to isolate.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PartitionSpec {
    /// Which nodes are cut off from which; `one` if `isolate` is given.
    #[serde(default)]
    pub shape: Option<Shape>,
    /// The node that is alone, instead of one drawn at random.
    #[serde(default)]
    pub isolate: Option<String>,
    /// Targets, and addresses or prefixes of others. With `isolate`, all targets if absent.
    #[serde(default, deserialize_with = "list")]
    #[schemars(length(min = 1))]
    pub nodes: Vec<String>,
    /// The primary, for primary-minority.
    #[serde(default)]
    pub primary: Option<String>,
}

/// What may happen: faults, a partition, or nothing.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Choice {
    /// How likely it is, compared with the others.
    #[serde(default = "one")]
    pub weight: u32,
    /// At which targets; where the step says if absent.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(with = "OneOrMany<String>")]
    pub on: Vec<String>,
    /// These faults.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(with = "OneOrMany<FaultRef>")]
    pub faults: Vec<FaultRef>,
    /// A partition.
    #[serde(default)]
    pub partition: Option<PartitionSpec>,
}

const fn one() -> u32 {
    1
}

/// Reads a scenario. [`plan::plan`] validates it.
pub fn read(path: &Path) -> Result<Scenario, ScenarioError> {
    let text = source::read(path, source::MAX_BYTES)
        .map_err(|source| ScenarioError::Read { path: path.into(), source })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Scenario, ScenarioError> {
    yaml::read(path, text).map_err(ScenarioError::Parse)
}

/// The JSON Schema of scenarios, as published in docs/.
#[must_use]
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Scenario)
}

impl<'de> Deserialize<'de> for FaultRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = FaultRef;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a fault, or a fault")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<FaultRef, E> {
                Ok(FaultRef::Named(name.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FaultRef, A::Error> {
                let faults = FaultsSpec::deserialize(MapAccessDeserializer::new(map))?;
                Ok(FaultRef::Inline(Box::new(faults)))
            }
        }

        // Serde's `untagged` would hide the reason why a fault is invalid.
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests;

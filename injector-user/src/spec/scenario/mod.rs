//! Scenarios: what goes wrong with which targets, and when.

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
    value::Span,
    yaml::{self, YamlError},
};
use partition::Shape;

/// Why a scenario cannot be used.
#[derive(Debug, Error)]
pub enum ScenarioError {
    /// It cannot be read.
    #[error("cannot read the scenario {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what a scenario looks like.
    #[error("not a valid scenario")]
    Parse(#[source] YamlError),
    /// Nothing to fault.
    #[error("{0}: there are no targets")]
    NoTargets(PathBuf),
    /// It ends at once.
    #[error("{0}: `for` must be more than 0s")]
    NoTime(PathBuf),
    /// A target makes no sense.
    #[error("{path}: target {name}")]
    Target {
        /// The file.
        path: PathBuf,
        /// Which target.
        name: String,
        /// Why.
        source: TargetError,
    },
    /// A fault makes no sense.
    #[error("{path}: fault {name}")]
    Fault {
        /// The file.
        path: PathBuf,
        /// Which fault.
        name: String,
        /// Why.
        source: Box<StepError>,
    },
    /// A step makes no sense.
    #[error("{path}: step {number} of the timeline")]
    Step {
        /// The file.
        path: PathBuf,
        /// Which step, from 1.
        number: usize,
        /// Why.
        source: Box<StepError>,
    },
}

/// Why a step makes no sense.
#[derive(Debug, Error)]
pub enum StepError {
    /// Its fault makes no sense.
    #[error(transparent)]
    Faults(#[from] FileError),
    /// A seed that nothing uses.
    #[error("a fault has no seed of its own: the scenario has one")]
    Seed,
    /// A time within a fault.
    #[error("a rule in a scenario has no `for`: the step of the timeline says for how long")]
    RuleFor,
    /// Not exactly one thing to do.
    #[error("give exactly one of faults, ramp, partition and choose")]
    What,
    /// A choice that says where, but not what.
    #[error("a choice with nothing to do takes a weight only")]
    ChoiceWhat,
    /// No such target.
    #[error("there is no target {0}")]
    NoTarget(String),
    /// No such fault.
    #[error("there is no fault {0}")]
    NoFault(String),
    /// A ramp without an end.
    #[error("a ramp takes the time that `for` says: give it")]
    RampFor,
    /// A ramp of one step.
    #[error("a ramp takes 2 to 1000 steps")]
    RampSteps,
    /// Not a way from one fault to another.
    #[error("the ends of a ramp must be alike but for amounts: {0}")]
    Ramp(#[from] Difference),
    /// A repetition without an end.
    #[error("`every` without `times` needs the scenario's `for`, else there is no end to it")]
    Endless,
    /// A count of what is done once.
    #[error("`times` goes with `every`")]
    TimesWithoutEvery,
    /// Times that overlap.
    #[error("`every` must be more than 0, and `for` be given and not longer than it")]
    Overlap,
    /// A step of no length.
    #[error("`for` must be more than 0")]
    NoTime,
    /// A step after the end.
    #[error("it comes at {at}, but the scenario ends at {end}")]
    TooLate {
        /// When it would come.
        at: Span,
        /// The end.
        end: Span,
    },
    /// A choice of nothing.
    #[error("the weights of a choice must not all be 0")]
    NoWeight,
    /// Too few nodes.
    #[error("the partition {shape} takes {least} different nodes at the least")]
    TooFewNodes {
        /// Its shape.
        shape: &'static str,
        /// How many.
        least: usize,
    },
    /// The same node twice.
    #[error("the node {0} is there twice")]
    NodeTwice(String),
    /// Neither a target nor an address.
    #[error("the node {0} is neither a target nor an address")]
    NoNode(String),
    /// A primary that is not there, or not wanted.
    #[error(
        "the partition primary-minority, and no other, takes a `primary`, which is one of its nodes"
    )]
    Primary,
    /// Two nodes neither of which can be faulted.
    #[error("nothing can be cut between {0} and {1}: neither of them is a target")]
    NoCut(String, String),
    /// A partition says itself where.
    #[error("a partition takes no `on`: its nodes say where")]
    PartitionOn,
    /// Two at once of what there can be but one of.
    #[error(
        "at {at} two faults are about the {what} of {target}, of which there may be one at a time"
    )]
    Two {
        /// When.
        at: Span,
        /// What both are about.
        what: &'static str,
        /// Which target.
        target: String,
    },
    /// Too much of it.
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
    pub r#for: Option<Span>,
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
    pub at: Span,
    /// How long it lasts; until the end of the scenario if absent.
    pub r#for: Option<Span>,
    /// And again so much after each beginning.
    pub every: Option<Span>,
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

/// A partition by its shape.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PartitionSpec {
    /// Which nodes are cut off from which.
    pub shape: Shape,
    /// Targets, and addresses or prefixes of others.
    #[serde(deserialize_with = "list")]
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

/// Reads a scenario. Whether it makes sense is told by [`plan::plan`].
pub fn read(path: &Path) -> Result<Scenario, ScenarioError> {
    let text = source::read(path, source::MAX_BYTES)
        .map_err(|source| ScenarioError::Read { path: path.into(), source })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Scenario, ScenarioError> {
    yaml::read(path, text).map_err(ScenarioError::Parse)
}

/// The JSON Schema of scenarios, as it is published in docs/.
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

        // Not by serde's `untagged`, which would not say what is wrong with a fault.
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests;

//! What the JSON output of several commands has in common: docs/json.md describes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    fault::network::report::RuleReport,
    spec::{Faults, rule::Rule, target::TargetSpec, value::is_default},
};

/// The version of the JSON output. It changes when a consumer of the previous version might
/// misunderstand the output, not when keys or events are added.
pub const SCHEMA_VERSION: u32 = 1;

/// The number of rules in descriptions that are listed with others.
pub const MAX_LISTED_RULES: usize = 16;

/// A line of JSON output, with the version of its schema.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}Line")]
pub struct Versioned<T> {
    /// The line.
    #[serde(flatten)]
    pub line: T,
    /// The version of the JSON output.
    pub schema_version: u32,
}

/// Formats a value as a line of JSON output.
pub fn line(value: &impl Serialize) -> serde_json::Result<String> {
    let line = Versioned { line: value, schema_version: SCHEMA_VERSION };
    Ok(serde_json::to_string(&line)? + "\n")
}

/// The machine, and the versions of what matters there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostReport {
    /// Its host name.
    pub name: String,
    /// The release of its kernel, as of `uname -r`.
    pub kernel: String,
    /// Its architecture, as of `uname -m`.
    pub architecture: String,
    /// The version of injector.
    pub injector: String,
}

impl HostReport {
    /// This machine.
    #[must_use]
    pub fn current() -> Self {
        let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        let uname = nix::sys::utsname::uname().ok();
        let [name, kernel, architecture] = match &uname {
            Some(uname) => [uname.nodename(), uname.release(), uname.machine()].map(text),
            None => Default::default(),
        };
        Self { name, kernel, architecture, injector: env!("CARGO_PKG_VERSION").into() }
    }
}

/// What is faulted: the keys of a target in scenarios and requests, or the command of `run`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TargetReport {
    /// The command of `injector run`, with its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The target as requested.
    #[serde(flatten)]
    pub spec: TargetSpec,
}

impl From<&TargetSpec> for TargetReport {
    fn from(spec: &TargetSpec) -> Self {
        Self { command: Vec::new(), spec: spec.clone() }
    }
}

/// A target of a running injector, with its faults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RunningTarget")]
pub struct Faulted {
    /// The name of the target in its scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Display name of the target.
    pub title: String,
    /// The target as requested.
    pub target: TargetReport,
    /// The first 16 rules, without counters. A scenario changes its rules, so it has none here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleReport>,
    /// The number of further rules.
    #[serde(default, skip_serializing_if = "is_default")]
    pub more_rules: usize,
    /// The clock fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<String>,
    /// The process faults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
}

impl Faulted {
    /// The same with the first of these rules.
    #[must_use]
    pub fn with_rules(self, rules: &[Rule]) -> Self {
        let listed = &rules[..rules.len().min(MAX_LISTED_RULES)];
        let more_rules = rules.len() - listed.len();
        Self { rules: RuleReport::list(listed), more_rules, ..self }
    }

    /// The same with these faults.
    #[must_use]
    pub fn with_faults(self, faults: &Faults) -> Self {
        Self {
            clock: faults.clock.as_ref().map(|fault| fault.name.clone()),
            process: faults.processes.as_ref().map(|faults| faults.name.clone()),
            ..self.with_rules(&faults.rules)
        }
    }
}

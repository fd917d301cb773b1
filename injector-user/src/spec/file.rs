//! Rule files in YAML, of which JSON is a subset.

use std::{
    io,
    path::{Path, PathBuf},
};

use injector_common::rule::MAX_RULES;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    Faults,
    clock::{ClockError, ClockSpec},
    distribution::Files,
    list::list,
    process::{ProcessError, ProcessSpec},
    rule::{RuleError, RuleSpec},
    source,
    yaml::{self, YamlError},
};

/// Why a rule file cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read the rules in {path}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not a valid rule file.
    #[error("not a valid rule file")]
    Parse(#[source] YamlError),
    /// A rule, or the number of rules, is invalid.
    #[error("{path}: {place}")]
    Rule {
        /// Path of the file.
        path: PathBuf,
        /// Position of the rule.
        place: String,
        /// The cause.
        source: Box<RuleError>,
    },
    /// The clock fault is invalid.
    #[error("{path}: clocks")]
    Clock {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        source: ClockError,
    },
    /// A process fault is invalid.
    #[error("{path}: processes")]
    Process {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        source: ProcessError,
    },
}

/// What a rule file says, and a fault of a scenario.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct FaultsSpec {
    /// What random decisions follow from; rule files only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Packet faults, in order: the first rule that matches a packet decides.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub rules: Vec<RuleSpec>,
    /// How clocks go wrong.
    pub clocks: ClockSpec,
    /// What becomes of processes.
    pub processes: ProcessSpec,
}

impl FaultsSpec {
    /// Validates the file's contents. `path` is used in errors.
    pub fn check_with(&self, path: &Path, files: &mut Files) -> Result<Faults, FileError> {
        let refused = |place: String, source| FileError::Rule {
            path: path.into(),
            place,
            source: Box::new(source),
        };
        let mut rules = Vec::with_capacity(self.rules.len());
        for (number, spec) in self.rules.iter().enumerate() {
            let checked = spec.check_with(files).map_err(|source| {
                let name =
                    spec.name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
                refused(format!("rule {number}{name}"), source)
            })?;
            rules.extend(checked);
        }
        let clock =
            self.clocks.check().map_err(|source| FileError::Clock { path: path.into(), source })?;
        let processes = self
            .processes
            .check_with(files)
            .map_err(|source| FileError::Process { path: path.into(), source })?;
        match rules.len() {
            0 if clock.is_none() && processes.is_none() => {
                Err(refused("rules".into(), RuleError::NoRules))
            }
            n if n > MAX_RULES => Err(refused("rules".into(), RuleError::TooMany(n))),
            _ => Ok(Faults { seed: self.seed, rules, clock, processes }),
        }
    }
}

/// Reads and validates a rule file.
pub fn read(path: &Path) -> Result<Faults, FileError> {
    load(path)?.check_with(path, &mut Files::default())
}

/// Reads a rule file.
pub fn load(path: &Path) -> Result<FaultsSpec, FileError> {
    let text = source::read(path, source::MAX_BYTES)
        .map_err(|source| FileError::Read { path: path.into(), source })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<FaultsSpec, FileError> {
    yaml::read(path, text).map_err(FileError::Parse)
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fmt::Write as _};

    use super::*;

    fn parsed(text: &str) -> Result<Faults, FileError> {
        let path = Path::new("rules.yaml");
        parse(path, text)?.check_with(path, &mut Files::default())
    }

    #[test]
    fn yaml_and_json_mean_the_same() {
        let yaml = parsed("seed: 7\nrules:\n  - name: a\n    loss: 1%\n    remote: [10.0.0.0/8]\n");
        let json = parsed(
            r#"{"seed": 7, "rules": [{"name": "a", "loss": "1%", "remote": ["10.0.0.0/8"]}]}"#,
        );
        let (yaml, json) = (yaml.expect("valid"), json.expect("valid"));
        assert_eq!(yaml, json);
        assert_eq!(yaml.seed, Some(7));
    }

    #[test]
    fn an_error_names_the_rule_and_the_value() {
        let error = parsed("rules:\n  - loss: 1%\n  - name: second\n    remote: 10.0.0.1\n");
        let error = error.expect_err("no fault");
        assert!(error.to_string().contains("rule 1 (second)"), "{error}");
        let error = parsed("rules:\n  - loss: 101%\n").expect_err("not a percentage");
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        assert!(source.contains("101%"), "{source}");
    }

    #[test]
    fn rules_that_name_the_same_file_share_what_is_in_it() {
        let path = std::env::temp_dir().join(format!("injector-rules-{}", std::process::id()));
        std::fs::write(&path, "10ms 30ms").expect("a file");
        let path = path.display();
        let rules = parsed(&format!(
            "rules:\n  - delay: samples={path}\n  - delay: 1s,jitter=1s,dist={path}\n    rate: 1mbit\n    ecn: true\n",
        ));
        std::fs::remove_file(path.to_string()).expect("it is there");
        let rules = rules.expect("valid").rules;
        let tables: Vec<_> =
            rules.iter().map(|rule| rule.impairment.table.as_ref().expect("a table")).collect();
        assert!(std::sync::Arc::ptr_eq(tables[0], tables[1]));
        let impairment = &rules[1].impairment;
        assert!(impairment.rule.flags & injector_common::rule::RULE_ECN != 0);
        assert!(impairment.hold.is_some_and(|hold| hold.rate.cost != 0));
        let error =
            parsed(&format!("rules:\n  - delay: samples={path}\n")).expect_err("it is gone");
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        assert!(source.contains(&path.to_string()), "{source}");
    }

    #[test]
    fn as_many_rules_as_promised_are_read_and_not_one_more() {
        let mut text = String::from("rules:\n");
        for _ in 0..MAX_RULES {
            text.push_str("  - loss: 1%\n");
        }
        assert_eq!(parsed(&text).map(|faults| faults.rules.len()).ok(), Some(MAX_RULES));
        writeln!(text, "  - loss: 1%").expect("a string");
        assert!(parsed(&text).is_err());
    }

    #[test]
    fn clocks_may_go_wrong_with_and_without_rules() {
        let faults =
            parsed("clocks:\n  clock: -1h,clock=all\n  allow-backward: true\n").expect("valid");
        assert!(faults.rules.is_empty());
        assert_eq!(faults.clock.map(|clock| clock.name), Some("clock -3600s,clock=all".into()));
        let faults = parsed("rules: [{loss: 1%}]\nclocks: {clock-freeze: true}\n").expect("valid");
        assert_eq!((faults.rules.len(), faults.clock.is_some()), (1, true));
        let error = parsed("clocks: {clock: '1s,drift=x'}").expect_err("no drift");
        assert!(error.source().is_some_and(|source| source.to_string().contains("drift")));
    }

    #[test]
    fn processes_may_be_faulted_with_and_without_rules() {
        let faults = parsed("processes:\n  pause: 2s,every=5s\n  kill: [at=10s]\n  cpu: 25%\n");
        let name = faults.expect("valid").processes.map(|processes| processes.name);
        assert_eq!(name.as_deref(), Some("pause 2s,every=5s kill at=10s cpu 25%"));
        let faults = parsed("processes: {errno: ['write/pwrite64=ENOSPC,30%,path=/data/*']}");
        let name = faults.expect("valid").processes.map(|processes| processes.name);
        assert_eq!(name.as_deref(), Some("errno write/pwrite64=ENOSPC,30%,path=/data/*"));
        let error = parsed("processes: {kill: [at=x]}").expect_err("no time");
        assert!(error.source().is_some_and(|source| source.to_string().contains('x')));
    }

    #[test]
    fn what_yaml_refuses_is_told_with_its_place_and_without_advice_for_programmers() {
        for (text, place, reason) in [
            (
                "rules:\n - loss: 1%\n   protocol: no\n",
                "3:14: rules[0].protocol",
                "is not a protocol",
            ),
            ("rules:\n - loss: 1%\n   remote: no\n", "3:12: rules[0].remote", "quote it"),
            ("rules:\n - loss: 1%\n   remote: 010.1.1.1\n", "3:12: rules[0].remote", "an address"),
            ("rules:\n - loss: 1%\n   remote: [1.2.3]\n", "3:13: rules[0].remote[0]", "an address"),
            ("rules:\n - loss: 1%\n   loss: 2%\n", "3:4: rules[0]", "`loss` is there twice"),
            ("rules:\n - loss: 1%\n---\nseed: 1\n", "4:1: ", "more than one YAML document"),
            ("rules:\n - loss: 1%\n   remote: []\n", "3:12: rules[0].remote", "is empty"),
        ] {
            let error = parsed(text).expect_err(text);
            let told = error.source().map(ToString::to_string).unwrap_or_default();
            assert!(told.starts_with(&format!("rules.yaml:{place}")), "{text}: {told}");
            assert!(told.contains(reason), "{text}: {told}");
            for word in ["Options", "from_str", "untagged"] {
                assert!(!told.contains(word), "{text}: {told}");
            }
        }
    }

    #[test]
    fn empty_files_are_refused() {
        for text in ["", "rules: []", "seed: 1", "rules: 5", "- loss: 1%"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}

//! Reads the operator's YAML files.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_path_to_error::Track;
use serde_saphyr::{MessageFormatter, Options, UserMessageFormatter};
use thiserror::Error;

/// A YAML error with its position and reason.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct YamlError(String);

/// Reads YAML of any size, because 65,536 rules exceed the parser's limits for untrusted input.
///
/// `path` is used in errors.
pub fn read<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, YamlError> {
    let mut options = Options::default();
    options.budget = None;
    let mut track = Track::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
        T::deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track))
    });
    read.map_err(|error| explain(path, &track.path().to_string(), &error))
}

/// Builds an error with the key, the line and the reason.
fn explain(path: &Path, key: &str, error: &serde_saphyr::Error) -> YamlError {
    use serde_saphyr::Error::{DuplicateMappingKey, MultipleDocuments};

    let name = path.display().to_string();
    let reason = match error.without_snippet() {
        MultipleDocuments { .. } => {
            "there is more than one YAML document in it: keep one, without `---` between parts"
                .into()
        }
        DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{key}` is there twice: keep one of them")
        }
        DuplicateMappingKey { key: None, .. } => "a key is there twice: keep one of them".into(),
        other => UserMessageFormatter.format_message(other).into_owned(),
    };
    let place = error.location().map_or_else(
        || name.clone(),
        |location| format!("{name}:{}:{}", location.line(), location.column()),
    );
    // A question mark stands for a key that was not read.
    YamlError(match key.trim_end_matches('?').trim_end_matches('.') {
        "" => format!("{place}: {reason}"),
        key => format!("{place}: {key}: {reason}"),
    })
}

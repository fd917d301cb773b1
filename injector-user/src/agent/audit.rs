//! Who asked what, when, and what came of it: one JSON object a line.

use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::http::{Method, StatusCode};
use serde::Serialize;

use super::{
    access::{Peer, TokenName},
    plan::Terms,
};
use crate::spec::target::TargetSpec;

/// No text is written down at greater length: a request may have millions of characters.
const LONGEST: usize = 4096;

/// Lists are written down up to this length.
const LONGEST_LIST: usize = 64;

/// What a request was about, put into its response by who handles it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Subject {
    /// The fault's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// What is faulted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<serde_json::Value>,
    /// How.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faults: Option<String>,
}

impl Subject {
    /// Says of what was asked for how it was understood.
    pub fn agree(&mut self, terms: &Terms) {
        self.fault = Some(terms.name.clone());
        self.faults = Some(cut(terms.lasting()));
    }
}

/// A request.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    /// Who asked.
    #[serde(flatten)]
    pub peer: &'a Peer,
    /// By which token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<&'a str>,
    /// The request's method.
    pub method: &'a str,
    /// Its path.
    pub path: &'a str,
    /// What came of it.
    pub status: u16,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// What it was about.
    #[serde(flatten)]
    pub subject: Option<&'a Subject>,
    /// How long it took.
    pub took_ms: f64,
}

#[derive(Serialize)]
struct Line<'a> {
    audit: &'static str,
    time: String,
    #[serde(flatten)]
    record: &'a Record<'a>,
}

/// The log.
pub struct Audit {
    sink: Mutex<Box<dyn Write + Send>>,
    reads: bool,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Audit").field("reads", &self.reads).finish_non_exhaustive()
    }
}

impl Audit {
    /// Appends to a file, or else to standard error; what only reads is left out unless `reads` is set.
    pub fn open(path: Option<&Path>, reads: bool) -> io::Result<Self> {
        let sink: Box<dyn Write + Send> = match path {
            Some(path) => {
                Box::new(OpenOptions::new().append(true).create(true).mode(0o600).open(path)?)
            }
            None => Box::new(io::stderr()),
        };
        Ok(Self { sink: sink.into(), reads })
    }

    /// Whether a request is written down: if it may change something, or was not let in.
    #[must_use]
    pub fn wants(&self, method: &Method, status: StatusCode) -> bool {
        let is_refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        self.reads || is_refused || !method.is_safe()
    }

    /// Writes it down.
    pub fn write(&self, record: &Record) {
        let line = Line { audit: "request", time: jiff::Timestamp::now().to_string(), record };
        let written = serde_json::to_string(&line).map_err(io::Error::other).and_then(|text| {
            let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
            sink.write_all((plain(&text) + "\n").as_bytes()).and_then(|()| sink.flush())
        });
        if let Err(error) = written {
            tracing::error!(%error, "cannot write the audit log");
        }
    }
}

/// JSON of ASCII characters alone: what others can have terminals do, or show in another order than it is, they cannot
/// by what is written down of them.
fn plain(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && c != '\x7f' {
            plain.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(plain, "\\u{unit:04x}");
            }
        }
    }
    plain
}

/// Text that is written down up to a length.
#[must_use]
pub fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text
}

/// What is said of a target: not what is left out, and nothing at great length.
#[must_use]
pub fn in_short(target: &TargetSpec) -> Option<serde_json::Value> {
    serde_json::to_value(target).ok().map(shortened)
}

fn shortened(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let is_said = |value: &serde_json::Value| {
                !(value.is_null()
                    || *value == serde_json::Value::Bool(false)
                    || value.as_array().is_some_and(Vec::is_empty))
            };
            map.into_iter()
                .filter(|(_, value)| is_said(value))
                .map(|(key, value)| (key, shortened(value)))
                .collect()
        }
        serde_json::Value::Array(mut values) => {
            values.truncate(LONGEST_LIST);
            values.into_iter().map(shortened).collect()
        }
        serde_json::Value::String(text) => cut(text).into(),
        value => value,
    }
}

/// A duration in milliseconds.
#[must_use]
pub fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// The token's name as a [`Record`] has it.
#[must_use]
pub fn token_name(name: Option<&TokenName>) -> Option<&str> {
    name.map(|name| name.0.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_whatever_is_asked() {
        let name = "a\nb\r{\"audit\":\"request\"}\u{1b}[2J\u{7f}\u{9b}2J\u{2028}\u{202e}💥\0";
        let line = plain(&serde_json::to_string(name).expect("text"));
        assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line}");
        assert_eq!(serde_json::from_str::<String>(&line).expect("JSON"), name);
        assert_eq!(cut("short".into()), "short");
        assert_eq!(cut("ä".repeat(1 << 20)).len(), LONGEST + "…".len());
    }
}

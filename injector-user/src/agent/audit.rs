//! Who asked what, when, and what came of it: one JSON object a line.

use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::http::{Method, StatusCode};
use serde::Serialize;
use thiserror::Error;
use tokio::sync::oneshot;

use super::{
    access::{Peer, TokenName},
    plan::Terms,
};
use crate::{
    output::{self, Importance, Writer},
    spec::target::TargetSpec,
};

/// No text is written down at greater length: a request may have millions of characters.
const LONGEST: usize = 4096;

/// Requests are answered without waiting longer than this for the log.
const WAIT: Duration = Duration::from_millis(100);

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
    /// Lines that are missing so far: they were not taken fast enough, or could not be written.
    #[serde(skip_serializing_if = "is_zero")]
    dropped: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Why the log cannot be written.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The file cannot be opened.
    #[error("cannot write the audit log to {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no thread for standard error.
    #[error("cannot write the audit log to standard error: no thread can be started")]
    Thread,
}

/// The log. Whoever reads it never holds up requests.
#[derive(Debug)]
pub struct Audit {
    writer: Writer,
    reads: bool,
}

impl Audit {
    /// Appends to a file, or else to standard error; what only reads is left out unless `reads` is set.
    pub fn open(path: Option<&Path>, reads: bool) -> Result<Self, AuditError> {
        let Some(path) = path else {
            let writer = output::stderr().cloned().ok_or(AuditError::Thread)?;
            return Ok(Self { writer, reads });
        };
        let fail = |source| AuditError::Open { path: path.into(), source };
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(path).map_err(fail)?;
        let writer = Writer::file(file, path.display().to_string()).map_err(fail)?;
        Ok(Self { writer, reads })
    }

    /// What writes it, to be waited for at the end.
    #[must_use]
    pub fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// Whether a request is written down: if it may change something, or was not let in.
    #[must_use]
    pub fn wants(&self, method: &Method, status: StatusCode) -> bool {
        let is_refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        self.reads || is_refused || !method.is_safe()
    }

    /// Writes it down.
    pub fn write(&self, record: &Record) -> Written {
        let time = jiff::Timestamp::now().to_string();
        let line = Line { audit: "request", time, record, dropped: self.writer.dropped() };
        Written(match serde_json::to_string(&line) {
            Ok(text) => Some(self.writer.push_watched(plain(&text) + "\n", Importance::Event)),
            Err(error) => {
                tracing::error!(%error, "cannot write the audit log");
                None
            }
        })
    }
}

/// A line that is on its way to the log.
#[derive(Debug)]
pub struct Written(Option<oneshot::Receiver<()>>);

impl Written {
    /// Waits until it is there, but not for long: a log that takes nothing holds up nobody.
    pub async fn wait(self) {
        if let Some(written) = self.0 {
            // Whether it was written, it is over.
            let _ = tokio::time::timeout(WAIT, written).await;
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

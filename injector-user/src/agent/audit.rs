//! The audit log: a JSON line for each request, with client, time and result.

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
    spec::{target::TargetSpec, value::is_default},
};

/// The maximum length of a logged text; requests may have millions of characters.
const MAX_TEXT_LENGTH: usize = 4096;

/// How long the answer to a request waits for the log.
const WRITE_TIMEOUT: Duration = Duration::from_millis(100);

/// The maximum length of a logged list.
const MAX_LIST_LENGTH: usize = 64;

/// The subject of a request, which its handler adds to the response.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Subject {
    /// The fault's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<serde_json::Value>,
    /// The fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faults: Option<String>,
}

impl Subject {
    /// Adds the terms of a fault as understood by the agent.
    pub fn agree(&mut self, terms: &Terms) {
        self.fault = Some(terms.name.clone());
        self.faults = Some(cut(terms.lasting()));
    }
}

/// The record of a request.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    /// The client.
    #[serde(flatten)]
    pub peer: &'a Peer,
    /// The name of its token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<&'a str>,
    /// The request's method.
    pub method: &'a str,
    /// Its path.
    pub path: &'a str,
    /// The status of the response.
    pub status: u16,
    /// The error, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// The subject.
    #[serde(flatten)]
    pub subject: Option<&'a Subject>,
    /// The duration in milliseconds.
    pub took_ms: f64,
}

#[derive(Serialize)]
struct Line<'a> {
    audit: &'static str,
    time: String,
    #[serde(flatten)]
    record: &'a Record<'a>,
    /// The number of missing lines so far, which could not be written (in time).
    #[serde(skip_serializing_if = "is_default")]
    dropped: u64,
}

/// Why the log cannot be written.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The file cannot be opened.
    #[error("cannot write the audit log to {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The writer thread for standard error cannot be started.
    #[error("cannot write the audit log to standard error: cannot start a thread")]
    Thread,
}

/// The audit log. A slow reader never blocks requests.
#[derive(Debug)]
pub struct Audit {
    writer: Writer,
    reads: bool,
}

impl Audit {
    /// Opens a file for appending, or standard error. Read-only requests are logged only if `reads` is set.
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

    /// The writer, which must be awaited at the end.
    #[must_use]
    pub fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// Whether to log a request: if it may change something, or was rejected.
    #[must_use]
    pub fn wants(&self, method: &Method, status: StatusCode) -> bool {
        let is_refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        self.reads || is_refused || !method.is_safe()
    }

    /// Writes a record.
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
            let _ = tokio::time::timeout(WRITE_TIMEOUT, written).await;
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
    if text.len() > MAX_TEXT_LENGTH {
        text.truncate(text.floor_char_boundary(MAX_TEXT_LENGTH));
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
            values.truncate(MAX_LIST_LENGTH);
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
        assert_eq!(cut("ä".repeat(1 << 20)).len(), MAX_TEXT_LENGTH + "…".len());
    }
}

//! Processes by name.

use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
};

use regex::Regex;

use super::TargetError;
use crate::spec::value::serde_as_text;

serde_as_text! {
    ProcessName: "the name of processes, or a regular expression between slashes"
        pattern ".",
}

/// The number of bytes to which the kernel truncates the name of a process (`TASK_COMM_LEN`).
const MAX_COMM: usize = 15;

/// Which processes are meant, by the name of the process or of its executable.
#[derive(Clone, Debug)]
pub enum ProcessName {
    /// This name.
    Exactly(String),
    /// Names in which the expression matches.
    Matching(Regex),
}

impl ProcessName {
    /// Whether it stands for a process, by its `comm` and by the file name of its executable.
    #[must_use]
    pub fn matches(&self, comm: &str, executable: &str) -> bool {
        match self {
            Self::Exactly(name) => {
                let length = name.len().min(MAX_COMM);
                executable == name || comm.as_bytes() == &name.as_bytes()[..length]
            }
            Self::Matching(regex) => regex.is_match(comm) || regex.is_match(executable),
        }
    }
}

impl PartialEq for ProcessName {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl FromStr for ProcessName {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let wrong = |reason: String| TargetError::Process(text.into(), reason);
        match text.strip_prefix('/') {
            _ if text.is_empty() => Err(wrong("it is empty".into())),
            None if text.contains('/') => Err(wrong("a name has no slash".into())),
            None => Ok(Self::Exactly(text.into())),
            Some(rest) => {
                let regex = rest.strip_suffix('/').filter(|regex| !regex.is_empty());
                let regex = regex.ok_or_else(|| wrong("write /REGEX/".into()))?;
                // The last line says what is wrong.
                let reason = |error: regex::Error| {
                    wrong(error.to_string().lines().last().unwrap_or_default().into())
                };
                Regex::new(regex).map(Self::Matching).map_err(reason)
            }
        }
    }
}

impl Display for ProcessName {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::Exactly(name) => f.write_str(name),
            Self::Matching(regex) => write!(f, "/{regex}/"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ProcessName {
        text.parse().expect(text)
    }

    #[test]
    fn a_name_is_the_whole_name_of_the_process_or_of_its_executable() {
        assert!(name("nginx").matches("nginx", "nginx"));
        assert!(name("nginx").matches("worker", "nginx"));
        assert!(name("worker").matches("worker", "nginx"));
        assert!(!name("ngin").matches("nginx", "nginx"));
        assert!(name("systemd-journald").matches("systemd-journal", "systemd-journald"));
    }

    #[test]
    fn an_expression_matches_a_part() {
        assert!(name("/^post(gres|master)$/").matches("postmaster", "postgres"));
        assert!(name("/work/").matches("worker-1", "nginx"));
        assert!(!name("/^work$/").matches("worker-1", "nginx"));
        assert_eq!(name("/a.b/").to_string(), "/a.b/");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "//", "/a", "/usr/bin/nginx", "a/b", "/(/"] {
            assert!(text.parse::<ProcessName>().is_err(), "{text}");
        }
    }
}

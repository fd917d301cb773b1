//! The results of a guest, parsed from its output.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::Value;

/// The prefix of lines written by the guest's init.
const MARK: &str = "@@vm ";

/// The prefix of lines by which tests report a skip.
const SKIP: &str = "SKIPPED ";

/// The results of a guest so far.
#[derive(Debug, Default)]
pub struct GuestResults {
    /// The kernel's release, once it has booted.
    pub release: Option<String>,
    /// The boot time in seconds.
    pub boot: Option<f64>,
    /// JSON lines of the output.
    pub json: Vec<Value>,
    /// Problems other than failed tests.
    pub problems: Vec<String>,
    /// Whether all jobs have ended.
    pub is_done: bool,
    passed: u64,
    failed: u64,
    ignored: u64,
    skips: BTreeSet<String>,
    /// Failed tests of the running job.
    failed_in_job: u64,
    seconds: u64,
    failures: Vec<String>,
}

impl GuestResults {
    /// Parses a line. Returns the text to print for it.
    pub fn parse_line(&mut self, line: &str) -> Option<String> {
        if let Some(at) = line.find(MARK) {
            return self.parse_init_line(&line[at + MARK.len()..]);
        }
        if let Some(numbers) = line.split_once("test result: ").map(|(_, rest)| rest) {
            let count = |word: &str| {
                let before = numbers.split(word).next().unwrap_or_default();
                before.trim_end().rsplit(' ').next().and_then(|number| number.parse().ok())
            };
            self.passed += count(" passed").unwrap_or(0);
            self.failed_in_job += count(" failed").unwrap_or(0);
            self.ignored += count(" ignored").unwrap_or(0);
        } else if let Some(skip) = line.split_once(SKIP).map(|(_, skip)| skip) {
            self.skips.insert(skip.to_owned());
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        } else if line.starts_with('{')
            && let Ok(json) = serde_json::from_str(line)
        {
            self.json.push(json);
        }
        Some(line.to_owned())
    }

    fn parse_init_line(&mut self, line: &str) -> Option<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        match *words.as_slice() {
            ["ready", uptime, release] => {
                self.release = Some(release.to_owned());
                self.boot = uptime.parse().ok();
                Some(format!("Linux {release} booted in {uptime} s"))
            }
            ["start", name] => {
                self.failed_in_job = 0;
                Some(format!("running {name}"))
            }
            ["end", name, code, seconds] => {
                self.failed += self.failed_in_job;
                self.seconds += seconds.parse().unwrap_or(0);
                if code != "0" && self.failed_in_job == 0 {
                    self.problems.push(format!("{name} ended with {code}"));
                }
                Some(format!("{name} took {seconds} s"))
            }
            ["problem", ..] => {
                self.problems.push(line.to_owned());
                Some(line.to_owned())
            }
            ["done"] => {
                self.is_done = true;
                None
            }
            _ => Some(line.to_owned()),
        }
    }

    /// Whether everything passed.
    pub fn is_success(&self) -> bool {
        self.is_done && self.failed == 0 && self.problems.is_empty()
    }

    /// Lines about failures and skips, and a summary in the format of Rust's test runner.
    pub fn summary(&self, kernel: &str) -> String {
        let mut text = String::new();
        for failure in &self.failures {
            let _ = writeln!(text, "failed on Linux {kernel}: {failure}");
        }
        for skip in &self.skips {
            let _ = writeln!(text, "skipped on Linux {kernel}: {skip}");
        }
        for problem in &self.problems {
            let _ = writeln!(text, "failed on Linux {kernel}: {problem}");
        }
        // Count problems as failed tests, so that the summary shows a failure.
        let failed = self.failed + self.problems.len() as u64;
        let verdict = if self.is_success() { "ok" } else { "FAILED" };
        let _ = write!(
            text,
            "test result: {verdict}. {} passed; {failed} failed; {} ignored; {} skipped; Linux {}, booted in {:.1} s, ran {} s",
            self.passed,
            self.ignored,
            self.skips.len(),
            self.release.as_deref().unwrap_or(kernel),
            self.boot.unwrap_or(f64::NAN),
            self.seconds,
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::GuestResults;

    fn results_of(lines: &[&str]) -> GuestResults {
        let mut results = GuestResults::default();
        for line in lines {
            results.parse_line(line);
        }
        results
    }

    #[test]
    fn results_of_all_binaries_are_added_up() {
        let results = results_of(&[
            "@@vm ready 3.21 6.12.95",
            "@@vm start loss",
            "test a ... ok",
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "@@vm end loss 0 10",
            "@@vm start cli",
            "SKIPPED c: no engine",
            "test b ... FAILED",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "@@vm end cli 101 5",
            "@@vm done",
        ]);
        assert!(!results.is_success());
        assert_eq!(
            results.summary("6.12"),
            "failed on Linux 6.12: b\n\
             skipped on Linux 6.12: c: no engine\n\
             test result: FAILED. 7 passed; 1 failed; 1 ignored; 1 skipped; Linux 6.12.95, booted in 3.2 s, ran 15 s"
        );
    }

    #[test]
    fn a_job_that_crashes_or_a_guest_that_is_not_done_has_failed() {
        let crashed = results_of(&["@@vm start loss", "garbage@@vm end loss 134 1", "@@vm done"]);
        assert!(!crashed.is_success());
        assert!(
            crashed.summary("7.3").contains("0 passed; 1 failed"),
            "{}",
            crashed.summary("7.3")
        );
        let cut =
            results_of(&["@@vm start loss", "test result: ok. 5 passed; 0 failed; 0 ignored"]);
        assert!(!cut.is_success());
    }
}

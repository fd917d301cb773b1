//! What a guest says, and how it went by that.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::Value;

/// The mark of what the guest's init says itself.
const MARK: &str = "@@vm ";

/// What begins a line by which a test says that it, or a part of it, is skipped.
const SKIP: &str = "SKIPPED ";

/// What was heard of a guest.
#[derive(Debug, Default)]
pub struct Tally {
    /// The kernel's release, once it has booted.
    pub release: Option<String>,
    /// Seconds it took to boot.
    pub boot: Option<f64>,
    /// Lines of JSON.
    pub json: Vec<Value>,
    /// Why it failed as a whole.
    pub problems: Vec<String>,
    /// All jobs are over.
    pub is_done: bool,
    passed: u64,
    failed: u64,
    ignored: u64,
    skips: BTreeSet<String>,
    /// Those of the job that runs.
    failed_here: u64,
    seconds: u64,
    failures: Vec<String>,
}

impl Tally {
    /// Takes a line; returns what a person should see of it.
    pub fn hear(&mut self, line: &str) -> Option<String> {
        if let Some(at) = line.find(MARK) {
            return self.hear_init(&line[at + MARK.len()..]);
        }
        if let Some(numbers) = line.split_once("test result: ").map(|(_, rest)| rest) {
            let count = |word: &str| {
                let before = numbers.split(word).next().unwrap_or_default();
                before.trim_end().rsplit(' ').next().and_then(|number| number.parse().ok())
            };
            self.passed += count(" passed").unwrap_or(0);
            self.failed_here += count(" failed").unwrap_or(0);
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

    fn hear_init(&mut self, line: &str) -> Option<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        match *words.as_slice() {
            ["ready", uptime, release] => {
                self.release = Some(release.to_owned());
                self.boot = uptime.parse().ok();
                Some(format!("Linux {release} booted in {uptime} s"))
            }
            ["start", name] => {
                self.failed_here = 0;
                Some(format!("running {name}"))
            }
            ["end", name, code, seconds] => {
                self.failed += self.failed_here;
                self.seconds += seconds.parse().unwrap_or(0);
                if code != "0" && self.failed_here == 0 {
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

    /// Whether all went well.
    pub fn is_good(&self) -> bool {
        self.is_done && self.failed == 0 && self.problems.is_empty()
    }

    /// One line in the words of Rust's test runner, behind those about what failed.
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
        // What is wrong beside tests counts as one that failed, so that the line cannot look well.
        let failed = self.failed + self.problems.len() as u64;
        let verdict = if self.is_good() { "ok" } else { "FAILED" };
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
    use super::Tally;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.hear(line);
        }
        tally
    }

    #[test]
    fn results_of_all_binaries_are_added_up() {
        let tally = tally(&[
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
        assert!(!tally.is_good());
        assert_eq!(
            tally.summary("6.12"),
            "failed on Linux 6.12: b\n\
             skipped on Linux 6.12: c: no engine\n\
             test result: FAILED. 7 passed; 1 failed; 1 ignored; 1 skipped; Linux 6.12.95, booted in 3.2 s, ran 15 s"
        );
    }

    #[test]
    fn a_job_that_crashes_or_a_guest_that_is_not_done_has_failed() {
        let crashed = tally(&["@@vm start loss", "garbage@@vm end loss 134 1", "@@vm done"]);
        assert!(!crashed.is_good());
        assert!(
            crashed.summary("7.3").contains("0 passed; 1 failed"),
            "{}",
            crashed.summary("7.3")
        );
        let cut = tally(&["@@vm start loss", "test result: ok. 5 passed; 0 failed; 0 ignored"]);
        assert!(!cut.is_good());
    }
}

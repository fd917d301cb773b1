//! The testbed's `clock`, a program that reads clocks in a loop or on request.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// The measured functions, by the program's names.
pub const FUNCTIONS: [&str; 6] =
    ["clock_gettime", "monotonic", "gettimeofday", "coarse", "time", "system_call"];

/// Nanoseconds a call, in the order of [`FUNCTIONS`].
pub type Figures = HashMap<&'static str, f64>;

/// The running program. Killed when dropped.
#[derive(Debug)]
pub struct Reader {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Reader {
    /// Starts it to measure `calls` calls at a time. `command` lacks the program's own arguments.
    pub fn start(mut command: Command, calls: u32) -> Result<Self> {
        command.args(["speed", "--calls", &calls.to_string()]);
        Self::spawn(command)
    }

    /// Starts the command.
    pub fn spawn(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start it")?;
        let orders = child.stdin.take().context("no standard input")?;
        let answers = child.stdout.take().context("no standard output")?;
        let mut reader = Self { child, orders, answers: BufReader::new(answers) };
        let ready = reader.answer()?;
        ensure!(ready["event"] == "ready", "it said {ready}");
        Ok(reader)
    }

    /// Sends a request.
    pub fn request(&mut self) -> Result<()> {
        Ok(self.orders.write_all(b"\n")?)
    }

    /// Reads the answer.
    pub fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            let mut said = String::new();
            if let Some(stderr) = self.child.stderr.take() {
                std::io::read_to_string(stderr)?.trim().clone_into(&mut said);
            }
            bail!("{said}");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Measures. Fails unless the program sees a clock that is `ahead` seconds ahead.
    pub fn measure(&mut self, ahead: i64) -> Result<Figures> {
        self.request()?;
        let answer = self.answer()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let theirs = Duration::from_nanos(answer["now"].as_u64().context("no time")?);
        let off = theirs.as_secs_f64() - now.as_secs_f64() - ahead as f64;
        ensure!(off.abs() < 5.0, "its clock is {off} s from where it was to be");
        let figure = |name: &'static str| Ok((name, answer[name].as_f64().context(name)?));
        FUNCTIONS.into_iter().map(figure).collect()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // The program has ended already unless something failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

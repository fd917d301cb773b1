//! The injector's binary, as a user runs it.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{link::NEAR, namespace::Namespace, rules::RuleFile};

/// The release build of the binary.
#[derive(Debug)]
pub struct Injector {
    path: PathBuf,
}

impl Injector {
    /// Builds it with cargo.
    pub fn build() -> Result<Self> {
        Ok(Self { path: built("injector-user", "injector")? })
    }

    /// The binary at `path`.
    pub const fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The path of the binary.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command inside `namespace`.
    pub fn command(&self, namespace: &Namespace) -> Result<Command> {
        namespace.command(&self.path)
    }

    /// Starts `injector inject` with the rules on the near end of a link and waits until the faults are
    /// active.
    pub fn inject(&self, namespace: &Namespace, rules: &RuleFile) -> Result<Running> {
        let mut command = self.command(namespace)?;
        command
            .args([
                "inject",
                "--interface",
                NEAR,
                "--for",
                "forever",
                "--output",
                "json",
                "--rules",
            ])
            .arg(rules.path());
        Running::start(command)
    }
}

/// Builds a program of a package with cargo, in release mode.
pub fn built(package: &str, program: &str) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--package", package, "--bin", program])
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "{program} does not build");
    // Cargo puts all binaries of a profile into one folder.
    let path = env::current_exe()?.with_file_name(program);
    ensure!(path.is_file(), "there is no {}: run this as `cargo xtask`", path.display());
    Ok(path)
}

/// A running `injector inject`. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    events: BufReader<ChildStdout>,
    /// The time from before the fork to the `started` event.
    pub startup: Duration,
}

impl Running {
    /// Starts the command and waits until the faults are active.
    pub fn start(mut command: Command) -> Result<Self> {
        let before = Instant::now();
        let mut child =
            command.stdout(Stdio::piped()).spawn().context("cannot start the injector")?;
        let events = child.stdout.take().context("no standard output")?;
        let mut running =
            Self { child, events: BufReader::new(events), startup: Duration::default() };
        running.wait_for("started")?;
        running.startup = before.elapsed();
        Ok(running)
    }

    /// Reloads the rule file. Returns the time until the new rules are active.
    pub fn reload(&mut self) -> Result<Duration> {
        let before = Instant::now();
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGHUP)?;
        self.wait_for("changed")?;
        Ok(before.elapsed())
    }

    /// Ends the faults. Returns the number of matched packets.
    pub fn stop(self) -> Result<u64> {
        Ok(self.stop_counting()?.0)
    }

    /// Ends the faults. Returns the numbers of matched and dropped packets.
    pub fn stop_counting(mut self) -> Result<(u64, u64)> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)?;
        let summary: Value = serde_json::from_str(&self.wait_for("summary")?)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the injector failed: {status}");
        let count =
            |key: &str| summary[key].as_u64().with_context(|| format!("no `{key}` in the summary"));
        Ok((count("matched")?, count("dropped")?))
    }

    fn wait_for(&mut self, event: &str) -> Result<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.events.read_line(&mut line)? == 0 {
                bail!("the injector ended: {}", self.child.wait()?);
            }
            // Search before parsing: a line may list 65,536 rules, and this is timed.
            let kind = format!("\"event\":\"{event}\"");
            let (start, _) = line.split_at(line.floor_char_boundary(120));
            if start.contains(&kind) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The injector has ended already unless something failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! The time from exec to active fault.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::{
    injector::{Injector, Running},
    link::{Link, NEAR},
    numbers::{largest, median},
    progress,
    rules::RuleFile,
};

/// Times of all starts in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figure {
    /// The median.
    pub median_ms: f64,
    /// The maximum.
    pub max_ms: f64,
}

impl Figure {
    fn of(values: &[f64]) -> Self {
        Self { median_ms: median(values), max_ms: largest(values) }
    }
}

/// The measured times.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Startup {
    /// The number of starts of each command.
    pub starts: usize,
    /// `injector inject --interface … --loss 1%`, from fork to the `started` event.
    pub inject: Figure,
    /// The same with 65,536 rules from a file.
    pub inject_many: Figure,
    /// `injector run --loss 1% -- true`, from fork to exit.
    pub run: Figure,
    /// `true` alone, from fork to exit.
    pub plain: Figure,
}

/// Starts each command repeatedly, in turn.
pub fn measure(injector: &Injector, quick: bool) -> Result<Startup> {
    let starts = if quick { 9 } else { 25 };
    progress(&format!("start-up, {starts} times"));
    let link = Link::new()?;
    let rules = RuleFile::matching(65_536, "loss: 1%")?;
    let (mut inject, mut inject_many, mut run, mut plain) = (vec![], vec![], vec![], vec![]);
    for number in 0..starts {
        let mut command = injector.command(&link.near)?;
        command.args(["inject", "--interface", NEAR, "--for", "forever", "--loss", "1%"]);
        command.args(["--output", "json"]);
        // No traffic is sent: injector warns that nothing matched.
        let running = Running::start(command)?;
        inject.push(milliseconds(running.startup));
        running.stop()?;

        let mut command = injector.command(&link.near)?;
        command.args(["run", "--loss", "1%", "--", "true"]);
        run.push(to_exit(command)?);
        plain.push(to_exit(link.near.command("true")?)?);

        // Not in each round, as it takes long.
        if number % 4 != 0 {
            continue;
        }
        let running = injector.inject(&link.near, &rules)?;
        inject_many.push(milliseconds(running.startup));
        running.stop()?;
    }
    Ok(Startup {
        starts,
        inject: Figure::of(&inject),
        inject_many: Figure::of(&inject_many),
        run: Figure::of(&run),
        plain: Figure::of(&plain),
    })
}

fn to_exit(mut command: Command) -> Result<f64> {
    let before = Instant::now();
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(milliseconds(before.elapsed()))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

//! `cargo xtask bench scenario`: the lateness of timeline changes.

use std::{
    fs,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testbed::TestCgroup;

use super::{exit_after, injector::Injector, link::Link, numbers::median, progress};

/// The maximum 99th percentile of the lateness of a change, in milliseconds.
const LIMIT_MS: f64 = 10.0;

/// Measure the lateness of a scenario's timeline changes
///
/// Loss on the near end of a veth pair starts and ends under traffic, then a cgroup is paused repeatedly. Needs
/// root. Exits with 1 if the target is missed.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Number of changes of each kind
    #[arg(long, default_value_t = 1000)]
    changes: u32,

    /// Milliseconds from one change to the next
    #[arg(long, default_value_t = 40)]
    apart: u32,
}

/// Runs the benchmark and prints a table.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "injector needs root");
    let injector = Injector::build()?;
    let Args { changes, apart } = *args;
    exit_after(2 * Duration::from_millis(u64::from(changes * apart)) + Duration::from_mins(1));
    progress(&format!("two timelines of {changes} changes, {apart} ms apart"));
    let link = Link::new()?;

    let mut ping = link.near.command("ping")?;
    ping.args(["-q", "-i", "0.002", "10.64.0.1"]).stdout(Stdio::null());
    let traffic = Killed(ping.spawn().context("cannot run ping")?);
    let near = format!("netns: {}", link.near.path().display());
    let packets = measure(args, &injector, &link, &near, "rules: [{loss: 10%}]")?;
    drop(traffic);

    let cgroup = TestCgroup::new();
    let sleep = Command::new("sleep").arg("3600").spawn().context("cannot run sleep")?;
    let sleep = Killed(sleep);
    fs::write(cgroup.path.join("cgroup.procs"), sleep.0.id().to_string())
        .context("cannot fill a cgroup")?;
    let path = format!("cgroup: {}", cgroup.path.display());
    let pauses = measure(args, &injector, &link, &path, "processes: {pause: 1m}")?;
    drop(sleep);

    println!(
        "| changes | of | late, median | 99 % | most | limit | |\n|--:|---|--:|--:|--:|--:|---|"
    );
    let mut is_met = true;
    for (name, mut late) in [("loss", packets), ("a pause", pauses)] {
        late.sort_by(f64::total_cmp);
        let p99 = late[(late.len() * 99).div_ceil(100) - 1];
        let largest = late[late.len() - 1];
        let verdict = if p99 <= LIMIT_MS { "met" } else { "missed" };
        is_met &= p99 <= LIMIT_MS;
        println!(
            "| {} | {name} | {:.3} ms | {p99:.3} ms | {largest:.3} ms | {LIMIT_MS} ms | {verdict} |",
            late.len(),
            median(&late)
        );
    }
    Ok(if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The lateness of each change when this fault of this target starts and ends, in milliseconds.
fn measure(
    args: &Args,
    injector: &Injector,
    link: &Link,
    target: &str,
    fault: &str,
) -> Result<Vec<f64>> {
    let Args { changes, apart } = *args;
    let file = std::env::temp_dir().join(format!("injector-bench-{}.yaml", std::process::id()));
    let yaml = format!(
        "targets: {{it: {{{target}}}}}\ntimeline:\n- {{at: 500ms, every: {}ms, for: {apart}ms, times: {}, \
         faults: {{{fault}}}}}\n",
        2 * apart,
        changes / 2,
    );
    fs::write(&file, yaml)?;
    let mut command = injector.command(&link.near)?;
    let output = command.arg("apply").arg(&file).args(["--output", "json"]).output();
    let _ = fs::remove_file(&file);
    let output = output.context("cannot run the injector")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let mut late = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let event: Value = serde_json::from_str(line)?;
        if event["event"] == "change" {
            let time = |key: &str| event[key].as_u64().with_context(|| format!("no {key}"));
            let planned = time("planned_monotonic_ns")?;
            late.push(time("actual_monotonic_ns")?.saturating_sub(planned) as f64 / 1e6);
        }
    }
    ensure!(!late.is_empty() && late.len() == changes as usize, "{} changes", late.len());
    Ok(late)
}

/// A process, killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

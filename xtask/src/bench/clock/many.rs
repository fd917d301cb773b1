//! The latency of skewing the clocks of 1,000 processes, and of changing the skew.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use testbed::TestCgroup;

use super::reader::Reader;
use crate::bench::{
    injector::{Injector, Running},
    numbers::{largest, median},
    progress,
    target::Target,
};

/// The number of processes.
const PROCESSES: usize = 1000;

/// The number of changes.
const CHANGES: i64 = 20;

/// The maximum deviation of a reading, in nanoseconds.
const TOLERANCE: i64 = 1_000_000;

/// Measures the latencies and checks the readings of all processes each time.
pub fn measure(injector: &Injector, reader: &Path, targets: &mut Vec<Target>) -> Result<()> {
    progress(&format!("{PROCESSES} processes"));
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let group = TestCgroup::new();
    let procs = group.path.join("cgroup.procs");
    let mut readers = Vec::with_capacity(PROCESSES);
    for _ in 0..PROCESSES {
        let mut command = Command::new(reader);
        command.arg("read");
        let procs = procs.clone();
        // SAFETY: one file is opened and written to. The path was made before, and this process has one thread.
        unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
        readers.push(Reader::spawn(command)?);
    }

    let empty = TestCgroup::new();
    let file = File::new("clocks: {clock: +1h}")?;
    let without = start(injector, &empty, &file)?.startup;
    let mut running = start(injector, &group, &file)?;
    check(&mut readers, 3600)?;
    let patched = running.startup;
    let mut changes = Vec::new();
    for change in 0..CHANGES {
        let ahead = 60 * (change + 1);
        fs::write(&file.0, format!("clocks: {{clock: +{ahead}s}}"))?;
        changes.push(running.reload()?.as_secs_f64() * 1e3);
        check(&mut readers, ahead)?;
    }
    running.stop()?;
    check(&mut readers, 0)?;
    drop(readers);

    println!(
        "\n{PROCESSES} processes: skewed {:.0} ms after the injector was started ({:.0} ms where there are none); a change is \
         visible in all of them after {:.1} ms, {:.1} at the most ({CHANGES} times)",
        patched.as_secs_f64() * 1e3,
        without.as_secs_f64() * 1e3,
        median(&changes),
        largest(&changes),
    );
    let mut add = |name: &str, limit, measured| {
        let name = format!("{PROCESSES} processes, {name}");
        targets.push(Target { name, is_minimum: false, limit, measured });
    };
    add("from the start to skewed clocks, ms", 1000.0, patched.as_secs_f64() * 1e3);
    add("a change visible in all, ms, most of all", 20.0, largest(&changes));
    Ok(())
}

/// A rule file, removed when dropped.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        // A leftover in the temporary directory does no harm.
        let _ = fs::remove_file(&self.0);
    }
}

impl File {
    fn new(rules: &str) -> Result<Self> {
        let name = format!("injector-bench-{}.yaml", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        fs::write(&file.0, rules)?;
        Ok(file)
    }
}

fn start(injector: &Injector, group: &TestCgroup, rules: &File) -> Result<Running> {
    let mut command = Command::new(injector.path());
    command.args(["inject", "--output", "json", "--engine", "vdso", "--cgroup"]).arg(&group.path);
    command.arg("--rules").arg(&rules.0);
    Running::start(command)
}

/// Checks that each reader sees a clock that is `ahead` seconds ahead.
fn check(readers: &mut [Reader], ahead: i64) -> Result<()> {
    readers.iter_mut().try_for_each(Reader::request)?;
    for reader in readers {
        let off = reader.answer()?["realtime"].as_i64().context("no clock")?;
        let wrong = off - ahead * 1_000_000_000;
        ensure!(wrong.abs() <= TOLERANCE, "a clock is {off} ns ahead, and not {ahead} s");
    }
    Ok(())
}

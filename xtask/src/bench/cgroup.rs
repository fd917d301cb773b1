//! Cgroups for processes of benchmarks.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use injector_user::target::cgroup::Hierarchy;

/// A cgroup of our own. Removed when dropped, when its processes are gone.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one at the top of the hierarchy.
    pub fn new(name: &str) -> Result<Self> {
        let name = format!("injector-bench-{name}-{}", std::process::id());
        let path = Hierarchy::find()?.mount().join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The file that takes processes in.
    pub fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last ones may still be on their way out.
        let end = Instant::now() + Duration::from_secs(1);
        while let Err(error) = fs::remove_dir(&self.0) {
            if Instant::now() >= end {
                eprintln!("bench: cannot remove {}: {error}", self.0.display());
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

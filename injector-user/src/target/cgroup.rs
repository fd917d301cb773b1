//! Cgroups of the v2 hierarchy.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use procfs::{ProcError, process::Process};

use super::ResolveError;

/// Inode, and so id, of the hierarchy's root.
const ROOT_ID: u64 = 1;

/// The v2 hierarchy as it is mounted here.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    mount: PathBuf,
}

/// A cgroup of the v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its directory.
    pub path: PathBuf,
    /// Its id, as `bpf_get_current_cgroup_id` has it.
    pub id: u64,
    /// Its depth below the hierarchy's root, which is at 0.
    pub level: u32,
}

impl Hierarchy {
    /// Where the hierarchy is mounted.
    pub fn find() -> Result<Self, ResolveError> {
        let mounts = Process::myself()
            .and_then(|process| process.mountinfo())
            .map_err(|error| proc_error("/proc/self/mountinfo", error))?;
        let mut mounts: Vec<PathBuf> = mounts
            .into_iter()
            .filter(|mount| mount.fs_type == "cgroup2")
            .map(|mount| mount.mount_point)
            .collect();
        // A container sees its own part under /sys/fs/cgroup, and perhaps the host's whole elsewhere.
        mounts.sort_by_key(|mount| inode(mount) != Some(ROOT_ID));
        let mount = mounts.into_iter().next().ok_or(ResolveError::NoHierarchy)?;
        if inode(&mount) == Some(ROOT_ID) {
            Ok(Self { mount })
        } else {
            Err(ResolveError::CgroupNamespace(mount))
        }
    }

    /// Opens a cgroup by its path, or by its path relative to the root. The root itself is refused.
    pub fn open(&self, path: &Path) -> Result<Cgroup, ResolveError> {
        let below = self.mount.join(path.strip_prefix("/").unwrap_or(path));
        let candidates = [path, below.as_path()];
        let is_v2 =
            |path: &Path| statfs(path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let found = candidates.into_iter().find(|path| path.is_dir() && is_v2(path));
        let Some(found) = found else {
            return Err(if path.is_dir() {
                ResolveError::NotV2(path.into(), self.mount.clone())
            } else {
                ResolveError::NoCgroup(path.into(), self.mount.clone())
            });
        };
        let fail = |source| ResolveError::Cgroup { path: found.into(), source };
        let real = found.canonicalize().map_err(fail)?;
        let id = real.metadata().map_err(fail)?.ino();
        let Ok(relative) = real.strip_prefix(&self.mount) else {
            return Err(ResolveError::NotV2(real, self.mount.clone()));
        };
        let level = relative.components().count() as u32;
        if level == 0 {
            return Err(ResolveError::Root(format!("{} is", path.display())));
        }
        Ok(Cgroup { path: real, id, level })
    }

    /// The cgroup of a process.
    pub fn of_process(&self, pid: i32) -> Result<Cgroup, ResolveError> {
        let path = self.path_of_process(pid)?;
        if path == self.mount {
            return Err(ResolveError::Root(format!("process {pid} is")));
        }
        self.open(&path)
    }

    /// The directory of a process's cgroup, which may be the root.
    pub fn path_of_process(&self, pid: i32) -> Result<PathBuf, ResolveError> {
        let cgroups =
            Process::new(pid).and_then(|process| process.cgroups()).map_err(
                |error| match error {
                    ProcError::NotFound(_) => ResolveError::NoProcess(pid),
                    error => proc_error(&format!("/proc/{pid}/cgroup"), error),
                },
            )?;
        let path = cgroups
            .0
            .into_iter()
            .find(|cgroup| cgroup.hierarchy == 0)
            .map(|cgroup| cgroup.pathname);
        let path = path.ok_or(ResolveError::NoHierarchy)?;
        Ok(self.mount.join(path.trim_start_matches('/')))
    }
}

impl Cgroup {
    /// The processes in it and below it, as far as they can be read.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        processes_below(&self.path)
    }
}

/// The processes in the cgroup directory `path` and below it, as far as they can be read.
#[must_use]
pub fn processes_below(path: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    for_each_below(path, &mut |directory| {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        Ok(())
    })
    .unwrap_or_default();
    pids
}

/// Calls `work` for `path` and the cgroups below it, the deepest first.
pub fn for_each_below(
    path: &Path,
    work: &mut dyn FnMut(&Path) -> io::Result<()>,
) -> io::Result<()> {
    match fs::read_dir(path) {
        Ok(entries) => {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    for_each_below(&entry.path(), work)?;
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    work(path)
}

fn inode(path: &Path) -> Option<u64> {
    path.metadata().ok().map(|metadata| metadata.ino())
}

fn proc_error(what: &str, source: ProcError) -> ResolveError {
    ResolveError::Proc { what: what.into(), source: source.into() }
}

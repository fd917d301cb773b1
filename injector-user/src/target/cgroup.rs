//! Cgroups of the v2 hierarchy.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
};
use procfs::{ProcError, ProcessCGroups, process::Process};

use super::ResolveError;
use crate::kernel::cgroup::CgroupKey;

/// Inode, and so id, of the hierarchy's root.
const ROOT_ID: u64 = 1;

/// The file of a cgroup by which it is frozen (Linux 5.2).
pub const FREEZE: &str = "cgroup.freeze";

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

    /// The directory of its root.
    #[must_use]
    pub fn mount(&self) -> &Path {
        &self.mount
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
        let cgroups = Process::new(pid).and_then(|process| process.cgroups());
        self.path_among(cgroups.map_err(|error| match error {
            ProcError::NotFound(_) => ResolveError::NoProcess(pid),
            error => proc_error(&format!("/proc/{pid}/cgroup"), error),
        })?)
    }

    /// The directory of our own cgroup, which may be the root.
    pub fn path_of_self(&self) -> Result<PathBuf, ResolveError> {
        let cgroups = Process::myself().and_then(|process| process.cgroups());
        self.path_among(cgroups.map_err(|error| proc_error("/proc/self/cgroup", error))?)
    }

    /// The directory of the one of this hierarchy among those of a process.
    fn path_among(&self, cgroups: ProcessCGroups) -> Result<PathBuf, ResolveError> {
        let path = cgroups
            .0
            .into_iter()
            .find(|cgroup| cgroup.hierarchy == 0)
            .map(|cgroup| cgroup.pathname);
        let path = path.ok_or(ResolveError::NoHierarchy)?;
        if path.starts_with("/..") {
            return Err(ResolveError::CgroupNamespace(self.mount.clone()));
        }
        Ok(self.mount.join(path.trim_start_matches('/')))
    }
}

/// Has the calling thread, and those that it will start, be told cgroups by their paths on the host. In a container that
/// has the host's processes and its hierarchy, but a cgroup namespace of its own, they are told by others.
pub fn enter_host_namespace() -> io::Result<()> {
    const OURS: &str = "/proc/thread-self/ns/cgroup";
    // Init and the parent of the kernel's threads, of which init may be guarded from us. In a PID namespace of our own
    // they are others, which have ours.
    const HOSTS: [&str; 2] = ["/proc/1/ns/cgroup", "/proc/2/ns/cgroup"];
    let Some(ours) = inode(Path::new(OURS)) else { return Ok(()) };
    let hosts = File::open(HOSTS[0]).or_else(|_| File::open(HOSTS[1]))?;
    if hosts.metadata()?.ino() == ours {
        return Ok(());
    }
    Ok(setns(hosts, CloneFlags::CLONE_NEWCGROUP)?)
}

impl Cgroup {
    /// What eBPF programs know it by.
    #[must_use]
    pub const fn key(&self) -> CgroupKey {
        CgroupKey { id: self.id, level: self.level }
    }

    /// Whether it is still there, and no other one that was made with its path.
    #[must_use]
    pub fn is_there(&self) -> bool {
        is_same(&self.path, self.id)
    }

    /// Whether it is still there, and has processes.
    #[must_use]
    pub fn is_populated(&self) -> bool {
        self.is_there() && !says(&self.path, "populated 0")
    }

    /// The processes in it and below it, as far as they can be read.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let processes = processes_below(&self.path);
        // Else they may be those of another one.
        if self.is_there() { processes } else { Vec::new() }
    }

    /// Writes to one of its files; fails if it is gone, also if there is another one by its path.
    pub fn write(&self, file: &str, text: &str) -> io::Result<()> {
        let gone = io::Error::from_raw_os_error(libc::ENODEV);
        if self.is_there() { write_to(&self.path, self.id, file, text) } else { Err(gone) }
    }
}

/// Whether a cgroup is there, and no other one that was made with its path.
#[must_use]
pub fn is_same(cgroup: &Path, id: u64) -> bool {
    inode(cgroup) == Some(id)
}

/// Writes to a file of a cgroup; does nothing if the cgroup is gone, also if there is another one by its path.
pub fn write_to(cgroup: &Path, id: u64, file: &str, text: &str) -> io::Result<()> {
    let mut open = match File::options().write(true).open(cgroup.join(file)) {
        Err(_) if !is_same(cgroup, id) => return Ok(()),
        opened => opened?,
    };
    // IDs are not used again, so what was opened before belongs to that one as well.
    if is_same(cgroup, id) { open.write_all(text.as_bytes()) } else { Ok(()) }
}

/// Whether this line is in its `cgroup.events`.
#[must_use]
pub fn says(cgroup: &Path, line: &str) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|event| event == line)
}

/// The processes in the cgroup directory `path`, but not below it, as far as they can be read. Those that our PID
/// namespace has no number for are left out: 0, which stands for them, would mean us.
#[must_use]
pub fn processes_in(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid != 0).collect()
}

/// The cgroups directly below this one that have processes, in them or below them.
#[must_use]
pub fn populated_below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let cgroups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    cgroups.map(|entry| entry.path()).filter(|cgroup| says(cgroup, "populated 1")).collect()
}

/// The processes in the cgroup directory `path` and below it, as far as they can be read.
#[must_use]
pub fn processes_below(path: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    // What cannot be read is left out.
    let _ = for_each_below(path, &mut |directory| {
        pids.extend(processes_in(directory));
        Ok(())
    });
    pids
}

/// Calls `work` for `path` and the cgroups below it, the deepest first. What fails for one keeps none of the others from
/// it: who may make cgroups can make them so deep that their paths are too long. The first failure is returned.
pub fn for_each_below(
    path: &Path,
    work: &mut dyn FnMut(&Path) -> io::Result<()>,
) -> io::Result<()> {
    // The directory is closed before others are opened.
    let entries: io::Result<Vec<_>> = fs::read_dir(path).map(|entries| entries.flatten().collect());
    let mut result = Ok(());
    match entries {
        Ok(entries) => {
            for entry in entries {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let below = for_each_below(&entry.path(), work);
                    result = result.and(below);
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => result = Err(error),
    }
    let done = work(path);
    result.and(done)
}

fn inode(path: &Path) -> Option<u64> {
    path.metadata().ok().map(|metadata| metadata.ino())
}

fn proc_error(what: &str, source: ProcError) -> ResolveError {
    ResolveError::Proc { what: what.into(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use nix::{fcntl::OFlag, sys::stat::Mode};

    use super::*;

    /// Folders so deep that their path is too long, as anybody can make them: one below the other's descriptor.
    fn dig(path: &Path, name: &str, depth: usize) {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut folder = nix::fcntl::open(path, flags, Mode::empty()).expect("a folder");
        for _ in 0..depth {
            let mode = Mode::from_bits_truncate(0o700);
            nix::sys::stat::mkdirat(&folder, name, mode).expect("it can be made");
            folder = nix::fcntl::openat(&folder, name, flags, Mode::empty()).expect("it is there");
        }
    }

    #[test]
    fn cgroups_too_deep_to_be_read_hide_no_others() {
        let root = std::env::temp_dir().join(format!("injector-deep-{}", std::process::id()));
        for (name, pid) in [("a", "11"), ("m", "12"), ("z", "13")] {
            fs::create_dir_all(root.join(name)).expect("it can be made");
            fs::write(root.join(name).join("cgroup.procs"), pid).expect("it can be written");
        }
        dig(&root.join("m"), &"x".repeat(250), 20);
        // As deep as paths reach: that is to take no more stack, and files, than there is.
        dig(&root.join("z"), "x", 2100);
        let mut pids = processes_below(&root);
        pids.sort_unstable();
        assert!(for_each_below(&root, &mut |_| Ok(())).is_err(), "it is not deep enough");
        // Removes what is deeper than paths reach.
        fs::remove_dir_all(&root).expect("it can be removed");
        assert_eq!(pids, [11, 12, 13]);
    }
}

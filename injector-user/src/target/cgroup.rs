//! Cgroups of the v2 hierarchy.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Component, Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns},
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
};
use procfs::{ProcError, ProcessCGroups, process::Process};

use super::ResolveError;
use crate::kernel::{
    cgroup::{CgroupKey, mount_own_cgroup, namespace_root},
    mount::{Home, Mount, ROOT},
};

/// Cgroup file that freezes the cgroup (Linux 5.2).
pub const FREEZE: &str = "cgroup.freeze";

/// The mounted v2 hierarchy.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    mount: PathBuf,
}

/// A cgroup of the v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Directory of the cgroup.
    pub path: PathBuf,
    /// Cgroup ID, as returned by `bpf_get_current_cgroup_id`.
    pub id: u64,
    /// Depth below the hierarchy's root, which has depth 0.
    pub level: u32,
}

impl Hierarchy {
    /// Finds the mount point of the hierarchy.
    pub fn find() -> Result<Self, ResolveError> {
        let mounts = Process::myself()
            .and_then(|process| process.mountinfo())
            .map_err(|error| proc_error("/proc/self/mountinfo", error))?;
        let mut mounts: Vec<PathBuf> = mounts
            .into_iter()
            .filter(|mount| mount.fs_type == "cgroup2")
            .map(|mount| mount.mount_point)
            .collect();
        // A container sees its own subtree under /sys/fs/cgroup, and may see the host's hierarchy
        // at another mount.
        mounts.sort_by_key(|mount| inode(mount) != Some(ROOT));
        let mount = mounts.into_iter().next().ok_or(ResolveError::NoHierarchy)?;
        if inode(&mount) == Some(ROOT) {
            Ok(Self { mount })
        } else {
            Err(ResolveError::CgroupNamespace(mount))
        }
    }

    /// Directory of the hierarchy's root.
    #[must_use]
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Opens a cgroup by its path, absolute or relative to the root. Refuses the root itself.
    pub fn open(&self, path: &Path) -> Result<Cgroup, ResolveError> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let below = self.mount.join(relative);
        // As this process's cgroup namespace shows it.
        let in_namespace = self.namespace_root().map(|root| self.mount.join(root).join(relative));
        let in_namespace = in_namespace.unwrap_or_default();
        let candidates = [path, in_namespace.as_path(), below.as_path()];
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
        // Another mount shows it as well.
        let real = if real.starts_with(&self.mount) { Some(real) } else { self.find_by_id(id) };
        let Some(real) = real else {
            return Err(ResolveError::NotV2(found.into(), self.mount.clone()));
        };
        let relative = real.strip_prefix(&self.mount).unwrap_or(&real);
        let level = relative.components().count() as u32;
        if level == 0 {
            return Err(self.refuse_root(format!("{} is", path.display())));
        }
        Ok(Cgroup { path: real, id, level })
    }

    fn refuse_root(&self, what: String) -> ResolveError {
        ResolveError::Root { what, mount: self.mount.clone() }
    }

    /// The cgroup of a process.
    pub fn of_process(&self, pid: i32) -> Result<Cgroup, ResolveError> {
        let path = self.path_of_process(pid)?;
        if path == self.mount {
            return Err(self.refuse_root(format!("process {pid} is in")));
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

    /// The directory of this process's cgroup, which may be the root.
    pub fn path_of_self(&self) -> Result<PathBuf, ResolveError> {
        let cgroups = Process::myself().and_then(|process| process.cgroups());
        self.path_among(cgroups.map_err(|error| proc_error("/proc/self/cgroup", error))?)
    }

    /// Picks this hierarchy's entry from a process's cgroups and returns its directory.
    fn path_among(&self, cgroups: ProcessCGroups) -> Result<PathBuf, ResolveError> {
        let path = cgroups
            .0
            .into_iter()
            .find(|cgroup| cgroup.hierarchy == 0)
            .map(|cgroup| cgroup.pathname);
        let path = path.ok_or(ResolveError::NoHierarchy)?;
        let fail = |source| ResolveError::Cgroup { path: self.mount.clone(), source };
        let mut place = self.namespace_root().map_err(fail)?;
        for component in Path::new(&path).components() {
            match component {
                // Outside of this process's cgroup namespace.
                Component::ParentDir => drop(place.pop()),
                Component::Normal(name) => place.push(name),
                _ => {}
            }
        }
        Ok(self.mount.join(place))
    }

    /// The root of this process's cgroup namespace, below that of the hierarchy. Paths in
    /// /proc/PID/cgroup begin there.
    fn namespace_root(&self) -> io::Result<PathBuf> {
        static KNOWN: Mutex<Option<(u64, PathBuf)>> = Mutex::new(None);

        let Some(id) = namespace_root()? else { return Ok(PathBuf::new()) };
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, path)) = &*known
            && *of == id
        {
            return Ok(path.clone());
        }
        let path = self.find_by_id(id).ok_or(io::ErrorKind::NotFound)?;
        let path = path.strip_prefix(&self.mount).map_err(io::Error::other)?.to_path_buf();
        *known = Some((id, path.clone()));
        Ok(path)
    }

    /// The directory of a cgroup.
    fn find_by_id(&self, id: u64) -> Option<PathBuf> {
        let mut found = None;
        // Directories that cannot be read are left out.
        let _ = for_each_below(&self.mount, &mut |directory| {
            if inode(directory) == Some(id) {
                found = Some(directory.to_path_buf());
            }
            Ok(())
        });
        found
    }
}

/// Where the hierarchy is attached on hosts that mount it nowhere.
const PRIVATE: &str = "/run/injector/cgroup";

/// Makes the host's hierarchy visible to this process, where the host has it, unless a mount shows it.
/// The process must have a single thread.
///
/// `ip netns exec` hides the mounts below /sys, containers have their own, and hosts with cgroup v1
/// alone have none. So that paths are the same for all processes of injector, the place does not
/// depend on the namespaces of this one.
pub fn reach_hierarchy() -> io::Result<()> {
    if Hierarchy::find().is_ok() {
        return Ok(());
    }
    let (found, place) = match hierarchy_of_host()? {
        Some(found) => found,
        None => (mount_own_cgroup()?, PRIVATE.into()),
    };
    let is_whole = inode(&found.path()) == Some(ROOT);
    // A container with a cgroup namespace of its own shows its own part there.
    let place = if is_whole { place } else { PRIVATE.into() };
    Home::leave()?;
    make_mount_point(&place)?;
    if is_whole { found.attach(&place) } else { found.attach_whole(&place) }
}

/// The hierarchy as process 1 sees it, and where.
fn hierarchy_of_host() -> io::Result<Option<(Mount, PathBuf)>> {
    let mounts = Process::new(1).and_then(|init| init.mountinfo()).map_err(io::Error::other)?;
    let mut mounts = mounts.into_iter().filter(|mount| mount.fs_type == "cgroup2");
    let Some(mount) = mounts.next() else { return Ok(None) };
    let namespace = namespace_of_host("mnt")?;
    Ok(Some((Mount::copy_of(&namespace, &mount.mount_point)?, mount.mount_point)))
}

/// Creates a directory, in a new file system if it would be below /sys.
fn make_mount_point(place: &Path) -> io::Result<()> {
    if place.is_dir() {
        return Ok(());
    }
    if let Some(above) = place.ancestors().find(|path| path.is_dir())
        && above.starts_with("/sys")
    {
        mount(Some("injector"), above, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(place)
}

/// Moves the calling thread into the host's cgroup namespace.
///
/// Threads started afterwards inherit it. In a container that shares the host's PID namespace and
/// hierarchy but has its own cgroup namespace, cgroup paths would otherwise differ from the host's.
pub fn enter_host_namespace() -> io::Result<()> {
    const OURS: &str = "/proc/thread-self/ns/cgroup";
    let Some(ours) = inode(Path::new(OURS)) else { return Ok(()) };
    let hosts = namespace_of_host("cgroup")?;
    if hosts.metadata()?.ino() == ours {
        return Ok(());
    }
    Ok(setns(hosts, CloneFlags::CLONE_NEWCGROUP)?)
}

/// A namespace of the host's. In a separate PID namespace, it is that of another process there.
fn namespace_of_host(kind: &str) -> io::Result<File> {
    // PID 1 is init, which may be protected from ptrace access; PID 2 is kthreadd.
    let open = |pid: i32| File::open(format!("/proc/{pid}/ns/{kind}"));
    open(1).or_else(|_| open(2))
}

impl Cgroup {
    /// Key of the cgroup in eBPF maps.
    #[must_use]
    pub const fn key(&self) -> CgroupKey {
        CgroupKey { id: self.id, level: self.level }
    }

    /// Whether the cgroup still exists and was not replaced by another one at the same path.
    #[must_use]
    pub fn is_there(&self) -> bool {
        is_same(&self.path, self.id)
    }

    /// Whether the cgroup still exists and has processes.
    #[must_use]
    pub fn is_populated(&self) -> bool {
        self.is_there() && !says(&self.path, "populated 0")
    }

    /// The readable processes in the cgroup and below it.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let processes = processes_below(&self.path);
        // If the cgroup was replaced, the processes may belong to its replacement.
        if self.is_there() { processes } else { Vec::new() }
    }

    /// Writes to a file of the cgroup. Fails if the cgroup is gone, even if another one replaced it
    /// at the same path.
    pub fn write(&self, file: &str, text: &str) -> io::Result<()> {
        let gone = io::Error::from_raw_os_error(libc::ENODEV);
        if self.is_there() { write_to(&self.path, self.id, file, text) } else { Err(gone) }
    }
}

/// Whether the cgroup exists and was not replaced by another one at the same path.
#[must_use]
pub fn is_same(cgroup: &Path, id: u64) -> bool {
    inode(cgroup) == Some(id)
}

/// Writes to a file of a cgroup. Does nothing if the cgroup is gone or was replaced at the same
/// path.
pub fn write_to(cgroup: &Path, id: u64, file: &str, text: &str) -> io::Result<()> {
    let mut open = match File::options().write(true).open(cgroup.join(file)) {
        Err(_) if !is_same(cgroup, id) => return Ok(()),
        opened => opened?,
    };
    // Cgroup IDs are not reused, so the file that was opened before belongs to the same cgroup.
    if is_same(cgroup, id) { open.write_all(text.as_bytes()) } else { Ok(()) }
}

/// Whether the cgroup's `cgroup.events` contains this line.
#[must_use]
pub fn says(cgroup: &Path, line: &str) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|event| event == line)
}

/// The readable processes in the cgroup directory `path`, but not below it.
///
/// Excludes processes outside this PID namespace: the kernel lists them as 0, which would mean this
/// process.
#[must_use]
pub fn processes_in(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid != 0).collect()
}

/// The cgroups directly below this one that are populated, directly or in a descendant.
#[must_use]
pub fn populated_below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let cgroups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    cgroups.map(|entry| entry.path()).filter(|cgroup| says(cgroup, "populated 1")).collect()
}

/// The readable processes in the cgroup directory `path` and below it.
#[must_use]
pub fn processes_below(path: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    // Unreadable cgroups are skipped.
    let _ = for_each_below(path, &mut |directory| {
        pids.extend(processes_in(directory));
        Ok(())
    });
    pids
}

/// Calls `work` for `path` and the cgroups below it, deepest first, and returns the first error.
///
/// Continues after an error, because a user with delegated cgroups can nest them until paths exceed
/// `PATH_MAX`.
pub fn for_each_below(
    path: &Path,
    work: &mut dyn FnMut(&Path) -> io::Result<()>,
) -> io::Result<()> {
    // Close the directory before opening others, to bound the number of open files.
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

/// The ID of the cgroup with this directory.
#[must_use]
pub fn id_of(cgroup: &Path) -> Option<u64> {
    inode(cgroup)
}

fn inode(path: &Path) -> Option<u64> {
    path.metadata().ok().map(|metadata| metadata.ino())
}

pub(super) fn proc_error(what: &str, source: ProcError) -> ResolveError {
    ResolveError::Proc { what: what.into(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use nix::{fcntl::OFlag, sys::stat::Mode};

    use super::*;

    /// Creates nested directories deeper than `PATH_MAX`, as any user can, relative to descriptors.
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
        // Nested up to `PATH_MAX`, which must not exhaust the stack or the file descriptors.
        dig(&root.join("z"), "x", 2100);
        let mut pids = processes_below(&root);
        pids.sort_unstable();
        assert!(for_each_below(&root, &mut |_| Ok(())).is_err(), "it is not deep enough");
        // Removes directories nested deeper than `PATH_MAX`.
        fs::remove_dir_all(&root).expect("it can be removed");
        assert_eq!(pids, [11, 12, 13]);
    }
}

//! Cgroups as eBPF programs know them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs},
};

use super::mount::{Context, Mount, ROOT, kernfs_root};

/// Identifies a cgroup to the programs of a process: they compare the ancestor at `level` with `id`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupKey {
    /// Its id, as `bpf_get_current_ancestor_cgroup_id` returns it.
    pub id: u64,
    /// Its depth below the hierarchy's root.
    pub level: u32,
}

/// Where hosts mount the hierarchy.
const MOUNTS: [&str; 2] = ["sys/fs/cgroup", "sys/fs/cgroup/unified"];

/// The directory of the root of the cgroup v2 hierarchy, as far as this process's namespaces show it.
/// The hierarchy need not be mounted here: every kernel with cgroups has it.
pub(super) fn root_directory() -> io::Result<File> {
    let roots = [Path::new("/"), Path::new("/proc/1/root")];
    let paths = roots.iter().flat_map(|root| MOUNTS.map(|mount| root.join(mount)));
    for path in paths {
        if let Ok(directory) = File::open(path)
            && fstatfs(&directory).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC)
            && directory.metadata()?.ino() == ROOT
        {
            return Ok(directory);
        }
    }
    kernfs_root(&mount_own_cgroup()?.path())
}

/// Mounts the cgroup of this process, without changing the options that the host mounted the hierarchy
/// with.
pub fn mount_own_cgroup() -> io::Result<Mount> {
    let context = Context::open(c"cgroup2")?;
    // Mounting from the initial cgroup namespace would reset the mount options of the whole host.
    thread::scope(|scope| {
        let mount = || {
            unshare(CloneFlags::CLONE_NEWCGROUP)?;
            context.mount()
        };
        let mounted = thread::Builder::new().spawn_scoped(scope, mount)?;
        // Propagate panics.
        mounted.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The id of the root of this thread's cgroup namespace; `None` if it is that of the hierarchy.
pub fn namespace_root() -> io::Result<Option<u64>> {
    // PROC_CGROUP_INIT_INO, which is the same on all machines.
    const INITIAL: u64 = 0xefff_fffb;
    if fs::metadata("/proc/thread-self/ns/cgroup")?.ino() == INITIAL {
        return Ok(None);
    }
    let id = fs::metadata(Context::open(c"cgroup2")?.mount()?.path())?.ino();
    Ok((id != ROOT).then_some(id))
}

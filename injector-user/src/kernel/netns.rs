//! Network namespaces.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

use super::{KernelError, descriptor::owned};

/// The directory of namespaces named by `ip netns`.
const NAMED: &str = "/run/netns";

/// An open network namespace. Equal if it is the same namespace, by whatever path it was opened.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    /// The inode, which identifies the namespace.
    inode: u64,
    label: String,
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}

impl Eq for Netns {}

impl Netns {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, KernelError> {
        Self::open(Path::new("/proc/thread-self/ns/net"), "current".into())
    }

    /// Opens a namespace by its `ip netns` name or by path.
    pub fn find(name: &Path) -> Result<Self, KernelError> {
        let path =
            if name.components().count() > 1 { name.into() } else { Path::new(NAMED).join(name) };
        Self::open(&path, name.display().to_string())
    }

    /// The namespace of a process.
    pub fn of_process(pid: i32) -> Result<Self, KernelError> {
        Self::open(&PathBuf::from(format!("/proc/{pid}/ns/net")), format!("pid {pid}"))
    }

    /// The namespace of a socket (`SIOCGSKNS`, Linux 4.9).
    pub fn of_socket(socket: &OwnedFd) -> io::Result<Self> {
        const SIOCGSKNS: libc::Ioctl = 0x894c;
        // SAFETY: takes no argument; returns a new descriptor.
        let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
        let file = File::from(owned(fd.into())?);
        let inode = file.metadata()?.ino();
        Ok(Self { file: Arc::new(file), inode, label: format!("inode {inode}") })
    }

    /// Finds a namespace by inode, among those of all processes and named ones; `None` if it is gone
    /// or not visible.
    #[must_use]
    pub fn find_by_inode(inode: u64) -> Option<Self> {
        let named = fs::read_dir(NAMED).into_iter().flatten().flatten().map(|entry| entry.path());
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = processes.map(|entry| entry.path().join("ns/net"));
        named.chain(processes).find_map(|path| {
            Self::open(&path, path.display().to_string()).ok().filter(|netns| netns.inode == inode)
        })
    }

    fn open(path: &Path, label: String) -> Result<Self, KernelError> {
        let fail = |source: io::Error| KernelError::OpenNetns { path: path.into(), source };
        // The path may come from a client. O_PATH has no side effects, where opening a named pipe would
        // block and opening a device may do anything.
        let mut options = File::options();
        let found = options.read(true).custom_flags(libc::O_PATH).open(path).map_err(fail)?;
        if fstatfs(&found).map_err(|error| fail(error.into()))?.filesystem_type() != NSFS_MAGIC {
            return Err(fail(io::Error::other("not a network namespace")));
        }
        let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(fail)?;
        let inode = file.metadata().map_err(fail)?.ino();
        Ok(Self { file: Arc::new(file), inode, label })
    }

    /// A readable name.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The inode, as `ls -l /proc/self/ns/net` shows it.
    #[must_use]
    pub const fn inode(&self) -> u64 {
        self.inode
    }

    /// Moves the calling thread into the namespace. Makes one system call.
    pub fn enter(&self) -> nix::Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
    }

    /// Runs `work` inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, KernelError> {
        if Self::current()? == *self {
            return Ok(work());
        }
        // In another thread, so that the caller's never stays in the namespace.
        in_thread(|| {
            self.enter()
                .map_err(|source| KernelError::EnterNetns { netns: self.label.clone(), source })?;
            Ok(work())
        })
    }

    /// Runs `work` in a new namespace, which is removed afterwards.
    pub fn scratch<T: Send>(
        work: impl FnOnce() -> Result<T, KernelError> + Send,
    ) -> Result<T, KernelError> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|source| KernelError::EnterNetns { netns: "scratch".into(), source })?;
            work()
        })
    }
}

/// Runs `work` in a new thread, to confine changes of the thread's state.
pub(super) fn in_thread<T: Send>(
    work: impl FnOnce() -> Result<T, KernelError> + Send,
) -> Result<T, KernelError> {
    thread::scope(|scope| {
        let thread =
            thread::Builder::new().spawn_scoped(scope, work).map_err(KernelError::Thread)?;
        // Propagate panics.
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_other_than_namespaces_are_refused() {
        for path in ["/dev/zero", "/dev/tty", "/etc/passwd", "/proc/self/exe", "/"] {
            assert!(Netns::find(Path::new(path)).is_err(), "{path}");
        }
        let error = Netns::find(Path::new("/dev/null")).expect_err("it is a device");
        let error = format!("{:#}", anyhow::Error::new(error));
        assert!(error.contains("not a network namespace"), "{error}");
        let ours = Netns::current().expect("it is there");
        assert_eq!(Netns::find(Path::new("/proc/self/ns/net")).expect("it is there"), ours);
    }
}

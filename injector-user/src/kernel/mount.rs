//! Detached mounts: file systems that only this process sees, unmounted on drop. And a mount namespace
//! of its own, in which a process can attach them where others do not see them.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    unistd::{chroot, fchdir},
};

use super::descriptor::owned;

/// The number of the root directory of a kernfs file system.
pub const ROOT: u64 = 1;

/// A file system whose parameters are not decided yet (`fsopen(2)`, Linux 5.2).
#[derive(Debug)]
pub struct Context(OwnedFd);

impl Context {
    /// Opens a file system by its type.
    pub fn open(kind: &CStr) -> io::Result<Self> {
        // SAFETY: the name is terminated; returns a new descriptor.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) })
            .map(Self)
    }

    /// Mounts it, with the namespaces of the calling thread.
    pub fn mount(&self) -> io::Result<Mount> {
        let none = std::ptr::null::<libc::c_char>();
        let fd = self.0.as_raw_fd();
        // SAFETY: this command takes neither key nor value.
        if unsafe {
            libc::syscall(libc::SYS_fsconfig, fd, libc::FSCONFIG_CMD_CREATE, none, none, 0)
        } != 0
        {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: takes no pointers; returns a new descriptor.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, fd, libc::FSMOUNT_CLOEXEC, 0) }).map(Mount)
    }
}

/// A detached mount.
#[derive(Debug)]
pub struct Mount(OwnedFd);

impl Mount {
    /// A copy of what is mounted at `path` in another mount namespace (`open_tree(2)`, Linux 5.2).
    pub fn copy_of(namespace: &File, path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let copy = || {
            // A thread that shares its root with others cannot change the namespace.
            unshare(CloneFlags::CLONE_FS)?;
            setns(namespace, CloneFlags::CLONE_NEWNS)?;
            let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
            // SAFETY: the path is terminated; returns a new descriptor.
            owned(unsafe {
                libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags)
            })
            .map(Self)
        };
        thread::scope(|scope| {
            let copied = thread::Builder::new().spawn_scoped(scope, copy)?;
            // Propagate panics.
            copied.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A copy of the mount in which an open directory of this mount namespace is, with that one as its
    /// root.
    fn of(directory: &File) -> io::Result<Self> {
        let flags =
            libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH.cast_unsigned();
        // SAFETY: the path is terminated; returns a new descriptor.
        owned(unsafe {
            libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), c"".as_ptr(), flags)
        })
        .map(Self)
    }

    /// Attaches all of this kernfs file system (like cgroup v2) to a directory of this mount namespace,
    /// though it may show only a part of it.
    pub fn attach_whole(&self, directory: &Path) -> io::Result<()> {
        // Before Linux 6.15, what is mounted must be attached to be copied.
        self.attach(directory)?;
        let whole = kernfs_root(directory).and_then(|root| Self::of(&root));
        umount2(directory, MntFlags::MNT_DETACH)?;
        whole?.attach(directory)
    }

    /// Attaches it to a directory of this mount namespace (`move_mount(2)`), where it stays.
    pub fn attach(&self, directory: &Path) -> io::Result<()> {
        let directory = CString::new(directory.as_os_str().as_bytes())?;
        let (from, empty) = (self.0.as_raw_fd(), c"".as_ptr());
        let (to, flags) = (libc::AT_FDCWD, libc::MOVE_MOUNT_F_EMPTY_PATH);
        // SAFETY: both paths are terminated.
        let result = unsafe {
            libc::syscall(libc::SYS_move_mount, from, empty, to, directory.as_ptr(), flags)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The path of its root, valid in this process as long as it lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.0.as_raw_fd().to_string())
    }
}

/// The root directory of a kernfs file system of which a part is mounted: found by its handle
/// (`open_by_handle_at(2)`, which requires `CAP_DAC_READ_SEARCH`).
pub fn kernfs_root(part: &Path) -> io::Result<File> {
    /// `FILEID_KERNFS`.
    const KERNFS: libc::c_int = 0xfe;

    /// A `struct file_handle` with the number of the file.
    #[repr(C, packed(4))]
    struct Handle {
        length: libc::c_uint,
        kind: libc::c_int,
        number: u64,
    }

    let part = File::open(part)?;
    let mut root = Handle { length: 8, kind: KERNFS, number: ROOT };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the handle has the length that it says; returns a new descriptor.
    let root = owned(unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, part.as_raw_fd(), &raw mut root, flags)
    })?;
    Ok(root.into())
}

/// The mount namespace, root and working directory that a process had before [`Home::leave`].
#[derive(Debug)]
pub struct Home {
    namespace: File,
    root: File,
    directory: File,
}

static HOME: OnceLock<Home> = OnceLock::new();

impl Home {
    /// Moves this process into a copy of its mount namespace. What is mounted there afterwards is not
    /// seen elsewhere; mounts of the original still appear. The process must have a single thread.
    pub fn leave() -> io::Result<()> {
        let home = Self {
            namespace: File::open("/proc/self/ns/mnt")?,
            root: File::open("/")?,
            directory: File::open(".")?,
        };
        unshare(CloneFlags::CLONE_NEWNS)?;
        // It was left already if this fails.
        let _ = HOME.set(home);
        let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
        Ok(mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?)
    }

    /// What this process has left, if anything.
    #[must_use]
    pub fn left() -> Option<&'static Self> {
        HOME.get()
    }

    /// Returns there. Only makes system calls, so that a forked child can do it before it executes a
    /// program.
    pub fn enter(&self) -> io::Result<()> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNS)?;
        fchdir(&self.root)?;
        chroot(".")?;
        Ok(fchdir(&self.directory)?)
    }
}

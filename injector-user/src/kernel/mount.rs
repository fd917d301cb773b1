//! Detached mounts: file systems that only this process sees, unmounted on drop.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use super::descriptor::owned;

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
    /// The path of its root, valid in this process as long as it lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.0.as_raw_fd().to_string())
    }
}

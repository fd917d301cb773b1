//! Descriptors from system calls that no library wraps.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// The new descriptor that a system call returned, or its error.
pub(super) fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and owned by nothing else.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

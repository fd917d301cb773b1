//! Raw bpf(2) calls that aya does not provide.

use std::{
    ffi::c_long,
    io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd};

/// Attributes that are all zero.
pub(super) fn attributes() -> bpf_attr {
    // SAFETY: zeroes are valid for each of its structures, which are of integers.
    unsafe { std::mem::zeroed() }
}

/// Calls bpf(2) with a command that returns a new file descriptor.
///
/// # Safety
///
/// As for [`call`]; the command must return a file descriptor.
pub(super) unsafe fn new_descriptor(
    command: bpf_cmd,
    attributes: &mut bpf_attr,
) -> io::Result<OwnedFd> {
    // SAFETY: as for this function; the descriptor is new.
    unsafe { call(command, attributes).map(|fd| OwnedFd::from_raw_fd(fd as RawFd)) }
}

/// Calls bpf(2).
///
/// # Safety
///
/// All pointers in the attributes must be valid for the reads and writes of the command.
pub(super) unsafe fn call(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<c_long> {
    let attributes: *mut bpf_attr = attributes;
    // SAFETY: as for this function.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as c_long, attributes, size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

//! `bpf_link`s of interfaces: attaches programs by tcx and XDP and detects foreign detachment.
//!
//! aya's links do not expose their descriptors, which are needed to query their state: any process with
//! `CAP_SYS_ADMIN` can detach a link (`bpftool link detach`), whose descriptor stays valid.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{
    BPF_F_BEFORE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_prog_info,
};

use nix::fcntl::{FcntlArg, fcntl};

use super::bpf::{attributes, call, new_descriptor};

/// The maximum number of programs at a hook of an interface (`BPF_MPROG_MAX`).
const MAX_PROGRAMS: usize = 64;

/// The minimum number of file descriptors that must be closed late.
const LATE_FD: i32 = 900;

/// Duplicates a descriptor to a high number, if available. The kernel closes the files of a dying
/// process in order of their numbers, and the programs that redirect packets to a device must be
/// detached before what makes it work.
#[must_use]
pub fn closed_late(fd: OwnedFd) -> OwnedFd {
    match fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(LATE_FD)) {
        // SAFETY: the descriptor is new and owned by nothing else.
        Ok(number) => unsafe { OwnedFd::from_raw_fd(number) },
        Err(error) => {
            tracing::debug!(%error, fd = fd.as_raw_fd(), "no high descriptor number is available");
            fd
        }
    }
}

/// The attachment of a program to an interface. Dropping it detaches the program.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
    id: u32,
}

/// A program at a tcx hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The ID of the program.
    pub program: u32,
    /// The ID of the link, or 0 if it is attached without one.
    pub link: u32,
}

impl Link {
    /// Attaches a program by tcx, ahead of all others.
    pub(super) fn tcx(
        program: BorrowedFd,
        interface: u32,
        side: bpf_attach_type,
    ) -> io::Result<Self> {
        Self::create(program, interface, side, BPF_F_BEFORE)
    }

    /// Attaches a program by XDP, with its flags (`XDP_FLAGS_*`).
    pub(super) fn xdp(program: BorrowedFd, interface: u32, flags: u32) -> io::Result<Self> {
        Self::create(program, interface, bpf_attach_type::BPF_XDP, flags)
    }

    fn create(
        program: BorrowedFd,
        interface: u32,
        attach_type: bpf_attach_type,
        flags: u32,
    ) -> io::Result<Self> {
        let mut attributes = attributes();
        // SAFETY: all of it is zeroes, which are valid.
        let create = unsafe { &mut attributes.link_create };
        create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
        create.__bindgen_anon_2.target_ifindex = interface;
        create.attach_type = attach_type as u32;
        create.flags = flags;
        // SAFETY: nothing is pointed to.
        let fd = unsafe { new_descriptor(bpf_cmd::BPF_LINK_CREATE, &mut attributes) }?;
        let id = info(fd.as_fd())?.id;
        Ok(Self { fd, id })
    }

    /// Makes the kernel detach it after other links if this process dies, see [`closed_late`].
    #[must_use]
    pub fn closed_late(self) -> Self {
        Self { fd: closed_late(self.fd), ..self }
    }

    /// Its ID.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Whether the program is still attached.
    pub fn is_attached(&self) -> io::Result<bool> {
        let info = info(self.fd.as_fd())?;
        // SAFETY: tcx and XDP links alike begin with the interface's index, which is 0 once they are detached.
        Ok(unsafe { info.__bindgen_anon_1.xdp.ifindex } != 0)
    }
}

fn info(link: BorrowedFd) -> io::Result<bpf_link_info> {
    // SAFETY: zeroes are valid for the structure, which is of integers.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    object_info(link, &mut info)?;
    Ok(info)
}

/// The kernel's information about a program or a link.
fn object_info<T>(object: BorrowedFd, info: &mut T) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.info.bpf_fd = object.as_raw_fd().cast_unsigned();
    attributes.info.info_len = size_of::<T>() as u32;
    attributes.info.info = std::ptr::from_mut(info) as u64;
    // SAFETY: the structure is as long as is said, and lives during the call.
    unsafe { call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }.map(drop)
}

/// The programs at a tcx hook of an interface of the calling thread's namespace, in the order in which they run.
pub(super) fn query(interface: u32, side: bpf_attach_type) -> io::Result<Vec<Attached>> {
    let mut programs = [0u32; MAX_PROGRAMS];
    let mut links = [0u32; MAX_PROGRAMS];
    let mut attributes: bpf_attr = attributes();
    // SAFETY: all of it is zeroes, which are valid.
    let query = unsafe { &mut attributes.query };
    query.__bindgen_anon_1.target_ifindex = interface;
    query.attach_type = side as u32;
    query.prog_ids = programs.as_mut_ptr() as u64;
    query.link_ids = links.as_mut_ptr() as u64;
    query.__bindgen_anon_2.count = MAX_PROGRAMS as u32;
    // SAFETY: both arrays are as long as is said, and live during the call.
    unsafe { call(bpf_cmd::BPF_PROG_QUERY, &mut attributes) }?;
    // SAFETY: the call has written it.
    let count = unsafe { attributes.query.__bindgen_anon_2.count } as usize;
    let found = programs.into_iter().zip(links).take(count);
    Ok(found.map(|(program, link)| Attached { program, link }).collect())
}

/// The name of a program, truncated by the kernel to 15 bytes; `None` if it is gone.
#[must_use]
pub fn program_name(program: u32) -> Option<String> {
    let mut attributes = attributes();
    // SAFETY: all of it is zeroes, which are valid.
    unsafe { &mut attributes.__bindgen_anon_6 }.__bindgen_anon_1.prog_id = program;
    // SAFETY: nothing is pointed to.
    let fd = unsafe { new_descriptor(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attributes) }.ok()?;
    // SAFETY: zeroes are valid for the structure, which is of integers.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    object_info(fd.as_fd(), &mut info).ok()?;
    let name = info.name.map(|byte| byte.to_ne_bytes()[0]);
    CStr::from_bytes_until_nul(&name).ok().map(|name| name.to_string_lossy().into_owned())
}

//! `bpf()` for what aya does not have: `BPF_PROG_TEST_RUN`, and programs that do nothing.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// `enum bpf_cmd` of include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_LINK_CREATE: libc::c_int = 28;

/// `enum bpf_prog_type`.
pub const SCHED_CLS: u32 = 3;
/// Likewise.
pub const XDP: u32 = 6;

/// The `test` member of `union bpf_attr` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// What the kernel answers.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// What the program returned in the last run.
    pub verdict: u32,
    /// Nanoseconds a run, a whole number; times at which the kernel ran something else are left out.
    pub ns: u32,
}

/// Runs `program` on `frame`, `repeat` times.
pub fn test_run(program: BorrowedFd, frame: &[u8], repeat: u32) -> io::Result<Outcome> {
    let mut attributes = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    // SAFETY: the attributes are as the kernel wants them; it reads the frame, which outlives the call.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes)? };
    Ok(Outcome { verdict: attributes.retval, ns: attributes.duration })
}

/// The first members of the unnamed one of `union bpf_attr` for programs; the others may be left out.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// A program that does nothing but return `verdict`: what is measured of it is the measuring.
pub fn load_empty(prog_type: u32, verdict: i16) -> io::Result<OwnedFd> {
    // `r0 = verdict; exit`, as `struct bpf_insn`: code, registers, offset, immediate.
    let [low, high] = verdict.to_le_bytes();
    let sign = if verdict < 0 { 0xff } else { 0 };
    let instructions: [u8; 16] = [0xb7, 0, 0, 0, low, high, sign, sign, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let mut attributes = Load {
        prog_type,
        insn_cnt: 2,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    // SAFETY: the attributes are as the kernel wants them; it reads the instructions and the licence,
    // which outlive the call, and returns a new descriptor.
    unsafe {
        let descriptor = bpf(BPF_PROG_LOAD, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// `enum bpf_attach_type`.
pub const TCX_INGRESS: u32 = 46;
/// Likewise.
pub const TCX_EGRESS: u32 = 47;

/// The first members of `link_create` of `union bpf_attr`; the others may be left out.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to an interface of the calling thread's namespace until what is returned is dropped.
pub fn attach(program: BorrowedFd, interface: &CStr, attach_type: u32) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string.
    let target_ifindex = unsafe { libc::if_nametoindex(interface.as_ptr()) };
    if target_ifindex == 0 {
        return Err(io::Error::last_os_error());
    }
    let mut attributes = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex,
        attach_type,
        flags: 0,
    };
    // SAFETY: the attributes are as the kernel wants them, which returns a new descriptor.
    unsafe {
        let descriptor = bpf(BPF_LINK_CREATE, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// The system call.
///
/// # Safety
///
/// The attributes must be those of the command, and what they point to must be valid.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: as for this function.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    // What the kernel returns is a descriptor, 0, or -1.
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

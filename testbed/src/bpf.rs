//! Raw bpf(2) calls: programs of a few instructions, test runs, and links of other processes.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
    process::Command,
};

use super::{Host, INTERFACE, scratch_file};

/// Commands of bpf(2) (`linux/bpf.h`).
mod command {
    pub const MAP_CREATE: i64 = 0;
    pub const MAP_LOOKUP_ELEM: i64 = 1;
    pub const PROG_LOAD: i64 = 5;
    pub const OBJ_PIN: i64 = 6;
    pub const PROG_TEST_RUN: i64 = 10;
    pub const LINK_CREATE: i64 = 28;
    pub const LINK_GET_FD_BY_ID: i64 = 30;
    pub const LINK_DETACH: i64 = 34;
}

/// Program types (`enum bpf_prog_type`).
pub const SCHED_CLS: u32 = 3;
/// The type of XDP programs.
pub const XDP: u32 = 6;

/// Attach types (`enum bpf_attach_type`).
pub const TCX_INGRESS: u32 = 46;
/// Egress by tcx.
pub const TCX_EGRESS: u32 = 47;

/// Attributes of bpf(2), as the 32-bit words that they consist of; pointers take two.
type Attributes = [u32; 36];

fn attributes(words: &[u32]) -> Attributes {
    let mut attributes = [0; 36];
    attributes[..words.len()].copy_from_slice(words);
    attributes
}

fn call(command: i64, attributes: &mut Attributes) -> io::Result<i64> {
    // SAFETY: the attributes are as long as is said, and what they point to is the caller's.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn bpf(command: i64, words: &[u32]) -> io::Result<i64> {
    call(command, &mut attributes(words))
}

fn descriptor(command: i64, words: &[u32]) -> io::Result<OwnedFd> {
    // SAFETY: the command returns a new descriptor.
    bpf(command, words).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn words_of<T>(pointer: *const T) -> [u32; 2] {
    let address = pointer as u64;
    [address as u32, (address >> 32) as u32]
}

/// Loads a program.
pub fn load(kind: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let [code, code_high] = words_of(instructions.as_ptr());
    let [text, text_high] = words_of(license.as_ptr());
    let words = [kind, instructions.len() as u32, code, code_high, text, text_high];
    descriptor(command::PROG_LOAD, &words)
}

/// Loads a program that only returns `verdict`.
pub fn load_empty(kind: u32, verdict: i32) -> io::Result<OwnedFd> {
    load(kind, &[instruction(0xb7, 0, 0, u64::from(verdict.cast_unsigned())), 0x95])
}

/// An instruction (`struct bpf_insn`).
const fn instruction(code: u64, registers: u64, offset: u64, value: u64) -> u64 {
    code | registers << 8 | (offset & 0xffff) << 16 | value << 32
}

/// Attaches a program to an interface of the calling thread's namespace. Dropping the returned link
/// detaches it.
pub fn attach(
    program: BorrowedFd<'_>,
    interface: &CStr,
    side: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string.
    let index = unsafe { libc::if_nametoindex(interface.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let program = program.as_raw_fd().cast_unsigned();
    descriptor(command::LINK_CREATE, &[program, index, side, flags])
}

/// The answer to a test run.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The return value of the last run.
    pub verdict: u32,
    /// The time a run in whole nanoseconds, without preemption.
    pub ns: u32,
}

/// Runs a program on `frame`, `repeat` times.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<Outcome> {
    let [data, data_high] = words_of(frame.as_ptr());
    let program = program.as_raw_fd().cast_unsigned();
    // prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat, duration
    let words = [program, 0, frame.len() as u32, 0, data, data_high, 0, 0, repeat, 0];
    let mut attributes = attributes(&words);
    call(command::PROG_TEST_RUN, &mut attributes)?;
    Ok(Outcome { verdict: attributes[1], ns: attributes[9] })
}

/// A link of a process that attaches a program to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Its id.
    pub id: u32,
    /// The interface's index.
    pub interface: u32,
}

/// The fdinfo of the links of a process.
fn link_files(pid: i32) -> impl Iterator<Item = String> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    texts.filter(|text| text.contains("link_id:"))
}

fn field(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// The links of a process that attach programs to interfaces.
#[must_use]
pub fn links(pid: i32) -> Vec<Link> {
    let link = |text: String| {
        // Detached links have no interface.
        let interface = field(&text, "ifindex:").filter(|index| *index != 0)?;
        Some(Link { id: field(&text, "link_id:")?, interface })
    };
    let mut links: Vec<Link> = link_files(pid).filter_map(link).collect();
    links.sort_unstable();
    links
}

/// The IDs of all links of a process.
#[must_use]
pub fn all_links(pid: i32) -> Vec<u32> {
    link_files(pid).filter_map(|text| field(&text, "link_id:")).collect()
}

/// Detaches a link, as `bpftool link detach` does.
pub fn detach(link: Link) -> io::Result<()> {
    detach_by_id(link.id)
}

/// Detaches a link by ID.
pub fn detach_by_id(link: u32) -> io::Result<()> {
    let fd = descriptor(command::LINK_GET_FD_BY_ID, &[link])?;
    bpf(command::LINK_DETACH, &[fd.as_raw_fd().cast_unsigned()]).map(drop)
}

/// A tc program that counts IPv4 packets (without ARP or neighbour discovery). It accepts packets, if
/// `accepts`, or else passes them to the next program.
#[derive(Debug)]
pub struct Counter {
    map: OwnedFd,
    program: OwnedFd,
    /// The path at which it is pinned, for tc(8).
    directory: PathBuf,
}

impl Counter {
    /// Loads it.
    #[must_use]
    pub fn new(accepts: bool) -> Self {
        Self::make(accepts, None)
    }

    /// Loads one that gives all packets this `tc_index` as well.
    #[must_use]
    pub fn with_index(index: u16) -> Self {
        Self::make(false, Some(index))
    }

    fn make(accepts: bool, index: Option<u16>) -> Self {
        const ARRAY: u32 = 2;
        let map = descriptor(command::MAP_CREATE, &[ARRAY, 4, 8, 1]).expect("root may");
        let fd = u64::from(map.as_raw_fd().cast_unsigned());
        let verdict: u64 = if accepts { 0 } else { 0xffff_ffff };
        let mut instructions = Vec::new();
        if let Some(index) = index {
            instructions.push(instruction(0xb7, 0x02, 0, index.into())); // r2 = the index
            instructions.push(instruction(0x63, 0x21, 44, 0)); // the skb's tc_index = r2
        }
        instructions.extend([
            instruction(0x61, 0x13, 16, 0), // r3 = the skb's protocol
            instruction(0x55, 0x03, 9, u64::from(0x0800u16.to_be())), // if it is not IPv4, skip 9
            instruction(0x62, 0x0a, 0xfffc, 0), // *(u32 *)(r10 - 4) = 0
            instruction(0xbf, 0xa2, 0, 0),  // r2 = r10
            instruction(0x07, 0x02, 0, 0xffff_fffc), // r2 += -4
            instruction(0x18, 0x11, 0, fd), // r1 = the map
            0,
            instruction(0x85, 0, 0, 1), // r0 = bpf_map_lookup_elem(r1, r2)
            instruction(0x15, 0x00, 2, 0), // if r0 == 0, skip 2
            instruction(0xb7, 0x01, 0, 1), // r1 = 1
            instruction(0xdb, 0x10, 0, 0), // lock *(u64 *)(r0) += r1
            instruction(0xb7, 0x00, 0, verdict), // r0 = the verdict
            instruction(0x95, 0, 0, 0), // exit
        ]);
        let program = load(SCHED_CLS, &instructions).expect("the verifier takes it");
        let directory = scratch_file();
        fs::create_dir(&directory).expect("it can be made");
        let mounted = Command::new("mount").args(["-t", "bpf", "none"]).arg(&directory).status();
        assert!(mounted.expect("mount").success());
        let counter = Self { map, program, directory };
        let path = CString::new(counter.pin().as_os_str().as_bytes()).expect("no zeroes");
        let [name, name_high] = words_of(path.as_ptr());
        let words = [name, name_high, counter.program.as_raw_fd().cast_unsigned()];
        bpf(command::OBJ_PIN, &words).expect("it can be pinned");
        counter
    }

    fn pin(&self) -> PathBuf {
        self.directory.join("counter")
    }

    /// Attaches it to an existing clsact qdisc.
    pub fn filter(&self, host: &Host, side: &str, priority: u16) {
        let pin = self.pin();
        let what = format!("pref {priority} protocol all bpf direct-action object-pinned");
        host.run(&format!("tc filter add dev {INTERFACE} {side} {what} {}", pin.display()));
    }

    /// Attaches it by tcx, before or after all others. Dropping the link detaches it.
    #[must_use]
    pub fn tcx(&self, host: &Host, side: &str, is_first: bool) -> OwnedFd {
        const BEFORE: u32 = 8;
        const AFTER: u32 = 16;
        let side = if side == "ingress" { TCX_INGRESS } else { TCX_EGRESS };
        let flags = if is_first { BEFORE } else { AFTER };
        let name = CString::new(INTERFACE).expect("no zeroes");
        host.inside(|| attach(self.program.as_fd(), &name, side, flags)).expect("Linux 6.6")
    }

    /// The number of packets counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        let (key, mut value) = (0u32, 0u64);
        let [key, key_high] = words_of(&raw const key);
        let [to, to_high] = words_of((&raw mut value).cast_const());
        let map = self.map.as_raw_fd().cast_unsigned();
        bpf(command::MAP_LOOKUP_ELEM, &[map, 0, key, key_high, to, to_high]).expect("it is there");
        // SAFETY: it is a local variable, which the kernel has written to.
        unsafe { (&raw const value).read_volatile() }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // A failure cannot be handled while panicking.
        let _ = Command::new("umount").arg(&self.directory).status();
        let _ = fs::remove_dir(&self.directory);
    }
}

//! Matches the path of a file, as its process sees it, against a pattern.
//!
//! `bpf_d_path` is only available at few hooks, and not at the same ones for both kinds of
//! programs. The path is therefore assembled from kernel structures, from the file up to the root,
//! across mount points. Nothing is locked, so a file that is being moved may appear with a path
//! that it never had.

use core::arch::asm;

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_get_current_task, bpf_get_smp_processor_id, bpf_probe_read_kernel},
    macros::map,
    maps::Array,
};
use injector_common::{
    errno::{MAX_NAME, MAX_PATH, SCRATCHES, Scratch},
    glob::Glob,
};

use crate::{COUNTERS, atomic, kernel::field};

/// Offset of `f_path` in the kernel's `struct file`. All offsets are in bytes.
#[unsafe(no_mangle)]
static FILE_PATH: Global<u64> = Global::new(0);

/// Offset of `mnt` in `struct path`.
#[unsafe(no_mangle)]
static PATH_MOUNT: Global<u64> = Global::new(0);

/// Offset of `dentry` in `struct path`.
#[unsafe(no_mangle)]
static PATH_ENTRY: Global<u64> = Global::new(0);

/// Offset of `d_parent` in `struct dentry`.
#[unsafe(no_mangle)]
static ENTRY_PARENT: Global<u64> = Global::new(0);

/// Offset of `d_name.name` in `struct dentry`.
#[unsafe(no_mangle)]
static ENTRY_NAME: Global<u64> = Global::new(0);

/// Offset of `d_name.len` in `struct dentry`.
#[unsafe(no_mangle)]
static ENTRY_LENGTH: Global<u64> = Global::new(0);

/// Offset of `mnt_root` in `struct vfsmount`.
#[unsafe(no_mangle)]
static MOUNT_ROOT: Global<u64> = Global::new(0);

/// Offset of `mnt`, a `struct vfsmount`, in `struct mount`.
#[unsafe(no_mangle)]
static MOUNT_VFS: Global<u64> = Global::new(0);

/// Offset of `mnt_parent` in `struct mount`.
#[unsafe(no_mangle)]
static MOUNT_PARENT: Global<u64> = Global::new(0);

/// Offset of `mnt_mountpoint` in `struct mount`.
#[unsafe(no_mangle)]
static MOUNT_POINT: Global<u64> = Global::new(0);

/// Offset of `fs` in `struct task_struct`.
#[unsafe(no_mangle)]
static TASK_FS: Global<u64> = Global::new(0);

/// Offset of `root`, a `struct path`, in `struct fs_struct`.
#[unsafe(no_mangle)]
static FS_ROOT: Global<u64> = Global::new(0);

/// The pattern.
#[map]
static GLOB: Array<Glob> = Array::with_max_entries(1, 0);

/// Buffers for paths. The stack has only 512 bytes, and a program may be preempted. Userspace
/// reserves [`SCRATCHES`] for each processor.
#[map]
static SCRATCH: Array<Scratch> = Array::with_max_entries(SCRATCHES, 0);

/// Maximum number of path components and mount points up to the root.
const DEEPEST: u32 = 64;

/// Value instead of a path's start: it does not lead to the process's root.
const UNREACHABLE: u64 = u64::MAX;

/// Value instead of a path's start: it is too long or too deep.
const TOO_LONG: u64 = u64::MAX - 1;

/// No problem.
const NONE: u64 = 0;

/// Whether a `struct file` matches the pattern.
#[inline(always)]
pub fn is_of_file(file: u64) -> bool {
    // mmap(2) passes none for anonymous memory.
    file != 0 && is(file.wrapping_add(FILE_PATH.load()))
}

/// Whether a `struct path` matches the pattern.
#[inline(always)]
pub fn is(path: u64) -> bool {
    let Some(entry) = field(path, PATH_ENTRY.load()) else { return false };
    is_of_entry(path, entry)
}

/// Whether a `struct dentry` in the mount of a `struct path` matches the pattern.
#[inline(always)]
pub fn is_of_entry(path: u64, entry: u64) -> bool {
    let Some(mount) = field(path, PATH_MOUNT.load()) else { return false };
    let Some(scratch) = claim() else {
        count_unknown();
        return false;
    };
    write(scratch, mount, entry);
    // SAFETY: in the map.
    let start = unsafe { (&raw const (*scratch).start).read_volatile() };
    let is_match = start <= MAX_PATH as u64 && matches(scratch) != 0;
    if start == TOO_LONG {
        count_unknown();
    }
    // SAFETY: in the map, and claimed by this program.
    unsafe { (&raw mut (*scratch).in_use).write_volatile(0) };
    is_match
}

/// Claims a buffer that no other program uses.
#[inline(always)]
fn claim() -> Option<*mut Scratch> {
    // SAFETY: takes no pointers.
    let first = unsafe { bpf_get_smp_processor_id() } as u32 * SCRATCHES;
    let mut number = first;
    while !claims(number) {
        number += 1;
        if number == first + SCRATCHES {
            return None;
        }
    }
    // Looked up again, so that the verifier follows one path from here instead of one for each
    // number.
    SCRATCH.get_ptr_mut(number)
}

#[inline(always)]
fn claims(number: u32) -> bool {
    let Some(scratch) = SCRATCH.get_ptr_mut(number) else { return false };
    // SAFETY: in the map, aligned.
    unsafe { atomic::compare_exchange(&raw mut (*scratch).in_use, 0, 1) == 0 }
}

#[inline(always)]
fn count_unknown() {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: in the map, aligned.
        unsafe { atomic::fetch_add(&raw mut (*counters).unknown, 1) };
    }
}

/// Writes the path to the end of the first [`MAX_PATH`] bytes, and stores where it starts.
#[inline(never)]
fn write(scratch: *mut Scratch, mount: u64, entry: u64) {
    // SAFETY: in the map.
    let start = unsafe { &raw mut (*scratch).start };
    // SAFETY: in the map.
    unsafe { start.write_volatile(MAX_PATH as u64) };
    let problem = try_write(scratch, mount, entry).unwrap_or(UNREACHABLE);
    if problem != NONE {
        // SAFETY: in the map.
        unsafe { start.write_volatile(problem) };
    }
}

/// Writes the path; returns a problem, if any.
#[inline(always)]
fn try_write(scratch: *mut Scratch, mut mount: u64, mut entry: u64) -> Option<u64> {
    // SAFETY: takes no pointers.
    let task = unsafe { bpf_get_current_task() };
    let fs: u64 = field(task, TASK_FS.load())?;
    let root = fs.wrapping_add(FS_ROOT.load());
    let root_mount: u64 = field(root, PATH_MOUNT.load())?;
    let root_entry: u64 = field(root, PATH_ENTRY.load())?;
    for _ in 0..DEEPEST {
        if mount == root_mount && entry == root_entry {
            end(scratch);
            return Some(NONE);
        }
        let parent: u64 = field(entry, ENTRY_PARENT.load())?;
        let top: u64 = field(mount, MOUNT_ROOT.load())?;
        if entry == top || entry == parent {
            let of_mount = mount.wrapping_sub(MOUNT_VFS.load());
            let above: u64 = field(of_mount, MOUNT_PARENT.load())?;
            if above == of_mount {
                return None;
            }
            entry = field(of_mount, MOUNT_POINT.load())?;
            mount = above.wrapping_add(MOUNT_VFS.load());
            continue;
        }
        let length: u32 = field(entry, ENTRY_LENGTH.load())?;
        let name: u64 = field(entry, ENTRY_NAME.load())?;
        match prepend(scratch, name, length) {
            WRITTEN => entry = parent,
            UNREADABLE => return None,
            _ => return Some(TOO_LONG),
        }
    }
    Some(TOO_LONG)
}

const WRITTEN: u32 = 0;
const UNREADABLE: u32 = 1;
const NO_ROOM: u32 = 2;

/// Prepends a name, and `/` before it.
#[inline(never)]
fn prepend(scratch: *mut Scratch, name: u64, length: u32) -> u32 {
    // SAFETY: in the map.
    let before = unsafe { (&raw const (*scratch).start).read_volatile() } as u32;
    if length > MAX_NAME as u32 || before <= length {
        return NO_ROOM;
    }
    let at = masked::<{ MAX_PATH as u64 - 1 }>(before - length - 1);
    let length = masked::<{ MAX_NAME as u64 }>(length);
    // SAFETY: within the bytes, which have room for a name of maximum length at any position; a
    // failing read is an error.
    unsafe {
        let to = (&raw mut (*scratch).bytes).cast::<u8>().add(at as usize);
        *to = b'/';
        if bpf_probe_read_kernel(to.add(1).cast(), length as u32, name as *const _) != 0 {
            return UNREADABLE;
        }
        (&raw mut (*scratch).start).write_volatile(at);
    }
    WRITTEN
}

/// Completes the path. The root's path has no name.
#[inline(always)]
fn end(scratch: *mut Scratch) {
    // SAFETY: in the map.
    unsafe {
        let start = &raw mut (*scratch).start;
        if start.read_volatile() == MAX_PATH as u64 {
            start.write_volatile(MAX_PATH as u64 - 1);
            (*scratch).bytes[MAX_PATH - 1] = b'/';
        }
    }
}

/// Whether the path matches.
#[inline(never)]
fn matches(scratch: *const Scratch) -> u32 {
    let Some(glob) = GLOB.get(0) else { return 0 };
    // SAFETY: in the map.
    let (start, bytes) = unsafe {
        (
            (&raw const (*scratch).start).read_volatile() as u32,
            (&raw const (*scratch).bytes).cast::<u8>(),
        )
    };
    let mut state = Glob::start();
    for number in 0..MAX_PATH as u32 {
        let at = start.wrapping_add(number);
        if at >= MAX_PATH as u32 {
            break;
        }
        let at = masked::<{ MAX_PATH as u64 - 1 }>(at);
        // SAFETY: within the bytes.
        state = glob.step(state, unsafe { *bytes.add(at as usize) });
        // A single comparison: the verifier would follow a separate path for each word.
        if state[0] | state[1] | state[2] | state[3] == 0 {
            return 0;
        }
    }
    u32::from(glob.accepts(state))
}

/// The lower bits of a number, in the register that is then used: the verifier tracks bounds by
/// register, and the compiler would remove a mask that it considers redundant.
#[inline(always)]
fn masked<const MASK: u64>(number: u32) -> u64 {
    let mut number = u64::from(number);
    // SAFETY: only changes the register.
    unsafe {
        asm!(
            "{number} &= {mask}",
            number = inout(reg) number,
            mask = const MASK,
            options(pure, nomem, nostack),
        );
    }
    number
}

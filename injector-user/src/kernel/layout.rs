//! Offsets of the kernel structures that the eBPF side reads, from the running kernel's BTF.
//!
//! Each start needs a few offsets from 5 MB of type information. General BTF crates decode all of it,
//! which takes over 100 ms (btfparse 1.3.9); a single pass over the type section takes 10 ms. A test
//! compares the results with btfparse.
//!
//! Format: <https://docs.kernel.org/bpf/btf.html>.

use std::{fs, io, sync::OnceLock};

use thiserror::Error;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Offsets in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Of `sk_cgrp_data.cgroup` in `struct sock`.
    pub sock_cgroup: u32,
    /// Of `level` in `struct cgroup`.
    pub cgroup_level: u32,
    /// Of `ancestors` in `struct cgroup` (Linux 6.1; inside an anonymous union on 7.3).
    pub cgroup_ancestors: u32,
    /// Of `kn` in `struct cgroup`.
    pub cgroup_kn: u32,
    /// Of `id` in `struct kernfs_node`.
    pub kernfs_id: u32,
}

/// Offsets in `struct task_struct` unless said otherwise, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskLayout {
    /// Of `pid`, which is the thread.
    pub pid: u32,
    /// Of `tgid`, which is the process.
    pub tgid: u32,
    /// Of `real_parent`.
    pub parent: u32,
    /// Of `signal`.
    pub signal: u32,
    /// Of `pids[PIDTYPE_PGID]` in `struct signal_struct` (Linux 4.19).
    pub group: u32,
    /// Of `pids[PIDTYPE_TGID]` in `struct signal_struct` (Linux 4.19).
    pub process: u32,
    /// Of `live` in `struct signal_struct`.
    pub live: u32,
    /// Of `level` in `struct pid`.
    pub pid_level: u32,
    /// Of `numbers` in `struct pid`.
    pub pid_numbers: u32,
    /// Of `ns.inum` in `struct pid_namespace`.
    pub namespace_inode: u32,
}

impl TaskLayout {
    /// That of the running kernel.
    pub fn of_kernel() -> Result<Self, LayoutError> {
        static KNOWN: OnceLock<TaskLayout> = OnceLock::new();
        if let Some(known) = KNOWN.get() {
            return Ok(*known);
        }
        Self::read().map(|layout| *KNOWN.get_or_init(|| layout))
    }

    fn read() -> Result<Self, LayoutError> {
        /// `PIDTYPE_TGID`, in bytes.
        const TGID: u32 = 8;
        /// `PIDTYPE_PGID`, in bytes.
        const PGID: u32 = 2 * 8;
        let [pid, tgid, parent, signal, pids, live, pid_level, pid_numbers, namespace_inode] =
            offsets_of_kernel([
                ("task_struct", "pid"),
                ("task_struct", "tgid"),
                ("task_struct", "real_parent"),
                ("task_struct", "signal"),
                ("signal_struct", "pids"),
                ("signal_struct", "live"),
                ("pid", "level"),
                ("pid", "numbers"),
                ("pid_namespace", "ns.inum"),
            ])?;
        let (process, group) = (pids + TGID, pids + PGID);
        Ok(Self {
            pid,
            tgid,
            parent,
            signal,
            group,
            process,
            live,
            pid_level,
            pid_numbers,
            namespace_inode,
        })
    }
}

/// Why a layout cannot be determined.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// The kernel has no BTF or it cannot be read.
    #[error("cannot read {VMLINUX}: {0}")]
    Read(#[source] io::Error),
    /// The BTF is malformed.
    #[error("{VMLINUX} is malformed")]
    Malformed,
    /// A structure lacks a member.
    #[error("struct {0} has no member {1}")]
    Missing(&'static str, &'static str),
}

impl Layout {
    /// That of the running kernel.
    pub fn of_kernel() -> Result<Self, LayoutError> {
        let wanted = [
            ("sock", "sk_cgrp_data"),
            ("sock_cgroup_data", "cgroup"),
            ("cgroup", "level"),
            ("cgroup", "ancestors"),
            ("cgroup", "kn"),
            ("kernfs_node", "id"),
        ];
        let [data, in_data, cgroup_level, cgroup_ancestors, cgroup_kn, kernfs_id] =
            offsets_of_kernel(wanted)?;
        Ok(Self {
            sock_cgroup: data + in_data,
            cgroup_level,
            cgroup_ancestors,
            cgroup_kn,
            kernfs_id,
        })
    }
}

/// What the clock probes read of a task. Offsets in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeLayout {
    /// Of `mm` in `struct task_struct`.
    pub task_mm: u32,
    /// Of `files` in `struct task_struct`.
    pub task_files: u32,
    /// Of the start of the vDSO in `struct mm_struct`.
    pub mm_vdso: u32,
    /// Of the image of the vDSO in `struct mm_struct`.
    pub mm_vdso_image: u32,
    /// Of `saved_auxv` in `struct mm_struct`.
    pub mm_auxv: u32,
    /// Of the size in the image of a vDSO.
    pub vdso_image_size: u32,
    /// Of `fdt` in `struct files_struct`.
    pub files_table: u32,
    /// Of `max_fds` in `struct fdtable`.
    pub table_length: u32,
    /// Of `fd` in `struct fdtable`.
    pub table_files: u32,
    /// Of `private_data` in `struct file`.
    pub file_data: u32,
    /// Of `clockid` in `struct timerfd_ctx`.
    pub timerfd_clock: u32,
}

impl ProbeLayout {
    /// That of the running kernel, which has these members for vDSOs.
    pub fn of_kernel(vdso: [(&'static str, &'static str); 3]) -> Result<Self, LayoutError> {
        let [vdso_start, vdso_image, vdso_size] = vdso;
        let [
            task_mm,
            task_files,
            mm_vdso,
            mm_vdso_image,
            mm_auxv,
            vdso_image_size,
            files_table,
            table_length,
            table_files,
            file_data,
            timerfd_clock,
        ] = offsets_of_kernel([
            ("task_struct", "mm"),
            ("task_struct", "files"),
            vdso_start,
            vdso_image,
            ("mm_struct", "saved_auxv"),
            vdso_size,
            ("files_struct", "fdt"),
            ("fdtable", "max_fds"),
            ("fdtable", "fd"),
            ("file", "private_data"),
            ("timerfd_ctx", "clockid"),
        ])?;
        Ok(Self {
            task_mm,
            task_files,
            mm_vdso,
            mm_vdso_image,
            mm_auxv,
            vdso_image_size,
            files_table,
            table_length,
            table_files,
            file_data,
            timerfd_clock,
        })
    }
}

/// What failing system calls are matched by. Offsets in bytes, by the name of what the eBPF side calls them.
pub type ErrnoLayout = [(&'static str, u64); 17];

/// Those of the running kernel, and the numbers of functions as by [`functions`].
pub fn errno_layout(names: &[String]) -> Result<(ErrnoLayout, Vec<Option<u32>>), LayoutError> {
    const WANTED: [(&str, (&str, &str)); 17] = [
        ("FILE_PATH", ("file", "f_path")),
        ("PATH_MOUNT", ("path", "mnt")),
        ("PATH_ENTRY", ("path", "dentry")),
        ("ENTRY_PARENT", ("dentry", "d_parent")),
        ("ENTRY_NAME", ("dentry", "d_name.name")),
        ("ENTRY_LENGTH", ("dentry", "d_name.len")),
        ("MOUNT_ROOT", ("vfsmount", "mnt_root")),
        ("MOUNT_VFS", ("mount", "mnt")),
        ("MOUNT_PARENT", ("mount", "mnt_parent")),
        ("MOUNT_POINT", ("mount", "mnt_mountpoint")),
        ("TASK_FS", ("task_struct", "fs")),
        ("FS_ROOT", ("fs_struct", "root")),
        ("SOCKET_SK", ("socket", "sk")),
        // The first member of `struct sock`.
        ("SOCK_FAMILY", ("sock_common", "skc_family")),
        ("SOCK_ADDRESS", ("sock_common", "skc_daddr")),
        ("SOCK_ADDRESS6", ("sock_common", "skc_v6_daddr")),
        ("MESSAGE_NAME", ("msghdr", "msg_name")),
    ];
    // Read once: that takes longest.
    let btf = fs::read(VMLINUX).map_err(LayoutError::Read)?;
    let offsets = offsets(&btf, WANTED.map(|(_, wanted)| wanted))?;
    let mut found = WANTED.map(|(name, _)| (name, 0));
    found.iter_mut().zip(offsets).for_each(|((_, found), offset)| *found = u64::from(offset));
    Ok((found, functions_in(&btf, names)?))
}

/// The numbers that functions of the running kernel have in BTF; `None` for those that it does not have.
pub fn functions(names: &[String]) -> Result<Vec<Option<u32>>, LayoutError> {
    functions_in(&fs::read(VMLINUX).map_err(LayoutError::Read)?, names)
}

/// Whether the running kernel tells the MPTCP socket of a subflow (Linux 6.0 with `CONFIG_MPTCP`).
#[must_use]
pub fn has_mptcp() -> bool {
    let names = ["bpf_mptcp_sock_from_subflow".to_owned()];
    functions(&names).is_ok_and(|found| found[0].is_some())
}

fn functions_in(btf: &[u8], names: &[String]) -> Result<Vec<Option<u32>>, LayoutError> {
    let sections = Sections::of(btf).ok_or(LayoutError::Malformed)?;
    let mut found = vec![None; names.len()];
    // 0 is void.
    let (mut at, mut number) = (0, 1);
    while at < sections.types.len() {
        let read = sections.read_type(at).ok_or(LayoutError::Malformed)?;
        if read.is_function {
            for (name, found) in names.iter().zip(&mut found) {
                if found.is_none() && sections.is_named(read.name, name) {
                    *found = Some(number);
                }
            }
        }
        at = read.next;
        number += 1;
    }
    Ok(found)
}

/// Offsets in the running kernel, see [`offsets`].
fn offsets_of_kernel<const N: usize>(
    wanted: [(&'static str, &'static str); N],
) -> Result<[u32; N], LayoutError> {
    offsets(&fs::read(VMLINUX).map_err(LayoutError::Read)?, wanted)
}

/// Offsets of members in structures, in bytes. A member of a member is written as in C, `a.b`.
fn offsets<const N: usize>(
    btf: &[u8],
    wanted: [(&'static str, &'static str); N],
) -> Result<[u32; N], LayoutError> {
    let mut sections = Sections::of(btf).ok_or(LayoutError::Malformed)?;
    let mut structures = Vec::new();
    let mut at = 0;
    while at < sections.types.len() {
        let Type { name, members, next, .. } =
            sections.read_type(at).ok_or(LayoutError::Malformed)?;
        sections.starts.push(at);
        at = next;
        if !members.is_empty() && wanted.iter().any(|(wanted, _)| sections.is_named(name, wanted)) {
            structures.push((name, members));
        }
    }
    let found = wanted.map(|(structure, member)| {
        let mut of_name = structures.iter().filter(|(name, _)| sections.is_named(*name, structure));
        of_name.find_map(|(_, members)| sections.offset(members, member, 0))
    });
    let mut offsets = [0; N];
    for ((offset, found), (structure, member)) in offsets.iter_mut().zip(found).zip(wanted) {
        *offset = found.ok_or(LayoutError::Missing(structure, member))?;
    }
    Ok(offsets)
}

struct Sections<'a> {
    types: &'a [u8],
    /// Where each type is, by its number; 0 is void.
    starts: Vec<usize>,
    strings: &'a [u8],
}

/// A structure or union, or any other type without its members.
struct Type<'a> {
    name: u32,
    /// 12 bytes each: name, type, offset in bits.
    members: &'a [u8],
    /// The type of which it is another name (typedef, const and the like).
    alias: Option<usize>,
    is_function: bool,
    /// Where the next type is.
    next: usize,
}

impl<'a> Sections<'a> {
    fn of(btf: &'a [u8]) -> Option<Self> {
        const MAGIC: [u8; 2] = 0xeb9f_u16.to_ne_bytes();

        if btf.get(..2)? != MAGIC {
            return None;
        }
        let field = |number: usize| word(btf, 4 + 4 * number).map(|word| word as usize);
        let data = btf.get(field(0)?..)?;
        let section = |start: usize, length: usize| data.get(start..start.checked_add(length)?);
        Some(Self {
            types: section(field(1)?, field(2)?)?,
            starts: vec![usize::MAX],
            strings: section(field(3)?, field(4)?)?,
        })
    }

    fn read_type(&self, at: usize) -> Option<Type<'a>> {
        const STRUCT: u32 = 4;
        const UNION: u32 = 5;
        const FUNC: u32 = 12;

        let name = word(self.types, at)?;
        let info = word(self.types, at + 4)?;
        let (count, kind) = ((info & 0xffff) as usize, info >> 24 & 0x1f);
        let length = match kind {
            // INT, VAR and DECL_TAG; ARRAY.
            1 | 14 | 17 => 4,
            3 => 12,
            // DATASEC and ENUM64 beside them.
            STRUCT | UNION | 15 | 19 => 12 * count,
            // ENUM and FUNC_PROTO.
            6 | 13 => 8 * count,
            // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT and TYPE_TAG.
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        };
        let start = at + 12;
        let next = start + length;
        let rest = self.types.get(start..next)?;
        let members = if matches!(kind, STRUCT | UNION) { rest } else { &[] };
        // TYPEDEF, VOLATILE, CONST, RESTRICT and TYPE_TAG.
        let alias = match kind {
            8..=11 | 18 => Some(word(self.types, at + 8)? as usize),
            _ => None,
        };
        Some(Type { name, members, alias, is_function: kind == FUNC, next })
    }

    fn is_named(&self, name: u32, expected: &str) -> bool {
        let rest = self.strings.get(name as usize..).unwrap_or_default();
        rest.strip_prefix(expected.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// In bytes. What anonymous members have in them counts as the structure's own, as in C.
    fn offset(&self, members: &[u8], name: &str, depth: u32) -> Option<u32> {
        // Deeper than any structure; the bound protects against recursive malformed types.
        const MAX_DEPTH: u32 = 8;

        let (first, rest) = match name.split_once('.') {
            Some((first, rest)) => (first, Some(rest)),
            None => (name, None),
        };
        members.chunks_exact(12).find_map(|member| {
            let number = word(member, 0)?;
            // The upper 8 bits are the width of a bit field; 0 for other members.
            let offset = (word(member, 8)? & 0x00ff_ffff) / 8;
            let wanted = if self.is_named(number, first) {
                let Some(rest) = rest else { return Some(offset) };
                rest
            } else if number == 0 {
                name
            } else {
                return None;
            };
            if depth == MAX_DEPTH {
                return None;
            }
            let inner = self.structure(word(member, 4)? as usize)?;
            Some(offset + self.offset(inner.members, wanted, depth + 1)?)
        })
    }

    /// The structure that the type with this number is, by whatever names.
    fn structure(&self, mut number: usize) -> Option<Type<'a>> {
        // The bound protects against cyclic malformed types.
        for _ in 0..8 {
            let found = self.read_type(*self.starts.get(number)?)?;
            let Some(alias) = found.alias else { return Some(found) };
            number = alias;
        }
        None
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use btfparse::{Offset, Readable, TypeInformation};

    use super::*;

    struct Bytes(Vec<u8>);

    impl Readable for Bytes {
        fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
            let start = offset as usize;
            buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
            Ok(())
        }
    }

    #[test]
    fn offsets_are_those_that_a_full_parser_finds() {
        let btf = Bytes(fs::read(VMLINUX).expect("this kernel has BTF"));
        let types = TypeInformation::new(&btf).expect("valid");
        let offset = |structure: &str, path: &str| {
            let id = types.id_of(structure).expect("a structure");
            match types.offset_of(id, path).expect("a member").1 {
                Offset::ByteOffset(bytes) => bytes,
                bits @ Offset::BitOffsetAndSize(..) => panic!("{bits:?}"),
            }
        };
        let expected = Layout {
            sock_cgroup: offset("sock", "sk_cgrp_data.cgroup"),
            cgroup_level: offset("cgroup", "level"),
            cgroup_ancestors: offset("cgroup", "ancestors"),
            cgroup_kn: offset("cgroup", "kn"),
            kernfs_id: offset("kernfs_node", "id"),
        };
        assert_eq!(Layout::of_kernel().expect("readable"), expected);
        let expected = TaskLayout {
            pid: offset("task_struct", "pid"),
            tgid: offset("task_struct", "tgid"),
            parent: offset("task_struct", "real_parent"),
            signal: offset("task_struct", "signal"),
            group: offset("signal_struct", "pids") + 16,
            process: offset("signal_struct", "pids") + 8,
            live: offset("signal_struct", "live"),
            pid_level: offset("pid", "level"),
            pid_numbers: offset("pid", "numbers"),
            namespace_inode: offset("pid_namespace", "ns.inum"),
        };
        assert_eq!(TaskLayout::of_kernel().expect("readable"), expected);
        // Where no members are known, there is no clock probe either.
        let Ok(crate::arch::ClockProbes { vdso, .. }) = crate::arch::clock_probes() else { return };
        let [mm_vdso, mm_vdso_image, vdso_image_size] =
            vdso.map(|(structure, member)| offset(structure, member));
        let expected = ProbeLayout {
            task_mm: offset("task_struct", "mm"),
            task_files: offset("task_struct", "files"),
            mm_vdso,
            mm_vdso_image,
            mm_auxv: offset("mm_struct", "saved_auxv"),
            vdso_image_size,
            files_table: offset("files_struct", "fdt"),
            table_length: offset("fdtable", "max_fds"),
            table_files: offset("fdtable", "fd"),
            file_data: offset("file", "private_data"),
            timerfd_clock: offset("timerfd_ctx", "clockid"),
        };
        assert_eq!(ProbeLayout::of_kernel(vdso).expect("readable"), expected);
    }

    #[test]
    fn members_of_anonymous_members_are_the_structures_own() {
        let member = |name: u32, kind: u32, bytes: u32| [name, kind, 8 * bytes];
        let compound = |name: u32, kind: u32, members: &[[u32; 3]]| {
            let head = [name, kind << 24 | members.len() as u32, 0];
            [&[head], members].concat().concat()
        };
        // struct s { int a; union { int b; struct { int c; int d; }; }; }, in an order that BTF allows.
        let types = [
            compound(1, 4, &[member(3, 4, 0), member(0, 2, 8)]),
            compound(0, 5, &[member(5, 4, 0), member(0, 3, 0)]),
            compound(0, 4, &[member(7, 4, 0), member(9, 4, 4)]),
            vec![0, 1 << 24, 4, 32],
        ]
        .concat();
        let strings = b"\0s\0a\0b\0c\0d\0";
        let length = 4 * types.len() as u32;
        let header = [0x0001_eb9f, 24, 0, length, length, strings.len() as u32];
        let words = [&header[..], &types].concat().into_iter().flat_map(u32::to_ne_bytes);
        let btf: Vec<u8> = words.chain(*strings).collect();
        let wanted = [("s", "a"), ("s", "b"), ("s", "c"), ("s", "d")];
        assert_eq!(offsets(&btf, wanted).expect("all there"), [0, 8, 8, 12]);
        assert!(offsets(&btf, [("s", "s")]).is_err());
    }

    #[test]
    fn a_missing_member_is_named() {
        let btf = fs::read(VMLINUX).expect("this kernel has BTF");
        let missing = offsets(&btf, [("sock", "no_such_member")]).expect_err("not there");
        assert_eq!(missing.to_string(), "struct sock has no member no_such_member");
    }

    #[test]
    fn cut_off_anywhere_it_is_refused_and_nothing_panics() {
        let btf = fs::read(VMLINUX).expect("this kernel has BTF");
        for length in (0..100).chain((1..30).map(|n| n * 100_003)) {
            assert!(offsets(&btf[..length.min(btf.len())], [("kernfs_node", "id")]).is_err());
        }
    }
}

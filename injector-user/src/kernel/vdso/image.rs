//! The vDSO's image: what is in it, and how it can be patched.

use std::{collections::BTreeSet, ops::Range};

use injector_common::model::clock::Skew;
use object::{
    LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _,
    elf::{ELFCLASS32, FileHeader64},
    read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _, SectionHeader as _},
};
use thiserror::Error;

use super::block::{self, Found, MAGIC};
use crate::arch::{
    self, NotBuiltIn,
    vdso::{Block, Entry, Function, Header, Hook, UnknownLayout},
};

/// No page is smaller.
const PAGE: usize = 4096;

/// Why an image cannot be patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unfit {
    /// There is no hook.
    #[error(transparent)]
    NotBuiltIn(#[from] NotBuiltIn),
    /// It is for 32-bit or x32 programs.
    #[error("it is for programs with 32-bit pointers")]
    Compat,
    /// There is no room for the hook.
    #[error("the hook needs {needed} bytes, and {free} are free")]
    NoRoom {
        /// For the hook.
        needed: usize,
        /// After the image.
        free: usize,
    },
    /// It is built in a way that is not known.
    #[error(transparent)]
    UnknownLayout(#[from] UnknownLayout),
}

impl Unfit {
    /// The same for all images that are unfit for the same reason.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NotBuiltIn(_) => "no hook for vDSOs",
            Self::Compat => "a program with 32-bit pointers",
            Self::NoRoom { .. } => "no room in its vDSO",
            Self::UnknownLayout(_) => "a vDSO of unknown layout",
        }
    }
}

/// How an image is patched, wherever it is loaded.
#[derive(Debug)]
pub struct Plan {
    /// Where the hook is written.
    at: usize,
    /// The hook, with its trampolines. Its block is empty.
    hook: Vec<u8>,
    /// The replaced bytes of each function.
    entries: [Entry; Function::ALL.len()],
    /// The jump at the entry of each function.
    jumps: Vec<Box<[u8]>>,
    /// Offsets of instructions that are replaced, and where they are now.
    moved: Vec<(usize, usize)>,
}

impl Plan {
    /// Makes the plan for a vDSO as the kernel maps it: the image and what follows it on the last page.
    pub fn new(image: &[u8]) -> Result<Self, Unfit> {
        let machine = arch::vdso_hook()?;
        if image.get(4) == Some(&ELFCLASS32) && image.starts_with(b"\x7fELF") {
            return Err(Unfit::Compat);
        }
        let elf = ElfFile64::<LittleEndian>::parse(image).map_err(|_| UnknownLayout::Elf)?;
        if elf.elf_header().e_machine(LittleEndian) != machine.machine() {
            return Err(UnknownLayout::Elf.into());
        }
        let entries = entries(machine, &elf)?;
        let mut hook = machine.code().to_vec();
        let (at, free) = room(&elf, image)?;

        let mut plan_entries = [Entry::default(); Function::ALL.len()];
        let mut jumps = Vec::with_capacity(Function::ALL.len());
        let length = machine.jump_length();
        let mut moved_to = Vec::new();
        let mut used = 0;
        for (index, function) in Function::ALL.into_iter().enumerate() {
            let entry = entries[index];
            let (trampoline, room) = machine.trampoline(function);
            let moved = machine.displace(image, entry, at + trampoline)?;
            if moved.code.len() > room {
                return Err(UnknownLayout::Move(entry).into());
            }
            hook[trampoline..trampoline + moved.code.len()].copy_from_slice(&moved.code);
            used = used.max(trampoline + moved.code.len());
            moved_to
                .extend(moved.inner.iter().map(|(from, to)| (entry + from, at + trampoline + to)));
            let mut bytes = Entry::default().bytes;
            bytes[..length].copy_from_slice(&image[entry..entry + length]);
            let offset = u16::try_from(entry).map_err(|_| UnknownLayout::Symbol)?;
            plan_entries[index] = Entry { offset, length: length as u8, bytes };
            let jump = machine.jump(entry, at + machine.replacement(function));
            jumps.push(jump.ok_or(UnknownLayout::Move(entry))?);
        }
        // The last trampoline is seldom full.
        hook.truncate(used);
        if hook.len() > free {
            return Err(Unfit::NoRoom { needed: hook.len(), free });
        }
        Ok(Self { at, hook, entries: plan_entries, jumps, moved: moved_to })
    }

    /// Where the hook is written.
    pub const fn at(&self) -> usize {
        self.at
    }

    /// Whether what a former patch left can be used again. A thread may still be in its code.
    pub fn fits(&self, found: &Found, image: &[u8]) -> bool {
        let code = found.at + size_of::<Block>();
        let has_code = || image.get(code..).is_some_and(|rest| rest.starts_with(self.code()));
        found.at == self.at
            && found.header.size as usize == self.hook.len()
            && (found.header.armed == 0 || has_code())
    }

    /// The header of a new patch.
    pub const fn header(&self, owner: u64) -> Header {
        Header {
            magic: MAGIC,
            owner,
            size: self.hook.len() as u32,
            armed: 0,
            entries: self.entries,
        }
    }

    /// What follows the header: data, code and trampolines.
    pub fn body(&self, skew: Skew) -> Vec<u8> {
        let block = Block::new(self.header(0), skew);
        let mut body = block::as_bytes(&block)[size_of::<Header>()..].to_vec();
        body.extend(self.code());
        body
    }

    /// The code and the trampolines alone.
    pub fn code(&self) -> &[u8] {
        &self.hook[size_of::<Block>()..]
    }

    /// Each function's offset, and what is written there.
    pub fn jumps(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.entries
            .iter()
            .zip(&self.jumps)
            .map(|(entry, jump)| (usize::from(entry.offset), &jump[..]))
    }

    /// Where to go on from an instruction pointer that may not stay where it is; `None` if it may.
    ///
    /// An error if it is where no thread can be, as an instruction begins elsewhere.
    pub fn relocate(&self, offset: usize) -> Result<Option<usize>, UnknownLayout> {
        let replaced = |entry: &Entry| {
            let start = usize::from(entry.offset);
            offset > start && offset < start + usize::from(entry.length)
        };
        if !self.entries.iter().any(replaced) {
            return Ok(None);
        }
        let to = self.moved.iter().find(|(from, _)| *from == offset);
        to.map(|(_, to)| Some(*to)).ok_or(UnknownLayout::Instruction(offset))
    }
}

type Elf<'a> = ElfFile64<'a, LittleEndian>;

/// Where the functions begin; each can be replaced there.
fn entries(machine: &dyn Hook, elf: &Elf) -> Result<[usize; Function::ALL.len()], UnknownLayout> {
    let length = machine.jump_length();
    let text = elf.section_by_name(".text").ok_or(UnknownLayout::Symbol)?;
    let start = text.address() as usize;
    let code = text.data().map_err(|_| UnknownLayout::Elf)?;
    // An address is an offset in the mapping, too.
    if text.file_range().is_none_or(|(offset, _)| offset as usize != start) {
        return Err(UnknownLayout::Elf);
    }
    let mut found = [0; Function::ALL.len()];
    for (function, entry) in Function::ALL.into_iter().zip(&mut found) {
        let symbol =
            elf.dynamic_symbols().find(|symbol| symbol.name() == Ok(machine.symbol(function)));
        *entry = symbol.ok_or(UnknownLayout::Symbol)?.address() as usize;
        if *entry < start || entry.saturating_add(length) > start + code.len() {
            return Err(UnknownLayout::Symbol);
        }
        if *entry / PAGE != (*entry + length - 1) / PAGE {
            return Err(UnknownLayout::Page(*entry));
        }
    }
    // No other function, and no branch, begins within what is replaced.
    let branches = machine.branches(code, start)?;
    let symbols = elf.dynamic_symbols().map(|symbol| symbol.address() as usize);
    let targets: BTreeSet<usize> = branches.into_iter().chain(symbols).collect();
    for entry in found {
        if let Some(target) = targets.range(entry + 1..entry + length).next() {
            return Err(UnknownLayout::Target(*target));
        }
    }
    Ok(found)
}

/// Where there is room for the hook, after all that the image consists of, and how much.
fn room(elf: &Elf, image: &[u8]) -> Result<(usize, usize), UnknownLayout> {
    let end = end(elf).map_err(|_| UnknownLayout::Elf)?;
    if end > image.len() {
        return Err(UnknownLayout::Elf);
    }
    let mut at = end.next_multiple_of(block::ALIGNMENT);
    // The header is written at once only within a page.
    if at / PAGE != (at + size_of::<Header>() - 1) / PAGE {
        at = at.next_multiple_of(PAGE);
    }
    let rest = image.get(at..).unwrap_or_default();
    // What is there belongs to something that is not known.
    let free = if rest.iter().all(|byte| *byte == 0) { rest.len() } else { 0 };
    Ok((at, free))
}

/// Where the image ends: headers, segments and sections.
fn end(elf: &Elf) -> object::Result<usize> {
    let header = elf.elf_header();
    let mut end = size_of::<FileHeader64<LittleEndian>>() as u64;
    let mut extend = |range: Range<u64>| end = end.max(range.end);
    let table = |offset: u64, size: u16, count: usize| {
        offset..offset.saturating_add(u64::from(size).saturating_mul(count as u64))
    };
    let little = LittleEndian;
    extend(table(
        header.e_phoff(little),
        header.e_phentsize(little),
        header.phnum(little, elf.data())?,
    ));
    extend(table(
        header.e_shoff(little),
        header.e_shentsize(little),
        header.shnum(little, elf.data())?,
    ));
    for segment in elf.elf_program_headers() {
        let (offset, size) = segment.file_range(little);
        extend(offset..offset.saturating_add(size));
    }
    for section in elf.elf_section_table().iter() {
        if let Some((offset, size)) = section.file_range(little) {
            extend(offset..offset.saturating_add(size));
        }
    }
    Ok(end as usize)
}

//! The vDSO hook: its data, which shared code writes and finds on each architecture, and the trait
//! for the architecture's own code ([`Hook`]).

use std::{fmt::Debug, mem::offset_of};

use aya::Pod;
use injector_common::model::clock::{Clock, Skew, Span};
use thiserror::Error;

/// Maximum length of a jump at an entry.
pub const MAX_JUMP: usize = 5;

/// An architecture's machine code: the hook, and the jumps between the original functions and the
/// hook.
pub trait Hook: Debug + Sync {
    /// The expected machine in the vDSO's ELF header.
    fn machine(&self) -> u16;

    /// The symbol of a function.
    fn symbol(&self, function: Function) -> &'static str;

    /// The whole hook: an empty block, the code, and empty trampolines.
    fn code(&self) -> &'static [u8];

    /// The offset of a function's replacement within the hook.
    fn replacement(&self, function: Function) -> usize;

    /// The offset and length of a function's trampoline within the hook.
    fn trampoline(&self, function: Function) -> (usize, usize);

    /// The number of bytes overwritten at an entry.
    fn jump_length(&self) -> usize;

    /// A jump from `from` to `to`; `None` if the distance is too large.
    fn jump(&self, from: usize, to: usize) -> Option<Box<[u8]>>;

    /// Moves the instructions that a jump at `entry` of an image overwrites to `to`.
    fn displace(&self, image: &[u8], entry: usize, to: usize) -> Result<Moved, UnknownLayout>;

    /// The targets of the direct branches in `code`, which starts at `start`.
    fn branches(&self, code: &[u8], start: usize) -> Result<Vec<usize>, UnknownLayout>;
}

/// Displaced instructions.
#[derive(Debug)]
pub struct Moved {
    /// The code, with a jump back to the rest of the original.
    pub code: Vec<u8>,
    /// For each instruction except the first: its offset in the original, and its offset in the
    /// code.
    pub inner: Vec<(usize, usize)>,
}

/// Why an image cannot be patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnknownLayout {
    /// It is not a valid ELF image for this machine.
    #[error("it is no ELF image of this machine's")]
    Elf,
    /// A function is missing, or outside the code.
    #[error("a time function is missing")]
    Symbol,
    /// The code contains an unknown instruction.
    #[error("there is no known instruction at {0:#x}")]
    Instruction(usize),
    /// A function begins with a branch.
    #[error("a time function branches at its entry, {0:#x}")]
    Flow(usize),
    /// Instructions cannot be displaced.
    #[error("the instructions at {0:#x} cannot be moved")]
    Move(usize),
    /// Code jumps to bytes that would be replaced.
    #[error("code jumps to {0:#x}, which would be replaced")]
    Target(usize),
    /// A jump would cross a page boundary.
    #[error("the function at {0:#x} begins at the end of a page")]
    Page(usize),
}

/// The patched functions, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Function {
    /// `clock_gettime(2)`.
    ClockGettime = 0,
    /// `gettimeofday(2)`.
    Gettimeofday = 1,
    /// `time(2)`.
    Time = 2,
}

impl Function {
    /// All functions, by number.
    pub const ALL: [Self; 3] = [Self::ClockGettime, Self::Gettimeofday, Self::Time];
}

/// Bytes at a function's entry that a jump replaces.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The offset of the entry in the vDSO.
    pub offset: u16,
    /// The number of valid `bytes`.
    pub length: u8,
    /// The original bytes.
    pub bytes: [u8; MAX_JUMP],
}

impl Entry {
    /// The original bytes.
    #[must_use]
    pub fn original(&self) -> &[u8] {
        &self.bytes[..self.bytes.len().min(usize::from(self.length))]
    }

    /// Whether the entry currently differs from the original.
    #[must_use]
    pub fn is_replaced(self, image: &[u8]) -> bool {
        image.get(usize::from(self.offset)..).is_some_and(|rest| !rest.starts_with(self.original()))
    }
}

/// The patch's description of itself. Written at once, before anything else.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Identifies a patch.
    pub magic: [u8; 16],
    /// ID of the injector that owns it; 0 once restored.
    pub owner: u64,
    /// The hook's length, from the start of the block.
    pub size: u32,
    /// Whether a thread may ever have entered the hook.
    pub armed: u32,
    /// The replaced bytes of each function, by number.
    pub entries: [Entry; Function::ALL.len()],
}

/// One of the two copies of the skew.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Odd while the slot is being written. Each version is unique.
    pub version: u64,
    /// The skew.
    pub skew: Skew,
}

/// The hook's data.
///
/// The hook reads the index of the current slot, the slot's version, the required values, and the
/// version again. If the version was odd or has changed, it retries. The only writer changes the
/// other slot and then switches to it. The hook therefore uses consistent values, and the current
/// slot is consistent even if the writer was killed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The patch's description of itself.
    pub header: Header,
    /// For each `clock_gettime` ID, the offset of its clock in [`Skew::clocks`] in bytes, or
    /// [`NO_SPAN`].
    pub spans: [u8; Self::IDS],
    /// The offset of the current slot from the first, in bytes. Only the lowest byte is read and
    /// written.
    pub current: u64,
    /// The two copies of the skew.
    pub slots: [Slot; 2],
}

/// A clock that no fault affects; the hook reads it as a negative number.
pub const NO_SPAN: u8 = 0xff;

// SAFETY: repr(C), Copy, 'static, without padding (checked below) and valid for any bit pattern.
unsafe impl Pod for Header {}
// SAFETY: as above.
unsafe impl Pod for Slot {}
// SAFETY: as above.
unsafe impl Pod for Block {}

const _: () = {
    assert!(size_of::<Header>() == 16 + 8 + 4 + 4 + 3 * 8);
    assert!(size_of::<Slot>() == 8 + size_of::<Skew>());
    assert!(size_of::<Block>() == size_of::<Header>() + Block::IDS + 8 + 2 * size_of::<Slot>());
    assert!(offset_of!(Block, header) == 0);
    assert!(size_of::<Slot>() <= 0xff);
    assert!(size_of::<Span>() * Clock::ALL.len() < 0x80);
};

impl Block {
    /// The number of `clock_gettime` IDs in the table.
    pub const IDS: usize = 16;

    /// A block that has never been read.
    #[must_use]
    pub const fn new(header: Header, skew: Skew) -> Self {
        let mut spans = [NO_SPAN; Self::IDS];
        let mut id = 0;
        while id < Self::IDS {
            if let Some(clock) = Clock::of_id(id.cast_signed() as i32) {
                spans[id] = clock as u8 * size_of::<Span>() as u8;
            }
            id += 1;
        }
        Self { header, spans, current: 0, slots: [Slot { version: 2, skew }; 2] }
    }
}

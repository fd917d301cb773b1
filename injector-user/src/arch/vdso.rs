//! What a hook in a vDSO is: its data, which the same code writes and finds on each architecture, and what each has to say of
//! its own code ([`Hook`]).

use std::{fmt::Debug, mem::offset_of};

use aya::Pod;
use injector_common::model::clock::{Clock, Skew, Span};
use thiserror::Error;

/// No jump at an entry is longer.
pub const MAX_JUMP: usize = 5;

/// The machine code of an architecture: a hook, and how the original functions go to it and are still called by it.
pub trait Hook: Debug + Sync {
    /// What the vDSO's ELF header must say of the machine.
    fn machine(&self) -> u16;

    /// The symbol of a function.
    fn symbol(&self, function: Function) -> &'static str;

    /// The whole hook: an empty block, the code, and empty trampolines.
    fn code(&self) -> &'static [u8];

    /// Where in the hook a function's replacement begins.
    fn replacement(&self, function: Function) -> usize;

    /// Where in the hook a function's trampoline is, and how long.
    fn trampoline(&self, function: Function) -> (usize, usize);

    /// How many bytes are written over at an entry.
    fn jump_length(&self) -> usize;

    /// A jump that is at `from` and goes to `to`; `None` if that is too far away.
    fn jump(&self, from: usize, to: usize) -> Option<Box<[u8]>>;

    /// Moves the whole instructions over which a jump at `entry` of an image is written to `to`.
    fn displace(&self, image: &[u8], entry: usize, to: usize) -> Result<Moved, UnknownLayout>;

    /// Where the direct branches in `code`, which is at `start`, go to.
    fn branches(&self, code: &[u8], start: usize) -> Result<Vec<usize>, UnknownLayout>;
}

/// Instructions that were moved elsewhere.
#[derive(Debug)]
pub struct Moved {
    /// The code, with a jump back to what follows the original.
    pub code: Vec<u8>,
    /// For each instruction but the first: where it began within the original, and begins within the code.
    pub inner: Vec<(usize, usize)>,
}

/// What is not known about an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnknownLayout {
    /// It is no ELF image for this machine, or a damaged one.
    #[error("it is no ELF image of this machine's")]
    Elf,
    /// A function is not there, or not in the code.
    #[error("a time function is missing")]
    Symbol,
    /// Bytes in the code are no instruction.
    #[error("there is no known instruction at {0:#x}")]
    Instruction(usize),
    /// A function begins with an instruction that does not go on to the next.
    #[error("a time function branches at its entry, {0:#x}")]
    Flow(usize),
    /// Instructions cannot be moved.
    #[error("the instructions at {0:#x} cannot be moved")]
    Move(usize),
    /// Code jumps into what would be replaced.
    #[error("code jumps to {0:#x}, which would be replaced")]
    Target(usize),
    /// A jump would lie on two pages.
    #[error("the function at {0:#x} begins at the end of a page")]
    Page(usize),
}

/// What is patched, by its number.
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
    /// All of them, by their numbers.
    pub const ALL: [Self; 3] = [Self::ClockGettime, Self::Gettimeofday, Self::Time];
}

/// Bytes at a function's entry that a jump replaces.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Where, from the start of the vDSO.
    pub offset: u16,
    /// How many of `bytes` count.
    pub length: u8,
    /// What was there before.
    pub bytes: [u8; MAX_JUMP],
}

impl Entry {
    /// What was there before.
    #[must_use]
    pub fn original(&self) -> &[u8] {
        &self.bytes[..self.bytes.len().min(usize::from(self.length))]
    }

    /// Whether something else is there now.
    #[must_use]
    pub fn is_replaced(self, image: &[u8]) -> bool {
        image.get(usize::from(self.offset)..).is_some_and(|rest| !rest.starts_with(self.original()))
    }
}

/// What the patch says of itself. Written at once, before anything else.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What marks a patch.
    pub magic: [u8; 16],
    /// Which injector's it is; 0 once it is restored.
    pub owner: u64,
    /// The hook's length, from the block's start.
    pub size: u32,
    /// Whether a thread may ever have come into the hook.
    pub armed: u32,
    /// The replaced bytes of each function, by its number.
    pub entries: [Entry; Function::ALL.len()],
}

/// The skew, of which there are two.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Odd while the slot is being written; never the same twice.
    pub version: u64,
    /// What is to be read.
    pub skew: Skew,
}

/// The hook's data.
///
/// The hook reads which slot is current, that one's version, what it needs of it, and the version again: if it was odd
/// or has changed, it begins anew. The one writer changes the other slot, and then which is current.
/// So what the hook takes was written as a whole, and the current slot is whole even if the writer was killed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// What the patch says of itself.
    pub header: Header,
    /// For each id of `clock_gettime` where in [`Skew::clocks`] its clock is, in bytes, or [`NO_SPAN`].
    pub spans: [u8; Self::IDS],
    /// Where the current slot begins, in bytes from the first. Only the lowest byte is read and written.
    pub current: u64,
    /// The skew.
    pub slots: [Slot; 2],
}

/// A clock that no fault touches; negative to the hook.
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
    /// How many ids of `clock_gettime` are looked up.
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

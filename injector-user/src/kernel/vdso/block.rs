//! What the hook reads, and by which a patch describes itself: to its owner, to other injectors, to `cleanup`.

use std::mem::offset_of;

use aya::Pod;
use injector_common::model::clock::{Clock, Skew, Span};

/// What marks a patch. Its end is the version of the layout: another one is not understood.
pub const MAGIC: [u8; 16] = *b"injector vdso 01";

/// Blocks begin at multiples of this.
pub const ALIGNMENT: usize = 8;

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

    /// Its symbol.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClockGettime => "__vdso_clock_gettime",
            Self::Gettimeofday => "__vdso_gettimeofday",
            Self::Time => "__vdso_time",
        }
    }
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
    pub bytes: [u8; 5],
}

impl Entry {
    /// What was there before.
    pub fn original(&self) -> &[u8] {
        &self.bytes[..self.bytes.len().min(usize::from(self.length))]
    }

    /// Whether something else is there now.
    pub fn is_replaced(self, image: &[u8]) -> bool {
        image.get(usize::from(self.offset)..).is_some_and(|rest| !rest.starts_with(self.original()))
    }
}

/// What the patch says of itself. Written at once, before anything else.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`MAGIC`].
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

/// A patch, as found in an image.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Where its block is.
    pub at: usize,
    /// What it says of itself.
    pub header: Header,
}

/// Looks for a patch.
pub fn find(image: &[u8]) -> Option<Found> {
    (0..image.len()).step_by(ALIGNMENT).find_map(|at| {
        let header: Header = from_bytes(image.get(at..)?)?;
        (header.magic == MAGIC).then_some(Found { at, header })
    })
}

impl Found {
    /// Whose it is; `None` if it has been restored.
    pub const fn owner(&self) -> Option<u64> {
        if self.header.owner == 0 { None } else { Some(self.header.owner) }
    }

    /// The entries that lie outside the block, as all do if nobody else wrote here.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let inside = |entry: &&Entry| {
            entry.length > 0 && usize::from(entry.offset) + entry.original().len() <= self.at
        };
        self.header.entries.iter().filter(inside)
    }

    /// Whether all functions go to the hook.
    pub fn is_complete(&self, image: &[u8]) -> bool {
        self.entries().count() == Function::ALL.len()
            && self.entries().all(|entry| entry.is_replaced(image))
    }

    /// The image as it was before.
    pub fn pristine(&self, image: &[u8]) -> Box<[u8]> {
        let mut image: Box<[u8]> = image.into();
        for entry in self.entries() {
            let start = usize::from(entry.offset);
            image[start..start + entry.original().len()].copy_from_slice(entry.original());
        }
        let end = image.len().min(self.at + (self.header.size as usize).max(size_of::<Header>()));
        image[self.at..end].fill(0);
        image
    }
}

/// A value's bytes.
pub fn as_bytes<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: without padding, so all bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The value that begins at these bytes, if there are enough.
pub fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: as many bytes as it takes, and any are valid.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

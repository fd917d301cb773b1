//! How a patch is found, by which it describes itself: to its owner, to other injectors, to `cleanup`.

use aya::Pod;

use crate::arch::vdso::{Entry, Function, Header};

/// What marks a patch. Its end is the version of the layout: another one is not understood.
pub const MAGIC: [u8; 16] = *b"injector vdso 01";

/// Blocks begin at multiples of this.
pub const ALIGNMENT: usize = 8;

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

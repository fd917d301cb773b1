//! eBPF array maps mapped into memory, for values that are accessed for each packet.

use std::{marker::PhantomData, num::NonZeroUsize, os::fd::AsFd, ptr::NonNull};

use aya::Pod;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A memory-mapped array map. The size of values must be a multiple of 8 bytes.
#[derive(Debug)]
pub struct Mapped<T: Pod> {
    start: NonNull<T>,
    length: u32,
    _values: PhantomData<T>,
}

// SAFETY: the mapping belongs to the process, and is reached by volatile accesses only.
unsafe impl<T: Pod + Send> Send for Mapped<T> {}
// SAFETY: as above; the kernel side may write at any time as well.
unsafe impl<T: Pod + Sync> Sync for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    /// Maps the map of `length` values behind a file descriptor.
    pub fn new(map: impl AsFd, length: u32) -> nix::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let bytes =
            NonZeroUsize::new(length as usize * size_of::<T>()).ok_or(nix::Error::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping of a file of at least so many bytes; nothing else is mapped over.
        let start = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { start: start.cast(), length, _values: PhantomData })
    }

    /// The value at `index` modulo the length.
    #[must_use]
    pub fn get(&self, index: u32) -> T {
        // SAFETY: within the mapping; any bits are a T. The kernel side may write, but not this value now.
        unsafe { self.start.add((index % self.length) as usize).read_volatile() }
    }

    /// Sets the value at `index` modulo the length.
    pub fn set(&self, index: u32, value: T) {
        // SAFETY: within the mapping.
        unsafe { self.start.add((index % self.length) as usize).write_volatile(value) }
    }
}

impl<T: Pod> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and not used any more. It cannot fail for what has been mapped.
        let _ = unsafe { munmap(self.start.cast(), self.length as usize * size_of::<T>()) };
    }
}

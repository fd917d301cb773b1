//! How this process gets its memory, and gives it back.

/// Has all threads share one heap, whichever C library is below us, and large blocks not be part of it.
///
/// glibc gives threads heaps of their own, up to eight a processor. What a thread frees stays with its heap, which then
/// waits for a thread to come: several clients of the agent at once leave several heaps behind, each as large as the
/// largest request. And it takes ever larger blocks from the heap once some have been freed, where a small one behind them
/// keeps all of it. musl has one heap anyway.
pub fn share() {
    #[cfg(target_env = "gnu")]
    {
        /// What glibc begins with.
        const LARGE: i32 = 128 * 1024;
        for (option, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE)] {
            // SAFETY: takes numbers; no other thread allocates yet.
            if unsafe { libc::mallopt(option, value) } == 0 {
                tracing::debug!(option, "the allocator stays as it is");
            }
        }
    }
}

/// Gives back to the kernel what is free, also what lies between blocks that are used.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

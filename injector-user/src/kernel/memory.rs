//! Tuning of the C library's allocator.

/// Makes all threads share one heap, and allocates large blocks outside of it.
///
/// By default, glibc uses up to eight arenas a CPU, and freed memory stays in its arena: concurrent
/// clients of the agent would leave several arenas of the size of the largest request behind. It also
/// raises the threshold for large blocks, after which a small block can pin a large free one. musl
/// has a single heap.
pub fn share() {
    #[cfg(target_env = "gnu")]
    {
        /// The initial threshold of glibc, in bytes.
        const LARGE: i32 = 128 * 1024;
        for (option, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE)] {
            // SAFETY: takes numbers; no other thread allocates yet.
            if unsafe { libc::mallopt(option, value) } == 0 {
                tracing::debug!(option, "cannot set an option of the allocator");
            }
        }
    }
}

/// Returns free memory to the kernel, including gaps between used blocks.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

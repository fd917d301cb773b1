//! Atomic operations on map values, as instructions (Linux 5.12).
//!
//! The compiler assumes that eBPF has a single thread, and compiles `core`'s atomics to plain
//! accesses.

use core::arch::asm;

/// Adds to `*target` and returns what was there before.
///
/// # Safety
///
/// `target` must point to an aligned `u64` in a map value.
#[inline(always)]
pub unsafe fn fetch_add(target: *mut u64, addend: u64) -> u64 {
    let before;
    // SAFETY: as for this function.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({target} + 0), {value})",
            value = inout(reg) addend => before,
            target = in(reg) target,
        );
    }
    before
}

/// Sets `*target` to `new` if it is `expected`; returns what was there before.
///
/// # Safety
///
/// `target` must point to an aligned `u64` in a map value.
#[inline(always)]
pub unsafe fn compare_exchange(target: *mut u64, expected: u64, new: u64) -> u64 {
    let before;
    // SAFETY: as for this function.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({target} + 0, r0, {new})",
            target = in(reg) target,
            new = in(reg) new,
            inout("r0") expected => before,
        );
    }
    before
}

//! Architecture-specific code, chosen by `bpf_target_arch`, which the build script sets.
//!
//! Each architecture has one file. It defines the offsets, in bytes, of system call registers in
//! `struct pt_regs`, how to recognize calls of 32-bit programs, and how to get a call's number.

#![allow(dead_code, unused_imports, reason = "each object needs a part of it")]

#[cfg_attr(bpf_target_arch = "aarch64", path = "aarch64.rs")]
#[cfg_attr(not(bpf_target_arch = "aarch64"), path = "x86_64.rs")]
mod current;

use aya_ebpf::helpers::bpf_probe_read_kernel;

pub use current::{ARGUMENTS, INSTRUCTION_POINTER, NUMBER, calls, is_native, native_call};

/// Reads words of a `struct pt_regs`.
#[inline(always)]
fn words<const N: usize>(registers: u64, at: usize) -> Option<[u64; N]> {
    // SAFETY: a failing read is an error, whatever the address.
    unsafe { bpf_probe_read_kernel(registers.wrapping_add(at as u64) as *const [u64; N]) }.ok()
}

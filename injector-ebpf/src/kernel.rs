//! Access to kernel memory.

use aya_ebpf::helpers::bpf_probe_read_kernel;

/// Reads a field of a structure.
#[inline(always)]
pub fn field<T>(structure: u64, offset: impl Into<u64>) -> Option<T> {
    let address = structure.wrapping_add(offset.into()) as *const T;
    // SAFETY: a failing read is an error, whatever the address.
    unsafe { bpf_probe_read_kernel(address) }.ok()
}

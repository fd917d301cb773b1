//! The registers of a process at a system call.

use aya_ebpf::{Global, helpers::bpf_probe_read_kernel};

/// Where the kernel's `struct pt_regs` has the code segment, in bytes; 0 where there is none.
#[unsafe(no_mangle)]
static SEGMENT_AT: Global<u64> = Global::new(0);

/// The segment of 32-bit programs (arch/x86/include/asm/segment.h).
const USER_CS_32: u64 = 0x23;

/// Whether a call is by the numbers of this architecture, and not by those of 32-bit programs: told by the code
/// segment that it came from. `registers` is a `struct pt_regs`.
#[inline(always)]
pub fn are_native(registers: u64) -> bool {
    let at = SEGMENT_AT.load();
    if at == 0 {
        return true;
    }
    // SAFETY: a failing read is an error, whatever the address.
    unsafe { bpf_probe_read_kernel((registers + at) as *const u64) }
        .is_ok_and(|segment| segment & 0xffff != USER_CS_32)
}

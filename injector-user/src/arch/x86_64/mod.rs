//! x86-64.

#[cfg(feature = "clock")]
mod vdso;

use super::{ClockProbes, vdso::Hook};

/// The hook for vDSOs.
#[cfg(feature = "clock")]
pub const VDSO_HOOK: Option<&dyn Hook> = Some(&vdso::X86Hook);
/// The hook for vDSOs.
#[cfg(not(feature = "clock"))]
pub const VDSO_HOOK: Option<&dyn Hook> = None;

/// What the clock probes need.
pub const CLOCK_PROBES: Option<ClockProbes> = Some(ClockProbes {
    call_prefix: "__x64_",
    vdso: [
        ("mm_struct", "context.vdso"),
        ("mm_struct", "context.vdso_image"),
        ("vdso_image", "size"),
    ],
});

/// The register with the instruction pointer, of those that ptrace(2) reads.
pub const fn instruction_pointer(registers: &mut libc::user_regs_struct) -> &mut u64 {
    &mut registers.rip
}

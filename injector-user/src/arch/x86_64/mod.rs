//! x86-64.

#[cfg(feature = "clock")]
mod vdso;

use super::{ClockProbes, vdso::Hook};

/// The vDSO hook.
#[cfg(feature = "clock")]
pub const VDSO_HOOK: Option<&dyn Hook> = Some(&vdso::X86Hook);
/// The vDSO hook.
#[cfg(not(feature = "clock"))]
pub const VDSO_HOOK: Option<&dyn Hook> = None;

/// The architecture details for the clock probes.
pub const CLOCK_PROBES: Option<ClockProbes> = Some(ClockProbes {
    call_prefix: "__x64_",
    vdso: [
        ("mm_struct", "context.vdso"),
        ("mm_struct", "context.vdso_image"),
        ("vdso_image", "size"),
    ],
});

/// The instruction pointer among the registers read by ptrace(2).
pub const fn instruction_pointer(registers: &mut libc::user_regs_struct) -> &mut u64 {
    &mut registers.rip
}

//! arm64. The vDSO hook and the clock probes are not implemented.

use super::{ClockProbes, vdso::Hook};

/// The vDSO hook.
pub const VDSO_HOOK: Option<&dyn Hook> = None;

/// The architecture details for the clock probes.
pub const CLOCK_PROBES: Option<ClockProbes> = None;

/// The instruction pointer among the registers read by ptrace(2).
pub const fn instruction_pointer(registers: &mut libc::user_regs_struct) -> &mut u64 {
    &mut registers.pc
}

//! arm64. Its vDSO has no hook yet, and the clock probes do not know its processes.

use super::{ClockProbes, vdso::Hook};

/// The hook for vDSOs.
pub const VDSO_HOOK: Option<&dyn Hook> = None;

/// What the clock probes need.
pub const CLOCK_PROBES: Option<ClockProbes> = None;

/// The register with the instruction pointer, of those that ptrace(2) reads.
pub const fn instruction_pointer(registers: &mut libc::user_regs_struct) -> &mut u64 {
    &mut registers.pc
}

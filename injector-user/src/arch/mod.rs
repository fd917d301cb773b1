//! What depends on the processor's architecture: a module each, of which `cfg` chooses one.
//!
//! The eBPF programs have such a folder of their own (injector-ebpf/src/arch), for the registers at a system call.

pub mod vdso;

#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "x86_64/mod.rs")]
mod current;

use std::env::consts::ARCH;

use thiserror::Error;

pub use current::instruction_pointer;
use current::{CLOCK_PROBES, VDSO_HOOK};
use vdso::Hook;

/// Something that takes code for each architecture, and has none here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotBuiltIn {
    /// There is none for this one.
    #[error("not on this architecture ({ARCH}): it is available on x86-64")]
    Architecture,
    /// It was left out.
    #[error("this injector was built without the feature `clock`")]
    Feature,
}

/// Why something for clocks is not here.
const NO_CLOCKS: NotBuiltIn =
    if cfg!(feature = "clock") { NotBuiltIn::Architecture } else { NotBuiltIn::Feature };

/// What the clock probes must know of an architecture.
#[derive(Clone, Copy, Debug)]
pub struct ClockProbes {
    /// What stands before `sys_` in the names of the kernel's functions for system calls.
    pub call_prefix: &'static str,
    /// The members of the kernel's structures with the start of a process's vDSO, its image, and the size of that.
    pub vdso: [(&'static str, &'static str); 3],
}

/// The hook for vDSOs.
pub fn vdso_hook() -> Result<&'static dyn Hook, NotBuiltIn> {
    VDSO_HOOK.ok_or(NO_CLOCKS)
}

/// What the clock probes need.
pub fn clock_probes() -> Result<ClockProbes, NotBuiltIn> {
    CLOCK_PROBES.filter(|_| cfg!(feature = "clock")).ok_or(NO_CLOCKS)
}

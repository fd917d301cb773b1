//! Architecture-specific code: one module for each architecture, chosen by `cfg`.
//!
//! The eBPF programs have a corresponding directory (injector-ebpf/src/arch) for the registers of a
//! system call.

pub mod vdso;

#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "x86_64/mod.rs")]
mod current;

use std::env::consts::ARCH;

use thiserror::Error;

pub use current::instruction_pointer;
use current::{CLOCK_PROBES, VDSO_HOOK};
use vdso::Hook;

/// A feature is not available in this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotBuiltIn {
    /// It is not implemented for this architecture.
    #[error("not on this architecture ({ARCH}): it is available on x86-64")]
    Architecture,
    /// It was disabled at build time.
    #[error("this injector was built without the feature `clock`")]
    Feature,
}

/// The reason why clock faults are not available.
const NO_CLOCKS: NotBuiltIn =
    if cfg!(feature = "clock") { NotBuiltIn::Architecture } else { NotBuiltIn::Feature };

/// Architecture details required by the clock probes.
#[derive(Clone, Copy, Debug)]
pub struct ClockProbes {
    /// The prefix of `sys_` in the kernel's function names of system calls.
    pub call_prefix: &'static str,
    /// The members of kernel structures with the address of a process's vDSO, its image, and the
    /// size of the image.
    pub vdso: [(&'static str, &'static str); 3],
}

/// The vDSO hook.
pub fn vdso_hook() -> Result<&'static dyn Hook, NotBuiltIn> {
    VDSO_HOOK.ok_or(NO_CLOCKS)
}

/// The architecture details for the clock probes.
pub fn clock_probes() -> Result<ClockProbes, NotBuiltIn> {
    CLOCK_PROBES.filter(|_| cfg!(feature = "clock")).ok_or(NO_CLOCKS)
}

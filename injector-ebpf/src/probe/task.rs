//! The current task: its user registers and kernel structures.

use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs,
};

use crate::{arch, kernel::field, maps};

/// The arguments of the current system call.
#[derive(Clone, Copy)]
pub struct Arguments(*const u64);

impl Arguments {
    /// The current task's arguments. The kernel keeps them, so they are also available after the
    /// call.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: takes the current task, which outlives this program run.
        Self(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u64 })
    }

    /// Reads a register with a separate load, as the verifier requires.
    #[inline(always)]
    fn register(self, at: usize) -> u64 {
        // SAFETY: the verifier checks the load; the kernel returns 0 for unmapped memory.
        unsafe { self.0.byte_add(at).read_volatile() }
    }

    /// The number of the system call.
    #[inline(always)]
    pub fn call(self) -> u32 {
        self.register(arch::NUMBER) as u32
    }

    /// The first argument.
    #[inline(always)]
    pub fn first(self) -> u64 {
        self.register(arch::ARGUMENTS[0])
    }

    /// The second argument.
    #[inline(always)]
    pub fn second(self) -> u64 {
        self.register(arch::ARGUMENTS[1])
    }

    /// The third argument.
    #[inline(always)]
    pub fn third(self) -> u64 {
        self.register(arch::ARGUMENTS[2])
    }

    /// The fourth argument.
    #[inline(always)]
    pub fn fourth(self) -> u64 {
        self.register(arch::ARGUMENTS[3])
    }

    /// The fifth argument.
    #[inline(always)]
    pub fn fifth(self) -> u64 {
        self.register(arch::ARGUMENTS[4])
    }

    /// The address of the instruction after the call.
    #[inline(always)]
    pub fn caller(self) -> u64 {
        self.register(arch::INSTRUCTION_POINTER)
    }
}

/// The address of the current `task_struct`.
#[inline(always)]
pub fn address() -> u64 {
    // SAFETY: takes no pointers.
    unsafe { bpf_get_current_task() }
}

/// The address and size of the current process's vDSO; `None` if it has none.
#[inline(always)]
pub fn vdso() -> Option<(u64, u64)> {
    let mm: u64 = field(address(), maps::TASK_MM.load())?;
    let start: u64 = field(mm, maps::MM_VDSO.load())?;
    let image: u64 = field(mm, maps::MM_VDSO_IMAGE.load())?;
    if start == 0 || image == 0 {
        return None;
    }
    Some((start, field(image, maps::VDSO_IMAGE_SIZE.load())?))
}

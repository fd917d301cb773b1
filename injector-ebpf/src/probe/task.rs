//! The current task: its user registers, and a way through its structures.

use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs,
};

use crate::{arch, kernel::field, maps};

/// The arguments of the current system call.
#[derive(Clone, Copy)]
pub struct Arguments(*const u8);

impl Arguments {
    /// Those of the current task, also when the call has returned: the kernel keeps them.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: takes the current task, which lives as long as the program runs.
        Self(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u8 })
    }

    /// A register, with a load of its own, as the verifier wants it.
    #[inline(always)]
    fn register(self, at: usize) -> u64 {
        // SAFETY: the verifier checks the load; the kernel gives 0 for memory that is not there.
        unsafe { self.0.add(at).cast::<u64>().read_volatile() }
    }

    /// The number of the system call.
    #[inline(always)]
    pub fn call(self) -> u32 {
        self.register(arch::NUMBER) as u32
    }

    /// The first one.
    #[inline(always)]
    pub fn first(self) -> u64 {
        self.register(arch::ARGUMENTS[0])
    }

    /// The second one.
    #[inline(always)]
    pub fn second(self) -> u64 {
        self.register(arch::ARGUMENTS[1])
    }

    /// The third one.
    #[inline(always)]
    pub fn third(self) -> u64 {
        self.register(arch::ARGUMENTS[2])
    }

    /// The fourth one.
    #[inline(always)]
    pub fn fourth(self) -> u64 {
        self.register(arch::ARGUMENTS[3])
    }

    /// The fifth one.
    #[inline(always)]
    pub fn fifth(self) -> u64 {
        self.register(arch::ARGUMENTS[4])
    }

    /// Where the call was made: the instruction behind it.
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

/// Where the current process has its vDSO, and how long that is; `None` if it has none.
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

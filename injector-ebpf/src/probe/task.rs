//! The current task: its user registers, and a way through its structures.

use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs,
};

use crate::{kernel::field, maps};

// System calls by their numbers on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl). Those of 32-bit programs have others,
// and x32's have a bit set.

pub const FUTEX: u64 = 202;
pub const TIMER_SETTIME: u64 = 223;
pub const CLOCK_GETTIME: u64 = 228;
pub const CLOCK_NANOSLEEP: u64 = 230;
pub const MQ_TIMEDSEND: u64 = 242;
pub const MQ_TIMEDRECEIVE: u64 = 243;
pub const TIMERFD_SETTIME: u64 = 286;
pub const FUTEX_WAITV: u64 = 449;

/// The user's registers as the kernel keeps them during a system call: `struct pt_regs` of x86-64, whose
/// layout ptrace(2) fixes.
#[repr(C)]
pub struct Registers {
    _callee_saved: [u64; 6],
    _r11: u64,
    r10: u64,
    _r9: u64,
    r8: u64,
    _ax: u64,
    _cx: u64,
    dx: u64,
    si: u64,
    di: u64,
    orig_ax: u64,
    ip: u64,
}

impl Registers {
    /// Those of the current task.
    #[inline(always)]
    pub fn current() -> *const Self {
        // SAFETY: takes the current task, which lives as long as the program runs.
        unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const Self }
    }
}

/// Reads a field of [`Registers`] that is not null, with a load of its own, as the verifier wants it.
macro_rules! register {
    ($registers:expr, $name:ident) => {
        // SAFETY: the verifier checks the load; the kernel gives 0 for memory that is not there.
        unsafe { (&raw const (*$registers).$name).read_volatile() }
    };
}

/// The arguments of the current system call.
#[derive(Clone, Copy)]
pub struct Arguments(*const Registers);

impl Arguments {
    /// Those of the current task, also when the call has returned: the kernel changes but `rax`.
    #[inline(always)]
    pub fn current() -> Self {
        Self(Registers::current())
    }

    /// The number of the system call.
    #[inline(always)]
    pub fn call(self) -> u64 {
        register!(self.0, orig_ax)
    }

    /// The first one.
    #[inline(always)]
    pub fn first(self) -> u64 {
        register!(self.0, di)
    }

    /// The second one.
    #[inline(always)]
    pub fn second(self) -> u64 {
        register!(self.0, si)
    }

    /// The third one.
    #[inline(always)]
    pub fn third(self) -> u64 {
        register!(self.0, dx)
    }

    /// The fourth one.
    #[inline(always)]
    pub fn fourth(self) -> u64 {
        register!(self.0, r10)
    }

    /// The fifth one.
    #[inline(always)]
    pub fn fifth(self) -> u64 {
        register!(self.0, r8)
    }

    /// Where the call was made: the instruction behind it.
    #[inline(always)]
    pub fn caller(self) -> u64 {
        register!(self.0, ip)
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

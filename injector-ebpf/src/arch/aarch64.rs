//! arm64 (arch/arm64/include/asm/ptrace.h, fixed by ptrace(2) up to `pstate`).

/// The system call number: `syscallno`, 32 bits.
pub const NUMBER: usize = 35 * 8;

/// The first five arguments: `orig_x0`, because `x0` contains the result, and `x1` to `x4`.
pub const ARGUMENTS: [usize; 5] = [34 * 8, 8, 2 * 8, 3 * 8, 4 * 8];

/// The instruction after the call: `pc`.
pub const INSTRUCTION_POINTER: usize = 32 * 8;

/// The processor state: `pstate`. `orig_x0` and `syscallno` follow.
const STATE: usize = 33 * 8;

/// The state bits that are clear in 64-bit programs: `PSR_MODE_MASK` and `PSR_MODE32_BIT`.
const NOT_USER_64: u64 = 0x1f;

/// System call numbers (include/uapi/asm-generic/unistd.h).
pub mod calls {
    pub const TIMERFD_SETTIME: u32 = 86;
    pub const FUTEX: u32 = 98;
    pub const TIMER_SETTIME: u32 = 110;
    pub const CLOCK_GETTIME: u32 = 113;
    pub const CLOCK_NANOSLEEP: u32 = 115;
    pub const MQ_TIMEDSEND: u32 = 182;
    pub const MQ_TIMEDRECEIVE: u32 = 183;
    pub const FUTEX_WAITV: u32 = 449;
}

/// Whether a call comes from a program that is not 32-bit. `registers` is a `struct pt_regs`.
#[inline(always)]
pub fn is_native(registers: u64) -> bool {
    native_call(registers).is_some()
}

/// The number of a task's current call, if it is a 64-bit program; `None` for kernel threads.
#[inline(always)]
pub fn native_call(registers: u64) -> Option<u32> {
    let [state, _, number] = super::words(registers, STATE)?;
    (state & NOT_USER_64 == 0).then_some(number as u32)
}

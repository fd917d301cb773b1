//! arm64 (arch/arm64/include/asm/ptrace.h, of which ptrace(2) fixes the part up to `pstate`).

/// The number of the call: `syscallno`, of 32 bits.
pub const NUMBER: usize = 35 * 8;

/// The first five arguments: `orig_x0`, for the result is in `x0`, and `x1` to `x4`.
pub const ARGUMENTS: [usize; 5] = [34 * 8, 8, 2 * 8, 3 * 8, 4 * 8];

/// The instruction behind the call: `pc`.
pub const INSTRUCTION_POINTER: usize = 32 * 8;

/// The processor's state: `pstate`. `orig_x0` and `syscallno` follow.
const STATE: usize = 33 * 8;

/// The bits of the state that are clear in 64-bit programs: `PSR_MODE_MASK` and `PSR_MODE32_BIT`.
const NOT_USER_64: u64 = 0x1f;

/// Numbers of system calls (include/uapi/asm-generic/unistd.h).
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

/// Whether a call comes from no 32-bit program. `registers` is a `struct pt_regs`.
#[inline(always)]
pub fn is_native(registers: u64) -> bool {
    native_call(registers).is_some()
}

/// The number of the call that a task is in, if it is a 64-bit program: kernel threads are in none.
#[inline(always)]
pub fn native_call(registers: u64) -> Option<u32> {
    let [state, _, number] = super::words(registers, STATE)?;
    (state & NOT_USER_64 == 0).then_some(number as u32)
}

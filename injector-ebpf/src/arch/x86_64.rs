//! x86-64 (arch/x86/include/asm/ptrace.h, whose layout is fixed by ptrace(2)).

/// The system call number: `orig_ax`. The instruction pointer and the code segment follow.
pub const NUMBER: usize = 15 * 8;

/// The first five arguments: `di`, `si`, `dx`, `r10`, `r8`.
pub const ARGUMENTS: [usize; 5] = [14 * 8, 13 * 8, 12 * 8, 7 * 8, 9 * 8];

/// The instruction after the call: `ip`.
pub const INSTRUCTION_POINTER: usize = 16 * 8;

/// The code segment: `cs`.
const SEGMENT: usize = 17 * 8;

/// The segments of 64-bit and of 32-bit programs (arch/x86/include/asm/segment.h).
const USER_CS: u64 = 0x33;
const USER_CS_32: u64 = 0x23;

/// System call numbers (`arch/x86/entry/syscalls/syscall_64.tbl`). Those of x32 have an extra bit
/// set.
pub mod calls {
    pub const FUTEX: u32 = 202;
    pub const TIMER_SETTIME: u32 = 223;
    pub const CLOCK_GETTIME: u32 = 228;
    pub const CLOCK_NANOSLEEP: u32 = 230;
    pub const MQ_TIMEDSEND: u32 = 242;
    pub const MQ_TIMEDRECEIVE: u32 = 243;
    pub const TIMERFD_SETTIME: u32 = 286;
    pub const FUTEX_WAITV: u32 = 449;
}

/// Whether a call comes from a program that is not 32-bit. `registers` is a `struct pt_regs`.
#[inline(always)]
pub fn is_native(registers: u64) -> bool {
    super::words(registers, SEGMENT).is_some_and(|[segment]| segment & 0xffff != USER_CS_32)
}

/// The number of a task's current call, if it is a 64-bit program; `None` for kernel threads.
#[inline(always)]
pub fn native_call(registers: u64) -> Option<u32> {
    let [number, _, segment] = super::words(registers, NUMBER)?;
    (segment & 0xffff == USER_CS).then_some(number as u32)
}

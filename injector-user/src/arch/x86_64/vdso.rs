//! The vDSO hook of x86-64: its machine code, and the instruction decoding that patching requires.

use std::{arch::global_asm, mem::offset_of, slice};

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Decoder, DecoderOptions, FlowControl, Instruction,
    InstructionBlock, OpKind,
};
use injector_common::model::clock::{Clock, FREEZE, STROBE, Skew, Span};

use crate::arch::vdso::{Block, Function, Hook, MAX_JUMP, Moved, Slot, UnknownLayout};

/// Number of bytes overwritten at an entry: `jmp rel32`.
const JUMP: usize = 5;

const _: () = assert!(JUMP <= MAX_JUMP);

const BITS: u32 = 64;

// The hook hard-codes offset 0 for the real-time clock.
const _: () = assert!(Clock::Realtime as usize == 0);

/// Room for one function's displaced instructions and a jump back. An instruction that begins
/// within the first [`JUMP`] bytes may be 15 bytes long. None grows when moved.
const TRAMPOLINE: usize = JUMP - 1 + 15 + JUMP;

// The hook: a block of data (see `block`), the code, and a trampoline for each function, which
// calls the original. All references are relative to the instruction pointer and stay within the
// hook, so it runs at any address. It must be small: Linux 7.3 leaves 896 bytes.
//
// It follows the System V ABI: it preserves callee-saved registers, keeps the stack aligned at the
// call of the original, uses at most 72 bytes of stack, and writes nothing below the stack pointer.
// It tests every divisor first, so even a slot that is being written cannot make it fault.
global_asm!(
    ".pushsection .rodata.injector_vdso, \"a\", @progbits",
    ".balign 64",
    ".hidden injector_vdso_start",
    ".globl injector_vdso_start",
    "injector_vdso_start:",
    ".Linjector_block:",
    ".skip {BLOCK}",

    // time_t time(time_t *rdi)
    ".hidden injector_vdso_time",
    ".globl injector_vdso_time",
    "injector_vdso_time:",
    "push rdi",
    "sub rsp, 16",
    "push 5", // CLOCK_REALTIME_COARSE
    "pop rdi",
    "call .Linjector_realtime",
    "pop rdx",
    "pop rcx",
    "pop rdi",
    "test eax, eax",
    // If the coarse clock fails, the original time() answers.
    "jnz .Linjector_original_time",
    "test rdi, rdi",
    "jz 2f",
    "mov qword ptr [rdi], rdx",
    "2: xchg rax, rdx",
    "ret",

    // int gettimeofday(struct timeval *rdi, struct timezone *rsi)
    ".hidden injector_vdso_gettimeofday",
    ".globl injector_vdso_gettimeofday",
    "injector_vdso_gettimeofday:",
    "push rdi",
    "sub rsp, 16",
    "xor eax, eax",
    "test rsi, rsi",
    "jz 2f",
    "xor edi, edi",
    "call .Linjector_original_gettimeofday",
    "test eax, eax",
    "jnz 3f",
    "2: cmp qword ptr [rsp + 16], 0",
    "je 3f",
    "xor edi, edi", // CLOCK_REALTIME
    "call .Linjector_realtime",
    "test eax, eax",
    "jnz 3f",
    "pop rdx",
    "pop rcx",
    "pop rdi",
    "mov qword ptr [rdi], rdx",
    // Divides by 1000, exact for any 32-bit value.
    "imul rcx, rcx, 0x10624dd3",
    "shr rcx, 38",
    "mov qword ptr [rdi + 8], rcx",
    "ret",
    "3: add rsp, 24",
    "2: ret",

    // Reads the real-time clock edi into the timespec at the top of the caller's stack.
    ".Linjector_realtime:",
    "lea rsi, [rsp + 8]",
    "sub rsp, 8", // keeps the stack aligned
    "call .Linjector_original_clock_gettime",
    "pop rsi",
    "test eax, eax",
    "jnz 2b",
    "lea rsi, [rsp + 8]",
    "xor ecx, ecx",
    "jmp .Linjector_skew",

    // int clock_gettime(clockid_t edi, struct timespec *rsi)
    ".hidden injector_vdso_clock_gettime",
    ".globl injector_vdso_clock_gettime",
    "injector_vdso_clock_gettime:",
    "push rsi",
    "push rdi",
    "push rdi", // keeps the stack aligned
    "call .Linjector_original_clock_gettime",
    "pop rdi",
    "pop rdi",
    "pop rsi",
    "test eax, eax",
    "jnz 2b",
    // The clock's offset, if that clock can be skewed.
    "mov ecx, edi",
    "cmp ecx, {IDS}",
    "jae 2b",
    "lea r8, [rip + .Linjector_block + {SPANS}]",
    "movzx ecx, byte ptr [r8 + rcx]",
    "test cl, cl",
    "js 2b",
    // Skews the timespec at rsi, the true reading of the clock whose data is at rcx. `Skew::read`
    // is the equivalent in Rust, except for times after the year 2262, which do not overflow here.
    //
    // Almost none of this depends on the time, so the processor executes it while it reads its
    // counter. For the same reason the offset is divided, not the sum.
    ".Linjector_skew:",
    "lea r8, [rip + .Linjector_block + {SLOTS}]",
    "movzx r9d, byte ptr [r8 + {CURRENT} - {SLOTS}]",
    "add r8, r9",
    "mov r9, qword ptr [r8 + {VERSION}]",
    "test r9b, 1",
    "jnz .Linjector_skew",
    "mov r11, qword ptr [rsi]",
    "mov r10, qword ptr [rsi + 8]",
    "imul rdi, r11, 1000000000",
    "add rdi, r10",
    "cmp rdi, qword ptr [r8 + rcx + {LEASE}]",
    "jge 8f",
    "test byte ptr [r8 + {FLAGS}], {FREEZE}",
    "jnz 5f",
    "mov rax, qword ptr [r8 + {DRIFT}]",
    "or rax, qword ptr [r8 + {SLEW}]",
    "or rax, qword ptr [r8 + {PERIOD}]",
    "jnz 6f",
    "mov rdi, qword ptr [r8 + {OFFSET}]",
    // Adds rdi nanoseconds to r11 seconds and r10 nanoseconds. Divides by 10^9 by multiplying with
    // 2^90 / 10^9, rounded up. The quotient is one too low for a negative dividend of whole
    // seconds; the remainder is then 10^9.
    "3: movabs rax, 0x112e0be826d694b3",
    "imul rdi",
    "sar rdx, 26",
    "imul rax, rdx, 1000000000",
    "sub rdi, rax",
    "add rdx, r11",
    "lea rax, [rdi + r10]",
    "cmp rax, 1000000000",
    "jb 4f",
    "sub rax, 1000000000",
    "inc rdx",
    "4: cmp r9, qword ptr [r8 + {VERSION}]",
    "jne .Linjector_skew",
    "mov qword ptr [rsi], rdx",
    "mov qword ptr [rsi + 8], rax",
    "xor eax, eax",
    "ret",
    // A frozen clock.
    "5: mov rdi, qword ptr [r8 + rcx + {BASE}]",
    "add rdi, qword ptr [r8 + {OFFSET}]",
    "7: xor r10d, r10d",
    "xor r11d, r11d",
    "jmp 3b",
    // A true clock.
    "8: mov rdx, r11",
    "mov rax, r10",
    "jmp 4b",
    // All other clocks: r11 is the time since the start, rdi the sum.
    "6: xor eax, eax",
    "mov r11, rdi",
    "sub r11, qword ptr [r8 + rcx + {BASE}]",
    "cmovs r11, rax",
    "add rdi, qword ptr [r8 + {OFFSET}]",
    "mov rax, qword ptr [r8 + {DRIFT}]",
    "imul r11",
    "shrd rax, rdx, 32",
    "add rdi, rax",
    "mov rax, qword ptr [r8 + {SLEW_NS}]",
    "cmp r11, rax",
    "cmovl rax, r11",
    "imul qword ptr [r8 + {SLEW}]",
    "shrd rax, rdx, 32",
    "add rdi, rax",
    "mov r10, qword ptr [r8 + {PERIOD}]",
    "test r10, r10",
    "jz 7b",
    "mov rax, r11",
    "sub rax, qword ptr [r8 + {FIRST}]",
    "jl 7b",
    "xor edx, edx",
    "div r10",
    "inc rax",
    "test byte ptr [r8 + {FLAGS}], {STROBE}",
    "jz 6f",
    "and eax, 1",
    "6: imul rax, qword ptr [r8 + {STEP}]",
    "add rdi, rax",
    "jmp 7b",

    ".hidden injector_vdso_trampolines",
    ".globl injector_vdso_trampolines",
    "injector_vdso_trampolines:",
    ".Linjector_original_clock_gettime:",
    ".skip {TRAMPOLINE}, 0xcc",
    ".Linjector_original_gettimeofday:",
    ".skip {TRAMPOLINE}, 0xcc",
    ".Linjector_original_time:",
    ".skip {TRAMPOLINE}, 0xcc",
    ".hidden injector_vdso_end",
    ".globl injector_vdso_end",
    "injector_vdso_end:",
    ".popsection",
    BLOCK = const size_of::<Block>(),
    SPANS = const offset_of!(Block, spans),
    IDS = const Block::IDS,
    CURRENT = const offset_of!(Block, current),
    SLOTS = const offset_of!(Block, slots),
    VERSION = const offset_of!(Slot, version),
    FLAGS = const offset_of!(Slot, skew) + offset_of!(Skew, flags),
    OFFSET = const offset_of!(Slot, skew) + offset_of!(Skew, offset),
    DRIFT = const offset_of!(Slot, skew) + offset_of!(Skew, drift),
    SLEW = const offset_of!(Slot, skew) + offset_of!(Skew, slew),
    SLEW_NS = const offset_of!(Slot, skew) + offset_of!(Skew, slew_ns),
    STEP = const offset_of!(Slot, skew) + offset_of!(Skew, step),
    FIRST = const offset_of!(Slot, skew) + offset_of!(Skew, first_ns),
    PERIOD = const offset_of!(Slot, skew) + offset_of!(Skew, period_ns),
    BASE = const offset_of!(Slot, skew) + offset_of!(Skew, clocks) + offset_of!(Span, base),
    LEASE = const offset_of!(Slot, skew) + offset_of!(Skew, clocks) + offset_of!(Span, lease),
    FREEZE = const FREEZE,
    STROBE = const STROBE,
    TRAMPOLINE = const TRAMPOLINE,
);

unsafe extern "C" {
    static injector_vdso_start: u8;
    static injector_vdso_clock_gettime: u8;
    static injector_vdso_gettimeofday: u8;
    static injector_vdso_time: u8;
    static injector_vdso_trampolines: u8;
    static injector_vdso_end: u8;
}

fn offset_in_hook(symbol: *const u8) -> usize {
    symbol.addr() - (&raw const injector_vdso_start).addr()
}

/// The hook of x86-64.
#[derive(Debug)]
pub struct X86Hook;

impl Hook for X86Hook {
    fn machine(&self) -> u16 {
        object::elf::EM_X86_64
    }

    fn symbol(&self, function: Function) -> &'static str {
        match function {
            Function::ClockGettime => "__vdso_clock_gettime",
            Function::Gettimeofday => "__vdso_gettimeofday",
            Function::Time => "__vdso_time",
        }
    }

    fn jump_length(&self) -> usize {
        JUMP
    }

    fn code(&self) -> &'static [u8] {
        let length = offset_in_hook(&raw const injector_vdso_end);
        // SAFETY: the bytes between the two symbols are constants of this program.
        unsafe { slice::from_raw_parts(&raw const injector_vdso_start, length) }
    }

    fn replacement(&self, function: Function) -> usize {
        offset_in_hook(match function {
            Function::ClockGettime => &raw const injector_vdso_clock_gettime,
            Function::Gettimeofday => &raw const injector_vdso_gettimeofday,
            Function::Time => &raw const injector_vdso_time,
        })
    }

    fn trampoline(&self, function: Function) -> (usize, usize) {
        let first = offset_in_hook(&raw const injector_vdso_trampolines);
        (first + function as usize * TRAMPOLINE, TRAMPOLINE)
    }

    fn jump(&self, from: usize, to: usize) -> Option<Box<[u8]>> {
        let distance = to.wrapping_sub(from + JUMP).cast_signed();
        let [a, b, c, d] = i32::try_from(distance).ok()?.to_le_bytes();
        Some([0xe9, a, b, c, d].into())
    }

    fn displace(&self, image: &[u8], entry: usize, to: usize) -> Result<Moved, UnknownLayout> {
        let code = image.get(entry..).ok_or(UnknownLayout::Symbol)?;
        let mut decoder = Decoder::with_ip(BITS, code, entry as u64, DecoderOptions::NONE);
        let mut instructions = Vec::new();
        let mut end = entry;
        while end < entry + JUMP {
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                return Err(UnknownLayout::Instruction(end));
            }
            if instruction.flow_control() != FlowControl::Next {
                return Err(UnknownLayout::Flow(end));
            }
            end = instruction.next_ip() as usize;
            instructions.push(instruction);
        }
        instructions.push(
            Instruction::with_branch(Code::Jmp_rel32_64, end as u64)
                .map_err(|_| UnknownLayout::Move(entry))?,
        );
        let block = InstructionBlock::new(&instructions, to as u64);
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let moved =
            BlockEncoder::encode(BITS, block, options).map_err(|_| UnknownLayout::Move(entry))?;
        let inner = instructions.iter().zip(&moved.new_instruction_offsets).skip(1);
        let inner = inner
            .filter(|(instruction, _)| instruction.code() != Code::Jmp_rel32_64)
            .map(|(instruction, offset)| (instruction.ip() as usize - entry, *offset as usize))
            .collect();
        Ok(Moved { code: moved.code_buffer, inner })
    }

    fn branches(&self, code: &[u8], start: usize) -> Result<Vec<usize>, UnknownLayout> {
        let mut targets = Vec::new();
        for instruction in &mut Decoder::with_ip(BITS, code, start as u64, DecoderOptions::NONE) {
            if instruction.is_invalid() {
                return Err(UnknownLayout::Instruction(instruction.ip() as usize));
            }
            if instruction.op_kinds().any(|kind| kind == OpKind::NearBranch64) {
                targets.push(instruction.near_branch_target() as usize);
            }
        }
        Ok(targets)
    }
}

//! Makes system calls of the target fail at the kernel's security hooks.
//!
//! There is one program for each way to match a call's arguments. Userspace loads the program for
//! the hook, as a BPF LSM program or as one that modifies a function's return value. Both get the
//! hook's arguments, and a non-zero result becomes the system call's error.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(missing_docs, reason = "programs are described where they are made")]

#[path = "../arch/mod.rs"]
mod arch;
#[path = "../atomic.rs"]
mod atomic;
mod call;
#[allow(dead_code, reason = "this object needs a part of it")]
#[path = "../current.rs"]
mod current;
#[path = "../kernel.rs"]
mod kernel;
#[path = "../members.rs"]
mod members;
#[path = "../object.rs"]
mod object;
mod path;
#[path = "../pid.rs"]
mod pid;
mod remote;

use aya_ebpf::{Global, helpers::bpf_probe_read_kernel, macros::map, maps::Array};
use injector_common::{
    errno::ErrnoCounters,
    model::{chance::Probability, random},
};

/// The error, negative.
#[unsafe(no_mangle)]
static RESULT: Global<i64> = Global::new(0);

/// How often calls fail, as a [`Probability`].
#[unsafe(no_mangle)]
static PROBABILITY: Global<u32> = Global::new(0);

/// The random stream.
#[unsafe(no_mangle)]
static STREAM: Global<u64> = Global::new(0);

/// The counters.
#[map]
static COUNTERS: Array<ErrnoCounters> = Array::with_max_entries(1, 0);

/// A hook argument as a plain number: the type known to the verifier differs between kernels.
#[inline(always)]
fn argument(context: *const u64, number: usize) -> u64 {
    // SAFETY: the context is the array of arguments; a failing read is an error at any address.
    unsafe { bpf_probe_read_kernel(context.add(number)) }.unwrap_or(0)
}

/// Defines a program. The section must be one that aya knows; userspace chooses the type.
macro_rules! program {
    ($name:ident, $context:ident, $is_about:expr) => {
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "fentry")]
        pub extern "C" fn $name($context: *const u64) -> i64 {
            if call::is_meant() && $is_about { outcome() } else { 0 }
        }
    };
}

// Any call.
program!(on_any, _context, true);
// The hook passes `struct file *`.
program!(on_file, context, path::is_of_file(argument(context, 0)));
// The hook passes `struct path *`.
program!(on_path, context, path::is(argument(context, 0)));
// The hook passes `struct path *` of a directory, and `struct dentry *` of an entry.
program!(on_entry, context, path::is_of_entry(argument(context, 0), argument(context, 1)));
// The hook passes `struct sockaddr *` after the socket.
program!(on_address, context, remote::is(argument(context, 1)));
// The hook passes `struct socket *` and `struct msghdr *`.
program!(on_message, context, remote::is_of_message(argument(context, 0), argument(context, 1)));
// The hook passes `struct socket *`.
program!(on_peer, context, remote::is_of_socket(argument(context, 0)));

/// The result for a call that matches.
#[inline(always)]
fn outcome() -> i64 {
    let Some(counters) = COUNTERS.get_ptr_mut(0) else { return 0 };
    // SAFETY: in the map, aligned.
    let index = unsafe { atomic::fetch_add(&raw mut (*counters).matched, 1) };
    let random = (random::draw(STREAM.load(), index) >> 32) as u32;
    if !Probability(PROBABILITY.load()).hit(random) {
        return 0;
    }
    // SAFETY: in the map, aligned.
    unsafe { atomic::fetch_add(&raw mut (*counters).failed, 1) };
    RESULT.load()
}

//! Has system calls of the target fail, at the kernel's security hooks on their way.
//!
//! There is a program for each way to tell what a call is about. Userspace loads the one that it needs for the hook that it
//! needs, as a program of the BPF LSM or as one that replaces what a function returns: both get the hook's arguments, and
//! what is not 0 is what the system call fails with.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(missing_docs, reason = "programs are described where they are made")]

#[path = "../arch/mod.rs"]
mod arch;
#[path = "../atomic.rs"]
mod atomic;
mod call;
#[path = "../current.rs"]
mod current;
#[path = "../kernel.rs"]
mod kernel;
#[path = "../object.rs"]
mod object;
mod path;
mod remote;

use aya_ebpf::{Global, helpers::bpf_probe_read_kernel, macros::map, maps::Array};
use injector_common::{
    errno::ErrnoCounters,
    model::{chance::Probability, random},
};

/// What calls fail with, negative.
#[unsafe(no_mangle)]
static RESULT: Global<i64> = Global::new(0);

/// How often, as a [`Probability`].
#[unsafe(no_mangle)]
static PROBABILITY: Global<u32> = Global::new(0);

/// Where the random numbers come from.
#[unsafe(no_mangle)]
static STREAM: Global<u64> = Global::new(0);

/// What was done.
#[map]
static COUNTERS: Array<ErrnoCounters> = Array::with_max_entries(1, 0);

/// An argument of the hook, as a mere number: what the verifier knows of it differs from kernel to kernel.
#[inline(always)]
fn argument(context: *const u64, number: usize) -> u64 {
    // SAFETY: the context is the array of arguments; a failing read is an error, whatever the address.
    unsafe { bpf_probe_read_kernel(context.add(number)) }.unwrap_or(0)
}

/// A program. The section is one that aya knows; the type is userspace's choice.
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
// The hook has `struct file *`.
program!(on_file, context, path::is_of_file(argument(context, 0)));
// The hook has `struct path *`.
program!(on_path, context, path::is(argument(context, 0)));
// The hook has `struct path *` of a directory, and `struct dentry *` of an entry.
program!(on_entry, context, path::is_of_entry(argument(context, 0), argument(context, 1)));
// The hook has `struct sockaddr *` behind the socket.
program!(on_address, context, remote::is(argument(context, 1)));
// The hook has `struct socket *` and `struct msghdr *`.
program!(on_message, context, remote::is_of_message(argument(context, 0), argument(context, 1)));
// The hook has `struct socket *`.
program!(on_peer, context, remote::is_of_socket(argument(context, 0)));

/// What becomes of a call that matches.
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

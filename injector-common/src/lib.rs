//! The contract between injector's two sides.
//!
//! Everything here is compiled twice: into the eBPF object and into the userspace. Types that cross
//! the boundary live in [`rule`], [`hold`], [`counter`] and [`control`]; the pure code that decides what
//! happens to a packet lives in [`packet`] (what is it), [`classify`] (which rule) and [`model`]
//! (what to do). Tests on the host therefore test the very code that runs in the kernel.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod classify;
pub mod control;
pub mod counter;
pub mod errno;
pub mod glob;
pub mod hold;
pub mod model;
pub mod packet;
pub mod probe;
pub mod process;
pub mod rule;
#[cfg(feature = "user")]
mod user;
pub mod verifier;

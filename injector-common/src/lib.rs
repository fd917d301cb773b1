//! Types and code shared by injector's userspace and eBPF programs.
//!
//! Everything here is compiled twice: into the eBPF object and into userspace. Types that cross the
//! boundary are in [`rule`], [`hold`], [`counter`], [`unmatched`] and [`control`]. The pure code that processes a
//! packet is in [`packet`] (parsing), [`classify`] (rule lookup) and [`model`] (decisions). Tests
//! on the host therefore cover the code that runs in the kernel.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod classify;
pub mod control;
pub mod counter;
pub mod errno;
pub mod glob;
pub mod histogram;
pub mod hold;
pub mod model;
pub mod packet;
pub mod probe;
pub mod process;
pub mod rule;
pub mod unmatched;
#[cfg(feature = "user")]
mod user;
pub mod verifier;

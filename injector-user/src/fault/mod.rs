//! Faults: install, observe, remove.

pub mod clock;
pub mod counts;
pub mod network;
pub mod process;

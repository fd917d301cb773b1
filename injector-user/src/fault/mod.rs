//! Faults: install, observe, remove.

pub mod clock;
pub mod network;

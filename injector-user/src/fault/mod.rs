//! Faults: install, observe, remove.

pub mod network;

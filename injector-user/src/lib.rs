//! injector: breaks real hosts on purpose, precisely and safely.
//!
//! Data flows one way: [`cli`] → [`spec`] → [`target`] → [`fault`] → [`kernel`] → eBPF maps, and
//! counters flow back by the same road. [`lifetime`] makes sure that nothing outlives us.

pub mod cli;
pub mod fault;
pub mod kernel;
pub mod lifetime;
pub mod spec;
pub mod target;

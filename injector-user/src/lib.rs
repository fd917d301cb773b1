//! injector: breaks real hosts on purpose, precisely and safely.
//!
//! Data flows one way: [`cli`] → [`spec`] → [`target`] → [`fault`] → [`kernel`] → eBPF maps, and
//! counters flow back by the same road. [`scenario`] carries out several of them by a timeline, [`agent`] for clients of
//! an API, [`kubernetes`] for a cluster, and [`lifetime`] makes sure that nothing outlives us.
//!
//! Nothing prints by the macros of the standard library: they panic when output fails, and wait for
//! whoever reads it.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod agent;
pub mod cli;
pub mod fault;
pub mod kernel;
pub mod kubernetes;
pub mod lifetime;
pub mod output;
pub mod scenario;
pub mod spec;
pub mod target;

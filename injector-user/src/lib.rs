//! injector: breaks real hosts on purpose, precisely and safely.
//!
//! Data flows one way: [`cli`] → [`spec`] → [`target`] → [`fault`] → [`kernel`] → eBPF maps, and
//! counters flow back by the same road. [`scenario`] carries out several of them by a timeline, [`agent`] for clients of
//! an API, [`kubernetes`] for a cluster, and [`lifetime`] makes sure that nothing outlives us.

pub mod agent;
pub mod cli;
pub mod fault;
pub mod kernel;
pub mod kubernetes;
pub mod lifetime;
pub mod scenario;
pub mod spec;
pub mod target;

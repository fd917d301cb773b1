//! injector: breaks real hosts on purpose, precisely and safely.
//!
//! Data flows one way: [`cli`] → [`spec`] → [`target`] → [`fault`] → [`kernel`] → eBPF maps, and
//! counters flow back by the same road. [`scenario`] carries out several of them by a timeline, [`agent`] for clients of
//! an API, [`kubernetes`] for a cluster, and [`lifetime`] makes sure that nothing outlives us.
//!
//! A program, such as an integration test, starts faults by [`Injection::builder`]:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let guard = injector_user::Injection::builder().netns("shop")?.loss("5%")?.start()?;
//! // What is tested comes here; the faults end with the guard, or with the process.
//! println!("{} packets dropped", guard.end()?.packets.done.dropped);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing prints by the macros of the standard library: they panic when output fails, and wait for
//! whoever reads it.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

#[cfg(feature = "agent")]
pub mod agent;
pub mod arch;
pub mod cli;
pub mod fault;
pub mod injection;
pub mod kernel;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod lifetime;
pub mod output;
pub mod report;
pub mod scenario;
pub mod spec;
pub mod target;
pub mod threads;
pub mod words;

pub use injection::Injection;

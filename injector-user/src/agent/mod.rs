//! The agent: faults by an HTTP API, for as long as their clients, or a fixed time, want them.
//!
//! [`server`] speaks HTTP, and asks the one thread that owns all faults, [`keeper`], by a channel; what it reads comes
//! from the [`board`], where that thread writes what there is. So no request waits for the kernel but one that changes
//! something, and nothing but the keeper touches the kernel.

pub mod access;
mod active;
pub mod api;
pub mod audit;
pub mod board;
pub mod client;
mod group;
pub mod keeper;
mod metrics;
pub mod plan;
pub mod routes;
pub mod selection;
pub mod server;
mod sum;

use std::time::Duration;

/// The socket of the agent, if no other is named.
pub const SOCKET: &str = "/run/injector/agent.sock";

/// The shortest lease: renewals take their time.
pub const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// The longest lease, which is how long a fault can outlive its client.
pub const LONGEST_LEASE: Duration = Duration::from_mins(10);

/// The longest life of a fault, renewed or not.
pub const LONGEST_LIFE: Duration = Duration::from_hours(24);

/// How much the agent takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; half of them may watch events.
    pub connections: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// How long a request may take.
    pub request: Duration,
}

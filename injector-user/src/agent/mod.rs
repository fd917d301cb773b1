//! The agent: an HTTP API for faults that last for a fixed time or until their lease expires.
//!
//! [`server`] speaks HTTP and sends changes over a channel to [`keeper`], the one thread that owns
//! all faults. Reads come from the [`board`], to which that thread publishes their state. Only
//! requests that change something therefore wait for the kernel, and only one thread calls it.

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

/// Default socket of the agent.
pub const SOCKET: &str = "/run/injector/agent.sock";

/// Minimum lease, which leaves time for renewals.
pub const MIN_LEASE: Duration = Duration::from_secs(1);

/// Maximum lease, which is how long a fault can outlive its client.
pub const MAX_LEASE: Duration = Duration::from_mins(10);

/// Maximum duration of a fault, with or without renewals.
pub const MAX_LIFE: Duration = Duration::from_hours(24);

/// Limits of the agent.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of connections; half of them may stream events.
    pub connections: usize,
    /// Maximum size of a request body in bytes.
    pub body: usize,
    /// Time limit of a request.
    pub request: Duration,
}

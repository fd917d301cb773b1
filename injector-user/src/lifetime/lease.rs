//! Leases: how long faults of the kernel side go on without hearing from their injector.

use std::time::Duration;

/// Lease of packet faults and of failing system calls. It covers a busy machine; the faults of a
/// stopped or hung injector end after it.
pub const LEASE: Duration = Duration::from_secs(5);

/// Lease of clock faults, which programs notice sooner.
pub const CLOCK_LEASE: Duration = Duration::from_millis(2500);

/// How often to renew leases, and to look for new interfaces, namespaces and processes.
pub const RENEWAL: Duration = Duration::from_millis(250);

//! Leases: how long faults in the kernel stay active without renewal.

use std::time::Duration;

/// Lease of packet faults and syscall failures. It tolerates a busy machine; faults of a stopped or
/// hung injector end after it.
pub const LEASE: Duration = Duration::from_secs(5);

/// Lease of clock faults. It is shorter because programs notice them sooner.
pub const CLOCK_LEASE: Duration = Duration::from_millis(2500);

/// Interval for renewing leases and discovering new interfaces, namespaces and processes.
pub const RENEWAL: Duration = Duration::from_millis(250);

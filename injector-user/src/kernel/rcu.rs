//! Expedited grace periods of RCU.
//!
//! Attaching and detaching programs, and moving a process to another cgroup, wait for a grace period
//! each, of 5 to 20 ms. Expedited ones take well below 1 ms, and interrupt each CPU once
//! (Documentation/RCU/Design/Expedited-Grace-Periods).

use std::{fs, io};

/// Non-zero: all grace periods are expedited (Documentation/admin-guide/kernel-parameters.txt,
/// `rcupdate.rcu_expedited`).
const SETTING: &str = "/sys/kernel/rcu_expedited";

/// Whether grace periods are expedited: 0, or what was written to turn it on.
pub fn expedited() -> io::Result<u32> {
    fs::read_to_string(SETTING)?.trim().parse().map_err(io::Error::other)
}

/// Turns expedited grace periods on, or off by 0.
pub fn set_expedited(value: u32) -> io::Result<()> {
    fs::write(SETTING, value.to_string())
}

//! Checks the privileges that injector needs.

use anyhow::{Result, bail};
use procfs::process::Process;

use super::preflight;
use crate::target::cgroup;

/// The capabilities that injector uses (capabilities(7)) and their bits.
///
/// All are checked at the start, because a fault that fails halfway does harm: without `CAP_KILL`,
/// for example, injector could suspend newly started programs but never resume them.
/// docs/security.md explains the purpose of each.
const NEEDED: [(&str, u32); 7] = [
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_KILL", 5),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// Checks that this process may inject faults, and makes visible what it needs of the host.
///
/// Call it before other threads start: they would not share what it changes.
pub fn prepare() -> Result<()> {
    check()?;
    reach_hierarchy();
    Ok(())
}

/// Makes the cgroup v2 hierarchy of the host visible to this process, if possible.
pub fn reach_hierarchy() {
    // Most faults need no hierarchy; those that do report that there is none.
    if let Err(error) = cgroup::reach_hierarchy() {
        tracing::debug!(%error, "the cgroup v2 hierarchy cannot be reached");
    }
}

/// Fails if a capability, or a part of /dev or /sys, is missing, and names it.
pub fn check() -> Result<()> {
    let effective = Process::myself().and_then(|process| process.status())?.capeff;
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|(_, bit)| effective >> bit & 1 == 0)
        .map(|(name, _)| name)
        .collect();
    if !missing.is_empty() {
        bail!(
            "injector must run as root: run it with sudo (missing capabilities: {})",
            missing.join(", ")
        );
    }
    preflight::check_mounts()
}

//! What it takes to run.

use anyhow::{Result, bail};
use procfs::process::Process;

use super::preflight;

/// The capabilities that injector uses (capabilities(7)) and their bits.
///
/// Each is asked for at the start, as a fault that is half carried out for want of one does harm: who can stop programs
/// that begin, and not let them go on, stops them for good. docs/security.md says what each is for.
const NEEDED: [(&str, u32); 7] = [
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_KILL", 5),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// Fails if a capability, or a part of /dev or /sys, is missing, and says which.
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

//! Restores the vDSOs of all processes of the machine.

use std::{fs, io};

use super::{Refusal, restore};

/// Restores the original functions of all processes that `owner` has patched.
///
/// Where threads cannot be stopped, as under a debugger, the hook stays but reads the true time.
pub fn restore_all(owner: u64) -> io::Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        match restore(pid, Some(owner)) {
            // The process has no patch of this owner.
            Ok(_) | Err(Refusal::Gone | Refusal::NoVdso) => {}
            Err(refusal) => tracing::debug!(pid, %refusal, "its vDSO is left as it is"),
        }
    }
    Ok(())
}

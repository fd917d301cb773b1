//! All processes of the machine.

use std::{fs, io};

use super::{Refusal, restore};

/// Puts the original functions back in all processes that `owner` has patched.
///
/// Where threads cannot be stopped, as under a debugger, the hook stays, but reads true.
pub fn restore_all(owner: u64) -> io::Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        match restore(pid, Some(owner)) {
            // It is ours no more, or never was.
            Ok(_) | Err(Refusal::Gone | Refusal::NoVdso) => {}
            Err(refusal) => tracing::debug!(pid, %refusal, "its vDSO is left as it is"),
        }
    }
    Ok(())
}

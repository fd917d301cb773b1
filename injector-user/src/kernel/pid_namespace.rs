//! injector's PID namespace: the kernel reports processes by their numbers in the initial one, and the
//! eBPF programs translate them.

use std::{fs, os::unix::fs::MetadataExt as _, sync::OnceLock};

use aya::EbpfLoader;

use super::{KernelError, layout::TaskLayout};

/// `PROC_PID_INIT_INO`, which is the same on all machines.
const INITIAL: u64 = 0xefff_fffc;

/// The inode of this process's PID namespace.
fn inode() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(INITIAL, |metadata| metadata.ino())
}

/// Checks that /proc shows the PID namespace of this process.
pub fn check() -> Result<(), KernelError> {
    let shown = fs::read_link("/proc/self").ok();
    let shown = shown.and_then(|target| target.to_str()?.parse::<u32>().ok());
    if shown == Some(std::process::id()) { Ok(()) } else { Err(KernelError::PidNamespace) }
}

/// Has the programs of an object tell, and be told, numbers in this process's PID namespace.
pub(super) fn set_in(loader: &mut EbpfLoader) -> Result<(), KernelError> {
    static GLOBALS: OnceLock<[(&str, u32); 7]> = OnceLock::new();

    check()?;
    let inode = inode();
    if inode == INITIAL {
        return Ok(());
    }
    let layout = TaskLayout::of_kernel()?;
    let globals = GLOBALS.get_or_init(|| {
        [
            // Numbers of namespaces have 32 bits.
            ("PID_NAMESPACE", inode as u32),
            ("TGID_AT", layout.tgid),
            ("SIGNAL_AT", layout.signal),
            ("PROCESS_AT", layout.process),
            ("LEVEL_AT", layout.pid_level),
            ("NUMBERS_AT", layout.pid_numbers),
            ("INODE_AT", layout.namespace_inode),
        ]
    });
    for (name, value) in globals {
        // Objects need a part of them.
        loader.override_global(name, value, false);
    }
    Ok(())
}

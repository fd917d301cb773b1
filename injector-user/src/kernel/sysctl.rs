//! Settings of a network namespace under /proc/sys/net.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{KernelError, host, netns::Netns};

/// A setting; `name` is a path below /proc/sys/net.
fn path(name: &str) -> PathBuf {
    const SETTINGS: &str = "proc/sys/net";
    // A container's own can only be read. The host's, mounted elsewhere, are as well those of the namespace of the
    // thread that opens them.
    let host = Some(host::root().join(SETTINGS)).filter(|path| path.is_dir());
    host.unwrap_or_else(|| Path::new("/").join(SETTINGS)).join(name)
}

/// What a setting is.
pub fn get(netns: &Netns, name: &str) -> Result<io::Result<String>, KernelError> {
    // /proc/sys/net shows the namespace of the thread that opens it.
    netns.run(|| fs::read_to_string(path(name)).map(|value| value.trim().to_owned()))
}

/// Changes a setting.
pub fn set(netns: &Netns, name: &str, value: &str) -> Result<io::Result<()>, KernelError> {
    netns.run(|| fs::write(path(name), value))
}

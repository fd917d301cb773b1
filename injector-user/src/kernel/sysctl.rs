//! Settings of a network namespace under /proc/sys/net.

use std::{fs, io, path::Path};

use super::{KernelError, netns::Netns};

/// A setting; `name` is a path below /proc/sys/net.
fn path(name: &str) -> std::path::PathBuf {
    Path::new("/proc/sys/net").join(name)
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

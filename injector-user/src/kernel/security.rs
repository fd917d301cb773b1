//! securityfs, which tells what the security modules of the kernel do.

use std::{fs, io, path::Path};

use super::mount::Context;

/// Where it is usually mounted.
const USUAL: &str = "/sys/kernel/security";

/// Reads a file of securityfs. If it is not mounted, it is mounted where only this call sees it.
pub fn read(file: &str) -> io::Result<String> {
    match fs::read_to_string(Path::new(USUAL).join(file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mount = Context::open(c"securityfs")?.mount()?;
            fs::read_to_string(mount.path().join(file))
        }
        read => read,
    }
}

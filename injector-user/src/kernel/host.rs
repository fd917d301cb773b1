//! Where the files of the host are.

use std::{env, path::PathBuf};

/// The environment variable that names the folder with the host's files, for an injector in a container.
const ROOT: &str = "INJECTOR_HOST_ROOT";

/// The folder with the host's files: `/` by default.
#[must_use]
pub fn root() -> PathBuf {
    env::var_os(ROOT).map_or_else(|| "/".into(), PathBuf::from)
}

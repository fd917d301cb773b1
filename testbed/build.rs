//! Exports the directories of programs and temporary files: cargo sets `CARGO_BIN_EXE_*` and
//! `CARGO_TARGET_TMPDIR` only for a package's own integration tests.

use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // <target>/<profile>/build/<package>/out
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let profile = Path::new(&out).ancestors().nth(3).expect("cargo's layout").display();
    println!("cargo::rustc-env=PROGRAMS={profile}");
}

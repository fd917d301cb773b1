//! Tells where cargo puts programs and scratch files: `CARGO_BIN_EXE_*` and `CARGO_TARGET_TMPDIR` exist only in a
//! package's own integration tests.

use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // <target>/<profile>/build/<package>/out
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let profile = Path::new(&out).ancestors().nth(3).expect("cargo's layout").display();
    println!("cargo::rustc-env=PROGRAMS={profile}");
}

//! Builds the eBPF object and leaves it in `OUT_DIR`, where `kernel::object` embeds it.
//!
//! Two toolchains will do: rustup's nightly with rust-src, or Debian's rustc-web with rust-web-src (its
//! stable compiler, told by `RUSTC_BOOTSTRAP` to accept `-Z build-std`). `INJECTOR_EBPF_TOOLCHAIN`
//! chooses one by rustup name or by prefix (`/usr`).

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

const DEBIAN_PREFIX: &str = "/usr";
const OVERRIDE: &str = "INJECTOR_EBPF_TOOLCHAIN";

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed={OVERRIDE}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no parent folder")?;
    // The kernel side is built from these too; cargo does not know that.
    println!("cargo:rerun-if-changed={}", root.join("injector-common/src").display());
    println!("cargo:rerun-if-changed={}", root.join("Cargo.lock").display());

    let ebpf = root.join("injector-ebpf");
    let ebpf = ebpf.to_str().context("the path of this folder is not UTF-8")?;
    let package = Package { name: "injector-ebpf", root_dir: ebpf, ..Package::default() };
    let toolchain = toolchain()?;
    // SAFETY: a build script has one thread here.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain)).with_context(|| {
        format!("building the eBPF object with toolchain {toolchain} (scripts/setup installs what it needs)")
    })
}

/// The toolchain to build with, as `rustup run` takes it. Without rustup the compiler on PATH is used.
fn toolchain() -> Result<String> {
    if let Ok(chosen) = env::var(OVERRIDE) {
        return Ok(chosen);
    }
    let has_source = |sysroot: &Path| sysroot.join("lib/rustlib/src/rust/library/core").is_dir();
    if rustup_sysroot("nightly").is_some_and(|sysroot| has_source(&sysroot)) {
        return Ok("nightly".into());
    }
    if has_source(Path::new(DEBIAN_PREFIX)) {
        return Ok(DEBIAN_PREFIX.into());
    }
    bail!(
        "no toolchain can build the eBPF object: run scripts/setup (Debian's rustc-web and rust-web-src), \
         or `rustup toolchain install nightly --component rust-src`"
    )
}

fn rustup_sysroot(toolchain: &str) -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

//! Makes cargo rebuild the eBPF object when bpf-linker changes, which cargo cannot see by itself.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(bpf_target_arch, values(\"aarch64\", \"x86_64\"))");
    if let Ok(linker) = which::which("bpf-linker") {
        println!("cargo:rerun-if-changed={}", linker.display());
    }
}

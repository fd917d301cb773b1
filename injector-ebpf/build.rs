//! Makes cargo rebuild the eBPF object when bpf-linker changes, which cargo cannot see by itself.

fn main() {
    if let Ok(linker) = which::which("bpf-linker") {
        println!("cargo:rerun-if-changed={}", linker.display());
    }
}

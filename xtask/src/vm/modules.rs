//! The kernel modules that the guest needs, in loading order.

use std::{collections::HashMap, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{kernel::Kernel, output_of};

/// Modules that tests use directly or through the kernel. Built-in ones are skipped.
const WANTED: &[&str] = &[
    // Interfaces.
    "veth",
    "dummy",
    "8021q",
    "ifb",
    "tun",
    "bridge",
    "macvlan",
    "ipvlan",
    "vrf",
    // Tunnels.
    "wireguard",
    "ipip",
    "sit",
    "ip_gre",
    "vxlan",
    // Queueing, and the classic way of attaching programs.
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "sch_fq",
    "sch_fq_codel",
    "sch_netem",
    "sch_htb",
    "sch_tbf",
    "sch_mqprio",
    "sch_prio",
    "cls_u32",
    "cls_flower",
    "cls_flow",
    "cls_fw",
    "cls_basic",
    "em_meta",
    "act_mirred",
    "act_gact",
    "act_skbedit",
    // Translation of addresses.
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
    "nf_conntrack_netlink",
    "nft_masq",
    "ip_vs",
    "ip_vs_rr",
    // Sockets, and lists of them.
    "tcp_diag",
    "udp_diag",
    "sctp",
    "tcp_bbr",
    // A block device in memory.
    "brd",
];

/// A module ready for insmod(8).
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// Reads the wanted modules with their dependencies.
pub fn load(kernel: &Kernel) -> Result<Vec<Module>> {
    let index = Index::of(kernel)?;
    let mut paths: Vec<&String> = Vec::new();
    for wanted in WANTED {
        // Neither a module nor built in: tests that need it report a skip.
        let Some(dependencies) = index.0.get(*wanted) else { continue };
        for path in dependencies {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    paths
        .into_iter()
        .map(|path| {
            let file = kernel.modules.join(path);
            let content =
                read(&file).with_context(|| format!("reading module {}", file.display()))?;
            Ok(Module { name: name(path).to_owned(), content })
        })
        .collect()
}

/// Maps each module's name to the files to load for it, its own last.
struct Index(HashMap<String, Vec<String>>);

impl Index {
    fn of(kernel: &Kernel) -> Result<Self> {
        let file = kernel.modules.join("modules.dep");
        if !file.exists() {
            // Installing the package would generate this.
            let base = kernel.modules.ancestors().nth(3).context("not in lib/modules")?;
            output_of(Command::new("depmod").arg("-b").arg(base).arg(&kernel.release))?;
        }
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&text)
    }

    /// modules.dep(5): a module, a colon, and its dependencies, the nearest first.
    fn parse(text: &str) -> Result<Self> {
        let mut index = HashMap::new();
        for line in text.lines() {
            let Some((module, dependencies)) = line.split_once(':') else {
                bail!("not a line of modules.dep: {line}");
            };
            let mut paths: Vec<_> = dependencies.split_whitespace().map(String::from).collect();
            paths.reverse();
            paths.push(module.to_owned());
            index.insert(name(module).replace('-', "_"), paths);
        }
        Ok(Self(index))
    }
}

fn name(path: &str) -> &str {
    let file = path.rsplit_once('/').map_or(path, |(_, file)| file);
    file.split_once(".ko").map_or(file, |(name, _)| name)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(file)?);
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output()?;
    if !output.status.success() {
        bail!("xz failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::Index;

    #[test]
    fn what_a_module_depends_on_comes_before_it() {
        let text = "kernel/a/far.ko.xz:\nkernel/a/near-by.ko.xz: kernel/a/far.ko.xz\n\
                    kernel/b/it.ko.xz: kernel/a/near-by.ko.xz kernel/a/far.ko.xz\n";
        let index = Index::parse(text).expect("well-formed");
        assert_eq!(
            index.0["it"],
            ["kernel/a/far.ko.xz", "kernel/a/near-by.ko.xz", "kernel/b/it.ko.xz"]
        );
        assert!(index.0.contains_key("near_by"));
    }
}

//! Rule files, held in memory.

use std::{
    fmt::Write as _, fs::File, io::Write as _, net::Ipv4Addr, os::fd::AsRawFd as _, path::PathBuf,
};

use anyhow::Result;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The number of destination addresses: 10.64.0.0/16.
pub const REMOTES: u32 = 1 << 16;

/// The `index`-th of [`REMOTES`] destination addresses.
pub fn remote(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 0).to_bits() + index % REMOTES)
}

/// The prefix length at which `count` rules cover (nearly) all of [`REMOTES`].
fn prefix(count: u32) -> u32 {
    16 + count.next_power_of_two().trailing_zeros()
}

/// The networks of `count` rules that partition the remotes.
pub fn networks(count: u32) -> impl Iterator<Item = String> {
    let prefix = prefix(count);
    (0..count).map(move |rule| format!("{}/{prefix}", remote(rule << (32 - prefix))))
}

/// A rule file in memory, which other processes can open until this is dropped.
#[derive(Debug)]
pub struct RuleFile {
    file: File,
    /// The number of rules.
    pub count: u32,
}

impl RuleFile {
    /// Creates it from the YAML of its rules.
    pub fn new(count: u32, rules: &str) -> Result<Self> {
        let mut file = File::from(memfd_create("injector-rules", MFdFlags::MFD_CLOEXEC)?);
        write!(file, "seed: 1\nrules:\n{rules}")?;
        Ok(Self { file, count })
    }

    /// `count` rules, one for each of [`networks`], all with the same `fault`.
    pub fn matching(count: u32, fault: &str) -> Result<Self> {
        let mut rules = String::new();
        for network in networks(count) {
            writeln!(rules, "- {{remote: {network}, {fault}}}")?;
        }
        Self::new(count, &rules)
    }

    /// `count` rules for packets that are never sent: to 198.18.0.0/15 (RFC 2544).
    pub fn elsewhere(count: u32, fault: &str) -> Result<Self> {
        let mut rules = String::new();
        for rule in 0..count {
            let address = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + rule);
            writeln!(rules, "- {{remote: {address}/32, {fault}}}")?;
        }
        Self::new(count, &rules)
    }

    /// The path by which other processes can open it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_share_the_remotes() {
        assert_eq!(networks(1).collect::<Vec<_>>(), ["10.64.0.0/16"]);
        assert_eq!(networks(1000).nth(999).as_deref(), Some("10.64.249.192/26"));
        assert_eq!(networks(65_536).nth(257).as_deref(), Some("10.64.1.1/32"));
    }
}

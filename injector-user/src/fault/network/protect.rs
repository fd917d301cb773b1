//! Detection of the operator's TCP connections to this host, which are protected from faults.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use injector_common::control::Connection;
use procfs::process::{FDTarget, Process};

/// The TCP connections of the ancestors of this process, without init: those of the shell and of
/// its server, such as sshd.
///
/// Processes that cannot be read are skipped: port 22 is protected in any case.
#[must_use]
pub fn operator_connections() -> Vec<Connection> {
    let mut inodes = HashSet::new();
    let mut process = Process::myself().ok();
    while let Some(current) = process {
        if let Ok(descriptors) = current.fd() {
            inodes.extend(descriptors.flatten().filter_map(|descriptor| match descriptor.target {
                FDTarget::Socket(inode) => Some(inode),
                _ => None,
            }));
        }
        let parent = current.stat().map_or(0, |stat| stat.ppid);
        process = if parent > 1 { Process::new(parent).ok() } else { None };
    }
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    tables
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| inodes.contains(&entry.inode) && entry.remote_address.port() != 0)
        .map(|entry| connection(entry.local_address, entry.remote_address))
        .collect()
}

fn connection(local: SocketAddr, remote: SocketAddr) -> Connection {
    Connection {
        local: words(local.ip()),
        remote: words(remote.ip()),
        local_port: local.port(),
        remote_port: remote.port(),
    }
}

/// An address in the form of the packet parser. An IPv4-mapped IPv6 address becomes IPv4.
fn words(address: IpAddr) -> [u32; 4] {
    match address.to_canonical() {
        IpAddr::V4(v4) => [u32::from_ne_bytes(v4.octets()), 0, 0, 0],
        IpAddr::V6(v6) => super::compile::words(v6.octets()),
    }
}

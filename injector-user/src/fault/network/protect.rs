//! Detection of traffic that is protected from faults: the operator's TCP connections to this host,
//! and what pods exchange with their node.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use injector_common::control::{Connection, PROTECT_NODE, PROTECT_OPERATOR};
use procfs::process::{FDTarget, Process};

use crate::{
    kernel::{KernelError, interface, netns::Netns},
    spec::target::Protection,
};

/// The protection as eBPF programs know it.
pub const fn flags(protection: Protection) -> u32 {
    let operator = if protection.operator { PROTECT_OPERATOR } else { 0 };
    let node = if protection.node { PROTECT_NODE } else { 0 };
    operator | node
}

/// The protected connections, and the peers of which all traffic is protected.
pub fn connections(protection: Protection) -> Result<Vec<Connection>, KernelError> {
    let mut connections = Vec::new();
    if protection.operator {
        connections.extend(operator_connections());
    }
    if protection.node {
        let addresses = interface::addresses_in_use(&Netns::of_host()?)?;
        let others = addresses.into_iter().filter(|address| !address.is_loopback());
        connections.extend(others.map(|address| Connection::with(words(address))));
    }
    Ok(connections)
}

/// The TCP connections of the ancestors of this process, without init: those of the shell and of
/// its server, such as sshd.
///
/// Processes that cannot be read are skipped: port 22 is protected in any case.
fn operator_connections() -> Vec<Connection> {
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

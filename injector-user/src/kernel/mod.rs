//! All access to the kernel's BPF and netlink interfaces (aya, rtnetlink).

pub mod attach;
mod bpf;
pub mod calls;
pub mod cgroup;
pub mod clock;
pub mod clock_probe;
pub mod clsact;
pub mod conntrack;
mod descriptor;
pub mod device;
pub mod diag;
mod ebpf;
pub mod errno;
pub mod fq;
pub mod hook;
pub mod host;
pub mod interface;
pub mod layout;
pub mod limits;
pub mod link;
pub mod mapped;
pub mod members;
pub mod memory;
pub mod monitor;
pub mod mount;
pub mod needs;
mod netlink;
pub mod netns;
pub mod object;
pub mod pid_namespace;
pub mod pidfd;
pub mod probe;
pub mod process;
pub mod rcu;
pub mod rps;
mod security;
pub mod sockets;
pub mod sysctl;
pub mod tree;
pub mod vdso;

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::threads::Panicked;

/// A failed kernel operation.
#[derive(Debug, Error)]
pub enum KernelError {
    /// A network namespace cannot be opened.
    #[error("cannot open the network namespace {path}")]
    OpenNetns {
        /// The namespace.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A network namespace cannot be entered.
    #[error("cannot enter the network namespace {netns}")]
    EnterNetns {
        /// The namespace.
        netns: String,
        /// The cause.
        source: nix::Error,
    },
    /// /proc shows the processes of another PID namespace.
    #[error(
        "/proc shows the processes of another PID namespace than injector's: mount that of injector's there (mount -t \
         proc proc /proc, in a mount namespace of its own)"
    )]
    PidNamespace,
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A thread panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// A netlink socket cannot be opened.
    #[error("cannot open a netlink socket")]
    Netlink(#[source] io::Error),
    /// A TAP cannot be created.
    #[error("cannot create a TAP device (requires /dev/net/tun, CONFIG_TUN)")]
    Tap(#[source] io::Error),
    /// Receive packet steering cannot be set.
    #[error("cannot set receive packet steering, which keeps packets in order across CPUs")]
    Steering(#[source] io::Error),
    /// A netlink request failed.
    #[error("{what} failed")]
    Request {
        /// The request.
        what: String,
        /// The cause.
        source: Box<rtnetlink::Error>,
    },
    /// The kernel's type information cannot be used.
    #[error(
        "cannot match received packets by cgroup: requires Linux 6.1 or later with CONFIG_DEBUG_INFO_BTF \
         (--direction egress does not)"
    )]
    Layout(#[from] layout::LayoutError),
    /// The eBPF object was refused.
    #[error(
        "the kernel refused the eBPF object (`injector doctor` lists what this kernel supports)"
    )]
    Load(#[source] Box<aya::EbpfError>),
    /// The verifier refused a program.
    #[error("the kernel's verifier refused the eBPF program {program}: {reason}")]
    Refused {
        /// The name of the program or map.
        program: String,
        /// The last lines of the verifier's log.
        reason: String,
        /// The error number.
        source: io::Error,
    },
    /// A program was refused.
    #[error(
        "the kernel refused the eBPF program {program} (`injector doctor` lists what this kernel supports)"
    )]
    Program {
        /// The name of the program or map.
        program: String,
        /// The cause.
        source: Box<aya::programs::ProgramError>,
    },
    /// A program cannot be attached.
    #[error(
        "cannot attach to {interface} at {hook} (`injector doctor` lists what this kernel supports)"
    )]
    Attach {
        /// The interface.
        interface: String,
        /// The hook.
        hook: String,
        /// The cause.
        source: Box<aya::programs::ProgramError>,
    },
    /// A map operation failed.
    #[error("cannot access the eBPF map {map}")]
    Map {
        /// The name of the program or map.
        map: &'static str,
        /// The cause.
        source: Box<aya::maps::MapError>,
    },
    /// The map of a target's processes cannot be shared among eBPF objects.
    #[error("cannot mount a BPF file system of its own (fsopen(2), Linux 5.2)")]
    Pins(#[source] io::Error),
    /// The sockets of a namespace cannot be listed.
    #[error("cannot list the sockets of a network namespace")]
    SocketDump(#[source] io::Error),
    /// The tracked connections of a namespace cannot be listed.
    #[error("cannot list the tracked connections of a network namespace")]
    Conntrack(#[source] io::Error),
    /// The counters of interfaces cannot be read.
    #[error("cannot read the packet counters of the interfaces")]
    Counters(#[source] io::Error),
    /// The hierarchy of cgroups cannot be reached.
    #[error("cannot reach the cgroup v2 hierarchy, at which new sockets are seen")]
    Hierarchy(#[source] io::Error),
    /// New sockets cannot be seen.
    #[error(
        "cannot see new sockets (cgroup/sock_create; another program may be attached at the root cgroup that allows \
         no second one)"
    )]
    Sockets(#[source] Box<aya::programs::ProgramError>),
    /// A map cannot be mapped into memory.
    #[error("cannot map the eBPF map {map} into memory")]
    Mapping {
        /// The name of the program or map.
        map: &'static str,
        /// The cause.
        source: nix::Error,
    },
    /// The object lacks a program or map of this build.
    #[error("the eBPF object has no {0}: it does not match this build of injector")]
    Missing(&'static str),
    /// The log of the eBPF side cannot be read.
    #[error("cannot read the log of the eBPF side")]
    Log(#[source] Box<aya_log::Error>),
}

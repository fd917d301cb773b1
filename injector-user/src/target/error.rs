//! Why a target could not be resolved.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::kind::{container::ContainerError, unit::UnitError};
use crate::kernel::KernelError;

/// A target that could not be resolved on this machine.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted here, and that of the host cannot be reached: run injector in the host's PID \
         namespace, or mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
    )]
    NoHierarchy,
    /// `/proc` is not readable.
    #[error("cannot read {what}")]
    Proc {
        /// The file that could not be read.
        what: String,
        /// The cause.
        source: Box<procfs::ProcError>,
    },
    /// The cgroup does not exist.
    #[error(
        "there is no cgroup {0}: give its path under the cgroup v2 mount {1}, or relative to that"
    )]
    NoCgroup(PathBuf, PathBuf),
    /// The directory is not in the v2 hierarchy.
    #[error(
        "{0} is not in the cgroup v2 hierarchy, which is mounted at {1}; v1 cgroups cannot be targets"
    )]
    NotV2(PathBuf, PathBuf),
    /// The target is the root cgroup.
    #[error(
        "{what} the root cgroup, which holds the whole host: use --pid or --process for single processes, or make a cgroup          for them before they create their sockets: mkdir {mount}/NAME, and write their PIDs to {mount}/NAME/cgroup.procs",
        mount = mount.display()
    )]
    Root {
        /// The target, up to a verb.
        what: String,
        /// Mount point of the hierarchy.
        mount: PathBuf,
    },
    /// Only a part of the hierarchy is mounted.
    #[error(
        "{0} shows only a part of the cgroup hierarchy (a cgroup namespace): run injector with CAP_DAC_READ_SEARCH, or \
         in the host's cgroup namespace, with the host's /sys/fs/cgroup"
    )]
    CgroupNamespace(PathBuf),
    /// A cgroup could not be read or created.
    #[error("cannot use the cgroup {path}")]
    Cgroup {
        /// Path of the cgroup.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The process does not exist.
    #[error("there is no process {0}")]
    NoProcess(i32),
    /// No process has the name.
    #[error("no process {place}is named {name}")]
    NoProcessNamed {
        /// The name or expression.
        name: String,
        /// Where it was searched for: empty, or words with a space behind.
        place: String,
    },
    /// All processes have ended.
    #[error("{0} has ended")]
    Ended(String),
    /// The interface does not exist.
    #[error("there is no interface {name} in the network namespace {netns}; there are {known}")]
    NoInterface {
        /// Name or pattern of the interface.
        name: String,
        /// Network namespace that was searched.
        netns: String,
        /// Interfaces that exist there.
        known: String,
    },
    /// The interface's link layer is not supported.
    #[error(
        "the interface {0} has a link layer that injector does not understand (Ethernet and pure IP it does)"
    )]
    LinkLayer(String),
    /// A host name could not be resolved.
    #[error("cannot resolve the host name {name}")]
    Host {
        /// The host name.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// The peer has no addresses.
    #[error("{0} has no addresses")]
    NoAddress(String),
    /// Pods are selected by labels, but no cluster is joined.
    #[error(
        "pods are selected by labels through the Kubernetes API, by an agent that has joined the cluster: start `injector \
         agent --kubernetes --node NAME`, and ask it with --agent SOCKET; without one, name each pod with --pod"
    )]
    NoCluster,
    /// A peer is in the cluster.
    #[error(
        "the peer {0} is followed through the Kubernetes API: start `injector agent --kubernetes --node NAME`, and send it \
         the fault with --agent SOCKET"
    )]
    ClusterPeer(String),
    /// The container or pod was not found.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The unit was not found.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// A kernel operation failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

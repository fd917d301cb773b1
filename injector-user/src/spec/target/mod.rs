//! The target of a fault, as specified.

mod kind;
mod pod;
mod process;
mod unit;

use std::{net::IpAddr, path::PathBuf};

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::list::{OneOrMany, list, one_or_many};
pub use kind::{KINDS, Kind, pids, process_options};
use kind::{exclusive, options, place_options};
pub use pod::{PodName, PodSelection};
pub use process::ProcessName;
pub use unit::UnitName;

/// Why a target is invalid.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// No target was given.
    #[error(
        "no target was given: give one of {}, or use `injector run` to fault a new command",
        options()
    )]
    Missing,
    /// Mutually exclusive targets were given.
    #[error("a target has one of {}, not several of them", exclusive())]
    Several,
    /// Not a pod name.
    #[error("`{0}` is not a pod: write its namespace and its name, for instance default/web-0")]
    Pod(String),
    /// Not a pod selection.
    #[error(
        "`{0}` does not say which pods: write their namespace and a label selector, for instance \
         shop/app=cart,tier!=db"
    )]
    Pods(String),
    /// Not the name of a unit.
    #[error("`{0}` is not a systemd unit that can be a target: {1}")]
    Unit(String, String),
    /// Not the name of a process.
    #[error("`{0}` is neither the name of a process nor a regular expression between slashes: {1}")]
    Process(String, String),
    /// A name of processes was combined with a target that it cannot restrict.
    #[error(
        "a process name stands alone or restricts a cgroup, container, pod or unit: give no pid, cgroup-of, pods or host \
         beside it"
    )]
    Named,
    /// Children of no process.
    #[error("--tree adds the children of processes: name these with --pid or --process")]
    Tree,
    /// Selected pods were combined with options that narrow a target.
    #[error(
        "pods that labels select are faulted wherever they are: give no netns, interface or address beside them"
    )]
    WithPods,
    /// A clock fault with a target that names no processes.
    #[error(
        "clocks are faulted for processes: name them with {}, or use `injector run`",
        process_options()
    )]
    Clock,
    /// XDP with a target that names processes, which XDP cannot match.
    #[error(
        "--xdp cannot tell whose packets it sees: use it with {places}, not with --{0}",
        places = place_options()
    )]
    Xdp(&'static str),
}

/// Argument group of the mutually exclusive target options.
const WHOSE: &str = "whose";

/// A target as written. `--interface` and `--netns` narrow a cgroup down to an interface or a network
/// namespace; alone they stand for everything that passes there.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct TargetSpec {
    /// Processes of this cgroup and those below it
    ///
    /// A path under the cgroup v2 mount, or relative to its root.
    #[arg(long, value_name = "PATH", help_heading = "Target", group = WHOSE)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,

    /// The cgroup of this process
    ///
    /// All processes of the cgroup and those below it.
    #[arg(long, value_name = "PID", help_heading = "Target", group = WHOSE)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_of: Option<i32>,

    /// This process and what it starts; repeatable
    ///
    /// The process with all its threads, and the processes that it starts from then on, in any cgroup. Its children that
    /// run already are not faulted, unless --tree is given.
    #[arg(long, value_name = "PID", help_heading = "Target", group = WHOSE)]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "OneOrMany<i32>")]
    pub pid: Vec<i32>,

    /// Processes of this name, and what they start
    ///
    /// The processes whose name (/proc/PID/comm) or executable's file name is NAME, or matches the regular expression
    /// between slashes, when the faults start. With --cgroup, --container, --pod or --unit, only processes there.
    #[arg(
        long,
        value_name = "NAME|/REGEX/",
        help_heading = "Target",
        conflicts_with_all = ["pid", "cgroup_of", "pods", "host"]
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessName>,

    /// Include present children of --pid, --process
    ///
    /// All descendants that run when the faults start. Those that start later are always included.
    #[arg(long, help_heading = "Target")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tree: bool,

    /// Container, by name or ID
    ///
    /// A container of Docker, containerd, CRI-O, Podman or runc. A prefix of the ID is enough. Faults follow the
    /// container when it is restarted.
    #[arg(long, value_name = "ID|NAME", help_heading = "Target", group = WHOSE)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,

    /// Kubernetes pod on this machine
    ///
    /// All its containers, including those that start later.
    #[arg(long, value_name = "NAMESPACE/NAME", help_heading = "Target", group = WHOSE)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,

    /// Kubernetes pods of this node, by labels
    ///
    /// Includes pods that start later. Requires --agent, and an agent that has joined the cluster. The selector has the
    /// form of kubectl's --selector.
    #[arg(
        long,
        value_name = "NAMESPACE/SELECTOR",
        help_heading = "Target",
        group = WHOSE,
        conflicts_with_all = ["netns", "interface"]
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelection>,

    /// systemd unit
    ///
    /// A service unless the name has another type, such as .scope or .slice. Units of the system come before those of
    /// users; USER/NAME is a unit of that user. Faults follow the unit when it is restarted. Includes sockets that systemd
    /// created for it.
    #[arg(long, value_name = "NAME|USER/NAME", help_heading = "Target", group = WHOSE)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<UnitName>,

    /// Network namespace, by name or path
    #[arg(long, value_name = "NAME|PATH", help_heading = "Target")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,

    /// Interface; repeatable
    #[arg(long, value_name = "IF", help_heading = "Target")]
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub interface: Vec<String>,

    /// All interfaces of this network namespace
    #[arg(long, help_heading = "Target", group = WHOSE, conflicts_with = "netns")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host: bool,

    /// The addresses by which others reach it, for partitions; by default, those of the interfaces in its network
    /// namespace; scenarios only.
    #[arg(skip)]
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub address: Vec<IpAddr>,

    /// Whether traffic that keeps the target reachable is left alone; true by default for hosts, interfaces and pods. For
    /// pods, this is the traffic with their node, such as the kubelet's probes. For other targets, it is TCP port 22, the
    /// connections of the shell that started this, and the loopback. Not for the command line, which has --protect.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protect: Option<bool>,
}

/// Traffic that is excluded from faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// SSH, the connections of the shell that started this, and the loopback.
    pub operator: bool,
    /// Traffic between pods and their node, such as the kubelet's probes.
    pub node: bool,
}

impl Protection {
    /// Traffic with the node, if `is_node`.
    #[must_use]
    pub const fn of_pod(is_node: bool) -> Self {
        Self { operator: false, node: is_node }
    }
}

impl TargetSpec {
    /// The traffic that is excluded from faults.
    #[must_use]
    pub fn protection(&self) -> Protection {
        if self.pod.is_some() || self.pods.is_some() {
            return Protection::of_pod(self.protect.unwrap_or(true));
        }
        Protection { operator: self.protect.unwrap_or_else(|| self.is_wide()), node: false }
    }

    /// A description, as requested.
    #[must_use]
    pub fn title(&self) -> String {
        self.titles(true).chain(self.titles(false)).collect::<Vec<_>>().join(", ")
    }

    /// Checks that the target names processes, whose clocks can be faulted.
    pub fn check_for_clocks(&self) -> Result<(), TargetError> {
        self.titles(true).next().map(drop).ok_or(TargetError::Clock)
    }

    /// Whether the target covers all traffic at a place, so that the operator's own traffic is
    /// protected by default.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.kinds().any(Kind::is_wide)
    }

    /// Checks that a target is given, and that XDP can serve it if `xdp` is set.
    pub fn check(&self, xdp: bool) -> Result<(), TargetError> {
        if self.kinds().next().is_none() {
            return Err(TargetError::Missing);
        }
        if self.exclusive_kinds().nth(1).is_some() {
            return Err(TargetError::Several);
        }
        let is_named = self.pid.is_empty() && self.cgroup_of.is_none() && self.pods.is_none();
        if self.process.is_some() && (!is_named || self.host) {
            return Err(TargetError::Named);
        }
        if self.tree && self.pid.is_empty() && self.process.is_none() {
            return Err(TargetError::Tree);
        }
        let is_narrowed =
            self.netns.is_some() || !self.interface.is_empty() || !self.address.is_empty();
        if self.pods.is_some() && is_narrowed {
            return Err(TargetError::WithPods);
        }
        match self.kinds().find(|kind| kind.names_processes()) {
            Some(kind) if xdp => Err(TargetError::Xdp(kind.name)),
            _ => Ok(()),
        }
    }
}

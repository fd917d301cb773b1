//! What is to be faulted.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
    path::PathBuf,
    str::FromStr,
};

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{list::list, value::serde_as_text};

/// Why a target makes no sense.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// No target.
    #[error(
        "no target was given: give one of --cgroup, --pid, --container, --pod, --pods, --netns, --interface, --host, or \
         use `injector run` to fault a new command"
    )]
    Missing,
    /// Two targets in one.
    #[error("a target has one of {0}, not several of them")]
    Several(&'static str),
    /// Not a pod.
    #[error("`{0}` is not a pod: write its namespace and its name, for instance default/web-0")]
    Pod(String),
    /// Not pods.
    #[error(
        "`{0}` does not say which pods: write their namespace and a label selector, for instance \
         shop/app=cart,tier!=db"
    )]
    Pods(String),
    /// Pods are faulted as a whole.
    #[error(
        "pods that labels select are faulted wherever they are: give no netns, interface, address or protect beside them"
    )]
    WithPods,
    /// Clocks of what is no process.
    #[error(
        "clocks are faulted for the processes of a cgroup: name one with --cgroup, --pid, --container, --pod or --pods, \
         or use `injector run`"
    )]
    Clock,
    /// XDP with a target that it cannot tell.
    #[error(
        "--xdp cannot tell whose packets it sees: use it with --host, --netns or --interface, not with --{0}"
    )]
    Xdp(&'static str),
}

serde_as_text! {
    PodName: "a pod, as namespace/name",
    PodSelection: "pods, as namespace/selector",
}

/// The name of a Kubernetes pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl FromStr for PodName {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(TargetError::Pod(text.into())),
        }
    }
}

impl Display for PodName {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The longest label selector.
const LONGEST_SELECTOR: usize = 4096;

/// Kubernetes pods that labels select.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSelection {
    /// Their namespace.
    pub namespace: String,
    /// What is so of their labels, as `kubectl --selector` has it. The API server reads it.
    pub selector: String,
}

impl FromStr for PodSelection {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        // A label may have a slash as well: app.kubernetes.io/name.
        let (namespace, selector) =
            text.split_once('/').ok_or_else(|| TargetError::Pods(text.into()))?;
        let is_namespace = !namespace.is_empty()
            && namespace.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
        let selector = selector.trim();
        if !is_namespace || selector.is_empty() || selector.len() > LONGEST_SELECTOR {
            return Err(TargetError::Pods(text.into()));
        }
        Ok(Self { namespace: namespace.into(), selector: selector.into() })
    }
}

impl Display for PodSelection {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.selector)
    }
}

/// A target as written. `--interface` and `--netns` narrow a cgroup down to an interface or a network
/// namespace; alone they stand for everything that passes there.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct TargetSpec {
    /// The processes of this cgroup and those below it: a path under the cgroup v2 mount, or relative
    /// to its root
    #[arg(long, value_name = "PATH", help_heading = "Target", conflicts_with_all = ["pid", "host"])]
    pub cgroup: Option<PathBuf>,

    /// The cgroup of this process, in its network namespace
    #[arg(long, value_name = "PID", help_heading = "Target", conflicts_with = "host")]
    pub pid: Option<i32>,

    /// This container of Docker, containerd, CRI-O, Podman or runc, by its ID, the beginning of that, or its name; it is
    /// followed when it is restarted
    #[arg(
        long,
        value_name = "ID|NAME",
        help_heading = "Target",
        conflicts_with_all = ["cgroup", "pid", "host"]
    )]
    pub container: Option<String>,

    /// All containers of this Kubernetes pod, those that are yet to be included, if it runs on this machine
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        help_heading = "Target",
        conflicts_with_all = ["cgroup", "pid", "container", "host"]
    )]
    pub pod: Option<PodName>,

    /// The Kubernetes pods of this node that labels select, those that come later included; carried out by an agent that
    /// has joined the cluster (--agent). Labels are selected as by kubectl --selector
    #[arg(
        long,
        value_name = "NAMESPACE/SELECTOR",
        help_heading = "Target",
        conflicts_with_all = ["cgroup", "pid", "container", "pod", "host", "netns", "interface"]
    )]
    pub pods: Option<PodSelection>,

    /// This network namespace, by name (ip netns) or path
    #[arg(long, value_name = "NAME|PATH", help_heading = "Target")]
    pub netns: Option<PathBuf>,

    /// This interface; repeatable
    #[arg(long, value_name = "IF", help_heading = "Target")]
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub interface: Vec<String>,

    /// This whole host: all interfaces of the current network namespace
    #[arg(long, help_heading = "Target", conflicts_with = "netns")]
    pub host: bool,

    /// The addresses by which others reach it, for partitions; by default, those of the interfaces in its network
    /// namespace; scenarios only.
    #[arg(skip)]
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub address: Vec<IpAddr>,

    /// Whether TCP port 22, the connections of the shell that started this, and the loopback are left alone; by
    /// default if the target is a host or interfaces; scenarios only.
    #[arg(skip)]
    pub protect: Option<bool>,
}

impl TargetSpec {
    /// Checks that there are processes whose clocks can be faulted.
    pub fn check_for_clocks(&self) -> Result<(), TargetError> {
        if self.processes().is_empty() { Err(TargetError::Clock) } else { Ok(()) }
    }

    /// Whether it is left alone what the operator needs, if nothing is said of it.
    #[must_use]
    pub const fn is_wide(&self) -> bool {
        self.host || !self.interface.is_empty()
    }

    /// Checks that there is a target, and one that XDP can serve if it is asked for.
    pub fn check(&self, xdp: bool) -> Result<(), TargetError> {
        let processes = self.processes();
        if processes.is_empty() && self.netns.is_none() && self.interface.is_empty() && !self.host {
            return Err(TargetError::Missing);
        }
        if processes.len() + usize::from(self.host) > 1 {
            return Err(TargetError::Several("cgroup, pid, container, pod, pods and host"));
        }
        let is_narrowed = self.netns.is_some()
            || !self.interface.is_empty()
            || !self.address.is_empty()
            || self.protect == Some(true);
        if self.pods.is_some() && is_narrowed {
            return Err(TargetError::WithPods);
        }
        match processes.first() {
            Some(option) if xdp => Err(TargetError::Xdp(option)),
            _ => Ok(()),
        }
    }

    /// The options that say whose processes are meant.
    fn processes(&self) -> Vec<&'static str> {
        let given = [
            ("cgroup", self.cgroup.is_some()),
            ("pid", self.pid.is_some()),
            ("container", self.container.is_some()),
            ("pod", self.pod.is_some()),
            ("pods", self.pods.is_some()),
        ];
        given.into_iter().filter_map(|(option, is_given)| is_given.then_some(option)).collect()
    }
}

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

use super::value::serde_as_text;

/// Why a target makes no sense.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// No target.
    #[error(
        "no target was given: give one of --cgroup, --pid, --container, --pod, --netns, --interface, --host, or use \
         `injector run` to fault a new command"
    )]
    Missing,
    /// Two targets in one.
    #[error("a target has one of {0}, not several of them")]
    Several(&'static str),
    /// Not a pod.
    #[error("`{0}` is not a pod: write its namespace and its name, for instance default/web-0")]
    Pod(String),
    /// Clocks of what is no process.
    #[error(
        "clocks are faulted for the processes of a cgroup: name one with --cgroup, --pid, --container or --pod, or \
         use `injector run`"
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

    /// This network namespace, by name (ip netns) or path
    #[arg(long, value_name = "NAME|PATH", help_heading = "Target")]
    pub netns: Option<PathBuf>,

    /// This interface; repeatable
    #[arg(long, value_name = "IF", help_heading = "Target")]
    pub interface: Vec<String>,

    /// This whole host: all interfaces of the current network namespace
    #[arg(long, help_heading = "Target", conflicts_with = "netns")]
    pub host: bool,

    /// The addresses by which others reach it, for partitions; by default, those of the interfaces in its network
    /// namespace; scenarios only.
    #[arg(skip)]
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
            return Err(TargetError::Several("cgroup, pid, container, pod and host"));
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
        ];
        given.into_iter().filter_map(|(option, is_given)| is_given.then_some(option)).collect()
    }
}

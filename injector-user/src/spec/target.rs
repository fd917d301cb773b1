//! What is to be faulted.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use thiserror::Error;

/// Why a target makes no sense.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// No target.
    #[error(
        "no target was given: give one of --cgroup, --pid, --netns, --interface, --host, or use `injector run` \
         to fault a new command"
    )]
    Missing,
    /// XDP with a target that it cannot tell.
    #[error(
        "--xdp cannot tell whose packets it sees: use it with --host, --netns or --interface, not with --{0}"
    )]
    Xdp(&'static str),
}

/// A target as written. `--interface` and `--netns` narrow a cgroup down to an interface or a network
/// namespace; alone they stand for everything that passes there.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize)]
pub struct TargetSpec {
    /// The processes of this cgroup and those below it: a path under the cgroup v2 mount, or relative
    /// to its root
    #[arg(long, value_name = "PATH", help_heading = "Target", conflicts_with_all = ["pid", "host"])]
    pub cgroup: Option<PathBuf>,

    /// The cgroup of this process, in its network namespace
    #[arg(long, value_name = "PID", help_heading = "Target", conflicts_with = "host")]
    pub pid: Option<i32>,

    /// This network namespace, by name (ip netns) or path
    #[arg(long, value_name = "NAME|PATH", help_heading = "Target")]
    pub netns: Option<PathBuf>,

    /// This interface; repeatable
    #[arg(long, value_name = "IF", help_heading = "Target")]
    pub interface: Vec<String>,

    /// This whole host: all interfaces of the current network namespace
    #[arg(long, help_heading = "Target", conflicts_with = "netns")]
    pub host: bool,
}

impl TargetSpec {
    /// Checks that there is a target, and one that XDP can serve if it is asked for.
    pub fn check(&self, xdp: bool) -> Result<(), TargetError> {
        let none = self.cgroup.is_none()
            && self.pid.is_none()
            && self.netns.is_none()
            && self.interface.is_empty()
            && !self.host;
        if none {
            return Err(TargetError::Missing);
        }
        if xdp && self.cgroup.is_some() {
            return Err(TargetError::Xdp("cgroup"));
        }
        if xdp && self.pid.is_some() {
            return Err(TargetError::Xdp("pid"));
        }
        Ok(())
    }
}

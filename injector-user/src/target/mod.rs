//! Resolves a target specification on this machine: cgroups, network namespaces, interfaces.

pub mod cgroup;
pub mod container;
pub mod host;
pub mod pods;

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::{
    kernel::{
        KernelError,
        interface::{self, Interface},
        netns::Netns,
        pidfd::Handle,
    },
    spec::target::{PodName, TargetSpec},
};
use cgroup::{Cgroup, Hierarchy};
use container::{ContainerError, Found, Roots, Wanted};

/// A target that could not be resolved on this machine.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted here: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
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
    #[error("{0} in the root cgroup, which holds the whole host; use --host if that is meant")]
    Root(String),
    /// Only a part of the hierarchy is mounted.
    #[error(
        "{0} shows only a part of the cgroup hierarchy (a cgroup namespace); run injector in the host's cgroup \
         namespace, with the host's /sys/fs/cgroup"
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
    /// The host name has no addresses.
    #[error("the host name {0} has no addresses")]
    NoAddress(String),
    /// Pods are selected by labels, but no cluster is joined.
    #[error(
        "pods are selected by labels through the Kubernetes API, by an agent that has joined the cluster: start `injector \
         agent --kubernetes --node NAME`, and ask it with --agent SOCKET; without one, name each pod with --pod"
    )]
    NoCluster,
    /// The container or pod was not found.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A kernel operation failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// A resolved target: which packets to match, and where to attach.
#[derive(Clone, Debug)]
pub struct Target {
    /// The cgroup; `None` matches all packets.
    pub cgroup: Option<Cgroup>,
    /// The process that named the cgroup, if any: its PID and start time, which together survive
    /// PID reuse.
    pub process: Option<(i32, u64)>,
    /// How to check whether the cgroup exists, if there is one.
    presence: Option<Presence>,
    /// Namespaces to attach in, regardless of the cgroup's processes.
    namespaces: Vec<Netns>,
    /// Whether to follow the cgroup's processes into other namespaces.
    follows: bool,
    /// If not empty, only these interfaces.
    interfaces: Vec<String>,
    /// Whether to skip loopback, because it was not requested explicitly.
    spares_loopback: bool,
}

/// Whether a cgroup exists, and which cgroup replaces it after it is gone.
#[derive(Clone, Debug)]
struct Presence {
    successor: Successor,
    /// Display name, if the cgroup is not identified by its path.
    title: Option<String>,
    /// Whether the cgroup existed at the last check.
    is_there: bool,
}

/// The cgroup that replaces one that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Successor {
    /// None: the cgroup belonged to a command or a process.
    None,
    /// The next cgroup at that path.
    Path,
    /// The cgroup of the next container or pod that matches this description.
    Container(Wanted),
}

impl Presence {
    const fn new(successor: Successor, title: Option<String>) -> Self {
        Self { successor, title, is_there: true }
    }
}

/// A change of the target's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// The cgroup is gone; another one may replace it.
    Gone,
    /// The cgroup is gone for good.
    Lost,
    /// Another cgroup replaced it and is the target now.
    Again,
}

/// The interfaces to attach to in one namespace.
#[derive(Clone, Debug)]
pub struct Place {
    /// The network namespace.
    pub netns: Netns,
    /// Interfaces in the namespace.
    pub interfaces: Vec<Interface>,
    /// Devices that injectors created in the namespace.
    pub own_devices: Vec<Interface>,
}

impl Target {
    /// The cgroup of a new command, in any namespace that its processes enter.
    pub fn of_command(cgroup: Cgroup) -> Result<Self, ResolveError> {
        Ok(Self {
            cgroup: Some(cgroup),
            process: None,
            presence: Some(Presence::new(Successor::None, None)),
            namespaces: vec![Netns::current()?],
            follows: true,
            interfaces: Vec::new(),
            spares_loopback: false,
        })
    }

    /// A pod that Kubernetes runs on this machine, by its UID.
    ///
    /// Covers all its containers in any namespace. In the host's namespace, its packets are matched
    /// by cgroup.
    pub fn of_pod(name: &PodName, uid: &str) -> Result<Self, ResolveError> {
        let hierarchy = Hierarchy::find()?;
        let found = container::find_pod_by_uid(&Roots::of_host(&hierarchy), name, uid)?;
        let cgroup = hierarchy.open(&found.cgroup)?;
        let Found { wanted, title, .. } = found;
        Ok(Self {
            cgroup: Some(cgroup),
            process: None,
            presence: Some(Presence::new(Successor::Container(wanted), Some(title))),
            namespaces: Vec::new(),
            follows: true,
            interfaces: Vec::new(),
            spares_loopback: false,
        })
    }

    /// Resolves a validated `spec`. With `protect`, loopback is skipped unless it is named.
    pub fn resolve(spec: &TargetSpec, protect: bool) -> Result<Self, ResolveError> {
        if spec.pods.is_some() {
            return Err(ResolveError::NoCluster);
        }
        let mut cgroup = None;
        let mut process = None;
        let mut presence = None;
        let mut netns = spec.netns.as_deref().map(Netns::find).transpose()?;
        if let Some(path) = &spec.cgroup {
            cgroup = Some(Hierarchy::find()?.open(path)?);
            presence = Some(Presence::new(Successor::Path, None));
        }
        if let Some(pid) = spec.pid {
            let handle = Handle::open(pid).ok_or(ResolveError::NoProcess(pid))?;
            cgroup = Some(Hierarchy::find()?.of_process(pid)?);
            if netns.is_none() {
                netns = Some(Netns::of_process(pid)?);
            }
            // The values above belong to the named process only if it still exists.
            if Handle::find(pid, handle.started).is_none() {
                return Err(ResolveError::NoProcess(pid));
            }
            process = Some((pid, handle.started));
            presence = Some(Presence::new(Successor::None, None));
        }
        let container = find_container(spec)?;
        let is_container = container.is_some();
        if let Some(Found { wanted, title, cgroup: path }) = container {
            cgroup = Some(Hierarchy::find()?.open(&path)?);
            presence = Some(Presence::new(Successor::Container(wanted), Some(title)));
        }
        let follows = (spec.cgroup.is_some() || is_container) && netns.is_none();
        // A container is faulted in its own namespace, not in the host's as well.
        let is_elsewhere = follows && is_container;
        let namespaces = match netns {
            None if is_elsewhere => Vec::new(),
            None => vec![Netns::current()?],
            Some(netns) => vec![netns],
        };
        let target = Self {
            cgroup,
            process,
            presence,
            namespaces,
            follows,
            interfaces: spec.interface.clone(),
            spares_loopback: protect && spec.interface.is_empty(),
        };
        target.check_interfaces()?;
        Ok(target)
    }

    /// Whether both targets resolve to the same processes and places.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let successor = |target: &Self| target.presence.as_ref().map(|its| its.successor.clone());
        self.cgroup == other.cgroup
            && self.process == other.process
            && successor(self) == successor(other)
            && self.namespaces == other.namespaces
            && self.interfaces == other.interfaces
    }

    /// Display name, if the target is a container or pod.
    #[must_use]
    pub fn title(&self) -> Option<&str> {
        self.presence.as_ref().and_then(|presence| presence.title.as_deref())
    }

    /// Display name of the processes, which may be gone.
    #[must_use]
    pub fn name(&self) -> String {
        match (self.title(), self.process, &self.cgroup) {
            (Some(title), ..) => title.to_owned(),
            (None, Some((pid, _)), _) => format!("process {pid}"),
            (None, None, Some(cgroup)) => format!("cgroup {}", cgroup.path.display()),
            (None, None, None) => String::new(),
        }
    }

    /// Whether the target existed at the last check.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.presence.as_ref().is_none_or(|presence| presence.is_there)
    }

    /// Whether another cgroup may replace one that is gone.
    #[must_use]
    pub fn can_return(&self) -> bool {
        self.presence.as_ref().is_some_and(|presence| presence.successor != Successor::None)
    }

    /// Whether the cgroup was removed while faults were active. `kills` tells whether a fault sends
    /// signals.
    ///
    /// True if the cgroup was gone at the last check, its process did not exit on its own, and no
    /// fault can have killed it.
    #[must_use]
    pub fn is_taken(&self, kills: bool) -> bool {
        let has_ended = |(pid, started)| Handle::find(pid, started).is_none();
        !self.is_there() && !kills && !self.process.is_some_and(has_ended)
    }

    /// Whether the target is gone now.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let (Some(presence), Some(cgroup)) = (&self.presence, &self.cgroup) else { return false };
        match (&presence.successor, self.process) {
            // A runtime may leave the cgroup of a stopped container behind.
            (Successor::Container(_), _) => !cgroup.is_populated(),
            (_, Some((pid, started))) => !cgroup.is_there() || Handle::find(pid, started).is_none(),
            (_, None) => !cgroup.is_there(),
        }
    }

    /// Checks whether the cgroup is gone or was replaced.
    ///
    /// Call it periodically, and repeat until it returns `None`: a cgroup may be replaced
    /// immediately.
    pub fn follow(&mut self) -> Result<Option<Followed>, ResolveError> {
        let is_there = !self.is_gone();
        let (Some(presence), Some(cgroup)) = (&mut self.presence, &self.cgroup) else {
            return Ok(None);
        };
        if is_there {
            presence.is_there = true;
            return Ok(None);
        }
        let hierarchy = Hierarchy::find()?;
        // The cause is irrelevant: a cgroup that cannot be opened is being removed.
        let next = match &presence.successor {
            Successor::None => None,
            Successor::Path => hierarchy.open(&cgroup.path).ok().map(|cgroup| (None, cgroup)),
            Successor::Container(wanted) => wanted
                .find(&Roots::of_v2(&hierarchy))
                .ok()
                .and_then(|found| Some((Some(found.title), hierarchy.open(&found.cgroup).ok()?))),
        };
        match next {
            Some((_, next)) if *cgroup == next => Ok(None),
            // Report that the target is gone first: following it takes a moment.
            Some(_) if std::mem::take(&mut presence.is_there) => Ok(Some(Followed::Gone)),
            Some((title, next)) => {
                presence.title = title;
                presence.is_there = true;
                self.cgroup = Some(next);
                Ok(Some(Followed::Again))
            }
            None if !std::mem::take(&mut presence.is_there) => Ok(None),
            None if presence.successor == Successor::None => Ok(Some(Followed::Lost)),
            None => Ok(Some(Followed::Gone)),
        }
    }

    /// The interfaces to attach to now. Call again to find interfaces that appear later.
    pub fn places(&self) -> Result<Vec<Place>, ResolveError> {
        let place = |netns: Netns| {
            let (own_devices, mut interfaces): (Vec<_>, Vec<_>) =
                interface::list(&netns)?.into_iter().partition(Interface::is_own_device);
            interfaces.retain(|interface| self.wants(interface));
            Ok(Place { netns, interfaces, own_devices })
        };
        self.namespaces().into_iter().map(place).collect()
    }

    /// The namespaces that the target is in now.
    fn namespaces(&self) -> Vec<Netns> {
        let mut namespaces = self.namespaces.clone();
        if self.follows
            && let Some(cgroup) = &self.cgroup
        {
            for pid in cgroup.processes() {
                // An exited process has no packets to fault.
                let Ok(netns) = Netns::of_process(pid) else { continue };
                if !namespaces.contains(&netns) {
                    namespaces.push(netns);
                }
            }
        }
        namespaces
    }

    /// Whether interfaces are named, in which case an unsupported one is an error.
    #[must_use]
    pub const fn names_interfaces(&self) -> bool {
        !self.interfaces.is_empty()
    }

    /// The named interfaces; may be empty.
    #[must_use]
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    fn wants(&self, interface: &Interface) -> bool {
        if interface.link.is_none() || (self.spares_loopback && interface.is_loopback) {
            return false;
        }
        // Attaching takes about 10 ms per interface, so interfaces that are down are skipped until
        // up.
        if self.interfaces.is_empty() {
            interface.is_up
        } else {
            self.interfaces.contains(&interface.name)
        }
    }

    fn check_interfaces(&self) -> Result<(), ResolveError> {
        // A container's namespace is fixed; a cgroup may get processes in other namespaces later.
        let namespaces =
            if self.namespaces.is_empty() { self.namespaces() } else { self.namespaces.clone() };
        for netns in &namespaces {
            let known = interface::list(netns)?;
            for name in &self.interfaces {
                let found = known.iter().find(|interface| interface.name == *name);
                let found = found.ok_or_else(|| ResolveError::NoInterface {
                    name: name.clone(),
                    netns: netns.label().into(),
                    known: known.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", "),
                })?;
                if found.link.is_none() {
                    return Err(ResolveError::LinkLayer(name.clone()));
                }
            }
        }
        Ok(())
    }
}

/// Finds the container or pod that `spec` names, if any.
fn find_container(spec: &TargetSpec) -> Result<Option<Found>, ResolveError> {
    if spec.container.is_none() && spec.pod.is_none() {
        return Ok(None);
    }
    let roots = Roots::of_host(&Hierarchy::find()?);
    let container = spec.container.as_deref().map(|wanted| container::find(&roots, wanted));
    let pod = spec.pod.as_ref().map(|wanted| container::find_pod(&roots, wanted));
    Ok(container.or(pod).transpose()?)
}

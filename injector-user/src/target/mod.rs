//! Resolves a target specification on this machine: cgroups, network namespaces, interfaces.

pub mod cgroup;
mod error;
pub mod kind;
pub mod peers;
pub mod pods;
pub mod processes;

use std::{
    fmt::{self, Debug, Formatter},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    kernel::{
        interface::{self, Interface},
        members::Members,
        netns::Netns,
        pidfd::Handle,
    },
    spec::target::{PodName, TargetSpec},
};
use cgroup::{Cgroup, Hierarchy};
pub use error::ResolveError;
use kind::{Processes, Resolved};
use processes::ProcessSet;

/// Whose packets, clocks and processes are faulted.
#[derive(Clone, Debug, PartialEq)]
pub enum Whose {
    /// Everybody's packets.
    All,
    /// Those of a cgroup and its descendants.
    Cgroup(Cgroup),
    /// Those of a set of processes.
    Processes(ProcessSet),
}

impl Whose {
    /// Handles of the present processes, one after another, if they are told apart. A handle refers to
    /// this process or none, even if its ID is reused.
    pub fn handles(&self) -> impl Iterator<Item = Handle> {
        let hierarchy = self.cgroup().and_then(|_| Hierarchy::find().ok());
        // Check it again after opening the pidfd, which keeps the PID from being reused.
        let contains = move |pid| match self {
            Self::All => false,
            Self::Cgroup(cgroup) => {
                let path = hierarchy.as_ref().and_then(|all| all.path_of_process(pid).ok());
                path.is_some_and(|path| path.starts_with(&cgroup.path))
            }
            Self::Processes(set) => set.contains(pid),
        };
        let handles = self.processes().into_iter().filter_map(Handle::open);
        handles.filter(move |process| contains(process.pid))
    }

    /// The cgroup, if it is one.
    #[must_use]
    pub const fn cgroup(&self) -> Option<&Cgroup> {
        match self {
            Self::Cgroup(cgroup) => Some(cgroup),
            Self::All | Self::Processes(_) => None,
        }
    }

    /// The present processes, if they are told apart.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        match self {
            Self::All => Vec::new(),
            Self::Cgroup(cgroup) => cgroup.processes(),
            Self::Processes(set) => set.processes(),
        }
    }

    /// The processes as eBPF programs know them, if they are told apart.
    pub fn members(&self) -> Result<Option<Members>, ResolveError> {
        match self {
            Self::All => Ok(None),
            Self::Cgroup(cgroup) => Ok(Some(Members::Cgroup(cgroup.key()))),
            Self::Processes(set) => set.members().map(Some),
        }
    }
}

/// A resolved target: which packets to match, and where to attach.
#[derive(Clone)]
pub struct Target {
    /// Whose packets match, and whose clocks and processes are faulted.
    pub whose: Whose,
    /// The processes in the cgroup, if there is one.
    processes: Option<Arc<dyn Processes>>,
    /// Whether they existed at the last check.
    is_there: bool,
    /// Namespaces to attach in, regardless of the cgroup's processes.
    namespaces: Vec<Netns>,
    /// Whether to follow the cgroup's processes into other namespaces.
    follows: bool,
    /// If not empty, only these interfaces.
    interfaces: Vec<String>,
    /// Whether to skip loopback, because it was not requested explicitly.
    spares_loopback: bool,
}

impl Debug for Target {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.debug_struct("Target")
            .field("whose", &self.whose)
            .field("processes", &self.identity())
            .field("namespaces", &self.namespaces)
            .field("interfaces", &self.interfaces)
            .finish_non_exhaustive()
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
    Replaced,
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
    /// The cgroup of a new command, which starts in `netns`, in any namespace that its processes enter.
    #[must_use]
    pub fn of_command(cgroup: Cgroup, netns: Netns) -> Self {
        kind::of_command(cgroup, netns).into()
    }

    /// A pod that Kubernetes runs on this machine, by its UID: all its containers in any namespace.
    /// Kills and pauses include its sandbox only with `with_sandbox`.
    pub fn of_pod(name: &PodName, uid: &str, with_sandbox: bool) -> Result<Self, ResolveError> {
        Ok(kind::of_pod(name, uid, with_sandbox)?.into())
    }

    /// Resolves a validated `spec`. With `protect`, loopback is skipped unless it is named.
    pub fn resolve(spec: &TargetSpec, protect: bool) -> Result<Self, ResolveError> {
        if spec.pods.is_some() {
            return Err(ResolveError::NoCluster);
        }
        let netns = spec.netns.as_deref().map(Netns::find).transpose()?;
        let mut target = match kind::find(spec)? {
            Some(resolved) => Self::from(resolved),
            None => Self {
                whose: Whose::All,
                processes: None,
                is_there: true,
                namespaces: if netns.is_none() { vec![Netns::current()?] } else { Vec::new() },
                follows: false,
                interfaces: Vec::new(),
                spares_loopback: false,
            },
        };
        if let Some(netns) = netns {
            target.namespaces = vec![netns];
            target.follows = false;
        }
        target.interfaces.clone_from(&spec.interface);
        target.spares_loopback = protect && spec.interface.is_empty();
        target.check_interfaces()?;
        Ok(target)
    }

    /// Whether both targets resolve to the same processes and places.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.whose == other.whose
            && self.identity() == other.identity()
            && self.namespaces == other.namespaces
            && self.interfaces == other.interfaces
    }

    fn identity(&self) -> Option<String> {
        self.processes.as_ref().map(|processes| processes.identity())
    }

    /// Whether the target tells processes apart.
    #[must_use]
    pub fn has_processes(&self) -> bool {
        self.whose != Whose::All
    }

    /// The cgroup, if the target is one.
    #[must_use]
    pub const fn cgroup(&self) -> Option<&Cgroup> {
        self.whose.cgroup()
    }

    /// The processes in the cgroup, if there is one.
    #[must_use]
    pub const fn kind(&self) -> Option<&Arc<dyn Processes>> {
        self.processes.as_ref()
    }

    /// Whether sockets that its processes hold belong to it, in whichever cgroup they were created.
    #[must_use]
    pub fn owns_held_sockets(&self) -> bool {
        match &self.whose {
            Whose::All => false,
            Whose::Cgroup(_) => {
                self.processes.as_ref().is_some_and(|processes| processes.owns_held_sockets())
            }
            Whose::Processes(_) => true,
        }
    }

    /// Follows the target's processes from now on, if it is a set of processes.
    pub fn track(&self) -> Result<(), ResolveError> {
        match &self.whose {
            Whose::Processes(set) => set.track(),
            Whose::All | Whose::Cgroup(_) => Ok(()),
        }
    }

    /// Display name, if the target is a container or pod.
    #[must_use]
    pub fn title(&self) -> Option<&str> {
        self.processes.as_ref()?.title()
    }

    /// Display name of the processes, which may be gone.
    #[must_use]
    pub fn name(&self) -> String {
        match (self.title(), &self.whose) {
            (Some(title), _) => title.to_owned(),
            (None, Whose::Cgroup(cgroup)) => format!("cgroup {}", cgroup.path.display()),
            (None, Whose::Processes(set)) => set.name().to_owned(),
            (None, Whose::All) => String::new(),
        }
    }

    /// Whether the target existed at the last check.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        self.is_there
    }

    /// Whether another cgroup may replace one that is gone.
    #[must_use]
    pub fn can_return(&self) -> bool {
        self.processes.as_ref().is_some_and(|processes| processes.can_return())
    }

    /// Whether the cgroup was removed while faults were active. `kills` tells whether a fault sends
    /// signals.
    ///
    /// True if the cgroup was gone at the last check, and no fault can have killed it. Single
    /// processes that have ended were not removed.
    #[must_use]
    pub fn is_taken(&self, kills: bool) -> bool {
        !self.is_there && !kills && !matches!(self.whose, Whose::Processes(_))
    }

    /// Whether the target is gone now.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match (&self.whose, &self.processes) {
            (Whose::Processes(set), _) => set.is_gone(),
            (Whose::Cgroup(cgroup), Some(processes)) => processes.is_gone(cgroup),
            _ => false,
        }
    }

    /// Checks whether the cgroup is gone or was replaced.
    ///
    /// Call it periodically, and repeat until it returns `None`: a cgroup may be replaced
    /// immediately.
    pub fn follow(&mut self) -> Result<Option<Followed>, ResolveError> {
        if let Whose::Processes(set) = &self.whose {
            let is_lost = set.is_gone() && std::mem::take(&mut self.is_there);
            return Ok(is_lost.then_some(Followed::Lost));
        }
        let (Some(processes), Whose::Cgroup(cgroup)) = (&self.processes, &self.whose) else {
            return Ok(None);
        };
        if !processes.is_gone(cgroup) {
            self.is_there = true;
            return Ok(None);
        }
        match processes.successor(&Hierarchy::find()?, cgroup) {
            Some((next, _)) if *cgroup == next => Ok(None),
            // Report that the target is gone first: following it takes a moment.
            Some(_) if std::mem::take(&mut self.is_there) => Ok(Some(Followed::Gone)),
            Some((next, processes)) => {
                self.whose = Whose::Cgroup(next);
                self.processes = Some(processes);
                self.is_there = true;
                Ok(Some(Followed::Replaced))
            }
            None if !std::mem::take(&mut self.is_there) => Ok(None),
            None if self.can_return() => Ok(Some(Followed::Gone)),
            None => Ok(Some(Followed::Lost)),
        }
    }

    /// The interfaces to attach to now. Call again to find interfaces that appear later.
    pub fn places(&self) -> Result<Vec<Place>, ResolveError> {
        self.places_with(&[])
    }

    /// Like [`Self::places`], also in other namespaces, unless the target has a fixed one.
    pub fn places_with(&self, others: &[Netns]) -> Result<Vec<Place>, ResolveError> {
        let place = |netns: Netns| {
            let (own_devices, mut interfaces): (Vec<_>, Vec<_>) =
                interface::list(&netns)?.into_iter().partition(Interface::is_own_device);
            interfaces.retain(|interface| self.wants(interface));
            Ok(Place { netns, interfaces, own_devices })
        };
        let mut namespaces = self.namespaces();
        if self.follows {
            for netns in others {
                if !namespaces.contains(netns) {
                    namespaces.push(netns.clone());
                }
            }
        }
        namespaces.into_iter().map(place).collect()
    }

    /// The addresses of all interfaces in the namespaces of its processes, or else in its own.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, ResolveError> {
        let mut namespaces = Vec::new();
        if self.follows {
            add_namespaces(&mut namespaces, self.whose.processes());
        }
        if namespaces.is_empty() {
            namespaces.clone_from(&self.namespaces);
        }
        let mut addresses = Vec::new();
        for netns in &namespaces {
            addresses.extend(interface::addresses(netns)?);
        }
        Ok(addresses)
    }

    /// The namespaces that the target is in now.
    fn namespaces(&self) -> Vec<Netns> {
        let mut namespaces = self.namespaces.clone();
        if self.follows {
            add_namespaces(&mut namespaces, self.whose.processes());
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

/// Adds the namespaces of processes that are not among them yet. An exited process has no packets to
/// fault.
fn add_namespaces(namespaces: &mut Vec<Netns>, pids: impl IntoIterator<Item = i32>) {
    for pid in pids {
        let Ok(netns) = Netns::of_process(pid) else { continue };
        if !namespaces.contains(&netns) {
            namespaces.push(netns);
        }
    }
}

impl From<Resolved> for Target {
    fn from(resolved: Resolved) -> Self {
        let Resolved { whose, processes, namespaces, follows } = resolved;
        Self {
            whose,
            processes,
            is_there: true,
            namespaces,
            follows,
            interfaces: Vec::new(),
            spares_loopback: false,
        }
    }
}

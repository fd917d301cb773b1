//! From what was asked to what it means on this machine: cgroups, network namespaces, interfaces.

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

/// A target that cannot be found on this machine.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// No cgroup v2.
    #[error(
        "no cgroup v2 hierarchy is mounted here: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
    )]
    NoHierarchy,
    /// `/proc` cannot be read.
    #[error("cannot read {what}")]
    Proc {
        /// Which file.
        what: String,
        /// Why.
        source: Box<procfs::ProcError>,
    },
    /// No such cgroup.
    #[error(
        "there is no cgroup {0}: give its path under the cgroup v2 mount {1}, or relative to that"
    )]
    NoCgroup(PathBuf, PathBuf),
    /// A directory that is not in the v2 hierarchy.
    #[error(
        "{0} is not in the cgroup v2 hierarchy, which is mounted at {1}; v1 cgroups cannot be targets"
    )]
    NotV2(PathBuf, PathBuf),
    /// The root cgroup.
    #[error("{0} in the root cgroup, which holds the whole host; use --host if that is meant")]
    Root(String),
    /// A part of the hierarchy is mounted.
    #[error(
        "{0} shows only a part of the cgroup hierarchy (a cgroup namespace); run injector in the host's cgroup \
         namespace, with the host's /sys/fs/cgroup"
    )]
    CgroupNamespace(PathBuf),
    /// A cgroup cannot be read or made.
    #[error("cannot use the cgroup {path}")]
    Cgroup {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No such process.
    #[error("there is no process {0}")]
    NoProcess(i32),
    /// No such interface.
    #[error("there is no interface {name} in the network namespace {netns}; there are {known}")]
    NoInterface {
        /// What was asked for.
        name: String,
        /// Where.
        netns: String,
        /// What is there.
        known: String,
    },
    /// A link layer that is not understood.
    #[error(
        "the interface {0} has a link layer that injector does not understand (Ethernet and pure IP it does)"
    )]
    LinkLayer(String),
    /// A host name that cannot be resolved.
    #[error("cannot resolve the host name {name}")]
    Host {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A host name without addresses.
    #[error("the host name {0} has no addresses")]
    NoAddress(String),
    /// Pods are not known here.
    #[error(
        "pods are selected by labels through the Kubernetes API, by an agent that has joined the cluster: start `injector \
         agent --kubernetes --node NAME`, and ask it with --agent SOCKET; without one, name each pod with --pod"
    )]
    NoCluster,
    /// No such container, or pod.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The kernel said no.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Whose packets, and where to catch them.
#[derive(Clone, Debug)]
pub struct Target {
    /// The cgroup; all packets if absent.
    pub cgroup: Option<Cgroup>,
    /// The process that named the cgroup, if one did: its number, and when it was made, so that it is not taken for
    /// another one with that number.
    pub process: Option<(i32, u64)>,
    /// How to tell whether the cgroup is there, if there is one.
    presence: Option<Presence>,
    /// Where to look, whatever the processes of the cgroup do.
    namespaces: Vec<Netns>,
    /// Whether to follow the cgroup's processes into other namespaces.
    follows: bool,
    /// Only these interfaces, if any are named.
    interfaces: Vec<String>,
    /// Whether loopback is left alone because nobody asked for it.
    spares_loopback: bool,
}

/// Whether a cgroup is there, and what takes its place when it is not.
#[derive(Clone, Debug)]
struct Presence {
    successor: Successor,
    /// What it is, for people, if it is not called by its path.
    title: Option<String>,
    /// It was there when last looked for.
    is_there: bool,
}

/// What takes the place of a cgroup that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Successor {
    /// Nothing: it is that of a command, or of a process.
    None,
    /// The next one by that path.
    Path,
    /// That of the next container or pod of this description.
    Container(Wanted),
}

impl Presence {
    const fn new(successor: Successor, title: Option<String>) -> Self {
        Self { successor, title, is_there: true }
    }
}

/// What became of the cgroup of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// It is gone; another one may take its place.
    Gone,
    /// It is gone, and no other one takes its place.
    Lost,
    /// Another one has taken its place, and is the target now.
    Again,
}

/// The interfaces to attach to in one namespace.
#[derive(Clone, Debug)]
pub struct Place {
    /// The namespace.
    pub netns: Netns,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
    /// The devices on which injectors hold packets there.
    pub hold_devices: Vec<Interface>,
}

impl Target {
    /// A new command's cgroup, wherever its processes go.
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

    /// A pod that Kubernetes has on this machine, by its unique ID: all of its containers, wherever its processes are.
    /// Those of the host's namespace are told by their cgroup there.
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

    /// What `spec`, which has been checked, means here. `protect` spares the loopback unless it is named.
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
            // What was read above was of that one only if it is still there.
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
        // A container is where its processes are, and not here as well.
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

    /// Whether another one means the same processes and places.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let successor = |target: &Self| target.presence.as_ref().map(|its| its.successor.clone());
        self.cgroup == other.cgroup
            && self.process == other.process
            && successor(self) == successor(other)
            && self.namespaces == other.namespaces
            && self.interfaces == other.interfaces
    }

    /// What it is, for people, if it is a container or a pod.
    #[must_use]
    pub fn title(&self) -> Option<&str> {
        self.presence.as_ref().and_then(|presence| presence.title.as_deref())
    }

    /// What the processes are called that may be gone.
    #[must_use]
    pub fn name(&self) -> String {
        match (self.title(), self.process, &self.cgroup) {
            (Some(title), ..) => title.to_owned(),
            (None, Some((pid, _)), _) => format!("process {pid}"),
            (None, None, Some(cgroup)) => format!("cgroup {}", cgroup.path.display()),
            (None, None, None) => String::new(),
        }
    }

    /// Whether it was there when it was last looked for.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.presence.as_ref().is_none_or(|presence| presence.is_there)
    }

    /// Whether another cgroup may take the place of one that is gone.
    #[must_use]
    pub fn can_return(&self) -> bool {
        self.presence.as_ref().is_some_and(|presence| presence.successor != Successor::None)
    }

    /// Whether it was taken away from faults, of which some send signals if `kills`: it was gone when last looked for,
    /// and neither did its process end by itself, nor can the faults have ended it.
    #[must_use]
    pub fn is_taken(&self, kills: bool) -> bool {
        let has_ended = |(pid, started)| Handle::find(pid, started).is_none();
        !self.is_there() && !kills && !self.process.is_some_and(has_ended)
    }

    /// Whether it is gone now.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let (Some(presence), Some(cgroup)) = (&self.presence, &self.cgroup) else { return false };
        match (&presence.successor, self.process) {
            // A runtime may leave the cgroup of a container that has ended.
            (Successor::Container(_), _) => !cgroup.is_populated(),
            (_, Some((pid, started))) => !cgroup.is_there() || Handle::find(pid, started).is_none(),
            (_, None) => !cgroup.is_there(),
        }
    }

    /// Looks whether the cgroup is gone, or another one has taken its place. To be called now and then, until it
    /// returns `None`: what is gone may be there again at once.
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
        // Why it is not found is not asked. Whatever it is that cannot be opened goes away just now.
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
            // That it is gone is told first: following it takes a moment.
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

    /// The interfaces to attach to now; what comes later is found by asking again.
    pub fn places(&self) -> Result<Vec<Place>, ResolveError> {
        let place = |netns: Netns| {
            let (hold_devices, mut interfaces): (Vec<_>, Vec<_>) =
                interface::list(&netns)?.into_iter().partition(Interface::is_hold_device);
            interfaces.retain(|interface| self.wants(interface));
            Ok(Place { netns, interfaces, hold_devices })
        };
        self.namespaces().into_iter().map(place).collect()
    }

    /// The namespaces that it is in now.
    fn namespaces(&self) -> Vec<Netns> {
        let mut namespaces = self.namespaces.clone();
        if self.follows
            && let Some(cgroup) = &self.cgroup
        {
            for pid in cgroup.processes() {
                // A process that is gone has no packets to fault.
                let Ok(netns) = Netns::of_process(pid) else { continue };
                if !namespaces.contains(&netns) {
                    namespaces.push(netns);
                }
            }
        }
        namespaces
    }

    /// Whether interfaces are named, so that one that cannot be faulted is an error.
    #[must_use]
    pub const fn names_interfaces(&self) -> bool {
        !self.interfaces.is_empty()
    }

    /// The interfaces that are named, if any are.
    #[must_use]
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    fn wants(&self, interface: &Interface) -> bool {
        if interface.link.is_none() || (self.spares_loopback && interface.is_loopback) {
            return false;
        }
        // Attaching takes the kernel 10 ms an interface; those that are down are left until they are up.
        if self.interfaces.is_empty() {
            interface.is_up
        } else {
            self.interfaces.contains(&interface.name)
        }
    }

    fn check_interfaces(&self) -> Result<(), ResolveError> {
        // That of a container is known; a cgroup may have processes elsewhere later.
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

/// The container or pod that is asked for, if one is.
fn find_container(spec: &TargetSpec) -> Result<Option<Found>, ResolveError> {
    if spec.container.is_none() && spec.pod.is_none() {
        return Ok(None);
    }
    let roots = Roots::of_host(&Hierarchy::find()?);
    let container = spec.container.as_deref().map(|wanted| container::find(&roots, wanted));
    let pod = spec.pod.as_ref().map(|wanted| container::find_pod(&roots, wanted));
    Ok(container.or(pod).transpose()?)
}

//! From what was asked to what it means on this machine: cgroups, network namespaces, interfaces.

pub mod cgroup;
pub mod container;
pub mod host;

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
    /// The container or pod whose cgroup it is, if it is one's.
    contained: Option<Contained>,
    /// Where to look, whatever the processes of the cgroup do.
    namespaces: Vec<Netns>,
    /// Whether to follow the cgroup's processes into other namespaces.
    follows: bool,
    /// Only these interfaces, if any are named.
    interfaces: Vec<String>,
    /// Whether loopback is left alone because nobody asked for it.
    spares_loopback: bool,
}

/// A container or pod that is followed when it comes again.
#[derive(Clone, Debug)]
struct Contained {
    /// By what it is looked for.
    wanted: Wanted,
    /// What it is, for people.
    title: String,
    /// It was there when last looked for.
    is_there: bool,
}

/// What became of a container or pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// It has ended, and may come again.
    Gone,
    /// It is there again: the target is another cgroup now.
    Again,
}

/// The interfaces to attach to in one namespace.
#[derive(Clone, Debug)]
pub struct Place {
    /// The namespace.
    pub netns: Netns,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
}

impl Target {
    /// A new command's cgroup, wherever its processes go.
    pub fn of_command(cgroup: Cgroup) -> Result<Self, ResolveError> {
        Ok(Self {
            cgroup: Some(cgroup),
            process: None,
            contained: None,
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
            contained: Some(Contained { wanted, title, is_there: true }),
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
        let mut netns = spec.netns.as_deref().map(Netns::find).transpose()?;
        if let Some(path) = &spec.cgroup {
            cgroup = Some(Hierarchy::find()?.open(path)?);
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
        }
        let mut contained = None;
        if let Some(found) = find_container(spec)? {
            cgroup = Some(Hierarchy::find()?.open(&found.cgroup)?);
            let Found { wanted, title, .. } = found;
            contained = Some(Contained { wanted, title, is_there: true });
        }
        let follows = (spec.cgroup.is_some() || contained.is_some()) && netns.is_none();
        // A container is where its processes are, and not here as well.
        let is_elsewhere = follows && contained.is_some();
        let namespaces = match netns {
            None if is_elsewhere => Vec::new(),
            None => vec![Netns::current()?],
            Some(netns) => vec![netns],
        };
        let target = Self {
            cgroup,
            process,
            contained,
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
        let wanted = |target: &Self| target.contained.as_ref().map(|its| its.wanted.clone());
        self.cgroup == other.cgroup
            && self.process == other.process
            && wanted(self) == wanted(other)
            && self.namespaces == other.namespaces
            && self.interfaces == other.interfaces
    }

    /// What it is, for people, if it is a container or a pod.
    #[must_use]
    pub fn title(&self) -> Option<&str> {
        self.contained.as_ref().map(|contained| contained.title.as_str())
    }

    /// Looks whether a container or pod has ended, or has come again in another cgroup. To be called now and then.
    pub fn follow(&mut self) -> Result<Option<Followed>, ResolveError> {
        let (Some(contained), Some(cgroup)) = (&mut self.contained, &self.cgroup) else {
            return Ok(None);
        };
        if cgroup.is_populated() {
            contained.is_there = true;
            return Ok(None);
        }
        let hierarchy = Hierarchy::find()?;
        let found = contained.wanted.find(&Roots::of_v2(&hierarchy));
        // Why it is not found is not asked. Whatever it is that cannot be opened goes away just now.
        let again = found.ok().and_then(|found| {
            let cgroup = hierarchy.open(&found.cgroup).ok()?;
            Some((found.title, cgroup))
        });
        match again {
            Some((_, cgroup)) if self.cgroup.as_ref() == Some(&cgroup) => Ok(None),
            Some((title, cgroup)) => {
                *contained = Contained { title, is_there: true, ..contained.clone() };
                self.cgroup = Some(cgroup);
                Ok(Some(Followed::Again))
            }
            None if std::mem::take(&mut contained.is_there) => Ok(Some(Followed::Gone)),
            None => Ok(None),
        }
    }

    /// The interfaces to attach to now; what comes later is found by asking again.
    pub fn places(&self) -> Result<Vec<Place>, ResolveError> {
        let place = |netns: Netns| {
            let mut interfaces = interface::list(&netns)?;
            interfaces.retain(|interface| self.wants(interface));
            Ok(Place { netns, interfaces })
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

    fn wants(&self, interface: &Interface) -> bool {
        if interface.link.is_none()
            || interface.is_hold_device()
            || (self.spares_loopback && interface.is_loopback)
        {
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

//! From what was asked to what it means on this machine: cgroups, network namespaces, interfaces.

pub mod cgroup;
pub mod host;

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::{
    kernel::{
        KernelError,
        interface::{self, Interface},
        netns::Netns,
    },
    spec::target::TargetSpec,
};
use cgroup::{Cgroup, Hierarchy};

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
    /// The kernel said no.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Whose packets, and where to catch them.
#[derive(Clone, Debug)]
pub struct Target {
    /// The cgroup; all packets if absent.
    pub cgroup: Option<Cgroup>,
    /// Where to look, whatever the processes of the cgroup do.
    namespaces: Vec<Netns>,
    /// Whether to follow the cgroup's processes into other namespaces.
    follows: bool,
    /// Only these interfaces, if any are named.
    interfaces: Vec<String>,
    /// Whether loopback is left alone because nobody asked for it.
    spares_loopback: bool,
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
            namespaces: vec![Netns::current()?],
            follows: true,
            interfaces: Vec::new(),
            spares_loopback: false,
        })
    }

    /// What `spec`, which has been checked, means here. `protect` spares the loopback unless it is named.
    pub fn resolve(spec: &TargetSpec, protect: bool) -> Result<Self, ResolveError> {
        let mut cgroup = None;
        let mut netns = spec.netns.as_deref().map(Netns::find).transpose()?;
        if let Some(path) = &spec.cgroup {
            cgroup = Some(Hierarchy::find()?.open(path)?);
        }
        if let Some(pid) = spec.pid {
            cgroup = Some(Hierarchy::find()?.of_process(pid)?);
            if netns.is_none() {
                netns = Some(Netns::of_process(pid)?);
            }
        }
        let follows = spec.cgroup.is_some() && netns.is_none();
        let target = Self {
            cgroup,
            namespaces: vec![netns.map_or_else(Netns::current, Ok)?],
            follows,
            interfaces: spec.interface.clone(),
            spares_loopback: protect && spec.interface.is_empty(),
        };
        target.check_interfaces()?;
        Ok(target)
    }

    /// The interfaces to attach to now; what comes later is found by asking again.
    pub fn places(&self) -> Result<Vec<Place>, ResolveError> {
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
        let place = |netns: Netns| {
            let mut interfaces = interface::list(&netns)?;
            interfaces.retain(|interface| self.wants(interface));
            Ok(Place { netns, interfaces })
        };
        namespaces.into_iter().map(place).collect()
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
        for netns in &self.namespaces {
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

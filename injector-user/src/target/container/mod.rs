//! Containers, found by the cgroups that they are in and by what their runtimes leave on disk. No daemon is asked.

mod directory;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    path::{Path, PathBuf},
};

use procfs::process::Process;
use thiserror::Error;

use super::cgroup::{Hierarchy, says};
use crate::{kernel::host, spec::target::PodName};

/// The least of an ID that tells a container. Less is too easily taken for a name.
const SHORTEST_ID: usize = 4;

/// How many containers a message names.
const NAMED: usize = 8;

/// Why a container or pod cannot be a target.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ContainerError {
    /// No such container.
    #[error("there is no container {wanted}: {known}")]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: String,
    },
    /// It has ended.
    #[error("the container {0} does not run")]
    Stopped(String),
    /// Several have that name, or begin so.
    #[error("{wanted} may be any of {candidates}: write more of the ID, or the whole name")]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// What may be meant.
        candidates: String,
    },
    /// Several cgroups are called after it.
    #[error(
        "the container {container} may be in any of {cgroups}: name the one that is meant with --cgroup"
    )]
    Twice {
        /// Which container.
        container: String,
        /// The cgroups.
        cgroups: String,
    },
    /// It is nowhere in the v2 hierarchy.
    #[error(
        "the container {wanted} is in cgroups of version 1 only ({path}), by which its packets and processes cannot be \
         told: boot with systemd.unified_cgroup_hierarchy=1, and its runtime will use version 2"
    )]
    OnlyV1 {
        /// What was asked for.
        wanted: String,
        /// Where it was found.
        path: PathBuf,
    },
    /// No such pod.
    #[error("there is no pod {wanted} on this machine: {known}")]
    NoPod {
        /// What was asked for.
        wanted: PodName,
        /// What there is.
        known: String,
    },
    /// A pod of this machine has no container yet, or none any more.
    #[error("no container of the pod {0} runs on this machine now, as far as cgroups tell")]
    NotYet(PodName),
    /// Its containers are scattered.
    #[error("the containers of the pod {0} are not in one cgroup of their own: {1}")]
    NoPodCgroup(PodName, String),
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Roots {
    /// The v2 hierarchy.
    cgroup: PathBuf,
    /// Those of version 1.
    v1: Vec<PathBuf>,
    /// The host's `/run`.
    run: PathBuf,
    /// The host's `/var/lib`.
    var_lib: PathBuf,
}

impl Roots {
    /// Those of this machine.
    #[must_use]
    pub fn of_host(hierarchy: &Hierarchy) -> Self {
        let mounts = Process::myself().and_then(|process| process.mountinfo());
        // It has been read for the hierarchy itself; what cannot be read here only spoils a message.
        let v1 = mounts.into_iter().flatten().filter(|mount| mount.fs_type == "cgroup");
        Self { v1: v1.map(|mount| mount.mount_point).collect(), ..Self::of_v2(hierarchy) }
    }

    /// Those of this machine but the hierarchies of version 1, in which nothing is found: they only say why.
    #[must_use]
    pub fn of_v2(hierarchy: &Hierarchy) -> Self {
        let root = host::root();
        Self {
            cgroup: hierarchy.mount().into(),
            v1: Vec::new(),
            run: root.join("run"),
            var_lib: root.join("var/lib"),
        }
    }
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Its ID.
    pub id: String,
    /// What people call it; in a pod the container's name, and the same behind the pod's.
    pub names: Vec<String>,
    /// The pod that it is in.
    pub pod: Option<PodName>,
    /// The unique ID of that.
    pod_uid: Option<String>,
    /// Its cgroup, if it runs in one of the v2 hierarchy.
    pub cgroup: Option<PathBuf>,
    /// Cgroups that may be its, while it is looked for.
    others: Vec<PathBuf>,
}

impl Display for Container {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        // As the runtimes' own tools show it.
        let id = self.id.get(..12).unwrap_or(&self.id);
        match self.names.last() {
            Some(name) if *name != self.id => write!(f, "{name} ({id})"),
            _ => f.write_str(id),
        }
    }
}

/// What is looked for, again and again: a container that is restarted gets another cgroup, and perhaps another ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The container with this ID, and no other.
    Id(String),
    /// Whichever has this name.
    Name(String),
    /// All of whichever pod has this name.
    Pod(PodName),
    /// All of the pod with this unique ID, and of no other of its name.
    PodUid {
        /// Its name.
        name: PodName,
        /// The ID.
        uid: String,
    },
}

/// Something that was looked for, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// By what to look for it again.
    pub wanted: Wanted,
    /// What it is, for people.
    pub title: String,
    /// Its cgroup.
    pub cgroup: PathBuf,
}

impl Wanted {
    /// Looks for it again.
    pub fn find(&self, roots: &Roots) -> Result<Found, ContainerError> {
        match self {
            Self::Id(id) => {
                let containers = list(roots);
                let of_id = containers.iter().filter(|container| container.id == *id);
                found(of_id.collect(), id, self.clone(), &containers, roots)
            }
            Self::Name(name) => {
                let containers = list(roots);
                found(called(&containers, name), name, self.clone(), &containers, roots)
            }
            Self::Pod(name) => find_pod(roots, name),
            Self::PodUid { name, uid } => find_pod_by_uid(roots, name, uid),
        }
    }
}

/// Finds a container by its ID, by its name, or by the beginning of its ID, in this order, as Docker does.
pub fn find(roots: &Roots, wanted: &str) -> Result<Found, ContainerError> {
    let containers = list(roots);
    let by_id = containers.iter().filter(|container| container.id == wanted).collect::<Vec<_>>();
    if !by_id.is_empty() {
        return found(by_id, wanted, Wanted::Id(wanted.into()), &containers, roots);
    }
    let by_name = called(&containers, wanted);
    if !by_name.is_empty() {
        return found(by_name, wanted, Wanted::Name(wanted.into()), &containers, roots);
    }
    let by_prefix: Vec<_> =
        containers.iter().filter(|container| begins(&container.id, wanted)).collect();
    let id = by_prefix.first().map_or(wanted, |container| &container.id).to_owned();
    found(by_prefix, wanted, Wanted::Id(id), &containers, roots)
}

/// Finds the cgroup of a pod, which those of all its containers are in.
pub fn find_pod(roots: &Roots, wanted: &PodName) -> Result<Found, ContainerError> {
    let containers = list(roots);
    let running = containers.iter().filter(|container| container.cgroup.is_some());
    let (its, others): (Vec<_>, Vec<_>) =
        running.partition(|container| container.pod.as_ref() == Some(wanted));
    if its.is_empty() {
        let known = there_are(others.iter().filter_map(|container| container.pod.as_ref()));
        return Err(ContainerError::NoPod { wanted: wanted.clone(), known });
    }
    let mut cgroups: Vec<Option<&Path>> = its
        .iter()
        .map(|container| {
            let cgroup = container.cgroup.as_deref()?;
            directory::pod_above(cgroup, container.pod_uid.as_deref())
        })
        .collect();
    cgroups.sort_unstable();
    cgroups.dedup();
    if let [Some(cgroup)] = cgroups[..] {
        let (title, cgroup) = (format!("pod {wanted}"), cgroup.into());
        return Ok(Found { wanted: Wanted::Pod(wanted.clone()), title, cgroup });
    }
    let cgroups = its.iter().filter_map(|container| container.cgroup.as_deref());
    Err(ContainerError::NoPodCgroup(wanted.clone(), listed(cgroups.map(Path::display))))
}

/// Finds the cgroup of a pod by its unique ID, which the kubelet calls it after, if containers run in it. What runtimes
/// say is not needed.
pub fn find_pod_by_uid(roots: &Roots, name: &PodName, uid: &str) -> Result<Found, ContainerError> {
    let containers = list(roots);
    let cgroups = containers.iter().filter_map(|container| container.cgroup.as_deref());
    let cgroups = cgroups.filter_map(|cgroup| directory::pod_above(cgroup, Some(uid)));
    let mut cgroups = directory::believable(cgroups.map(Path::to_path_buf).collect());
    cgroups.sort_unstable();
    cgroups.dedup();
    match &cgroups[..] {
        [cgroup] => Ok(Found {
            wanted: Wanted::PodUid { name: name.clone(), uid: uid.into() },
            title: format!("pod {name}"),
            cgroup: cgroup.clone(),
        }),
        [] => Err(ContainerError::NotYet(name.clone())),
        _ => {
            let cgroups = listed(cgroups.iter().map(|cgroup| cgroup.display()));
            Err(ContainerError::NoPodCgroup(name.clone(), cgroups))
        }
    }
}

/// Whether this may be the beginning of that ID.
fn begins(id: &str, beginning: &str) -> bool {
    beginning.len() >= SHORTEST_ID && id.starts_with(beginning)
}

/// All containers that can be seen, whether they run or not.
///
/// What runtimes have written down is of root. A cgroup may be of anybody who may make some: its name alone is not
/// believed where that contradicts it.
fn list(roots: &Roots) -> Vec<Container> {
    let mut containers = state::read(&roots.run, &roots.var_lib, &roots.cgroup);
    let mut named: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in directory::containers_below(&roots.cgroup) {
        let Some(id) = directory::container_id(&path) else { continue };
        named.entry(id.into()).or_default().push(path);
    }
    // What has ended may have left its cgroup behind.
    let runs = |cgroup: &Path| !says(cgroup, "populated 0");
    for (id, mut cgroups) in named {
        cgroups.retain(|cgroup| runs(cgroup));
        let container = containers.entry(id.clone()).or_default();
        container.id = id;
        match container.cgroup.take().filter(|cgroup| runs(cgroup)) {
            // Runtimes may have the processes in one below it.
            Some(known) => {
                let whole = cgroups.into_iter().find(|cgroup| known.starts_with(cgroup));
                container.cgroup = Some(whole.unwrap_or(known));
            }
            None => container.others = directory::believable(cgroups),
        }
    }
    let mut list = Vec::new();
    for mut container in containers.into_values() {
        container.cgroup = container.cgroup.take().filter(|cgroup| runs(cgroup));
        // Which it is cannot be told, so whoever asks for it is told of all.
        let mut cgroups = std::mem::take(&mut container.others).into_iter();
        container.cgroup = container.cgroup.take().or_else(|| cgroups.next());
        list.extend(cgroups.map(|cgroup| Container { cgroup: Some(cgroup), ..container.clone() }));
        list.push(container);
    }
    list
}

/// Those that have this name: the running ones, if any run.
fn called<'a>(containers: &'a [Container], name: &str) -> Vec<&'a Container> {
    let mut called: Vec<&Container> = containers
        .iter()
        .filter(|container| container.names.iter().any(|other| other == name))
        .collect();
    if called.iter().any(|container| container.cgroup.is_some()) {
        called.retain(|container| container.cgroup.is_some());
    }
    called
}

/// The one that is meant.
fn found(
    candidates: Vec<&Container>,
    asked: &str,
    wanted: Wanted,
    all: &[Container],
    roots: &Roots,
) -> Result<Found, ContainerError> {
    match candidates[..] {
        [container] => match &container.cgroup {
            Some(cgroup) => Ok(Found {
                wanted,
                title: format!("container {container}"),
                cgroup: cgroup.clone(),
            }),
            None => match in_v1(roots, |id| id == container.id) {
                Some(path) => Err(ContainerError::OnlyV1 { wanted: asked.into(), path }),
                None => Err(ContainerError::Stopped(container.to_string())),
            },
        },
        [] => {
            if let Some(path) = in_v1(roots, |id| begins(id, asked)) {
                return Err(ContainerError::OnlyV1 { wanted: asked.into(), path });
            }
            let known = there_are(all.iter().filter(|container| container.cgroup.is_some()));
            Err(ContainerError::Unknown { wanted: asked.into(), known })
        }
        [first, ..] if candidates.iter().all(|container| container.id == first.id) => {
            let cgroups = candidates.iter().filter_map(|container| container.cgroup.as_deref());
            let cgroups = listed(cgroups.map(|cgroup| cgroup.display()));
            Err(ContainerError::Twice { container: first.to_string(), cgroups })
        }
        _ => {
            Err(ContainerError::Ambiguous { wanted: asked.into(), candidates: listed(candidates) })
        }
    }
}

/// A container's cgroup of version 1.
fn in_v1(roots: &Roots, is_meant: impl Fn(&str) -> bool) -> Option<PathBuf> {
    roots.v1.iter().find_map(|root| {
        let cgroups = directory::containers_below(root);
        cgroups.into_iter().find(|path| directory::container_id(path).is_some_and(&is_meant))
    })
}

/// What there is, for a message.
fn there_are(names: impl IntoIterator<Item: Display>) -> String {
    match listed(names) {
        names if names.is_empty() => "none can be seen here".into(),
        names => format!("there are {names}"),
    }
}

/// The first of these names.
fn listed(names: impl IntoIterator<Item: Display>) -> String {
    let mut names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} and {more} more") }
}

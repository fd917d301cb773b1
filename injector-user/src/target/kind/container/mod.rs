//! Finds containers by their cgroups and by the state that runtimes keep on disk, without calling
//! any daemon.

mod directory;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    path::{Path, PathBuf},
    sync::Arc,
};

use procfs::process::Process;
use thiserror::Error;

use super::{Processes, Resolved, Successor};
use crate::{
    kernel::host,
    spec::target::{PodName, TargetSpec},
    target::{
        ResolveError, Whose,
        cgroup::{Cgroup, Hierarchy, populated_below, says},
    },
};

/// Minimum length of an ID prefix. A shorter one is easily confused with a name.
const MIN_ID: usize = 4;

/// Maximum number of containers listed in a message.
const MAX_LISTED: usize = 8;

/// Why a container or pod cannot be a target.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ContainerError {
    /// The container does not exist.
    #[error("there is no container {wanted}: {known}")]
    Unknown {
        /// The requested container.
        wanted: String,
        /// Existing containers.
        known: String,
    },
    /// The container has stopped.
    #[error("the container {0} does not run")]
    Stopped(String),
    /// Several containers match the name or ID prefix.
    #[error("{wanted} may be any of {candidates}: write more of the ID, or the whole name")]
    Ambiguous {
        /// The requested container.
        wanted: String,
        /// The matching containers.
        candidates: String,
    },
    /// Several cgroups are named after the container.
    #[error(
        "the container {container} may be in any of {cgroups}: name the one that is meant with --cgroup"
    )]
    Twice {
        /// The container.
        container: String,
        /// The cgroups.
        cgroups: String,
    },
    /// The container has no cgroup in the v2 hierarchy.
    #[error(
        "the container {wanted} is in cgroups of version 1 only ({path}), by which its packets and processes cannot be \
         told: boot with systemd.unified_cgroup_hierarchy=1, and its runtime will use version 2"
    )]
    OnlyV1 {
        /// The requested container.
        wanted: String,
        /// Its version 1 cgroup.
        path: PathBuf,
    },
    /// The pod does not exist.
    #[error("there is no pod {wanted} on this machine: {known}")]
    NoPod {
        /// The requested pod.
        wanted: PodName,
        /// Existing pods.
        known: String,
    },
    /// The pod is on this machine but has no running container.
    #[error("no container of the pod {0} runs on this machine now, as far as cgroups tell")]
    NotYet(PodName),
    /// The pod's containers have no common pod cgroup.
    #[error("the containers of the pod {0} are not in one cgroup of their own: {1}")]
    NoPodCgroup(PodName, String),
}

/// Directories to search.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Mount point of the v2 hierarchy.
    cgroup: PathBuf,
    /// Mount points of version 1 hierarchies.
    v1: Vec<PathBuf>,
    /// The host's `/run`.
    run: PathBuf,
    /// The host's `/var/lib`.
    var_lib: PathBuf,
}

impl Roots {
    /// The roots of this machine.
    #[must_use]
    pub fn of_host(hierarchy: &Hierarchy) -> Self {
        let mounts = Process::myself().and_then(|process| process.mountinfo());
        // The hierarchy itself was read before. A failure here only makes an error message less
        // specific.
        let v1 = mounts.into_iter().flatten().filter(|mount| mount.fs_type == "cgroup");
        Self { v1: v1.map(|mount| mount.mount_point).collect(), ..Self::of_v2(hierarchy) }
    }

    /// The roots of this machine without version 1 hierarchies, which only serve error messages.
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
    /// Container ID.
    pub id: String,
    /// Display names. In a pod, the container's name alone and prefixed with the pod's.
    pub names: Vec<String>,
    /// The pod that contains it.
    pub pod: Option<PodName>,
    /// UID of the pod.
    pod_uid: Option<String>,
    /// Its cgroup, if it runs in the v2 hierarchy.
    pub cgroup: Option<PathBuf>,
    /// Candidate cgroups, during the search.
    others: Vec<PathBuf>,
}

impl Display for Container {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        // Same length as in the runtimes' own tools.
        let id = self.id.get(..12).unwrap_or(&self.id);
        match self.names.last() {
            Some(name) if *name != self.id => write!(f, "{name} ({id})"),
            _ => f.write_str(id),
        }
    }
}

/// A persistent search: a restarted container has a new cgroup, and perhaps a new ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The container with this ID only.
    Id(String),
    /// Any container with this name.
    Name(String),
    /// All containers of any pod with this name.
    Pod(PodName),
    /// All containers of the pod with this UID only.
    PodUid {
        /// Name of the pod.
        name: PodName,
        /// UID of the pod.
        uid: String,
    },
}

/// The current result of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The search that finds it again.
    pub wanted: Wanted,
    /// Display name.
    pub title: String,
    /// The cgroup.
    pub cgroup: PathBuf,
    /// Whether kills and pauses include the sandbox, if it is a pod.
    pub with_sandbox: bool,
}

impl Wanted {
    /// Repeats the search.
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

impl Found {
    const fn is_pod(&self) -> bool {
        matches!(self.wanted, Wanted::Pod(_) | Wanted::PodUid { .. })
    }

    /// Opens the cgroup. Packets of a container are matched in its own namespace, not in the host's
    /// as well.
    pub(super) fn open(self, hierarchy: &Hierarchy) -> Result<Resolved, ResolveError> {
        Ok(Resolved {
            whose: Whose::Cgroup(hierarchy.open(&self.cgroup)?),
            processes: Some(Arc::new(self)),
            namespaces: Vec::new(),
            follows: true,
        })
    }
}

impl Processes for Found {
    fn identity(&self) -> String {
        format!("{:?}", self.wanted)
    }

    fn title(&self) -> Option<&str> {
        Some(&self.title)
    }

    fn spared(&self, cgroup: &Cgroup) -> Vec<PathBuf> {
        if !self.is_pod() {
            return Vec::new();
        }
        let mut below = populated_below(&cgroup.path);
        below.retain(|path| {
            directory::is_starting(path) || (!self.with_sandbox && directory::is_of_pod(path))
        });
        below
    }

    fn starting(&self, cgroup: &Cgroup) -> u64 {
        if !self.is_pod() {
            return 0;
        }
        let below = populated_below(&cgroup.path);
        below.iter().filter(|path| directory::is_starting(path)).count() as u64
    }

    /// A container that starts while its pod is paused must not hang, nor the runtime with it.
    fn is_divided(&self) -> bool {
        self.is_pod()
    }

    /// A runtime may leave the cgroup of a stopped container behind.
    fn is_gone(&self, cgroup: &Cgroup) -> bool {
        !cgroup.is_populated()
    }

    fn successor(&self, hierarchy: &Hierarchy, _cgroup: &Cgroup) -> Option<Successor> {
        let found = self.wanted.find(&Roots::of_v2(hierarchy)).ok()?;
        let found = Self { with_sandbox: self.with_sandbox, ..found };
        Some((hierarchy.open(&found.cgroup).ok()?, Arc::new(found)))
    }
}

/// The container that a target names, if it names one.
pub(super) fn find_named(spec: &TargetSpec) -> Result<Option<Resolved>, ResolveError> {
    let Some(wanted) = &spec.container else { return Ok(None) };
    let hierarchy = Hierarchy::find()?;
    find(&Roots::of_host(&hierarchy), wanted)?.open(&hierarchy).map(Some)
}

/// Finds a container by ID, name, or ID prefix, in this order, as Docker does.
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

/// Finds a pod's cgroup, the parent of its containers' cgroups.
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
        return Ok(Found {
            wanted: Wanted::Pod(wanted.clone()),
            title,
            cgroup,
            with_sandbox: false,
        });
    }
    let cgroups = its.iter().filter_map(|container| container.cgroup.as_deref());
    Err(ContainerError::NoPodCgroup(wanted.clone(), listed(cgroups.map(Path::display))))
}

/// Finds a pod's cgroup by its UID, if the pod has running containers.
///
/// The kubelet names the cgroup after the UID, so no runtime state is needed.
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
            with_sandbox: false,
        }),
        [] => Err(ContainerError::NotYet(name.clone())),
        _ => {
            let cgroups = listed(cgroups.iter().map(|cgroup| cgroup.display()));
            Err(ContainerError::NoPodCgroup(name.clone(), cgroups))
        }
    }
}

/// Whether `beginning` is a valid prefix of that ID.
fn begins(id: &str, beginning: &str) -> bool {
    beginning.len() >= MIN_ID && id.starts_with(beginning)
}

/// Lists all visible containers, running or not.
///
/// State that runtimes record is owned by root. Any user with a delegated subtree can create
/// cgroups, so the name of a cgroup is not trusted if it contradicts that state.
fn list(roots: &Roots) -> Vec<Container> {
    let mut containers = state::read(&roots.run, &roots.var_lib, &roots.cgroup);
    let mut named: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in directory::containers_below(&roots.cgroup) {
        let Some(id) = directory::container_id(&path) else { continue };
        named.entry(id.into()).or_default().push(path);
    }
    // A stopped container may have left its cgroup behind.
    let runs = |cgroup: &Path| !says(cgroup, "populated 0");
    for (id, mut cgroups) in named {
        cgroups.retain(|cgroup| runs(cgroup));
        let container = containers.entry(id.clone()).or_default();
        container.id = id;
        match container.cgroup.take().filter(|cgroup| runs(cgroup)) {
            // Runtimes may place the processes in a child cgroup.
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
        // The cgroup is ambiguous, so a request for this container reports all candidates.
        let mut cgroups = std::mem::take(&mut container.others).into_iter();
        container.cgroup = container.cgroup.take().or_else(|| cgroups.next());
        list.extend(cgroups.map(|cgroup| Container { cgroup: Some(cgroup), ..container.clone() }));
        list.push(container);
    }
    list
}

/// The containers with this name: only the running ones, if any runs.
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

/// Selects the requested container, or explains why there is none.
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
                with_sandbox: false,
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

/// A list of what exists, for a message.
fn there_are(names: impl IntoIterator<Item: Display>) -> String {
    match listed(names) {
        names if names.is_empty() => "none can be seen here".into(),
        names => format!("there are {names}"),
    }
}

/// The first few of these names.
fn listed(names: impl IntoIterator<Item: Display>) -> String {
    let mut names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(MAX_LISTED);
    names.truncate(MAX_LISTED);
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} and {more} more") }
}

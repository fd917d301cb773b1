//! Reads the names of containers and of their pods from the state that runtimes keep on disk.
//!
//! | file | contents |
//! |---|---|
//! | `/var/lib/docker/containers/<id>/config.v2.json` | Docker: `Name`, and labels of cri-dockerd |
//! | `/run/containerd/io.containerd.runtime.v2.task/<namespace>/<id>/config.json` | containerd: the annotations of CRI and nerdctl |
//! | `/run/containers/storage/<driver>-containers/<id>/userdata/config.json` | CRI-O: its annotations |
//! | `/var/lib/containers/storage/<driver>-containers/containers.json` and `volatile-containers.json` | Podman and CRI-O: names |
//! | `/run/runc/<id>/state.json` | runc: the cgroup, and the annotations as labels; `status` of crun: the cgroup |
//!
//! Missing or malformed files are skipped. The directories are owned by root, but the annotations
//! in them come from whoever started the container. Therefore only annotations that the runtime
//! itself sets are trusted, and implausible names are ignored.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};

use super::Container;
use crate::spec::target::PodName;

/// State directories of containerd below `/run`: upstream, k3s and RKE2, k0s, and Docker's.
const CONTAINERD: [&str; 4] =
    ["containerd", "k3s/containerd", "k0s/containerd", "docker/containerd/daemon"];

/// State directories of runc and crun below `/run`: directly for standalone use, Podman and CRI-O;
/// in a namespace directory for containerd and Docker.
const RUNTIMES: [&str; 2] = ["runc", "crun"];
const RUNTIMES_BY_NAMESPACE: [&str; 2] = ["containerd/runc", "docker/runtime-runc"];

/// Mount points of the cgroup hierarchy on the host, as used in recorded paths.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// Larger files are ignored. A pod's annotations are limited to 256 KiB.
const LARGEST_FILE: u64 = 32 << 20;

/// Maximum length of a name. Namespace, pod and container names are up to 63, 253 and 63
/// characters.
const MAX_NAME: usize = 512;

/// Which annotations or labels are trusted, because the runtime sets them itself. All others may be
/// set by the pod's author.
#[derive(Clone, Copy)]
enum Says {
    /// containerd under Kubernetes, and nerdctl.
    Containerd,
    /// The kubelet's labels, from CRI-O and cri-dockerd. CRI-O also copies all annotations of a
    /// pod.
    Kubelet,
    /// Both sets, for containers that were started by hand.
    Anything,
}

/// Keys of the namespace, the pod, the container, and the pod's UID.
const CONTAINERD_KEYS: [&str; 4] = [
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.cri.sandbox-name",
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri.sandbox-uid",
];

/// Keys of the same values in the kubelet's labels.
const KUBELET_KEYS: [&str; 4] = [
    "io.kubernetes.pod.namespace",
    "io.kubernetes.pod.name",
    "io.kubernetes.container.name",
    "io.kubernetes.pod.uid",
];

/// Reads the recorded state of all containers, by ID.
#[must_use]
pub fn read(run: &Path, var_lib: &Path, cgroup: &Path) -> BTreeMap<String, Container> {
    let mut state = State { cgroup, containers: BTreeMap::new() };
    state.read_docker(&var_lib.join("docker/containers"));
    for root in CONTAINERD {
        let tasks = run.join(root).join("io.containerd.runtime.v2.task");
        for namespace in entries(&tasks) {
            state.read_bundles(&namespace, "config.json", Says::Containerd);
        }
    }
    for root in [run, var_lib] {
        let containers = entries(&root.join("containers/storage")).into_iter();
        for folder in containers.filter(|path| name(path).ends_with("-containers")) {
            state.read_storage(&folder);
            state.read_bundles(&folder, "userdata/config.json", Says::Kubelet);
        }
    }
    for root in RUNTIMES {
        state.read_runtime(&run.join(root));
    }
    for root in RUNTIMES_BY_NAMESPACE {
        for namespace in entries(&run.join(root)) {
            state.read_runtime(&namespace);
        }
    }
    state.containers
}

struct State<'a> {
    /// Local mount point of the v2 hierarchy.
    cgroup: &'a Path,
    containers: BTreeMap<String, Container>,
}

/// The parts that are used of Docker's `config.v2.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerConfig {
    name: String,
    #[serde(default)]
    config: DockerLabels,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerLabels {
    // Docker writes null if there are no labels.
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
}

/// The parts that are used of the OCI runtime configuration.
#[derive(Deserialize)]
struct OciConfig {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// An entry of containers/storage.
#[derive(Deserialize)]
struct Stored {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
}

/// The parts that are used of runc's state.
#[derive(Deserialize)]
struct RuncState {
    id: String,
    #[serde(default)]
    cgroup_paths: HashMap<String, PathBuf>,
    #[serde(default)]
    config: RuncConfig,
}

#[derive(Default, Deserialize)]
struct RuncConfig {
    #[serde(default)]
    labels: Option<Vec<String>>,
}

/// The parts that are used of crun's status.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CrunStatus {
    cgroup_path: PathBuf,
}

impl State<'_> {
    /// The entry for this ID; `None` if it is not a valid ID.
    fn container(&mut self, id: &str) -> Option<&mut Container> {
        if !is_name(id) {
            return None;
        }
        let container = self.containers.entry(id.into()).or_default();
        container.id = id.into();
        Some(container)
    }

    fn read_docker(&mut self, root: &Path) {
        for folder in entries(root) {
            let Some(config) = parse::<DockerConfig>(&folder.join("config.v2.json")) else {
                continue;
            };
            let Some(container) = self.container(&name(&folder)) else { continue };
            container.add_name(config.name.trim_start_matches('/').into());
            container.annotate(&config.config.labels.unwrap_or_default(), Says::Kubelet);
        }
    }

    fn read_bundles(&mut self, root: &Path, file: &str, says: Says) {
        for folder in entries(root) {
            let Some(config) = parse::<OciConfig>(&folder.join(file)) else { continue };
            let Some(container) = self.container(&name(&folder)) else { continue };
            container.annotate(&config.annotations.unwrap_or_default(), says);
        }
    }

    fn read_storage(&mut self, root: &Path) {
        for file in ["containers.json", "volatile-containers.json"] {
            for stored in parse::<Vec<Stored>>(&root.join(file)).unwrap_or_default() {
                let Some(container) = self.container(&stored.id) else { continue };
                stored.names.into_iter().flatten().for_each(|name| container.add_name(name));
            }
        }
    }

    fn read_runtime(&mut self, root: &Path) {
        for folder in entries(root) {
            if let Some(state) = parse::<RuncState>(&folder.join("state.json")) {
                // The v2 path, with or without paths of version 1 beside it.
                let cgroup = state.cgroup_paths.get("").and_then(|path| self.here(path));
                // For containers of known managers, the manager determines which annotations are
                // trusted.
                let is_by_hand = !self.containers.contains_key(&state.id);
                let Some(container) = self.container(&state.id) else { continue };
                container.cgroup = cgroup;
                if is_by_hand {
                    let labels = state.config.labels.unwrap_or_default();
                    let labels = labels.iter().filter_map(|label| label.split_once('='));
                    let labels = labels.map(|(key, value)| (key.into(), value.into())).collect();
                    container.annotate(&labels, Says::Anything);
                }
            } else if let Some(status) = parse::<CrunStatus>(&folder.join("status")) {
                let cgroup = self.below(&status.cgroup_path);
                if let Some(container) = self.container(&name(&folder)) {
                    container.cgroup = cgroup;
                }
            }
        }
    }

    /// Maps a cgroup path on the host to its local path.
    fn here(&self, path: &Path) -> Option<PathBuf> {
        let mounts = [self.cgroup].into_iter().chain(MOUNTS.map(Path::new));
        let mut below = mounts.filter_map(|mount| path.strip_prefix(mount).ok());
        below.find_map(|path| self.below(path))
    }

    /// The cgroup with this path in the hierarchy.
    fn below(&self, path: &Path) -> Option<PathBuf> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        // The path is the root if there is no v2 cgroup; the root is never a container.
        let found = self.cgroup.join(relative);
        (!relative.as_os_str().is_empty() && found.is_dir()).then_some(found)
    }
}

impl Container {
    fn add_name(&mut self, name: String) {
        if is_name(&name) && !self.names.contains(&name) {
            self.names.push(name);
        }
    }

    /// Takes names from trusted annotations or labels.
    fn annotate(&mut self, annotations: &HashMap<String, String>, says: Says) {
        let keys: &[[&str; 4]] = match says {
            Says::Containerd => &[CONTAINERD_KEYS],
            Says::Kubelet => &[KUBELET_KEYS],
            Says::Anything => &[CONTAINERD_KEYS, KUBELET_KEYS],
        };
        let get = |number: usize| {
            let mut found = keys.iter().filter_map(|keys| annotations.get(keys[number]));
            found.next().filter(|name| is_name(name)).cloned()
        };
        let [namespace, pod, container, uid] = [0, 1, 2, 3].map(get);
        if uid.is_some() {
            self.pod_uid = uid;
        }
        let nerdctl = annotations.get("nerdctl/name").filter(|_| !matches!(says, Says::Kubelet));
        if let Some(name) = nerdctl {
            self.add_name(name.clone());
        }
        let pod = namespace.zip(pod).map(|(namespace, name)| PodName { namespace, name });
        if let Some(container) = container {
            self.add_name(container.clone());
            if let Some(pod) = &pod {
                self.add_name(format!("{}/{container}", pod.name));
                self.add_name(format!("{pod}/{container}"));
            }
        }
        self.pod = pod.or(self.pod.take());
    }
}

/// Whether the text is a plausible name. Names are printed on terminals, so control characters must
/// not pass.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The entries of a directory; empty if it does not exist.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn parse<T: DeserializeOwned>(path: &Path) -> Option<T> {
    // `O_NONBLOCK` prevents blocking on a file that is not regular.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE).read_to_end(&mut bytes).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "is not understood");
            None
        }
    }
}

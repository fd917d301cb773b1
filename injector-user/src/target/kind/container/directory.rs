//! Identifies containers and pods by the names of cgroup directories.
//!
//! A runtime names a container's cgroup after its ID. The cgroupfs driver uses `<id>` (Docker,
//! containerd), `crio-<id>` and `libpod-<id>`. The systemd driver uses `docker-<id>.scope`,
//! `cri-containerd-<id>.scope`, `crio-<id>.scope`, `libpod-<id>.scope` and `nerdctl-<id>.scope`.
//! Podman with `--cgroups=split` uses `libpod-payload-<id>` below its own unit. The kubelet names a
//! pod's cgroup `pod<uid>` or `kubepods-…-pod<uid>.slice`, with `_` for `-` in the systemd form.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::target::cgroup::{for_each_below, processes_below};

/// Length of an ID in hexadecimal digits.
const ID_LENGTH: usize = 64;

/// Parent cgroup of Podman's pods with the cgroupfs driver. Pods have IDs of the same form as
/// containers.
const PODMAN_PARENT: &str = "libpod_parent";

/// Prefix of the cgroups of CRI-O's and Podman's monitors, which share the container's ID.
const MONITOR: &str = "conmon";

/// The ID of the container whose cgroup has this path; `None` if it is not a container's.
#[must_use]
pub fn container_id(path: &Path) -> Option<&str> {
    let name = path.file_name().and_then(OsStr::to_str)?;
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let start = name.len().checked_sub(ID_LENGTH)?;
    let (prefix, id) = name.split_at_checked(start)?;
    let is_id = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_prefix = prefix.is_empty() || (prefix.ends_with('-') && !prefix.contains(MONITOR));
    let is_pod = prefix.is_empty()
        && path.parent().and_then(Path::file_name).is_some_and(|name| name == PODMAN_PARENT);
    (is_id && is_prefix && !is_pod).then_some(id)
}

/// The name of the process that holds the namespaces of a pod.
const PAUSE: &str = "pause";

/// What the names of runc's processes begin with until they execute the container's program.
const RUNC: &str = "runc:[";
/// The name of crun's process until then.
const CRUN: &str = "crun";

/// The name of a process.
fn name_of(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok()
}

/// Whether a cgroup is that of a container which its runtime is starting.
#[must_use]
pub fn is_starting(path: &Path) -> bool {
    let is_runtime = |name: String| name.starts_with(RUNC) || name.trim() == CRUN;
    container_id(path).is_some()
        && processes_below(path).into_iter().any(|pid| name_of(pid).is_some_and(is_runtime))
}

/// Whether a cgroup of a pod belongs to the pod itself: its sandbox, which holds the namespaces, or
/// the monitor of one of its containers.
#[must_use]
pub fn is_of_pod(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let is_pause = |pid| name_of(pid).is_some_and(|name| name.trim() == PAUSE);
    let mut pids = processes_below(path).into_iter().peekable();
    name.contains(MONITOR)
        || (container_id(path).is_some() && pids.peek().is_some() && pids.all(is_pause))
}

/// The cgroups below `root` whose names are those of containers.
#[must_use]
pub fn containers_below(root: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    // Cgroups that disappear during the walk are ignored.
    let _ = for_each_below(root, &mut |path| {
        if container_id(path).is_some() {
            paths.push(path.into());
        }
        Ok(())
    });
    paths
}

/// Filters cgroups named after one container or pod, for use when no runtime recorded the cgroup.
///
/// A user with a delegated subtree can create cgroups with any name, in a session or inside a
/// container. Therefore cgroups not owned by root, and cgroups inside other containers, count only
/// if there are no others. Of nested cgroups, the outermost counts.
#[must_use]
pub fn believable(cgroups: Vec<PathBuf>) -> Vec<PathBuf> {
    let is_within_another = |path: &Path| {
        let its = container_id(path);
        path.ancestors().skip(1).any(|above| container_id(above).is_some_and(|id| Some(id) != its))
    };
    let is_of_root = |path: &Path| path.metadata().is_ok_and(|metadata| metadata.uid() == 0);
    let cgroups = those_or_all(cgroups, |path| !is_within_another(path));
    let cgroups = those_or_all(cgroups, is_of_root);
    let is_outermost =
        |path: &&PathBuf| !cgroups.iter().any(|other| other != *path && path.starts_with(other));
    cgroups.iter().filter(is_outermost).cloned().collect()
}

fn those_or_all(paths: Vec<PathBuf>, is_one: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let (those, others): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| is_one(path));
    if those.is_empty() { others } else { those }
}

/// The cgroup of the pod that contains a container's cgroup, matched by the pod's UID if known.
#[must_use]
pub fn pod_above<'a>(cgroup: &'a Path, uid: Option<&str>) -> Option<&'a Path> {
    let bare = |text: &str| text.replace(['-', '_'], "");
    let uid = uid.map(bare);
    cgroup.ancestors().skip(1).find(|path| {
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { return false };
        let name = name.strip_suffix(".slice").unwrap_or(name);
        let Some((before, of_pod)) = name.rsplit_once("pod") else { return false };
        // `kubepods` and `kubepods-burstable` are not pods.
        let is_pod = (before.is_empty() || before.ends_with('-')) && !of_pod.is_empty();
        is_pod && uid.as_ref().is_none_or(|uid| bare(of_pod) == *uid)
    })
}

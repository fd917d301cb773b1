//! What the names of cgroup directories tell.
//!
//! A runtime names the cgroup of a container after its ID: `<id>` (Docker and containerd with the cgroupfs driver),
//! `crio-<id>`, `libpod-<id>`, and with the systemd driver `docker-<id>.scope`, `cri-containerd-<id>.scope`,
//! `crio-<id>.scope`, `libpod-<id>.scope`, `nerdctl-<id>.scope`; Podman below a unit of its own
//! (`--cgroups=split`) `libpod-payload-<id>`. The kubelet names that of a pod `pod<uid>` or `kubepods-…-pod<uid>.slice`, where
//! systemd's form has `_` for `-`.

use std::{
    ffi::OsStr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::super::cgroup::for_each_below;

/// How long an ID is, in hexadecimal digits.
const ID_LENGTH: usize = 64;

/// The cgroup in which Podman, with the cgroupfs driver, has those of its pods, which have such IDs as well.
const PODMAN_PARENT: &str = "libpod_parent";

/// The processes that watch over containers of CRI-O and Podman have cgroups beside those, with the same ID.
const MONITOR: &str = "conmon";

/// The ID of the container whose cgroup has this path; `None` if it is no container's.
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

/// The cgroups below `root` that may be of containers.
#[must_use]
pub fn containers_below(root: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    // Those that go away meanwhile are no loss.
    let _ = for_each_below(root, &mut |path| {
        if container_id(path).is_some() {
            paths.push(path.into());
        }
        Ok(())
    });
    paths
}

/// Those of the cgroups that are called after one container, or one pod, which may be its, as far as it is not written
/// down anywhere.
///
/// Anybody to whom a part of the hierarchy is left can make some there by any name: a user in a session, a container in
/// itself. So those of others than root, and those within other containers, count only if there are none but those.
/// Of those within each other the outermost is meant.
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

/// The cgroup of the pod that a container's is in, by the pod's unique ID if that is known.
#[must_use]
pub fn pod_above<'a>(cgroup: &'a Path, uid: Option<&str>) -> Option<&'a Path> {
    let bare = |text: &str| text.replace(['-', '_'], "");
    let uid = uid.map(bare);
    cgroup.ancestors().skip(1).find(|path| {
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { return false };
        let name = name.strip_suffix(".slice").unwrap_or(name);
        let Some((before, of_pod)) = name.rsplit_once("pod") else { return false };
        // `kubepods` and `kubepods-burstable` are not of one pod.
        let is_pod = (before.is_empty() || before.ends_with('-')) && !of_pod.is_empty();
        is_pod && uid.as_ref().is_none_or(|uid| bare(of_pod) == *uid)
    })
}

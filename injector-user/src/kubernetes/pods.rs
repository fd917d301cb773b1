//! The pods of this node, reduced to what fault selection needs.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use thiserror::Error;

use super::crd::PodTarget;
use crate::spec::target::PodName;

/// The cgroup IDs that several pods claim. Anyone who may create a pod may give it the annotations
/// of a static pod, and must not reach that pod's cgroup thereby.
pub fn ambiguous<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    pods.into_iter().map(|pod| &*pod.cgroup_uid).filter(|uid| !seen.insert(*uid)).collect()
}

/// The field selector for the pods of a node.
#[must_use]
pub fn node_field_selector(node: &str) -> String {
    format!("spec.nodeName={node}")
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace and name.
    pub name: PodName,
    /// Its unique ID.
    pub uid: String,
    /// The ID after which the kubelet names its cgroup.
    pub cgroup_uid: String,
    /// Its labels.
    labels: BTreeMap<String, String>,
    /// The names of its containers, and the IDs of those that run.
    containers: BTreeMap<String, Option<String>>,
    /// It has succeeded or failed and will not run again.
    is_terminated: bool,
    /// It is being deleted.
    pub is_terminating: bool,
}

/// Why the selected part of a pod is not available.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScopeError {
    /// The container may run later.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The pod never has this container.
    #[error("the pod has no container {wanted}; it has {known}")]
    NoContainer {
        /// The name of the container.
        wanted: String,
        /// The names of the pod's containers.
        known: String,
    },
}

/// The annotation by which the kubelet marks the copy of a static pod in the API.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The annotation with the ID of the static pod.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// The part of a pod that a fault applies to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodScope {
    /// All containers.
    Whole,
    /// The container with this ID.
    Container(String),
}

impl Pod {
    /// Converts a pod object; `None` if it lacks a name or a UID.
    #[must_use]
    pub fn from_api(pod: core::Pod) -> Option<Self> {
        let name = PodName { namespace: pod.metadata.namespace?, name: pod.metadata.name? };
        let named = pod.spec.into_iter().flat_map(|spec| {
            let inits = spec.init_containers.into_iter().flatten();
            inits.chain(spec.containers).map(|container| (container.name, None))
        });
        let mut containers: BTreeMap<String, Option<String>> = named.collect();
        let status = pod.status.unwrap_or_default();
        let statuses = [status.init_container_statuses, status.container_statuses];
        for status in statuses.into_iter().flatten().flatten() {
            let runs = status.state.is_some_and(|state| state.running.is_some());
            // The form is containerd://0123….
            let id = status.container_id.as_deref().and_then(|id| id.split_once("://"));
            let id = id.map(|(_, id)| id.to_owned()).filter(|id| runs && !id.is_empty());
            containers.insert(status.name, id);
        }
        let is_terminated = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let labels = pod.metadata.labels.unwrap_or_default();
        let uid = pod.metadata.uid?;
        let mut annotations = pod.metadata.annotations.unwrap_or_default();
        let hash = annotations.remove(CONFIG_HASH);
        let hash = hash.filter(|_| annotations.contains_key(MIRROR));
        Some(Self {
            name,
            cgroup_uid: hash.unwrap_or_else(|| uid.clone()),
            uid,
            labels,
            containers,
            is_terminated,
            is_terminating: pod.metadata.deletion_timestamp.is_some(),
        })
    }

    /// Whether `target` selects it.
    #[must_use]
    pub fn is_selected(&self, namespace: &str, target: &PodTarget) -> bool {
        self.is_alive()
            && self.name.namespace == namespace
            && target.selects(&self.name.name, &self.labels)
    }

    /// Whether it may still run.
    #[must_use]
    pub const fn is_alive(&self) -> bool {
        !self.is_terminated
    }

    /// The part of the pod that `target` selects. The error says why it is not available.
    pub fn scope(&self, target: &PodTarget) -> Result<PodScope, ScopeError> {
        let Some(name) = &target.container else { return Ok(PodScope::Whole) };
        match self.containers.get(name) {
            Some(Some(id)) => Ok(PodScope::Container(id.clone())),
            Some(None) => Err(ScopeError::NotRunning(name.clone())),
            None => {
                let known = self.containers.keys().map(String::as_str).collect::<Vec<_>>();
                Err(ScopeError::NoContainer { wanted: name.clone(), known: known.join(", ") })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(phase: &str) -> Pod {
        let pod = json!({
            "metadata": {"namespace": "shop", "name": "cart-0", "uid": "1", "labels": {"app": "cart"}},
            "spec": {"containers": [{"name": "app"}, {"name": "proxy"}, {"name": "late"}]},
            "status": {"phase": phase, "containerStatuses": [
                {"name": "app", "containerID": "containerd://abc", "state": {"running": {}},
                 "image": "", "imageID": "", "ready": true, "restartCount": 0},
                {"name": "proxy", "containerID": "containerd://def", "state": {"terminated": {"exitCode": 0}},
                 "image": "", "imageID": "", "ready": true, "restartCount": 0},
            ]},
        });
        Pod::from_api(serde_json::from_value(pod).expect("a pod")).expect("a named pod")
    }

    #[test]
    fn running_and_pending_pods_of_the_namespace_are_selected() {
        let target = PodTarget { pod: Some("cart-0".into()), ..PodTarget::default() };
        assert!(pod("Running").is_selected("shop", &target));
        assert!(pod("Pending").is_selected("shop", &target));
        assert!(!pod("Succeeded").is_selected("shop", &target));
        assert!(!pod("Running").is_selected("other", &target));
    }

    #[test]
    fn a_container_scope_is_its_running_id() {
        let scope = |container: Option<&str>| {
            let container = container.map(Into::into);
            pod("Running").scope(&PodTarget { container, ..PodTarget::default() })
        };
        assert_eq!(scope(None), Ok(PodScope::Whole));
        assert_eq!(scope(Some("app")), Ok(PodScope::Container("abc".into())));
        for name in ["proxy", "late"] {
            assert_eq!(scope(Some(name)), Err(ScopeError::NotRunning(name.into())));
        }
        let message = scope(Some("none")).expect_err("there is none").to_string();
        assert!(message.ends_with("it has app, late, proxy"), "{message}");
    }

    #[test]
    fn a_static_pod_has_the_cgroup_of_its_configuration() {
        let of = |annotations: serde_json::Value| {
            let pod = json!({"metadata": {
                "namespace": "kube-system", "name": "etcd", "uid": "1", "annotations": annotations,
            }});
            let pod = Pod::from_api(serde_json::from_value(pod).expect("a pod"));
            pod.expect("a named pod").cgroup_uid
        };
        assert_eq!(of(json!({MIRROR: "abc", CONFIG_HASH: "abc"})), "abc");
        assert_eq!(of(json!({CONFIG_HASH: "abc"})), "1");
        assert_eq!(of(json!({})), "1");
    }
}

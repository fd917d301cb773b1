//! The pods of this node, reduced to what fault selection needs.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;

use super::crd::PodTarget;
use crate::spec::target::PodName;

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
    /// Its labels.
    labels: BTreeMap<String, String>,
    /// The names of its containers, and the IDs of those that run.
    containers: BTreeMap<String, Option<String>>,
    /// It has succeeded or failed and will not run again.
    is_terminated: bool,
}

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
        Some(Self { name, uid: pod.metadata.uid?, labels, containers, is_terminated })
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
    pub fn scope(&self, target: &PodTarget) -> Result<PodScope, String> {
        let Some(name) = &target.container else { return Ok(PodScope::Whole) };
        match self.containers.get(name) {
            Some(Some(id)) => Ok(PodScope::Container(id.clone())),
            Some(None) => Err(format!("container {name} is not running")),
            None => {
                let known = self.containers.keys().map(String::as_str).collect::<Vec<_>>();
                Err(format!("the pod has no container {name}; it has {}", known.join(", ")))
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
        assert_eq!(scope(Some("proxy")), Err("container proxy is not running".into()));
        assert_eq!(scope(Some("late")), Err("container late is not running".into()));
        let message = scope(Some("none")).expect_err("there is none");
        assert!(message.ends_with("it has app, late, proxy"), "{message}");
    }
}

//! The pods of this node, as far as they matter.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;

use super::crd::PodTarget;
use crate::spec::target::PodName;

/// What fields of the pods of a node are.
#[must_use]
pub fn of_node(node: &str) -> String {
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
    /// It has ended for good.
    is_over: bool,
}

/// What is faulted of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// All of it.
    Whole,
    /// The container with this ID.
    Container(String),
}

impl Pod {
    /// What matters of a pod. One without a name or an ID is none.
    #[must_use]
    pub fn of(pod: core::Pod) -> Option<Self> {
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
            // As in containerd://0123….
            let id = status.container_id.as_deref().and_then(|id| id.split_once("://"));
            let id = id.map(|(_, id)| id.to_owned()).filter(|id| runs && !id.is_empty());
            containers.insert(status.name, id);
        }
        let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let labels = pod.metadata.labels.unwrap_or_default();
        Some(Self { name, uid: pod.metadata.uid?, labels, containers, is_over })
    }

    /// Whether it is a target.
    #[must_use]
    pub fn is_selected(&self, namespace: &str, target: &PodTarget) -> bool {
        self.is_alive()
            && self.name.namespace == namespace
            && target.selects(&self.name.name, &self.labels)
    }

    /// Whether it has not ended for good.
    #[must_use]
    pub const fn is_alive(&self) -> bool {
        !self.is_over
    }

    /// What of it is one, or why nothing is yet.
    pub fn part(&self, target: &PodTarget) -> Result<Part, String> {
        let Some(name) = &target.container else { return Ok(Part::Whole) };
        match self.containers.get(name) {
            Some(Some(id)) => Ok(Part::Container(id.clone())),
            Some(None) => Err(format!("the container {name} does not run")),
            None => {
                let known = self.containers.keys().map(String::as_str).collect::<Vec<_>>();
                Err(format!("the pod has no container {name}: there are {}", known.join(", ")))
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
        Pod::of(serde_json::from_value(pod).expect("a pod")).expect("it has a name")
    }

    #[test]
    fn pods_of_the_namespace_that_are_not_over_are_selected() {
        let target = PodTarget { pod: Some("cart-0".into()), ..PodTarget::default() };
        assert!(pod("Running").is_selected("shop", &target));
        assert!(pod("Pending").is_selected("shop", &target));
        assert!(!pod("Succeeded").is_selected("shop", &target));
        assert!(!pod("Running").is_selected("other", &target));
    }

    #[test]
    fn a_container_is_its_running_id() {
        let part = |container: Option<&str>| {
            let container = container.map(Into::into);
            pod("Running").part(&PodTarget { container, ..PodTarget::default() })
        };
        assert_eq!(part(None), Ok(Part::Whole));
        assert_eq!(part(Some("app")), Ok(Part::Container("abc".into())));
        assert_eq!(part(Some("proxy")), Err("the container proxy does not run".into()));
        assert_eq!(part(Some("late")), Err("the container late does not run".into()));
        let message = part(Some("none")).expect_err("there is none");
        assert!(message.ends_with("there are app, late, proxy"), "{message}");
    }
}

//! The `FaultInjection` custom resource and its definition.

use std::{collections::BTreeMap, time::Duration};

use injector_common::packet_counters;
use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{
        Condition, LabelSelector, LabelSelectorRequirement, MicroTime,
    },
};
use kube::{
    CustomResource, CustomResourceExt as _,
    core::{Selector, SelectorExt as _},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{closed, structural};
use crate::{
    agent::{
        api::{FaultRequest, Problem},
        plan,
    },
    fault::counts::{PacketCounts, ProcessCounts, counts, process_counters},
    spec::{
        clock::ClockSpec,
        list::list,
        peer::{ClusterPeer, Namespaces, Peer},
        process::ProcessSpec,
        rule::RuleSpec,
        target::{PodName, ProcessName, Protection, TargetSpec},
        value::{HumanDuration, Remote, is_default},
    },
    target::pods::PodStatus,
};

/// A fault of pods, applied by the agent of each node.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "injector.dev",
    version = "v1alpha1",
    kind = "FaultInjection",
    plural = "faultinjections",
    shortname = "fi",
    namespaced,
    status = "FaultInjectionStatus",
    doc = "A fault of pods of its namespace: packets, clocks, processes. See docs/kubernetes.md of injector.",
    printcolumn = r#"{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.reason"}"#,
    printcolumn = r#"{"name": "Matched", "type": "integer", "jsonPath": ".status.matched"}"#,
    printcolumn = r#"{"name": "Pods", "type": "string", "jsonPath": ".status.podsFaulted"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(deny_unknown_fields)]
#[schemars(transform = closed)]
pub struct FaultInjectionSpec {
    /// The pods to fault.
    pub target: PodTarget,
    /// The duration, at most 24h, from the start of the first pod's fault.
    pub r#for: HumanDuration,
    /// The seed of random decisions, which makes them repeatable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Packet faults, in order: the first rule that matches a packet decides.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub rules: Vec<RuleSpec>,
    /// Peers in the cluster. Rules match only packets to and from them. Their addresses are
    /// followed.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub peers: Vec<PeerSelector>,
    /// Clock faults.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clocks: ClockSpec,
    /// Process faults.
    #[serde(default, skip_serializing_if = "is_default")]
    pub processes: ProcessSpec,
}

/// The pods to fault: by labels, or one by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["pods"]}, {"required": ["pod"]}]))]
pub struct PodTarget {
    /// Selects pods by labels, in the namespace of this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelector>,
    /// The name of one pod in the namespace of this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The container to fault in each pod; defaults to all containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The processes of that container to fault, with what they start: by name, or by a regular
    /// expression between slashes. Defaults to all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessName>,
    /// Whether traffic between the pods and their node is left alone, such as the probes of the
    /// kubelet. Defaults to true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect: Option<bool>,
    /// Whether kills and pauses include the sandbox of the pod (the pause container). Without it, a
    /// pod that is killed keeps its address.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sandbox: bool,
}

/// Peers in the cluster: pods, as in a `NetworkPolicy`, or a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PeerSelector {
    /// Selects pods by labels; an empty selector selects all pods. Defaults to all pods if
    /// `namespaceSelector` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<PodSelector>,
    /// Selects the namespaces of the pods by labels; an empty selector selects all namespaces.
    /// Defaults to the namespace of this resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<PodSelector>,
    /// A service, instead of pods: its own addresses and those of its endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServicePeer>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServicePeer {
    /// Its name.
    pub name: String,
    /// Its namespace; defaults to that of this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A label selector. All requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PodSelector {
    /// Labels and the values they must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements on labels.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub match_expressions: Vec<Requirement>,
}

/// A requirement on a label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The key of the label.
    pub key: String,
    /// The comparison.
    pub operator: Operator,
    /// The values, for In and `NotIn`.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// The label exists and has one of the values.
    In,
    /// The label has none of the values or does not exist.
    NotIn,
    /// The label exists.
    Exists,
    /// The label does not exist.
    DoesNotExist,
}

/// The observed state of a fault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = structural)]
pub struct FaultInjectionStatus {
    /// The phase of the fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The reason of the phase: that of the condition Injecting, or `PodsWaiting` if only some of
    /// the selected pods are faulted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Packets, processes and system calls matched on all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matched: Option<u64>,
    /// Pods with an active fault, on all nodes. Pods that are being deleted do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<u64>,
    /// Selected pods, on all nodes. Pods that are being deleted do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected_pods: Option<u64>,
    /// Both numbers of pods, such as 15/22.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods_faulted: Option<String>,
    /// When the first pod was faulted. `for` counts from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<MicroTime>,
    /// The end time. An ended fault does not start again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<MicroTime>,
    /// The generation of the specification that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The conditions Accepted, Injecting and Matched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The state of each node, written by its agent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub nodes: Vec<NodeStatus>,
}

/// The phase of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// No pod has an active fault yet, or at the moment.
    Pending,
    /// Faults are active.
    Running,
    /// The duration has passed, or the resource is being deleted.
    Ended,
    /// The specification is invalid, or no node could apply it.
    Failed,
}

/// The state of a fault on one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["node"]))]
pub struct NodeStatus {
    /// The name of the node.
    pub node: String,
    /// The state of the fault.
    pub state: NodeState,
    /// The generation of the specification that the node applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// When the first pod's fault started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<MicroTime>,
    /// Packets matched.
    pub matched: u64,
    /// Counters since the start.
    pub counters: Counters,
    /// The first 64 selected pods of this node, those without an active fault first.
    pub pods: Vec<PodStatus>,
    /// The number of pods with an active fault, without those that are being deleted.
    pub injecting: u64,
    /// The number of selected pods, without those that are being deleted.
    pub selected: u64,
    /// The pods for which faults that happen once have begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub once: Option<Once>,
    /// The problem, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Faults that happen once for each pod, also if the agent restarts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Once {
    /// These faults. Others have not happened yet.
    pub faults: String,
    /// The pods for which they have begun.
    pub pods: Vec<PodOnce>,
}

/// Faults that happen once, and have begun for a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodOnce {
    /// The unique ID of the pod.
    pub uid: String,
    /// When their times began to count.
    pub began: MicroTime,
    /// The kills that system calls have triggered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sent: Vec<String>,
}

impl NodeStatus {
    /// Whether its agent may be faulting pods.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.state.holds()
    }
}

/// The state of a resource on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeState {
    /// No pod of the node is selected.
    #[default]
    Idle,
    /// Faults are about to start.
    Starting,
    /// Pods are selected, but none can be faulted yet.
    Waiting,
    /// Faults are active.
    Injecting,
    /// Pods are selected, but all their faults failed.
    Failed,
    /// The faults ended because the agent stopped.
    Stopped,
    /// The faults ended and will not start again.
    Ended,
    /// The agent's lease expired; its faults have ended.
    Lost,
}

impl NodeState {
    /// Whether an agent in this state may be faulting pods.
    #[must_use]
    pub const fn holds(self) -> bool {
        matches!(self, Self::Starting | Self::Waiting | Self::Injecting | Self::Failed)
    }
}

packet_counters!(counts! { crd
    /// Packet counters.
    PacketCounters from [PacketCounts]
});

process_counters!(counts! { crd
    /// Process counters.
    ProcessCounters from [ProcessCounts]
});

impl Counters {
    /// What matched besides packets: processes whose clocks, execution or system calls were faulted.
    #[must_use]
    pub const fn others_matched(&self) -> u64 {
        let ProcessCounters { pauses, signals, calls_failed, .. } = self.processes;
        self.clock_processes + pauses + signals + calls_failed
    }
}

/// The counters of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Counters {
    /// Packets.
    #[serde(flatten)]
    pub packets: PacketCounters,
    /// Processes with a clock fault.
    pub clock_processes: u64,
    /// Processes.
    #[serde(flatten)]
    pub processes: ProcessCounters,
}

impl FaultInjectionSpec {
    /// Parses and validates a specification, as far as possible without a pod.
    pub fn check(spec: &serde_json::Value) -> Result<Self, String> {
        let spec: Self = serde_path_to_error::deserialize(spec)
            .map_err(|error| format!("invalid specification: {error}"))?;
        spec.target.check()?;
        spec.check_peers()?;
        let name = PodName { namespace: String::new(), name: String::new() };
        let target = TargetSpec { pod: Some(name), ..TargetSpec::default() };
        match plan::check(&spec.request(String::new(), target, spec.r#for.0)) {
            Ok(_) => Ok(spec),
            Err(Problem { message, .. }) => Err(message),
        }
    }

    fn check_peers(&self) -> Result<(), String> {
        if self.peers.is_empty() {
            return Ok(());
        }
        if self.rules.is_empty() {
            return Err("`peers` requires `rules`".into());
        }
        for (number, peer) in self.peers.iter().enumerate() {
            peer.resolve("").map_err(|error| format!("peers[{number}]: {error}"))?;
        }
        let with_own = self.rules.iter().position(|rule| rule.remotes().next().is_some());
        with_own.map_or(Ok(()), |number| {
            Err(format!(
                "rules[{number}]: give either `remote` or `partition`, or `peers` for all rules"
            ))
        })
    }

    /// The rules, with the peers of a resource in this namespace.
    #[must_use]
    pub fn rules_with_peers(&self, namespace: &str) -> Vec<RuleSpec> {
        // Invalid peers have been refused before.
        let peers = self.peers.iter().filter_map(|peer| peer.resolve(namespace).ok());
        let peers: Vec<Remote> = peers.map(|peer| Remote::Peer(Peer::Cluster(peer))).collect();
        let mut rules = self.rules.clone();
        for rule in &mut rules {
            rule.remote.extend(peers.iter().cloned());
        }
        rules
    }

    /// Whether there is no fault in it.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.rules.is_empty() && is_default(&self.clocks) && is_default(&self.processes)
    }

    /// The agent's request for one target and the remaining duration.
    #[must_use]
    pub fn request(&self, name: String, target: TargetSpec, left: Duration) -> FaultRequest {
        let Self { target: _, r#for: _, seed, rules, peers: _, clocks, processes } = self.clone();
        FaultRequest {
            name: Some(name).filter(|name| !name.is_empty()),
            target,
            seed,
            rules,
            clocks,
            processes,
            r#for: Some(HumanDuration(left)),
            lease: None,
        }
    }
}

impl PodTarget {
    /// What is excluded from packet faults.
    #[must_use]
    pub fn protection(&self) -> Protection {
        Protection::of_pod(self.protect.unwrap_or(true))
    }

    fn check(&self) -> Result<(), String> {
        if self.process.is_some() && self.container.is_none() {
            return Err("target: `process` requires `container`".into());
        }
        match (&self.pods, &self.pod) {
            (Some(pods), None) => pods.check(),
            (None, Some(name)) if name.is_empty() => Err("target: `pod` must not be empty".into()),
            (None, Some(_)) => Ok(()),
            _ => Err("target: give one of `pods` (labels) and `pod` (a name)".into()),
        }
    }

    /// Whether it selects a pod with this name and these labels.
    #[must_use]
    pub fn selects(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let by_name = self.pod.as_ref().is_none_or(|wanted| wanted == name);
        // Invalid selectors have been refused before.
        let by_labels = self
            .pods
            .as_ref()
            .is_none_or(|pods| pods.parse().is_ok_and(|selector| selector.matches(labels)));
        by_name && by_labels
    }
}

impl PeerSelector {
    /// The peer that it means in a resource of this namespace.
    fn resolve(&self, namespace: &str) -> Result<ClusterPeer, String> {
        let text = |selector: &PodSelector| selector.parse().map(|selector| selector.to_string());
        match (&self.pod_selector, &self.namespace_selector, &self.service) {
            (None, None, Some(ServicePeer { name, namespace: other })) => {
                Ok(ClusterPeer::Service {
                    namespace: other.as_deref().unwrap_or(namespace).into(),
                    name: name.clone(),
                })
            }
            (Some(pods), None, None) => Ok(ClusterPeer::Pods {
                namespaces: Namespaces::Named(namespace.into()),
                selector: text(pods)?,
            }),
            (pods, Some(namespaces), None) => Ok(ClusterPeer::Pods {
                namespaces: Namespaces::Labelled(text(namespaces)?),
                selector: pods.as_ref().map(text).transpose()?.unwrap_or_default(),
            }),
            _ => Err("give `podSelector`, `namespaceSelector` or both, or else `service`".into()),
        }
    }
}

impl PodSelector {
    fn parse(&self) -> Result<Selector, String> {
        let requirement = |requirement: &Requirement| LabelSelectorRequirement {
            key: requirement.key.clone(),
            operator: format!("{:?}", requirement.operator),
            values: Some(requirement.values.clone()),
        };
        let selector = LabelSelector {
            match_labels: Some(self.match_labels.clone()),
            match_expressions: Some(self.match_expressions.iter().map(requirement).collect()),
        };
        Selector::try_from(selector).map_err(|error| format!("target: pods: {error}"))
    }

    fn check(&self) -> Result<(), String> {
        if self.parse()?.selects_all() {
            return Err("target: `pods` without labels would select all pods of the namespace: add matchLabels \
                        or matchExpressions; to select all pods, require that a label that no pod has DoesNotExist"
                .into());
        }
        for Requirement { key, operator, values } in &self.match_expressions {
            let needs_values = matches!(operator, Operator::In | Operator::NotIn);
            if needs_values == values.is_empty() {
                let what = if needs_values { "needs values" } else { "takes no values" };
                return Err(format!("target: pods: {key}: {operator:?} {what}"));
            }
        }
        Ok(())
    }
}

/// The custom resource definition.
#[must_use]
pub fn definition() -> CustomResourceDefinition {
    FaultInjection::crd()
}

/// The custom resource definition as YAML.
pub fn definition_yaml() -> serde_json::Result<String> {
    // Through JSON, which sorts the keys.
    let definition: serde_json::Value = serde_json::to_value(definition())?;
    let yaml = serde_saphyr::to_string(&definition).map_err(serde::ser::Error::custom)?;
    Ok(format!(
        "# FaultInjection, applied by `injector agent --kubernetes`. Generated by `injector crd`.\n{yaml}"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn invalid_specifications_are_refused_with_the_reason() {
        for (spec, reason) in [
            (json!({"for": "1s", "rules": [{"loss": "1%"}]}), "missing field `target`"),
            (json!({"target": {"pod": "a"}, "rules": [{"loss": "1%"}]}), "missing field `for`"),
            (json!({"target": {}, "for": "1s", "rules": [{"loss": "1%"}]}), "give one of `pods`"),
            (
                json!({"target": {"pods": {}}, "for": "1s", "rules": [{"loss": "1%"}]}),
                "would select all pods",
            ),
            (
                json!({"target": {"pods": {"matchLabel": {"a": "b"}}}, "for": "1s", "rules": [{"loss": "1%"}]}),
                "unknown field `matchLabel`",
            ),
            (
                json!({"target": {"pods": {"matchExpressions": [{"key": "a", "operator": "In"}]}}, "for": "1s",
                    "rules": [{"loss": "1%"}]}),
                "In needs values",
            ),
            (
                json!({"target": {"pod": "a", "containr": "b"}, "for": "1s", "rules": [{"loss": "1%"}]}),
                "unknown field `containr`",
            ),
            (json!({"target": {"pod": "a"}, "for": "1s"}), "no rule"),
            (json!({"target": {"pod": "a"}, "for": "25h", "rules": [{"loss": "1%"}]}), "`for`"),
            (json!({"target": {"pod": "a"}, "for": "1s", "rules": [{"loss": "101%"}]}), "101%"),
            (
                json!({"target": {"pod": "a"}, "for": "1s", "rules": [{"loss": 0.2}]}),
                "rules[0].loss: `0.2` has no % sign: write 0.2% (or 20%)",
            ),
            (
                json!({"target": {"pod": "a"}, "for": "0s", "rules": [{"loss": "1%"}]}),
                "more than 0s",
            ),
            (
                json!({"target": {"pod": "a"}, "for": "1s", "rules": [{"loss": "1%", "remote-prt": "1"}]}),
                "unknown field `remote-prt`",
            ),
            (
                json!({"target": {"pod": "a"}, "for": "1s", "rules": [{"delay": "samples=/etc/shadow"}]}),
                "reads no files",
            ),
        ] {
            let message = FaultInjectionSpec::check(&spec).expect_err(&spec.to_string());
            assert!(message.contains(reason), "{spec}: {message}");
        }
        for (peers, reason) in [
            (json!([{}]), "peers[0]: give `podSelector`"),
            (
                json!([{"podSelector": {}, "service": {"name": "db"}}]),
                "peers[0]: give `podSelector`",
            ),
            (json!([{"podSelektor": {}}]), "unknown field `podSelektor`"),
        ] {
            let spec = json!({"target": {"pod": "a"}, "for": "1s", "rules": [{"loss": "1%"}], "peers": peers});
            let message = FaultInjectionSpec::check(&spec).expect_err(&spec.to_string());
            assert!(message.contains(reason), "{spec}: {message}");
        }
        for (rules, reason) in [
            (json!({"clocks": {"clock": "+1h"}}), "`peers` requires `rules`"),
            (
                json!({"rules": [{"loss": "1%"}, {"loss": "1%", "remote": "db"}]}),
                "rules[1]: give either",
            ),
        ] {
            let mut spec = json!({"target": {"pod": "a"}, "for": "1s", "peers": [{"service": {"name": "db"}}]});
            spec.as_object_mut()
                .expect("it is one")
                .extend(rules.as_object().expect("it is one").clone());
            let message = FaultInjectionSpec::check(&spec).expect_err(&spec.to_string());
            assert!(message.contains(reason), "{spec}: {message}");
        }
        let spec = json!({
            "target": {"pods": {"matchLabels": {"app": "cart"}}, "container": "app"},
            "for": "30s", "seed": 7,
            "rules": [{"loss": "20%", "remote-port": 5432, "remote": ["10.0.0.0/8"]}],
            "clocks": {"clock": "+1h"}, "processes": {"pause": "200ms,every=5s"},
        });
        FaultInjectionSpec::check(&spec).expect("a valid specification");
    }

    #[test]
    fn peers_are_selected_as_by_network_policies() {
        let peer = |selector| {
            let selector: PeerSelector = serde_json::from_value(selector).expect("a peer");
            selector.resolve("shop").expect("a valid peer").to_string()
        };
        let db = json!({"matchLabels": {"app": "db"}});
        let teams =
            json!({"matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]});
        assert_eq!(peer(json!({"podSelector": db})), "pods:shop/app=db");
        assert_eq!(peer(json!({"podSelector": {}})), "pods:shop/");
        let both = json!({"podSelector": db, "namespaceSelector": teams});
        assert_eq!(peer(both), "pods:(team in (a))/app=db");
        assert_eq!(peer(json!({"service": {"name": "db"}})), "service:shop/db");
        let other = json!({"service": {"name": "db", "namespace": "data"}});
        assert_eq!(peer(other), "service:data/db");
    }

    #[test]
    fn pods_are_selected_as_kubernetes_does() {
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|&(key, value)| (key.into(), value.into())).collect()
        };
        let target = |target| serde_json::from_value::<PodTarget>(target).expect("a target");
        let cart = target(json!({"pods": {
            "matchLabels": {"app": "cart"},
            "matchExpressions": [
                {"key": "tier", "operator": "NotIn", "values": ["db"]},
                {"key": "spare", "operator": "DoesNotExist"},
            ],
        }}));
        assert!(cart.selects("x", &labels(&[("app", "cart")])));
        assert!(!cart.selects("x", &labels(&[("app", "shop")])));
        assert!(!cart.selects("x", &labels(&[("app", "cart"), ("tier", "db")])));
        assert!(!cart.selects("x", &labels(&[("app", "cart"), ("spare", "")])));
        let one = target(json!({"pod": "cart-0"}));
        assert!(one.selects("cart-0", &labels(&[])) && !one.selects("cart-1", &labels(&[])));
    }
}

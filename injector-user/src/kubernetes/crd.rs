//! The custom resource, and its definition.

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
        api::{FaultRequest, PodStatus, Problem},
        plan,
    },
    fault::counts::{PacketCounts, ProcessCounts, counts, process_counters},
    spec::{
        clock::ClockSpec,
        list::list,
        process::ProcessSpec,
        rule::RuleSpec,
        target::{PodName, TargetSpec},
        value::Span,
    },
};

/// A fault of pods, which the agent of each node carries out.
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
    printcolumn = r#"{"name": "Matched", "type": "integer", "jsonPath": ".status.matched"}"#,
    printcolumn = r#"{"name": "Pods", "type": "integer", "jsonPath": ".status.pods"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(deny_unknown_fields)]
#[schemars(transform = closed)]
pub struct FaultInjectionSpec {
    /// Which pods are faulted.
    pub target: PodTarget,
    /// How long it lasts, at most 24h, from the moment that the first pod is faulted.
    pub r#for: Span,
    /// What random decisions follow from: with it, they are repeatable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Packet faults, in order: the first rule that matches a packet decides.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub rules: Vec<RuleSpec>,
    /// How clocks go wrong.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clocks: ClockSpec,
    /// What is done to processes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub processes: ProcessSpec,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Which pods are faulted: those that labels select, or one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["pods"]}, {"required": ["pod"]}]))]
pub struct PodTarget {
    /// Those whose labels are so, in the namespace of this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelector>,
    /// The one of this name, in the namespace of this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Only the container of this name in each; by default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// What labels pods have. All of it must be so.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PodSelector {
    /// Labels and their values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// What else is so of labels.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub match_expressions: Vec<Requirement>,
}

/// What is so of a label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What is so of it.
    pub operator: Operator,
    /// With these values, for In and `NotIn`.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// It is there, with one of the values.
    In,
    /// It has none of the values, or is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// What becomes of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = structural)]
pub struct FaultInjectionStatus {
    /// Whether it acts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Packets that were matched, on all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matched: Option<u64>,
    /// Pods that are faulted now, on all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<u64>,
    /// When it began: the time from which `for` counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<MicroTime>,
    /// When it ended. It is not begun again after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<MicroTime>,
    /// The generation of the specification that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What is so of it: Accepted, Injecting, Matched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// What each node does. Each agent writes that of its node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub nodes: Vec<NodeStatus>,
}

/// Whether a fault acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// No pod is faulted yet, or none at the moment.
    Pending,
    /// Pods are faulted.
    Running,
    /// Its time is over, or it is being deleted.
    Ended,
    /// It makes no sense, or could nowhere be carried out.
    Failed,
}

/// What a node does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["node"]))]
pub struct NodeStatus {
    /// The node.
    pub node: String,
    /// What its agent does.
    pub state: NodeState,
    /// The generation of the specification that it carries out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// When it faulted a pod first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<MicroTime>,
    /// Packets that were matched.
    pub matched: u64,
    /// What was done, from the start.
    pub counters: Counters,
    /// Pods of this node that are to be faulted; the first 64 of them, those that are not first.
    pub pods: Vec<PodStatus>,
    /// How many pods are faulted.
    pub injecting: u64,
    /// What is wrong, if something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl NodeStatus {
    /// Whether its agent may be faulting pods.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.state.holds()
    }
}

/// What the agent of a node does about a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeState {
    /// Nothing: no pod of it is selected.
    #[default]
    Idle,
    /// It is about to fault pods.
    Starting,
    /// Pods are selected, and none can be faulted yet.
    Waiting,
    /// It faults pods.
    Injecting,
    /// Pods are selected, and none can be faulted.
    Failed,
    /// It has ended its faults, for the agent ended.
    Stopped,
    /// It has ended its faults, for good.
    Ended,
    /// Nothing was heard of it for so long that its faults have ended.
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
    /// What was done to packets.
    PacketCounters from [PacketCounts]
});

process_counters!(counts! { crd
    /// What was done to processes.
    ProcessCounters from [ProcessCounts]
});

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Counters {
    /// To packets.
    #[serde(flatten)]
    pub packets: PacketCounters,
    /// Processes whose clocks were faulted.
    pub clock_processes: u64,
    /// To processes.
    #[serde(flatten)]
    pub processes: ProcessCounters,
}

impl FaultInjectionSpec {
    /// Reads a specification and checks all that can be checked without a pod. The error says what is wrong.
    pub fn check(spec: &serde_json::Value) -> Result<Self, String> {
        let spec: Self = serde_path_to_error::deserialize(spec)
            .map_err(|error| format!("the specification is not understood: {error}"))?;
        spec.target.check()?;
        let name = PodName { namespace: String::new(), name: String::new() };
        let target = TargetSpec { pod: Some(name), ..TargetSpec::default() };
        match plan::check(&spec.request(String::new(), target, spec.r#for.0)) {
            Ok(_) => Ok(spec),
            Err(Problem { message, .. }) => Err(message),
        }
    }

    /// What the agent is asked for: this, of a target, for as long as is left.
    #[must_use]
    pub fn request(&self, name: String, target: TargetSpec, left: Duration) -> FaultRequest {
        let Self { target: _, r#for: _, seed, rules, clocks, processes } = self.clone();
        FaultRequest {
            name: Some(name).filter(|name| !name.is_empty()),
            target,
            seed,
            rules,
            clocks,
            processes,
            r#for: Some(Span(left)),
            lease: None,
        }
    }
}

impl PodTarget {
    fn check(&self) -> Result<(), String> {
        match (&self.pods, &self.pod) {
            (Some(pods), None) => pods.check(),
            (None, Some(name)) if name.is_empty() => {
                Err("target: `pod` is the name of a pod".into())
            }
            (None, Some(_)) => Ok(()),
            _ => Err("target: give one of `pods`, a selection by labels, and `pod`, a name".into()),
        }
    }

    /// Whether a pod of this name and these labels is one.
    #[must_use]
    pub fn selects(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let by_name = self.pod.as_ref().is_none_or(|wanted| wanted == name);
        // What is not understood has been refused before.
        let by_labels = self
            .pods
            .as_ref()
            .is_none_or(|pods| pods.parse().is_ok_and(|selector| selector.matches(labels)));
        by_name && by_labels
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
            return Err("target: `pods` without labels would be all pods of the namespace: say which by matchLabels or \
                        matchExpressions; to mean all, have a label that none has with the operator DoesNotExist"
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

/// The definition of the resource.
#[must_use]
pub fn definition() -> CustomResourceDefinition {
    FaultInjection::crd()
}

/// The same as a file, in YAML.
pub fn definition_yaml() -> serde_json::Result<String> {
    // Through JSON, so that its keys are in order.
    let definition: serde_json::Value = serde_json::to_value(definition())?;
    let yaml = serde_saphyr::to_string(&definition).map_err(serde::ser::Error::custom)?;
    Ok(format!(
        "# FaultInjection, which `injector agent --kubernetes` carries out. Written by `injector crd`.\n{yaml}"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (spec, reason) in [
            (json!({"for": "1s", "rules": [{"loss": "1%"}]}), "missing field `target`"),
            (json!({"target": {"pod": "a"}, "rules": [{"loss": "1%"}]}), "missing field `for`"),
            (json!({"target": {}, "for": "1s", "rules": [{"loss": "1%"}]}), "give one of `pods`"),
            (
                json!({"target": {"pods": {}}, "for": "1s", "rules": [{"loss": "1%"}]}),
                "would be all pods",
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
        let spec = json!({
            "target": {"pods": {"matchLabels": {"app": "cart"}}, "container": "app"},
            "for": "30s", "seed": 7,
            "rules": [{"loss": "20%", "remote-port": 5432, "remote": ["10.0.0.0/8"]}],
            "clocks": {"clock": "+1h"}, "processes": {"pause": "200ms,every=5s"},
        });
        FaultInjectionSpec::check(&spec).expect("it makes sense");
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

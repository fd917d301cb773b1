//! The status of a resource, aggregated from the entries of all nodes.

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time},
    jiff::{Timestamp, Unit},
};

use super::crd::{Counters, FaultInjectionStatus, NodeState, NodeStatus, Phase};
use crate::words::plural;

/// The desired state of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Desired {
    /// The specification is invalid, for this reason.
    Invalid(String),
    /// Selected pods should be faulted.
    Active,
    /// Its duration has passed.
    Expired,
    /// It is being deleted.
    Deleted,
}

impl Desired {
    /// The state of a node that has ended its faults for this reason; `None` while active.
    #[must_use]
    pub const fn final_state(&self) -> Option<NodeState> {
        match self {
            Self::Active => None,
            Self::Invalid(_) => Some(NodeState::Idle),
            Self::Expired | Self::Deleted => Some(NodeState::Ended),
        }
    }
}

/// The current time, in the microsecond precision of Kubernetes.
#[must_use]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(Unit::Microsecond).unwrap_or(now)
}

/// The common part of the status, without the nodes' entries.
#[must_use]
pub fn summarize(
    old: &FaultInjectionStatus,
    generation: i64,
    desired: &Desired,
    now: Timestamp,
) -> FaultInjectionStatus {
    let nodes = &old.nodes;
    let matched = nodes.iter().map(|node| node.matched + node.counters.others_matched()).sum();
    let holding = || nodes.iter().filter(|node| node.holds());
    let pods: u64 = holding().map(|node| node.injecting).sum();
    let selected: u64 = holding().map(|node| node.selected).sum();
    let phase = phase(nodes, desired);
    let start_time = start_time(old);
    let is_over = matches!(desired, Desired::Expired | Desired::Deleted);
    let end_time = if is_over && start_time.is_some() {
        old.end_time.clone().or(Some(MicroTime(now)))
    } else {
        old.end_time.clone()
    };
    let conditions = [
        accepted_condition(desired),
        injecting_condition(nodes, desired, pods),
        matched_condition(nodes, desired, matched),
    ];
    let reason = match conditions[1].2 {
        INJECTING if pods < selected => "PodsWaiting",
        reason => reason,
    };
    let condition = |(type_, status, reason, message): ConditionFacts| {
        let status = if status { "True" } else { "False" };
        let before = old.conditions.iter().find(|condition| condition.type_ == type_);
        let before = before.filter(|condition| condition.status == status);
        Condition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message,
            observed_generation: Some(generation),
            last_transition_time: before
                .map_or(Time(now), |condition| condition.last_transition_time.clone()),
        }
    };
    FaultInjectionStatus {
        phase: Some(phase),
        reason: Some(reason.into()),
        matched: Some(matched),
        pods: Some(pods),
        selected_pods: Some(selected),
        pods_faulted: Some(format!("{pods}/{selected}")),
        start_time,
        end_time,
        observed_generation: Some(generation),
        conditions: conditions.map(condition).into(),
        nodes: Vec::new(),
    }
}

/// When the first pod was faulted.
#[must_use]
pub fn start_time(status: &FaultInjectionStatus) -> Option<MicroTime> {
    let of_nodes = status.nodes.iter().filter_map(|node| node.start_time.as_ref());
    status.start_time.clone().or_else(|| of_nodes.min().cloned())
}

/// A duration in whole hours, minutes or seconds.
#[must_use]
pub fn rounded(time: Duration) -> String {
    match time.as_secs_f64().round() as u64 {
        seconds if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

/// What matched on a node.
#[must_use]
pub fn matches(packets: u64, counters: Counters) -> String {
    let Counters { clock_processes, processes, .. } = counters;
    let counts = [
        (clock_processes, "process with a clock fault", "processes with a clock fault"),
        (processes.pauses, "pause", "pauses"),
        (processes.signals, "signal", "signals"),
        (processes.calls_failed, "failed system call", "failed system calls"),
    ];
    let mut words = vec![plural(packets, "packet")];
    let counted = counts.iter().filter(|(number, ..)| *number > 0);
    words.extend(
        counted.map(|(number, one, many)| {
            format!("{number} {}", if *number == 1 { one } else { many })
        }),
    );
    format!("{} matched{}", words.join(", "), spared(processes.starting_spared))
}

/// The end of a message about containers that were being started.
fn spared(containers: u64) -> String {
    match containers {
        0 => String::new(),
        1 => "; 1 container was spared, as the runtime was starting it".into(),
        many => format!("; {many} containers were spared, as the runtime was starting them"),
    }
}

/// Whether two summaries differ in more than their counters.
#[must_use]
pub fn differs(old: &FaultInjectionStatus, new: &FaultInjectionStatus) -> bool {
    let facts = |status: &FaultInjectionStatus| {
        let conditions = status.conditions.iter().map(|condition| {
            let Condition { type_, status, reason, observed_generation, .. } = condition.clone();
            (type_, status, reason, observed_generation)
        });
        let conditions: Vec<_> = conditions.collect();
        (
            status.phase,
            status.reason.clone(),
            status.pods_faulted.clone(),
            status.start_time.clone(),
            status.observed_generation,
            status.end_time.is_some(),
            conditions,
        )
    };
    facts(old) != facts(new)
}

/// Type, status, reason, message.
type ConditionFacts = (&'static str, bool, &'static str, String);

/// The reason of the condition Injecting while faults are active.
const INJECTING: &str = "Injecting";

fn phase(nodes: &[NodeStatus], desired: &Desired) -> Phase {
    match desired {
        Desired::Invalid(_) => Phase::Failed,
        Desired::Expired | Desired::Deleted => Phase::Ended,
        Desired::Active if nodes.iter().any(|node| node.state == NodeState::Injecting) => {
            Phase::Running
        }
        Desired::Active if nodes.iter().any(|node| node.state == NodeState::Failed) => {
            Phase::Failed
        }
        Desired::Active => Phase::Pending,
    }
}

fn accepted_condition(desired: &Desired) -> ConditionFacts {
    match desired {
        Desired::Invalid(message) => ("Accepted", false, "Invalid", message.clone()),
        _ => ("Accepted", true, "Valid", "the specification is valid".into()),
    }
}

fn injecting_condition(nodes: &[NodeStatus], desired: &Desired, pods: u64) -> ConditionFacts {
    let said = |reason, message: &str| ("Injecting", false, reason, message.to_owned());
    let acting = nodes.iter().filter(|node| node.state == NodeState::Injecting).count() as u64;
    match desired {
        Desired::Invalid(_) => said("Invalid", "no fault: the specification is invalid"),
        Desired::Expired => said("Ended", "the duration has passed"),
        Desired::Deleted => said("Deleted", "the resource is being deleted"),
        Desired::Active if acting > 0 => {
            let trouble = nodes.iter().find_map(|node| Some((node, node.message.as_ref()?)));
            let trouble = trouble
                .map(|(node, message)| format!("; node {}: {message}", node.node))
                .unwrap_or_default();
            let (pods, nodes) = (plural(pods, "pod"), plural(acting, "node"));
            ("Injecting", true, INJECTING, format!("faults active in {pods} on {nodes}{trouble}"))
        }
        Desired::Active => {
            let mut troubled = nodes.iter().filter(|node| node.holds());
            match troubled.find_map(|node| Some((node, node.message.as_ref()?))) {
                Some((node, message)) => {
                    let reason = if node.state == NodeState::Failed { "Failed" } else { "Waiting" };
                    said(reason, &format!("node {}: {message}", node.node))
                }
                None if nodes.iter().any(NodeStatus::holds) => {
                    said("Waiting", "faults are about to start")
                }
                None => said("NoPods", "the target selects no pod on a node with an agent"),
            }
        }
    }
}

fn matched_condition(nodes: &[NodeStatus], desired: &Desired, matched: u64) -> ConditionFacts {
    let spared = spared(nodes.iter().map(|node| node.counters.processes.starting_spared).sum());
    if matched > 0 {
        let message = format!("packets, processes or calls matched{spared}");
        return ("Matched", true, "Matched", message);
    }
    let message = match desired {
        Desired::Active => {
            let mut injecting = nodes.iter().filter(|node| node.holds() && node.injecting > 0);
            let why = injecting.find_map(|node| Some((&node.node, node.message.as_ref()?)));
            let why = why.map(|(node, message)| format!(": node {node}: {message}"));
            format!("no packet, process or call has matched yet{}", why.unwrap_or_default())
        }
        _ => "no packet, process or call matched".into(),
    };
    ("Matched", false, "NothingMatched", format!("{message}{spared}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, state: NodeState) -> NodeStatus {
        NodeStatus { node: name.into(), state, ..NodeStatus::default() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn reason<'a>(status: &'a FaultInjectionStatus, type_: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.type_ == type_).expect(type_)
    }

    #[test]
    fn phases_follow_from_node_states() {
        use NodeState::{Ended, Failed, Idle, Injecting, Lost, Waiting};
        let trouble = |state| NodeStatus { message: Some("no".into()), ..node("a", state) };
        for (nodes, desired, expected, why) in [
            (vec![], Desired::Active, Phase::Pending, "NoPods"),
            (vec![node("a", Idle)], Desired::Active, Phase::Pending, "NoPods"),
            (vec![node("a", Lost)], Desired::Active, Phase::Pending, "NoPods"),
            (vec![trouble(Waiting)], Desired::Active, Phase::Pending, "Waiting"),
            (vec![trouble(Failed)], Desired::Active, Phase::Failed, "Failed"),
            (
                vec![trouble(Failed), node("b", Injecting)],
                Desired::Active,
                Phase::Running,
                "Injecting",
            ),
            (vec![node("a", Injecting)], Desired::Invalid("x".into()), Phase::Failed, "Invalid"),
            (vec![node("a", Ended)], Desired::Expired, Phase::Ended, "Ended"),
            (vec![trouble(Ended)], Desired::Expired, Phase::Ended, "Ended"),
            (vec![trouble(Ended), node("b", Ended)], Desired::Expired, Phase::Ended, "Ended"),
            (vec![], Desired::Expired, Phase::Ended, "Ended"),
            (vec![node("a", Injecting)], Desired::Deleted, Phase::Ended, "Deleted"),
        ] {
            let old = FaultInjectionStatus { nodes, ..FaultInjectionStatus::default() };
            let new = summarize(&old, 3, &desired, at(9));
            assert_eq!(new.phase, Some(expected), "{old:?} {desired:?}");
            assert_eq!(reason(&new, "Injecting").reason, why, "{old:?} {desired:?}");
            assert_eq!(new.observed_generation, Some(3));
        }
    }

    #[test]
    fn matches_count_all_nodes_and_pods_only_active_nodes() {
        let of = |name, state, matched, injecting| NodeStatus {
            matched,
            injecting,
            ..node(name, state)
        };
        let nodes = vec![of("a", NodeState::Injecting, 5, 2), of("b", NodeState::Lost, 7, 3)];
        let old = FaultInjectionStatus { nodes, ..FaultInjectionStatus::default() };
        let new = summarize(&old, 1, &Desired::Active, at(1));
        assert_eq!((new.matched, new.pods), (Some(12), Some(2)));
        let mut status = FaultInjectionStatus { nodes: old.nodes, ..new };
        status.nodes[0].selected = 3;
        status.nodes[0].counters.processes.signals = 2;
        let new = summarize(&status, 1, &Desired::Active, at(2));
        assert_eq!((new.matched, new.pods_faulted.as_deref()), (Some(14), Some("2/3")));
        assert_eq!(new.reason.as_deref(), Some("PodsWaiting"));
        assert_eq!(reason(&new, "Matched").status, "True");
    }

    #[test]
    fn the_first_faulted_pod_gives_the_start_time() {
        let of = |name, second| NodeStatus {
            start_time: Some(MicroTime(at(second))),
            ..node(name, NodeState::Injecting)
        };
        let nodes = vec![of("a", 7), of("b", 5), node("c", NodeState::Waiting)];
        let old = FaultInjectionStatus { nodes, ..FaultInjectionStatus::default() };
        let new = summarize(&old, 1, &Desired::Active, at(9));
        assert_eq!(new.start_time, Some(MicroTime(at(5))));
        let nodes = vec![of("d", 1)];
        let later = summarize(&FaultInjectionStatus { nodes, ..new }, 1, &Desired::Active, at(9));
        assert_eq!(later.start_time, Some(MicroTime(at(5))), "it stays");
    }

    #[test]
    fn durations_are_rounded_to_seconds() {
        for (ms, text) in [(299_999, "5m"), (7_200_000, "2h"), (61_400, "61s")] {
            assert_eq!(rounded(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn what_matched_is_listed() {
        let mut counters = Counters::default();
        assert_eq!(matches(1, counters), "1 packet matched");
        counters.processes.signals = 1;
        counters.clock_processes = 2;
        let all = "0 packets, 2 processes with a clock fault, 1 signal matched";
        assert_eq!(matches(0, counters), all);
    }

    #[test]
    fn transition_times_follow_the_condition_status_and_the_end_time_is_set_once() {
        let started = FaultInjectionStatus {
            start_time: Some(MicroTime(at(1))),
            ..FaultInjectionStatus::default()
        };
        let first = summarize(&started, 1, &Desired::Active, at(2));
        let second = summarize(&first, 2, &Desired::Expired, at(3));
        assert_eq!(reason(&second, "Accepted").last_transition_time, Time(at(2)));
        assert_eq!(reason(&second, "Injecting").last_transition_time, Time(at(2)));
        assert_eq!(second.end_time, Some(MicroTime(at(3))));
        assert_eq!(
            summarize(&second, 2, &Desired::Expired, at(4)).end_time,
            Some(MicroTime(at(3)))
        );
        assert!(differs(&first, &second) && !differs(&second, &second));
        // A fault that never started has no end time.
        assert_eq!(
            summarize(&FaultInjectionStatus::default(), 1, &Desired::Deleted, at(1)).end_time,
            None
        );
        let invalid = summarize(&first, 2, &Desired::Invalid("wrong".into()), at(5));
        let accepted = reason(&invalid, "Accepted");
        assert_eq!((&*accepted.status, &*accepted.message), ("False", "wrong"));
        assert_eq!(accepted.last_transition_time, Time(at(5)));
    }
}

//! What is said of a resource: from what each node does to what becomes of the whole.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time},
    jiff::{Timestamp, Unit},
};

use super::crd::{Counters, FaultInjectionStatus, NodeState, NodeStatus, Phase};

/// What is to become of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It makes no sense; says why.
    Invalid(String),
    /// Pods are to be faulted.
    Acts,
    /// Its time is over.
    Over,
    /// It is being deleted.
    Deleted,
}

impl Verdict {
    /// What a node says that has ended its faults for this.
    #[must_use]
    pub const fn over(&self) -> Option<NodeState> {
        match self {
            Self::Acts => None,
            Self::Invalid(_) => Some(NodeState::Idle),
            Self::Over | Self::Deleted => Some(NodeState::Ended),
        }
    }
}

/// The time, as exactly as it is written.
#[must_use]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(Unit::Microsecond).unwrap_or(now)
}

/// Sums up what is so now: all but what each node says.
#[must_use]
pub fn sum_up(
    old: &FaultInjectionStatus,
    generation: i64,
    verdict: &Verdict,
    now: Timestamp,
) -> FaultInjectionStatus {
    let nodes = &old.nodes;
    let matched = nodes.iter().map(|node| node.matched).sum();
    let pods = nodes.iter().filter(|node| node.holds()).map(|node| node.injecting).sum();
    let phase = phase(nodes, verdict);
    let is_over = matches!(verdict, Verdict::Over | Verdict::Deleted);
    let end_time = if is_over && old.start_time.is_some() {
        old.end_time.clone().or(Some(MicroTime(now)))
    } else {
        old.end_time.clone()
    };
    let conditions = [
        accepted(verdict),
        injecting(nodes, verdict, pods),
        something_matched(nodes, verdict, matched),
    ];
    let condition = |(type_, status, reason, message): Said| {
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
        matched: Some(matched),
        pods: Some(pods),
        start_time: old.start_time.clone(),
        end_time,
        observed_generation: Some(generation),
        conditions: conditions.map(condition).into(),
        nodes: Vec::new(),
    }
}

/// Whether two summaries differ in more than numbers that grow.
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
            status.pods,
            status.observed_generation,
            status.end_time.is_some(),
            conditions,
        )
    };
    facts(old) != facts(new)
}

/// Type, whether it is so, reason, message.
type Said = (&'static str, bool, &'static str, String);

fn phase(nodes: &[NodeStatus], verdict: &Verdict) -> Phase {
    let has_failed = |node: &NodeStatus| node.start_time.is_none() && node.message.is_some();
    match verdict {
        Verdict::Invalid(_) => Phase::Failed,
        Verdict::Over if !nodes.is_empty() && nodes.iter().all(has_failed) => Phase::Failed,
        Verdict::Over | Verdict::Deleted => Phase::Ended,
        Verdict::Acts if nodes.iter().any(|node| node.state == NodeState::Injecting) => {
            Phase::Running
        }
        Verdict::Acts if nodes.iter().any(|node| node.state == NodeState::Failed) => Phase::Failed,
        Verdict::Acts => Phase::Pending,
    }
}

fn accepted(verdict: &Verdict) -> Said {
    match verdict {
        Verdict::Invalid(message) => ("Accepted", false, "Invalid", message.clone()),
        _ => ("Accepted", true, "Valid", "the specification makes sense".into()),
    }
}

fn injecting(nodes: &[NodeStatus], verdict: &Verdict, pods: u64) -> Said {
    let said = |reason, message: &str| ("Injecting", false, reason, message.to_owned());
    let acting = nodes.iter().filter(|node| node.state == NodeState::Injecting).count();
    match verdict {
        Verdict::Invalid(_) => {
            said("Invalid", "nothing is faulted: the specification makes no sense")
        }
        Verdict::Over => said("Ended", "its time is over"),
        Verdict::Deleted => said("Deleted", "it is being deleted"),
        Verdict::Acts if acting > 0 => {
            let trouble = nodes.iter().find_map(|node| Some((node, node.message.as_ref()?)));
            let trouble = trouble
                .map(|(node, message)| format!("; node {}: {message}", node.node))
                .unwrap_or_default();
            let message = format!("{pods} pods on {acting} nodes are faulted{trouble}");
            ("Injecting", true, "Injecting", message)
        }
        Verdict::Acts => {
            let mut troubled = nodes.iter().filter(|node| node.holds());
            match troubled.find_map(|node| Some((node, node.message.as_ref()?))) {
                Some((node, message)) => {
                    let reason = if node.state == NodeState::Failed { "Failed" } else { "Waiting" };
                    said(reason, &format!("node {}: {message}", node.node))
                }
                None if nodes.iter().any(NodeStatus::holds) => {
                    said("Waiting", "pods are about to be faulted")
                }
                None => said("NoPods", "no pod that runs on a node with an agent is selected"),
            }
        }
    }
}

fn something_matched(nodes: &[NodeStatus], verdict: &Verdict, matched: u64) -> Said {
    let did = |node: &NodeStatus| {
        let Counters { clock_processes, processes, .. } = node.counters;
        clock_processes + processes.pauses + processes.signals + processes.calls_failed > 0
    };
    if matched > 0 || nodes.iter().any(did) {
        return ("Matched", true, "Matched", "packets, processes or calls were matched".into());
    }
    let message = match verdict {
        Verdict::Acts => "nothing was matched so far: no packet, no process, no call",
        _ => "nothing was ever matched: no packet, no process, no call",
    };
    ("Matched", false, "NothingMatched", message.into())
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
    fn phases_follow_from_what_nodes_do() {
        use NodeState::{Ended, Failed, Idle, Injecting, Lost, Waiting};
        let trouble = |state| NodeStatus { message: Some("no".into()), ..node("a", state) };
        for (nodes, verdict, expected, why) in [
            (vec![], Verdict::Acts, Phase::Pending, "NoPods"),
            (vec![node("a", Idle)], Verdict::Acts, Phase::Pending, "NoPods"),
            (vec![node("a", Lost)], Verdict::Acts, Phase::Pending, "NoPods"),
            (vec![trouble(Waiting)], Verdict::Acts, Phase::Pending, "Waiting"),
            (vec![trouble(Failed)], Verdict::Acts, Phase::Failed, "Failed"),
            (
                vec![trouble(Failed), node("b", Injecting)],
                Verdict::Acts,
                Phase::Running,
                "Injecting",
            ),
            (vec![node("a", Injecting)], Verdict::Invalid("x".into()), Phase::Failed, "Invalid"),
            (vec![node("a", Ended)], Verdict::Over, Phase::Ended, "Ended"),
            (vec![trouble(Ended)], Verdict::Over, Phase::Failed, "Ended"),
            (vec![trouble(Ended), node("b", Ended)], Verdict::Over, Phase::Ended, "Ended"),
            (vec![], Verdict::Over, Phase::Ended, "Ended"),
            (vec![node("a", Injecting)], Verdict::Deleted, Phase::Ended, "Deleted"),
        ] {
            let old = FaultInjectionStatus { nodes, ..FaultInjectionStatus::default() };
            let new = sum_up(&old, 3, &verdict, at(9));
            assert_eq!(new.phase, Some(expected), "{old:?} {verdict:?}");
            assert_eq!(reason(&new, "Injecting").reason, why, "{old:?} {verdict:?}");
            assert_eq!(new.observed_generation, Some(3));
        }
    }

    #[test]
    fn numbers_are_of_all_nodes_and_pods_of_those_that_act() {
        let of = |name, state, matched, injecting| NodeStatus {
            matched,
            injecting,
            ..node(name, state)
        };
        let nodes = vec![of("a", NodeState::Injecting, 5, 2), of("b", NodeState::Lost, 7, 3)];
        let old = FaultInjectionStatus { nodes, ..FaultInjectionStatus::default() };
        let new = sum_up(&old, 1, &Verdict::Acts, at(1));
        assert_eq!((new.matched, new.pods), (Some(12), Some(2)));
        assert_eq!(reason(&new, "Matched").status, "True");
    }

    #[test]
    fn a_condition_has_changed_when_its_status_did_and_an_end_is_once() {
        let started = FaultInjectionStatus {
            start_time: Some(MicroTime(at(1))),
            ..FaultInjectionStatus::default()
        };
        let first = sum_up(&started, 1, &Verdict::Acts, at(2));
        let second = sum_up(&first, 2, &Verdict::Over, at(3));
        assert_eq!(reason(&second, "Accepted").last_transition_time, Time(at(2)));
        assert_eq!(reason(&second, "Injecting").last_transition_time, Time(at(2)));
        assert_eq!(second.end_time, Some(MicroTime(at(3))));
        assert_eq!(sum_up(&second, 2, &Verdict::Over, at(4)).end_time, Some(MicroTime(at(3))));
        assert!(differs(&first, &second) && !differs(&second, &second));
        // What never began has no end.
        assert_eq!(
            sum_up(&FaultInjectionStatus::default(), 1, &Verdict::Deleted, at(1)).end_time,
            None
        );
        let invalid = sum_up(&first, 2, &Verdict::Invalid("wrong".into()), at(5));
        let accepted = reason(&invalid, "Accepted");
        assert_eq!((&*accepted.status, &*accepted.message), ("False", "wrong"));
        assert_eq!(accepted.last_transition_time, Time(at(5)));
    }
}

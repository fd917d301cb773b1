//! What this agent does about one resource, or one fault of selected pods: which pods it faults, by which of its own
//! faults, and what those did.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

use super::{
    crd::{Counters, FaultInjectionSpec, NodeState, NodeStatus},
    pods::{Part, Pod},
    status,
};
use crate::{
    agent::{
        access::Peer,
        api::{Code, Fault, Phase, PodState, PodStatus, Problem, Reason},
        audit::{self, Record, Subject},
        plan::{self, Plan},
        routes::Agent,
    },
    fault::counts::ProcessCounts,
    spec::{
        target::{PodName, TargetSpec},
        value::Span,
    },
    target::Target,
};

/// How owners of faults begin that a cluster asked for.
pub const OWNER: &str = "kubernetes:";

/// How long to wait before something is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// The longest that looking for a target may take: name servers may not answer.
const SEARCH: Duration = Duration::from_secs(10);

/// More pods of a node are not told one by one.
const TOLD: usize = 64;

/// A pod that is, or is to be, faulted.
#[derive(Debug)]
struct Acting {
    pod: PodName,
    part: Result<Part, String>,
    state: PodState,
    message: Option<String>,
    /// When to try again.
    again: Instant,
    /// Its fault, as it was seen last.
    fault: Option<Arc<Fault>>,
}

impl Acting {
    /// To be faulted now, if that can be.
    fn new(pod: PodName, part: Result<Part, String>) -> Self {
        Self {
            pod,
            state: PodState::Waiting,
            message: part.clone().err(),
            part,
            again: Instant::now(),
            fault: None,
        }
    }
}

/// Where what is asked for comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// What asks for it, as the audit log names it.
    peer: Peer,
    /// Whose the faults are.
    owner: String,
    /// Where it is asked for, as the audit log names it.
    path: String,
    /// How the names of the faults begin.
    names: String,
    /// The fault that they are parts of.
    part_of: Option<Arc<Fault>>,
    /// Tells it from all others.
    hash: u64,
}

impl Origin {
    /// A resource.
    pub fn of_resource(resource: &PodName) -> Self {
        let PodName { namespace, name } = resource;
        let peer = Peer::Kubernetes { resource: resource.to_string() };
        Self {
            owner: peer.to_string(),
            peer,
            path: format!(
                "/apis/injector.dev/v1alpha1/namespaces/{namespace}/faultinjections/{name}"
            ),
            names: format!("{}.{}", in_short(namespace), in_short(name)),
            part_of: None,
            hash: hash_of((namespace, name)),
        }
    }

    /// A fault of the pods that labels select.
    pub fn of_fault(fault: &Arc<Fault>) -> Self {
        Self {
            peer: Peer::Kubernetes { resource: fault.name.clone() },
            owner: fault.owner.clone(),
            path: format!("/v1/faults/{}", fault.name),
            names: in_short(&fault.name),
            part_of: Some(fault.clone()),
            hash: hash_of((&fault.name, &fault.created)),
        }
    }

    /// What the agent calls the fault of a pod: for people, and like no other's.
    fn fault_name(&self, pod: &PodName, uid: &str) -> String {
        let hash = hash_of((self.hash, uid)) as u32;
        format!("{}.{}.{hash:08x}", self.names, in_short(&pod.name))
    }
}

fn in_short(text: &str) -> String {
    text.chars().take(34).collect()
}

fn hash_of(parts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

/// What is done about a resource.
#[derive(Debug)]
pub struct Work {
    origin: Origin,
    /// The generation that it was said, by this agent since it runs, that pods may be faulted by.
    pub claimed: Option<i64>,
    /// The generation that acts.
    generation: Option<i64>,
    /// By the unique IDs of pods.
    acting: BTreeMap<String, Acting>,
    /// What was done by faults that have ended, of former agents included.
    done: (u64, Counters),
    /// When a pod was faulted first.
    started: Option<MicroTime>,
    /// When something was written of it last.
    pub written: Option<Instant>,
    /// When all of it was summed up last.
    pub summed_up: Option<Instant>,
}

impl Work {
    /// Nothing yet, but what former agents of the node wrote down.
    pub fn new(origin: Origin, before: Option<&NodeStatus>) -> Self {
        Self {
            origin,
            claimed: None,
            generation: None,
            acting: BTreeMap::new(),
            done: before.map(|node| (node.matched, node.counters)).unwrap_or_default(),
            started: before.and_then(|node| node.start_time.clone()),
            written: None,
            summed_up: None,
        }
    }

    /// Whether nothing acts.
    pub fn is_idle(&self) -> bool {
        self.acting.values().all(|acting| acting.fault.is_none())
    }

    /// Takes the pods that are selected now, and ends the faults of all others and of other generations.
    pub async fn select(
        &mut self,
        agent: &Agent,
        generation: i64,
        pods: &[&Pod],
        spec: &FaultInjectionSpec,
    ) {
        if self.generation.replace(generation).is_some_and(|before| before != generation) {
            self.end_all(agent).await;
        }
        let mut leaving: Vec<String> = Vec::new();
        for (uid, acting) in &self.acting {
            let part = pods.iter().find(|pod| pod.uid == *uid).map(|pod| pod.part(&spec.target));
            // One that has ended is followed by its name in the pod: that is another part.
            if part.is_none_or(|part| part != acting.part) {
                leaving.push(uid.clone());
            }
        }
        for uid in leaving {
            self.end(agent, &uid).await;
        }
        for pod in pods {
            self.acting
                .entry(pod.uid.clone())
                .or_insert_with(|| Acting::new(pod.name.clone(), pod.part(&spec.target)));
        }
    }

    /// Looks at what the faults did. Returns whether some have ended because the API server was away.
    pub fn observe(&mut self, agent: &Agent) -> bool {
        let mut have_lapsed = false;
        for acting in self.acting.values_mut() {
            let Some(known) = &acting.fault else { continue };
            // One that has ended may be forgotten by now, or may have been before another one by that name.
            let found = agent.board.find(&known.name);
            let Some(fault) = found.filter(|fault| fault.created == known.created) else {
                add(&mut self.done, known);
                acting.fault = None;
                acting.state = PodState::Waiting;
                have_lapsed = true;
                continue;
            };
            if fault.phase == Phase::Active {
                acting.fault = Some(fault);
                continue;
            }
            add(&mut self.done, &fault);
            acting.fault = None;
            acting.again = Instant::now() + AGAIN;
            (acting.state, acting.message) = match fault.reason {
                Some(Reason::Deleted) => (
                    PodState::Stopped,
                    Some("it was ended through the API of the agent of the node".into()),
                ),
                Some(Reason::Failed) => (PodState::Failed, fault.error.clone()),
                Some(Reason::Lapsed) => {
                    have_lapsed = true;
                    (PodState::Waiting, Some("the API server was not reached".into()))
                }
                _ => (PodState::Waiting, None),
            };
        }
        have_lapsed
    }

    /// Looks for the targets that are to be faulted now. What cannot be found says why.
    pub async fn plan(
        &mut self,
        spec: &FaultInjectionSpec,
        left: Duration,
        lease: Duration,
    ) -> Vec<(String, Plan)> {
        let mut plans = Vec::new();
        let patience = Instant::now() + SEARCH;
        for (uid, acting) in &mut self.acting {
            // The others' turn comes: this one is not asked again at once.
            if Instant::now() >= patience {
                break;
            }
            let is_due = acting.fault.is_none()
                && acting.state != PodState::Stopped
                && acting.again <= Instant::now();
            let Ok(part) = &acting.part else { continue };
            if !is_due {
                continue;
            }
            let name = self.origin.fault_name(&acting.pod, uid);
            let found = find(spec, name, &acting.pod, uid, part, left, lease).await;
            match found {
                Ok(plan) => plans.push((uid.clone(), plan)),
                Err(problem) => {
                    acting.state = PodState::Waiting;
                    acting.message = Some(problem.message);
                    acting.again = Instant::now() + AGAIN;
                }
            }
        }
        plans
    }

    /// Faults a pod.
    pub async fn begin(&mut self, agent: &Agent, uid: &str, mut plan: Plan) {
        let Some(acting) = self.acting.get_mut(uid) else { return };
        let began = Instant::now();
        if let Some(whole) = &self.origin.part_of {
            plan.part_of = Some(whole.clone());
            (plan.terms.lasts, plan.terms.lease) = (None, None);
        }
        let mut subject = Subject { target: audit::in_short(&plan.spec), ..Subject::default() };
        subject.agree(&plan.terms);
        let created = agent.keeper.create(plan, self.origin.owner.clone()).await;
        let outcome = created.as_ref().map(|_| 201);
        write_down(agent, &self.origin, "POST", &subject, began, outcome);
        match created {
            Ok(fault) => {
                acting.state = PodState::Injecting;
                acting.message = None;
                acting.fault = Some(fault);
                self.started.get_or_insert_with(|| MicroTime(status::now()));
            }
            Err(problem) => {
                agent.board.count_problem(problem.error);
                let can_wait = matches!(problem.error, Code::Busy | Code::TooMany | Code::Conflict);
                acting.state = if can_wait { PodState::Waiting } else { PodState::Failed };
                acting.message = Some(problem.message);
                acting.again = Instant::now() + AGAIN;
            }
        }
    }

    /// Ends all faults.
    pub async fn end_all(&mut self, agent: &Agent) {
        let uids: Vec<String> = self.acting.keys().cloned().collect();
        for uid in uids {
            self.end(agent, &uid).await;
        }
    }

    /// Ends all faults, which may begin again later, and says why.
    pub async fn suspend(&mut self, agent: &Agent, why: &str) {
        let is_stopped = |acting: &Acting| acting.state == PodState::Stopped;
        let pods: Vec<(String, PodName, Result<Part, String>)> = self
            .acting
            .iter()
            .filter(|(_, acting)| !is_stopped(acting))
            .map(|(uid, acting)| (uid.clone(), acting.pod.clone(), acting.part.clone()))
            .collect();
        for (uid, pod, part) in pods {
            self.end(agent, &uid).await;
            let mut acting = Acting::new(pod, part);
            acting.message = Some(why.into());
            self.acting.insert(uid, acting);
        }
    }

    async fn end(&mut self, agent: &Agent, uid: &str) {
        let Some(fault) = self.acting.remove(uid).and_then(|acting| acting.fault) else { return };
        let began = Instant::now();
        let subject = Subject { fault: Some(fault.name.clone()), ..Subject::default() };
        // A keeper that has too much to do is asked again: the fault may not stay.
        let ended = loop {
            match agent.keeper.delete(fault.name.clone()).await {
                Err(problem) if problem.error == Code::Busy && began.elapsed() < SEARCH => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                ended => break ended,
            }
        };
        let outcome = ended.as_ref().map(|_| 200);
        write_down(agent, &self.origin, "DELETE", &subject, began, outcome);
        // It may have ended by itself meanwhile, or with the agent.
        let last = ended.ok().or_else(|| agent.board.find(&fault.name));
        add(&mut self.done, &last.filter(|last| last.created == fault.created).unwrap_or(fault));
    }

    /// The pods that are, or are to be, faulted; those first that are not.
    pub fn pods(&self) -> Vec<PodStatus> {
        let status = |acting: &Acting| {
            let fault = acting.fault.as_deref();
            PodStatus {
                name: acting.pod.name.clone(),
                state: acting.state,
                matched: fault.map_or(0, |fault| fault.packets.matched),
                fault: fault.map(|fault| fault.name.clone()),
                message: acting
                    .message
                    .clone()
                    .or_else(|| fault.and_then(|fault| fault.warnings.last().cloned())),
            }
        };
        let mut pods: Vec<PodStatus> = self.acting.values().map(status).collect();
        pods.sort_by(|one, other| (one.state, &one.name).cmp(&(other.state, &other.name)));
        pods
    }

    /// What this node does about it.
    pub fn status(&self, node: &str, generation: i64, over: Option<NodeState>) -> NodeStatus {
        let mut done = self.done;
        for fault in self.acting.values().filter_map(|acting| acting.fault.as_deref()) {
            add(&mut done, fault);
        }
        let mut pods = self.pods();
        let is = |state| pods.iter().any(|pod| pod.state == state);
        let state = over.unwrap_or(if is(PodState::Injecting) {
            NodeState::Injecting
        } else if is(PodState::Waiting) {
            NodeState::Waiting
        } else if is(PodState::Failed) {
            NodeState::Failed
        } else if is(PodState::Stopped) {
            NodeState::Stopped
        } else {
            NodeState::Idle
        });
        let message = pods.iter().find_map(|pod| {
            pod.message.as_ref().map(|message| format!("pod {}: {message}", pod.name))
        });
        let injecting = pods.iter().filter(|pod| pod.state == PodState::Injecting).count() as u64;
        pods.truncate(TOLD);
        let (matched, counters) = done;
        NodeStatus {
            node: node.into(),
            state,
            generation: Some(generation),
            start_time: self.started.clone(),
            matched,
            counters,
            pods,
            injecting,
            message,
        }
    }
}

async fn find(
    spec: &FaultInjectionSpec,
    name: String,
    pod: &PodName,
    uid: &str,
    part: &Part,
    left: Duration,
    lease: Duration,
) -> Result<Plan, Problem> {
    let target = match part {
        Part::Whole => TargetSpec { pod: Some(pod.clone()), ..TargetSpec::default() },
        Part::Container(id) => TargetSpec { container: Some(id.clone()), ..TargetSpec::default() },
    };
    let mut request = spec.request(name, target, left);
    request.lease = Some(Span(lease));
    let (pod, uid, part) = (pod.clone(), uid.to_owned(), part.clone());
    let search = tokio::task::spawn_blocking(move || match part {
        Part::Whole => plan::plan_for(request, |_, _| Target::of_pod(&pod, &uid)),
        Part::Container(_) => plan::plan(request),
    });
    let late = || Problem::new(Code::Busy, format!("it was not found within {SEARCH:?}"));
    match tokio::time::timeout(SEARCH, search).await {
        Ok(found) => found.unwrap_or_else(|_| Err(late())),
        Err(_) => Err(late()),
    }
}

fn write_down(
    agent: &Agent,
    origin: &Origin,
    method: &str,
    subject: &Subject,
    began: Instant,
    outcome: Result<u16, &Problem>,
) {
    agent.audit.write(&Record {
        peer: &origin.peer,
        token: None,
        method,
        path: &origin.path,
        status: outcome.unwrap_or_else(|problem| problem.status),
        error: outcome.err().map(|problem| audit::cut(problem.message.clone())).as_deref(),
        subject: Some(subject),
        took_ms: audit::milliseconds(began.elapsed()),
    });
}

/// Counts what a fault did.
fn add((matched, counters): &mut (u64, Counters), fault: &Fault) {
    let Fault { packets, clocks, processes, .. } = fault;
    *matched += packets.matched;
    counters.packets += packets.done.into();
    if let Some(clocks) = clocks {
        counters.clock_processes += clocks.patched + clocks.inherited;
    }
    if let Some(processes) = processes {
        counters.processes += ProcessCounts::from(processes).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_faults_are_short_enough_and_differ() {
        let long = "x".repeat(253);
        let of = |namespace: &str, name: &str, pod: &str, uid: &str| {
            let name = PodName { namespace: namespace.into(), name: name.into() };
            let pod = PodName { namespace: namespace.into(), name: pod.into() };
            Origin::of_resource(&name).fault_name(&pod, uid)
        };
        assert!(of(&long, &long, &long, "1").len() <= 128);
        assert_ne!(of("a", "b", &long, "1"), of("a", "b", &long, "2"));
        assert_ne!(of("a", &(long.clone() + "1"), "c", "1"), of("a", &(long + "2"), "c", "1"));
        assert!(of("shop", "slow-db", "cart-0", "1").starts_with("shop.slow-db.cart-0."));
    }
}

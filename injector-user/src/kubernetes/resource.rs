//! The state on this node of one `FaultInjection` resource or one fault by labels: the selected
//! pods, the fault of each, and what those faults did.

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
    pods::{Pod, PodScope},
    status,
};
use crate::{
    agent::{
        access::Peer,
        api::{Code, Fault, Phase, Problem, Reason},
        audit::{self, Record, Subject},
        plan::{self, Plan},
        routes::Agent,
    },
    fault::counts::ProcessCounts,
    spec::{
        target::{PodName, TargetSpec},
        value::HumanDuration,
    },
    target::{
        Target,
        pods::{PodState, PodStatus},
    },
};

/// The prefix of the owners of faults that the cluster requested.
pub const OWNER: &str = "kubernetes:";

/// The delay before a failed pod is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(2);

/// The timeout of resolving a target, in which name servers may not answer.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of pods listed in the status of a node.
const MAX_REPORTED_PODS: usize = 64;

/// A selected pod and its fault.
#[derive(Debug)]
struct PodFault {
    pod: PodName,
    scope: Result<PodScope, String>,
    state: PodState,
    message: Option<String>,
    /// When to start the fault, or to try again.
    retry_at: Instant,
    /// The last known state of its fault.
    fault: Option<Arc<Fault>>,
}

impl PodFault {
    /// A pod whose fault is due now.
    fn new(pod: PodName, scope: Result<PodScope, String>) -> Self {
        Self {
            pod,
            state: PodState::Waiting,
            message: scope.clone().err(),
            scope,
            retry_at: Instant::now(),
            fault: None,
        }
    }
}

/// The origin of a fault: a resource, or a fault by labels.
#[derive(Clone, Debug)]
pub struct FaultSource {
    /// The client, for the audit log.
    peer: Peer,
    /// The owner of the faults.
    owner: String,
    /// The request path, for the audit log.
    path: String,
    /// The prefix of fault names.
    name_prefix: String,
    /// The fault by labels that the pods' faults are parts of.
    part_of: Option<Arc<Fault>>,
    /// Distinguishes sources whose names are truncated.
    hash: u64,
}

impl FaultSource {
    /// A `FaultInjection` resource.
    pub fn of_resource(resource: &PodName) -> Self {
        let PodName { namespace, name } = resource;
        let peer = Peer::Kubernetes { resource: resource.to_string() };
        Self {
            owner: peer.to_string(),
            peer,
            path: format!(
                "/apis/injector.dev/v1alpha1/namespaces/{namespace}/faultinjections/{name}"
            ),
            name_prefix: format!("{}.{}", truncate(namespace), truncate(name)),
            part_of: None,
            hash: hash_of((namespace, name)),
        }
    }

    /// A fault of pods by labels.
    pub fn of_fault(fault: &Arc<Fault>) -> Self {
        Self {
            peer: Peer::Kubernetes { resource: fault.name.clone() },
            owner: fault.owner.clone(),
            path: format!("/v1/faults/{}", fault.name),
            name_prefix: truncate(&fault.name),
            part_of: Some(fault.clone()),
            hash: hash_of((&fault.name, &fault.created)),
        }
    }

    /// A unique, readable name for the fault of a pod.
    fn fault_name(&self, pod: &PodName, uid: &str) -> String {
        let hash = hash_of((self.hash, uid)) as u32;
        format!("{}.{}.{hash:08x}", self.name_prefix, truncate(&pod.name))
    }
}

fn truncate(text: &str) -> String {
    text.chars().take(34).collect()
}

fn hash_of(parts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

/// The faults of one source on this node.
#[derive(Debug)]
pub struct ResourceState {
    origin: FaultSource,
    /// The generation that this agent process has claimed in the resource's status.
    pub claimed: Option<i64>,
    /// The generation whose faults are running.
    generation: Option<i64>,
    /// Selected pods by UID.
    pods: BTreeMap<String, PodFault>,
    /// Totals of faults that have ended, including those of earlier agent processes.
    done: (u64, Counters),
    /// When the first pod fault started.
    started: Option<MicroTime>,
    /// When the node's entry was last written.
    pub written: Option<Instant>,
    /// When the summary of all nodes was last written.
    pub summarized: Option<Instant>,
}

impl ResourceState {
    /// No faults yet; totals continue from the entry of an earlier agent process.
    pub fn new(origin: FaultSource, before: Option<&NodeStatus>) -> Self {
        Self {
            origin,
            claimed: None,
            generation: None,
            pods: BTreeMap::new(),
            done: before.map(|node| (node.matched, node.counters)).unwrap_or_default(),
            started: before.and_then(|node| node.start_time.clone()),
            written: None,
            summarized: None,
        }
    }

    /// Whether no fault is active.
    pub fn is_idle(&self) -> bool {
        self.pods.values().all(|acting| acting.fault.is_none())
    }

    /// Sets the selected pods; ends the faults of all other pods and of earlier generations.
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
        for (uid, acting) in &self.pods {
            let scope = pods.iter().find(|pod| pod.uid == *uid).map(|pod| pod.scope(&spec.target));
            // A restarted container has the same name but another ID, hence another scope.
            if scope.is_none_or(|scope| scope != acting.scope) {
                leaving.push(uid.clone());
            }
        }
        for uid in leaving {
            self.end(agent, &uid).await;
        }
        for pod in pods {
            self.pods
                .entry(pod.uid.clone())
                .or_insert_with(|| PodFault::new(pod.name.clone(), pod.scope(&spec.target)));
        }
    }

    /// Updates the states of the faults. Returns whether the lease of one has expired.
    pub fn observe(&mut self, agent: &Agent) -> bool {
        let mut has_expired = false;
        for acting in self.pods.values_mut() {
            let Some(known) = &acting.fault else { continue };
            // An ended fault may have been forgotten, or its name reused.
            let found = agent.board.find(&known.name);
            let Some(fault) = found.filter(|fault| fault.created == known.created) else {
                add(&mut self.done, known);
                acting.fault = None;
                acting.state = PodState::Waiting;
                has_expired = true;
                continue;
            };
            if fault.phase == Phase::Active {
                acting.fault = Some(fault);
                continue;
            }
            add(&mut self.done, &fault);
            acting.fault = None;
            acting.retry_at = Instant::now() + RETRY_DELAY;
            (acting.state, acting.message) = match fault.reason {
                Some(Reason::Deleted) => {
                    (PodState::Stopped, Some("deleted through the node agent's API".into()))
                }
                Some(Reason::Failed) => (PodState::Failed, fault.error.clone()),
                Some(Reason::Lapsed) => {
                    has_expired = true;
                    (PodState::Waiting, Some("the API server was not reached".into()))
                }
                _ => (PodState::Waiting, None),
            };
        }
        has_expired
    }

    /// Resolves the targets of the pods that are due. Failures are noted in the pods' messages.
    pub async fn plan(
        &mut self,
        spec: &FaultInjectionSpec,
        left: Duration,
        lease: Duration,
    ) -> Vec<(String, Plan)> {
        let mut plans = Vec::new();
        let deadline = Instant::now() + RESOLVE_TIMEOUT;
        for (uid, acting) in &mut self.pods {
            // The rest is resolved in the next round: pods tried now wait for their retry.
            if Instant::now() >= deadline {
                break;
            }
            let is_due = acting.fault.is_none()
                && acting.state != PodState::Stopped
                && acting.retry_at <= Instant::now();
            let Ok(scope) = &acting.scope else { continue };
            if !is_due {
                continue;
            }
            let name = self.origin.fault_name(&acting.pod, uid);
            let found = resolve(spec, name, &acting.pod, uid, scope, left, lease).await;
            match found {
                Ok(plan) => plans.push((uid.clone(), plan)),
                Err(problem) => {
                    acting.state = PodState::Waiting;
                    acting.message = Some(problem.message);
                    acting.retry_at = Instant::now() + RETRY_DELAY;
                }
            }
        }
        plans
    }

    /// Starts the fault of a pod.
    pub async fn begin(&mut self, agent: &Agent, uid: &str, mut plan: Plan) {
        let Some(acting) = self.pods.get_mut(uid) else { return };
        let began = Instant::now();
        if let Some(whole) = &self.origin.part_of {
            plan.part_of = Some(whole.clone());
            (plan.terms.lasts, plan.terms.lease) = (None, None);
        }
        let mut subject = Subject { target: audit::in_short(&plan.spec), ..Subject::default() };
        subject.agree(&plan.terms);
        let created = agent.keeper.create(plan, self.origin.owner.clone()).await;
        let outcome = created.as_ref().map(|_| 201);
        audit(agent, &self.origin, "POST", &subject, began, outcome);
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
                acting.retry_at = Instant::now() + RETRY_DELAY;
            }
        }
    }

    /// Ends all faults.
    pub async fn end_all(&mut self, agent: &Agent) {
        let uids: Vec<String> = self.pods.keys().cloned().collect();
        for uid in uids {
            self.end(agent, &uid).await;
        }
    }

    /// Ends all faults; they start again later. `why` becomes the pods' message.
    pub async fn suspend(&mut self, agent: &Agent, why: &str) {
        let is_stopped = |acting: &PodFault| acting.state == PodState::Stopped;
        let active: Vec<(String, PodName, Result<PodScope, String>)> = self
            .pods
            .iter()
            .filter(|(_, acting)| !is_stopped(acting))
            .map(|(uid, acting)| (uid.clone(), acting.pod.clone(), acting.scope.clone()))
            .collect();
        for (uid, pod, scope) in active {
            self.end(agent, &uid).await;
            let mut acting = PodFault::new(pod, scope);
            acting.message = Some(why.into());
            self.pods.insert(uid, acting);
        }
    }

    async fn end(&mut self, agent: &Agent, uid: &str) {
        let Some(fault) = self.pods.remove(uid).and_then(|acting| acting.fault) else { return };
        let began = Instant::now();
        let subject = Subject { fault: Some(fault.name.clone()), ..Subject::default() };
        // A busy fault manager is asked again: the fault must not stay.
        let ended = loop {
            match agent.keeper.delete(fault.name.clone()).await {
                Err(problem)
                    if problem.error == Code::Busy && began.elapsed() < RESOLVE_TIMEOUT =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                ended => break ended,
            }
        };
        let outcome = ended.as_ref().map(|_| 200);
        audit(agent, &self.origin, "DELETE", &subject, began, outcome);
        // The fault may have ended by itself meanwhile, or with the agent.
        let last = ended.ok().or_else(|| agent.board.find(&fault.name));
        add(&mut self.done, &last.filter(|last| last.created == fault.created).unwrap_or(fault));
    }

    /// The states of the selected pods, those without an active fault first.
    pub fn pod_statuses(&self) -> Vec<PodStatus> {
        let status = |acting: &PodFault| {
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
        let mut pods: Vec<PodStatus> = self.pods.values().map(status).collect();
        pods.sort_by(|one, other| (one.state, &one.name).cmp(&(other.state, &other.name)));
        pods
    }

    /// The status entry of this node. `final_state` overrides the state that follows from the pods.
    pub fn status(
        &self,
        node: &str,
        generation: i64,
        final_state: Option<NodeState>,
    ) -> NodeStatus {
        let mut done = self.done;
        for fault in self.pods.values().filter_map(|acting| acting.fault.as_deref()) {
            add(&mut done, fault);
        }
        let mut pods = self.pod_statuses();
        let is = |state| pods.iter().any(|pod| pod.state == state);
        let state = final_state.unwrap_or(if is(PodState::Injecting) {
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
        pods.truncate(MAX_REPORTED_PODS);
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

async fn resolve(
    spec: &FaultInjectionSpec,
    name: String,
    pod: &PodName,
    uid: &str,
    scope: &PodScope,
    left: Duration,
    lease: Duration,
) -> Result<Plan, Problem> {
    let target = match scope {
        PodScope::Whole => TargetSpec { pod: Some(pod.clone()), ..TargetSpec::default() },
        PodScope::Container(id) => {
            let process = spec.target.process.clone();
            TargetSpec { container: Some(id.clone()), process, ..TargetSpec::default() }
        }
    };
    let mut request = spec.request(name, target, left);
    request.lease = Some(HumanDuration(lease));
    let (pod, uid, scope) = (pod.clone(), uid.to_owned(), scope.clone());
    let resolution = tokio::task::spawn_blocking(move || match scope {
        PodScope::Whole => plan::plan_for(request, |_, _| Target::of_pod(&pod, &uid)),
        PodScope::Container(_) => plan::plan(request),
    });
    let late = || {
        Problem::new(
            Code::Busy,
            format!("resolving the target took longer than {RESOLVE_TIMEOUT:?}"),
        )
    };
    match tokio::time::timeout(RESOLVE_TIMEOUT, resolution).await {
        Ok(Ok(found)) => found,
        Ok(Err(panic)) => {
            Err(Problem::new(Code::Failed, format!("cannot resolve the target: {panic}")))
        }
        Err(_) => Err(late()),
    }
}

fn audit(
    agent: &Agent,
    origin: &FaultSource,
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

/// Adds the counters of a fault to the totals.
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
            FaultSource::of_resource(&name).fault_name(&pod, uid)
        };
        assert!(of(&long, &long, &long, "1").len() <= 128);
        assert_ne!(of("a", "b", &long, "1"), of("a", "b", &long, "2"));
        assert_ne!(of("a", &(long.clone() + "1"), "c", "1"), of("a", &(long + "2"), "c", "1"));
        assert!(of("shop", "slow-db", "cart-0", "1").starts_with("shop.slow-db.cart-0."));
    }
}

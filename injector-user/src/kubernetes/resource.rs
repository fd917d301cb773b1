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
    crd::{Counters, FaultInjectionSpec, NodeState, NodeStatus, Once, PodOnce},
    names::{self, Names, Unknown},
    peers::{ClusterPeers, Feeds},
    pods::{Pod, PodScope, ScopeError},
    search, status,
};
use crate::{
    agent::{
        access::Peer,
        api::{Code, Fault, Phase, Problem, Reason},
        audit::{self, Record, Subject},
        plan::{self, Plan},
        routes::Agent,
    },
    fault::{counts::ProcessCounts, process::KillStatistics},
    spec::{
        process::ProcessSpec,
        target::{PodName, TargetSpec},
        value::HumanDuration,
    },
    target::{
        Target,
        peers::{Addresses, Peers},
        pods::{PodState, PodStatus},
    },
};

/// The prefix of the owners of faults that the cluster requested.
pub const OWNER: &str = "kubernetes:";

/// The delay before a pod is tried again. It doubles with each further failure.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(2);
/// The maximum delay before a failed pod is tried again.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);

/// The timeout of finding a pod's cgroup, and of a busy fault manager.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of pods whose faults start before other resources have their turn.
const MAX_STARTS: usize = 4;

/// The maximum number of pods listed in the status of a node.
const MAX_REPORTED_PODS: usize = 64;

/// A selected pod and its fault.
#[derive(Debug)]
struct PodFault {
    pod: PodName,
    cgroup_uid: String,
    scope: Result<PodScope, ScopeError>,
    is_terminating: bool,
    state: PodState,
    message: Option<String>,
    /// When to start the fault, or to try again.
    retry_at: Instant,
    /// The number of failures in a row.
    failures: u32,
    /// The last refusal in the audit log.
    refusal: Option<String>,
    /// Whether faults that happen once begin with the next fault of the pod.
    is_once_new: bool,
    /// The last known state of its fault.
    fault: Option<Arc<Fault>>,
}

impl PodFault {
    /// A pod whose fault is due now.
    fn new(pod: &Pod, scope: Result<PodScope, ScopeError>) -> Self {
        let is_final = matches!(scope, Err(ScopeError::NoContainer { .. }));
        Self {
            pod: pod.name.clone(),
            cgroup_uid: pod.cgroup_uid.clone(),
            is_terminating: pod.is_terminating,
            state: if is_final { PodState::Failed } else { PodState::Waiting },
            message: scope.as_ref().err().map(ToString::to_string),
            scope,
            retry_at: Instant::now(),
            failures: 0,
            refusal: None,
            is_once_new: false,
            fault: None,
        }
    }

    fn is_due(&self) -> bool {
        self.fault.is_none()
            && self.scope.is_ok()
            && !self.is_terminating
            && !matches!(self.state, PodState::Stopped | PodState::Done)
            && self.retry_at <= Instant::now()
    }

    /// Tries again later.
    fn fail(&mut self, state: PodState, message: String) {
        (self.state, self.message) = (state, Some(message));
        let delay = MIN_RETRY_DELAY * 2u32.saturating_pow(self.failures);
        self.retry_at = Instant::now() + delay.min(MAX_RETRY_DELAY);
        self.failures = (self.failures + 1).min(16);
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
    /// The namespace of the resource, whose host names are looked up.
    tenant: String,
    /// The generation that this agent process has claimed in the resource's status.
    pub claimed: Option<i64>,
    /// The generation whose faults are running.
    generation: Option<i64>,
    /// Selected pods by UID.
    pods: BTreeMap<String, PodFault>,
    /// Totals of faults that have ended, including those of earlier agent processes.
    done: (u64, Counters),
    /// When the first pod fault started.
    pub started: Option<MicroTime>,
    /// The faults that happen once, and the pods by UID for which they have begun.
    once: (String, BTreeMap<String, PodOnce>),
    /// Whether the status has these pods.
    pub is_once_written: bool,
    /// Why host names are not known, if they are needed.
    unknown: Option<Unknown>,
    /// When the node's entry was last written.
    pub written: Option<Instant>,
    /// When the summary of all nodes was last written.
    pub summarized: Option<Instant>,
}

impl ResourceState {
    /// No faults yet; totals continue from the entry of an earlier agent process.
    pub fn new(origin: FaultSource, tenant: &str, before: Option<&NodeStatus>) -> Self {
        let once = before.and_then(|node| node.once.clone()).unwrap_or_default();
        let pods = once.pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        Self {
            origin,
            tenant: tenant.into(),
            once: (once.faults, pods),
            is_once_written: true,
            unknown: None,
            claimed: None,
            generation: None,
            pods: BTreeMap::new(),
            done: before.map(|node| (node.matched, node.counters)).unwrap_or_default(),
            started: before.and_then(|node| node.start_time.clone()),
            written: None,
            summarized: None,
        }
    }

    /// The namespace of the resource.
    pub fn namespace(&self) -> &str {
        &self.tenant
    }

    /// Whether no fault is active.
    pub fn is_idle(&self) -> bool {
        self.pods.values().all(|acting| acting.fault.is_none())
    }

    /// Sets the selected pods; ends the faults of all other pods and of earlier generations. Pods
    /// that are being deleted stay faulted until they end.
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
        let once = spec.processes.once().to_string();
        if once != self.once.0 {
            self.once = (once, BTreeMap::new());
        }
        let mut leaving: Vec<String> = Vec::new();
        for (uid, acting) in &mut self.pods {
            let Some(pod) = pods.iter().find(|pod| pod.uid == *uid) else {
                leaving.push(uid.clone());
                continue;
            };
            acting.is_terminating = pod.is_terminating;
            // A restarted container has the same name but another ID, hence another scope.
            if pod.scope(&spec.target) != acting.scope || pod.cgroup_uid != acting.cgroup_uid {
                leaving.push(uid.clone());
            }
        }
        for uid in leaving {
            self.end(agent, &uid).await;
        }
        for pod in pods.iter().filter(|pod| !pod.is_terminating) {
            self.pods
                .entry(pod.uid.clone())
                .or_insert_with(|| PodFault::new(pod, pod.scope(&spec.target)));
        }
    }

    /// Forgets what happened to pods that are not there any more.
    pub fn forget_pods(&mut self, is_there: impl Fn(&str) -> bool) {
        self.once.1.retain(|uid, _| is_there(uid));
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
            acting.retry_at = Instant::now() + MIN_RETRY_DELAY;
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
        self.note_sent();
        has_expired
    }

    /// Notes the kills that system calls have triggered.
    fn note_sent(&mut self) {
        for (uid, acting) in &self.pods {
            let processes = acting.fault.as_ref().and_then(|fault| fault.processes.as_ref());
            let (Some(processes), Some(once)) = (processes, self.once.1.get_mut(uid)) else {
                continue;
            };
            let is_sent = |kill: &&KillStatistics| kill.calls.is_some() && kill.sent > 0;
            for kill in processes.kills.iter().filter(is_sent) {
                if !once.sent.contains(&kill.name) {
                    once.sent.push(kill.name.clone());
                    self.is_once_written = false;
                }
            }
        }
    }

    /// Whether there are more pods to plan faults for.
    pub fn has_more(&self) -> bool {
        self.unknown.is_none() && self.pods.values().any(PodFault::is_due)
    }

    /// Whether look-ups have just begun, which are usually over in a moment.
    pub fn is_settling(&self) -> bool {
        self.unknown == Some(Unknown::Brief)
    }

    /// Resolves the targets of some of the pods that are due. Failures are noted in the pods'
    /// messages. What happens once is noted as begun.
    pub async fn plan(
        &mut self,
        lookups: &Lookups,
        spec: &FaultInjectionSpec,
        left: Duration,
        lease: Duration,
    ) -> Vec<(String, Plan)> {
        self.unknown = None;
        let due = self.pods.iter().filter(|(_, acting)| acting.is_due());
        let due: Vec<String> = due.take(MAX_STARTS).map(|(uid, _)| uid.clone()).collect();
        if due.is_empty() {
            return Vec::new();
        }
        let spec = FaultInjectionSpec {
            rules: spec.rules_with_peers(&self.tenant),
            peers: Vec::new(),
            ..spec.clone()
        };
        let known = match lookups.find(&self.tenant, &spec) {
            Ok(known) => known,
            Err(unknown) => {
                self.wait_for_names(&unknown);
                self.unknown = Some(unknown);
                return Vec::new();
            }
        };
        let mut plans = Vec::new();
        for uid in due {
            let Some(acting) = self.pods.get_mut(&uid) else { continue };
            let Ok(scope) = acting.scope.clone() else { continue };
            let processes = left_of(&spec.processes, self.once.1.get(&uid));
            let spec = FaultInjectionSpec { processes, ..spec.clone() };
            if spec.is_nothing() {
                acting.state = PodState::Done;
                acting.message = Some(format!("{} happened before", self.once.0));
                continue;
            }
            let name = self.origin.fault_name(&acting.pod, &uid);
            let wanted = Wanted { pod: acting.pod.clone(), uid: acting.cgroup_uid.clone(), scope };
            match resolve(&spec, name, wanted, &known, left, lease).await {
                Ok(plan) => {
                    acting.is_once_new = !self.once.0.is_empty() && !self.once.1.contains_key(&uid);
                    if acting.is_once_new {
                        let began = MicroTime(status::now());
                        let once = PodOnce { uid: uid.clone(), began, sent: Vec::new() };
                        self.once.1.insert(uid.clone(), once);
                        self.is_once_written = false;
                    }
                    plans.push((uid, plan));
                }
                Err(problem) => {
                    acting.state = PodState::Waiting;
                    acting.message = Some(problem.message);
                    acting.retry_at = Instant::now() + MIN_RETRY_DELAY;
                }
            }
        }
        plans
    }

    /// Drops plans that are not begun.
    pub fn abandon(&mut self, plans: &[(String, Plan)]) {
        for (uid, _) in plans {
            if self.pods.get(uid).is_some_and(|acting| acting.is_once_new) {
                self.once.1.remove(uid);
                self.is_once_written = false;
            }
        }
    }

    /// Notes in the messages of all pods that host names are not known.
    fn wait_for_names(&mut self, unknown: &Unknown) {
        let (state, message) = match unknown {
            Unknown::Brief => return,
            Unknown::Pending(message) => (PodState::Waiting, message),
            Unknown::Failed(message) => (PodState::Failed, message),
        };
        for acting in self.pods.values_mut().filter(|acting| acting.is_due()) {
            (acting.state, acting.message) = (state, Some(message.clone()));
        }
    }

    /// Starts the fault of a pod. Returns whether it acts.
    pub async fn begin(&mut self, agent: &Agent, uid: &str, mut plan: Plan) -> bool {
        let Some(acting) = self.pods.get_mut(uid) else { return false };
        let began = Instant::now();
        if let Some(whole) = &self.origin.part_of {
            plan.part_of = Some(whole.clone());
            (plan.terms.lasts, plan.terms.lease) = (None, None);
        }
        let mut subject = Subject { target: audit::in_short(&plan.spec), ..Subject::default() };
        subject.agree(&plan.terms);
        let created = agent.keeper.create(plan, self.origin.owner.clone()).await;
        let outcome = created.as_ref().map(|_| 201);
        let refusal = created.as_ref().err().map(|problem| problem.message.clone());
        // A refusal that is repeated is not logged again.
        if refusal.is_none() || refusal != acting.refusal {
            audit(agent, &self.origin, "POST", &subject, began, outcome);
        }
        acting.refusal = refusal;
        match created {
            Ok(fault) => {
                acting.state = PodState::Injecting;
                acting.message = None;
                acting.failures = 0;
                acting.fault = Some(fault);
                self.started.get_or_insert_with(|| MicroTime(status::now()));
                true
            }
            Err(problem) => {
                agent.board.count_problem(problem.error);
                let can_wait = matches!(problem.error, Code::Busy | Code::TooMany | Code::Conflict);
                let state = if can_wait { PodState::Waiting } else { PodState::Failed };
                acting.fail(state, problem.message);
                if acting.is_once_new {
                    self.once.1.remove(uid);
                    self.is_once_written = false;
                }
                false
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
        let uids: Vec<String> = self.pods.keys().cloned().collect();
        for uid in uids {
            let Some(mut acting) = self.pods.remove(&uid) else { continue };
            if let Some(fault) = acting.fault.take() {
                self.end_fault(agent, fault).await;
            }
            if !matches!(acting.state, PodState::Stopped | PodState::Done) {
                (acting.state, acting.message) = (PodState::Waiting, Some(why.into()));
            }
            self.pods.insert(uid, acting);
        }
    }

    async fn end(&mut self, agent: &Agent, uid: &str) {
        if let Some(fault) = self.pods.remove(uid).and_then(|acting| acting.fault) {
            self.end_fault(agent, fault).await;
        }
    }

    async fn end_fault(&mut self, agent: &Agent, fault: Arc<Fault>) {
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
                    .or_else(|| fault.and_then(Fault::unmatched_message))
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
        let state = final_state.unwrap_or(if is(PodState::Injecting) || is(PodState::Done) {
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
        let counted = || self.pods.values().filter(|acting| !acting.is_terminating);
        let is_faulted =
            |acting: &&PodFault| matches!(acting.state, PodState::Injecting | PodState::Done);
        let (faults, once) = &self.once;
        let once = (!once.is_empty())
            .then(|| Once { faults: faults.clone(), pods: once.values().cloned().collect() });
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
            injecting: counted().filter(is_faulted).count() as u64,
            selected: counted().count() as u64,
            once,
            message,
        }
    }
}

/// What remains of process faults for a pod.
fn left_of(processes: &ProcessSpec, once: Option<&PodOnce>) -> ProcessSpec {
    let Some(once) = once else { return processes.clone() };
    let elapsed = status::now().duration_since(once.began.0);
    // The clock may have been set back.
    let elapsed = Duration::try_from(elapsed).unwrap_or_default();
    processes.after(elapsed, &once.sent)
}

/// Where the addresses of peers come from.
pub struct Lookups {
    /// Host names.
    pub names: Names,
    /// Peers in the cluster.
    pub peers: ClusterPeers,
}

impl Lookups {
    /// The addresses of all peers of rules, if they are known.
    fn find(&self, tenant: &str, spec: &FaultInjectionSpec) -> Result<(Addresses, Feeds), Unknown> {
        let addresses = self.names.find(tenant, &names::of_rules(&spec.rules))?;
        let feeds = self.peers.find(&plan::cluster_peers(&spec.rules)).map_err(Unknown::Pending)?;
        Ok((addresses, feeds))
    }

    /// Waits until addresses have become known.
    pub async fn changed(&self) {
        tokio::select! {
            () = self.names.changed() => {}
            () = self.peers.changed() => {}
        }
    }
}

/// Adds peers in the cluster.
pub fn with_feeds(peers: Peers, feeds: &Feeds) -> Peers {
    for (peer, feed) in feeds {
        peers.add_feed(peer, feed);
    }
    peers
}

/// What to find on this machine.
struct Wanted {
    pod: PodName,
    uid: String,
    scope: PodScope,
}

async fn resolve(
    spec: &FaultInjectionSpec,
    name: String,
    wanted: Wanted,
    (addresses, feeds): &(Addresses, Feeds),
    left: Duration,
    lease: Duration,
) -> Result<Plan, Problem> {
    let Wanted { pod, uid, scope } = wanted;
    let protect = spec.target.protection();
    let target = TargetSpec { protect: spec.target.protect, ..TargetSpec::default() };
    let target = match &scope {
        PodScope::Whole => TargetSpec { pod: Some(pod.clone()), ..target },
        PodScope::Container(id) => {
            let process = spec.target.process.clone();
            TargetSpec { container: Some(id.clone()), process, ..target }
        }
    };
    let mut request = spec.request(name, target, left);
    request.lease = Some(HumanDuration(lease));
    let known = Peers::known(addresses, |name| search::names(name, &pod.namespace));
    let peers = with_feeds(known, feeds);
    let with_sandbox = spec.target.sandbox;
    let resolution = tokio::task::spawn_blocking(move || match scope {
        PodScope::Whole => {
            plan::plan_for(request, peers, protect, |_| Target::of_pod(&pod, &uid, with_sandbox))
        }
        PodScope::Container(_) => plan::plan_for(request, peers, protect, |target| {
            Target::resolve(target, protect.operator)
        }),
    });
    let late = || {
        Problem::new(
            Code::Busy,
            format!("finding the pod on this machine took longer than {RESOLVE_TIMEOUT:?}"),
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

//! Reconciles `FaultInjection` resources with the faults of this node.
//!
//! No tenant delays another: faults that are over end first, resources take turns by namespace, and
//! a turn neither looks up names nor starts more than a few faults.
//!
//! Before an agent faults a pod, it writes that into the status: no pod is faulted by an agent that
//! the status does not name, nor for a resource that was deleted or edited. Resources have no
//! finalizer, so that removing agents, permissions and definition in any order blocks nothing: an
//! agent that no longer sees a resource ends its faults, and one that sees nothing has leases that
//! expire.

use std::{
    collections::BTreeMap,
    future::{self, Future},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1 as core, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, Patch, PatchParams},
    core::Object,
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        watcher,
    },
};
use serde_json::{Value, json};
use tokio::{
    sync::watch as signal,
    time::{Instant, MissedTickBehavior},
};

use super::{
    Timeouts,
    crd::{FaultInjection, FaultInjectionSpec, FaultInjectionStatus, NodeState, NodeStatus},
    heartbeat::{Heartbeat, OtherNodes, RequestError, with_timeout},
    names::Names,
    peers::ClusterPeers,
    pods::{self, Pod},
    queue::Queue,
    reflector::{Change, Reflector},
    resource::{FaultSource, Lookups, OWNER, ResourceState},
    status::{self, Desired, differs, summarize},
};
use crate::{
    agent::{
        board::ended,
        plan::Plan,
        routes::{Agent, shutdown_requested},
    },
    spec::target::PodName,
    words::plural,
};

/// The field manager of the status that is common to all nodes.
const MANAGER: &str = "injector-agent";

/// The interval of periodic reconciliation.
const TICK: Duration = Duration::from_secs(1);

/// How long faults that are over are ended before a resource has its turn.
const SETTLE_TIME: Duration = Duration::from_millis(100);

/// The minimum interval of counter updates, and how long an agent waits for another one to write
/// the common status before it does so itself.
const MIN_UPDATE_INTERVAL: Duration = Duration::from_secs(3);

/// A resource as received: its specification is not validated.
type Resource = Object<Value, FaultInjectionStatus>;

/// A generation and its validated specification, or the error.
type Checked = (i64, Result<Arc<FaultInjectionSpec>, String>);

/// Watches resources and pods and reconciles them.
pub struct Reconciler {
    client: Client,
    kind: ApiResource,
    node: String,
    timeouts: Timeouts,
    agent: Arc<Agent>,
    heartbeat: Arc<Heartbeat>,
    others: OtherNodes,
    recorder: Recorder,
    faults: Reflector<Resource, Arc<Resource>>,
    pods: Reflector<core::Pod, Pod>,
    /// By the UIDs of resources.
    resources: BTreeMap<String, ResourceState>,
    checked: BTreeMap<String, Checked>,
    lookups: Lookups,
    /// Resources whose faults may be over.
    changed: Queue,
    /// Resources to reconcile.
    queue: Queue,
    /// Since when another agent should have written the common status, by UID.
    waiting: BTreeMap<String, Instant>,
    shutdown: signal::Receiver<bool>,
    is_leaving: bool,
}

impl Reconciler {
    /// Creates a reconciler that has made no request yet.
    pub fn new(
        client: Client,
        node: String,
        timeouts: Timeouts,
        agent: Arc<Agent>,
        heartbeat: Arc<Heartbeat>,
        peers: ClusterPeers,
        shutdown: signal::Receiver<bool>,
    ) -> Self {
        let kind = ApiResource::erase::<FaultInjection>(&());
        let faults = Api::all_with(client.clone(), &kind);
        let pods = Api::all(client.clone());
        let node_field_selector =
            watcher::Config::default().fields(&pods::node_field_selector(&node));
        let reporter =
            Reporter { controller: "injector.dev/agent".into(), instance: Some(node.clone()) };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            faults: Reflector::new(
                "fault injections",
                faults,
                watcher::Config::default(),
                |object| Some(object.into()),
            ),
            pods: Reflector::new("pods", pods, node_field_selector, Pod::from_api),
            others: OtherNodes::new(heartbeat.clone()),
            client,
            kind,
            node,
            timeouts,
            agent,
            heartbeat,
            resources: BTreeMap::new(),
            checked: BTreeMap::new(),
            lookups: Lookups { names: Names::default(), peers },
            changed: Queue::default(),
            queue: Queue::default(),
            waiting: BTreeMap::new(),
            shutdown,
            is_leaving: false,
        }
    }

    /// Runs until shutdown.
    pub async fn run(mut self) -> Self {
        let mut shutdown = self.shutdown.clone();
        let mut changes = self.agent.board.watch();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.agent.cluster.is_alive();
            // All events that have arrived come before the next turn.
            tokio::select! {
                biased;
                () = shutdown_requested(&mut shutdown) => break,
                change = self.faults.next() => self.queue_changed(change),
                _ = self.pods.next() => self.queue_all(),
                () = ended(&mut changes, |fault| fault.owner.starts_with(OWNER)) => self.queue_all(),
                () = self.lookups.changed() => self.queue_all(),
                _ = ticks.tick() => self.queue_all(),
                () = future::ready(()), if !self.queue.is_empty() => self.take_turn().await,
            }
        }
        self
    }

    /// Queues the resources that have changed. Others may follow from that, with the next tick.
    fn queue_changed(&mut self, change: Change) {
        match change {
            Change::Nothing => {}
            Change::All => self.queue_all(),
            Change::One(uid) => {
                let (Some(faults), Some(_)) = (self.faults.all(), self.pods.all()) else { return };
                let object = faults.get(&uid);
                let namespace = object.and_then(|object| object.metadata.namespace.as_deref());
                let state = self.resources.get(&uid);
                let namespace = namespace.or_else(|| Some(state?.namespace())).unwrap_or_default();
                self.changed.add(namespace, &uid);
                self.queue.add(namespace, &uid);
            }
        }
    }

    /// Queues all resources, once everything is known.
    fn queue_all(&mut self) {
        let (Some(faults), Some(_)) = (self.faults.all(), self.pods.all()) else { return };
        let known = faults.iter().map(|(uid, object)| {
            (object.metadata.namespace.as_deref().unwrap_or_default(), uid.as_str())
        });
        let gone = self.resources.iter().filter(|(uid, _)| !faults.contains_key(*uid));
        let gone = gone.map(|(uid, state)| (state.namespace(), uid.as_str()));
        for (namespace, uid) in known.chain(gone) {
            self.changed.add(namespace, uid);
            self.queue.add(namespace, uid);
        }
    }

    /// Ends faults that are over, and then reconciles one resource.
    async fn take_turn(&mut self) {
        let end = Instant::now() + SETTLE_TIME;
        while Instant::now() < end
            && let Some(uid) = self.changed.take()
        {
            self.settle(&uid).await;
        }
        let Some(uid) = self.queue.take() else { return };
        let Some(object) = self.faults.get(&uid).cloned() else { return self.settle(&uid).await };
        let name = name_of(&object);
        match self.reconcile(&uid, &object).await {
            Ok(()) => {}
            Err(error) if error.is_unexpected() => {
                tracing::warn!("cannot update the status of {name}: {error}");
            }
            Err(error) => tracing::debug!("{name}: {error}"),
        }
    }

    /// Ends the faults of a resource that are over: it was deleted or has ended, or pods are no longer
    /// selected.
    async fn settle(&mut self, uid: &str) {
        let Some(object) = self.faults.get(uid).cloned() else {
            if let Some(mut state) = self.resources.remove(uid) {
                state.end_all(&self.agent).await;
            }
            self.checked.remove(uid);
            self.waiting.remove(uid);
            return;
        };
        let (_, spec) = self.evaluate(uid, &object);
        let own = own(&object, &self.node);
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        if !self.resources.contains_key(uid) {
            let source = FaultSource::of_resource(&name_of(&object));
            self.resources.insert(uid.into(), ResourceState::new(source, namespace, own));
        }
        let Some(state) = self.resources.get_mut(uid) else { return };
        let is_marked_lost = own.is_some_and(|own| own.state == NodeState::Lost);
        if state.observe(&self.agent) || is_marked_lost {
            state.claimed = None;
        }
        let Some(spec) = spec else { return state.end_all(&self.agent).await };
        let Some(pods) = self.pods.all() else { return };
        let ambiguous = pods::ambiguous(pods.values());
        let selected: Vec<&Pod> = pods
            .values()
            .filter(|pod| pod.is_selected(namespace, &spec.target))
            .filter(|pod| !ambiguous.contains(&*pod.cgroup_uid))
            .collect();
        state.select(&self.agent, generation(&object), &selected, &spec).await;
        state.forget_pods(|uid| pods.contains_key(uid));
    }

    /// The desired state of a resource, with the specification if it is active.
    fn evaluate(
        &mut self,
        uid: &str,
        object: &Resource,
    ) -> (Desired, Option<Arc<FaultInjectionSpec>>) {
        if object.metadata.deletion_timestamp.is_some() {
            return (Desired::Deleted, None);
        }
        let status = object.status.as_ref();
        if status.is_some_and(|status| status.end_time.is_some()) {
            return (Desired::Expired, None);
        }
        let generation = generation(object);
        let known = self.checked.get(uid).filter(|(of, _)| *of == generation);
        let checked = known.map_or_else(
            || FaultInjectionSpec::check(&object.spec).map(Arc::new),
            |(_, checked)| checked.clone(),
        );
        self.checked.insert(uid.into(), (generation, checked.clone()));
        match checked {
            Err(message) => (Desired::Invalid(message), None),
            Ok(spec) => match self.start_time(uid, object) {
                Some(start) if left(&spec, &start).is_zero() => (Desired::Expired, None),
                _ => (Desired::Active, Some(spec)),
            },
        }
    }

    /// When the first pod was faulted, on any node.
    fn start_time(&self, uid: &str, object: &Resource) -> Option<MicroTime> {
        let own = self.resources.get(uid).and_then(|state| state.started.clone());
        object.status.as_ref().and_then(status::start_time).or(own)
    }

    async fn reconcile(&mut self, uid: &str, object: &Resource) -> Result<(), RequestError> {
        self.settle(uid).await;
        // While the API server is away, no claim can be written.
        if !self.heartbeat.is_connected() {
            return Ok(());
        }
        let (desired, spec) = self.evaluate(uid, object);
        if let Some(spec) = spec {
            let Some(state) = self.resources.get_mut(uid) else { return Ok(()) };
            let lease = self.timeouts.patience;
            let plans = state.plan(&self.lookups, &spec, spec.r#for.0, lease).await;
            // The end of the look-ups gives it another turn.
            if state.is_settling() && state.claimed.is_none() {
                return Ok(());
            }
            if !plans.is_empty() {
                match self.claim(uid, generation(object)).await {
                    Ok(true) => self.begin(uid, object, &spec, plans).await,
                    refused => {
                        if let Some(state) = self.resources.get_mut(uid) {
                            state.abandon(&plans);
                        }
                        refused?;
                    }
                }
            }
        }
        self.write(uid, &desired).await
    }

    /// Starts the faults of pods.
    async fn begin(
        &mut self,
        uid: &str,
        object: &Resource,
        spec: &FaultInjectionSpec,
        plans: Vec<(String, Plan)>,
    ) {
        for (pod, mut plan) in plans {
            let left =
                self.start_time(uid, object).map_or(spec.r#for.0, |start| left(spec, &start));
            if left.is_zero() {
                return;
            }
            plan.terms.lasts = Some(left);
            let faults = plan.terms.summary();
            let Some(state) = self.resources.get_mut(uid) else { return };
            if state.begin(&self.agent, &pod, plan).await {
                let note = format!(
                    "{faults} by faultinjection {} for {}",
                    name_of(object),
                    status::rounded(left)
                );
                self.publish_pod_event(&pod, &note);
            }
        }
        // The rest has another turn after the resources of other namespaces.
        if self.resources.get(uid).is_some_and(ResourceState::has_more) {
            self.queue.add(object.metadata.namespace.as_deref().unwrap_or_default(), uid);
        }
    }

    /// Writes into the status that this node is about to fault pods. Returns whether it may: the
    /// resource is still there, unchanged.
    async fn claim(&mut self, uid: &str, generation: i64) -> Result<bool, RequestError> {
        let (Some(object), Some(state)) = (self.faults.get(uid).cloned(), self.resources.get(uid))
        else {
            return Ok(false);
        };
        if state.claimed == Some(generation) && state.is_once_written {
            return Ok(true);
        }
        let is_first = state.claimed != Some(generation);
        let entry = state.status(&self.node, generation, is_first.then_some(NodeState::Starting));
        let object = self.write_entry(uid, &object, entry).await?;
        let is_over = object.status.as_ref().is_some_and(|status| status.end_time.is_some());
        let is_claimed = object.metadata.deletion_timestamp.is_none()
            && self::generation(&object) == generation
            && !is_over;
        if let Some(state) = self.resources.get_mut(uid) {
            state.claimed = is_claimed.then_some(generation);
        }
        Ok(is_claimed)
    }

    /// Writes the entry of this node and the summary of all nodes.
    async fn write(&mut self, uid: &str, desired: &Desired) -> Result<(), RequestError> {
        let (Some(mut object), Some(state)) =
            (self.faults.get(uid).cloned(), self.resources.get(uid))
        else {
            return Ok(());
        };
        let before = own(&object, &self.node);
        let final_state =
            desired.final_state().or_else(|| self.is_leaving.then_some(NodeState::Stopped));
        let final_state = final_state.filter(|_| state.is_idle());
        let mut entry = state.status(&self.node, generation(&object), final_state);
        if final_state == Some(NodeState::Ended) && entry.start_time.is_none() {
            entry.message = before.and_then(|before| before.message.clone());
        }
        // The entry of the last generation stays after the end.
        if final_state == Some(NodeState::Ended) {
            entry.generation = before.and_then(|before| before.generation);
        }
        let needs_write = match before {
            None => !matches!(entry.state, NodeState::Idle | NodeState::Ended | NodeState::Stopped),
            Some(before) if self.is_leaving => before.holds(),
            Some(before) => {
                has_changed(before, &entry)
                    || !state.is_once_written
                    || (*before != entry && is_due(state))
            }
        };
        if needs_write {
            object = self.write_entry(uid, &object, entry).await?;
        }
        self.mark_lost(desired, &mut object).await?;
        self.write_summary(uid, desired, object).await
    }

    /// Marks nodes whose agents are lost. Each agent monitors one other node.
    async fn mark_lost(
        &mut self,
        desired: &Desired,
        object: &mut Arc<Resource>,
    ) -> Result<(), RequestError> {
        let status = object.status.clone().unwrap_or_default();
        let mut holders: Vec<&str> =
            status.nodes.iter().filter(|node| node.holds()).map(|node| &*node.node).collect();
        holders.sort_unstable();
        let monitored: Vec<&str> = if *desired == Desired::Active {
            let place = holders.iter().position(|node| *node == self.node);
            let last = holders.len().saturating_sub(1);
            let before = place.map(|place| holders[place.checked_sub(1).unwrap_or(last)]);
            before.into_iter().collect()
        } else {
            holders
        };
        let monitored = monitored.into_iter().filter(|node| *node != self.node);
        let monitored: Vec<String> = monitored.map(Into::into).collect();
        for node in monitored {
            if self.is_leaving || !self.others.is_lost(&node).await {
                continue;
            }
            // Exactly the fields that its agent applies each time: a returning agent overrides them.
            let state = json!({
                "node": node, "state": NodeState::Lost, "injecting": 0, "selected": 0, "pods": [],
            });
            // A field manager for each node: applying one node's entry must not remove another's.
            *object = self.apply_node(object, &format!("injector-lost/{node}"), &state).await?;
            self.faults.replace(Resource::clone(object));
            tracing::warn!("{}: the agent of node {node} is lost", name_of(object));
        }
        Ok(())
    }

    async fn write_summary(
        &mut self,
        uid: &str,
        desired: &Desired,
        object: Arc<Resource>,
    ) -> Result<(), RequestError> {
        let old = object.status.clone().unwrap_or_default();
        let new = summarize(&old, generation(&object), desired, status::now());
        let is_different = differs(&old, &new);
        let state = self.resources.get_mut(uid);
        let is_due = state.is_some_and(|state| {
            state.summarized.is_none_or(|at| at.elapsed() >= MIN_UPDATE_INTERVAL)
        });
        let has_changed = FaultInjectionStatus { nodes: Vec::new(), ..old.clone() } != new;
        let needs_write = is_different || (has_changed && is_due);
        if !needs_write {
            self.waiting.remove(uid);
            return Ok(());
        }
        if !self.is_turn(uid, &old) {
            return Ok(());
        }
        let status = serde_json::to_value(&new).unwrap_or_default();
        let written = self.patch_status(&object, status).await?;
        if let Some(state) = self.resources.get_mut(uid) {
            state.summarized = Some(Instant::now());
        }
        if let Desired::Invalid(message) = desired
            && old.reason != new.reason
        {
            self.publish(&written, EventType::Warning, "Invalid", message);
        }
        self.waiting.remove(uid);
        Ok(())
    }

    /// Whether this agent should write the common status: the first node with faults does, or any
    /// node if that one has not for [`MIN_UPDATE_INTERVAL`].
    fn is_turn(&mut self, uid: &str, status: &FaultInjectionStatus) -> bool {
        let names = |holds: bool| {
            let nodes = status.nodes.iter().filter(move |node| {
                !matches!(node.state, NodeState::Lost | NodeState::Stopped)
                    && (node.holds() || !holds)
            });
            nodes.map(|node| &*node.node).min()
        };
        let first = names(true).or_else(|| names(false));
        if self.is_leaving || first.is_none_or(|first| first == self.node) {
            return true;
        }
        self.waiting.entry(uid.into()).or_insert_with(Instant::now).elapsed() >= MIN_UPDATE_INTERVAL
    }

    /// Ends all faults that resources requested.
    pub async fn end_all(&mut self) {
        self.is_leaving = true;
        for state in self.resources.values_mut() {
            state.end_all(&self.agent).await;
        }
    }

    /// Writes the final status of this node.
    pub async fn deregister(&mut self) {
        let uids: Vec<String> = self.resources.keys().cloned().collect();
        for uid in uids {
            let Some(object) = self.faults.get(&uid).cloned() else { continue };
            let (desired, _) = self.evaluate(&uid, &object);
            if let Err(error) = self.write(&uid, &desired).await {
                tracing::warn!("cannot update the status of {}: {error}", name_of(&object));
            }
        }
    }

    /// Writes the status entry of this node.
    async fn write_entry(
        &mut self,
        uid: &str,
        object: &Arc<Resource>,
        entry: NodeStatus,
    ) -> Result<Arc<Resource>, RequestError> {
        let before = own(object, &self.node).map(|before| before.state);
        let value = serde_json::to_value(&entry).unwrap_or_default();
        let manager = format!("injector-agent/{}", self.node);
        let written = self.apply_node(object, &manager, &value).await?;
        self.faults.replace(Resource::clone(&written));
        if let Some(state) = self.resources.get_mut(uid) {
            if !entry.holds() {
                state.claimed = None;
            }
            state.written = Some(Instant::now());
            state.is_once_written = true;
        }
        if before != Some(entry.state) {
            self.publish_event(&written, &entry);
        }
        Ok(written)
    }

    async fn apply_node(
        &mut self,
        object: &Resource,
        manager: &str,
        entry: &Value,
    ) -> Result<Arc<Resource>, RequestError> {
        let patch = json!({
            "apiVersion": self.kind.api_version,
            "kind": self.kind.kind,
            // The UID: a recreated resource of this name must not match.
            "metadata": {"name": object.name_any(), "uid": object.metadata.uid},
            "status": {"nodes": [entry]},
        });
        let params = PatchParams::apply(&manager.chars().take(128).collect::<String>()).force();
        let (api, name) = (self.api(object), object.name_any());
        self.request(api.patch_status(&name, &params, &Patch::Apply(patch))).await.map(Arc::new)
    }

    /// Patches the status if the object is still at the known version.
    async fn patch_status(
        &mut self,
        object: &Resource,
        status: Value,
    ) -> Result<Arc<Resource>, RequestError> {
        let version = object.resource_version();
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let (api, name) = (self.api(object), object.name_any());
        let written = self.request(api.patch_status(&name, &params, &Patch::Merge(patch))).await?;
        self.faults.replace(written.clone());
        Ok(written.into())
    }

    fn api(&self, object: &Resource) -> Api<Resource> {
        let namespace = object.namespace().unwrap_or_default();
        Api::namespaced_with(self.client.clone(), &namespace, &self.kind)
    }

    /// Waits for an answer of the API server; shutdown aborts it, since ending faults comes first.
    async fn request<T>(
        &mut self,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, RequestError> {
        self.agent.cluster.is_alive();
        let answer = with_timeout(self.timeouts.request(), answer);
        if self.is_leaving {
            return answer.await;
        }
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            answer = answer => answer,
            () = shutdown_requested(&mut shutdown) => Err(RequestError::TimedOut(Duration::ZERO)),
        }
    }

    /// Publishes an event about this node.
    fn publish_event(&self, object: &Resource, entry: &NodeStatus) {
        let is_warning = matches!(entry.state, NodeState::Failed | NodeState::Lost);
        let what = match entry.state {
            NodeState::Injecting => {
                format!("faults active in {}", plural(entry.injecting, "pod"))
            }
            NodeState::Ended | NodeState::Stopped => status::matches(entry.matched, entry.counters),
            NodeState::Waiting | NodeState::Failed => entry.message.clone().unwrap_or_default(),
            NodeState::Idle | NodeState::Starting | NodeState::Lost => return,
        };
        let type_ = if is_warning { EventType::Warning } else { EventType::Normal };
        let note = format!("node {}: {what}", entry.node);
        self.publish(object, type_, &format!("{:?}", entry.state), &note);
    }

    /// Publishes an event about a pod that is faulted.
    fn publish_pod_event(&self, uid: &str, note: &str) {
        let Some(pod) = self.pods.get(uid) else { return };
        let reference = core::ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.name.namespace.clone()),
            name: Some(pod.name.name.clone()),
            uid: Some(uid.into()),
            ..core::ObjectReference::default()
        };
        self.publish_about(reference, EventType::Normal, "FaultInjected", note);
    }

    fn publish(&self, object: &Resource, type_: EventType, reason: &str, note: &str) {
        let reference = kube::Resource::object_ref(object, &self.kind);
        self.publish_about(reference, type_, reason, note);
    }

    /// Publishes an event, best effort.
    fn publish_about(
        &self,
        reference: core::ObjectReference,
        type_: EventType,
        reason: &str,
        note: &str,
    ) {
        let (recorder, timeouts) = (self.recorder.clone(), self.timeouts);
        let event = Event {
            type_,
            reason: reason.into(),
            note: Some(note.chars().take(1000).collect()),
            action: "Fault".into(),
            secondary: None,
        };
        tokio::spawn(async move {
            if let Err(error) =
                with_timeout(timeouts.request(), recorder.publish(&event, &reference)).await
            {
                tracing::debug!(%error, "cannot publish an event");
            }
        });
    }
}

fn name_of(object: &Resource) -> PodName {
    PodName { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
}

fn generation(object: &Resource) -> i64 {
    object.metadata.generation.unwrap_or_default()
}

fn own<'a>(object: &'a Resource, node: &str) -> Option<&'a NodeStatus> {
    object.status.as_ref()?.nodes.iter().find(|entry| entry.node == node)
}

/// The remaining duration of a fault; 0 if it is over.
fn left(spec: &FaultInjectionSpec, start: &MicroTime) -> Duration {
    let elapsed = Timestamp::now().duration_since(start.0);
    // The clock of the node that wrote the start time may be ahead.
    let elapsed = Duration::try_from(elapsed).unwrap_or_default();
    spec.r#for.0.saturating_sub(elapsed)
}

/// Whether entries differ in more than their counters.
fn has_changed(old: &NodeStatus, new: &NodeStatus) -> bool {
    let facts = |entry: &NodeStatus| {
        let NodeStatus { state, generation, start_time, injecting, selected, message, .. } =
            entry.clone();
        let pods = entry.pods.iter().map(|pod| (pod.name.clone(), pod.state, pod.message.clone()));
        (state, generation, start_time, injecting, selected, message, pods.collect::<Vec<_>>())
    };
    facts(old) != facts(new)
}

fn is_due(state: &ResourceState) -> bool {
    state.written.is_none_or(|at| at.elapsed() >= MIN_UPDATE_INTERVAL)
}

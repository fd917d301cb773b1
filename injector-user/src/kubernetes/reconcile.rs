//! What is asked for and what there is, compared and made the same, again and again.
//!
//! Before an agent faults a pod for a resource, it has written into the resource's status that it may: whoever removes
//! the finalizer has seen all who may. What each step needs of the object is checked by its version, so that of several
//! agents one does it, and the others see that.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

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
    Times,
    crd::{FaultInjection, FaultInjectionSpec, FaultInjectionStatus, NodeState, NodeStatus},
    pods::{self, Pod},
    presence::{Others, Presence, Unanswered, within},
    status::{self, Verdict, differs, sum_up},
    watch::Watched,
    work::{OWNER, Origin, Work},
};
use crate::{
    agent::{
        board::ended,
        routes::{Agent, over},
    },
    spec::target::PodName,
};

/// Keeps a resource until no agent acts for it.
const FINALIZER: &str = "injector.dev/agents";

/// By whom what is common to all nodes is written.
const MANAGER: &str = "injector-agent";

/// How often to look whether something is due.
const TICK: Duration = Duration::from_secs(1);

/// Numbers are written no more often than that. What is another agent's turn is done so much later if it is not done.
const SELDOM: Duration = Duration::from_secs(3);

/// A resource as it comes: its specification may be wrong.
type Resource = Object<Value, FaultInjectionStatus>;

/// A generation, and its specification or what is wrong with it.
type Checked = (i64, Result<Arc<FaultInjectionSpec>, String>);

/// Compares and acts.
pub struct Reconciler {
    client: Client,
    kind: ApiResource,
    node: String,
    times: Times,
    agent: Arc<Agent>,
    presence: Arc<Presence>,
    others: Others,
    recorder: Recorder,
    faults: Watched<Resource, Arc<Resource>>,
    pods: Watched<core::Pod, Pod>,
    /// By the unique IDs of resources.
    works: BTreeMap<String, Work>,
    checked: BTreeMap<String, Checked>,
    /// Since when something is another agent's turn.
    waiting: BTreeMap<String, Instant>,
    ends: signal::Receiver<bool>,
    is_leaving: bool,
}

impl Reconciler {
    /// Nothing is asked yet.
    pub fn new(
        client: Client,
        node: String,
        times: Times,
        agent: Arc<Agent>,
        presence: Arc<Presence>,
        ends: signal::Receiver<bool>,
    ) -> Self {
        let kind = ApiResource::erase::<FaultInjection>(&());
        let faults = Api::all_with(client.clone(), &kind);
        let pods = Api::all(client.clone());
        let of_node = watcher::Config::default().fields(&pods::of_node(&node));
        let reporter =
            Reporter { controller: "injector.dev/agent".into(), instance: Some(node.clone()) };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            faults: Watched::new(
                "fault injections",
                faults,
                watcher::Config::default(),
                |object| Some(object.into()),
            ),
            pods: Watched::new("pods", pods, of_node, Pod::of),
            others: Others::new(presence.clone()),
            client,
            kind,
            node,
            times,
            agent,
            presence,
            works: BTreeMap::new(),
            checked: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ends,
            is_leaving: false,
        }
    }

    /// Goes on until the agent ends.
    pub async fn run(mut self) -> Self {
        let mut ends = self.ends.clone();
        let mut changes = self.agent.board.watch();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = over(&mut ends) => break,
                () = self.faults.next() => {}
                () = self.pods.next() => {}
                () = ended(&mut changes, |fault| fault.owner.starts_with(OWNER)) => {}
                _ = ticks.tick() => {}
            }
            self.reconcile_all().await;
        }
        self
    }

    async fn reconcile_all(&mut self) {
        let (Some(faults), Some(_)) = (self.faults.all(), self.pods.all()) else { return };
        let uids: Vec<String> = faults.keys().cloned().collect();
        let gone: Vec<String> =
            self.works.keys().filter(|uid| !faults.contains_key(*uid)).cloned().collect();
        for uid in gone {
            if let Some(mut work) = self.works.remove(&uid) {
                work.end_all(&self.agent).await;
            }
            self.checked.remove(&uid);
            self.waiting.remove(&uid);
        }
        for uid in uids {
            if *self.ends.borrow() {
                return;
            }
            let Some(object) = self.faults.get(&uid).cloned() else { continue };
            let name = name_of(&object);
            match self.reconcile(&uid, &object).await {
                Ok(()) => {}
                Err(error) if error.is_trouble() => {
                    tracing::warn!("cannot write what becomes of {name}: {error}");
                }
                Err(error) => tracing::debug!("{name}: {error}"),
            }
        }
    }

    /// What is to become of a resource; if pods are to be faulted, how, and for how long.
    fn judge(
        &mut self,
        uid: &str,
        object: &Resource,
    ) -> (Verdict, Option<Arc<FaultInjectionSpec>>) {
        if object.metadata.deletion_timestamp.is_some() {
            return (Verdict::Deleted, None);
        }
        let status = object.status.as_ref();
        if status.is_some_and(|status| status.end_time.is_some()) {
            return (Verdict::Over, None);
        }
        let generation = generation(object);
        let known = self.checked.get(uid).filter(|(of, _)| *of == generation);
        let checked = known.map_or_else(
            || FaultInjectionSpec::check(&object.spec).map(Arc::new),
            |(_, checked)| checked.clone(),
        );
        self.checked.insert(uid.into(), (generation, checked.clone()));
        match checked {
            Err(message) => (Verdict::Invalid(message), None),
            Ok(spec) => match status.and_then(|status| status.start_time.as_ref()) {
                Some(start) if left(&spec, start).is_none() => (Verdict::Over, None),
                _ => (Verdict::Acts, Some(spec)),
            },
        }
    }

    async fn reconcile(&mut self, uid: &str, object: &Resource) -> Result<(), Unanswered> {
        let (verdict, spec) = self.judge(uid, object);
        let own = own(object, &self.node);
        if !self.works.contains_key(uid) {
            let work = Work::new(Origin::of_resource(&name_of(object)), own);
            self.works.insert(uid.into(), work);
        }
        let Some(work) = self.works.get_mut(uid) else { return Ok(()) };
        let is_taken_for_lost = own.is_some_and(|own| own.state == NodeState::Lost);
        if work.observe(&self.agent) || is_taken_for_lost {
            work.claimed = None;
        }
        let generation = generation(object);
        let mut plans = Vec::new();
        match &spec {
            Some(spec) => {
                let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                let pods = self.pods.all().into_iter().flat_map(BTreeMap::values);
                let selected: Vec<&Pod> =
                    pods.filter(|pod| pod.is_selected(namespace, &spec.target)).collect();
                work.select(&self.agent, generation, &selected, spec).await;
                if self.presence.is_fresh() {
                    plans = work.plan(spec, spec.r#for.0, self.times.patience).await;
                }
            }
            None => work.end_all(&self.agent).await,
        }
        // What cannot be written is not tried.
        if !self.presence.is_fresh() {
            return Ok(());
        }
        if let Some(spec) = spec.filter(|_| !plans.is_empty())
            && let Some(start) = self.claim(uid, generation).await?
        {
            for (pod, mut plan) in plans {
                let Some(left) = left(&spec, &start) else { break };
                plan.terms.lasts = Some(left);
                let Some(work) = self.works.get_mut(uid) else { break };
                work.begin(&self.agent, &pod, plan).await;
            }
        }
        self.write(uid, &verdict).await
    }

    /// Has it written down that pods may be faulted; returns when the fault began, if they may.
    async fn claim(&mut self, uid: &str, generation: i64) -> Result<Option<MicroTime>, Unanswered> {
        let Some(mut object) = self.faults.get(uid).cloned() else { return Ok(None) };
        if !has_finalizer(&object) {
            let mut finalizers = object.finalizers().to_vec();
            finalizers.push(FINALIZER.into());
            object = self.set_finalizers(&object, &finalizers).await?;
        }
        let has_begun = object.status.as_ref().is_some_and(|status| status.start_time.is_some());
        if !has_begun {
            let begun = json!({"startTime": MicroTime(status::now())});
            object = self.patch_status(&object, begun).await?;
        }
        let Some(work) = self.works.get(uid) else { return Ok(None) };
        if work.claimed != Some(generation) {
            let entry = work.status(&self.node, generation, Some(NodeState::Starting));
            object = self.write_entry(uid, &object, entry).await?;
        }
        let status = object.status.clone().unwrap_or_default();
        let may = object.metadata.deletion_timestamp.is_none()
            && self::generation(&object) == generation
            && status.end_time.is_none();
        if let Some(work) = self.works.get_mut(uid) {
            work.claimed = may.then_some(generation);
        }
        Ok(status.start_time.filter(|_| may))
    }

    /// Writes down what this node does, and what becomes of the whole.
    async fn write(&mut self, uid: &str, verdict: &Verdict) -> Result<(), Unanswered> {
        let (Some(mut object), Some(work)) = (self.faults.get(uid).cloned(), self.works.get(uid))
        else {
            return Ok(());
        };
        let before = own(&object, &self.node);
        let over = verdict.over().or_else(|| self.is_leaving.then_some(NodeState::Stopped));
        let over = over.filter(|_| work.is_idle());
        let mut entry = work.status(&self.node, generation(&object), over);
        if over == Some(NodeState::Ended) && entry.start_time.is_none() {
            entry.message = before.and_then(|before| before.message.clone());
        }
        // What has been said of the last generation stays so after the end.
        if over == Some(NodeState::Ended) {
            entry.generation = before.and_then(|before| before.generation);
        }
        let is_worth_it = match before {
            None => !matches!(entry.state, NodeState::Idle | NodeState::Ended | NodeState::Stopped),
            Some(before) if self.is_leaving => before.holds(),
            Some(before) => is_news(before, &entry) || (*before != entry && is_due(work)),
        };
        if is_worth_it {
            object = self.write_entry(uid, &object, entry).await?;
        }
        self.mark_lost(verdict, &mut object).await?;
        self.write_summary(uid, verdict, object).await
    }

    /// Takes nodes whose agents are gone for what they are. Each agent looks after one other; when the end is waited
    /// for, after all.
    async fn mark_lost(
        &mut self,
        verdict: &Verdict,
        object: &mut Arc<Resource>,
    ) -> Result<(), Unanswered> {
        let status = object.status.clone().unwrap_or_default();
        let mut holders: Vec<&str> =
            status.nodes.iter().filter(|node| node.holds()).map(|node| &*node.node).collect();
        holders.sort_unstable();
        let looked_after: Vec<&str> = if *verdict == Verdict::Acts {
            let place = holders.iter().position(|node| *node == self.node);
            let last = holders.len().saturating_sub(1);
            let before = place.map(|place| holders[place.checked_sub(1).unwrap_or(last)]);
            before.into_iter().collect()
        } else {
            holders
        };
        let looked_after = looked_after.into_iter().filter(|node| *node != self.node);
        let looked_after: Vec<String> = looked_after.map(Into::into).collect();
        for node in looked_after {
            if self.is_leaving || !self.others.is_lost(&node).await {
                continue;
            }
            // All that its agent says each time, and nothing else: that takes it back when it comes back.
            let state = json!({"node": node, "state": NodeState::Lost, "injecting": 0, "pods": []});
            // As if by one for each, so that what is said of one node is not taken back with another.
            *object = self.apply_node(object, &format!("injector-lost/{node}"), &state).await?;
            self.faults.replace(Resource::clone(object));
            tracing::warn!("{}: the agent of node {node} is gone", name_of(object));
        }
        Ok(())
    }

    async fn write_summary(
        &mut self,
        uid: &str,
        verdict: &Verdict,
        mut object: Arc<Resource>,
    ) -> Result<(), Unanswered> {
        let old = object.status.clone().unwrap_or_default();
        let new = sum_up(&old, generation(&object), verdict, status::now());
        let is_held = old.nodes.iter().any(NodeStatus::holds);
        let is_finished =
            has_finalizer(&object) && !is_held && (self.is_leaving || *verdict != Verdict::Acts);
        let is_different = differs(&old, &new);
        let work = self.works.get_mut(uid);
        let is_due =
            work.is_some_and(|work| work.summed_up.is_none_or(|at| at.elapsed() >= SELDOM));
        let is_news = FaultInjectionStatus { nodes: Vec::new(), ..old.clone() } != new;
        let is_to_do = is_different || is_finished || (is_news && is_due);
        if !is_to_do {
            self.waiting.remove(uid);
            return Ok(());
        }
        if !self.is_turn(uid, &old) {
            return Ok(());
        }
        if is_different || (is_news && is_due) {
            let status = serde_json::to_value(&new).unwrap_or_default();
            object = self.patch_status(&object, status).await?;
            if let Some(work) = self.works.get_mut(uid) {
                work.summed_up = Some(Instant::now());
            }
        }
        if is_finished {
            let others = object.finalizers().iter().filter(|name| *name != FINALIZER);
            let others: Vec<String> = others.cloned().collect();
            self.set_finalizers(&object, &others).await?;
        }
        self.waiting.remove(uid);
        Ok(())
    }

    /// Whether it is for this agent to write what is of all nodes: it is for the first that acts, or did. If that one
    /// does not, after a while, it is for any.
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
        self.waiting.entry(uid.into()).or_insert_with(Instant::now).elapsed() >= SELDOM
    }

    /// Ends all faults of the cluster.
    pub async fn end_all(&mut self) {
        self.is_leaving = true;
        for work in self.works.values_mut() {
            work.end_all(&self.agent).await;
        }
    }

    /// Writes down that this node does nothing any more.
    pub async fn take_leave(&mut self) {
        let uids: Vec<String> = self.works.keys().cloned().collect();
        for uid in uids {
            let Some(object) = self.faults.get(&uid).cloned() else { continue };
            let (verdict, _) = self.judge(&uid, &object);
            if let Err(error) = self.write(&uid, &verdict).await {
                tracing::warn!("cannot write what became of {}: {error}", name_of(&object));
            }
        }
    }

    /// Writes the entry of this node, and that of no other.
    async fn write_entry(
        &mut self,
        uid: &str,
        object: &Arc<Resource>,
        entry: NodeStatus,
    ) -> Result<Arc<Resource>, Unanswered> {
        let before = own(object, &self.node).map(|before| before.state);
        let value = serde_json::to_value(&entry).unwrap_or_default();
        let manager = format!("injector-agent/{}", self.node);
        let written = self.apply_node(object, &manager, &value).await?;
        self.faults.replace(Resource::clone(&written));
        if let Some(work) = self.works.get_mut(uid) {
            if !entry.holds() {
                work.claimed = None;
            }
            work.written = Some(Instant::now());
        }
        if before != Some(entry.state) {
            self.tell(&written, &entry);
        }
        Ok(written)
    }

    async fn apply_node(
        &mut self,
        object: &Resource,
        manager: &str,
        entry: &Value,
    ) -> Result<Arc<Resource>, Unanswered> {
        let patch = json!({
            "apiVersion": self.kind.api_version,
            "kind": self.kind.kind,
            // The unique ID: another resource of this name is none of it.
            "metadata": {"name": object.name_any(), "uid": object.metadata.uid},
            "status": {"nodes": [entry]},
        });
        let params = PatchParams::apply(&manager.chars().take(128).collect::<String>()).force();
        let (api, name) = (self.api(object), object.name_any());
        self.ask(api.patch_status(&name, &params, &Patch::Apply(patch))).await.map(Arc::new)
    }

    /// Changes the status of an object that is still as it is known.
    async fn patch_status(
        &mut self,
        object: &Resource,
        status: Value,
    ) -> Result<Arc<Resource>, Unanswered> {
        let version = object.resource_version();
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let (api, name) = (self.api(object), object.name_any());
        let written = self.ask(api.patch_status(&name, &params, &Patch::Merge(patch))).await?;
        self.faults.replace(written.clone());
        Ok(written.into())
    }

    async fn set_finalizers(
        &mut self,
        object: &Resource,
        finalizers: &[String],
    ) -> Result<Arc<Resource>, Unanswered> {
        let version = object.resource_version();
        let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let (api, name) = (self.api(object), object.name_any());
        let written = self.ask(api.patch(&name, &params, &Patch::Merge(patch))).await?;
        self.faults.replace(written.clone());
        Ok(written.into())
    }

    fn api(&self, object: &Resource) -> Api<Resource> {
        let namespace = object.namespace().unwrap_or_default();
        Api::namespaced_with(self.client.clone(), &namespace, &self.kind)
    }

    /// Waits for an answer of the API server, but not when the agent is to end; then faults come first.
    async fn ask<T>(
        &mut self,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Unanswered> {
        let answer = within(self.times.answer(), answer);
        if self.is_leaving {
            return answer.await;
        }
        let mut ends = self.ends.clone();
        tokio::select! {
            answer = answer => answer,
            () = over(&mut ends) => Err(Unanswered::Late(Duration::ZERO)),
        }
    }

    /// Has an event say what this node does. Nothing depends on it.
    fn tell(&self, object: &Resource, entry: &NodeStatus) {
        let is_trouble = matches!(entry.state, NodeState::Failed | NodeState::Lost);
        let what = match entry.state {
            NodeState::Injecting => format!("{} pods are faulted", entry.injecting),
            NodeState::Ended | NodeState::Stopped => {
                format!("{} packets were matched", entry.matched)
            }
            NodeState::Waiting | NodeState::Failed => entry.message.clone().unwrap_or_default(),
            NodeState::Idle | NodeState::Starting | NodeState::Lost => return,
        };
        let reference = kube::Resource::object_ref(object, &self.kind);
        let (recorder, times) = (self.recorder.clone(), self.times);
        let event = Event {
            type_: if is_trouble { EventType::Warning } else { EventType::Normal },
            reason: format!("{:?}", entry.state),
            note: Some(format!("node {}: {what}", entry.node).chars().take(1000).collect()),
            action: "Fault".into(),
            secondary: None,
        };
        tokio::spawn(async move {
            if let Err(error) = within(times.answer(), recorder.publish(&event, &reference)).await {
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

fn has_finalizer(object: &Resource) -> bool {
    object.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

fn own<'a>(object: &'a Resource, node: &str) -> Option<&'a NodeStatus> {
    object.status.as_ref()?.nodes.iter().find(|entry| entry.node == node)
}

/// How much is left of the time of a fault, if something is.
fn left(spec: &FaultInjectionSpec, start: &MicroTime) -> Option<Duration> {
    let gone = Timestamp::now().duration_since(start.0);
    // The clock of who wrote it may be ahead.
    let gone = Duration::try_from(gone).unwrap_or_default();
    spec.r#for.0.checked_sub(gone).filter(|left| !left.is_zero())
}

/// Whether entries differ in more than numbers that grow.
fn is_news(old: &NodeStatus, new: &NodeStatus) -> bool {
    let facts = |entry: &NodeStatus| {
        let NodeStatus { state, generation, start_time, injecting, message, .. } = entry.clone();
        let pods = entry.pods.iter().map(|pod| (pod.name.clone(), pod.state, pod.message.clone()));
        (state, generation, start_time, injecting, message, pods.collect::<Vec<_>>())
    };
    facts(old) != facts(new)
}

fn is_due(work: &Work) -> bool {
    work.written.is_none_or(|at| at.elapsed() >= SELDOM)
}

//! Faults of pods by labels, requested through the agent's own API. A task for each such fault
//! keeps one part of it on every selected pod of this node.
//!
//! Only the API server interprets the selector, so it means what it means for kubectl.

use std::{future, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client, api::ListParams, runtime::watcher};
use tokio::{
    sync::{mpsc, oneshot, watch as signal},
    time::MissedTickBehavior,
};

use super::{
    Timeouts,
    crd::{FaultInjectionSpec, PodTarget},
    heartbeat::{Heartbeat, RequestError, with_timeout},
    names::Names,
    peers::ClusterPeers,
    pods::{self, Pod},
    reflector::Reflector,
    resource::{FaultSource, Lookups, ResourceState, with_feeds},
};
use crate::{
    agent::{
        MAX_LIFE,
        api::{Code, Fault, FaultRequest, Phase, Problem},
        board::ended,
        plan::Selection,
        routes::{Agent, shutdown_requested},
        selection::Order,
    },
    spec::{target::PodSelection, value::HumanDuration},
    target::peers::Peers,
};

/// The interval of periodic reconciliation.
const TICK: Duration = Duration::from_secs(1);

/// Where to send a new fault.
type Reply = oneshot::Sender<Result<Arc<Fault>, Problem>>;

/// The service for faults by labels.
#[derive(Clone)]
pub struct Selections {
    /// The client of the API server.
    pub client: Client,
    /// This node.
    pub node: String,
    /// Timeouts of requests and leases.
    pub timeouts: Timeouts,
    /// The agent that starts the faults.
    pub agent: Arc<Agent>,
    /// The connection state of the API server.
    pub heartbeat: Arc<Heartbeat>,
    /// The peers in the cluster.
    pub peers: ClusterPeers,
}

impl Selections {
    /// Serves requests until shutdown.
    pub async fn serve(
        self,
        mut orders: mpsc::Receiver<Order>,
        mut shutdown: signal::Receiver<bool>,
    ) {
        loop {
            let order = tokio::select! {
                biased;
                () = shutdown_requested(&mut shutdown) => return,
                order = orders.recv() => order,
            };
            let Some(order) = order else { return };
            // Requests to the API server must not block others.
            match order {
                Order::Select { selection, by, reply } => {
                    let shutdown = shutdown.clone();
                    tokio::spawn(self.clone().begin(*selection, by, reply, shutdown));
                }
                Order::Find { peers, reply } => {
                    let (known, time) = (self.peers.clone(), self.timeouts.request());
                    tokio::spawn(async move {
                        let found = known.wait_for(&peers, time).await;
                        let found = found.map(|feeds| with_feeds(Peers::default(), &feeds));
                        // The client may have gone.
                        let _ = reply.send(found.map_err(|why| Problem::new(Code::Busy, why)));
                    });
                }
            }
        }
    }

    async fn begin(
        self,
        selection: Selection,
        by: String,
        reply: Reply,
        shutdown: signal::Receiver<bool>,
    ) {
        let (pods, request) = (selection.pods.clone(), selection.request.clone());
        let created = match self.check(&pods).await {
            Ok(()) => self.agent.keeper.select(selection, by).await,
            Err(problem) => Err(problem),
        };
        let fault = created.as_ref().ok().cloned();
        let is_delivered = reply.send(created).is_ok();
        let Some(fault) = fault else { return };
        if is_delivered {
            self.follow(&pods, &request, &fault, shutdown).await;
        } else {
            // The client has gone: without its name, nobody could end the fault.
            let _ = self.agent.keeper.delete(fault.name.clone()).await;
        }
    }

    /// Validates the selector with the API server.
    async fn check(&self, pods: &PodSelection) -> Result<(), Problem> {
        let params = ListParams::default().labels(&pods.selector).limit(1);
        let api = self.api(pods);
        match with_timeout(self.timeouts.request(), api.list_metadata(&params)).await {
            Ok(_) => Ok(()),
            Err(RequestError::Failed(error)) if matches!(&*error, kube::Error::Api(status) if status.code < 500) =>
            {
                let message = format!("pods {pods}: {}", RequestError::Failed(error));
                Err(Problem::new(Code::Invalid, message))
            }
            Err(error) => {
                let message = format!("cannot reach the Kubernetes API server: {error}");
                Err(Problem::new(Code::Busy, message))
            }
        }
    }

    fn api(&self, pods: &PodSelection) -> Api<core::Pod> {
        Api::namespaced(self.client.clone(), &pods.namespace)
    }

    /// Keeps the fault on the selected pods for as long as it is active.
    async fn follow(
        self,
        pods: &PodSelection,
        request: &FaultRequest,
        fault: &Arc<Fault>,
        mut shutdown: signal::Receiver<bool>,
    ) {
        let (agent, name) = (&self.agent, &fault.name);
        let mut changes = agent.board.watch();
        let is_related =
            |ended: &Fault| ended.name == *name || ended.part_of.as_deref() == Some(name.as_str());
        let config = watcher::Config::default()
            .fields(&pods::node_field_selector(&self.node))
            .labels(&pods.selector);
        let mut watched = Reflector::new("pods", self.api(pods), config, Pod::from_api);
        let lookups = Lookups { names: Names::default(), peers: self.peers.clone() };
        let mut state = ResourceState::new(FaultSource::of_fault(fault), &pods.namespace, None);
        let spec = spec(request);
        let mut has_more = false;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown_requested(&mut shutdown) => return,
                _ = watched.next() => {}
                () = ended(&mut changes, is_related) => {}
                () = lookups.changed() => {}
                () = future::ready(()), if has_more => {}
                _ = ticks.tick() => {}
            }
            // The parts end together with the fault.
            let is_there =
                |found: Arc<Fault>| found.phase == Phase::Active && found.created == fault.created;
            if !agent.board.find(name).is_some_and(is_there) {
                return;
            }
            let Some(all) = watched.all() else { continue };
            let selected: Vec<&Pod> = all.values().filter(|pod| pod.is_alive()).collect();
            state.observe(agent);
            state.select(agent, 0, &selected, &spec).await;
            if self.heartbeat.has_timed_out() {
                // The selected pods are unknown.
                state.suspend(agent, "the Kubernetes API server was not reached").await;
            } else if self.heartbeat.is_connected() {
                let lease = self.timeouts.patience;
                let plans = state.plan(&lookups, &spec, MAX_LIFE, lease).await;
                has_more = !plans.is_empty() && state.has_more();
                for (pod, plan) in plans {
                    state.begin(agent, &pod, plan).await;
                }
            }
            agent.keeper.tell(name.clone(), state.pod_statuses());
        }
    }
}

/// The specification of each pod's part. Its end follows from the fault that it is a part of.
fn spec(request: &FaultRequest) -> FaultInjectionSpec {
    let FaultRequest { target, seed, rules, clocks, processes, .. } = request.clone();
    FaultInjectionSpec {
        target: PodTarget { protect: target.protect, ..PodTarget::default() },
        peers: Vec::new(),
        r#for: HumanDuration(MAX_LIFE),
        seed,
        rules,
        clocks,
        processes,
    }
}

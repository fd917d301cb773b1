//! Faults of the pods of this node that labels select, asked for through the agent's own API. Each is followed by a task
//! of its own: pods that are selected are faulted, by parts of that fault, and others are no longer.
//!
//! What selects is read by the API server alone, so it means what it means for kubectl.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client, api::ListParams, runtime::watcher};
use tokio::{
    sync::{mpsc, watch as signal},
    time::MissedTickBehavior,
};

use super::{
    Times,
    crd::{FaultInjectionSpec, PodTarget},
    pods::{self, Pod},
    presence::{Presence, Unanswered, within},
    watch::Watched,
    work::{Origin, Work},
};
use crate::{
    agent::{
        LONGEST_LIFE,
        api::{Code, Fault, FaultRequest, Phase, Problem},
        board::ended,
        routes::{Agent, over},
        selection::Order,
    },
    spec::{target::PodSelection, value::Span},
};

/// How often to look whether something is due.
const TICK: Duration = Duration::from_secs(1);

/// What all of them share.
#[derive(Clone)]
pub struct Selections {
    /// The API server.
    pub client: Client,
    /// This node.
    pub node: String,
    /// How long the API server is waited for.
    pub times: Times,
    /// Who faults.
    pub agent: Arc<Agent>,
    /// Whether the API server is there.
    pub presence: Arc<Presence>,
}

impl Selections {
    /// Takes orders until the agent ends.
    pub async fn serve(self, mut orders: mpsc::Receiver<Order>, mut ends: signal::Receiver<bool>) {
        loop {
            let order = tokio::select! {
                biased;
                () = over(&mut ends) => return,
                order = orders.recv() => order,
            };
            let Some(order) = order else { return };
            // While one is asked about, others are taken.
            tokio::spawn(self.clone().begin(order, ends.clone()));
        }
    }

    async fn begin(self, order: Order, ends: signal::Receiver<bool>) {
        let Order { selection, by, reply } = order;
        let (pods, request) = (selection.pods.clone(), selection.request.clone());
        let created = match self.check(&pods).await {
            Ok(()) => self.agent.keeper.select(selection, by).await,
            Err(problem) => Err(problem),
        };
        let fault = created.as_ref().ok().cloned();
        let is_heard = reply.send(created).is_ok();
        let Some(fault) = fault else { return };
        if is_heard {
            self.follow(&pods, &request, &fault, ends).await;
        } else {
            // Nobody knows of it.
            let _ = self.agent.keeper.delete(fault.name.clone()).await;
        }
    }

    /// Has the API server say whether it understands what selects.
    async fn check(&self, pods: &PodSelection) -> Result<(), Problem> {
        let params = ListParams::default().labels(&pods.selector).limit(1);
        let api = self.api(pods);
        match within(self.times.answer(), api.list_metadata(&params)).await {
            Ok(_) => Ok(()),
            Err(Unanswered::Refused(error)) if matches!(&*error, kube::Error::Api(status) if status.code < 500) =>
            {
                let message = format!("pods {pods}: {}", Unanswered::Refused(error));
                Err(Problem::new(Code::Invalid, message))
            }
            Err(error) => {
                let message = format!("the Kubernetes API server was not reached: {error}");
                Err(Problem::new(Code::Busy, message))
            }
        }
    }

    fn api(&self, pods: &PodSelection) -> Api<core::Pod> {
        Api::namespaced(self.client.clone(), &pods.namespace)
    }

    /// Faults pods for as long as the fault acts.
    async fn follow(
        self,
        pods: &PodSelection,
        request: &FaultRequest,
        fault: &Arc<Fault>,
        mut ends: signal::Receiver<bool>,
    ) {
        let (agent, name) = (&self.agent, &fault.name);
        let mut changes = agent.board.watch();
        let is_its =
            |ended: &Fault| ended.name == *name || ended.part_of.as_deref() == Some(name.as_str());
        let config =
            watcher::Config::default().fields(&pods::of_node(&self.node)).labels(&pods.selector);
        let mut watched = Watched::new("pods", self.api(pods), config, Pod::of);
        let mut work = Work::new(Origin::of_fault(fault), None);
        let spec = spec(request);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = over(&mut ends) => return,
                () = watched.next() => {}
                () = ended(&mut changes, is_its) => {}
                _ = ticks.tick() => {}
            }
            // Its parts have ended with it.
            let is_there =
                |found: Arc<Fault>| found.phase == Phase::Active && found.created == fault.created;
            if !agent.board.find(name).is_some_and(is_there) {
                return;
            }
            let Some(all) = watched.all() else { continue };
            let selected: Vec<&Pod> = all.values().filter(|pod| pod.is_alive()).collect();
            work.observe(agent);
            work.select(agent, 0, &selected, &spec).await;
            if self.presence.is_away() {
                // Which pods there are is not known any more.
                work.suspend(agent, "the Kubernetes API server was not reached").await;
            } else if self.presence.is_fresh() {
                for (pod, plan) in work.plan(&spec, LONGEST_LIFE, self.times.patience).await {
                    work.begin(agent, &pod, plan).await;
                }
            }
            agent.keeper.tell(name.clone(), work.pods());
        }
    }
}

/// What each pod is faulted by. When that ends follows from the fault that it is a part of.
fn spec(request: &FaultRequest) -> FaultInjectionSpec {
    let FaultRequest { seed, rules, clocks, processes, .. } = request.clone();
    FaultInjectionSpec {
        target: PodTarget::default(),
        r#for: Span(LONGEST_LIFE),
        seed,
        rules,
        clocks,
        processes,
    }
}

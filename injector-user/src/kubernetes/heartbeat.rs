//! Liveness of agents. Each agent renews a Lease object of its node and, while the API server
//! answers, the leases of the faults requested by the cluster. The other agents read the Lease to
//! tell whether faults of that node may still be active.
//!
//! An agent that may no longer read resources does not learn of their deletion, so it does not renew
//! its faults either.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use super::{Timeouts, crd::FaultInjection, resource::OWNER};
use crate::{
    agent::routes::{Agent, shutdown_requested},
    kernel::clock::{monotonic_ns, nanoseconds},
};

/// The field manager of the Lease objects.
const MANAGER: &str = "injector-agent";

/// The heartbeat of this node.
pub struct Heartbeat {
    leases: Api<Lease>,
    resources: Api<FaultInjection>,
    node: String,
    timeouts: Timeouts,
    agent: Arc<Agent>,
    /// The time of the last answer of the API server in `CLOCK_MONOTONIC` ns; 0 if none.
    reached_ns: AtomicU64,
}

impl Heartbeat {
    /// Creates a heartbeat that has not been sent yet.
    pub fn new(
        client: Client,
        namespace: &str,
        node: &str,
        timeouts: Timeouts,
        agent: Arc<Agent>,
    ) -> Self {
        Self {
            leases: Api::namespaced(client.clone(), namespace),
            resources: Api::all(client),
            node: node.into(),
            timeouts,
            agent,
            reached_ns: AtomicU64::new(0),
        }
    }

    /// Whether the API server answered recently enough for new faults to start.
    pub fn is_connected(&self) -> bool {
        let reached = self.reached_ns.load(Relaxed);
        reached != 0
            && monotonic_ns() < reached.saturating_add(nanoseconds(self.timeouts.request()))
    }

    /// Whether the API server has been unreachable for so long that faults end.
    pub fn has_timed_out(&self) -> bool {
        let reached = self.reached_ns.load(Relaxed);
        monotonic_ns() >= reached.saturating_add(nanoseconds(self.timeouts.patience))
    }

    /// Renews the lease until shutdown.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let mut has_timed_out = false;
        loop {
            let next = Instant::now() + self.timeouts.heartbeat_interval();
            let beat = async { tokio::try_join!(self.renew_own(), self.read_resources()) };
            let renewed = with_timeout(self.timeouts.request(), beat).await;
            match renewed {
                Ok(_) => {
                    self.reached_ns.store(monotonic_ns(), Relaxed);
                    if std::mem::take(&mut has_timed_out) {
                        tracing::warn!("the Kubernetes API server is reachable again");
                    }
                    self.renew_faults().await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut has_timed_out, true) {
                        tracing::warn!(
                            "cannot reach the Kubernetes API server; its faults end {:?} after the last answer: {error}",
                            self.timeouts.patience
                        );
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = shutdown_requested(&mut shutdown) => return,
            }
        }
    }

    async fn renew_own(&self) -> kube::Result<Lease> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": lease_name(&self.node), "labels": {"app.kubernetes.io/name": "injector"}},
            "spec": {
                "holderIdentity": self.node,
                "leaseDurationSeconds": self.timeouts.node_lost().as_secs_f64().ceil() as i32,
                "renewTime": MicroTime(Timestamp::now()),
            },
        });
        let params = PatchParams::apply(MANAGER).force();
        self.leases.patch(&lease_name(&self.node), &params, &Patch::Apply(lease)).await
    }

    async fn read_resources(&self) -> kube::Result<()> {
        let one = ListParams::default().limit(1).match_any();
        match self.resources.list_metadata(&one).await {
            // The definition is gone or not there yet, and so are all resources.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            listed => listed.map(drop),
        }
    }

    async fn renew_faults(&self) {
        for fault in self.agent.board.active() {
            if fault.owner.starts_with(OWNER)
                && let Err(problem) = self.agent.keeper.renew(fault.name.clone()).await
            {
                // The fault has just ended or the fault manager is busy; the next heartbeat retries.
                tracing::debug!(fault.name, %problem, "cannot renew a fault");
            }
        }
    }

    /// Deletes the lease.
    pub async fn deregister(&self) {
        let params = DeleteParams::default();
        if let Err(error) = self.leases.delete(&lease_name(&self.node), &params).await {
            tracing::debug!(%error, "cannot remove the lease");
        }
    }
}

fn lease_name(node: &str) -> String {
    format!("injector-{node}")
}

/// Waits for an answer of the API server for at most `time`.
pub async fn with_timeout<T>(
    time: Duration,
    answer: impl Future<Output = kube::Result<T>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(time, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(RequestError::Failed(error.into())),
        Err(_) => Err(RequestError::TimedOut(time)),
    }
}

/// Why a request to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The server refused it or is unreachable.
    #[error("{}", text(.0))]
    Failed(Box<kube::Error>),
    /// The server did not answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

impl RequestError {
    /// Whether to log a warning. A changed or deleted object (409, 404) is expected: the watch will
    /// report it. The heartbeat warns of an unreachable server.
    pub fn is_unexpected(&self) -> bool {
        let Self::Failed(error) = self else { return false };
        matches!(&**error, kube::Error::Api(status) if !matches!(status.code, 404 | 409))
    }
}

/// The server's message, or the chain of causes if it did not answer.
pub fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => {
            let mut text = error.to_string();
            let mut causes = std::error::Error::source(error);
            while let Some(cause) = causes {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                causes = cause.source();
            }
            text
        }
    }
}

/// The last observed lease of another node.
struct ObservedLease {
    renewed: Option<MicroTime>,
    /// When this renewal was first observed, by the local clock: clocks of nodes may differ.
    since: Instant,
    /// How long the lease is valid.
    lasts: Duration,
    checked: Instant,
}

impl ObservedLease {
    fn is_expired(&self) -> bool {
        self.since.elapsed() > self.lasts
    }
}

/// The observed leases of other nodes.
pub struct OtherNodes {
    heartbeat: Arc<Heartbeat>,
    nodes: HashMap<String, ObservedLease>,
}

impl OtherNodes {
    /// Starts with no observations.
    pub fn new(heartbeat: Arc<Heartbeat>) -> Self {
        Self { heartbeat, nodes: HashMap::new() }
    }

    /// Whether a node's lease has expired, so that its faults have ended. Takes one lease duration
    /// of observation to become true.
    pub async fn is_lost(&mut self, node: &str) -> bool {
        let timeouts = self.heartbeat.timeouts;
        let now = Instant::now();
        // A node is lost only according to a fresh answer.
        let is_known = self.nodes.get(node).is_some_and(|seen| {
            now < seen.checked + timeouts.heartbeat_interval() && !seen.is_expired()
        });
        if !is_known {
            let name = lease_name(node);
            let request = self.heartbeat.leases.get_opt(&name);
            // Without an answer, the node is not considered lost.
            let Ok(lease) = with_timeout(timeouts.request(), request).await else { return false };
            let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
            let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let lasts = lasts.map_or_else(|| timeouts.node_lost(), Duration::from_secs);
            let renewed = spec.renew_time;
            // `checked` is the time of the request: the lease may have been renewed since.
            let seen = self.nodes.entry(node.into()).or_insert_with(|| ObservedLease {
                renewed: renewed.clone(),
                since: Instant::now(),
                lasts,
                checked: now,
            });
            if seen.renewed != renewed {
                *seen = ObservedLease { renewed, since: Instant::now(), lasts, checked: now };
            }
            seen.checked = now;
            // A deleted lease no longer has a duration: keep the longest one seen.
            seen.lasts = seen.lasts.max(lasts);
        }
        self.nodes.get(node).is_some_and(ObservedLease::is_expired)
    }
}

//! Kubernetes integration: the agent of each node applies the cluster's `FaultInjection` resources
//! to the pods of its node, and faults that its own clients request for pods by labels
//! ([`selection`]).
//!
//! All faults go through the agent's fault manager, with a lease that is renewed only while the API
//! server answers ([`heartbeat`]): a partitioned node ends its faults by itself. [`reconcile`]
//! compares resources ([`crd`]) and pods ([`pods`]) with the running faults ([`resource`]) and
//! writes the status ([`status`]).

pub mod crd;
mod heartbeat;
mod names;
mod peers;
mod pods;
mod queue;
mod reconcile;
mod reflector;
mod resource;
mod rights;
mod schema;
mod search;
mod selection;
mod status;

use std::{sync::Arc, time::Duration};

use kube::{Client, Config};
use thiserror::Error;
use tokio::{
    sync::{oneshot, watch as signal},
    task::JoinHandle,
};

use crate::agent::{
    MAX_LEASE, MIN_LEASE,
    routes::{Agent, shutdown_requested},
};
use heartbeat::{Heartbeat, with_timeout};
use peers::ClusterPeers;
use reconcile::Reconciler;
use selection::Selections;

/// How long shutdown waits for the API server to accept the final status.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The minimum of `--api-patience`: it must leave time for requests to the API server.
pub const MIN_API_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the Kubernetes integration cannot start.
#[derive(Debug, Error)]
pub enum KubernetesError {
    /// No configuration of the API server was found.
    #[error(
        "no Kubernetes API configuration found: set KUBECONFIG, or run in a pod with a service account"
    )]
    Config(#[source] Box<kube::config::InferConfigError>),
    /// The configuration of the API server is invalid.
    #[error("invalid Kubernetes API configuration")]
    Client(#[source] Box<kube::Error>),
    /// `--api-patience` is out of range.
    #[error(
        "--api-patience must be {} to {}",
        crate::spec::value::HumanDuration(MIN_API_TIMEOUT),
        crate::spec::value::HumanDuration(MAX_LEASE)
    )]
    Patience,
}

/// The agent's place in the cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node whose pods the agent may fault.
    pub node: String,
    /// The namespace of the node's lease; defaults to that of the pod or the kubeconfig.
    pub namespace: Option<String>,
    /// How long faults outlive the last answer of the API server.
    pub patience: Duration,
}

/// Timeouts that follow from `--api-patience`.
///
/// Faults end one patience after the last answered heartbeat. Other agents consider a node lost
/// when its lease has not been renewed for 4/3 of the patience: a request takes at most 1/3, and
/// faults start only within 1/3 of the last answer.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    patience: Duration,
}

impl Timeouts {
    /// The time between heartbeats.
    fn heartbeat_interval(self) -> Duration {
        self.patience / 6
    }

    /// The timeout of API requests, and the maximum age of the last answer for new faults to start.
    fn request(self) -> Duration {
        self.patience / 3
    }

    /// The lease duration, after which other agents consider the node lost.
    fn node_lost(self) -> Duration {
        self.patience + self.request()
    }
}

/// The running Kubernetes integration.
#[derive(Debug)]
pub struct Kubernetes {
    ending: signal::Sender<bool>,
    ended: oneshot::Receiver<()>,
    task: JoinHandle<()>,
}

impl Kubernetes {
    /// Starts the integration. While the API server is unreachable, it keeps retrying. `say` reports
    /// the cluster, and the permissions of the agent once they are known.
    pub async fn start(
        agent: Arc<Agent>,
        options: Options,
        say: impl Fn(String) + Send + 'static,
    ) -> Result<Self, KubernetesError> {
        if options.patience < MIN_API_TIMEOUT.max(MIN_LEASE) || options.patience > MAX_LEASE {
            return Err(KubernetesError::Patience);
        }
        let timeouts = Timeouts { patience: options.patience };
        let mut config =
            Config::infer().await.map_err(|error| KubernetesError::Config(error.into()))?;
        config.connect_timeout = Some(timeouts.request());
        let namespace = options.namespace.unwrap_or_else(|| config.default_namespace.clone());
        say(format!(
            "node {}, cluster {}, lease in namespace {namespace}",
            options.node, config.cluster_url
        ));
        let client =
            Client::try_from(config).map_err(|error| KubernetesError::Client(error.into()))?;
        let heartbeat =
            Heartbeat::new(client.clone(), &namespace, &options.node, timeouts, agent.clone());
        let heartbeat = Arc::new(heartbeat);
        let (ending, shutdown) = signal::channel(false);
        let (tell_ended, ended) = oneshot::channel();
        let heartbeats = tokio::spawn(heartbeat.clone().run(shutdown.clone()));
        tokio::spawn(check_rights(client.clone(), namespace, timeouts, shutdown.clone(), say));
        let peers = ClusterPeers::new(client.clone());
        if let Some(orders) = agent.cluster.join() {
            let selections = Selections {
                client: client.clone(),
                node: options.node.clone(),
                timeouts,
                agent: agent.clone(),
                heartbeat: heartbeat.clone(),
                peers: peers.clone(),
            };
            tokio::spawn(selections.serve(orders, shutdown.clone()));
        }
        let reconciler = Reconciler::new(
            client,
            options.node,
            timeouts,
            agent,
            heartbeat.clone(),
            peers,
            shutdown,
        );
        let task = tokio::spawn(async move {
            let mut reconciler = reconciler.run().await;
            // The faults are about to end: their leases need no renewal.
            heartbeats.abort();
            reconciler.end_all().await;
            // The receiver may have been dropped.
            let _ = tell_ended.send(());
            let farewell = async {
                reconciler.deregister().await;
                heartbeat.deregister().await;
            };
            if tokio::time::timeout(SHUTDOWN_TIMEOUT, farewell).await.is_err() {
                tracing::warn!("the Kubernetes API server was not told that the agent ends");
            }
        });
        Ok(Self { ending, ended, task })
    }

    /// Ends all faults. The caller must await the returned task, which updates the API server.
    pub async fn end(self) -> JoinHandle<()> {
        let _ = self.ending.send(true);
        // An error means that the task has ended; the fault manager ends the faults.
        let _ = self.ended.await;
        self.task
    }
}

/// Reports whether the agent has all permissions that it needs, once the API server answers.
async fn check_rights(
    client: Client,
    namespace: String,
    timeouts: Timeouts,
    mut shutdown: signal::Receiver<bool>,
    say: impl Fn(String),
) {
    loop {
        match with_timeout(timeouts.request(), rights::missing(&client, &namespace)).await {
            Ok(missing) if missing.is_empty() => {
                say("the agent has all permissions that it needs".into());
                return;
            }
            Ok(missing) => {
                tracing::warn!("the agent lacks permissions: {}", missing.join(", "));
                return;
            }
            Err(error) => tracing::debug!("cannot check permissions: {error}"),
        }
        tokio::select! {
            () = tokio::time::sleep(timeouts.heartbeat_interval()) => {}
            () = shutdown_requested(&mut shutdown) => return,
        }
    }
}

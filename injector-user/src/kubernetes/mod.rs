//! Faults that a Kubernetes cluster asks for: the agent of each node carries out the `FaultInjection` resources of the
//! cluster in the pods of its node. Those that its own clients ask for, of pods by labels, it carries out alike
//! ([`selection`]).
//!
//! Nothing is faulted but by the agent's own keeper, with a lease that is renewed for as long as the API server is
//! reached ([`presence`]): what happens without it ends by itself. [`reconcile`] compares what is asked for ([`crd`])
//! and which pods there are ([`pods`]) with what acts ([`work`]), and writes down what became of it ([`status`]).

pub mod crd;
mod pods;
mod presence;
mod reconcile;
mod schema;
mod selection;
mod status;
mod watch;
mod work;

use std::{sync::Arc, time::Duration};

use kube::{Client, Config};
use thiserror::Error;
use tokio::{
    sync::{oneshot, watch as signal},
    task::JoinHandle,
};

use crate::agent::{LONGEST_LEASE, SHORTEST_LEASE, routes::Agent};
use presence::Presence;
use reconcile::Reconciler;
use selection::Selections;

/// How long to take leave of the API server.
const FAREWELL: Duration = Duration::from_secs(5);

/// The shortest time for which the API server may be away: requests to it take theirs.
pub const SHORTEST_PATIENCE: Duration = Duration::from_secs(3);

/// Why the agent cannot work for a cluster.
#[derive(Debug, Error)]
pub enum KubernetesError {
    /// It is not known where the API server is.
    #[error(
        "cannot tell where the Kubernetes API is: set KUBECONFIG, or run in a pod with a service account"
    )]
    Config(#[source] Box<kube::config::InferConfigError>),
    /// What is known of it makes no sense.
    #[error("cannot use what is configured of the Kubernetes API")]
    Client(#[source] Box<kube::Error>),
    /// The time that it may be away makes no sense.
    #[error(
        "--api-patience is {} to {}",
        crate::spec::value::Span(SHORTEST_PATIENCE),
        crate::spec::value::Span(LONGEST_LEASE)
    )]
    Patience,
}

/// What the agent is told of its place in the cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node whose pods it faults.
    pub node: String,
    /// The namespace of its lease; by default that of its pod, or of the configuration.
    pub namespace: Option<String>,
    /// For how long faults outlive the last time that the API server was reached.
    pub patience: Duration,
}

/// What times follow from the patience.
///
/// A fault ends a patience after the last answer to a heartbeat. Others take a node for lost when its lease has not
/// been renewed for a patience and a third: an answer takes at most a third, and a fault begins only if one came within
/// that.
#[derive(Clone, Copy, Debug)]
struct Times {
    patience: Duration,
}

impl Times {
    /// Between heartbeats.
    fn beat(self) -> Duration {
        self.patience / 6
    }

    /// How long the API server may take to answer, and how old the last answer may be for new faults to begin.
    fn answer(self) -> Duration {
        self.patience / 3
    }

    /// When others take the node for lost.
    fn lost(self) -> Duration {
        self.patience + self.answer()
    }
}

/// The work for a cluster, in a task of its own.
#[derive(Debug)]
pub struct Kubernetes {
    ending: signal::Sender<bool>,
    ended: oneshot::Receiver<()>,
    task: JoinHandle<()>,
}

impl Kubernetes {
    /// Starts it. An API server that cannot be reached is waited for.
    pub async fn start(agent: Arc<Agent>, options: Options) -> Result<Self, KubernetesError> {
        if options.patience < SHORTEST_PATIENCE.max(SHORTEST_LEASE)
            || options.patience > LONGEST_LEASE
        {
            return Err(KubernetesError::Patience);
        }
        let times = Times { patience: options.patience };
        let mut config =
            Config::infer().await.map_err(|error| KubernetesError::Config(error.into()))?;
        config.connect_timeout = Some(times.answer());
        let namespace = options.namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client =
            Client::try_from(config).map_err(|error| KubernetesError::Client(error.into()))?;
        let presence =
            Presence::new(client.clone(), &namespace, &options.node, times, agent.clone());
        let presence = Arc::new(presence);
        let (ending, ends) = signal::channel(false);
        let (tell_ended, ended) = oneshot::channel();
        let beats = tokio::spawn(presence.clone().beat(ends.clone()));
        if let Some(orders) = agent.cluster.join() {
            let selections = Selections {
                client: client.clone(),
                node: options.node.clone(),
                times,
                agent: agent.clone(),
                presence: presence.clone(),
            };
            tokio::spawn(selections.serve(orders, ends.clone()));
        }
        let reconciler =
            Reconciler::new(client, options.node, times, agent, presence.clone(), ends);
        let task = tokio::spawn(async move {
            let mut reconciler = reconciler.run().await;
            // Nobody renews what is about to end.
            beats.abort();
            reconciler.end_all().await;
            // Whoever waits may have gone.
            let _ = tell_ended.send(());
            let farewell = async {
                reconciler.take_leave().await;
                presence.leave().await;
            };
            if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
                tracing::warn!("the Kubernetes API server was not told that the agent ends");
            }
        });
        Ok(Self { ending, ended, task })
    }

    /// Ends the faults. What is returned tells the cluster so; it is to be waited for.
    pub async fn end(self) -> JoinHandle<()> {
        let _ = self.ending.send(true);
        // An error means that the task is over, and so are they with the keeper.
        let _ = self.ended.await;
        self.task
    }
}

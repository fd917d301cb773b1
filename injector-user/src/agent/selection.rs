//! Faults of pods by labels: hands requests to the Kubernetes integration.

use std::sync::{Arc, OnceLock};

use tokio::sync::{mpsc, oneshot};

use super::{
    api::{Code, Fault, Problem},
    plan::Selection,
};

/// The length of the request queue.
const QUEUE_LEN: usize = 16;

/// A request for a fault by labels.
#[derive(Debug)]
pub struct Order {
    /// The pods and the fault.
    pub selection: Selection,
    /// The client.
    pub by: String,
    /// The channel of the result.
    pub reply: oneshot::Sender<Result<Arc<Fault>, Problem>>,
}

/// The connection to the Kubernetes integration, if enabled.
#[derive(Debug, Default)]
pub struct Cluster(OnceLock<mpsc::Sender<Order>>);

impl Cluster {
    /// Makes the caller receive all requests; `None` if there is a receiver already.
    pub fn join(&self) -> Option<mpsc::Receiver<Order>> {
        let (sender, orders) = mpsc::channel(QUEUE_LEN);
        self.0.set(sender).ok().map(|()| orders)
    }

    /// Requests a fault.
    pub async fn create(&self, selection: Selection, by: String) -> Result<Arc<Fault>, Problem> {
        let Some(orders) = self.0.get() else {
            return Err(Problem::new(
                Code::Invalid,
                "pods are selected through the Kubernetes API, and this agent has joined no cluster: start it with \
                 --kubernetes --node NAME",
            ));
        };
        let busy = |_| Problem::new(Code::Busy, "the agent asks the cluster for too much already");
        let (reply, answer) = oneshot::channel();
        orders.try_send(Order { selection, by, reply }).map_err(busy)?;
        answer.await.unwrap_or_else(|_| Err(Problem::new(Code::Busy, "the agent is ending")))
    }
}

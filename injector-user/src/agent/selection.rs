//! Faults of the pods that labels select. They are asked for here, and carried out by who knows the cluster.

use std::sync::{Arc, OnceLock};

use tokio::sync::{mpsc, oneshot};

use super::{
    api::{Code, Fault, Problem},
    plan::Selection,
};

/// Requests that may wait.
const WAITING: usize = 16;

/// A fault that is asked for.
#[derive(Debug)]
pub struct Order {
    /// Which.
    pub selection: Selection,
    /// Who asks.
    pub by: String,
    /// Where to say what became of it.
    pub reply: oneshot::Sender<Result<Arc<Fault>, Problem>>,
}

/// The cluster, if this agent has joined one.
#[derive(Debug, Default)]
pub struct Cluster(OnceLock<mpsc::Sender<Order>>);

impl Cluster {
    /// Has the caller carry out what is asked for from now on; nothing if somebody does already.
    pub fn join(&self) -> Option<mpsc::Receiver<Order>> {
        let (sender, orders) = mpsc::channel(WAITING);
        self.0.set(sender).ok().map(|()| orders)
    }

    /// Begins a fault.
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

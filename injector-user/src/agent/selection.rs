//! Faults of pods by labels: hands requests to the Kubernetes integration.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    api::{Code, Fault, Problem},
    plan::Selection,
};
use crate::{kernel::clock::monotonic_ns, spec::peer::Peer, target::peers::Peers};

/// The length of the request queue.
const QUEUE_LEN: usize = 16;

/// A request to the Kubernetes integration, and where to send the result.
#[derive(Debug)]
pub enum Order {
    /// A fault of pods by labels.
    Select {
        /// The pods and the fault.
        selection: Box<Selection>,
        /// The client.
        by: String,
        /// The channel of the result.
        reply: oneshot::Sender<Result<Arc<Fault>, Problem>>,
    },
    /// The addresses of peers in the cluster.
    Find {
        /// The peers.
        peers: BTreeSet<Peer>,
        /// The channel of the result.
        reply: oneshot::Sender<Result<Peers, Problem>>,
    },
}

/// A reconciler that was not seen for this long counts as hung. It waits for the API server, by
/// default for up to 10 s.
const HUNG: Duration = Duration::from_secs(30);

/// The connection to the Kubernetes integration, if enabled.
#[derive(Debug, Default)]
pub struct Cluster {
    orders: OnceLock<mpsc::Sender<Order>>,
    /// The last sign of life of the reconciler, by `CLOCK_MONOTONIC`; 0 if there is none.
    alive_ns: AtomicU64,
}

impl Cluster {
    /// Records a sign of life of the reconciler.
    pub fn is_alive(&self) {
        self.alive_ns.store(monotonic_ns(), Relaxed);
    }

    /// For how long the reconciler has hung, if it does at this time.
    #[must_use]
    pub fn hangs(&self, now_ns: u64) -> Option<Duration> {
        let alive_ns = self.alive_ns.load(Relaxed);
        let silent = Duration::from_nanos(now_ns.saturating_sub(alive_ns));
        (alive_ns != 0 && silent > HUNG).then_some(silent)
    }

    /// Makes the caller receive all requests; `None` if there is a receiver already.
    pub fn join(&self) -> Option<mpsc::Receiver<Order>> {
        let (sender, orders) = mpsc::channel(QUEUE_LEN);
        self.orders.set(sender).ok().map(|()| orders)
    }

    /// Requests a fault.
    pub async fn create(&self, selection: Selection, by: String) -> Result<Arc<Fault>, Problem> {
        self.ask(|reply| Order::Select { selection: selection.into(), by, reply }).await
    }

    /// Finds those of these peers that are in the cluster, and follows them.
    pub async fn find(&self, peers: BTreeSet<Peer>) -> Result<Peers, Problem> {
        if peers.is_empty() {
            return Ok(Peers::default());
        }
        self.ask(|reply| Order::Find { peers, reply }).await
    }

    async fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, Problem>>) -> Order,
    ) -> Result<T, Problem> {
        let Some(orders) = self.orders.get() else {
            return Err(Problem::new(
                Code::Invalid,
                "pods are selected through the Kubernetes API, and this agent has joined no cluster: start it with \
                 --kubernetes --node NAME",
            ));
        };
        let busy = |_| Problem::new(Code::Busy, "the agent asks the cluster for too much already");
        let (reply, answer) = oneshot::channel();
        orders.try_send(order(reply)).map_err(busy)?;
        answer.await.unwrap_or_else(|_| Err(Problem::new(Code::Busy, "the agent is ending")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reconciler_hangs_if_it_was_not_seen_for_long() {
        let cluster = Cluster::default();
        let after = |time: Duration| cluster.hangs(monotonic_ns() + time.as_nanos() as u64);
        assert_eq!(after(10 * HUNG), None, "there is none");
        cluster.is_alive();
        assert_eq!(after(Duration::ZERO), None);
        assert!(after(2 * HUNG).is_some_and(|silent| silent >= HUNG));
        cluster.is_alive();
        assert_eq!(after(Duration::ZERO), None);
    }
}

//! Whether agents are there. Each renews a lease of its node; for as long as that is answered, it renews the leases of
//! the faults that the cluster asked for. The others look at it to tell whether faults of that node can still act.

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
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use super::{Times, work::OWNER};
use crate::{
    agent::routes::{Agent, over},
    kernel::clock::{monotonic_ns, nanoseconds},
};

/// By whom leases are written.
const MANAGER: &str = "injector-agent";

/// That of this node.
pub struct Presence {
    leases: Api<Lease>,
    node: String,
    times: Times,
    agent: Arc<Agent>,
    /// When the API server was reached last, by `CLOCK_MONOTONIC`; 0 if it never was.
    reached_ns: AtomicU64,
}

impl Presence {
    /// Nothing is said yet.
    pub fn new(
        client: Client,
        namespace: &str,
        node: &str,
        times: Times,
        agent: Arc<Agent>,
    ) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            node: node.into(),
            times,
            agent,
            reached_ns: AtomicU64::new(0),
        }
    }

    /// Whether the API server was reached so lately that faults may begin.
    pub fn is_fresh(&self) -> bool {
        let reached = self.reached_ns.load(Relaxed);
        reached != 0 && monotonic_ns() < reached.saturating_add(nanoseconds(self.times.answer()))
    }

    /// Whether the API server was not reached for so long that faults end.
    pub fn is_away(&self) -> bool {
        let reached = self.reached_ns.load(Relaxed);
        monotonic_ns() >= reached.saturating_add(nanoseconds(self.times.patience))
    }

    /// Renews the lease until the agent ends.
    pub async fn beat(self: Arc<Self>, mut ends: watch::Receiver<bool>) {
        let mut is_away = false;
        loop {
            let next = Instant::now() + self.times.beat();
            let renewed = within(self.times.answer(), self.renew_own()).await;
            match renewed {
                Ok(_) => {
                    self.reached_ns.store(monotonic_ns(), Relaxed);
                    if std::mem::take(&mut is_away) {
                        tracing::warn!("the Kubernetes API server is there again");
                    }
                    self.renew_faults().await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_away, true) {
                        tracing::warn!(
                            "cannot reach the Kubernetes API server; faults that it asked for end {:?} after it was \
                             reached last: {error}",
                            self.times.patience
                        );
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = over(&mut ends) => return,
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
                "leaseDurationSeconds": self.times.lost().as_secs_f64().ceil() as i32,
                "renewTime": MicroTime(Timestamp::now()),
            },
        });
        let params = PatchParams::apply(MANAGER).force();
        self.leases.patch(&lease_name(&self.node), &params, &Patch::Apply(lease)).await
    }

    async fn renew_faults(&self) {
        for fault in self.agent.board.active() {
            if fault.owner.starts_with(OWNER)
                && let Err(problem) = self.agent.keeper.renew(fault.name.clone()).await
            {
                // It has just ended, or the keeper has too much to do: there is time for another try.
                tracing::debug!(fault.name, %problem, "cannot renew a fault");
            }
        }
    }

    /// Says that the agent has ended.
    pub async fn leave(&self) {
        let params = DeleteParams::default();
        if let Err(error) = self.leases.delete(&lease_name(&self.node), &params).await {
            tracing::debug!(%error, "cannot remove the lease");
        }
    }
}

fn lease_name(node: &str) -> String {
    format!("injector-{node}")
}

/// Waits for an answer of the API server for so long.
pub async fn within<T>(
    time: Duration,
    answer: impl Future<Output = kube::Result<T>>,
) -> Result<T, Unanswered> {
    match tokio::time::timeout(time, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Unanswered::Refused(error.into())),
        Err(_) => Err(Unanswered::Late(time)),
    }
}

/// Why something was not done by the API server.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// It said so, or cannot be reached.
    #[error("{}", text(.0))]
    Refused(Box<kube::Error>),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

impl Unanswered {
    /// Whether it is worth a warning. That the object is another one by now, or gone, is not: news of that are on their
    /// way; and of a server that cannot be reached the heartbeat warns.
    pub fn is_trouble(&self) -> bool {
        let Self::Refused(error) = self else { return false };
        matches!(&**error, kube::Error::Api(status) if !matches!(status.code, 404 | 409))
    }
}

/// What the server said, or why it could not.
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

/// What is seen of another node.
struct Seen {
    renewed: Option<MicroTime>,
    /// Since when that is so, as seen from here: the clocks of nodes need not agree.
    since: Instant,
    /// For how long that may be.
    lasts: Duration,
    asked: Instant,
}

impl Seen {
    fn is_expired(&self) -> bool {
        self.since.elapsed() > self.lasts
    }
}

/// The other nodes, as far as they were asked about.
pub struct Others {
    presence: Arc<Presence>,
    nodes: HashMap<String, Seen>,
}

impl Others {
    /// Nobody was asked about yet.
    pub fn new(presence: Arc<Presence>) -> Self {
        Self { presence, nodes: HashMap::new() }
    }

    /// Whether nothing was heard of a node's agent for so long that its faults have ended. It takes that long to tell.
    pub async fn is_lost(&mut self, node: &str) -> bool {
        let times = self.presence.times;
        let now = Instant::now();
        // Nobody is taken for lost who was not asked about just now.
        let is_known = self
            .nodes
            .get(node)
            .is_some_and(|seen| now < seen.asked + times.beat() && !seen.is_expired());
        if !is_known {
            let name = lease_name(node);
            let asked = self.presence.leases.get_opt(&name);
            // Nothing is told of it now.
            let Ok(lease) = within(times.answer(), asked).await else { return false };
            let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
            let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let lasts = lasts.map_or_else(|| times.lost(), Duration::from_secs);
            let renewed = spec.renew_time;
            // From when it was asked about: it may have been renewed after that.
            let seen = self.nodes.entry(node.into()).or_insert_with(|| Seen {
                renewed: renewed.clone(),
                since: Instant::now(),
                lasts,
                asked: now,
            });
            if seen.renewed != renewed {
                *seen = Seen { renewed, since: Instant::now(), lasts, asked: now };
            }
            seen.asked = now;
            // One that has been removed says no more for how long it was.
            seen.lasts = seen.lasts.max(lasts);
        }
        self.nodes.get(node).is_some_and(Seen::is_expired)
    }
}

//! The addresses of peers in the cluster: pods by labels, and services.
//!
//! Each peer in use has a task with watches of its own, so that an agent receives only the objects
//! that it needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client, runtime::watcher};
use tokio::{sync::Notify, time::Instant};

use super::reflector::Reflector;
use crate::{
    spec::peer::{ClusterPeer, Namespaces, Peer},
    target::peers::Feed,
};

/// Peers that were not needed for this long are no longer watched.
const MAX_IDLE: Duration = Duration::from_mins(1);

/// The interval of checks whether a peer is still needed.
const TICK: Duration = Duration::from_secs(5);

/// Peers with the feeds of their addresses.
pub type Feeds = Vec<(Peer, Arc<Feed>)>;

/// The peers in use. Clones share them.
#[derive(Clone)]
pub struct ClusterPeers(Arc<Shared>);

struct Shared {
    client: Client,
    used: Mutex<BTreeMap<ClusterPeer, Used>>,
    /// Notified when the addresses of a peer have become known.
    changed: Notify,
}

struct Used {
    feed: Arc<Feed>,
    at: Instant,
}

impl ClusterPeers {
    /// No peer is in use.
    pub fn new(client: Client) -> Self {
        let (used, changed) = (Mutex::default(), Notify::new());
        Self(Arc::new(Shared { client, used, changed }))
    }

    /// The feeds of peers. The error says of which peer the addresses are not known yet.
    pub fn find(&self, peers: &BTreeSet<Peer>) -> Result<Feeds, String> {
        let mut feeds = Vec::new();
        let mut unknown = None;
        for peer in peers {
            let Peer::Cluster(of_cluster) = peer else { continue };
            let feed = self.feed(of_cluster);
            if feed.addresses().is_none() {
                let reason = feed.error().map(|error| format!(": {error}")).unwrap_or_default();
                unknown.get_or_insert(format!("the addresses of {peer} are not known yet{reason}"));
            }
            feeds.push((peer.clone(), feed));
        }
        unknown.map_or(Ok(feeds), Err)
    }

    /// Like [`Self::find`], but waits for a time.
    pub async fn wait_for(&self, peers: &BTreeSet<Peer>, time: Duration) -> Result<Feeds, String> {
        let end = Instant::now() + time;
        loop {
            let changed = self.0.changed.notified();
            match self.find(peers) {
                Err(unknown) => {
                    if tokio::time::timeout_at(end, changed).await.is_err() {
                        return Err(unknown);
                    }
                }
                found => return found,
            }
        }
    }

    /// Waits until the addresses of a peer have become known.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn feed(&self, peer: &ClusterPeer) -> Arc<Feed> {
        let mut used = self.0.lock();
        if let Some(known) = used.get_mut(peer) {
            known.at = Instant::now();
            return known.feed.clone();
        }
        let feed = Arc::new(Feed::default());
        used.insert(peer.clone(), Used { feed: feed.clone(), at: Instant::now() });
        let (shared, peer) = (self.0.clone(), peer.clone());
        tokio::spawn(shared.follow(peer, feed.clone()));
        feed
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ClusterPeer, Used>> {
        // Each change is complete before anything can panic.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the addresses of a peer up to date for as long as it is used.
    async fn follow(self: Arc<Self>, peer: ClusterPeer, feed: Arc<Feed>) {
        let mut watched = Watched::new(&self.client, &peer);
        loop {
            // A watch that fails tells nothing.
            let _ = tokio::time::timeout(TICK, watched.next()).await;
            if let Some(addresses) = watched.addresses() {
                if feed.set(addresses) {
                    self.changed.notify_waiters();
                }
            } else if let Some(error) = watched.error() {
                feed.fail(error);
            }
            let mut used = self.lock();
            // Its users hold the other references.
            let is_idle = used.get(&peer).is_none_or(|used| {
                Arc::strong_count(&used.feed) == 2 && used.at.elapsed() > MAX_IDLE
            });
            if is_idle {
                used.remove(&peer);
                return;
            }
        }
    }
}

/// The objects of a peer.
enum Watched {
    Pods {
        pods: Reflector<core::Pod, PodAddresses>,
        /// The names of the namespaces, unless there is only one.
        namespaces: Option<Reflector<core::Namespace, String>>,
    },
    Service {
        service: Reflector<core::Service, Vec<IpAddr>>,
        endpoints: Reflector<core::Endpoints, Vec<IpAddr>>,
    },
}

/// The namespace and the addresses of a pod.
type PodAddresses = (String, Vec<IpAddr>);

impl Watched {
    fn new(client: &Client, peer: &ClusterPeer) -> Self {
        let labelled = |labels: &str| watcher::Config::default().labels(labels);
        match peer {
            ClusterPeer::Pods { namespaces, selector } => {
                let (api, namespaces) = match namespaces {
                    Namespaces::Named(name) => (Api::namespaced(client.clone(), name), None),
                    Namespaces::Labelled(labels) => {
                        let api = Api::all(client.clone());
                        let name = |namespace: core::Namespace| namespace.metadata.name;
                        let names = Reflector::new("namespaces", api, labelled(labels), name);
                        (Api::all(client.clone()), Some(names))
                    }
                };
                let pods = Reflector::new("peers", api, labelled(selector), of_pod);
                Self::Pods { pods, namespaces }
            }
            ClusterPeer::Service { namespace, name } => {
                let named = || watcher::Config::default().fields(&format!("metadata.name={name}"));
                let (services, endpoints) = (
                    Api::namespaced(client.clone(), namespace),
                    Api::namespaced(client.clone(), namespace),
                );
                Self::Service {
                    service: Reflector::new("services", services, named(), of_service),
                    endpoints: Reflector::new("endpoints", endpoints, named(), of_endpoints),
                }
            }
        }
    }

    /// Waits for the next event. Cancel-safe.
    async fn next(&mut self) {
        match self {
            Self::Pods { pods, namespaces: None } => drop(pods.next().await),
            Self::Pods { pods, namespaces: Some(namespaces) } => tokio::select! {
                _ = pods.next() => {}
                _ = namespaces.next() => {}
            },
            Self::Service { service, endpoints } => tokio::select! {
                _ = service.next() => {}
                _ = endpoints.next() => {}
            },
        }
    }

    /// The addresses, once all initial lists are complete.
    fn addresses(&self) -> Option<Vec<IpAddr>> {
        match self {
            Self::Pods { pods, namespaces } => {
                let names: Option<BTreeSet<&String>> = match namespaces {
                    Some(namespaces) => Some(namespaces.all()?.values().collect()),
                    None => None,
                };
                let pods = pods.all()?.values();
                let pods = pods.filter(|(namespace, _)| {
                    names.as_ref().is_none_or(|names| names.contains(namespace))
                });
                Some(pods.flat_map(|(_, addresses)| addresses).copied().collect())
            }
            Self::Service { service, endpoints } => {
                let all = service.all()?.values().chain(endpoints.all()?.values());
                Some(all.flatten().copied().collect())
            }
        }
    }

    fn error(&self) -> Option<String> {
        let error = match self {
            Self::Pods { pods, namespaces } => {
                pods.error().or_else(|| namespaces.as_ref().and_then(Reflector::error))
            }
            Self::Service { service, endpoints } => service.error().or_else(|| endpoints.error()),
        };
        error.map(str::to_owned)
    }
}

fn of_pod(pod: core::Pod) -> Option<PodAddresses> {
    let status = pod.status?;
    // The addresses of a pod that has ended may be those of another one.
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let all = status.pod_ips.into_iter().flatten().map(|ip| ip.ip).chain(status.pod_ip);
    Some((pod.metadata.namespace?, parsed(all)))
}

fn of_service(service: core::Service) -> Option<Vec<IpAddr>> {
    let spec = service.spec?;
    // A headless service has `None`.
    let all = spec.cluster_ips.into_iter().flatten().chain(spec.cluster_ip);
    Some(parsed(all.chain(spec.external_ips.into_iter().flatten())))
}

fn of_endpoints(endpoints: core::Endpoints) -> Option<Vec<IpAddr>> {
    let subsets = endpoints.subsets?.into_iter();
    let all = subsets.flat_map(|subset| {
        subset.addresses.into_iter().chain(subset.not_ready_addresses).flatten()
    });
    Some(parsed(all.map(|address| address.ip)))
}

fn parsed(texts: impl IntoIterator<Item = String>) -> Vec<IpAddr> {
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        parsed(texts.iter().map(|&text| text.into()))
    }

    #[test]
    fn addresses_are_those_of_running_pods() {
        let of = |status| {
            let pod = json!({"metadata": {"namespace": "shop"}, "status": status});
            of_pod(serde_json::from_value(pod).expect("a pod")).map(|(_, addresses)| addresses)
        };
        let both = json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "fd00::1"}]});
        assert_eq!(of(both), Some(addresses(&["fd00::1", "10.0.0.1"])));
        assert_eq!(of(json!({"phase": "Pending"})), Some(Vec::new()));
        assert_eq!(of(json!({"phase": "Succeeded", "podIP": "10.0.0.1"})), None);
    }

    #[test]
    fn a_service_has_its_own_addresses_and_those_of_its_endpoints() {
        let of =
            |spec| of_service(serde_json::from_value(json!({"spec": spec})).expect("a service"));
        let service = json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::2"]});
        assert_eq!(of(service), Some(addresses(&["10.96.0.1", "fd00::2", "10.96.0.1"])));
        assert_eq!(of(json!({"clusterIP": "None"})), Some(Vec::new()));
        let endpoints = json!({"subsets": [
            {"addresses": [{"ip": "10.0.0.1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}]},
        ]});
        let endpoints = of_endpoints(serde_json::from_value(endpoints).expect("endpoints"));
        assert_eq!(endpoints, Some(addresses(&["10.0.0.1", "10.0.0.2"])));
    }
}

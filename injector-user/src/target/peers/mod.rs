//! Peers given by name: their addresses are looked up at the start, and again while faults are
//! active.
//!
//! Threads of their own look them up, because name servers may not answer. An injection compares
//! what it has with [`Peers::addresses`] at each renewal.

mod feed;
mod lookup;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ResolveError;
use crate::{
    output,
    spec::{peer::Peer, rule::Rule, target::TargetSpec, value::Remote},
};
pub use feed::Feed;
use lookup::{Lookup, scope};

/// The maximum number of host names that are looked up at the same time.
const MAX_THREADS: usize = 8;

/// The addresses of peers.
pub type Addresses = BTreeMap<Peer, Vec<IpAddr>>;

/// What a name was resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resolved {
    /// The name as written.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// The peers of all rules that are active together. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Peers(Arc<Handle>);

/// Ends the threads when the last clone is dropped.
#[derive(Debug, Default)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when threads have something to do.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Peer, Entry>,
    addresses: Arc<Addresses>,
    warnings: Vec<String>,
    is_followed: bool,
    /// The number of threads for peers on this machine, and for host names.
    threads: [usize; 2],
    is_over: bool,
}

/// A peer that is looked up again.
#[derive(Debug)]
struct Entry {
    /// `None` while a thread uses it.
    lookup: Option<Lookup>,
    /// Where its addresses come from, if another part of the program keeps them up to date.
    feed: Option<Arc<Feed>>,
    due: Instant,
    /// Whether another look-up was requested during the current one.
    again: bool,
    has_failed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The peers given by name among these.
pub fn named<'a>(remotes: impl IntoIterator<Item = &'a Remote>) -> BTreeSet<&'a Peer> {
    let peer = |remote: &'a Remote| match remote {
        Remote::Peer(peer) => Some(peer),
        Remote::Net(_) => None,
    };
    remotes.into_iter().filter_map(peer).collect()
}

/// The peers that rules match.
#[must_use]
pub fn of_rules(rules: &[Rule]) -> BTreeSet<&Peer> {
    named(rules.iter().flat_map(|rule| &rule.matching.remotes))
}

/// The addresses of these peers.
pub fn resolved<'a>(
    peers: impl IntoIterator<Item = &'a Peer>,
    addresses: &Addresses,
) -> Vec<Resolved> {
    let of = |peer: &Peer| {
        let addresses = addresses.get(peer).cloned().unwrap_or_default();
        Resolved { name: peer.to_string(), addresses }
    };
    peers.into_iter().map(of).collect()
}

/// Looks up the addresses of a host once, by the first of these names that has any. May take long.
pub fn look_up_host(peer: &Peer, names: Vec<String>) -> Result<Vec<IpAddr>, ResolveError> {
    Lookup::Host(names).run(peer)
}

impl Peers {
    /// Peers whose addresses have been looked up already. `names` gives the names to look up in
    /// turn for that of a host.
    #[must_use]
    pub fn known(addresses: &Addresses, names: impl Fn(&str) -> Vec<String>) -> Self {
        let lookup = |peer: &Peer| match peer {
            Peer::Host(name) => Some(Lookup::Host(names(name))),
            peer => Lookup::of(peer),
        };
        let peers = Self::default();
        let known = addresses.iter();
        peers.insert(known.map(|(peer, found)| (peer.clone(), found.clone(), lookup(peer))));
        peers
    }

    /// Looks up those of these peers that are not known yet, in the calling thread. Returns the
    /// addresses of all. After an error, no other peer is known than before.
    pub fn resolve(&self, peers: &BTreeSet<&Peer>) -> Result<Vec<Resolved>, ResolveError> {
        let known = self.addresses();
        let mut new = Vec::new();
        for &peer in peers.iter().filter(|peer| !known.contains_key(**peer)) {
            if matches!(peer, Peer::Cluster(_)) {
                return Err(ResolveError::ClusterPeer(peer.to_string()));
            }
            let Some(mut lookup) = Lookup::of(peer) else { continue };
            let found = lookup.run(peer)?;
            new.push((peer.clone(), found, Some(lookup)));
        }
        self.insert(new);
        Ok(resolved(peers.iter().copied(), &self.addresses()))
    }

    /// Adds a peer whose addresses another part of the program keeps up to date.
    pub fn add_feed(&self, peer: &Peer, feed: &Arc<Feed>) {
        let found = feed.addresses().unwrap_or_default();
        self.insert([(peer.clone(), found, Some(Lookup::Feed(feed.clone())))]);
    }

    /// Adds a target of a scenario: with these addresses, or with those of its interfaces.
    pub fn add_target(
        &self,
        name: &str,
        spec: &TargetSpec,
        fixed: &[IpAddr],
    ) -> Result<(), ResolveError> {
        let peer = Peer::Target(name.into());
        let (found, lookup) = if fixed.is_empty() {
            let mut lookup = Lookup::of_target(spec.clone());
            (lookup.run(&peer)?, Some(lookup))
        } else {
            (fixed.to_vec(), None)
        };
        self.insert([(peer, found, lookup)]);
        Ok(())
    }

    /// Adds the peers of another one.
    pub fn adopt(&self, other: &Self) {
        let addresses = other.addresses();
        let known = self.addresses();
        let new = addresses.iter().filter(|(peer, _)| !known.contains_key(*peer));
        let lookup = |peer| other.feed(peer).map(Lookup::Feed).or_else(|| Lookup::of(peer));
        let new = new.map(|(peer, found)| (peer.clone(), found.clone(), lookup(peer)));
        self.insert(new.collect::<Vec<_>>());
    }

    fn feed(&self, peer: &Peer) -> Option<Arc<Feed>> {
        self.0.0.lock().entries.get(peer)?.feed.clone()
    }

    fn insert(&self, new: impl IntoIterator<Item = (Peer, Vec<IpAddr>, Option<Lookup>)>) {
        let shared = &self.0.0;
        let mut state = shared.lock();
        for (peer, found, lookup) in new {
            Arc::make_mut(&mut state.addresses).insert(peer.clone(), found);
            if let Some(lookup) = lookup {
                let due = Instant::now() + lookup.interval();
                let feed = match &lookup {
                    Lookup::Feed(feed) => Some(feed.clone()),
                    Lookup::Host(_) | Lookup::Local { .. } => None,
                };
                let lookup = Some(lookup);
                let entry = Entry { lookup, feed, due, again: false, has_failed: false };
                state.entries.insert(peer, entry);
            }
        }
        if state.is_followed {
            state.start_threads(shared);
        }
        shared.changed.notify_all();
    }

    /// Forgets all other peers.
    pub fn retain(&self, peers: &BTreeSet<&Peer>) {
        let mut state = self.0.0.lock();
        if state.addresses.keys().any(|peer| !peers.contains(peer)) {
            Arc::make_mut(&mut state.addresses).retain(|peer, _| peers.contains(peer));
            state.entries.retain(|peer, _| peers.contains(peer));
        }
    }

    /// Looks the peers up again from now on, until the last clone is dropped.
    pub fn follow(&self) {
        let shared = &self.0.0;
        let mut state = shared.lock();
        state.is_followed = true;
        state.start_threads(shared);
    }

    /// Whether any address may change.
    #[must_use]
    pub fn may_change(&self) -> bool {
        !self.0.0.lock().entries.is_empty()
    }

    /// Looks all peers up now.
    pub fn look_up_now(&self) {
        let mut state = self.0.0.lock();
        for entry in state.entries.values_mut() {
            (entry.due, entry.again) = (Instant::now(), entry.lookup.is_none());
        }
        self.0.0.changed.notify_all();
    }

    /// The last known addresses. They are the same object until one changes.
    #[must_use]
    pub fn addresses(&self) -> Arc<Addresses> {
        self.0.0.lock().addresses.clone()
    }

    /// New warnings about peers that cannot be looked up.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.0.0.lock().warnings)
    }
}

impl State {
    fn start_threads(&mut self, shared: &Arc<Shared>) {
        for is_host in [false, true] {
            let is_kind = |peer: &&Peer| matches!(peer, Peer::Host(_)) == is_host;
            let count = self.entries.keys().filter(is_kind).count();
            let most = if is_host { MAX_THREADS } else { 1 };
            while self.threads[usize::from(is_host)] < count.min(most) {
                let shared = shared.clone();
                let work = move || follow(&shared, is_host);
                if let Err(error) = thread::Builder::new().name("peers".into()).spawn(work) {
                    let message = format!("the addresses of peers stay as they are: {error}");
                    self.warnings.push(message);
                    return;
                }
                self.threads[usize::from(is_host)] += 1;
            }
        }
    }

    /// The idle peer that is due first.
    fn next(&mut self, is_host: bool) -> Option<(&Peer, &mut Entry)> {
        let is_kind =
            |entry: &Entry| entry.lookup.as_ref().is_some_and(|lookup| lookup.is_host() == is_host);
        let idle = self.entries.iter_mut().filter(|(_, entry)| is_kind(entry));
        idle.min_by_key(|(_, entry)| entry.due)
    }

    /// Records the result of a look-up.
    fn record(&mut self, peer: &Peer, lookup: Lookup, found: Result<Vec<IpAddr>, ResolveError>) {
        // The peer may have been forgotten meanwhile.
        let Some(entry) = self.entries.get_mut(peer) else { return };
        let again = std::mem::take(&mut entry.again);
        entry.due = if again { Instant::now() } else { Instant::now() + lookup.interval() };
        entry.lookup = Some(lookup);
        let Some(known) = self.addresses.get(peer) else { return };
        // Interfaces of something that restarts get their addresses one after another.
        let widest = |addresses: &[IpAddr]| addresses.iter().map(scope).max();
        let found = found.and_then(|found| {
            let is_incomplete = matches!(peer, Peer::Local(..)) && widest(&found) < widest(known);
            let error = || ResolveError::NoAddress(peer.to_string());
            if is_incomplete { Err(error()) } else { Ok(found) }
        });
        let has_failed = found.is_err();
        match found {
            Ok(found) if found == *known => {}
            Ok(found) => {
                Arc::make_mut(&mut self.addresses).insert(peer.clone(), found);
            }
            // `gone` is told of a target.
            Err(error) if !entry.has_failed && !matches!(peer, Peer::Target(_)) => {
                let (known, error) = (list(known), output::chain(&error));
                self.warnings.push(format!("{peer} stays {known}: {error}"));
            }
            Err(_) => {}
        }
        entry.has_failed = has_failed;
    }
}

/// Looks peers up when they are due.
fn follow(shared: &Shared, is_host: bool) {
    let mut state = shared.lock();
    while !state.is_over {
        let Some((peer, entry)) = state.next(is_host) else {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let wait = entry.due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            let waited = shared.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        let peer = peer.clone();
        let Some(mut lookup) = entry.lookup.take() else { continue };
        drop(state);
        let found = lookup.run(&peer);
        state = shared.lock();
        state.record(&peer, lookup, found);
    }
}

/// Addresses as text.
#[must_use]
pub fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Peer {
        Peer::Host(name.into())
    }

    fn lookup(peer: &Peer) -> Lookup {
        Lookup::of(peer).expect("it is looked up")
    }

    fn found(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    fn missing() -> Result<Vec<IpAddr>, ResolveError> {
        Err(ResolveError::NoAddress("db".into()))
    }

    fn peers(peer: &Peer, addresses: &[&str]) -> Peers {
        let peers = Peers::default();
        peers.insert([(peer.clone(), found(addresses), Some(lookup(peer)))]);
        peers
    }

    #[test]
    fn a_failed_look_up_keeps_the_addresses_and_warns_once() {
        let db = host("db");
        let peers = peers(&db, &["10.0.0.1"]);
        let record = |found| peers.0.0.lock().record(&db, lookup(&db), found);
        let before = peers.addresses();
        record(missing());
        record(missing());
        assert_eq!(peers.take_warnings().len(), 1);
        record(Ok(found(&["10.0.0.1"])));
        assert!(Arc::ptr_eq(&before, &peers.addresses()));
        record(missing());
        assert_eq!(peers.take_warnings().len(), 1);
        record(Ok(found(&["10.0.0.2", "fd00::2"])));
        assert_eq!(peers.addresses()[&db], found(&["10.0.0.2", "fd00::2"]));
        assert!(peers.take_warnings().is_empty());
    }

    #[test]
    fn a_container_that_has_no_interface_yet_keeps_its_addresses() {
        let web = Peer::Local("container", "web".into());
        let peers = peers(&web, &["10.0.0.1"]);
        let record = |found| peers.0.0.lock().record(&web, lookup(&web), found);
        record(Ok(found(&["127.0.0.1"])));
        assert_eq!(peers.addresses()[&web], found(&["10.0.0.1"]));
        record(Ok(found(&["10.0.0.2"])));
        assert_eq!(peers.addresses()[&web], found(&["10.0.0.2"]));
    }

    #[test]
    fn forgotten_peers_are_not_looked_up() {
        let db = host("db");
        let peers = peers(&db, &["10.0.0.1"]);
        peers.retain(&BTreeSet::new());
        assert!(!peers.may_change() && peers.addresses().is_empty());
        peers.0.0.lock().record(&db, lookup(&db), Ok(found(&["10.0.0.2"])));
        assert!(peers.addresses().is_empty());
    }

    #[test]
    fn a_feed_may_have_no_address_and_goes_along_to_others() {
        let Some(Ok(pods)) = Peer::parse_local("pods:shop/app=cart") else { panic!("a peer") };
        let refused = Peers::default().resolve(&BTreeSet::from([&pods]));
        assert!(matches!(refused, Err(ResolveError::ClusterPeer(_))), "{refused:?}");
        let (first, other, feed) = (Peers::default(), Peers::default(), Arc::new(Feed::default()));
        assert!(feed.set(Vec::new()));
        first.add_feed(&pods, &feed);
        assert_eq!(first.addresses()[&pods], found(&[]));
        other.adopt(&first);
        assert!(feed.set(found(&["10.0.0.2", "10.0.0.1", "10.0.0.2"])));
        assert!(!feed.set(found(&["10.0.0.1", "10.0.0.2"])));
        other.follow();
        let end = Instant::now() + std::time::Duration::from_secs(10);
        while other.addresses()[&pods] != found(&["10.0.0.1", "10.0.0.2"]) {
            assert!(Instant::now() < end, "{:?}", other.addresses());
            thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    #[test]
    fn known_peers_are_not_looked_up_again() {
        let db = host("no-such-host.invalid");
        let peers = peers(&db, &["10.0.0.1"]);
        let all = peers.resolve(&BTreeSet::from([&db])).expect("it is known");
        assert_eq!(all[0].addresses, found(&["10.0.0.1"]));
    }
}

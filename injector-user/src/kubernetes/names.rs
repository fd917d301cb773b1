//! Look-ups of the host names that faults of the cluster name as peers.
//!
//! Names mean what they mean in the pods of the resource's namespace ([`search`]).
//!
//! They run in threads of their own, at most [`MAX_THREADS`] for each tenant: name servers that do
//! not answer delay only the faults of the tenant that named them, never the reconciler.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::search;
use crate::{
    output::chain,
    spec::{peer::Peer, rule::RuleSpec},
    target::peers::{self, Addresses},
};

/// The maximum number of simultaneous look-ups of a tenant. A look-up cannot be aborted, and the
/// resolver of the system may wait for minutes.
const MAX_THREADS: usize = 2;

/// The maximum number of simultaneous look-ups of all tenants.
const MAX_ALL_THREADS: usize = 64;

/// Addresses older than this are looked up again before they are used for further pods.
const MAX_AGE: Duration = Duration::from_secs(5);

/// A look-up that takes longer is reported.
const SLOW: Duration = Duration::from_secs(10);

/// A look-up that takes longer than this is worth a status update.
const BRIEF: Duration = Duration::from_millis(500);

/// The first delay after a failure; it doubles with each further one.
const MIN_BACKOFF: Duration = Duration::from_secs(2);
/// The maximum delay after failures.
const MAX_BACKOFF: Duration = Duration::from_mins(1);

/// Names that were not needed for this long are forgotten.
const MAX_IDLE: Duration = Duration::from_mins(2);

/// Why the addresses of a name are not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The look-up has just begun.
    Brief,
    /// The name servers have not answered yet.
    Pending(String),
    /// The name servers answered that the name has no address.
    Failed(String),
}

/// The host names of all tenants. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    entries: Mutex<BTreeMap<Key, Entry>>,
    /// Notified when a look-up has ended.
    changed: Notify,
}

/// A namespace and one of its names.
type Key = (String, Peer);

#[derive(Debug)]
struct Entry {
    addresses: Vec<IpAddr>,
    error: Option<String>,
    failures: u32,
    /// When to look it up next.
    due: Instant,
    /// When the running look-up began.
    began: Option<Instant>,
    used: Instant,
}

/// The host names among the peers of rules.
pub fn of_rules(rules: &[RuleSpec]) -> BTreeSet<&Peer> {
    let mut hosts = peers::named(rules.iter().flat_map(RuleSpec::remotes));
    hosts.retain(|peer| matches!(peer, Peer::Host(_)));
    hosts
}

impl Names {
    /// The addresses of `names`, if all are known. Starts look-ups of those that are not.
    pub fn find(&self, tenant: &str, names: &BTreeSet<&Peer>) -> Result<Addresses, Unknown> {
        let now = Instant::now();
        let mut entries = self.0.lock();
        entries.retain(|_, entry| entry.began.is_some() || now < entry.used + MAX_IDLE);
        for &name in names {
            let entry =
                entries.entry((tenant.into(), name.clone())).or_insert_with(|| Entry::new(now));
            entry.used = now;
        }
        self.start(tenant, &mut entries);
        let mut found = Addresses::new();
        for &name in names {
            let Some(entry) = entries.get(&(tenant.into(), name.clone())) else { continue };
            found.insert(name.clone(), entry.addresses(name, now)?);
        }
        Ok(found)
    }

    /// Waits until a look-up has ended. For one waiter.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Starts the due look-ups of a tenant.
    fn start(&self, tenant: &str, entries: &mut BTreeMap<Key, Entry>) {
        let now = Instant::now();
        let running = |entries: &BTreeMap<Key, Entry>, of: Option<&str>| {
            let is_one = |(key, entry): &(&Key, &Entry)| {
                entry.began.is_some() && of.is_none_or(|tenant| key.0 == tenant)
            };
            entries.iter().filter(is_one).count()
        };
        while running(entries, Some(tenant)) < MAX_THREADS
            && running(entries, None) < MAX_ALL_THREADS
        {
            let mut waiting: Vec<_> = entries
                .iter_mut()
                .filter(|(key, entry)| key.0 == tenant && entry.began.is_none() && entry.due <= now)
                .collect();
            waiting.sort_by_key(|(_, entry)| entry.due);
            let Some((key, entry)) = waiting.into_iter().next() else { return };
            let (shared, key) = (self.0.clone(), key.clone());
            let work = move || {
                let (namespace, peer) = &key;
                let names = match peer {
                    Peer::Host(name) => search::names(name, namespace),
                    peer => vec![peer.to_string()],
                };
                let found = peers::look_up_host(peer, names).map_err(|error| chain(&error));
                shared.record(&key, found);
            };
            match thread::Builder::new().name("names".into()).spawn(work) {
                Ok(_) => entry.began = Some(now),
                Err(error) => entry.fail(format!("cannot start a thread: {error}")),
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        // Each change is complete before anything can panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, key: &Key, found: Result<Vec<IpAddr>, String>) {
        if let Some(entry) = self.lock().get_mut(key) {
            entry.began = None;
            match found {
                Ok(addresses) => {
                    (entry.addresses, entry.error, entry.failures) = (addresses, None, 0);
                    entry.due = Instant::now() + MAX_AGE;
                }
                Err(error) => entry.fail(error),
            }
        }
        self.changed.notify_one();
    }
}

impl Entry {
    const fn new(now: Instant) -> Self {
        Self { addresses: Vec::new(), error: None, failures: 0, due: now, began: None, used: now }
    }

    /// Records a failure. Addresses that are known stay.
    fn fail(&mut self, error: String) {
        self.error = Some(error);
        self.due =
            Instant::now() + (MIN_BACKOFF * 2u32.saturating_pow(self.failures)).min(MAX_BACKOFF);
        self.failures = (self.failures + 1).min(16);
    }

    fn addresses(&self, name: &Peer, now: Instant) -> Result<Vec<IpAddr>, Unknown> {
        if !self.addresses.is_empty() {
            return Ok(self.addresses.clone());
        }
        let waits = self.began.map(|began| now.saturating_duration_since(began));
        Err(match (&self.error, waits) {
            (Some(error), _) => Unknown::Failed(error.clone()),
            (None, Some(waits)) if waits < BRIEF => Unknown::Brief,
            (None, Some(waits)) if waits >= SLOW => Unknown::Pending(format!(
                "the name servers have not answered for the host name {name} within {SLOW:?}"
            )),
            (None, _) => Unknown::Pending(format!("the host name {name} is being looked up")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Peer {
        Peer::Host(name.into())
    }

    /// Marks look-ups as running that never end.
    fn hang(names: &Names, tenant: &str, count: usize) {
        let now = Instant::now();
        for number in 0..count {
            let entry = Entry { began: Some(now), ..Entry::new(now) };
            names.0.lock().insert((tenant.into(), host(&format!("silent-{number}"))), entry);
        }
    }

    fn wait_for(names: &Names, tenant: &str, name: &Peer) -> Result<Addresses, Unknown> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let found = names.find(tenant, &BTreeSet::from([name]));
            if !matches!(found, Err(Unknown::Brief | Unknown::Pending(_))) || Instant::now() > end {
                return found;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_tenant_whose_name_servers_hang_delays_no_other() {
        let names = Names::default();
        hang(&names, "stalled", MAX_THREADS);
        let localhost = host("127.0.0.1");
        assert!(wait_for(&names, "other", &localhost).is_ok());
        let found = names.find("stalled", &BTreeSet::from([&localhost]));
        assert!(matches!(found, Err(Unknown::Pending(_))), "{found:?}");
    }

    #[test]
    fn failures_are_told_and_retried_less_and_less_often() {
        let now = Instant::now();
        let mut entry = Entry::new(now);
        let name = host("db");
        for expected in [2, 4, 8, 16, 32, 60, 60] {
            entry.fail("no such host".into());
            let wait = entry.due.saturating_duration_since(Instant::now());
            assert_eq!(wait.as_secs_f64().round() as u64, expected);
        }
        assert_eq!(entry.addresses(&name, now), Err(Unknown::Failed("no such host".into())));
        entry.addresses = vec!["10.0.0.1".parse().expect("an address")];
        assert!(entry.addresses(&name, now).is_ok(), "known addresses stay");
    }

    #[test]
    fn a_look_up_that_takes_long_is_told() {
        let began = Instant::now();
        let entry = Entry { began: Some(began), ..Entry::new(began) };
        let after = |time| entry.addresses(&host("db"), began + time);
        assert_eq!(after(Duration::ZERO), Err(Unknown::Brief));
        let told = |found| match found {
            Err(Unknown::Pending(message)) => message,
            other => panic!("{other:?}"),
        };
        assert!(told(after(Duration::from_secs(2))).contains("is being looked up"));
        assert!(told(after(SLOW)).contains("have not answered for the host name db within 10s"));
    }
}

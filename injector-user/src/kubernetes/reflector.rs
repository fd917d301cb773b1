//! A local copy of API objects, kept up to date by a watch.

use std::{collections::BTreeMap, fmt::Debug, pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt as _};
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::watcher::{self, Event},
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::heartbeat::text;

/// The server closes a watch after this time and the client opens another one. This bounds how long
/// a silently dead connection goes unnoticed.
const WATCH_SECONDS: u32 = 20;

/// The first delay after a failure; it doubles with each further one.
const MIN_BACKOFF: Duration = Duration::from_millis(250);
/// The maximum delay after failures.
const MAX_BACKOFF: Duration = Duration::from_secs(4);

/// What an event has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// No object.
    Nothing,
    /// The object with this UID.
    One(String),
    /// Any objects.
    All,
}

/// The known objects of one kind, converted to `T`.
pub struct Reflector<K, T> {
    what: &'static str,
    stream: Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>,
    convert: fn(K) -> Option<T>,
    /// By UID.
    objects: BTreeMap<String, T>,
    /// Resource versions by UID.
    versions: BTreeMap<String, u64>,
    /// The objects of an initial list that is still being received.
    listed: Option<BTreeMap<String, T>>,
    is_complete: bool,
    /// Why the last attempt failed.
    error: Option<String>,
    backoff: Duration,
    /// When to poll the watch again after a failure.
    retry_at: Instant,
}

impl<K, T> Reflector<K, T>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    /// Watches the objects of `api` that `config` selects. Objects for which `convert` returns
    /// `None` are left out.
    pub fn new(
        what: &'static str,
        api: Api<K>,
        config: watcher::Config,
        convert: fn(K) -> Option<T>,
    ) -> Self {
        Self {
            what,
            stream: watcher::watcher(api, config.timeout(WATCH_SECONDS)).boxed(),
            convert,
            objects: BTreeMap::new(),
            versions: BTreeMap::new(),
            listed: None,
            is_complete: false,
            error: None,
            backoff: MIN_BACKOFF,
            retry_at: Instant::now(),
        }
    }

    /// All objects by UID; `None` before the initial list is complete.
    pub fn all(&self) -> Option<&BTreeMap<String, T>> {
        self.is_complete.then_some(&self.objects)
    }

    /// Why the watch fails, if it does.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// The object with this UID.
    pub fn get(&self, uid: &str) -> Option<&T> {
        self.objects.get(uid)
    }

    /// Replaces a known object by a newer version from an answer of the server.
    pub fn replace(&mut self, object: K) {
        if object.uid().is_some_and(|uid| self.objects.contains_key(&uid)) {
            self.update(object);
        }
    }

    /// Waits for the next event and applies it. Cancel-safe.
    ///
    /// Returns what has changed.
    pub async fn next(&mut self) -> Change {
        tokio::time::sleep_until(self.retry_at).await;
        match self.stream.next().await {
            Some(Ok(event)) => {
                self.backoff = MIN_BACKOFF;
                self.error = None;
                self.apply(event)
            }
            Some(Err(error)) => {
                // Warn once per outage. An expired resource version is routine.
                let is_first = self.backoff == MIN_BACKOFF;
                let (what, why) = (self.what, why(&error));
                if is_first && !matches!(error, watcher::Error::WatchError(_)) {
                    tracing::warn!("cannot watch {what}: {why}");
                } else {
                    tracing::debug!("cannot watch {what}: {why}");
                }
                self.error = Some(why);
                self.retry_at = Instant::now() + self.backoff;
                self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
                Change::Nothing
            }
            // The stream never ends.
            None => std::future::pending().await,
        }
    }

    fn apply(&mut self, event: Event<K>) -> Change {
        match event {
            Event::Init => {
                self.listed = Some(BTreeMap::new());
                Change::Nothing
            }
            Event::InitApply(object) => {
                let uid = object.uid().unwrap_or_default();
                if let (Some(listed), Some(object)) = (&mut self.listed, (self.convert)(object)) {
                    listed.insert(uid, object);
                }
                Change::Nothing
            }
            Event::InitDone => {
                self.objects = self.listed.take().unwrap_or_default();
                self.versions.clear();
                self.is_complete = true;
                Change::All
            }
            Event::Apply(object) => {
                let uid = object.uid().unwrap_or_default();
                self.update(object);
                Change::One(uid)
            }
            Event::Delete(object) => {
                let uid = object.uid().unwrap_or_default();
                self.objects.remove(&uid);
                self.versions.remove(&uid);
                Change::One(uid)
            }
        }
    }

    /// Stores an object unless a newer version is known: answers to requests may overtake events.
    fn update(&mut self, object: K) {
        let uid = object.uid().unwrap_or_default();
        let version = object.resource_version().and_then(|version| version.parse().ok());
        let version: u64 = version.unwrap_or_default();
        if self.versions.get(&uid).is_some_and(|&known| version < known) {
            return;
        }
        self.versions.insert(uid.clone(), version);
        match (self.convert)(object) {
            Some(object) => self.objects.insert(uid, object),
            None => self.objects.remove(&uid),
        };
    }
}

fn why(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => text(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        error @ watcher::Error::NoResourceVersion => error.to_string(),
    }
}

//! What the API server has, as it was told of last.

use std::{collections::BTreeMap, fmt::Debug, pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt as _};
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::watcher::{self, Event},
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::presence::text;

/// The server ends a watch after so many seconds, and it is asked for another one: a connection that is dead without
/// anybody knowing is noticed so soon.
const WATCH_SECONDS: u32 = 20;

/// How long to wait after a failure: at first, and at most.
const SHORTEST_BREATH: Duration = Duration::from_millis(250);
const LONGEST_BREATH: Duration = Duration::from_secs(4);

/// Objects of a kind, as far as they were taken over.
pub struct Watched<K, T> {
    what: &'static str,
    stream: Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>,
    take: fn(K) -> Option<T>,
    /// By their unique IDs.
    objects: BTreeMap<String, T>,
    /// Their versions, as numbers.
    versions: BTreeMap<String, u64>,
    /// Those of a list that is being read.
    listed: Option<BTreeMap<String, T>>,
    is_complete: bool,
    breath: Duration,
    /// When to go on, after a failure.
    resume: Instant,
}

impl<K, T> Watched<K, T>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    /// Watches all that `api` has, or of that what `config` selects; `take` says what is kept of each.
    pub fn new(
        what: &'static str,
        api: Api<K>,
        config: watcher::Config,
        take: fn(K) -> Option<T>,
    ) -> Self {
        Self {
            what,
            stream: watcher::watcher(api, config.timeout(WATCH_SECONDS)).boxed(),
            take,
            objects: BTreeMap::new(),
            versions: BTreeMap::new(),
            listed: None,
            is_complete: false,
            breath: SHORTEST_BREATH,
            resume: Instant::now(),
        }
    }

    /// What there is; nothing before all of it is known.
    pub fn all(&self) -> Option<&BTreeMap<String, T>> {
        self.is_complete.then_some(&self.objects)
    }

    /// The object with this ID.
    pub fn get(&self, uid: &str) -> Option<&T> {
        self.objects.get(uid)
    }

    /// Takes an object as the server has answered with it, if it is still there.
    pub fn replace(&mut self, object: K) {
        if object.uid().is_some_and(|uid| self.objects.contains_key(&uid)) {
            self.take_over(object);
        }
    }

    /// Waits for news, and takes them over. Nothing is lost if that is broken off.
    pub async fn next(&mut self) {
        tokio::time::sleep_until(self.resume).await;
        match self.stream.next().await {
            Some(Ok(event)) => {
                self.breath = SHORTEST_BREATH;
                self.apply(event);
            }
            Some(Err(error)) => {
                // Once, as long as it does not work. That what was known has expired is nothing to worry about.
                let is_first = self.breath == SHORTEST_BREATH;
                let (what, why) = (self.what, why(&error));
                if is_first && !matches!(error, watcher::Error::WatchError(_)) {
                    tracing::warn!("cannot watch {what}: {why}");
                } else {
                    tracing::debug!("cannot watch {what}: {why}");
                }
                self.resume = Instant::now() + self.breath;
                self.breath = (self.breath * 2).min(LONGEST_BREATH);
            }
            // It goes on for ever.
            None => std::future::pending().await,
        }
    }

    fn apply(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.listed = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                let uid = object.uid().unwrap_or_default();
                if let (Some(listed), Some(object)) = (&mut self.listed, (self.take)(object)) {
                    listed.insert(uid, object);
                }
            }
            Event::InitDone => {
                self.objects = self.listed.take().unwrap_or_default();
                self.versions.clear();
                self.is_complete = true;
            }
            Event::Apply(object) => self.take_over(object),
            Event::Delete(object) => {
                let uid = object.uid().unwrap_or_default();
                self.objects.remove(&uid);
                self.versions.remove(&uid);
            }
        }
    }

    /// Takes an object over, unless it is older than what is known: an answer may overtake the news.
    fn take_over(&mut self, object: K) {
        let uid = object.uid().unwrap_or_default();
        let version = object.resource_version().and_then(|version| version.parse().ok());
        let version: u64 = version.unwrap_or_default();
        if self.versions.get(&uid).is_some_and(|&known| version < known) {
            return;
        }
        self.versions.insert(uid.clone(), version);
        match (self.take)(object) {
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

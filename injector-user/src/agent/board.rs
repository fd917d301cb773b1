//! The fault store: the last states of all faults, written by the fault manager. Reads do not wait for it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::broadcast::{self, error::RecvError};

use super::api::{Code, Fault, Phase, Reason};
use crate::{fault::network::report::Totals, kernel::clock};

/// The maximum number of ended faults that are kept.
const MAX_ENDED: usize = 64;

/// The capacity of the channel of changes for a slow watcher.
const CHANNEL_CAPACITY: usize = 1024;

/// The kind of a change of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The current state of an existing fault.
    State,
    /// The fault started.
    Created,
    /// The lease was renewed.
    Renewed,
    /// The counters changed.
    Counted,
    /// Peers that the rules name have other addresses.
    Changed,
    /// The fault ended.
    Ended,
}

impl What {
    /// The name in the stream of events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Created => "created",
            Self::Renewed => "renewed",
            Self::Counted => "counted",
            Self::Changed => "changed",
            Self::Ended => "ended",
        }
    }
}

/// A change of a fault.
#[derive(Clone, Debug)]
pub struct Change {
    /// The kind.
    pub what: What,
    /// The new state, abridged.
    pub fault: Arc<Fault>,
}

/// Waits until a matching fault has ended, or may have ended in missed changes.
pub async fn ended(changes: &mut broadcast::Receiver<Change>, is_one: impl Fn(&Fault) -> bool) {
    loop {
        match changes.recv().await {
            Ok(Change { what: What::Ended, fault }) if is_one(&fault) => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Cumulative statistics of the agent.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Started faults.
    pub created: u64,
    /// Ended faults by reason.
    pub ended: BTreeMap<Reason, u64>,
    /// Packet counters of ended faults.
    pub packets: Totals,
    /// Failed requests by error code.
    pub problems: BTreeMap<Code, u64>,
}

#[derive(Debug, Default)]
struct Contents {
    active: BTreeMap<String, Arc<Fault>>,
    /// Latest first.
    ended: Vec<Arc<Fault>>,
    ledger: Ledger,
}

/// The fault store.
#[derive(Debug)]
pub struct Board {
    contents: RwLock<Contents>,
    changes: broadcast::Sender<Change>,
    /// The last sign of life of the fault manager, by `CLOCK_MONOTONIC`.
    alive_ns: AtomicU64,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            contents: RwLock::default(),
            changes: broadcast::Sender::new(CHANNEL_CAPACITY),
            alive_ns: AtomicU64::new(clock::monotonic_ns()),
        }
    }
}

impl Board {
    /// All faults, active ones first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Fault>> {
        self.read(|contents| contents.active.values().chain(&contents.ended).cloned().collect())
    }

    /// The active faults.
    #[must_use]
    pub fn active(&self) -> Vec<Arc<Fault>> {
        self.read(|contents| contents.active.values().cloned().collect())
    }

    /// The active fault of this name, or else the last ended one.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Fault>> {
        self.read(|contents| {
            let ended = || contents.ended.iter().find(|fault| fault.name == name);
            contents.active.get(name).or_else(ended).cloned()
        })
    }

    /// The cumulative statistics and the active faults, consistently: an ending fault moves from the latter
    /// to the former.
    #[must_use]
    pub fn counted(&self) -> (Ledger, Vec<Arc<Fault>>) {
        self.read(|contents| (contents.ledger.clone(), contents.active.values().cloned().collect()))
    }

    /// Subscribes to changes.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// The time since the last sign of life of the fault manager, in nanoseconds.
    #[must_use]
    pub fn silent_ns(&self) -> u64 {
        clock::monotonic_ns().saturating_sub(self.alive_ns.load(Relaxed))
    }

    /// Records a sign of life of the fault manager.
    pub(super) fn is_alive(&self) {
        self.alive_ns.store(clock::monotonic_ns(), Relaxed);
    }

    /// Counts a failed request.
    pub fn count_problem(&self, code: Code) {
        self.write(|contents| *contents.ledger.problems.entry(code).or_default() += 1);
    }

    /// Stores the new state of a fault and publishes the change.
    pub(super) fn put(&self, what: What, fault: Fault) -> Arc<Fault> {
        let fault = Arc::new(fault);
        self.write(|contents| match fault.phase {
            Phase::Active => {
                if what == What::Created {
                    contents.ledger.created += 1;
                }
                contents.active.insert(fault.name.clone(), fault.clone());
            }
            Phase::Ended => {
                contents.active.remove(&fault.name);
                contents.ended.retain(|ended| ended.name != fault.name);
                contents.ended.insert(0, fault.clone());
                contents.ended.truncate(MAX_ENDED);
                if let Some(reason) = fault.reason {
                    *contents.ledger.ended.entry(reason).or_default() += 1;
                }
                // Counters of its parts are counted with them.
                if !fault.is_of_selected() {
                    contents.ledger.packets += &fault.packets;
                }
            }
        });
        // There may be no watcher. Changes omit rules, since many may be queued for a slow watcher.
        let _ = self.changes.send(Change { what, fault: fault.in_short().into() });
        fault
    }

    /// Stores the state of an active fault without publishing it.
    pub(super) fn update(&self, fault: Fault) {
        let fault = Arc::new(fault);
        self.write(|contents| contents.active.insert(fault.name.clone(), fault));
    }

    // A panic while the lock is held would leave a valid state.
    fn read<T>(&self, look: impl FnOnce(&Contents) -> T) -> T {
        look(&self.contents.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Contents) -> T) -> T {
        change(&mut self.contents.write().unwrap_or_else(PoisonError::into_inner))
    }
}

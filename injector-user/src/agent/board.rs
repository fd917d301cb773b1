//! What there is to see: the faults, as the keeper wrote them down last. Reading waits for nobody.

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

/// Ended faults are remembered up to this number.
const REMEMBERED: usize = 64;

/// Changes that a slow watcher may be behind.
const BEHIND: usize = 1024;

/// Something that happened to a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It is there, and acts or did.
    State,
    /// It began.
    Created,
    /// Its lease was renewed.
    Renewed,
    /// It did something.
    Counted,
    /// It ended.
    Ended,
}

impl What {
    /// Its name in the stream of events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Created => "created",
            Self::Renewed => "renewed",
            Self::Counted => "counted",
            Self::Ended => "ended",
        }
    }
}

/// A change.
#[derive(Clone, Debug)]
pub struct Change {
    /// What happened.
    pub what: What,
    /// To what, as it is now, in short.
    pub fault: Arc<Fault>,
}

/// Waits until one of certain faults has ended, or may have without being seen.
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

/// What is counted for as long as the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Faults that began.
    pub created: u64,
    /// Faults that ended, by the reason.
    pub ended: BTreeMap<Reason, u64>,
    /// What ended faults did to packets.
    pub packets: Totals,
    /// Requests that failed, by the kind.
    pub problems: BTreeMap<Code, u64>,
}

#[derive(Debug, Default)]
struct Contents {
    active: BTreeMap<String, Arc<Fault>>,
    /// The last first.
    ended: Vec<Arc<Fault>>,
    ledger: Ledger,
}

/// The board.
#[derive(Debug)]
pub struct Board {
    contents: RwLock<Contents>,
    changes: broadcast::Sender<Change>,
    /// When the keeper was seen last, by `CLOCK_MONOTONIC`.
    alive_ns: AtomicU64,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            contents: RwLock::default(),
            changes: broadcast::Sender::new(BEHIND),
            alive_ns: AtomicU64::new(clock::monotonic_ns()),
        }
    }
}

impl Board {
    /// All faults, those that act first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Fault>> {
        self.read(|contents| contents.active.values().chain(&contents.ended).cloned().collect())
    }

    /// The faults that act.
    #[must_use]
    pub fn active(&self) -> Vec<Arc<Fault>> {
        self.read(|contents| contents.active.values().cloned().collect())
    }

    /// A fault that acts, or else the last one that did under this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Fault>> {
        self.read(|contents| {
            let ended = || contents.ended.iter().find(|fault| fault.name == name);
            contents.active.get(name).or_else(ended).cloned()
        })
    }

    /// What was counted so far, and the faults that act. A fault that ends goes from these into that, so both are of
    /// the same moment.
    #[must_use]
    pub fn counted(&self) -> (Ledger, Vec<Arc<Fault>>) {
        self.read(|contents| (contents.ledger.clone(), contents.active.values().cloned().collect()))
    }

    /// What is yet to happen.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// How long ago the keeper was seen, in nanoseconds.
    #[must_use]
    pub fn silent_ns(&self) -> u64 {
        clock::monotonic_ns().saturating_sub(self.alive_ns.load(Relaxed))
    }

    /// Says that the keeper is there.
    pub(super) fn is_alive(&self) {
        self.alive_ns.store(clock::monotonic_ns(), Relaxed);
    }

    /// Counts a request that failed.
    pub fn count_problem(&self, code: Code) {
        self.write(|contents| *contents.ledger.problems.entry(code).or_default() += 1);
    }

    /// Writes down what a fault is now.
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
                contents.ended.truncate(REMEMBERED);
                if let Some(reason) = fault.reason {
                    *contents.ledger.ended.entry(reason).or_default() += 1;
                }
                // What its parts did is counted with them.
                if !fault.is_of_selected() {
                    contents.ledger.packets += &fault.packets;
                }
            }
        });
        // Nobody may be watching. Those who do are not told of rules, and one that is slow is behind by many changes.
        let _ = self.changes.send(Change { what, fault: fault.in_short().into() });
        fault
    }

    /// Writes down what an active fault has done, and tells no one.
    pub(super) fn update(&self, fault: Fault) {
        let fault = Arc::new(fault);
        self.write(|contents| contents.active.insert(fault.name.clone(), fault));
    }

    // Nothing panics while it holds the lock, and if it did, all that is there would still be true.
    fn read<T>(&self, look: impl FnOnce(&Contents) -> T) -> T {
        look(&self.contents.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Contents) -> T) -> T {
        change(&mut self.contents.write().unwrap_or_else(PoisonError::into_inner))
    }
}

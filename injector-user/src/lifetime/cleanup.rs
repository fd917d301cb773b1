//! Undoing what dead injectors left.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    LifetimeError,
    action::Action,
    journal::{self, Journal, SLOTS},
};

/// How long to wait for others that are about to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Settles the journals that nobody keeps any more. Returns what was undone, and what could not be.
#[must_use]
pub fn cleanup() -> (Vec<Action>, Vec<LifetimeError>) {
    let mut undone = Vec::new();
    loop {
        let (settled, failures) = settle_all();
        let is_done = settled.is_empty();
        undone.extend(settled);
        // What one had done may have kept in use what another one had done.
        if is_done || !failures.is_empty() {
            return (undone, failures);
        }
    }
}

fn settle_all() -> (Vec<Action>, Vec<LifetimeError>) {
    let (mut undone, mut failures) = (Vec::new(), Vec::new());
    for slot in 0..SLOTS {
        let settled = match Journal::lock_existing(slot) {
            Ok(Some(journal)) => journal.settle(),
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        match settled {
            Ok(actions) => undone.extend(actions),
            Err(error) => failures.push(error),
        }
    }
    (undone, failures)
}

/// What an injector does last: the same as [`cleanup`], also for those that are about to end. They have said so before
/// they look what is in use; so what this one has kept in use until now is removed by them, or else here.
pub fn sweep() {
    let is_ending = |slot| journal::peek(slot).is_some_and(|contents| contents.is_ending);
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, failures) = cleanup();
        for error in failures {
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot clean up");
        }
        let is_kept = |slot| is_ending(slot) && Journal::is_locked(slot);
        if !(0..SLOTS).any(is_kept) || Instant::now() > end {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

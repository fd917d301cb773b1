//! Cleanup of changes left behind by dead injectors.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    LifetimeError,
    journal::{self, Journal, Leftover, SLOTS},
};

/// How long to wait for other injectors that are ending.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Settles the journals of dead injectors. Returns the undone actions and the failures.
#[must_use]
pub fn cleanup() -> (Vec<Leftover>, Vec<LifetimeError>) {
    let mut undone = Vec::new();
    loop {
        let (settled, failures) = settle_all();
        let is_done = settled.is_empty();
        undone.extend(settled);
        // One dead injector's changes may have kept another's in use.
        if is_done || !failures.is_empty() {
            return (undone, failures);
        }
    }
}

fn settle_all() -> (Vec<Leftover>, Vec<LifetimeError>) {
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

/// The last step of an injector: [`cleanup`], including journals of injectors that are ending.
/// Those mark their journal before they check what is in use. Anything this injector kept in use is
/// therefore removed by them or here.
pub fn sweep() {
    let is_ending = |slot| journal::peek(slot).is_some_and(|contents| contents.is_ending);
    let end = Instant::now() + EXIT_TIMEOUT;
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

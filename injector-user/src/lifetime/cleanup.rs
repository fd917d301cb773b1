//! Undoing what dead injectors left.

use super::{
    LifetimeError,
    action::Action,
    journal::{Journal, SLOTS},
};

/// Settles the journals that nobody keeps any more. Returns what was undone, and what could not be.
#[must_use]
pub fn cleanup() -> (Vec<Action>, Vec<LifetimeError>) {
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

//! Addresses of a peer that another part of the program keeps up to date.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The current addresses of a peer.
#[derive(Debug, Default)]
pub struct Feed(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    addresses: Option<Vec<IpAddr>>,
    error: Option<String>,
}

impl Feed {
    /// The addresses in ascending order, once they are known. There may be none.
    #[must_use]
    pub fn addresses(&self) -> Option<Vec<IpAddr>> {
        self.lock().addresses.clone()
    }

    /// Why the addresses are not known.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    /// Replaces the addresses. Returns whether they changed.
    pub fn set(&self, mut addresses: Vec<IpAddr>) -> bool {
        addresses.sort_unstable();
        addresses.dedup();
        let mut state = self.lock();
        state.error = None;
        let is_changed = state.addresses.as_ref() != Some(&addresses);
        state.addresses = Some(addresses);
        is_changed
    }

    /// Records why the addresses are not known. Addresses that are known stay.
    pub fn fail(&self, error: String) {
        self.lock().error = Some(error);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

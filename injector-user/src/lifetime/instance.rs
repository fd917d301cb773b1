//! A running injector: its slot, its journal, its guardian.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    LifetimeError,
    action::{Action, Undone},
    cleanup,
    guardian::Guardian,
    journal::{self, Contents, Journal, Owner, SLOTS},
};
use crate::kernel::rcu;

/// This running injector. [`Self::end`] and dropping undo everything done by [`Self::perform`].
#[derive(Debug)]
pub struct Instance {
    slot: u32,
    journal: Option<Journal>,
    guardian: Option<Guardian>,
    next_id: u32,
    /// Whether it created a cgroup, possibly inside one that another injector created.
    made_cgroup: bool,
    /// The journaled actions that are not undone.
    done: Vec<(u32, Action)>,
}

impl Instance {
    /// Takes a free slot, preferably one without leftovers.
    pub fn start(owner: Owner) -> Result<Self, LifetimeError> {
        for is_empty_wanted in [true, false] {
            for slot in 0..SLOTS {
                let Some(mut journal) = Journal::lock(slot)? else { continue };
                // Leftovers that could not be undone block the slot.
                let contents = journal.read()?;
                if !contents.is_free() || (is_empty_wanted && !contents.actions.is_empty()) {
                    continue;
                }
                let next_id = journal.begin(owner)?;
                let journal = Some(journal);
                return Ok(Self {
                    slot,
                    journal,
                    guardian: None,
                    next_id,
                    made_cgroup: false,
                    done: Vec::new(),
                });
            }
        }
        Err(LifetimeError::NoSlot)
    }

    /// The slot, from 0 to [`SLOTS`] - 1, unique among running injectors.
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// Starts the guardian unless it runs already, so that later actions need not wait for it.
    pub fn guard(&mut self) -> Result<(), LifetimeError> {
        if self.guardian.is_none() {
            self.guardian = Some(Guardian::start(self.slot)?);
        }
        Ok(())
    }

    /// Performs an action that must be undone at the end: it is journaled first, and the guardian
    /// runs. A failed action is undone as far as it was done, without touching changes of others.
    ///
    /// Returns an ID for undoing it earlier.
    pub fn perform(
        &mut self,
        action: Action,
        work: impl FnOnce() -> std::io::Result<()>,
    ) -> Result<u32, LifetimeError> {
        self.guard()?;
        let id = self.next_id;
        self.next_id += 1;
        if let Some(journal) = &mut self.journal {
            journal.announce(id, &action)?;
        }
        let done = work();
        let (what, is_single_call) = (action.to_string(), action.is_single_call());
        self.made_cgroup |= matches!(action, Action::MakeCgroup { .. });
        self.done.push((id, action));
        match done {
            Ok(()) => Ok(id),
            Err(source) => {
                if is_single_call {
                    self.was_undone(id)?;
                } else {
                    self.undo(id)?;
                }
                Err(LifetimeError::Do { what, source })
            }
        }
    }

    /// Runs `work` with expedited grace periods of RCU, if the kernel permits it.
    pub fn expedited<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        /// Unlike the values that people write.
        const FIRST_VALUE: u32 = 1 << 16;

        let value = FIRST_VALUE + self.slot;
        let action = matches!(rcu::expedited(), Ok(0))
            .then(|| self.perform(Action::ExpediteRcu { value }, || rcu::set_expedited(value)));
        let done = work(self);
        match action {
            None => {}
            Some(Ok(action)) => {
                if let Err(error) = self.undo(action) {
                    tracing::error!(%error, "trying again at the end");
                }
            }
            // It only takes longer.
            Some(Err(error)) => tracing::debug!(%error, "grace periods are not expedited"),
        }
        done
    }

    /// Records what is faulted, for [`running`].
    pub fn describe(&mut self, faulted: &impl Serialize) -> Result<(), LifetimeError> {
        self.journal.as_mut().map_or(Ok(()), |journal| journal.describe(faulted))
    }

    /// Updates the journal entry of an action with details that became known later.
    pub fn revise(&mut self, id: u32, action: Action) -> Result<(), LifetimeError> {
        let Some((_, done)) = self.done.iter_mut().find(|(done, _)| *done == id) else {
            return Ok(());
        };
        if let Some(journal) = &mut self.journal {
            journal.announce(id, &action)?;
        }
        *done = action;
        Ok(())
    }

    /// The guardian's process ID, if it runs.
    #[must_use]
    pub fn guardian(&self) -> Option<i32> {
        self.guardian.as_ref().map(Guardian::pid)
    }

    /// Whether [`Self::perform`] performed this action and it is not undone.
    #[must_use]
    pub fn has_done(&self, action: &Action) -> bool {
        self.done.iter().any(|(_, done)| done == action)
    }

    /// Records that an action has already been undone.
    pub fn was_undone(&mut self, id: u32) -> Result<(), LifetimeError> {
        self.done.retain(|(done, _)| *done != id);
        self.journal.as_mut().map_or(Ok(()), |journal| journal.undone(id))
    }

    /// Undoes an action. Anything that others use stays, in the journal too.
    pub fn undo(&mut self, id: u32) -> Result<(), LifetimeError> {
        let Some(index) = self.done.iter().position(|(done, _)| *done == id) else { return Ok(()) };
        let (_, action) = &self.done[index];
        let fail = |source| LifetimeError::Undo { what: action.to_string(), source };
        match action.undo().map_err(fail)? {
            Undone::Done => self.was_undone(id),
            Undone::InUse => Ok(()),
        }
    }

    /// Undoes everything and releases the slot.
    pub fn end(&mut self) -> Result<(), LifetimeError> {
        let settled = self.journal.take().map_or(Ok(()), |journal| journal.settle().map(drop));
        if self.made_cgroup {
            // It may have kept a cgroup in use whose injector has ended since.
            cleanup::sweep();
        }
        if let Some(guardian) = self.guardian.take() {
            guardian.dismiss();
        }
        settled
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "could not undo everything; `injector cleanup` tries again");
        }
    }
}

/// An instance shared by all injections of a process. It ends with its last owner.
#[derive(Clone, Debug)]
pub struct SharedInstance(Arc<Mutex<Instance>>);

impl SharedInstance {
    /// Takes a free slot.
    pub fn start(owner: Owner) -> Result<Self, LifetimeError> {
        Ok(Self(Arc::new(Mutex::new(Instance::start(owner)?))))
    }

    /// Undoes everything and releases the slot, unless another injection shares it.
    pub fn end(self) -> Result<(), LifetimeError> {
        Arc::into_inner(self.0).map_or(Ok(()), |instance| {
            instance.into_inner().unwrap_or_else(PoisonError::into_inner).end()
        })
    }

    /// Locks the instance. A poisoned lock is ignored: the journal stays correct across panics.
    pub fn lock(&self) -> MutexGuard<'_, Instance> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running injector as seen by others.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Running")]
pub struct Running<T> {
    /// The first of its slots, of which the machine has 16. It has one for each target; an agent has several.
    pub slot: u32,
    /// Its owner.
    #[serde(flatten)]
    pub owner: Owner,
    /// What it faults. The faults of an agent have lines of their own.
    pub targets: Vec<T>,
}

/// The running injectors, each once, with what they have described as `T`.
pub fn running<T: DeserializeOwned>() -> Result<Vec<Running<T>>, LifetimeError> {
    let mut found: Vec<Running<T>> = Vec::new();
    for slot in 0..SLOTS {
        // A journal that can be locked has no running owner; the lock is released at once.
        if !journal::path(slot).exists() || Journal::lock_existing(slot)?.is_some() {
            continue;
        }
        // The guardian of a dead injector locks the journal while it undoes the rest.
        let contents = journal::peek(slot).filter(|contents| !contents.is_ending);
        let Some(Contents { owner: Some(owner), faulted, .. }) = contents else { continue };
        // Another version may describe it otherwise.
        let faulted = faulted.and_then(|faulted| serde_json::from_value(faulted).ok());
        match found.iter_mut().find(|running| running.owner == owner) {
            Some(running) => running.targets.extend(faulted),
            None => found.push(Running { slot, owner, targets: faulted.into_iter().collect() }),
        }
    }
    Ok(found)
}

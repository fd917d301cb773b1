//! A running injector: its slot, its journal, its guardian.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    LifetimeError,
    action::{Action, Undone},
    cleanup,
    guardian::Guardian,
    journal::{self, Journal, Owner, SLOTS},
};

/// This running injector. What it did through [`Self::perform`] is undone by [`Self::end`], and when
/// it is dropped.
#[derive(Debug)]
pub struct Instance {
    slot: u32,
    journal: Option<Journal>,
    guardian: Option<Guardian>,
    next_id: u32,
    /// Whether it has made a cgroup, which may be in one of another injector.
    made_cgroup: bool,
    /// What the journal says is done.
    done: Vec<(u32, Action)>,
}

impl Instance {
    /// Takes a free slot; rather one without anything left to be undone once others do not use it.
    pub fn start(owner: Owner) -> Result<Self, LifetimeError> {
        for is_empty_wanted in [true, false] {
            for slot in 0..SLOTS {
                let Some(mut journal) = Journal::lock(slot)? else { continue };
                // What a dead owner left there and could not be undone keeps the slot from being used.
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

    /// The slot, from 0 to [`SLOTS`] - 1, which no other running injector has.
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// Starts the guardian if there is none yet, so that what is performed later need not wait for it.
    pub fn guard(&mut self) -> Result<(), LifetimeError> {
        if self.guardian.is_none() {
            self.guardian = Some(Guardian::start(self.slot)?);
        }
        Ok(())
    }

    /// Does something that must be undone at the end: journalled first, and under a guardian's eyes. If it fails, what
    /// was done in part is undone, and nothing that others did.
    ///
    /// Returns a number by which it can be undone earlier.
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

    /// Says what something that [`Self::perform`] did turned out to be.
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

    /// The guardian's process, if there is one.
    #[must_use]
    pub fn guardian(&self) -> Option<i32> {
        self.guardian.as_ref().map(Guardian::pid)
    }

    /// Whether [`Self::perform`] did this, and it is not undone.
    #[must_use]
    pub fn has_done(&self, action: &Action) -> bool {
        self.done.iter().any(|(_, done)| done == action)
    }

    /// Says that what [`Self::perform`] did has been undone already.
    pub fn was_undone(&mut self, id: u32) -> Result<(), LifetimeError> {
        self.done.retain(|(done, _)| *done != id);
        self.journal.as_mut().map_or(Ok(()), |journal| journal.undone(id))
    }

    /// Undoes what [`Self::perform`] did. What others use by now stays, and stays in the journal.
    pub fn undo(&mut self, id: u32) -> Result<(), LifetimeError> {
        let Some(index) = self.done.iter().position(|(done, _)| *done == id) else { return Ok(()) };
        let (_, action) = &self.done[index];
        let fail = |source| LifetimeError::Undo { what: action.to_string(), source };
        match action.undo().map_err(fail)? {
            Undone::Done => self.was_undone(id),
            Undone::InUse => Ok(()),
        }
    }

    /// Undoes everything and gives the slot back.
    pub fn end(&mut self) -> Result<(), LifetimeError> {
        let settled = self.journal.take().map_or(Ok(()), |journal| journal.settle().map(drop));
        if self.made_cgroup {
            // It may have kept one of another injector in use, which has ended since.
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

/// An instance that all injections of a process may share. It ends with the last of its owners.
#[derive(Clone, Debug)]
pub struct SharedInstance(Arc<Mutex<Instance>>);

impl SharedInstance {
    /// Takes a free slot.
    pub fn start(owner: Owner) -> Result<Self, LifetimeError> {
        Ok(Self(Arc::new(Mutex::new(Instance::start(owner)?))))
    }

    /// Undoes everything and gives the slot back, if no other injection shares it.
    pub fn end(self) -> Result<(), LifetimeError> {
        Arc::into_inner(self.0).map_or(Ok(()), |instance| {
            instance.into_inner().unwrap_or_else(PoisonError::into_inner).end()
        })
    }

    /// For one use. Its journal is right even if another thread panicked while it used it.
    pub fn lock(&self) -> MutexGuard<'_, Instance> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running injector as others see it.
#[derive(Debug, serde::Serialize)]
pub struct Running {
    /// Its slot.
    pub slot: u32,
    /// Who it is.
    #[serde(flatten)]
    pub owner: Owner,
}

/// The running injectors.
pub fn running() -> Result<Vec<Running>, LifetimeError> {
    let mut found = Vec::new();
    for slot in 0..SLOTS {
        // One that can be locked is nobody's; the lock is given back at once.
        if !journal::path(slot).exists() || Journal::lock_existing(slot)?.is_some() {
            continue;
        }
        if let Some(owner) = journal::peek(slot).and_then(|contents| contents.owner) {
            found.push(Running { slot, owner });
        }
    }
    Ok(found)
}

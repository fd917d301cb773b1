//! Clocks that go wrong, in one process: the functions of its vDSO read a [`Skew`].
//!
//! The kernel maps the vDSO into each process, and programs call it for the time instead of the kernel. Behind
//! its code is room up to the end of the page. There goes a hook that calls the original function and skews what
//! it says, and at the entry of the original a jump to the hook. All is written through /proc/PID/mem, by which
//! the pages become private copies of this process: no other is touched, a fork inherits them, and an exec ends
//! them. The hook's data has a lease, so that time becomes true by itself when nobody renews it.
//!
//! - `image`: what is in the vDSO, and how it can be patched
//! - `block`: the hook's data, by which a patch also describes itself
//! - `x86_64`: the hook's code
//! - `all`: putting things right on the whole machine
//! - `process`, `threads`: access to a process, and stopping it

#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod arch;

mod all;
mod block;
mod image;
mod process;
#[cfg(test)]
mod tests;
mod threads;

use std::{
    io,
    mem::offset_of,
    sync::{Arc, Mutex, PoisonError},
};

use injector_common::model::clock::Skew;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use thiserror::Error;

pub use self::{
    all::restore_all,
    image::{Unfit, UnknownLayout},
};
use self::{
    block::{Block, Found, Header, Slot},
    image::Plan,
    process::{Process, Vdso},
    threads::{Stopped, while_stopped},
};

/// Why a process cannot be patched. It is as it was before.
#[derive(Debug, Error)]
pub enum Refusal {
    /// It has ended, or executed another program.
    #[error("it has ended")]
    Gone,
    /// It has no vDSO: a kernel thread, or a program without.
    #[error("it has no vDSO")]
    NoVdso,
    /// Its vDSO cannot be patched.
    #[error("its vDSO cannot be patched: {0}")]
    Unfit(#[from] Unfit),
    /// It is being debugged.
    #[error("it is being traced, as by a debugger")]
    Traced,
    /// Another injector has patched it.
    #[error("another injector has skewed its clocks already")]
    Owned(u64),
    /// Another version of injector has patched it, and a thread may still be in what that left.
    #[error("another version of injector has been at its vDSO; start it anew")]
    OtherVersion,
    /// A thread does not stop, or another program has changed the vDSO meanwhile. It may work later.
    #[error("a thread of it cannot be stopped now")]
    Busy,
    /// The system refused something.
    #[error("{what} failed")]
    Failed {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl From<UnknownLayout> for Refusal {
    fn from(unknown: UnknownLayout) -> Self {
        Self::Unfit(unknown.into())
    }
}

impl Refusal {
    /// The same for all processes that are refused for the same reason, for counting.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Gone => "ended",
            Self::NoVdso => "no vDSO",
            Self::Unfit(unfit) => unfit.label(),
            Self::Traced => "traced, as by a debugger",
            Self::Owned(_) => "faulted by another injector",
            Self::OtherVersion => "faulted by another version of injector before",
            Self::Busy => "a thread could not be stopped",
            Self::Failed { .. } => "refused by the system",
        }
    }

    /// Whether it is worth while to try again later.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Gone | Self::Traced | Self::Owned(_) | Self::Busy)
    }
}

/// A process has ended, or executed another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("it has ended")]
pub struct Gone;

/// More plans are not remembered: processes can change their images as they like.
const MOST_PLANS: usize = 16;

/// Patches processes.
#[derive(Debug)]
pub struct Patcher {
    owner: u64,
    /// By the image without any patch. All processes of a kernel have the same, or one of two.
    plans: Mutex<Vec<(Box<[u8]>, Planned)>>,
}

type Planned = Result<Arc<Plan>, Unfit>;

impl Patcher {
    /// For the injector that `owner` identifies, which is not 0.
    #[must_use]
    pub const fn new(owner: u64) -> Self {
        Self { owner, plans: Mutex::new(Vec::new()) }
    }

    /// Gets ready for processes whose vDSO is as that of this process, so that the first one does not wait for it.
    pub fn prepare(&self) {
        let pid = std::process::id().cast_signed();
        let image =
            Process::open(pid).and_then(|process| process.vdso()).and_then(|vdso| vdso.image());
        match image {
            Ok(image) => drop(self.plan(block::find(&image).as_ref(), &image)),
            Err(error) => tracing::debug!(%error, "cannot read the vDSO of this process"),
        }
    }

    /// Whom it was made for.
    #[must_use]
    pub const fn owner(&self) -> u64 {
        self.owner
    }

    /// Patches a process, or adopts one that has inherited our patch, and sets its skew.
    ///
    /// Its threads are stopped for some microseconds, unless it is adopted. Children of this process must not be
    /// waited for meanwhile by waitpid(2) in other threads: they would take the stops for themselves. (A child
    /// of tokio's is waited for by a pidfd, which is fine.)
    ///
    /// Of all that have one memory, as a process and its children by vfork(2), one is to be patched. Several processes
    /// may be patched at a time.
    pub fn patch(&self, pid: i32, skew: &Skew) -> Result<Patched, Refusal> {
        self.patch_and(pid, skew, || {})
    }

    /// The same for a program that is held by `SIGSTOP` before its first instruction, and lets it go on.
    ///
    /// `SIGCONT` is sent before anything is written, and acts when the threads go on. So whenever this is broken off,
    /// a stopped process without a patch is one that is still held, and none with a patch is.
    pub fn patch_held(&self, pid: i32, skew: &Skew) -> Result<Patched, Refusal> {
        self.patch_and(pid, skew, || {
            // One that has been killed needs nothing.
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        })
    }

    /// The same for a program that is still in execve(2), and stays there meanwhile: it has no thread to be stopped.
    pub fn patch_entering(&self, pid: i32, skew: &Skew) -> Result<Patched, Refusal> {
        let vdso = Process::open(pid)?.vdso()?;
        let plan = self.plan(None, &vdso.image()?)?;
        write(&plan, self.owner, skew, None, &vdso, None)?;
        Ok(Patched { pid, at: plan.at(), vdso })
    }

    /// Sets the skew of a process that has inherited our patch; `None` if it has not, and is left alone then.
    pub fn adopt(&self, pid: i32, skew: &Skew) -> Result<Option<Patched>, Refusal> {
        let vdso = Process::open(pid)?.vdso()?;
        let image = vdso.image()?;
        let found = block::find(&image);
        self.adopt_found(pid, skew, found.as_ref(), vdso, &image).map(Result::ok)
    }

    /// As [`Self::adopt`], for a patch that has been looked for; gives the vDSO back if that is not ours.
    fn adopt_found(
        &self,
        pid: i32,
        skew: &Skew,
        found: Option<&Found>,
        vdso: Vdso,
        image: &[u8],
    ) -> Result<Result<Patched, Vdso>, Refusal> {
        let Some(found) = found else { return Ok(Err(vdso)) };
        match found.owner() {
            Some(owner) if owner != self.owner => Err(Refusal::Owned(owner)),
            Some(_) if found.is_complete(image) => {
                let mut patched = Patched { pid, vdso, at: found.at };
                patched.set(skew).map_err(|Gone| Refusal::Gone)?;
                Ok(Ok(patched))
            }
            _ => Ok(Err(vdso)),
        }
    }

    /// Calls `then` before anything is written, when the threads are stopped if they have to be.
    fn patch_and(
        &self,
        pid: i32,
        skew: &Skew,
        then: impl FnOnce() + Send,
    ) -> Result<Patched, Refusal> {
        let process = Process::open(pid)?;
        let vdso = process.vdso()?;
        let image = vdso.image()?;
        let found = block::find(&image);
        let vdso = match self.adopt_found(pid, skew, found.as_ref(), vdso, &image)? {
            Ok(patched) => {
                then();
                return Ok(patched);
            }
            Err(vdso) => vdso,
        };
        let plan = self.plan(found.as_ref(), &image)?;
        if found.is_some_and(|found| !plan.fits(&found, &image)) {
            return Err(Refusal::OtherVersion);
        }
        while_stopped(&process, |stopped| {
            // What was seen while it ran must hold still.
            if vdso.image()? != image {
                return Err(if process.is_gone() { Refusal::Gone } else { Refusal::Busy });
            }
            then();
            write(&plan, self.owner, skew, found.as_ref(), &vdso, Some(stopped))
        })?;
        Ok(Patched { pid, at: plan.at(), vdso })
    }

    fn plan(&self, found: Option<&Found>, image: &[u8]) -> Planned {
        let pristine = found.map_or_else(|| image.into(), |found| found.pristine(image));
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, plan)) = plans.iter().find(|(of, _)| *of == pristine) {
            return plan.clone();
        }
        let plan = Plan::new(&pristine).map(Arc::new);
        if plans.len() < MOST_PLANS {
            plans.push((pristine, plan.clone()));
        }
        plan
    }
}

/// Writes a whole patch, while threads are stopped or there is none. Whenever it is broken off, what is there describes itself and does no harm.
fn write(
    plan: &Plan,
    owner: u64,
    skew: &Skew,
    found: Option<&Found>,
    vdso: &Vdso,
    stopped: Option<&Stopped>,
) -> Result<(), Refusal> {
    let start = vdso.start();
    let refuge = |pointer: u64| match pointer.checked_sub(start) {
        Some(offset) => Ok(plan.refuge(offset as usize)?.map(|to| start + to as u64)),
        None => Ok(None),
    };
    let header = plan.header(owner);
    let armed = Header { armed: 1, ..header };
    if found.is_some_and(|found| found.header.armed != 0) {
        // A thread may be in the hook. It is the same, and only its data change, as they do in use.
        vdso.write(plan.at(), block::as_bytes(&armed))?;
        set(vdso, plan.at(), skew)?;
    } else {
        vdso.write(plan.at(), block::as_bytes(&header))?;
        vdso.write(plan.at() + size_of::<Header>(), &plan.body(*skew))?;
        vdso.write(plan.at(), block::as_bytes(&armed))?;
    }
    if let Some(stopped) = stopped {
        stopped.relocate(refuge)?;
    }
    for (entry, jump) in plan.jumps() {
        vdso.write(entry, jump)?;
    }
    Ok(())
}

/// A process whose vDSO reads a skew. It stays so when this is dropped, until the lease ends.
#[derive(Debug)]
pub struct Patched {
    pid: i32,
    vdso: Vdso,
    at: usize,
}

impl Patched {
    /// The process.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Changes the skew, for all threads at once. Only one at a time may do so to a process.
    pub fn set(&mut self, skew: &Skew) -> Result<(), Gone> {
        set(&self.vdso, self.at, skew).map_err(|_| Gone)
    }
}

/// Writes a skew to the slot that is not in use, and then has it used.
fn set(vdso: &Vdso, at: usize, skew: &Skew) -> Result<(), Refusal> {
    // One who was killed may have left the unused slot half-written, and the version odd. Of processes that share
    // their memory, until one executes a program, each is set. So both are read anew, at once.
    let current = at + offset_of!(Block, current);
    let first = offset_of!(Block, slots) - offset_of!(Block, current);
    let mut used =
        [0; offset_of!(Block, slots) - offset_of!(Block, current) + 2 * size_of::<Slot>()];
    vdso.read(current, &mut used)?;
    let unused = if used[0] == 0 { size_of::<Slot>() } else { 0 };
    let slot = current + first + unused;
    let version = slot + offset_of!(Slot, version);
    let old = &used[first + unused + offset_of!(Slot, version)..];
    let old: u64 = block::from_bytes(old).unwrap_or_default();
    let odd = old | 1;
    // Were it odd before, it is raised too: somebody may have read it so.
    let odd = if odd == old { odd + 2 } else { odd };
    vdso.write(version, &odd.to_ne_bytes())?;
    vdso.write(slot + offset_of!(Slot, skew), block::as_bytes(skew))?;
    vdso.write(version, &(odd + 1).to_ne_bytes())?;
    vdso.write(current, &[unused as u8])
}

/// Puts the original functions of a process back, if they have been replaced, by `owner` or else by anyone.
/// Returns whether they had been.
///
/// Time is true at once, also if the threads cannot be stopped now. The hook's code stays, for a thread may be
/// in it.
pub fn restore(pid: i32, owner: Option<u64>) -> Result<bool, Refusal> {
    let process = Process::open(pid)?;
    let vdso = process.vdso()?;
    let image = vdso.image()?;
    let Some(found) = block::find(&image) else { return Ok(false) };
    match found.owner() {
        Some(theirs) if owner.is_none_or(|owner| owner == theirs) => {}
        _ => return Ok(false),
    }
    let mut header = found.header;
    header.owner = 0;
    if header.armed != 0 {
        set(&vdso, found.at, &Skew::TRUE)?;
        while_stopped(&process, |_| {
            let image = vdso.image()?;
            for entry in found.entries().filter(|entry| entry.is_replaced(&image)) {
                vdso.write(usize::from(entry.offset), entry.original())?;
            }
            vdso.write(found.at, block::as_bytes(&header))
        })?;
    } else {
        vdso.write(found.at, block::as_bytes(&header))?;
    }
    Ok(true)
}

/// Whether this kernel lets vDSOs be written at any time, by trying it on our own: with `proc_mem.force_override=ptrace`
/// or `never` (Linux 6.12, kernel-parameters.rst) it does not, or only while a process is traced.
pub fn check() -> Result<(), Unwritable> {
    let pid = std::process::id().cast_signed();
    let written = Process::open(pid).and_then(|process| process.vdso()).and_then(|vdso| {
        // The last byte is behind the image; it becomes what it was.
        let last = vdso.image()?.len() - 1;
        let mut byte = [0];
        vdso.read(last, &mut byte)?;
        vdso.write(last, &byte)
    });
    written.map_err(|_| Unwritable)
}

/// The kernel does not let the vDSO of a process be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the kernel does not let /proc/PID/mem write what a process itself may not, where the vDSO is patched; boot with \
     proc_mem.force_override=always"
)]
pub struct Unwritable;

/// Whose patch a process has; `None` without one.
pub fn owner_of(pid: i32) -> Result<Option<u64>, Refusal> {
    let image = Process::open(pid)?.vdso()?.image()?;
    Ok(block::find(&image).and_then(|found| found.owner()))
}

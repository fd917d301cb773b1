//! Clock skews in one process: patches the functions of its vDSO to apply a [`Skew`].
//!
//! The kernel maps the vDSO into each process, and programs call it to read clocks. A hook is written into
//! the unused space after its code, and a jump to the hook at the entry of each function. The hook calls
//! the original function and skews its result. Everything is written through /proc/PID/mem, which makes
//! the pages private copies of this process: other processes are not affected, a fork inherits the
//! patch, and an exec drops it. The hook's data has a lease: without renewal, clocks read true again.
//!
//! - `image`: what is in the vDSO, and how it can be patched
//! - `block`: how a patch is found. What it consists of, and the hook's code, is in [`crate::arch`]
//! - `all`: putting things right on the whole machine
//! - `process`, `threads`: access to a process, and stopping it

mod all;
mod block;
mod image;
mod process;
#[cfg(all(test, feature = "clock", target_arch = "x86_64"))]
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

pub use self::{all::restore_all, image::Unfit};
use self::{
    block::Found,
    image::Plan,
    process::{Process, Vdso},
    threads::{Stopped, while_stopped},
};
pub use crate::arch::vdso::UnknownLayout;
use crate::arch::{
    self, NotBuiltIn,
    vdso::{Block, Header, Slot},
};

/// Why a process cannot be patched. The process is unchanged.
#[derive(Debug, Error)]
pub enum Refusal {
    /// It has ended or executed another program.
    #[error("the process has ended")]
    Gone,
    /// It has no vDSO, like a kernel thread.
    #[error("the process has no vDSO")]
    NoVdso,
    /// Its vDSO cannot be patched.
    #[error("the vDSO cannot be patched: {0}")]
    Unfit(#[from] Unfit),
    /// It is being traced.
    #[error("the process is being traced (by a debugger?)")]
    Traced,
    /// Another injector has patched it.
    #[error("another injector has skewed its clocks already")]
    Owned(u64),
    /// Another version of injector patched it, and a thread may still execute its hook.
    #[error("another version of injector has patched the vDSO; restart the process")]
    OtherVersion,
    /// A thread does not stop, or another process is changing the vDSO. A retry may succeed.
    #[error("cannot stop all threads of the process now")]
    Busy,
    /// A system call failed.
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
    /// A constant label of the reason, for counting.
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

    /// Whether a retry may succeed.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Gone | Self::Traced | Self::Owned(_) | Self::Busy)
    }
}

/// A process has ended or executed another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the process has ended")]
pub struct Gone;

/// The maximum number of cached plans: processes can change their images at will.
const MAX_PLANS: usize = 16;

/// Patches processes.
#[derive(Debug)]
pub struct Patcher {
    owner: u64,
    /// Plans by unpatched image. All processes of a kernel share one or two images.
    plans: Mutex<Vec<(Box<[u8]>, Planned)>>,
}

type Planned = Result<Arc<Plan>, Unfit>;

impl Patcher {
    /// Creates a patcher for the injector identified by `owner`, which is not 0.
    #[must_use]
    pub const fn new(owner: u64) -> Self {
        Self { owner, plans: Mutex::new(Vec::new()) }
    }

    /// Prepares the plan for the vDSO of this process, so that the first patch is not delayed.
    pub fn prepare(&self) {
        let pid = std::process::id().cast_signed();
        let image =
            Process::open(pid).and_then(|process| process.vdso()).and_then(|vdso| vdso.image());
        match image {
            Ok(image) => drop(self.plan(block::find(&image).as_ref(), &image)),
            Err(error) => tracing::debug!(%error, "cannot read the vDSO of this process"),
        }
    }

    /// The owner.
    #[must_use]
    pub const fn owner(&self) -> u64 {
        self.owner
    }

    /// Patches a process, or adopts one that has inherited this owner's patch, and sets its skew.
    ///
    /// Unless it is adopted, its threads are stopped for some microseconds. Other threads must not wait for
    /// children by waitpid(2) meanwhile, which would consume the stops. (tokio waits by pidfds, which is
    /// fine.)
    ///
    /// Of processes that share their memory, as after vfork(2), patch only one. Several processes may be
    /// patched concurrently.
    pub fn patch(&self, pid: i32, skew: &Skew) -> Result<Patched, Refusal> {
        self.patch_and(pid, skew, || {})
    }

    /// Patches a program that is held by `SIGSTOP` before its first instruction, and resumes it.
    ///
    /// `SIGCONT` is sent before anything is written and takes effect when the threads continue. Whenever
    /// this is interrupted, a stopped process without a patch is still held, and one with a patch is not.
    pub fn patch_held(&self, pid: i32, skew: &Skew) -> Result<Patched, Refusal> {
        self.patch_and(pid, skew, || {
            // Fails for a killed process, which is fine.
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        })
    }

    /// Patches a program that is held in execve(2), which has no threads to stop.
    pub fn patch_entering(&self, pid: i32, skew: &Skew) -> Result<Patched, Refusal> {
        let vdso = Process::open(pid)?.vdso()?;
        let plan = self.plan(None, &vdso.image()?)?;
        write(&plan, self.owner, skew, None, &vdso, None)?;
        Ok(Patched { pid, at: plan.at(), vdso })
    }

    /// Sets the skew of a process that has inherited this owner's patch; `None` if it has not.
    pub fn adopt(&self, pid: i32, skew: &Skew) -> Result<Option<Patched>, Refusal> {
        let vdso = Process::open(pid)?.vdso()?;
        let image = vdso.image()?;
        let found = block::find(&image);
        self.adopt_found(pid, skew, found.as_ref(), vdso, &image).map(Result::ok)
    }

    /// As [`Self::adopt`], for a known patch. Returns the vDSO if the patch is not this owner's.
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

    /// Calls `then` before anything is written, once the threads are stopped if needed.
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
            // Check again what was read while it ran.
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
        if plans.len() < MAX_PLANS {
            plans.push((pristine, plan.clone()));
        }
        plan
    }
}

/// Writes a whole patch while no thread runs. An incomplete patch describes itself and is harmless.
fn write(
    plan: &Plan,
    owner: u64,
    skew: &Skew,
    found: Option<&Found>,
    vdso: &Vdso,
    stopped: Option<&Stopped>,
) -> Result<(), Refusal> {
    let start = vdso.start();
    let relocate = |pointer: u64| match pointer.checked_sub(start) {
        Some(offset) => Ok(plan.relocate(offset as usize)?.map(|to| start + to as u64)),
        None => Ok(None),
    };
    let header = plan.header(owner);
    let armed = Header { armed: 1, ..header };
    if found.is_some_and(|found| found.header.armed != 0) {
        // A thread may execute the hook. Its code is the same, and its data change as in normal use.
        vdso.write(plan.at(), block::as_bytes(&armed))?;
        set(vdso, plan.at(), skew)?;
    } else {
        vdso.write(plan.at(), block::as_bytes(&header))?;
        vdso.write(plan.at() + size_of::<Header>(), &plan.body(*skew))?;
        vdso.write(plan.at(), block::as_bytes(&armed))?;
    }
    if let Some(stopped) = stopped {
        stopped.relocate(relocate)?;
    }
    for (entry, jump) in plan.jumps() {
        vdso.write(entry, jump)?;
    }
    Ok(())
}

/// A process with a patched vDSO. When dropped, the skew stays until the lease expires.
#[derive(Debug)]
pub struct Patched {
    pid: i32,
    vdso: Vdso,
    at: usize,
}

impl Patched {
    /// The PID.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Changes the skew for all threads at once. Calls for a process must not be concurrent.
    pub fn set(&mut self, skew: &Skew) -> Result<(), Gone> {
        set(&self.vdso, self.at, skew).map_err(|_| Gone)
    }
}

/// Writes a skew to the unused slot, then switches to it.
fn set(vdso: &Vdso, at: usize, skew: &Skew) -> Result<(), Refusal> {
    // A killed writer may have left the unused slot incomplete and the version odd. Processes that share
    // their memory until one executes a program are each set. So read both afresh, in one read.
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
    // Increase an odd version too: a reader may have seen it.
    let odd = if odd == old { odd + 2 } else { odd };
    vdso.write(version, &odd.to_ne_bytes())?;
    vdso.write(slot + offset_of!(Slot, skew), block::as_bytes(skew))?;
    vdso.write(version, &(odd + 1).to_ne_bytes())?;
    vdso.write(current, &[unused as u8])
}

/// Restores the original functions of a process if they were replaced, by `owner` or, without one, by
/// anyone. Returns whether they were.
///
/// Clocks read true at once, even if the threads cannot be stopped now. The code of the hook stays, as a
/// thread may execute it.
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

/// Whether vDSOs can be patched here: there is a hook, and the kernel lets vDSOs be written at any time. That is tried on our own: with `proc_mem.force_override=ptrace`
/// or `never` (Linux 6.12, kernel-parameters.rst) it does not, or only while a process is traced.
pub fn check() -> Result<(), Unusable> {
    arch::vdso_hook()?;
    let pid = std::process::id().cast_signed();
    let written = Process::open(pid).and_then(|process| process.vdso()).and_then(|vdso| {
        // The last byte lies after the image. It is written with its own value.
        let last = vdso.image()?.len() - 1;
        let mut byte = [0];
        vdso.read(last, &mut byte)?;
        vdso.write(last, &byte)
    });
    written.map_err(|_| Unusable::Unwritable)
}

/// Why no vDSO can be patched here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// There is no hook.
    #[error(transparent)]
    NotBuiltIn(#[from] NotBuiltIn),
    /// The kernel does not let the vDSO of a process be written.
    #[error(
        "the kernel does not let /proc/PID/mem write what a process itself may not, where the vDSO is patched; boot \
         with proc_mem.force_override=always"
    )]
    Unwritable,
}

/// The owner of a process's patch; `None` without a patch.
pub fn owner_of(pid: i32) -> Result<Option<u64>, Refusal> {
    let image = Process::open(pid)?.vdso()?.image()?;
    Ok(block::find(&image).and_then(|found| found.owner()))
}

//! Process faults: each has a thread that does what is due, so that the end of a pause waits for no other fault.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    fault::{
        RetargetError,
        process::{ProcessFaultError, Processes, Statistics},
        retarget,
    },
    lifetime::instance::Instance,
    target::{Followed, Target},
};

/// How often to tell what was done, and to look whether the target is there.
const TELLING: Duration = Duration::from_millis(250);

/// The instance that process and clock faults of the agent are journalled by.
pub type SharedInstance = Arc<Mutex<Instance>>;

/// What the thread tells.
#[derive(Debug, Default)]
struct Told {
    statistics: Statistics,
    error: Option<RetargetError>,
    is_gone: bool,
}

/// A thread that does to processes what is due.
#[derive(Debug)]
pub struct Stepper {
    /// Dropped to end it.
    life: Option<mpsc::Sender<()>>,
    told: Arc<Mutex<Told>>,
    thread: Option<JoinHandle<()>>,
}

impl Stepper {
    /// Starts it.
    pub fn start(
        processes: Processes,
        target: Target,
        instance: SharedInstance,
    ) -> std::io::Result<Self> {
        let (life, ends) = mpsc::channel();
        let told = Arc::new(Mutex::new(Told::default()));
        let thread = thread::Builder::new().name("processes".into()).spawn({
            let told = told.clone();
            move || step(processes, target, &instance, &ends, &told)
        })?;
        Ok(Self { life: Some(life), told, thread: Some(thread) })
    }

    /// What was done so far.
    pub fn statistics(&self) -> Statistics {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).statistics.clone()
    }

    /// Whether the target is gone.
    pub fn is_gone(&self) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).is_gone
    }

    /// Why it does not go on, if that is so; told once.
    pub fn take_error(&self) -> Option<RetargetError> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).error.take()
    }

    /// Ends the faults; returns what they did.
    pub fn end(mut self) -> Result<Statistics, RetargetError> {
        self.stop();
        match self.take_error() {
            Some(error) => Err(error),
            None => Ok(self.statistics()),
        }
    }

    fn stop(&mut self) {
        drop(self.life.take());
        if let Some(thread) = self.thread.take() {
            // The process aborts on panic, so there is none to hand on.
            let _ = thread.join();
        }
    }
}

impl Drop for Stepper {
    fn drop(&mut self) {
        self.stop();
    }
}

fn step(
    mut processes: Processes,
    mut target: Target,
    instance: &Mutex<Instance>,
    ends: &mpsc::Receiver<()>,
    told: &Mutex<Told>,
) {
    let lock = || instance.lock().unwrap_or_else(PoisonError::into_inner);
    let mut result: Result<(), RetargetError> = Ok(());
    let mut next = Instant::now() + TELLING;
    while result.is_ok() {
        let until_due = processes.due().map(|due| due.saturating_duration_since(Instant::now()));
        let wait = until_due.map_or(TELLING, |due| due.min(TELLING));
        match ends.recv_timeout(wait) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            _ => break,
        }
        if processes.due().is_some_and(|due| due <= Instant::now()) {
            result = processes.step(&mut lock()).map_err(Into::into);
        }
        if Instant::now() >= next {
            next = Instant::now() + TELLING;
            result = result.and_then(|()| follow(&mut processes, &mut target, lock));
            told.lock().unwrap_or_else(PoisonError::into_inner).is_gone = !target.is_there();
        }
        result = result.and_then(|()| Ok(tell(&mut processes, told)?));
    }
    let ended = processes.end(&mut lock());
    let result = result.and(ended.map_err(Into::into));
    let result = result.and_then(|()| Ok(tell(&mut processes, told)?));
    told.lock().unwrap_or_else(PoisonError::into_inner).error = result.err();
}

fn follow<'a>(
    processes: &mut Processes,
    target: &mut Target,
    lock: impl Fn() -> MutexGuard<'a, Instance>,
) -> Result<(), RetargetError> {
    while let Some(followed) = target.follow()? {
        if followed == Followed::Again {
            retarget(&mut lock(), target, None, None, Some(&mut *processes))?;
        }
    }
    Ok(())
}

fn tell(processes: &mut Processes, told: &Mutex<Told>) -> Result<(), ProcessFaultError> {
    let statistics = processes.statistics()?;
    told.lock().unwrap_or_else(PoisonError::into_inner).statistics = statistics;
    Ok(())
}

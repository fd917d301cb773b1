//! Threads that run injections, so that the end of a pause waits for no other fault.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Instant,
};

use super::{Event, Injection, InjectionError, until};
use crate::{
    fault::{clock::report::ClocksReport, network::counts::Counts, process::Statistics},
    lifetime::lease::RENEWAL,
    target::Whose,
    threads,
};

/// Statistics and state of an injection.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Counters of each rule, in order.
    pub packets: Vec<Counts>,
    /// Statistics of clock faults, if any.
    pub clocks: Option<ClocksReport>,
    /// Statistics of process faults, if any.
    pub processes: Option<Statistics>,
    /// Warnings about faults that probably do not act as intended.
    pub warnings: Vec<String>,
    /// The target's current processes.
    pub whose: Option<Whose>,
    /// Whether the target is gone.
    pub is_gone: bool,
}

/// The state shared with the thread.
#[derive(Debug, Default)]
struct Told {
    status: Status,
    error: Option<InjectionError>,
}

/// A thread that runs an injection. Dropping it ends the faults.
#[derive(Debug)]
pub struct Worker {
    /// Sends requests to update the status. The thread drops the received sender when done.
    /// Dropping this one ends the thread.
    asks: Option<mpsc::Sender<mpsc::Sender<()>>>,
    told: Arc<Mutex<Told>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread for a started injection.
    pub fn start(mut injection: Injection<u32>, ends: Option<Instant>) -> io::Result<Self> {
        let (asks, asked) = mpsc::channel();
        let told = Arc::new(Mutex::new(Told::default()));
        lock(&told).error = tell(&mut injection, &told, true).err();
        let thread = thread::Builder::new().name("injection".into()).spawn({
            let told = told.clone();
            move || work(injection, ends, &asked, &told)
        })?;
        Ok(Self { asks: Some(asks), told, thread: Some(thread) })
    }

    /// Updates [`Self::status`] and waits for the update.
    pub fn refresh(&self) {
        let (ask, answer) = mpsc::channel();
        if self.asks.as_ref().is_some_and(|asks| asks.send(ask).is_ok()) {
            // Nothing is ever sent: dropping the sender is the answer.
            let _ = answer.recv();
        }
    }

    /// The status as of the last update.
    #[must_use]
    pub fn status(&self) -> Status {
        lock(&self.told).status.clone()
    }

    /// The error that ended the faults, if any; returned only once.
    #[must_use]
    pub fn take_error(&self) -> Option<InjectionError> {
        lock(&self.told).error.take()
    }

    /// Whether the faults have ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the faults. Returns the final status, and the error if they ended early.
    pub fn end(mut self) -> (Status, Result<(), InjectionError>) {
        let stopped = self.stop();
        let error = self.take_error().or(stopped.err());
        (self.status(), error.map_or(Ok(()), Err))
    }

    fn stop(&mut self) -> Result<(), InjectionError> {
        drop(self.asks.take());
        let thread = self.thread.take();
        Ok(thread.map_or(Ok(()), |thread| threads::join("injection", thread))?)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "a fault has ended");
        }
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(
    mut injection: Injection<u32>,
    ends: Option<Instant>,
    asked: &mpsc::Receiver<mpsc::Sender<()>>,
    told: &Mutex<Told>,
) {
    let mut result = Ok(());
    let mut counted = Instant::now();
    while result.is_ok() && ends.is_none_or(|ends| ends > Instant::now()) {
        let due = ends.into_iter().fold(injection.due(), Instant::min);
        let ask = match asked.recv_timeout(until(due)) {
            Ok(ask) => Some(ask),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        };
        let is_time = ask.is_some() || counted.elapsed() >= RENEWAL;
        if is_time {
            counted = Instant::now();
        }
        result = injection.advance().and_then(|()| tell(&mut injection, told, is_time));
        // Dropping the sender is the answer.
        drop(ask);
    }
    let result = result.and(injection.end());
    let result = result.and(tell(&mut injection, told, true));
    lock(told).error = result.err();
}

/// Updates the shared status. Packet counters are only read if `is_time`.
fn tell(
    injection: &mut Injection<u32>,
    told: &Mutex<Told>,
    is_time: bool,
) -> Result<(), InjectionError> {
    let clocks = injection.clocks_report();
    let processes = injection.process_statistics()?.pop().map(|(_, statistics)| statistics);
    let packets = if is_time {
        let counts = injection.rules_mut().counts().map_err(InjectionError::from)?;
        Some(counts.into_values().collect())
    } else {
        None
    };
    let mut told = lock(told);
    let status = &mut told.status;
    status.clocks = clocks;
    status.processes = processes;
    if let Some(packets) = packets {
        status.packets = packets;
    }
    while let Some(event) = injection.next_event() {
        if let Event::Warning(message) = event {
            status.warnings.push(message);
        }
    }
    let target = injection.target();
    status.is_gone = !target.is_there();
    status.whose = Some(target.whose.clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_thread_is_an_error_at_the_end() {
        let (asks, asked) = mpsc::channel::<mpsc::Sender<()>>();
        let thread = thread::spawn(move || assert!(asked.recv().is_ok(), "as planned"));
        let worker = Worker { asks: Some(asks), told: Arc::default(), thread: Some(thread) };
        let (_, ended) = worker.end();
        assert!(matches!(ended, Err(InjectionError::Panicked(_))), "{ended:?}");
    }
}

//! Keeps an injection running: performs its work in time and reports its events.

use std::{
    io,
    time::{Duration, Instant},
};

use aya_log::EbpfLogger;
use tokio::{
    io::unix::AsyncFd,
    time::{Interval, MissedTickBehavior},
};

use super::{Event, Injection, InjectionError};

/// The interval of progress reports.
const PROGRESS: Duration = Duration::from_secs(1);

/// Output of a driver.
#[derive(Debug)]
pub enum Tick {
    /// An event of the injection.
    Event(Event),
    /// Time to report counters.
    Progress,
    /// The duration is over.
    Expired,
}

/// Drives an injection.
pub struct Driver {
    ends: Option<Instant>,
    progress: Interval,
    logger: Option<AsyncFd<EbpfLogger<&'static dyn log::Log>>>,
}

impl Driver {
    /// Drives an injection with this end. Requires a tokio runtime with time and I/O.
    pub fn new<K: Copy + Ord>(
        injection: &mut Injection<K>,
        ends: Option<Instant>,
    ) -> Result<Self, InjectionError> {
        let mut progress =
            tokio::time::interval_at(tokio::time::Instant::now() + PROGRESS, PROGRESS);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let logger = match injection.network_mut() {
            Some(network) => {
                let logger = network.object().logger().map_err(super::NetworkError::from)?;
                // SAFETY: the logger owns its ring buffer's descriptor, and neither closes nor
                // replaces it.
                let registered = unsafe { AsyncFd::register(logger) };
                Some(registered.map_err(|error| InjectionError::Log(error.into()))?)
            }
            None => None,
        };
        Ok(Self { ends, progress, logger })
    }

    /// Performs due work until there is something to report. Cancel-safe: nothing is lost if the
    /// future is dropped.
    pub async fn next<K: Copy + Ord>(
        &mut self,
        injection: &mut Injection<K>,
    ) -> Result<Tick, InjectionError> {
        loop {
            if let Some(event) = injection.next_event() {
                return Ok(Tick::Event(event));
            }
            tokio::select! {
                biased;
                () = until(self.ends) => {
                    self.ends = None;
                    return Ok(Tick::Expired);
                }
                () = until(Some(injection.due())) => injection.advance()?,
                _ = self.progress.tick() => return Ok(Tick::Progress),
                ready = flush(&mut self.logger) => ready.map_err(InjectionError::Log)?,
            }
        }
    }
}

async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then.into()).await,
        None => std::future::pending().await,
    }
}

/// Forwards log records of the eBPF programs once available.
async fn flush(logger: &mut Option<AsyncFd<EbpfLogger<&'static dyn log::Log>>>) -> io::Result<()> {
    match logger {
        Some(logger) => {
            let mut ready = logger.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
            Ok(())
        }
        None => std::future::pending().await,
    }
}

//! Receives signals together with their senders.

use std::io;

use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use tokio::io::unix::AsyncFd;

/// The signals that end a session or are forwarded to the command.
const HANDLED: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// A received signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The signal.
    pub signal: Signal,
    /// Whether the terminal sent it. If so, the command received it as well.
    pub from_terminal: bool,
}

/// Receives signals in order of arrival.
#[derive(Debug)]
pub struct Signals {
    descriptor: AsyncFd<SignalFd>,
    before: SigSet,
}

impl Signals {
    /// Blocks the signals for this thread and those it starts later, and receives them here
    /// instead.
    pub fn take() -> io::Result<Self> {
        let set: SigSet = HANDLED.into_iter().collect();
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let descriptor =
            SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // SAFETY: a `SignalFd` owns its descriptor, and neither closes nor replaces it.
        Ok(Self { descriptor: unsafe { AsyncFd::register(descriptor)? }, before })
    }

    /// The previous signal mask, to restore in the command.
    pub const fn mask_before(&self) -> SigSet {
        self.before
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> io::Result<Arrived> {
        loop {
            let mut ready = self.descriptor.readable_mut().await?;
            match ready.get_inner_mut().read_signal()? {
                Some(info) => {
                    let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else {
                        continue;
                    };
                    return Ok(Arrived { signal, from_terminal: info.ssi_code == libc::SI_KERNEL });
                }
                None => ready.clear_ready(),
            }
        }
    }
}

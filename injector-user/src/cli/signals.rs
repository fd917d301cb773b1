//! Signals, with their senders.

use std::io;

use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use tokio::io::unix::AsyncFd;

/// The signals that end a session or are handed on to the command.
const HANDLED: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Which.
    pub signal: Signal,
    /// Whether the terminal sent it, and so sent it to the command as well.
    pub from_terminal: bool,
}

/// Takes signals in the order of their arrival.
#[derive(Debug)]
pub struct Signals {
    descriptor: AsyncFd<SignalFd>,
    before: SigSet,
}

impl Signals {
    /// Blocks the signals for this thread, and those that it starts, and takes them here instead.
    pub fn take() -> io::Result<Self> {
        let set: SigSet = HANDLED.into_iter().collect();
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let descriptor =
            SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // SAFETY: a SignalFd owns its descriptor, which it neither closes nor replaces.
        Ok(Self { descriptor: unsafe { AsyncFd::register(descriptor)? }, before })
    }

    /// The mask that was set before, for the command.
    pub const fn mask_before(&self) -> SigSet {
        self.before
    }

    /// The next signal.
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

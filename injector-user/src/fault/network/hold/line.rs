//! The delay line of the TAP engine: packets come from a TAP, wait, and are written back to it.
//!
//! A thread of its own, ahead of others where that is allowed: whatever it is late adds to the delay.

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use injector_common::hold::{Route, Slot, TAG_PROTOCOL, TAGS};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
    },
};

use crate::kernel::{clock, device::VNET_HEADER, mapped::Mapped};

/// The largest packet: 64 KiB, its headers and our tag.
const LARGEST: usize = VNET_HEADER + (1 << 16) + 256;

/// Packets up to this size are copied into a buffer of their own; larger ones keep the one that they were
/// read into.
const SMALL: usize = 2048;

/// So many large buffers are kept for the next packets.
const SPARE: usize = 256;

/// So many packets are read before it is looked whether others are due.
const READS: usize = 8;

/// Most bytes that wait at a time. A packet beyond is dropped, and counted.
const MOST_BYTES: usize = 1 << 30;

/// Where the tag is: after both Ethernet addresses.
const TAG_AT: usize = VNET_HEADER + 12;

/// What a delay line has done.
#[derive(Debug, Default)]
pub struct Counts {
    /// Packets that were dropped: too many waited, or the kernel refused them.
    pub dropped: AtomicU64,
    /// Packets that wait now.
    pub held: AtomicU64,
}

/// A running delay line. Dropping it ends it; what still waits is let go first.
#[derive(Debug)]
pub struct Line {
    thread: Option<JoinHandle<()>>,
    wake: Arc<EventFd>,
    ends: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

impl Line {
    /// Starts one for a TAP.
    pub fn start(tap: File, held: Mapped<Slot>, routes: Mapped<Route>) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let ends = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let worker = Worker {
            tap,
            held,
            routes,
            wake: Arc::clone(&wake),
            ends: Arc::clone(&ends),
            counts: Arc::clone(&counts),
            waiting: BinaryHeap::new(),
            bytes: 0,
            sequence: 0,
            next_tag: 0,
            buffer: vec![0; LARGEST],
            spare: Vec::new(),
        };
        let thread = thread::Builder::new().name("delay line".into()).spawn(|| worker.run())?;
        Ok(Self { thread: Some(thread), wake, ends, counts })
    }

    /// Ends it, and tells what it has done.
    pub fn end(self) -> Arc<Counts> {
        let counts = Arc::clone(&self.counts);
        drop(self);
        counts
    }

    /// What it has done.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        // Fails only if it has been written to 2^64 times.
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // The process aborts on panic, so there is none to join.
            let _ = thread.join();
        }
    }
}

/// A packet that waits.
struct Waiting {
    release_ns: u64,
    /// The order of arrival, which those that are due at the same time keep.
    sequence: u64,
    route: Route,
    /// The buffer that it is in.
    packet: Vec<u8>,
    /// How much of it is the packet: clearing the rest again would cost more than copying the packet.
    length: usize,
}

impl Waiting {
    const fn key(&self) -> (u64, u64) {
        (self.release_ns, self.sequence)
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    /// The first that is due is the greatest, as [`BinaryHeap`] has it.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

struct Worker {
    tap: File,
    held: Mapped<Slot>,
    routes: Mapped<Route>,
    wake: Arc<EventFd>,
    ends: Arc<AtomicBool>,
    counts: Arc<Counts>,
    waiting: BinaryHeap<Waiting>,
    bytes: usize,
    sequence: u64,
    next_tag: u32,
    buffer: Vec<u8>,
    spare: Vec<Vec<u8>>,
}

impl Worker {
    fn run(mut self) {
        go_ahead_of_others();
        while !self.ends.load(Relaxed) {
            let more = self.take();
            self.release(clock::monotonic_ns());
            if !more && let Err(error) = self.wait() {
                tracing::debug!(%error, "the delay line ends");
                break;
            }
        }
        // Nothing comes after them any more, so it is better that they come early than not at all.
        while self.take() {}
        self.release(u64::MAX);
    }

    /// Takes some of what has come; whether there may be more.
    fn take(&mut self) -> bool {
        for _ in 0..READS {
            match self.tap.read(&mut self.buffer) {
                Ok(length) => self.keep(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing there, or the device has been taken away.
                Err(_) => return false,
            }
        }
        true
    }

    /// Keeps the packet in the buffer until it is due.
    fn keep(&mut self, length: usize) {
        let Some(tag) = tag(&self.buffer[..length]) else { return };
        let Slot { release_ns, route } = self.held.get(u32::from(tag));
        if self.bytes + length > MOST_BYTES {
            self.counts.dropped.fetch_add(1, Relaxed);
            return;
        }
        let packet = if length <= SMALL {
            self.buffer[..length].to_vec()
        } else {
            let next = self.spare.pop().unwrap_or_else(|| vec![0; LARGEST]);
            std::mem::replace(&mut self.buffer, next)
        };
        self.bytes += packet.capacity();
        self.sequence += 1;
        self.waiting.push(Waiting { release_ns, sequence: self.sequence, route, packet, length });
        self.counts.held.store(self.waiting.len() as u64, Relaxed);
    }

    /// Lets go what is due.
    fn release(&mut self, now_ns: u64) {
        while let Some(next) = self.waiting.peek()
            && next.release_ns <= now_ns
            && let Some(Waiting { route, mut packet, length, .. }) = self.waiting.pop()
        {
            self.bytes -= packet.capacity();
            self.routes.set(self.next_tag, route);
            packet[TAG_AT + 2..TAG_AT + 4].copy_from_slice(&(self.next_tag as u16).to_be_bytes());
            self.next_tag = (self.next_tag + 1) % TAGS;
            if let Err(error) = self.tap.write(&packet[..length]) {
                tracing::debug!(%error, "a held packet was refused");
                // If the device is down or gone, the packet counts as lost with it.
                if !matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADFD)) {
                    self.counts.dropped.fetch_add(1, Relaxed);
                }
            }
            if packet.len() == LARGEST && self.spare.len() < SPARE {
                self.spare.push(packet);
            }
        }
        self.counts.held.store(self.waiting.len() as u64, Relaxed);
    }

    /// Waits until a packet comes, the next one is due, or we are to end.
    fn wait(&self) -> nix::Result<()> {
        let until = self.waiting.peek().map(|next| {
            let left = next.release_ns.saturating_sub(clock::monotonic_ns());
            TimeSpec::from(Duration::from_nanos(left))
        });
        let mut files = [
            PollFd::new(self.tap.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut files, until, None) {
            Ok(_)
                if files[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)) =>
            {
                Err(nix::Error::ENODEV)
            }
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What our tag says; `None` if there is none, so that the packet is not one of ours.
fn tag(packet: &[u8]) -> Option<u16> {
    let (protocol, tag) = packet.get(TAG_AT..TAG_AT + 4)?.split_at(2);
    (protocol == TAG_PROTOCOL.to_be_bytes()).then(|| u16::from_be_bytes([tag[0], tag[1]]))
}

/// Has the calling thread run before others, and its timers be exact.
fn go_ahead_of_others() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: reads the parameters; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if result != 0 {
        // Real-time scheduling may be forbidden in a container; a high priority is next best.
        // SAFETY: takes no pointers; 0 is the calling thread.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    }
    // Else the kernel may have us sleep 50 µs longer.
    if let Err(error) = nix::sys::prctl::set_timerslack(1) {
        tracing::debug!(%error, "timers stay inexact");
    }
}

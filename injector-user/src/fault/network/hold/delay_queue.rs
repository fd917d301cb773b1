//! The delay queue of the TAP engine: reads packets from a TAP, holds them, and writes them back.
//!
//! Runs in a thread of its own, with real-time priority where allowed: its lateness adds to delays.

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

use crate::{
    kernel::{clock, device::VNET_HEADER, mapped::Mapped},
    threads,
};

/// The maximum size of a packet: 64 KiB, headers and the tag.
const MAX_PACKET: usize = VNET_HEADER + (1 << 16) + 256;

/// Packets up to this size are copied into a buffer of their own; larger ones keep the buffer that
/// they were read into.
const COPY_LIMIT: usize = 2048;

/// The maximum number of large buffers kept for reuse.
const MAX_SPARE_BUFFERS: usize = 256;

/// The number of packets read between checks for due packets.
const READ_BATCH: usize = 8;

/// The maximum number of queued bytes. Packets beyond are dropped and counted.
const MAX_QUEUED_BYTES: usize = 1 << 30;

/// The offset of the tag, after both Ethernet addresses.
const TAG_OFFSET: usize = VNET_HEADER + 12;

/// Counters of a delay queue.
#[derive(Debug, Default)]
pub struct Counts {
    /// Packets dropped because the queue was full or the kernel refused them.
    pub dropped: AtomicU64,
    /// Packets queued now.
    pub held: AtomicU64,
}

/// A running delay queue. Dropping it releases all queued packets and ends it.
#[derive(Debug)]
pub struct DelayQueue {
    thread: Option<JoinHandle<()>>,
    wakeup: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

impl DelayQueue {
    /// Starts the queue of a TAP.
    pub fn start(tap: File, held: Mapped<Slot>, routes: Mapped<Route>) -> io::Result<Self> {
        let wakeup = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let worker = Worker {
            tap,
            held,
            routes,
            wakeup: Arc::clone(&wakeup),
            stop: Arc::clone(&stop),
            counts: Arc::clone(&counts),
            queue: BinaryHeap::new(),
            bytes: 0,
            sequence: 0,
            next_tag: 0,
            buffer: vec![0; MAX_PACKET],
            spare: Vec::new(),
        };
        let thread = thread::Builder::new().name("delay queue".into()).spawn(|| worker.run())?;
        Ok(Self { thread: Some(thread), wakeup, stop, counts })
    }

    /// Ends the queue and returns its counters.
    pub fn end(self) -> Arc<Counts> {
        let counts = Arc::clone(&self.counts);
        drop(self);
        counts
    }

    /// The counters so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Drop for DelayQueue {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Fails only when the counter of the eventfd overflows.
        let _ = self.wakeup.write(1);
        if let Some(thread) = self.thread.take()
            && let Err(error) = threads::join("packets", thread)
        {
            tracing::error!(%error, "delayed packets were lost");
        }
    }
}

/// A queued packet.
struct QueuedPacket {
    release_ns: u64,
    /// The order of arrival, kept by packets that are due at the same time.
    sequence: u64,
    route: Route,
    /// The buffer of the packet.
    packet: Vec<u8>,
    /// The length of the packet in the buffer. Clearing the rest would cost more than the copy.
    length: usize,
}

impl QueuedPacket {
    const fn key(&self) -> (u64, u64) {
        (self.release_ns, self.sequence)
    }
}

impl PartialEq for QueuedPacket {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for QueuedPacket {}

impl PartialOrd for QueuedPacket {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for QueuedPacket {
    /// The packet due first is the greatest: [`BinaryHeap`] is a max-heap.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

struct Worker {
    tap: File,
    held: Mapped<Slot>,
    routes: Mapped<Route>,
    wakeup: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    queue: BinaryHeap<QueuedPacket>,
    bytes: usize,
    sequence: u64,
    next_tag: u32,
    buffer: Vec<u8>,
    spare: Vec<Vec<u8>>,
}

impl Worker {
    fn run(mut self) {
        raise_priority();
        while !self.stop.load(Relaxed) {
            let more = self.read_batch();
            self.release(clock::monotonic_ns());
            if !more && let Err(error) = self.wait() {
                tracing::debug!(%error, "the delay queue ends");
                break;
            }
        }
        // At the end, packets are better early than lost.
        while self.read_batch() {}
        self.release(u64::MAX);
    }

    /// Reads up to [`READ_BATCH`] packets. Returns whether there may be more.
    fn read_batch(&mut self) -> bool {
        for _ in 0..READ_BATCH {
            match self.tap.read(&mut self.buffer) {
                Ok(length) => self.enqueue(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The TAP is empty, or was removed.
                Err(_) => return false,
            }
        }
        true
    }

    /// Queues the packet in the buffer.
    fn enqueue(&mut self, length: usize) {
        let Some(tag) = tag(&self.buffer[..length]) else { return };
        let Slot { release_ns, route } = self.held.get(u32::from(tag));
        if self.bytes + length > MAX_QUEUED_BYTES {
            self.counts.dropped.fetch_add(1, Relaxed);
            return;
        }
        let packet = if length <= COPY_LIMIT {
            self.buffer[..length].to_vec()
        } else {
            let next = self.spare.pop().unwrap_or_else(|| vec![0; MAX_PACKET]);
            std::mem::replace(&mut self.buffer, next)
        };
        self.bytes += packet.capacity();
        self.sequence += 1;
        self.queue.push(QueuedPacket {
            release_ns,
            sequence: self.sequence,
            route,
            packet,
            length,
        });
        self.counts.held.store(self.queue.len() as u64, Relaxed);
    }

    /// Writes back all packets that are due.
    fn release(&mut self, now_ns: u64) {
        while let Some(next) = self.queue.peek()
            && next.release_ns <= now_ns
            && let Some(QueuedPacket { route, mut packet, length, .. }) = self.queue.pop()
        {
            self.bytes -= packet.capacity();
            self.routes.set(self.next_tag, route);
            packet[TAG_OFFSET + 2..TAG_OFFSET + 4]
                .copy_from_slice(&(self.next_tag as u16).to_be_bytes());
            self.next_tag = (self.next_tag + 1) % TAGS;
            if let Err(error) = self.tap.write(&packet[..length]) {
                tracing::debug!(%error, "the kernel refused a held packet");
                // If the device is down or gone, the loss is reported as interference.
                if !matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADFD)) {
                    self.counts.dropped.fetch_add(1, Relaxed);
                }
            }
            if packet.len() == MAX_PACKET && self.spare.len() < MAX_SPARE_BUFFERS {
                self.spare.push(packet);
            }
        }
        self.counts.held.store(self.queue.len() as u64, Relaxed);
    }

    /// Waits until a packet arrives, the next one is due, or the queue must end.
    fn wait(&self) -> nix::Result<()> {
        let until = self.queue.peek().map(|next| {
            let left = next.release_ns.saturating_sub(clock::monotonic_ns());
            TimeSpec::from(Duration::from_nanos(left))
        });
        let mut files = [
            PollFd::new(self.tap.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wakeup.as_fd(), PollFlags::POLLIN),
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

/// The tag of a packet; `None` if it has none and so was not sent by injector.
fn tag(packet: &[u8]) -> Option<u16> {
    let (protocol, tag) = packet.get(TAG_OFFSET..TAG_OFFSET + 4)?.split_at(2);
    (protocol == TAG_PROTOCOL.to_be_bytes()).then(|| u16::from_be_bytes([tag[0], tag[1]]))
}

/// Gives the calling thread real-time priority and exact timers.
fn raise_priority() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: reads the parameters; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if result != 0 {
        // A container may forbid real-time scheduling; a low nice value is next best.
        // SAFETY: takes no pointers; 0 is the calling thread.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    }
    // By default, the kernel may delay timers by 50 µs.
    if let Err(error) = nix::sys::prctl::set_timerslack(1) {
        tracing::debug!(%error, "cannot set the timer slack");
    }
}

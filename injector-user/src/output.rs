//! Output that never holds up faults: whoever reads it may be slow, stopped or gone.
//!
//! Each sink is written to by a thread of its own. Everybody else puts lines in its queue, which
//! takes bounded memory and never blocks.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SigSet, SigmaskHow},
};
use thiserror::Error;
use tokio::sync::oneshot;

/// What standard output is called in errors.
pub const STDOUT: &str = "standard output";

/// How long the process waits at its end for all that is not yet written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long it waits besides for a busy machine to let the threads begin to write.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Progress is dropped while more bytes than this wait.
const MAX_PROGRESS: usize = 64 << 10;

/// Any line but the last is dropped while more bytes than this wait.
const MAX_WAITING: usize = 4 << 20;

/// An error with its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Why output is incomplete.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OutputError {
    /// The sink refused a line.
    #[error("cannot write to {sink}: {reason}")]
    Write {
        /// Which.
        sink: String,
        /// Why.
        reason: String,
    },
    /// The sink took nothing for too long.
    #[error("{0} was not read for a second: what was reported last is missing")]
    Blocked(String),
}

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// Dropped as soon as the reader falls behind: the next one says more.
    Progress,
    /// Dropped only to bound the memory.
    Event,
    /// Never dropped.
    Last,
}

/// A line, or several that belong together, with the newline at the end.
struct Line {
    text: String,
    importance: Importance,
    /// Dropped when the line was written, or could not be.
    done: Option<oneshot::Sender<()>>,
}

/// Writes lines to a sink from a thread of its own. Clones share the thread, which ends with them.
#[derive(Clone, Debug)]
pub struct Writer {
    lines: Sender<Line>,
    shared: Arc<Shared>,
}

/// What takes lines, and may take its time.
pub type Sink = Box<dyn FnMut(&str, Importance) -> io::Result<()> + Send>;

#[derive(Debug)]
struct Shared {
    sink: String,
    /// Where failures are reported: standard error, unless that is what failed.
    is_stderr: bool,
    queue: Mutex<Queue>,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Lines that were not written yet, that which is being written included.
    lines: usize,
    bytes: usize,
    /// A line is being written: if that takes long, its reader is to blame.
    is_writing: bool,
    /// Lines that were dropped, or could not be written.
    dropped: u64,
    /// The first failure.
    failure: Option<OutputError>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// To standard output.
    pub fn stdout() -> io::Result<Self> {
        let mut stream = Stream::new(io::stdout());
        Self::start(STDOUT.into(), Box::new(move |text, _| stream.write(text)))
    }

    /// To a file, named so in errors.
    pub fn file(file: File, name: String) -> io::Result<Self> {
        let mut stream = Stream::new(file);
        Self::start(name, Box::new(move |text, _| stream.write(text)))
    }

    /// To any sink, named so in errors.
    pub fn start(name: String, sink: Sink) -> io::Result<Self> {
        Self::start_for(name, sink, false)
    }

    fn start_for(name: String, sink: Sink, is_stderr: bool) -> io::Result<Self> {
        let (lines, taken) = channel();
        let queue = Mutex::default();
        let shared = Arc::new(Shared { sink: name, is_stderr, queue, written: Condvar::new() });
        let thread = thread::Builder::new().name("output".into());
        // Signals are left to the threads that wait for them.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let worker = shared.clone();
        let started = thread.spawn(move || work(&taken, &worker, sink));
        before.thread_set_mask()?;
        started.map(|_| Self { lines, shared })
    }

    /// Queues a line; drops it if too much waits already. Never blocks.
    pub fn push(&self, text: String, importance: Importance) {
        self.queue(text, importance, None);
    }

    /// The same; what it returns is ready when the line was written, dropped, or failed to be written.
    #[must_use]
    pub fn push_watched(&self, text: String, importance: Importance) -> oneshot::Receiver<()> {
        let (done, watched) = oneshot::channel();
        self.queue(text, importance, Some(done));
        watched
    }

    fn queue(&self, text: String, importance: Importance, done: Option<oneshot::Sender<()>>) {
        let limit = match importance {
            Importance::Progress => MAX_PROGRESS,
            Importance::Event => MAX_WAITING,
            Importance::Last => usize::MAX,
        };
        let mut queue = self.shared.queue();
        if queue.bytes > limit {
            queue.dropped += 1;
            return;
        }
        queue.lines += 1;
        queue.bytes += text.len();
        drop(queue);
        // The thread lives as long as there is somebody who can send.
        let _ = self.lines.send(Line { text, importance, done });
    }

    /// How many lines were dropped so far, or could not be written.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.queue().dropped
    }

    /// Waits until all lines are written: together with all other writers, for at most a second for
    /// their readers.
    ///
    /// Fails if a line could not be written. A reader that went away (EPIPE) is no failure.
    pub fn finish(&self) -> Result<(), OutputError> {
        static DEADLINE: OnceLock<Instant> = OnceLock::new();
        let deadline = *DEADLINE.get_or_init(|| Instant::now() + FLUSH_TIMEOUT);
        self.finish_by(deadline)
    }

    fn finish_by(&self, deadline: Instant) -> Result<(), OutputError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut queue = self.wait(self.shared.queue(), left, |queue| queue.lines > 0);
        while queue.lines > 0 && !queue.is_writing {
            let before = queue.lines;
            queue =
                self.wait(queue, START_TIMEOUT, |queue| queue.lines == before && !queue.is_writing);
            if !queue.is_writing && queue.lines == before {
                break;
            }
            queue = self.wait(queue, FLUSH_TIMEOUT, |queue| queue.lines == before);
        }
        match &queue.failure {
            Some(failure) => Err(failure.clone()),
            None if queue.lines > 0 => Err(OutputError::Blocked(self.shared.sink.clone())),
            None => Ok(()),
        }
    }

    /// Waits while this is so, for a limited time.
    fn wait<'a>(
        &self,
        queue: MutexGuard<'a, Queue>,
        time: Duration,
        is_so: impl FnMut(&mut Queue) -> bool,
    ) -> MutexGuard<'a, Queue> {
        let waited = self.shared.written.wait_timeout_while(queue, time, is_so);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What the thread does.
fn work(lines: &Receiver<Line>, shared: &Shared, mut sink: Sink) {
    let mut was_written = true;
    for Line { text, importance, done } in lines {
        shared.queue().is_writing = true;
        shared.written.notify_all();
        let written = sink(&text, importance);
        let is_broken = matches!(&written, Err(error) if error.kind() != io::ErrorKind::BrokenPipe);
        let failure = written.as_ref().err().filter(|_| is_broken);
        let failure = failure.map(|error| OutputError::Write {
            sink: shared.sink.clone(),
            reason: error.to_string(),
        });
        // Once for each time that it begins to fail.
        if let Some(failure) = failure.as_ref().filter(|_| was_written && !shared.is_stderr) {
            complain(&format!("warning: {failure}"));
        }
        was_written = written.is_ok();
        let mut queue = shared.queue();
        queue.is_writing = false;
        queue.lines -= 1;
        queue.bytes -= text.len();
        queue.dropped += u64::from(!was_written);
        if queue.failure.is_none() {
            queue.failure = failure;
        }
        drop(queue);
        drop(done);
        shared.written.notify_all();
    }
}

/// Standard error, which everything in the process shares; `None` if no thread can be started.
#[must_use]
pub fn stderr() -> Option<&'static Writer> {
    static STDERR: OnceLock<Option<Writer>> = OnceLock::new();
    let start = || {
        let mut stream = Stream::new(io::stderr());
        let sink: Sink = Box::new(move |text, _| stream.write(text));
        Writer::start_for("standard error".into(), sink, true).ok()
    };
    STDERR.get_or_init(start).as_ref()
}

/// Says something on standard error, with our name before it.
pub fn complain(message: &str) {
    log(format!("injector: {message}\n"));
}

/// Waits for standard error, see [`Writer::finish`].
pub fn finish_stderr() {
    if let Some(stderr) = stderr() {
        // There is nowhere left to say it.
        let _ = stderr.finish();
    }
}

fn log(text: String) {
    match stderr() {
        Some(stderr) => stderr.push(text, Importance::Event),
        None => {
            // There is nowhere left to say it.
            let _ = Stream::new(io::stderr()).write(&text);
        }
    }
}

/// Prints what a command without faults has to say, and waits until it is written. That the reader
/// went away is no failure: it has what it wanted.
pub fn print(text: impl AsRef<[u8]>) -> Result<(), OutputError> {
    match Stream::new(io::stdout()).write_bytes(text.as_ref()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(OutputError::Write { sink: STDOUT.into(), reason: error.to_string() })
        }
        _ => Ok(()),
    }
}

/// Diagnostics, for `tracing-subscriber`: each event is one call of [`io::Write::write_all`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Diagnostics;

impl io::Write for Diagnostics {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        log(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A descriptor that lines are written to, without the buffers and locks of the standard library.
#[derive(Debug)]
pub struct Stream<T> {
    descriptor: T,
    /// A part of a line was written, and the rest failed.
    is_torn: bool,
}

impl<T: AsFd> Stream<T> {
    /// Of whole lines.
    pub const fn new(descriptor: T) -> Self {
        Self { descriptor, is_torn: false }
    }

    /// Writes a line; a part of the one before it, that could not be written as a whole, is ended first.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        self.write_bytes(text.as_bytes())
    }

    fn write_bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let descriptor = self.descriptor.as_fd();
        while self.is_torn {
            self.is_torn = write_some(descriptor, b"\n")? == 0;
        }
        let length = bytes.len();
        while !bytes.is_empty() {
            let count = write_some(descriptor, bytes)
                .inspect_err(|_| self.is_torn = bytes.len() < length)?;
            bytes = &bytes[count..];
        }
        Ok(())
    }
}

/// Writes what goes at once, and waits until something does.
fn write_some(descriptor: BorrowedFd, bytes: &[u8]) -> io::Result<usize> {
    match nix::unistd::write(descriptor, bytes) {
        Err(Errno::EINTR) => Ok(0),
        // Others may have set O_NONBLOCK on a terminal or pipe that they share with us.
        Err(Errno::EAGAIN) => {
            let _ = poll(&mut [PollFd::new(descriptor, PollFlags::POLLOUT)], PollTimeout::NONE);
            Ok(0)
        }
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written?),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};

    use super::*;

    /// A writer whose reader takes one line for each message that it is sent, and what it took.
    fn writer() -> (Writer, SyncSender<()>, Arc<Mutex<Vec<String>>>) {
        let (allow, allowed) = sync_channel::<()>(1024);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let lines = taken.clone();
        let sink: Sink = Box::new(move |text, _| {
            // Once nobody can allow any more, all is taken.
            let _ = allowed.recv();
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_owned());
            Ok(())
        });
        let writer = Writer::start("a test".into(), sink).expect("a thread can be started");
        (writer, allow, taken)
    }

    fn taken(lines: &Mutex<Vec<String>>) -> Vec<String> {
        lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn bytes_waiting(writer: &Writer) -> usize {
        writer.shared.queue().bytes
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn lines_are_written_in_order() {
        let (writer, allow, lines) = writer();
        for number in 0..100 {
            let importance = if number % 3 == 0 { Importance::Progress } else { Importance::Event };
            writer.push(format!("{number}\n"), importance);
        }
        drop(allow);
        assert_eq!(writer.finish_by(soon()), Ok(()));
        assert_eq!(taken(&lines), (0..100).map(|number| format!("{number}\n")).collect::<Vec<_>>());
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn what_the_thread_has_had_no_time_for_is_waited_for() {
        for _ in 0..100 {
            let (writer, allow, lines) = writer();
            drop(allow);
            writer.push("a line".into(), Importance::Event);
            // Another writer has used up the second.
            assert_eq!(writer.finish_by(Instant::now()), Ok(()));
            assert_eq!(taken(&lines), ["a line"]);
        }
    }

    #[test]
    fn progress_is_dropped_and_counted_while_the_reader_is_blocked() {
        let (writer, allow, lines) = writer();
        let line = "p".repeat(1 << 10);
        for _ in 0..1000 {
            writer.push(line.clone(), Importance::Progress);
        }
        let kept = (MAX_PROGRESS / line.len() + 1) as u64;
        assert_eq!(writer.dropped(), 1000 - kept);
        // What matters more is kept, behind what waits.
        writer.push("event".into(), Importance::Event);
        writer.push("last".into(), Importance::Last);
        assert_eq!(writer.dropped(), 1000 - kept);
        drop(allow);
        assert_eq!(writer.finish_by(soon()), Ok(()));
        let lines = taken(&lines);
        assert_eq!(lines.len() as u64, kept + 2);
        assert_eq!(lines[lines.len() - 2..], ["event", "last"]);
        // The reader is there again, and so is progress.
        writer.push(line, Importance::Progress);
        assert_eq!(writer.finish_by(soon()), Ok(()));
        assert_eq!(writer.dropped(), 1000 - kept);
    }

    #[test]
    fn the_queue_is_bounded_for_all_but_the_last_line() {
        let (writer, allow, lines) = writer();
        let line = "e".repeat(1 << 20);
        for _ in 0..100 {
            writer.push(line.clone(), Importance::Event);
        }
        let kept = MAX_WAITING / line.len() + 1;
        assert_eq!(bytes_waiting(&writer), kept * line.len());
        assert_eq!(writer.dropped(), 100 - kept as u64);
        writer.push("last".into(), Importance::Last);
        drop(allow);
        assert_eq!(writer.finish_by(soon()), Ok(()));
        assert_eq!(taken(&lines).last().map(String::as_str), Some("last"));
        assert_eq!(bytes_waiting(&writer), 0);
    }

    #[test]
    fn the_end_waits_for_a_blocked_reader_no_longer_than_it_may() {
        let (writer, allow, lines) = writer();
        writer.push("summary".into(), Importance::Last);
        let began = Instant::now();
        let finished = writer.finish_by(began + Duration::from_millis(200));
        assert_eq!(finished, Err(OutputError::Blocked("a test".into())));
        assert!(began.elapsed() >= Duration::from_millis(200));
        assert!(taken(&lines).is_empty());
        // All writers of a process share one deadline.
        assert!(writer.finish().is_err());
        let began = Instant::now();
        assert!(writer.finish().is_err());
        assert!(began.elapsed() < FLUSH_TIMEOUT, "{:?}", began.elapsed());
        drop(allow);
        assert_eq!(writer.finish_by(soon()), Ok(()));
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_later_ones_are_tried() {
        let mut is_full = true;
        let sink: Sink = Box::new(move |_, _| {
            let written = if is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) };
            is_full = false;
            written
        });
        let writer = Writer::start("a disk".into(), sink).expect("a thread can be started");
        let watched = writer.push_watched("first".into(), Importance::Event);
        writer.push("second".into(), Importance::Event);
        let failure = writer.finish_by(soon()).expect_err("the first one is missing");
        assert!(failure.to_string().starts_with("cannot write to a disk: "), "{failure}");
        assert_eq!(writer.dropped(), 1);
        // It is done with, one way or the other.
        assert!(watched.blocking_recv().is_err());
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let (ends, ended) = sync_channel::<()>(0);
        let sink: Sink = Box::new(move |_, _| {
            let _keep = &ends;
            Err(io::ErrorKind::BrokenPipe.into())
        });
        let writer = Writer::start("a pipe".into(), sink).expect("a thread can be started");
        writer.push("line".into(), Importance::Event);
        assert_eq!(writer.finish_by(soon()), Ok(()));
        assert_eq!(writer.dropped(), 1);
        // The thread ends with the last writer.
        let other = writer.clone();
        drop(writer);
        assert_eq!(ended.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
        drop(other);
        let ended = ended.recv_timeout(Duration::from_secs(30));
        assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
    }
}

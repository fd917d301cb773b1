//! A thread that keeps the clocks of all processes of a cgroup wrong: those that are there, and those that come.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use injector_common::process::{EXEC, EXIT, Event, FORK};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use super::skew::{self, Timed};
use crate::{
    kernel::{
        KernelError,
        process::ProcessEvents,
        vdso::{self, Patched, Patcher, Refusal},
    },
    target::cgroup::Cgroup,
};

/// How often to renew the lease, and to look for processes of which no event told.
const RENEWAL: Duration = Duration::from_millis(500);

/// For how long new programs are held, should this thread not be heard of.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Why processes are left alone whose clocks count from another start.
const OTHER_TIME: &str = "in another time namespace";

/// What became of processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Programs whose clocks were faulted: the running ones, and each one executed since.
    pub patched: u64,
    /// Processes that were made by faulted ones.
    pub inherited: u64,
    /// Those that are there now.
    pub present: u64,
    /// How many could not be faulted, by the reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// What the thread is told.
enum Command {
    /// Other skews.
    Set(Timed, Sender<()>),
    /// Let all go.
    End(Sender<()>),
}

/// The thread.
#[derive(Debug)]
pub struct Follower {
    commands: Sender<Command>,
    bell: Arc<EventFd>,
    statistics: Arc<Mutex<Statistics>>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Starts it. Returns once the clocks of all processes that are there are wrong.
    pub fn start(
        owner: u64,
        cgroup: Cgroup,
        spared: Vec<i32>,
        timed: Timed,
    ) -> Result<Self, KernelError> {
        let events = ProcessEvents::load(cgroup.id, cgroup.level)?;
        let (commands, orders) = mpsc::channel();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_flags(flags).map_err(|error| KernelError::Thread(error.into()))?;
        let bell = Arc::new(bell);
        let statistics = Arc::new(Mutex::new(Statistics::default()));
        let mut work = Work {
            events,
            cgroup,
            spared,
            patcher: Patcher::new(owner),
            timed,
            processes: HashMap::new(),
            refused: HashSet::new(),
            time_namespace: time_namespace(std::process::id().cast_signed()),
            statistics: Arc::clone(&statistics),
        };
        let (ready, is_ready) = mpsc::channel();
        let thread = {
            let bell = Arc::clone(&bell);
            std::thread::Builder::new()
                .name("clocks".into())
                .spawn(move || {
                    work.listen();
                    work.look_around();
                    // Whoever started this waits for it.
                    let _ = ready.send(());
                    work.run(&orders, &bell);
                })
                .map_err(KernelError::Thread)?
        };
        // The process aborts on panic, so the thread is alive.
        let _ = is_ready.recv();
        Ok(Self { commands, bell, statistics, thread: Some(thread) })
    }

    /// Has clocks go wrong in another way. Returns once that is so in all processes.
    pub fn set(&self, timed: Timed) {
        self.command(|done| Command::Set(timed, done));
    }

    /// What became of processes so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts all clocks right and waits for the end.
    pub fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.command(Command::End);
            // The process aborts on panic, so there is none to join.
            let _ = thread.join();
        }
    }

    fn command(&self, command: impl FnOnce(Sender<()>) -> Command) {
        let (done, is_done) = mpsc::channel();
        // The thread ends only by a command, and rings are not lost: the counter of the bell is far from full.
        let _ = self.commands.send(command(done));
        let _ = self.bell.write(1);
        let _ = is_done.recv();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the thread works on.
struct Work {
    events: ProcessEvents,
    cgroup: Cgroup,
    /// Processes of our own that may be in the target.
    spared: Vec<i32>,
    patcher: Patcher,
    timed: Timed,
    processes: HashMap<i32, Patched>,
    /// Those that cannot be faulted for good, each counted once.
    refused: HashSet<i32>,
    /// Our own.
    time_namespace: Option<PathBuf>,
    statistics: Arc<Mutex<Statistics>>,
}

impl Work {
    fn run(&mut self, orders: &Receiver<Command>, bell: &EventFd) {
        let mut renewal = Instant::now() + RENEWAL;
        loop {
            self.wait(bell, renewal.saturating_duration_since(Instant::now()));
            // It only wakes; what is to be done is in the channel.
            let _ = bell.read();
            while let Some(event) = self.events.take() {
                self.handle(event);
            }
            while let Ok(command) = orders.try_recv() {
                match command {
                    Command::Set(timed, done) => {
                        self.timed = timed;
                        self.renew();
                        let _ = done.send(());
                    }
                    Command::End(done) => {
                        self.end();
                        let _ = done.send(());
                        return;
                    }
                }
            }
            if Instant::now() >= renewal {
                renewal = Instant::now() + RENEWAL;
                self.listen();
                self.renew();
                self.look_around();
            }
        }
    }

    fn wait(&self, bell: &EventFd, time: Duration) {
        let mut fds = [
            PollFd::new(self.events.as_fd(), PollFlags::POLLIN),
            PollFd::new(bell.as_fd(), PollFlags::POLLIN),
        ];
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for events");
                std::thread::sleep(time);
            }
        }
    }

    /// Has new programs held, and says that this thread lives.
    fn listen(&mut self) {
        if let Err(error) = self.events.listen(PATIENCE) {
            tracing::error!(%error, "new programs are not held, and may see the true time at first");
        }
    }

    fn handle(&mut self, event: Event) {
        let pid = event.pid.cast_signed();
        match event.kind {
            FORK => self.take(pid, Origin::Made),
            EXEC => {
                // What it was is gone with its memory.
                self.forget(pid);
                self.take(pid, Origin::Found);
                if event.held != 0 {
                    // It cannot have ended: only SIGKILL reaches it meanwhile, and then there is nothing to do.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
                }
            }
            EXIT => self.forget(pid),
            _ => {}
        }
        self.count(|_| {});
    }

    /// Processes of which no event told: they were there before, or came from another cgroup.
    fn look_around(&mut self) {
        let present: HashSet<i32> = self.cgroup.processes().into_iter().collect();
        for &pid in &present {
            if !self.processes.contains_key(&pid) {
                self.take(pid, Origin::Found);
            }
        }
        self.refused.retain(|pid| present.contains(pid));
        let gone: Vec<i32> =
            self.processes.keys().copied().filter(|pid| !present.contains(pid)).collect();
        for pid in gone {
            self.leave(pid);
        }
        self.count(|_| {});
    }

    /// Makes the clocks of a process go wrong.
    fn take(&mut self, pid: i32, origin: Origin) {
        if self.spared.contains(&pid) || self.refused.contains(&pid) {
            return;
        }
        // Its monotonic clocks are others than ours, and so the lease would not end when it should.
        if time_namespace(pid).is_some_and(|theirs| Some(theirs) != self.time_namespace) {
            self.count(|statistics| *statistics.refused.entry(OTHER_TIME).or_default() += 1);
            self.refused.insert(pid);
            return;
        }
        let skew = self.timed.renewed(skew::now());
        match self.patcher.patch(pid, &skew) {
            Ok(patched) => {
                self.processes.insert(pid, patched);
                self.count(|statistics| match origin {
                    Origin::Found => statistics.patched += 1,
                    Origin::Made => statistics.inherited += 1,
                });
            }
            // It ended, or will be tried again when we look around.
            Err(Refusal::Gone) => {}
            Err(refusal) => {
                tracing::debug!(pid, %refusal, "its clocks stay right");
                let label = refusal.label();
                if !refusal.is_passing() || !self.statistics_know(label) {
                    self.count(|statistics| *statistics.refused.entry(label).or_default() += 1);
                }
                if !refusal.is_passing() {
                    self.refused.insert(pid);
                }
            }
        }
    }

    /// A process that left the cgroup, or ended.
    fn leave(&mut self, pid: i32) {
        if let Some(mut patched) = self.processes.remove(&pid) {
            // If it has ended there is nothing to put right.
            if patched.set(&injector_common::model::clock::Skew::TRUE).is_ok() {
                self.restore(pid);
            }
        }
    }

    fn forget(&mut self, pid: i32) {
        self.processes.remove(&pid);
        self.refused.remove(&pid);
    }

    fn renew(&mut self) {
        let skew = self.timed.renewed(skew::now());
        self.processes.retain(|_, patched| patched.set(&skew).is_ok());
    }

    fn end(&mut self) {
        // The time is right at once, everywhere; then the code is put back, which takes longer.
        for patched in self.processes.values_mut() {
            // One that has ended needs nothing.
            let _ = patched.set(&injector_common::model::clock::Skew::TRUE);
        }
        if let Err(error) = self.events.listen(Duration::ZERO) {
            tracing::error!(%error, "new programs may still be held for {PATIENCE:?}");
        }
        while let Some(event) = self.events.take() {
            if event.kind == EXEC && event.held != 0 {
                let _ = kill(Pid::from_raw(event.pid.cast_signed()), Signal::SIGCONT);
            }
        }
        let pids: HashSet<i32> =
            self.processes.keys().copied().chain(self.cgroup.processes()).collect();
        self.processes.clear();
        for pid in pids {
            self.restore(pid);
        }
    }

    fn restore(&self, pid: i32) {
        match vdso::restore(pid, Some(self.patcher.owner())) {
            Ok(_) | Err(Refusal::Gone) => {}
            Err(refusal) => {
                tracing::debug!(pid, %refusal, "its vDSO stays patched, but reads true");
            }
        }
    }

    fn statistics_know(&self, label: &str) -> bool {
        let statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        statistics.refused.contains_key(label)
    }

    fn count(&self, change: impl FnOnce(&mut Statistics)) {
        let mut statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut statistics);
        statistics.present = self.processes.len() as u64;
    }
}

/// The time namespace of a process; `None` if it has ended, or the kernel has none.
fn time_namespace(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/time")).ok()
}

/// How a process came to have its clocks faulted.
#[derive(Clone, Copy)]
enum Origin {
    /// It was there, or executed another program.
    Found,
    /// A faulted process made it, so that it has inherited the fault.
    Made,
}

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

use injector_common::{
    model::clock::Skew,
    process::{EXEC, EXIT, Event, FORK, FREE, STOPPED, WAITING},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use procfs::process::{Process, Status};

use super::skew::Timed;
use crate::{
    kernel::{
        KernelError,
        clock::true_time,
        limits,
        process::{Gate, ProcessEvents},
        vdso::{self, Patched, Patcher, Refusal},
    },
    target::cgroup::Cgroup,
};

/// How often to renew the lease, and to look for processes of which no event told.
const RENEWAL: Duration = Duration::from_millis(500);

/// For how long new programs are held, should this thread not be heard of.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How many events to handle before commands are looked at.
const EVENTS: usize = 256;

/// How many programs to patch at a time: each waits for a processor, to stop there, and for little else.
const HANDS: usize = 8;

/// How often to look around at the start, while there is something new.
const ROUNDS: u32 = 8;

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

impl Statistics {
    /// Goes on with those of the next cgroup.
    pub(super) fn add(&mut self, next: Self) {
        self.patched += next.patched;
        self.inherited += next.inherited;
        self.present = next.present;
        for (reason, count) in next.refused {
            *self.refused.entry(reason).or_default() += count;
        }
    }
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
            surgeon: Surgeon {
                patcher: Patcher::new(owner),
                spared,
                time_namespace: time_namespace(std::process::id().cast_signed()),
            },
            timed,
            changed: Instant::now(),
            processes: HashMap::new(),
            newborn: HashSet::new(),
            kept: HashMap::new(),
            stopped: HashSet::new(),
            is_listening: false,
            renewal: Instant::now() + RENEWAL,
            statistics: Arc::clone(&statistics),
        };
        let (ready, is_ready) = mpsc::channel();
        let thread = {
            let bell = Arc::clone(&bell);
            std::thread::Builder::new()
                .name("clocks".into())
                .spawn(move || {
                    // On a busy machine leases would end before they are renewed.
                    if let Err(error) = limits::prefer_this_thread() {
                        tracing::debug!(%error, "clocks may be right for a moment when this machine is busy");
                    }
                    work.surgeon.patcher.prepare();
                    // Nothing is held yet. One may have made another before it was patched itself; where that goes on
                    // for ever, the events tell of the rest.
                    (0..ROUNDS).any(|_| !work.look_around());
                    work.listen();
                    work.handle_events();
                    work.count_present();
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
    surgeon: Surgeon,
    timed: Timed,
    /// When `timed` was set.
    changed: Instant,
    processes: HashMap<i32, Patched>,
    /// Made since leases were renewed, with a patch and a lease that they have inherited. Most soon end or execute
    /// a program.
    newborn: HashSet<i32>,
    /// Those that could not be faulted.
    kept: HashMap<i32, Kept>,
    /// Those that were stopped, and not faulted, when we last looked around.
    stopped: HashSet<i32>,
    /// Whether new programs are held.
    is_listening: bool,
    /// When leases are to be renewed.
    renewal: Instant,
    statistics: Arc<Mutex<Statistics>>,
}

impl Work {
    fn run(&mut self, orders: &Receiver<Command>, bell: &EventFd) {
        let mut look = Instant::now() + RENEWAL;
        loop {
            self.wait(bell, look.min(self.renewal).saturating_duration_since(Instant::now()));
            // It only wakes; what is to be done is in the channel.
            let _ = bell.read();
            self.handle_events();
            while let Ok(command) = orders.try_recv() {
                match command {
                    Command::Set(timed, done) => {
                        self.timed = timed;
                        self.changed = Instant::now();
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
            self.keep_up();
            if Instant::now() >= look {
                look = Instant::now() + RENEWAL;
                self.look_around();
            }
            self.count_present();
        }
    }

    /// Renews leases when it is time, also while there is much else to do.
    fn keep_up(&mut self) {
        if Instant::now() >= self.renewal {
            self.renewal = Instant::now() + RENEWAL;
            if self.is_listening {
                self.listen();
            }
            self.renew();
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
        self.is_listening = true;
        if let Err(error) = self.events.listen(PATIENCE) {
            tracing::error!(%error, "new programs are not held, and may see the true time at first");
        }
    }

    fn handle_events(&mut self) {
        let mut executed = Vec::new();
        for _ in 0..EVENTS {
            let Some(event) = self.events.take() else { break };
            let pid = event.pid.cast_signed();
            if executed.iter().any(|before: &Event| before.pid == event.pid) {
                self.take_executed(&mut executed);
            }
            match event.kind {
                FORK => {
                    self.newborn.insert(pid);
                }
                EXEC => {
                    // What it was is gone with its memory.
                    self.forget(pid);
                    executed.push(event);
                }
                EXIT => self.forget(pid),
                _ => {}
            }
            if executed.len() == HANDS {
                self.take_executed(&mut executed);
            }
            self.keep_up();
        }
        self.take_executed(&mut executed);
        // One that was made while the skew changed may have inherited the old one.
        if self.changed.elapsed() < RENEWAL {
            self.adopt_newborn();
        }
    }

    /// Makes the clocks of programs that were executed go wrong, and lets those go on that are held.
    fn take_executed(&mut self, executed: &mut Vec<Event>) {
        // Mostly there is but one, which needs no other thread.
        let Some(last) = executed.pop() else { return };
        let skew = self.timed.renewed(true_time());
        let (surgeon, kept) = (&self.surgeon, &self.kept);
        let gate = self.events.gate();
        let gate = &*gate;
        let operated = std::thread::scope(|scope| {
            let operate = |event: Event| {
                let pid = event.pid.cast_signed();
                if event.held == STOPPED {
                    wait_until_held(pid);
                }
                let patched = surgeon.operate(pid, kept.get(&pid), &skew, event.held);
                if event.held == WAITING || !matches!(patched, Some(Ok(_))) {
                    let_go(gate, event);
                }
                (pid, patched)
            };
            let threads: Vec<_> =
                executed.drain(..).map(|event| scope.spawn(move || operate(event))).collect();
            let last = operate(last);
            // The process aborts on panic, so all of them come back.
            let others = threads.into_iter().filter_map(|thread| thread.join().ok());
            others.chain([last]).collect::<Vec<_>>()
        });
        for (pid, patched) in operated {
            self.took(pid, patched);
        }
    }

    /// Processes of which no event told: they were there before, or came from another cgroup. Returns whether there
    /// was any.
    fn look_around(&mut self) -> bool {
        let mut is_new = false;
        let present: HashSet<i32> = self.cgroup.processes().into_iter().collect();
        let mut stopped = HashSet::new();
        for &pid in &present {
            if self.processes.contains_key(&pid) || self.newborn.contains(&pid) {
                continue;
            }
            // It may be held, and the event of that be on its way. What is stopped for longer was not by us.
            if self.is_listening && is_stopped(pid) {
                stopped.insert(pid);
                if !self.stopped.contains(&pid) {
                    continue;
                }
            }
            is_new |= self.take(pid);
            self.keep_up();
        }
        self.stopped = stopped;
        self.kept.retain(|pid, _| present.contains(pid));
        let gone: Vec<i32> =
            self.processes.keys().copied().filter(|pid| !present.contains(pid)).collect();
        for pid in gone {
            self.leave(pid);
        }
        is_new
    }

    /// Makes the clocks of a process go wrong. Returns whether they do.
    fn take(&mut self, pid: i32) -> bool {
        let skew = self.timed.renewed(true_time());
        let patched = self.surgeon.operate(pid, self.kept.get(&pid), &skew, FREE);
        self.took(pid, patched)
    }

    /// What came of trying that. Returns whether its clocks go wrong.
    fn took(&mut self, pid: i32, patched: Option<Result<Patched, Kept>>) -> bool {
        match patched {
            Some(Ok(patched)) => {
                self.processes.insert(pid, patched);
                self.newborn.remove(&pid);
                self.count(|statistics| statistics.patched += 1);
                return true;
            }
            Some(Err(kept)) => self.keep(pid, kept),
            None => {}
        }
        false
    }

    /// Processes that were made by some of the target. They have inherited the patch, unless they have executed
    /// a program since, and may be held: then the event of that comes. Any other is found when we look around.
    fn adopt_newborn(&mut self) {
        let skew = self.timed.renewed(true_time());
        for pid in std::mem::take(&mut self.newborn) {
            if let Ok(Some(patched)) = self.surgeon.patcher.adopt(pid, &skew) {
                self.processes.insert(pid, patched);
                self.count(|statistics| statistics.inherited += 1);
            }
        }
    }

    /// A process that keeps the true time. Counted once for each reason, however often it is tried.
    fn keep(&mut self, pid: i32, kept: Kept) {
        let before = self.kept.insert(pid, kept);
        if before.is_none_or(|before| before.reason != kept.reason) {
            self.count(|statistics| *statistics.refused.entry(kept.reason).or_default() += 1);
        }
    }

    /// A process that left the cgroup, or ended.
    fn leave(&mut self, pid: i32) {
        if let Some(mut patched) = self.processes.remove(&pid) {
            // If it has ended there is nothing to put right.
            if patched.set(&Skew::TRUE).is_ok() {
                self.restore(pid);
            }
        }
    }

    fn forget(&mut self, pid: i32) {
        self.newborn.remove(&pid);
        self.processes.remove(&pid);
        self.kept.remove(&pid);
    }

    /// Sets the skew of all, with a new lease.
    fn renew(&mut self) {
        let skew = self.timed.renewed(true_time());
        self.processes.retain(|_, patched| patched.set(&skew).is_ok());
        self.adopt_newborn();
    }

    fn end(&mut self) {
        self.adopt_newborn();
        // The time is right at once, everywhere; then the code is put back, which takes longer.
        for patched in self.processes.values_mut() {
            // One that has ended needs nothing.
            let _ = patched.set(&Skew::TRUE);
        }
        if let Err(error) = self.events.listen(Duration::ZERO) {
            tracing::error!(%error, "new programs may still be held for {PATIENCE:?}");
        }
        let gate = self.events.gate();
        while let Some(event) = self.events.take() {
            let_go(&gate, event);
        }
        let pids: HashSet<i32> =
            self.processes.keys().copied().chain(self.cgroup.processes()).collect();
        self.processes.clear();
        for pid in pids {
            self.restore(pid);
        }
    }

    fn restore(&self, pid: i32) {
        match vdso::restore(pid, Some(self.surgeon.patcher.owner())) {
            Ok(_) | Err(Refusal::Gone) => {}
            Err(refusal) => {
                tracing::debug!(pid, %refusal, "its vDSO stays patched, but reads true");
            }
        }
    }

    fn count(&self, change: impl FnOnce(&mut Statistics)) {
        change(&mut self.statistics.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn count_present(&self) {
        self.count(|statistics| {
            statistics.present = (self.processes.len() + self.newborn.len()) as u64;
        });
    }
}

/// Patches one process. Several may be at a time.
struct Surgeon {
    patcher: Patcher,
    /// Processes of our own that may be in the target.
    spared: Vec<i32>,
    /// Our own.
    time_namespace: Option<PathBuf>,
}

impl Surgeon {
    /// Makes the clocks of a process go wrong; then it is stopped no more, if `held` says that it was. `kept` is why it
    /// was left alone before. `None` if it is to be left alone again, or has ended.
    fn operate(
        &self,
        pid: i32,
        kept: Option<&Kept>,
        skew: &Skew,
        held: u32,
    ) -> Option<Result<Patched, Kept>> {
        if self.spared.contains(&pid) || kept.is_some_and(|kept| kept.for_good) {
            return None;
        }
        // Its monotonic clocks are others than ours, and so the lease would not end when it should.
        if time_namespace(pid).is_some_and(|theirs| Some(theirs) != self.time_namespace) {
            return Some(Err(Kept { reason: OTHER_TIME, for_good: true }));
        }
        let patched = match held {
            STOPPED => self.patcher.patch_held(pid, skew),
            WAITING => self.patcher.patch_entering(pid, skew),
            _ => self.patcher.patch(pid, skew),
        };
        match patched {
            Ok(patched) => Some(Ok(patched)),
            // It ended, or will be tried again when we look around.
            Err(Refusal::Gone) => None,
            Err(refusal) => {
                tracing::debug!(pid, %refusal, "its clocks stay right");
                Some(Err(Kept { reason: refusal.label(), for_good: !refusal.is_passing() }))
            }
        }
    }
}

/// Waits until the `SIGSTOP` that holds a program has reached it: the eBPF side cannot send it at once, but by an
/// interrupt that comes a moment later, and a `SIGCONT` before it would be of no use.
fn wait_until_held(pid: i32) {
    const STOP: u64 = 1 << (Signal::SIGSTOP as u64 - 1);
    let end = Instant::now() + Duration::from_millis(100);
    while Instant::now() < end {
        // One that has been killed is not there.
        let Some(status) = status(pid) else { return };
        if status.state.starts_with(['T', 't', 'Z', 'X']) || status.shdpnd & STOP != 0 {
            return;
        }
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// What the kernel says of a process; `None` if it is not there.
fn status(pid: i32) -> Option<Status> {
    Process::new(pid).and_then(|process| process.status()).ok()
}

fn is_stopped(pid: i32) -> bool {
    status(pid).is_some_and(|status| status.state.starts_with('T'))
}

/// Lets a program go on, if it was held.
fn let_go(gate: &Gate, event: Event) {
    let is_stopped = match event.held {
        STOPPED => true,
        WAITING => gate.release(&event),
        _ => false,
    };
    if is_stopped {
        wait_until_held(event.pid.cast_signed());
        // It cannot have ended: only SIGKILL reaches it meanwhile, and then there is nothing to do.
        let _ = kill(Pid::from_raw(event.pid.cast_signed()), Signal::SIGCONT);
    }
}

/// The time namespace of a process; `None` if it has ended, or the kernel has none.
fn time_namespace(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/time")).ok()
}

/// Why a process keeps the true time.
#[derive(Clone, Copy)]
struct Kept {
    reason: &'static str,
    /// Else it is tried again.
    for_good: bool,
}

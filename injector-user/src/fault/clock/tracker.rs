//! The process tracker: a thread that skews the clocks of all present and future processes of a
//! target.

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
        members::Members,
        process::{ExecGate, ProcessEvents},
        vdso::{self, Patched, Patcher, Refusal},
    },
    target::Whose,
    threads::{self, Panicked},
};

/// The name of the thread.
const NAME: &str = "clocks";

/// The interval of lease renewals, and of scans for processes without an event.
const RENEW_INTERVAL: Duration = Duration::from_millis(500);

/// How long new programs may be held without a renewal by this thread.
const EXEC_GATE_TIMEOUT: Duration = Duration::from_millis(1500);

/// The maximum number of events handled between checks for commands.
const MAX_EVENTS: usize = 256;

/// The number of programs patched in parallel. Patching mostly waits for the program to be scheduled.
const PARALLELISM: usize = 8;

/// The maximum number of initial scans; each continues only if the last one found a new process.
const MAX_INITIAL_SCANS: u32 = 8;

/// The reason for skipping processes in another time namespace.
const OTHER_TIME_NAMESPACE: &str = "in another time namespace";

/// Counts of processes by outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Programs that were patched: those running at the start, and each one executed since.
    pub patched: u64,
    /// Forked processes that inherited the patch.
    pub inherited: u64,
    /// Patched processes that exist now.
    pub present: u64,
    /// Processes that could not be patched, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

impl Statistics {
    /// Adds the counts of the next cgroup.
    pub(super) fn add(&mut self, next: Self) {
        self.patched += next.patched;
        self.inherited += next.inherited;
        self.present = next.present;
        for (reason, count) in next.refused {
            *self.refused.entry(reason).or_default() += count;
        }
    }
}

/// A command to the thread.
enum Command {
    /// Change the skew.
    Set(Timed, Sender<()>),
    /// Restore all clocks and stop.
    End(Sender<()>),
}

/// A handle of the tracker thread.
#[derive(Debug)]
pub struct ProcessTracker {
    commands: Sender<Command>,
    wakeup: Arc<EventFd>,
    statistics: Arc<Mutex<Statistics>>,
    thread: Option<JoinHandle<()>>,
}

impl ProcessTracker {
    /// Starts the thread. Returns once the clocks of all present processes are skewed.
    pub fn start(
        owner: u64,
        whose: Whose,
        members: &Members,
        excluded: Vec<i32>,
        timed: Timed,
    ) -> Result<Self, KernelError> {
        let events = ProcessEvents::load(members)?;
        let (commands, requests) = mpsc::channel();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wakeup =
            EventFd::from_flags(flags).map_err(|error| KernelError::Thread(error.into()))?;
        let wakeup = Arc::new(wakeup);
        let statistics = Arc::new(Mutex::new(Statistics::default()));
        let mut worker = Worker {
            events,
            whose,
            patcher: ProcessPatcher {
                vdso: Patcher::new(owner),
                excluded,
                time_namespace: time_namespace(std::process::id().cast_signed()),
            },
            timed,
            changed: Instant::now(),
            processes: HashMap::new(),
            forked: HashSet::new(),
            skipped: HashMap::new(),
            stopped: HashSet::new(),
            is_gating: false,
            renewal: Instant::now() + RENEW_INTERVAL,
            statistics: Arc::clone(&statistics),
        };
        let (ready, is_ready) = mpsc::channel();
        let thread = {
            let wakeup = Arc::clone(&wakeup);
            std::thread::Builder::new()
                .name(NAME.into())
                .spawn(move || {
                    // On a busy machine leases could expire before they are renewed.
                    if let Err(error) = limits::prefer_this_thread() {
                        tracing::debug!(%error, "clocks may read true briefly while this machine is busy");
                    }
                    worker.patcher.vdso.prepare();
                    // Until programs are held, a process may fork before it is patched itself, so
                    // scan again. Where that never ends, events report the rest.
                    (0..MAX_INITIAL_SCANS).any(|_| !worker.rescan());
                    worker.hold_new_programs();
                    worker.handle_events();
                    worker.count_present();
                    // `start` waits for this.
                    let _ = ready.send(());
                    worker.run(&requests, &wakeup);
                })
                .map_err(KernelError::Thread)?
        };
        if is_ready.recv().is_err() {
            // The thread ends only by a command, or by a panic.
            threads::join(NAME, thread)?;
            return Err(KernelError::Thread(std::io::ErrorKind::BrokenPipe.into()));
        }
        Ok(Self { commands, wakeup, statistics, thread: Some(thread) })
    }

    /// Changes the skew. Returns once all processes have it.
    pub fn set(&mut self, timed: Timed) -> Result<(), Panicked> {
        self.command(|done| Command::Set(timed, done));
        self.check()
    }

    /// Fails if the thread has panicked.
    pub fn check(&mut self) -> Result<(), Panicked> {
        match self.thread.take_if(|thread| thread.is_finished()) {
            Some(thread) => threads::join(NAME, thread),
            None => Ok(()),
        }
    }

    /// The counts so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Restores all clocks and waits for the thread to end.
    pub fn end(&mut self) -> Result<(), Panicked> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.command(Command::End);
        threads::join(NAME, thread)
    }

    fn command(&self, command: impl FnOnce(Sender<()>) -> Command) {
        let (done, is_done) = mpsc::channel();
        // A panic of the thread is found when it is joined, and the eventfd's counter cannot overflow.
        let _ = self.commands.send(command(done));
        let _ = self.wakeup.write(1);
        let _ = is_done.recv();
    }
}

impl Drop for ProcessTracker {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "clocks read true once their lease has expired");
        }
    }
}

/// The state of the thread.
struct Worker {
    events: ProcessEvents,
    whose: Whose,
    patcher: ProcessPatcher,
    timed: Timed,
    /// When `timed` was set.
    changed: Instant,
    processes: HashMap<i32, Patched>,
    /// Processes forked since the last renewal, with an inherited patch and lease. Most of them exit
    /// or execute a program soon.
    forked: HashSet<i32>,
    /// Processes that could not be patched.
    skipped: HashMap<i32, Skipped>,
    /// Processes that were stopped and not patched at the last scan.
    stopped: HashSet<i32>,
    /// Whether new programs are held until they are patched.
    is_gating: bool,
    /// When to renew leases.
    renewal: Instant,
    statistics: Arc<Mutex<Statistics>>,
}

impl Worker {
    fn run(&mut self, requests: &Receiver<Command>, wakeup: &EventFd) {
        let mut next_scan = Instant::now() + RENEW_INTERVAL;
        loop {
            self.wait(
                wakeup,
                next_scan.min(self.renewal).saturating_duration_since(Instant::now()),
            );
            // It only wakes the thread; commands are in the channel.
            let _ = wakeup.read();
            self.handle_events();
            while let Ok(command) = requests.try_recv() {
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
            self.renew_if_due();
            if Instant::now() >= next_scan {
                next_scan = Instant::now() + RENEW_INTERVAL;
                self.rescan();
            }
            self.count_present();
        }
    }

    /// Renews leases when due. Called between long operations too.
    fn renew_if_due(&mut self) {
        if Instant::now() >= self.renewal {
            self.renewal = Instant::now() + RENEW_INTERVAL;
            if self.is_gating {
                self.hold_new_programs();
            }
            self.renew();
        }
    }

    fn wait(&self, wakeup: &EventFd, time: Duration) {
        let mut fds = [
            PollFd::new(self.events.as_fd(), PollFlags::POLLIN),
            PollFd::new(wakeup.as_fd(), PollFlags::POLLIN),
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

    /// Starts or renews holding new programs.
    fn hold_new_programs(&mut self) {
        self.is_gating = true;
        if let Err(error) = self.events.hold_execs(EXEC_GATE_TIMEOUT) {
            tracing::error!(%error, "cannot hold new programs: they may read the true time at first");
        }
    }

    fn handle_events(&mut self) {
        let mut executed = Vec::new();
        for _ in 0..MAX_EVENTS {
            let Some(event) = self.events.take() else { break };
            let pid = event.pid.cast_signed();
            if executed.iter().any(|before: &Event| before.pid == event.pid) {
                self.patch_executed(&mut executed);
            }
            match event.kind {
                FORK => {
                    self.forked.insert(pid);
                }
                EXEC => {
                    // The patch is gone with the old memory map.
                    self.forget(pid);
                    executed.push(event);
                }
                EXIT => self.forget(pid),
                _ => {}
            }
            if executed.len() == PARALLELISM {
                self.patch_executed(&mut executed);
            }
            self.renew_if_due();
        }
        self.patch_executed(&mut executed);
        // A process forked during a change may have inherited the old skew.
        if self.changed.elapsed() < RENEW_INTERVAL {
            self.adopt_forked();
        }
    }

    /// Patches newly executed programs and resumes those that are held.
    fn patch_executed(&mut self, executed: &mut Vec<Event>) {
        // A single program, the usual case, needs no thread.
        let Some(last) = executed.pop() else { return };
        let skew = self.timed.renewed(true_time());
        let (patcher, skipped) = (&self.patcher, &self.skipped);
        let gate = self.events.gate();
        let gate = &*gate;
        let outcomes = std::thread::scope(|scope| {
            let patch = |event: Event| {
                let pid = event.pid.cast_signed();
                if event.held == STOPPED {
                    wait_until_stopped(pid);
                }
                let outcome = patcher.patch(pid, skipped.get(&pid), &skew, event.held);
                if event.held == WAITING || !matches!(outcome, Some(Ok(_))) {
                    resume(gate, event);
                }
                (pid, outcome)
            };
            let threads: Vec<_> =
                executed.drain(..).map(|event| scope.spawn(move || patch(event))).collect();
            let last = patch(last);
            // Propagate panics.
            let others = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            others.chain([last]).collect::<Vec<_>>()
        });
        for (pid, outcome) in outcomes {
            self.record_result(pid, outcome);
        }
    }

    /// Finds processes without an event: those from before the start and those moved into the
    /// cgroup. Returns whether there was any.
    fn rescan(&mut self) -> bool {
        let mut is_new = false;
        let present: HashSet<i32> = self.whose.processes().into_iter().collect();
        let mut stopped = HashSet::new();
        for &pid in &present {
            if self.processes.contains_key(&pid) || self.forked.contains(&pid) {
                continue;
            }
            // It may be held, with its event pending. One still stopped at the next scan was
            // stopped by someone else.
            if self.is_gating && is_stopped(pid) {
                stopped.insert(pid);
                if !self.stopped.contains(&pid) {
                    continue;
                }
            }
            is_new |= self.track(pid);
            self.renew_if_due();
        }
        self.stopped = stopped;
        self.skipped.retain(|pid, _| present.contains(pid));
        let gone: Vec<i32> =
            self.processes.keys().copied().filter(|pid| !present.contains(pid)).collect();
        for pid in gone {
            self.untrack(pid);
        }
        is_new
    }

    /// Patches a process. Returns whether that succeeded.
    fn track(&mut self, pid: i32) -> bool {
        let skew = self.timed.renewed(true_time());
        let patched = self.patcher.patch(pid, self.skipped.get(&pid), &skew, FREE);
        self.record_result(pid, patched)
    }

    /// Records the result of patching a process. Returns whether its clocks are skewed.
    fn record_result(&mut self, pid: i32, patched: Option<Result<Patched, Skipped>>) -> bool {
        match patched {
            Some(Ok(patched)) => {
                self.processes.insert(pid, patched);
                self.forked.remove(&pid);
                self.count(|statistics| statistics.patched += 1);
                return true;
            }
            Some(Err(skipped)) => self.record_skipped(pid, skipped),
            None => {}
        }
        false
    }

    /// Adopts forked processes, which have inherited the patch. One that has executed a program since
    /// lost it and has an exec event pending. The next scan finds any other.
    fn adopt_forked(&mut self) {
        let skew = self.timed.renewed(true_time());
        for pid in std::mem::take(&mut self.forked) {
            if let Ok(Some(patched)) = self.patcher.vdso.adopt(pid, &skew) {
                self.processes.insert(pid, patched);
                self.count(|statistics| statistics.inherited += 1);
            }
        }
    }

    /// Records a process that keeps the true time. Retries count once for each reason.
    fn record_skipped(&mut self, pid: i32, skipped: Skipped) {
        let before = self.skipped.insert(pid, skipped);
        if before.is_none_or(|before| before.reason != skipped.reason) {
            self.count(|statistics| *statistics.refused.entry(skipped.reason).or_default() += 1);
        }
    }

    /// Restores a process that left the cgroup or exited.
    fn untrack(&mut self, pid: i32) {
        if let Some(mut patched) = self.processes.remove(&pid) {
            // An exited process needs no restoring.
            if patched.set(&Skew::TRUE).is_ok() {
                self.restore(pid);
            }
        }
    }

    fn forget(&mut self, pid: i32) {
        self.forked.remove(&pid);
        self.processes.remove(&pid);
        self.skipped.remove(&pid);
    }

    /// Writes the skew with a new lease to all processes.
    fn renew(&mut self) {
        let skew = self.timed.renewed(true_time());
        self.processes.retain(|_, patched| patched.set(&skew).is_ok());
        self.adopt_forked();
    }

    fn end(&mut self) {
        self.adopt_forked();
        // First make all clocks read true at once; restoring the code takes longer.
        for patched in self.processes.values_mut() {
            // Exited processes need no restoring.
            let _ = patched.set(&Skew::TRUE);
        }
        if let Err(error) = self.events.hold_execs(Duration::ZERO) {
            tracing::error!(%error, "new programs may still be held for up to {EXEC_GATE_TIMEOUT:?}");
        }
        let gate = self.events.gate();
        while let Some(event) = self.events.take() {
            resume(&gate, event);
        }
        let pids: HashSet<i32> =
            self.processes.keys().copied().chain(self.whose.processes()).collect();
        self.processes.clear();
        for pid in pids {
            self.restore(pid);
        }
    }

    fn restore(&self, pid: i32) {
        match vdso::restore(pid, Some(self.patcher.vdso.owner())) {
            Ok(_) | Err(Refusal::Gone) => {}
            Err(refusal) => {
                tracing::debug!(pid, %refusal, "the vDSO stays patched but reads the true time");
            }
        }
    }

    fn count(&self, change: impl FnOnce(&mut Statistics)) {
        change(&mut self.statistics.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn count_present(&self) {
        self.count(|statistics| {
            statistics.present = (self.processes.len() + self.forked.len()) as u64;
        });
    }
}

/// Patches processes. Shared by several threads.
struct ProcessPatcher {
    vdso: Patcher,
    /// Processes of the injector, which are never patched.
    excluded: Vec<i32>,
    /// The time namespace of this process.
    time_namespace: Option<PathBuf>,
}

impl ProcessPatcher {
    /// Patches a process, and resumes it if `held` says that it is stopped. `skipped` is why it was
    /// skipped before. `None` if it is skipped again or has exited.
    fn patch(
        &self,
        pid: i32,
        skipped: Option<&Skipped>,
        skew: &Skew,
        held: u32,
    ) -> Option<Result<Patched, Skipped>> {
        if self.excluded.contains(&pid) || skipped.is_some_and(|skipped| skipped.is_permanent) {
            return None;
        }
        // Its monotonic clocks have other offsets, so leases would expire at the wrong time.
        if time_namespace(pid).is_some_and(|theirs| Some(theirs) != self.time_namespace) {
            return Some(Err(Skipped { reason: OTHER_TIME_NAMESPACE, is_permanent: true }));
        }
        let patched = match held {
            STOPPED => self.vdso.patch_held(pid, skew),
            WAITING => self.vdso.patch_entering(pid, skew),
            _ => self.vdso.patch(pid, skew),
        };
        match patched {
            Ok(patched) => Some(Ok(patched)),
            // It has exited, or the next scan tries it again.
            Err(Refusal::Gone) => None,
            Err(refusal) => {
                tracing::debug!(pid, %refusal, "its clocks stay true");
                Some(Err(Skipped {
                    reason: refusal.label(),
                    is_permanent: !refusal.is_transient(),
                }))
            }
        }
    }
}

/// Waits until the `SIGSTOP` that holds a program is delivered or pending. The eBPF side sends it
/// from an interrupt a moment later, and a `SIGCONT` before it would be lost.
fn wait_until_stopped(pid: i32) {
    const STOP: u64 = 1 << (Signal::SIGSTOP as u64 - 1);
    let end = Instant::now() + Duration::from_millis(100);
    while Instant::now() < end {
        // A killed process has no status.
        let Some(status) = status(pid) else { return };
        if status.state.starts_with(['T', 't', 'Z', 'X']) || status.shdpnd & STOP != 0 {
            return;
        }
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// `/proc/PID/status`; `None` if there is no such process.
fn status(pid: i32) -> Option<Status> {
    Process::new(pid).and_then(|process| process.status()).ok()
}

fn is_stopped(pid: i32) -> bool {
    status(pid).is_some_and(|status| status.state.starts_with('T'))
}

/// Resumes a program if it is held.
fn resume(gate: &ExecGate, event: Event) {
    let is_stopped = match event.held {
        STOPPED => true,
        WAITING => gate.release(&event),
        _ => false,
    };
    if is_stopped {
        wait_until_stopped(event.pid.cast_signed());
        // A stopped process can only have ended by SIGKILL, which is fine.
        let _ = kill(Pid::from_raw(event.pid.cast_signed()), Signal::SIGCONT);
    }
}

/// The time namespace of a process; `None` if it has exited or the kernel lacks time namespaces.
fn time_namespace(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/time")).ok()
}

/// A process that keeps the true time.
#[derive(Clone, Copy)]
struct Skipped {
    reason: &'static str,
    /// Whether patching is not tried again.
    is_permanent: bool,
}

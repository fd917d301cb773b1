//! Stops all threads of a process for a moment, by ptrace(2).
//!
//! The tracer is a thread of its own that ends with the moment, and the kernel lets go of all that a thread
//! traces when it ends. So they go on whatever happens here, to those that could not be stopped as well.

use std::{
    collections::BTreeSet,
    io, mem,
    thread::{self, Builder},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::ptrace::{self, Options},
    unistd::{Pid, gettid},
};

use super::{Refusal, arch, process::Process};

/// How long a thread may take to stop. They stop within microseconds; only one that gets no processor, as there are
/// many others, takes longer. Leases of other processes are not renewed meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// After so long it is looked at whether a thread sleeps in the kernel.
const DOZE: Duration = Duration::from_millis(2);

/// The threads of a process, while they do not run.
#[derive(Debug)]
pub struct Stopped<'a> {
    process: &'a Process,
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    id: i32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Asked to stop.
    Running,
    /// Stopped; the signal that it was about to receive, or 0.
    Stopped(i32),
    /// In the kernel, and goes on at this address. It is stopped before it does.
    Asleep(u64),
    /// Not there any more.
    Ended,
}

/// Does `work` while no thread of the process runs.
///
/// Children of this process must not be waited for meanwhile by waitpid(2), which would take the stops for
/// itself; to wait for one by a pidfd, or once a pidfd says that it has ended, is fine.
pub fn while_stopped<T: Send>(
    process: &Process,
    work: impl FnOnce(&Stopped) -> Result<T, Refusal> + Send,
) -> Result<T, Refusal> {
    thread::scope(|scope| {
        let tracer = Builder::new().name("vdso".into()).stack_size(128 << 10);
        let tracer = tracer.spawn_scoped(scope, || {
            let mut stopped = Stopped { process, threads: Vec::new() };
            stopped.stop()?;
            work(&stopped)
        });
        let tracer = tracer.map_err(|source| failed("starting a thread", source))?;
        tracer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Stopped<'_> {
    /// Moves threads elsewhere. `refuge` is given where one goes on, and says where it shall instead.
    pub fn relocate(
        &self,
        refuge: impl Fn(u64) -> Result<Option<u64>, Refusal>,
    ) -> Result<(), Refusal> {
        for thread in &self.threads {
            match thread.state {
                State::Stopped(_) => {
                    let id = Pid::from_raw(thread.id);
                    let mut registers = match ptrace::getregs(id) {
                        Ok(registers) => registers,
                        Err(error) => {
                            self.unless_killed(error, "reading the registers of a thread")?;
                            continue;
                        }
                    };
                    let pointer = arch::instruction_pointer(&mut registers);
                    let Some(to) = refuge(*pointer)? else { continue };
                    *pointer = to;
                    if let Err(error) = ptrace::setregs(id, registers) {
                        self.unless_killed(error, "moving a thread")?;
                    }
                }
                State::Asleep(pointer) => {
                    if refuge(pointer)?.is_some() {
                        return Err(Refusal::Busy);
                    }
                }
                State::Running | State::Ended => {}
            }
        }
        Ok(())
    }

    /// A stopped thread that cannot be accessed has been killed.
    fn unless_killed(&self, error: Errno, what: &'static str) -> Result<(), Refusal> {
        match error {
            Errno::ESRCH if self.process.is_gone() => Err(Refusal::Gone),
            Errno::ESRCH => Ok(()),
            other => Err(failed(what, other.into())),
        }
    }

    /// Stops all threads, also those that are made meanwhile: while there was one that ran, others may be new.
    fn stop(&mut self) -> Result<(), Refusal> {
        let end = Instant::now() + PATIENCE;
        let mut known = BTreeSet::new();
        loop {
            let mut is_new = false;
            for id in self.process.threads()? {
                if known.insert(id) {
                    is_new = true;
                    let state = self.seize(id)?;
                    self.threads.push(Thread { id, state });
                }
            }
            if !is_new {
                break;
            }
            self.wait(end)?;
        }
        if self.threads.iter().all(|thread| thread.state == State::Ended) {
            return Err(Refusal::Gone);
        }
        Ok(())
    }

    /// Asks one thread to stop. Threads that it makes are asked by the kernel.
    fn seize(&self, id: i32) -> Result<State, Refusal> {
        let pid = Pid::from_raw(id);
        match ptrace::seize(pid, Options::PTRACE_O_TRACECLONE) {
            Ok(()) => {}
            Err(Errno::ESRCH) => return Ok(State::Ended),
            Err(error) => {
                let status = match self.process.status(id) {
                    Ok(status) => status,
                    Err(Refusal::Gone) => return Ok(State::Ended),
                    Err(other) => return Err(other),
                };
                return if status.state.starts_with(['Z', 'X']) {
                    Ok(State::Ended)
                } else if status.tracerpid == gettid().as_raw() {
                    Ok(State::Running)
                } else if status.tracerpid != 0 {
                    Err(Refusal::Traced)
                } else {
                    Err(failed("tracing a thread", error.into()))
                };
            }
        }
        // The number may have been given to a thread of another process since. That one is let go of at the end.
        if !self.process.has(id) {
            return Ok(State::Ended);
        }
        match ptrace::interrupt(pid) {
            Ok(()) => Ok(State::Running),
            Err(Errno::ESRCH) => Ok(State::Ended),
            Err(error) => Err(failed("stopping a thread", error.into())),
        }
    }

    /// Waits until none runs.
    fn wait(&mut self, end: Instant) -> Result<(), Refusal> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(5);
        loop {
            let mut run = 0;
            for thread in &mut self.threads {
                if thread.state == State::Running {
                    thread.state = look(thread.id)?;
                }
                if thread.state == State::Running && start.elapsed() > DOZE {
                    // It is asked to stop already, so it will before it leaves the kernel.
                    if let Some(pointer) = self.process.sleeps_at(thread.id) {
                        thread.state = State::Asleep(pointer);
                    }
                }
                run += usize::from(thread.state == State::Running);
            }
            if run == 0 {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(if self.process.is_gone() { Refusal::Gone } else { Refusal::Busy });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        for thread in &self.threads {
            if let State::Stopped(signal) = thread.state {
                // SAFETY: takes no pointers. It fails for a thread that has been killed, which needs nothing.
                unsafe { libc::ptrace(libc::PTRACE_DETACH, thread.id, 0, signal) };
            }
        }
    }
}

/// Whether a thread has stopped.
fn look(id: i32) -> Result<State, Refusal> {
    // WNOWAIT leaves the stop as it is: were we killed, the thread would receive the signal that it stopped for.
    // __WNOTHREAD leaves alone what other threads of ours wait for.
    let flags = libc::WSTOPPED
        | libc::WEXITED
        | libc::WNOHANG
        | libc::WNOWAIT
        | libc::__WALL
        | libc::__WNOTHREAD;
    // SAFETY: plain data, for which zeroes are valid.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    // SAFETY: writes to `info`. nix has no waitid that knows all signals.
    let result = unsafe { libc::waitid(libc::P_PID, id as libc::id_t, &raw mut info, flags) };
    if result != 0 {
        return match Errno::last() {
            Errno::ECHILD => Ok(State::Ended),
            Errno::EINTR => Ok(State::Running),
            error => Err(failed("waiting for a thread", error.into())),
        };
    }
    // SAFETY: waitid has filled these in, or left zeroes.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok(match info.si_code {
        _ if pid == 0 => State::Running,
        libc::CLD_STOPPED | libc::CLD_TRAPPED => {
            // An event is in the second byte: that of a stop, which is what was asked for, of a group stop, or of
            // a clone. Without, it is a signal that is about to be received.
            let is_event = status >> 8 != 0;
            State::Stopped(if is_event { 0 } else { status })
        }
        _ => State::Ended,
    })
}

fn failed(what: &'static str, source: io::Error) -> Refusal {
    Refusal::Failed { what, source }
}

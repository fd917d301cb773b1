//! Stops all threads of a process for a moment, by ptrace(2).
//!
//! The tracer is a separate thread that ends afterwards. The kernel detaches all tracees of a thread
//! that ends, so they always continue, including those that could not be stopped.

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

use super::{Refusal, process::Process};
use crate::arch;

/// The timeout of stopping threads. They stop within microseconds unless they wait for a CPU. Leases of
/// other processes are not renewed meanwhile.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait for a stop before checking whether a thread sleeps in the kernel.
const SLEEP_CHECK_INTERVAL: Duration = Duration::from_millis(2);

/// The stopped threads of a process.
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
    /// Requested to stop.
    Running,
    /// Stopped, with the pending signal or 0.
    Stopped(i32),
    /// Asleep in the kernel, with this instruction pointer. It stops before it returns there.
    Asleep(u64),
    /// Exited.
    Ended,
}

/// Runs `work` while no thread of the process runs.
///
/// No other thread may wait for children by waitpid(2) meanwhile, which would consume the stops. Waiting
/// by a pidfd, or once a pidfd is readable, is fine.
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
    /// Moves threads out of replaced code. `relocate` maps an instruction pointer to the new one, if any.
    pub fn relocate(
        &self,
        relocate: impl Fn(u64) -> Result<Option<u64>, Refusal>,
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
                    let Some(to) = relocate(*pointer)? else { continue };
                    *pointer = to;
                    if let Err(error) = ptrace::setregs(id, registers) {
                        self.unless_killed(error, "moving a thread")?;
                    }
                }
                State::Asleep(pointer) => {
                    if relocate(pointer)?.is_some() {
                        return Err(Refusal::Busy);
                    }
                }
                State::Running | State::Ended => {}
            }
        }
        Ok(())
    }

    /// Converts an error: a stopped thread that cannot be accessed has been killed.
    fn unless_killed(&self, error: Errno, what: &'static str) -> Result<(), Refusal> {
        match error {
            Errno::ESRCH if self.process.is_gone() => Err(Refusal::Gone),
            Errno::ESRCH => Ok(()),
            other => Err(failed(what, other.into())),
        }
    }

    /// Stops all threads. Repeats until no thread ran, since running ones may create others.
    fn stop(&mut self) -> Result<(), Refusal> {
        let end = Instant::now() + STOP_TIMEOUT;
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

    /// Requests one thread to stop. The kernel does so for threads that it creates.
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
        // The ID may have been reused by another process. That thread is detached at the end.
        if !self.process.has(id) {
            return Ok(State::Ended);
        }
        match ptrace::interrupt(pid) {
            Ok(()) => Ok(State::Running),
            Err(Errno::ESRCH) => Ok(State::Ended),
            Err(error) => Err(failed("stopping a thread", error.into())),
        }
    }

    /// Waits until no thread runs.
    fn wait(&mut self, end: Instant) -> Result<(), Refusal> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(5);
        loop {
            let mut run = 0;
            for thread in &mut self.threads {
                if thread.state == State::Running {
                    thread.state = look(thread.id)?;
                }
                if thread.state == State::Running && start.elapsed() > SLEEP_CHECK_INTERVAL {
                    // The request is pending: it will stop before it leaves the kernel.
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
                // SAFETY: takes no pointers. Fails for a killed thread, which is fine.
                unsafe { libc::ptrace(libc::PTRACE_DETACH, thread.id, 0, signal) };
            }
        }
    }
}

/// Whether a thread has stopped.
fn look(id: i32) -> Result<State, Refusal> {
    // WNOWAIT keeps the stop pending: if injector is killed, the thread still receives its signal.
    // __WNOTHREAD excludes the children and tracees of other threads.
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
            // The second byte is a ptrace event: the requested stop, a group stop, or a clone. Without one,
            // the stop is for a signal.
            let is_event = status >> 8 != 0;
            State::Stopped(if is_event { 0 } else { status })
        }
        _ => State::Ended,
    })
}

fn failed(what: &'static str, source: io::Error) -> Refusal {
    Refusal::Failed { what, source }
}

//! Fork, exec and exit events of the target's processes: loads the `injector-process` object.

use std::{
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, MapData, RingBuf},
    util::nr_cpus,
};
use injector_common::process::{Event, Wait};

use super::{KernelError, clock, ebpf, layout::TaskLayout, mapped::Mapped, members::Members};

/// The object that the build script compiled.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/injector-process"));

/// The programs and their tracepoints.
const PROGRAMS: [(&str, &str); 3] = [
    // In reverse order of a process's life: no event of a known process is missed.
    ("process_exit", "sched_process_exit"),
    ("process_exec", "sched_process_exec"),
    ("process_fork", "sched_process_fork"),
];

/// How long a program may spin in the kernel until it is patched. Usually some 100 µs suffice.
const MAX_WAIT: Duration = Duration::from_millis(5);

/// Resumes new programs that are held at exec.
#[derive(Debug)]
pub struct ExecGate {
    waits: Mapped<Wait>,
    released: Mapped<u64>,
}

impl ExecGate {
    /// Releases a program that spins in the kernel. Returns true if this was too late: the program
    /// was sent `SIGSTOP` and must be resumed by `SIGCONT`.
    #[must_use]
    pub fn release(&self, event: &Event) -> bool {
        self.released.set(event.processor, event.number);
        // The program polls every few ns, unless the hypervisor has descheduled its CPU.
        let end = Instant::now() + 2 * MAX_WAIT;
        let mut wait = self.waits.get(event.processor);
        while wait.ended < event.number && Instant::now() < end {
            std::hint::spin_loop();
            wait = self.waits.get(event.processor);
        }
        // If another program has waited on this CPU since, the outcome is unknown: a superfluous
        // `SIGCONT` is harmless.
        wait.stopped == event.number || wait.ended != event.number
    }
}

/// Events of the processes of a target. Dropping it, or the death of this process, detaches the
/// programs.
pub struct ProcessEvents {
    events: RingBuf<MapData>,
    listening_until: Array<MapData, u64>,
    gate: Arc<ExecGate>,
    // Owns the programs and their links.
    _ebpf: Ebpf,
}

impl ProcessEvents {
    /// Attaches to these processes. New programs are held only after [`Self::hold_execs`].
    pub fn load(members: &Members) -> Result<Self, KernelError> {
        let layout = TaskLayout::of_kernel()?;
        let processors = nr_cpus().map_err(|(_, error)| ebpf::map_error("WAITS", error.into()))?;
        // On a single CPU, spinning would keep the patcher from running.
        let wait = if processors > 1 { MAX_WAIT } else { Duration::ZERO };
        let processors = processors as u32;
        let mut loader = ebpf::loader();
        members.set_in(&mut loader)?;
        let mut ebpf = loader
            .override_global("PID_AT", &layout.pid, true)
            .override_global("TGID_AT", &layout.tgid, true)
            .override_global("PARENT_AT", &layout.parent, true)
            .override_global("SIGNAL_AT", &layout.signal, true)
            .override_global("GROUP_AT", &layout.group, true)
            .override_global("MAX_WAIT", &(wait.as_nanos() as u64), true)
            .map_max_entries("WAITS", processors)
            .map_max_entries("RELEASED", processors)
            .load(OBJECT)
            .map_err(|error| KernelError::Load(error.into()))?;
        let events = ebpf::take_map(&mut ebpf, "EVENTS")?;
        let listening_until = ebpf::take_map(&mut ebpf, "LISTENING_UNTIL")?;
        for (name, tracepoint) in PROGRAMS {
            ebpf::attach_raw_tracepoint(&mut ebpf, name, tracepoint)?;
        }
        if let Members::Set(tree) = members {
            tree.remove_last()?;
        }
        let gate = ExecGate {
            waits: ebpf::mapped(&mut ebpf, "WAITS", processors)?,
            released: ebpf::mapped(&mut ebpf, "RELEASED", processors)?,
        };
        Ok(Self { events, listening_until, gate: Arc::new(gate), _ebpf: ebpf })
    }

    /// The gate that resumes held programs.
    #[must_use]
    pub fn gate(&self) -> Arc<ExecGate> {
        Arc::clone(&self.gate)
    }

    /// Holds new programs of the target until they are resumed. Must be renewed within `timeout`,
    /// after which programs are no longer held; zero stops holding at once.
    pub fn hold_execs(&mut self, timeout: Duration) -> Result<(), KernelError> {
        let until = if timeout.is_zero() { 0 } else { clock::deadline_ns(timeout) };
        self.listening_until
            .set(0, until, 0)
            .map_err(|source| ebpf::map_error("LISTENING_UNTIL", source))
    }

    /// The next event, if any.
    pub fn take(&mut self) -> Option<Event> {
        self.events.next().and_then(|bytes| Event::from_bytes(&bytes))
    }
}

/// Readable when there are events.
impl AsFd for ProcessEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring buffer owns its descriptor for as long as it lives.
        unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) }
    }
}

//! Hears of the target's processes as they come and go: the `injector-process` object.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, RingBuf},
    util::nr_cpus,
};
use injector_common::process::{Event, Wait};

use super::{KernelError, clock, ebpf, layout::TaskLayout, mapped::Mapped};

/// The object, as the build script made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/injector-process"));

/// The programs, which are named after their tracepoints.
const PROGRAMS: [(&str, &str); 3] = [
    // A process is told of before it can be made, execute or end.
    ("process_exit", "sched_process_exit"),
    ("process_exec", "sched_process_exec"),
    ("process_fork", "sched_process_fork"),
];

/// For how long a program may wait in the kernel. It takes some hundred microseconds, unless this machine is busy.
const LONGEST_WAIT: Duration = Duration::from_millis(5);

/// Checks that the numbers of processes that the kernel tells are theirs here as well, so that no other is taken for one
/// of the target.
pub fn check_namespace() -> Result<(), KernelError> {
    // PROC_PID_INIT_INO, which is the same on all machines.
    const HOST: u64 = 0xefff_fffc;
    match fs::metadata("/proc/self/ns/pid") {
        Ok(metadata) if metadata.ino() == HOST => Ok(()),
        _ => Err(KernelError::PidNamespace),
    }
}

/// Lets programs go on that wait in the kernel.
#[derive(Debug)]
pub struct Gate {
    waits: Mapped<Wait>,
    released: Mapped<u64>,
}

impl Gate {
    /// Lets go on what an event of a program tells that waits. Returns whether it was sent `SIGSTOP` instead, as this was
    /// late.
    #[must_use]
    pub fn release(&self, event: &Event) -> bool {
        self.released.set(event.processor, event.number);
        // It looks every few nanoseconds, if its processor is not taken away from this whole machine.
        let end = Instant::now() + 2 * LONGEST_WAIT;
        let mut wait = self.waits.get(event.processor);
        while wait.ended < event.number && Instant::now() < end {
            std::hint::spin_loop();
            wait = self.waits.get(event.processor);
        }
        // Had another one waited there since, it cannot be told; then it is better to send a `SIGCONT` too many.
        wait.stopped == event.number || wait.ended != event.number
    }
}

/// The events of one cgroup's processes. Programs and maps go when this is dropped, or the process dies.
pub struct ProcessEvents {
    events: RingBuf<MapData>,
    listening_until: Array<MapData, u64>,
    gate: Arc<Gate>,
    // Owns the programs and their links.
    _ebpf: Ebpf,
}

impl ProcessEvents {
    /// Starts to listen to the cgroup with this id and level, and those below it. Nothing is held before
    /// [`Self::listen`] is called.
    pub fn load(cgroup_id: u64, cgroup_level: u32) -> Result<Self, KernelError> {
        check_namespace()?;
        let layout = TaskLayout::of_kernel()?;
        let processors = nr_cpus().map_err(|(_, error)| ebpf::map_error("WAITS", error.into()))?;
        // Where there is but one, nobody else would run meanwhile.
        let wait = if processors > 1 { LONGEST_WAIT } else { Duration::ZERO };
        let processors = processors as u32;
        let mut ebpf = EbpfLoader::new()
            // Nothing in the object is relocated by the kernel's types; reading them takes long.
            .btf(None)
            .override_global("CGROUP_ID", &cgroup_id, true)
            .override_global("CGROUP_LEVEL", &cgroup_level, true)
            .override_global("PID_AT", &layout.pid, true)
            .override_global("TGID_AT", &layout.tgid, true)
            .override_global("PARENT_AT", &layout.parent, true)
            .override_global("SIGNAL_AT", &layout.signal, true)
            .override_global("GROUP_AT", &layout.group, true)
            .override_global("LONGEST_WAIT", &(wait.as_nanos() as u64), true)
            .map_max_entries("WAITS", processors)
            .map_max_entries("RELEASED", processors)
            .load(OBJECT)
            .map_err(|error| KernelError::Load(error.into()))?;
        let events = ebpf::take_map(&mut ebpf, "EVENTS")?;
        let listening_until = ebpf::take_map(&mut ebpf, "LISTENING_UNTIL")?;
        for (name, tracepoint) in PROGRAMS {
            ebpf::attach_raw_tracepoint(&mut ebpf, name, tracepoint)?;
        }
        let gate = Gate {
            waits: ebpf::mapped(&mut ebpf, "WAITS", processors)?,
            released: ebpf::mapped(&mut ebpf, "RELEASED", processors)?,
        };
        Ok(Self { events, listening_until, gate: Arc::new(gate), _ebpf: ebpf })
    }

    /// Lets programs go on that wait in the kernel.
    #[must_use]
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Has programs that the target executes held until they are let go on, for so long from now;
    /// to be renewed, so that nothing waits for one who does not listen any more.
    pub fn listen(&mut self, patience: Duration) -> Result<(), KernelError> {
        let until = if patience.is_zero() { 0 } else { clock::deadline_ns(patience) };
        self.listening_until
            .set(0, until, 0)
            .map_err(|source| ebpf::map_error("LISTENING_UNTIL", source))
    }

    /// The next event, if there is one.
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

//! Hears of the target's processes as they come and go: the `injector-process` object.

use std::{
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, RingBuf},
    programs::RawTracePoint,
};
use injector_common::process::Event;

use super::{KernelError, clock, ebpf, layout::TaskLayout};

/// The object, as the build script made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/injector-process"));

/// The programs, which are named after their tracepoints.
const PROGRAMS: [(&str, &str); 3] = [
    // A process is told of before it can be made, execute or end.
    ("process_exit", "sched_process_exit"),
    ("process_exec", "sched_process_exec"),
    ("process_fork", "sched_process_fork"),
];

/// The events of one cgroup's processes. Programs and maps go when this is dropped, or the process dies.
pub struct ProcessEvents {
    events: RingBuf<MapData>,
    listening_until: Array<MapData, u64>,
    // Owns the programs and their links.
    _ebpf: Ebpf,
}

impl ProcessEvents {
    /// Starts to listen to the cgroup with this id and level, and those below it. Nothing is held before
    /// [`Self::listen`] is called.
    pub fn load(cgroup_id: u64, cgroup_level: u32) -> Result<Self, KernelError> {
        let layout = TaskLayout::of_kernel()?;
        let mut ebpf = EbpfLoader::new()
            // Nothing in the object is relocated by the kernel's types; reading them takes long.
            .btf(None)
            .override_global("CGROUP_ID", &cgroup_id, true)
            .override_global("CGROUP_LEVEL", &cgroup_level, true)
            .override_global("PID_AT", &layout.pid, true)
            .override_global("TGID_AT", &layout.tgid, true)
            .load(OBJECT)
            .map_err(|error| KernelError::Load(error.into()))?;
        let events = ebpf::take_map(&mut ebpf, "EVENTS")?;
        let listening_until = ebpf::take_map(&mut ebpf, "LISTENING_UNTIL")?;
        for (name, tracepoint) in PROGRAMS {
            let program: &mut RawTracePoint = ebpf::program(&mut ebpf, name)?;
            ebpf::load(name, || program.load())?;
            program.attach(tracepoint).map_err(|source| KernelError::Program {
                program: name.into(),
                source: source.into(),
            })?;
        }
        Ok(Self { events, listening_until, _ebpf: ebpf })
    }

    /// Has programs that the target executes held (by `SIGSTOP`) until they are let go on, for so long from now;
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

//! The processes of a target that is a set of processes: those that are added, and what they start
//! from then on. Loads the `injector-tree` object, whose map the other objects share.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData},
    programs::{RawTracePoint, raw_trace_point::RawTracePointLink},
};
use injector_common::control::MAX_MEMBERS;

use super::{
    KernelError, ebpf,
    layout::TaskLayout,
    mount::{Context, Mount},
    pid_namespace,
};

/// The object that the build script compiled.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/injector-tree"));

/// The map of processes.
const MAP: &str = "MEMBERS";

/// The programs and their tracepoints.
const FORKS: (&str, &str) = ("member_forks", "sched_process_fork");
const EXITS: &str = "sched_process_exit";

/// The same program twice, of which one is attached.
const EXIT_PROGRAMS: [&str; 2] = ["member_exits", "member_exits_too"];

/// A set of processes. Dropping it, or the death of this process, detaches the programs.
pub struct ProcessTree {
    members: HashMap<MapData, u32, u32>,
    missed: Array<MapData, u64>,
    /// A BPF file system in which the map has a name, by which other objects take it.
    pins: Mount,
    programs: Mutex<Programs>,
}

struct Programs {
    /// Detaches the program on drop.
    exits: RawTracePointLink,
    /// Which of [`EXIT_PROGRAMS`] is attached.
    attached: usize,
    ebpf: Ebpf,
}

impl ProcessTree {
    /// Starts with no process.
    pub fn load() -> Result<Self, KernelError> {
        let layout = TaskLayout::of_kernel()?;
        let pins = Context::open(c"bpf").and_then(|context| context.mount());
        let pins = pins.map_err(KernelError::Pins)?;
        let mut loader = ebpf::loader();
        share(&pins, &mut loader)?;
        let mut ebpf = loader
            .override_global("TGID_AT", &layout.tgid, true)
            .override_global("SIGNAL_AT", &layout.signal, true)
            .override_global("LIVE_AT", &layout.live, true)
            .map_max_entries(MAP, MAX_MEMBERS)
            .load(OBJECT)
            .map_err(|error| KernelError::Load(error.into()))?;
        ebpf::attach_raw_tracepoint(&mut ebpf, FORKS.0, FORKS.1)?;
        let exits = attach_exits(&mut ebpf, 0)?;
        let members = ebpf::take_map(&mut ebpf, MAP)?;
        let missed = ebpf::take_map(&mut ebpf, "MISSED")?;
        let programs = Mutex::new(Programs { exits, attached: 0, ebpf });
        Ok(Self { members, missed, pins, programs })
    }

    /// Adds a process, with what it starts from now on.
    pub fn add(&mut self, pid: i32) -> Result<(), KernelError> {
        let added = self.members.insert(pid.cast_unsigned(), 1, 0);
        added.map_err(|source| ebpf::map_error(MAP, source))
    }

    /// Removes a process, whose number may be another's by now.
    pub fn remove(&mut self, pid: i32) {
        // It may have been removed when it ended.
        let _ = self.members.remove(&pid.cast_unsigned());
    }

    /// Lets programs that were attached to the exit of processes see a process of the set as such
    /// once more before it is removed: programs run in the order in which they were attached.
    pub(super) fn remove_last(&self) -> Result<(), KernelError> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        // Both are attached for a moment, which is harmless.
        let next = 1 - programs.attached;
        programs.exits = attach_exits(&mut programs.ebpf, next)?;
        programs.attached = next;
        Ok(())
    }

    /// The present processes, in no particular order.
    #[must_use]
    pub fn processes(&self) -> HashSet<i32> {
        // While entries are removed, the kernel begins again.
        let pids = self.members.keys().take(2 * MAX_MEMBERS as usize);
        pids.filter_map(Result::ok).map(u32::cast_signed).collect()
    }

    /// Whether a process is one of them.
    #[must_use]
    pub fn contains(&self, pid: i32) -> bool {
        self.members.get(&pid.cast_unsigned(), 0).is_ok()
    }

    /// The number of new processes for which there was no room.
    pub fn missed(&self) -> Result<u64, KernelError> {
        self.missed.get(&0, 0).map_err(|source| ebpf::map_error("MISSED", source))
    }

    /// Has an object use the processes of this set.
    pub(super) fn share(&self, loader: &mut EbpfLoader) -> Result<(), KernelError> {
        share(&self.pins, loader)
    }
}

fn attach_exits(ebpf: &mut Ebpf, number: usize) -> Result<RawTracePointLink, KernelError> {
    let name = EXIT_PROGRAMS[number];
    let program: &mut RawTracePoint = ebpf::program(ebpf, name)?;
    if program.fd().is_err() {
        ebpf::load(name, || program.load())?;
    }
    let link = program.attach(EXITS).and_then(|id| program.take_link(id));
    link.map_err(|source| KernelError::Program { program: name.into(), source: source.into() })
}

fn share(pins: &Mount, loader: &mut EbpfLoader) -> Result<(), KernelError> {
    let path: PathBuf = pins.path().join(MAP);
    loader.map_pin_path(MAP, path);
    pid_namespace::set_in(loader)
}

impl std::fmt::Debug for ProcessTree {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("ProcessTree").field("processes", &self.processes()).finish_non_exhaustive()
    }
}

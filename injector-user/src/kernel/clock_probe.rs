//! The clock probes: eBPF that faults the time system calls of a cgroup, for programs that make them.
//!
//! Results of `clock_gettime` and `gettimeofday` are rewritten in the caller's memory; absolute deadlines in
//! faulted time are replaced by the true time while the kernel reads them; the vDSO may be hidden from new
//! programs, so that they make system calls at all. What `time(2)` returns cannot be changed, as it is in a
//! register. Calls of 32-bit programs are left alone.
//!
//! The probes are kprobes on the few functions by which the kernel reads and writes times. Not tracepoints of system
//! calls: those slow each call of each process of the machine down. Not fentry and fexit: while a thread is preempted
//! within such a program, the kernel leaves the program out on that processor (`__bpf_prog_enter_recur`,
//! kernel/bpf/trampoline.c), and a process would see the true time. Programs of kprobes are not preempted.
//!
//! It takes `bpf_probe_write_user`, which lockdown forbids.

use std::{
    collections::HashSet,
    io::{IoSlice, IoSliceMut},
    sync::atomic::{Ordering, fence},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::{KProbe, ProgramError, TracePoint, kprobe::KProbeLink, trace_point::TracePointLink},
    util::nr_cpus,
};
use injector_common::{
    model::clock::{Skew, Span},
    probe::{DeadlineKey, ProbeControl, ProbeCounters, Replaced},
};
use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev},
    unistd::Pid,
};
use thiserror::Error;

use super::{
    KernelError,
    clock::{monotonic_ns, true_time, wait_for_readers},
    ebpf,
    layout::{LayoutError, ProbeLayout},
    mapped::Mapped,
    members::Members,
    security,
};
use crate::arch::{self, ClockProbes, NotBuiltIn};

/// The object, as the build script made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/injector-probe"));

/// The programs, the kernel's function to which each is attached (`sys_*` by its name on this architecture), and whether there is no doing without. What is put
/// back comes before what replaces, so that nothing that was replaced is forgotten.
const PROBES: [(&str, &str, bool); 7] = [
    ("time_was_written", "put_timespec64", true),
    ("gettimeofday_returns", "sys_gettimeofday", true),
    ("deadline_was_read", "get_timespec64", true),
    ("deadline_is_read", "get_timespec64", true),
    ("deadline_was_read", "get_itimerspec64", true),
    ("deadline_is_read", "get_itimerspec64", true),
    // There by the kernel's configuration.
    ("timer_create_returns", "sys_timer_create", false),
];

/// Attached if the vDSO is to be hidden.
const EXEC: (&str, &str) = ("sched", "sched_process_exec");

/// Why the clock probes cannot be used.
#[derive(Debug, Error)]
pub enum ClockProbeError {
    /// They are not built for this architecture.
    #[error(transparent)]
    NotBuiltIn(#[from] NotBuiltIn),
    /// The kernel is locked down.
    #[error(
        "the kernel is locked down ({0}), which forbids eBPF to write to the memory of a process \
         (bpf_probe_write_user)"
    )]
    Lockdown(String),
    /// The kernel's structures are not known.
    #[error("cannot tell how this kernel keeps its tasks")]
    Layout(#[from] LayoutError),
    /// The kernel refused a program or a map.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A program cannot be attached.
    #[error(
        "cannot attach to the kernel's {place} (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS, tracefs)"
    )]
    Attach {
        /// The function or event.
        place: String,
        /// Why.
        source: Box<ProgramError>,
    },
}

/// What is fixed when the probes are loaded.
#[derive(Clone, Debug)]
pub struct Config {
    /// The target.
    pub members: Members,
    /// Leave calls from inside the vDSO alone: it is hooked, and skews what they return.
    pub skip_vdso: bool,
    /// Hide the vDSO from programs that are started from now on.
    pub hide_vdso: bool,
}

/// The attached probes. They go when this is dropped, or when the process dies.
#[derive(Debug)]
pub struct ClockProbe {
    ebpf: Ebpf,
    control: Mapped<ProbeControl>,
    skews: Mapped<Skew>,
    counters: Mapped<ProbeCounters>,
    processors: u32,
    probes: Vec<KProbeLink>,
    exec: Option<TracePointLink>,
    generation: u64,
}

/// Why the clock probes cannot be used here, by trying to load them; `None` if they can.
#[must_use]
pub fn refusal() -> Option<ClockProbeError> {
    // No cgroup has this id; nothing is attached.
    let config = Config { members: Members::default(), skip_vdso: true, hide_vdso: true };
    ClockProbe::loaded(&config).err()
}

/// What is said if the kernel refuses and how it is locked down is not known.
const UNTOLD: &str = "integrity or confidentiality";

/// Whether the kernel is known to be locked down.
#[must_use]
pub fn is_locked_down() -> bool {
    lockdown().is_some()
}

/// How the kernel is locked down, if it is so far that it matters here.
fn lockdown() -> Option<String> {
    // "none [integrity] confidentiality"; the file is not there without the module.
    let text = security::read("lockdown").ok()?;
    let mode = text.split_once('[')?.1.split_once(']')?.0;
    (mode != "none").then(|| mode.to_owned())
}

/// Whether a program was refused for writing to the memory of a process.
fn is_forbidden(error: &KernelError) -> bool {
    // What the verifier says when a helper is not to be had ("unknown func" before Linux 6.13).
    const WORDS: [&str; 2] =
        ["cannot use helper bpf_probe_write_user", "unknown func bpf_probe_write_user"];
    matches!(error, KernelError::Refused { reason, .. } if WORDS.iter().any(|words| reason.contains(words)))
}

fn load_error(error: KernelError) -> ClockProbeError {
    if is_forbidden(&error) { ClockProbeError::Lockdown(UNTOLD.into()) } else { error.into() }
}

fn attach_error(place: String, source: ProgramError) -> ClockProbeError {
    ClockProbeError::Attach { place, source: source.into() }
}

impl ClockProbe {
    /// Loads and attaches the probes. All clocks read true until [`Self::set`].
    pub fn attach(config: &Config) -> Result<Self, ClockProbeError> {
        let mut probe = Self::loaded(config)?;
        let ClockProbes { call_prefix, .. } = arch::clock_probes()?;
        for (program, function, is_needed) in PROBES {
            let prefix = if function.starts_with("sys_") { call_prefix } else { "" };
            match probe.attach_to(program, format!("{prefix}{function}")) {
                Ok(link) => probe.probes.push(link),
                Err(error) if is_needed => return Err(error),
                Err(error) => tracing::debug!(function, %error, "not there"),
            }
        }
        if config.hide_vdso {
            let (category, event) = EXEC;
            let program: &mut TracePoint = ebpf::program(&mut probe.ebpf, event)?;
            let link = program.attach(category, event).and_then(|id| program.take_link(id));
            probe.exec = Some(link.map_err(|source| attach_error(event.into(), source))?);
        }
        Ok(probe)
    }

    /// The probes, accepted by the verifier but not attached.
    fn loaded(config: &Config) -> Result<Self, ClockProbeError> {
        let known = arch::clock_probes()?;
        if let Some(mode) = lockdown() {
            return Err(ClockProbeError::Lockdown(mode));
        }
        let layout = ProbeLayout::of_kernel(known.vdso)?;
        let (skip_vdso, hide_vdso) = (u32::from(config.skip_vdso), u32::from(config.hide_vdso));
        let processors =
            nr_cpus().map_err(|(_, error)| ebpf::map_error("COUNTERS", error.into()))? as u32;
        let mut loader = ebpf::loader();
        config.members.set_in(&mut loader)?;
        let mut ebpf = loader
            .map_max_entries("COUNTERS", processors)
            .override_global("SKIP_VDSO", &skip_vdso, true)
            .override_global("HIDE_VDSO", &hide_vdso, true)
            .override_global("TASK_MM", &layout.task_mm, true)
            .override_global("TASK_FILES", &layout.task_files, true)
            .override_global("MM_VDSO", &layout.mm_vdso, true)
            .override_global("MM_VDSO_IMAGE", &layout.mm_vdso_image, true)
            .override_global("MM_AUXV", &layout.mm_auxv, true)
            .override_global("VDSO_IMAGE_SIZE", &layout.vdso_image_size, true)
            .override_global("FILES_TABLE", &layout.files_table, true)
            .override_global("TABLE_LENGTH", &layout.table_length, true)
            .override_global("TABLE_FILES", &layout.table_files, true)
            .override_global("FILE_DATA", &layout.file_data, true)
            .override_global("TIMERFD_CLOCK", &layout.timerfd_clock, true)
            .load(OBJECT)
            .map_err(|error| KernelError::Load(error.into()))?;
        let mut probe = Self {
            control: ebpf::mapped(&mut ebpf, "CONTROL", 1)?,
            skews: ebpf::mapped(&mut ebpf, "SKEWS", 2)?,
            counters: ebpf::mapped(&mut ebpf, "COUNTERS", processors)?,
            processors,
            ebpf,
            probes: Vec::new(),
            exec: None,
            generation: 0,
        };
        probe.set(&Skew::TRUE);
        let mut names = HashSet::new();
        for (name, ..) in PROBES {
            if names.insert(name) {
                let program: &mut KProbe = ebpf::program(&mut probe.ebpf, name)?;
                ebpf::load(name, || program.load()).map_err(load_error)?;
            }
        }
        if config.hide_vdso {
            let program: &mut TracePoint = ebpf::program(&mut probe.ebpf, EXEC.1)?;
            ebpf::load(EXEC.1, || program.load()).map_err(load_error)?;
        }
        Ok(probe)
    }

    fn attach_to(
        &mut self,
        program: &'static str,
        function: String,
    ) -> Result<KProbeLink, ClockProbeError> {
        let program: &mut KProbe = ebpf::program(&mut self.ebpf, program)?;
        let link = program.attach(&function, 0).and_then(|id| program.take_link(id));
        link.map_err(|source| attach_error(function, source))
    }

    /// Has the target's clocks go wrong in this way from now on; to be repeated to renew the lease.
    pub fn set(&mut self, skew: &Skew) {
        self.generation += 1;
        self.skews.set((self.generation & 1) as u32, *skew);
        // Whoever sees the generation sees the skew.
        fence(Ordering::Release);
        let generation = self.generation;
        self.control.set(0, ProbeControl { generation, lease_ns: lease_ns(skew) });
    }

    /// What the probes did.
    #[must_use]
    pub fn counters(&self) -> ProbeCounters {
        let mut sum = ProbeCounters::default();
        (0..self.processors).for_each(|processor| sum += self.counters.get(processor));
        sum
    }

    /// Gives those whose deadline was being read back what they wait for. They have the true time in their memory,
    /// and nobody else will put that right.
    fn put_back(&mut self) -> Result<(), KernelError> {
        let replaced: HashMap<&mut MapData, DeadlineKey, Replaced> =
            ebpf::map(&mut self.ebpf, "REPLACED")?;
        for entry in &replaced {
            let (key, replaced) = entry.map_err(|source| ebpf::map_error("REPLACED", source))?;
            if let Err(error) = put_back(&key, &replaced) {
                // It may have ended.
                tracing::debug!(process = key.process, %error, "a deadline is not put back");
            }
        }
        Ok(())
    }
}

impl Drop for ClockProbe {
    fn drop(&mut self) {
        // First those that replace.
        while self.probes.pop().is_some() {}
        wait_for_readers();
        if let Err(error) = self.put_back() {
            tracing::warn!(%error, "deadlines are not put back");
        }
    }
}

/// Puts a deadline back, unless the process has set it to something else.
fn put_back(key: &DeadlineKey, replaced: &Replaced) -> Result<(), Errno> {
    let pid = Pid::from_raw(key.process.cast_signed());
    let remote = [RemoteIoVec { base: key.pointer as usize, len: size_of_val(&replaced.wanted) }];
    let bytes = |[seconds, ns]: [i64; 2]| [seconds.to_ne_bytes(), ns.to_ne_bytes()].concat();
    let mut now = bytes([0; 2]);
    process_vm_readv(pid, &mut [IoSliceMut::new(&mut now)], &remote)?;
    if now == bytes(replaced.given) {
        process_vm_writev(pid, &[IoSlice::new(&bytes(replaced.wanted))], &remote)?;
    }
    Ok(())
}

/// When the last of the leases runs out, in nanoseconds of `CLOCK_MONOTONIC`; 0 if there is none.
fn lease_ns(skew: &Skew) -> u64 {
    let leases = skew.clocks.iter().zip(true_time()).filter(|(span, _)| **span != Span::TRUE);
    let left = leases.map(|(span, now)| u64::try_from(span.lease.saturating_sub(now)).unwrap_or(0));
    left.max().map_or(0, |left| monotonic_ns().saturating_add(left))
}

//! Sends a signal to the process that makes the N-th call of a system call: the `injector-calls` object.

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use injector_common::process::CallCounters;

use super::{KernelError, ebpf, members::Members};

/// The object, as the build script made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/injector-calls"));

/// The program.
const PROGRAM: &str = "call_enter";

/// The tracepoint at which every system call begins.
const TRACEPOINT: &str = "sys_enter";

/// Counts the calls, and waits for the one that is meant. Goes when this is dropped, or the process dies.
pub struct CallWatch {
    counters: Array<MapData, CallCounters>,
    // Owns the program and its link.
    _ebpf: Ebpf,
}

impl CallWatch {
    /// Waits for the `count`-th call of the system call number `syscall` by these processes.
    pub fn start(
        members: &Members,
        syscall: u32,
        count: u64,
        signal: u32,
        ends_ns: u64,
    ) -> Result<Self, KernelError> {
        let mut loader = ebpf::loader();
        members.set_in(&mut loader)?;
        let mut ebpf = loader
            .override_global("SYSCALL", &u64::from(syscall), true)
            .override_global("COUNT", &count, true)
            .override_global("SIGNAL", &signal, true)
            .override_global("ENDS_NS", &ends_ns, true)
            .load(OBJECT)
            .map_err(|error| KernelError::Load(error.into()))?;
        let counters = ebpf::take_map(&mut ebpf, "CALLS")?;
        ebpf::attach_raw_tracepoint(&mut ebpf, PROGRAM, TRACEPOINT)?;
        Ok(Self { counters, _ebpf: ebpf })
    }

    /// What was seen and sent so far.
    pub fn counters(&self) -> Result<CallCounters, KernelError> {
        self.counters.get(&0, 0).map_err(|source| ebpf::map_error("CALLS", source))
    }
}

impl std::fmt::Debug for CallWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("CallWatch").finish_non_exhaustive()
    }
}

//! Syscall failures: loads the `injector-errno` object, which fails system calls of a cgroup.

use aya::{
    Ebpf,
    maps::{Array, MapData},
    util,
};
use injector_common::{
    errno::{ErrnoCounters, Remote, SCRATCHES},
    glob::Glob,
    model::chance::Probability,
};

use super::{
    KernelError, ebpf,
    hook::{Engine, HookError, Hooked},
    layout::{self, ErrnoLayout},
    members::Members,
};

/// The object that the build script compiled.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/injector-errno"));

/// The parameters of a syscall failure.
#[derive(Clone, Debug)]
pub struct Config {
    /// The processes.
    pub members: Members,
    /// The processes of injector and its guardian, whose calls never fail.
    pub own: [i32; 2],
    /// The numbers of the system calls.
    pub calls: Vec<u32>,
    /// The hook that the calls pass, without its prefix.
    pub hook: &'static str,
    /// The program that extracts the subject of a call from the hook's arguments.
    pub program: &'static str,
    /// The errno.
    pub errno: i32,
    /// The probability, from 0 to 1.
    pub probability: f64,
    /// The random stream.
    pub stream: u64,
    /// Matches the path of the file, if given.
    pub glob: Option<Glob>,
    /// Matches the peer, if given.
    pub remote: Option<Remote>,
}

/// The kernel layout and the hooks.
#[derive(Debug)]
pub struct Hooks {
    engine: Engine,
    offsets: ErrnoLayout,
    /// The requested hooks with the BTF IDs of their functions.
    numbers: Vec<(&'static str, Option<u32>)>,
}

impl Hooks {
    /// Finds these hooks in the kernel's BTF.
    pub fn find(engine: Engine, hooks: Vec<&'static str>) -> Result<Self, HookError> {
        engine.check()?;
        let functions: Vec<_> = hooks.iter().map(|hook| engine.function(hook)).collect();
        let (offsets, numbers) = layout::errno_layout(&functions)?;
        Ok(Self { engine, offsets, numbers: hooks.into_iter().zip(numbers).collect() })
    }

    fn number(&self, hook: &str) -> Result<u32, HookError> {
        let found = self.numbers.iter().find(|(name, _)| *name == hook);
        let number = found.and_then(|&(_, number)| number);
        number.ok_or_else(|| HookError::Missing(self.engine.function(hook)))
    }
}

/// An active syscall failure, while its lease is renewed. Dropping it, or the death of this process, ends
/// it.
pub struct FailingCalls {
    hooked: Hooked,
    lease: Array<MapData, u64>,
    counters: Array<MapData, ErrnoCounters>,
    // Owns the other maps.
    _ebpf: Ebpf,
}

impl FailingCalls {
    /// Attaches the program. No call fails before [`Self::renew`].
    pub fn start(config: &Config, hooks: &Hooks) -> Result<Self, HookError> {
        let number = hooks.number(config.hook)?;
        let [injector, guardian] = config.own.map(i32::cast_unsigned);
        let result = -i64::from(config.errno);
        let probability = Probability::from_fraction(config.probability).0;
        let mut loader = ebpf::loader();
        config.members.set_in(&mut loader)?;
        loader
            .override_global("INJECTOR", &injector, true)
            .override_global("GUARDIAN", &guardian, true)
            .override_global("RESULT", &result, true)
            .override_global("PROBABILITY", &probability, true)
            .override_global("STREAM", &config.stream, true);
        for (name, offset) in &hooks.offsets {
            loader.override_global(name, offset, true);
        }
        if config.glob.is_some() {
            // If the number of CPUs is unknown, paths are resolved only on the first one; on others they count
            // as unknown.
            let processors = util::nr_cpus().unwrap_or(1) as u32;
            loader.map_max_entries("SCRATCH", processors * SCRATCHES);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| KernelError::Load(error.into()))?;
        ebpf::array(&mut ebpf, "CALLS", |array| {
            config.calls.iter().try_for_each(|&number| array.set(number, 1_u32, 0))
        })?;
        if let Some(glob) = &config.glob {
            ebpf::array(&mut ebpf, "GLOB", |array| array.set(0, *glob, 0))?;
        }
        if let Some(remote) = config.remote {
            ebpf::array(&mut ebpf, "REMOTE", |array| array.set(0, remote, 0))?;
        }
        let (program, engine) = (config.program, hooks.engine);
        let hooked = Hooked::attach(OBJECT, &ebpf, program, engine, config.hook, number)?;
        let lease = ebpf::take_map(&mut ebpf, "LEASE")?;
        let counters = ebpf::take_map(&mut ebpf, "COUNTERS")?;
        Ok(Self { hooked, lease, counters, _ebpf: ebpf })
    }

    /// Lets calls fail until this time of `CLOCK_MONOTONIC`.
    pub fn renew(&mut self, until_ns: u64) -> Result<(), KernelError> {
        self.lease.set(0, until_ns, 0).map_err(|source| ebpf::map_error("LEASE", source))
    }

    /// The counters so far.
    pub fn counters(&self) -> Result<ErrnoCounters, KernelError> {
        self.counters.get(&0, 0).map_err(|source| ebpf::map_error("COUNTERS", source))
    }

    /// Calls of any process for which the kernel skipped the program, if known.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.hooked.missed().unwrap_or_default()
    }
}

impl std::fmt::Debug for FailingCalls {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("FailingCalls").finish_non_exhaustive()
    }
}

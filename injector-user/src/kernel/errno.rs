//! Has system calls of a cgroup fail: the `injector-errno` object.

use aya::{
    Ebpf, EbpfLoader,
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
    process::check_namespace,
};
use crate::target::cgroup::Cgroup;

/// The object, as the build script made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/injector-errno"));

/// What fails, and how.
#[derive(Clone, Debug)]
pub struct Config<'a> {
    /// Whose calls.
    pub cgroup: &'a Cgroup,
    /// Those of this process of it alone.
    pub pid: Option<i32>,
    /// Processes of our own, which are never failed: injector, and its guardian.
    pub own: [i32; 2],
    /// The numbers of the system calls.
    pub calls: Vec<u32>,
    /// The hook that they pass, without its prefix.
    pub hook: &'static str,
    /// The program that tells by the hook's arguments what a call is about.
    pub program: &'static str,
    /// What they fail with.
    pub errno: i32,
    /// How often.
    pub probability: f64,
    /// Where the random numbers come from.
    pub stream: u64,
    /// Only with files that have such a path.
    pub glob: Option<Glob>,
    /// Only with such a peer.
    pub remote: Option<Remote>,
}

/// What must be known of the kernel.
#[derive(Debug)]
pub struct Hooks {
    engine: Engine,
    offsets: ErrnoLayout,
    /// Those that were asked for, with the numbers of their functions.
    numbers: Vec<(&'static str, Option<u32>)>,
}

impl Hooks {
    /// Finds out where these hooks are.
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

/// System calls that fail, for as long as the lease is renewed. All ends when this is dropped, or the process dies.
pub struct FailingCalls {
    hooked: Hooked,
    lease: Array<MapData, u64>,
    counters: Array<MapData, ErrnoCounters>,
    // Owns the other maps.
    _ebpf: Ebpf,
}

impl FailingCalls {
    /// Attaches the program. Nothing fails before [`Self::renew`].
    pub fn start(config: &Config, hooks: &Hooks) -> Result<Self, HookError> {
        // Injector is spared by its number.
        check_namespace()?;
        let number = hooks.number(config.hook)?;
        let process = config.pid.unwrap_or_default().cast_unsigned();
        let [injector, guardian] = config.own.map(i32::cast_unsigned);
        let result = -i64::from(config.errno);
        let probability = Probability::from_fraction(config.probability).0;
        let mut loader = EbpfLoader::new();
        // Nothing in the object is relocated by the kernel's types; reading them takes long.
        loader
            .btf(None)
            .override_global("CGROUP_ID", &config.cgroup.id, true)
            .override_global("CGROUP_LEVEL", &config.cgroup.level, true)
            .override_global("PROCESS", &process, true)
            .override_global("INJECTOR", &injector, true)
            .override_global("GUARDIAN", &guardian, true)
            .override_global("RESULT", &result, true)
            .override_global("PROBABILITY", &probability, true)
            .override_global("STREAM", &config.stream, true);
        for (name, offset) in &hooks.offsets {
            loader.override_global(name, offset, true);
        }
        if config.glob.is_some() {
            // Without knowing how many there are, paths are told on the first alone; elsewhere they count as unknown.
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

    /// Has calls fail until then, by `CLOCK_MONOTONIC`.
    pub fn renew(&mut self, until_ns: u64) -> Result<(), KernelError> {
        self.lease.set(0, until_ns, 0).map_err(|source| ebpf::map_error("LEASE", source))
    }

    /// What was done so far.
    pub fn counters(&self) -> Result<ErrnoCounters, KernelError> {
        self.counters.get(&0, 0).map_err(|source| ebpf::map_error("COUNTERS", source))
    }

    /// Calls of whatever process that the kernel did not show to the program, as far as it tells.
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

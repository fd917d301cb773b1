//! Programs at the kernel's security hooks, which set the result of the hook.
//!
//! There are two types: BPF LSM programs, if bpf is an active security module, and `fmod_ret` programs,
//! which modify the return value of a function. The kernel allows the latter for all `security_*` functions
//! (`check_attach_modify_return`, kernel/bpf/verifier.c). aya 0.14 supports only the former, with one
//! program per hook, so it only creates the maps, and programs are loaded here.

use std::{
    collections::HashSet,
    ffi::c_char,
    fmt::{self, Display, Formatter},
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
};

use aya::{Ebpf, EbpfError, maps::Map};
use aya_obj::generated::{
    bpf_attach_type::{BPF_LSM_MAC, BPF_MODIFY_RETURN},
    bpf_cmd, bpf_insn, bpf_prog_info,
    bpf_prog_type::{BPF_PROG_TYPE_LSM, BPF_PROG_TYPE_TRACING},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{KernelError, bpf, ebpf, layout::LayoutError, needs::Needs, security};

/// The file of securityfs that lists the active security modules.
const MODULES: &str = "lsm";

/// What programs at hooks require.
pub const PROGRAMS: Needs = Needs {
    options: &[
        "CONFIG_DEBUG_INFO_BTF",
        "CONFIG_BPF_JIT",
        "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
    ],
    ..Needs::NONE
};

/// What programs of the BPF LSM require.
pub const LSM: Needs = Needs {
    options: &[
        "CONFIG_BPF_LSM",
        "CONFIG_DEBUG_INFO_BTF",
        "CONFIG_BPF_JIT",
        "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
    ],
    ..Needs::NONE
};

/// The type of program at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// BPF LSM.
    Lsm,
    /// Modifies the return value of the hook's function.
    FmodRet,
}

/// Why a program cannot be attached to a hook.
#[derive(Debug, Error)]
pub enum HookError {
    /// The BPF LSM is not active.
    #[error(
        "the BPF LSM is not active: the security modules are {active} (boot with lsm={active},bpf)"
    )]
    Inactive {
        /// The active security modules.
        active: String,
    },
    /// Whether the BPF LSM is active is not known.
    #[error(
        "cannot find out whether the BPF LSM is active: securityfs cannot be read (mount -t securityfs none \
         /sys/kernel/security)"
    )]
    Modules(#[source] io::Error),
    /// The kernel has no such hook.
    #[error("this kernel has no function {0} to attach to")]
    Missing(String),
    /// The kernel's BTF cannot be used.
    #[error("cannot find the security hooks of this kernel")]
    Layout(#[from] LayoutError),
    /// The kernel does not allow programs at hooks.
    #[error(
        "this kernel refuses eBPF programs at its security hooks ({hook}){}",
        required(lacking)
    )]
    Refused {
        /// The hook.
        hook: String,
        /// What the kernel lacks, if that is known.
        lacking: String,
        /// The cause.
        source: io::Error,
    },
    /// Another kernel operation failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// What is said about what the kernel lacks.
fn required(lacking: &str) -> String {
    if lacking.is_empty() { String::new() } else { format!(": requires {lacking}") }
}

impl Display for Engine {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Lsm => "lsm",
            Self::FmodRet => "fmod-ret",
        })
    }
}

impl Engine {
    /// The better available engine. BPF LSM programs miss no call; the kernel skips the others on a CPU
    /// while a thread is preempted inside of one (`__bpf_prog_enter_recur`, kernel/bpf/trampoline.c).
    #[must_use]
    pub fn best() -> Self {
        if Self::Lsm.check().is_ok() { Self::Lsm } else { Self::FmodRet }
    }

    /// Checks that programs of this type are called. The kernel accepts LSM programs even if the BPF LSM
    /// is not active.
    pub fn check(self) -> Result<(), HookError> {
        if self == Self::FmodRet {
            return Ok(());
        }
        let active = security::read(MODULES).map_err(HookError::Modules)?.trim().to_owned();
        if active.split(',').any(|module| module == "bpf") {
            Ok(())
        } else {
            Err(HookError::Inactive { active })
        }
    }

    /// The kernel function of a hook.
    #[must_use]
    pub fn function(self, hook: &str) -> String {
        match self {
            Self::Lsm => format!("bpf_lsm_{hook}"),
            Self::FmodRet => format!("security_{hook}"),
        }
    }

    const fn types(self) -> (u32, u32) {
        match self {
            Self::Lsm => (BPF_PROG_TYPE_LSM as u32, BPF_LSM_MAC as u32),
            Self::FmodRet => (BPF_PROG_TYPE_TRACING as u32, BPF_MODIFY_RETURN as u32),
        }
    }
}

/// An attached program. Dropping it, or the death of this process, detaches it.
#[derive(Debug)]
pub struct Hooked {
    // Dropped first.
    _link: OwnedFd,
    program: OwnedFd,
}

impl Hooked {
    /// Attaches a program of an object to a hook. `ebpf` has the object's maps; `number` is the BTF ID of
    /// the hook's function.
    pub fn attach(
        object: &[u8],
        ebpf: &Ebpf,
        program: &'static str,
        engine: Engine,
        hook: &str,
        number: u32,
    ) -> Result<Self, HookError> {
        let function = engine.function(hook);
        let instructions = instructions(object, ebpf, program)?;
        let name = program;
        let program = load(&instructions, name, engine, number)
            .map_err(|(source, log)| refused(function.clone(), name, source, &log))?;
        let link = open_link(&program).map_err(|source| refused(function, name, source, ""))?;
        Ok(Self { _link: link, program })
    }

    /// How often the kernel skipped the program because another thread was inside of it on the same CPU.
    pub fn missed(&self) -> io::Result<u64> {
        // SAFETY: zeroes are valid for the structure, which is of integers.
        let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
        let mut attributes = bpf::attributes();
        attributes.info.bpf_fd = self.program.as_raw_fd().cast_unsigned();
        attributes.info.info_len = size_of_val(&info) as u32;
        attributes.info.info = (&raw mut info) as u64;
        // SAFETY: the structure is as long as is said, and lives during the call.
        unsafe { bpf::call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
        Ok(info.recursion_misses)
    }
}

fn refused(hook: String, program: &str, source: io::Error, log: &str) -> HookError {
    match source.raw_os_error() {
        // Errors of the verifier come with a log.
        Some(libc::EACCES | libc::EINVAL) if !log.is_empty() => {
            ebpf::refused(program, log, source).into()
        }
        _ => HookError::Refused { hook, lacking: PROGRAMS.lacking(), source },
    }
}

/// The instructions of a program, relocated to the maps that aya created.
fn instructions(
    object: &[u8],
    ebpf: &Ebpf,
    program: &'static str,
) -> Result<Vec<bpf_insn>, KernelError> {
    let failed = |error: EbpfError| KernelError::Load(error.into());
    let mut object = aya_obj::Object::parse(object).map_err(|error| failed(error.into()))?;
    let maps = std::mem::take(&mut object.maps);
    let maps: Vec<(&str, RawFd, &aya_obj::Map)> = maps
        .iter()
        .map(|(name, map)| match ebpf.map(name) {
            Some(Map::Array(data) | Map::HashMap(data)) => {
                Ok((name.as_str(), data.fd().as_fd().as_raw_fd(), map))
            }
            _ => Err(KernelError::Missing("map")),
        })
        .collect::<Result<_, _>>()?;
    let sections: HashSet<usize> = object.functions.keys().map(|&(section, _)| section).collect();
    object
        .relocate_maps(maps.into_iter(), &sections)
        .and_then(|()| object.relocate_calls(&sections))
        .map_err(|error| failed(error.into()))?;
    let found = object.programs.get(program).map(aya_obj::Program::function_key);
    let function = found.and_then(|key| object.functions.remove(&key));
    function.map(|function| function.instructions).ok_or(KernelError::Missing(program))
}

/// Loads a program. An error comes with the verifier's log.
fn load(
    instructions: &[bpf_insn],
    name: &str,
    engine: Engine,
    function: u32,
) -> Result<OwnedFd, (io::Error, String)> {
    let try_load = |log: &mut [u8]| {
        let mut attributes = bpf::attributes();
        // SAFETY: all of it is zeroes, which are valid.
        let program = unsafe { &mut attributes.__bindgen_anon_3 };
        (program.prog_type, program.expected_attach_type) = engine.types();
        program.insns = instructions.as_ptr() as u64;
        program.insn_cnt = instructions.len() as u32;
        program.license = c"GPL".as_ptr() as u64;
        program.attach_btf_id = function;
        // The last byte stays 0.
        let room = program.prog_name.len() - 1;
        program.prog_name[..room]
            .iter_mut()
            .zip(name.bytes())
            .for_each(|(to, byte)| *to = c_char::from_ne_bytes([byte]));
        if !log.is_empty() {
            program.log_level = 1;
            program.log_size = log.len() as u32;
            program.log_buf = log.as_mut_ptr() as u64;
        }
        // SAFETY: what the attributes point to lives during the call, and is as long as they say.
        unsafe { bpf::new_descriptor(bpf_cmd::BPF_PROG_LOAD, &mut attributes) }
    };
    try_load(&mut []).map_err(|error| {
        let mut log = vec![0; 1 << 20];
        // Fails again, with a log. If it does not fit, the error is another one, but the log is usable.
        let error = try_load(&mut log).err().unwrap_or(error);
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
        (error, String::from_utf8_lossy(&log[..end]).into_owned())
    })
}

fn open_link(program: &OwnedFd) -> io::Result<OwnedFd> {
    let mut attributes = bpf::attributes();
    attributes.raw_tracepoint.prog_fd = program.as_raw_fd().cast_unsigned();
    // SAFETY: nothing is pointed to.
    unsafe { bpf::new_descriptor(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attributes) }
}

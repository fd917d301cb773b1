//! The two ways to make clocks go wrong, and which of them serve here.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::ClockFaultError;
use crate::{
    kernel::{
        clock_probe::{ClockProbe, ClockProbeError, Config},
        vdso,
    },
    target::cgroup::Cgroup,
};

/// How clocks are faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// By patching the vDSO of each process.
    Vdso,
    /// By probes in the kernel on system calls.
    Probe,
}

impl Display for Engine {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Vdso => "vdso",
            Self::Probe => "probe",
        })
    }
}

/// Those that serve.
pub(super) struct Chosen {
    /// Whether processes are patched.
    pub(super) vdso: bool,
    /// Attached; all clocks read true yet.
    pub(super) probe: Option<ClockProbe>,
}

/// What is said where probes alone serve.
const FALLBACK: &str = "clocks are faulted by engine probe alone: new programs run without a vDSO, so that reading \
    a clock takes a system call, and one whose seccomp filter kills it for clock_gettime dies; \
    programs that run already read the true time from their vDSO";

/// All that were asked for. If none was: the vDSO where processes can be patched, and probes, where
/// the kernel takes them, for what does not go through it. `run`, `inject`, `apply` and the agent
/// all choose by this.
pub(super) fn choose(asked: &[Engine], cgroup: &Cgroup) -> Result<Chosen, ClockFaultError> {
    let wants = |engine| asked.is_empty() || asked.contains(&engine);
    let vdso = wants(Engine::Vdso);
    let unwritable = if vdso { vdso::check().err() } else { None };
    if let Some(error) = unwritable
        && !asked.is_empty()
    {
        return Err(error.into());
    }
    let vdso = vdso && unwritable.is_none();
    if !wants(Engine::Probe) {
        return Ok(Chosen { vdso, probe: None });
    }
    match (attach(cgroup, vdso), unwritable) {
        (Ok(probe), None) => Ok(Chosen { vdso, probe: Some(probe) }),
        (Ok(probe), Some(error)) => {
            tracing::warn!("{FALLBACK}: {error}");
            Ok(Chosen { vdso, probe: Some(probe) })
        }
        (Err(error), None) if asked.is_empty() => {
            tracing::debug!(%error, "no clock probes");
            Ok(Chosen { vdso, probe: None })
        }
        (Err(error), None) => Err(error.into()),
        (Err(source), Some(vdso)) => Err(ClockFaultError::NoEngine { vdso, source }),
    }
}

fn attach(cgroup: &Cgroup, is_patched: bool) -> Result<ClockProbe, ClockProbeError> {
    ClockProbe::attach(&Config {
        cgroup: (cgroup.id, cgroup.level),
        skip_vdso: is_patched,
        hide_vdso: !is_patched,
    })
}

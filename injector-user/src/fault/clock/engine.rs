//! The engines of clock faults, and the choice of those available on this kernel.

use std::fmt::{self, Display, Formatter};

use schemars::JsonSchema;
use serde::Serialize;

use super::ClockFaultError;
use crate::kernel::{
    clock_probe::{ClockProbe, ClockProbeError, Config},
    members::Members,
    vdso,
};

/// An engine of clock faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "ClockEngine")]
pub enum Engine {
    /// Patches the vDSO of each process.
    Vdso,
    /// Rewrites system calls by kprobes.
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

/// The chosen engines.
pub(super) struct Chosen {
    /// Whether to patch processes.
    pub(super) vdso: bool,
    /// The attached probes, which change nothing yet.
    pub(super) probe: Option<ClockProbe>,
}

/// The warning where only the probe engine is available.
const FALLBACK: &str = "only engine probe is available for clock faults: new programs run without \
    a vDSO, so reading a clock takes a system call, which kills programs whose seccomp filter does \
    not allow clock_gettime; programs already running read the true time from their vDSO";

/// Chooses all requested engines, or by default every available one: the vDSO engine, and the probe
/// engine for reads that bypass the vDSO.
pub(super) fn choose(requested: &[Engine], members: &Members) -> Result<Chosen, ClockFaultError> {
    let wants = |engine| requested.is_empty() || requested.contains(&engine);
    let vdso = wants(Engine::Vdso);
    let unwritable = if vdso { vdso::check().err() } else { None };
    if let Some(error) = unwritable
        && !requested.is_empty()
    {
        return Err(error.into());
    }
    let vdso = vdso && unwritable.is_none();
    if !wants(Engine::Probe) {
        return Ok(Chosen { vdso, probe: None });
    }
    match (attach(members, vdso), unwritable) {
        (Ok(probe), None) => Ok(Chosen { vdso, probe: Some(probe) }),
        (Ok(probe), Some(error)) => {
            tracing::warn!("{FALLBACK}: {error}");
            Ok(Chosen { vdso, probe: Some(probe) })
        }
        (Err(error), None) if requested.is_empty() => {
            tracing::debug!(%error, "no clock probes");
            Ok(Chosen { vdso, probe: None })
        }
        (Err(error), None) => Err(error.into()),
        (Err(source), Some(vdso)) => Err(ClockFaultError::NoEngine { vdso, source }),
    }
}

fn attach(members: &Members, is_patched: bool) -> Result<ClockProbe, ClockProbeError> {
    ClockProbe::attach(&Config {
        members: members.clone(),
        skip_vdso: is_patched,
        hide_vdso: !is_patched,
    })
}

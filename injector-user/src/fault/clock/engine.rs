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

/// All that were asked for; if none was, the vDSO and, where the kernel lets, probes for what does not go through it.
pub(super) fn choose(asked: &[Engine], cgroup: &Cgroup) -> Result<Chosen, ClockFaultError> {
    let wants = |engine| asked.is_empty() || asked.contains(&engine);
    let vdso = wants(Engine::Vdso);
    if vdso {
        vdso::check()?;
    }
    if !wants(Engine::Probe) {
        return Ok(Chosen { vdso, probe: None });
    }
    match attach(cgroup, vdso) {
        Ok(probe) => Ok(Chosen { vdso, probe: Some(probe) }),
        Err(error) if asked.is_empty() => {
            tracing::debug!(%error, "no clock probes");
            Ok(Chosen { vdso, probe: None })
        }
        Err(error) => Err(error.into()),
    }
}

fn attach(cgroup: &Cgroup, is_patched: bool) -> Result<ClockProbe, ClockProbeError> {
    ClockProbe::attach(&Config {
        cgroup: (cgroup.id, cgroup.level),
        skip_vdso: is_patched,
        hide_vdso: !is_patched,
    })
}

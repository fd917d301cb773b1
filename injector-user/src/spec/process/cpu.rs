//! CPU limits.

use super::{ProcessError, ProcessFault};
use crate::spec::{
    info::{Effect, Info, Trial},
    interpolate::interpolate,
    parameters::{Given, Parameter, Value, values},
    value::{PERCENT, percent_number},
};

values!(CpuLimit);
interpolate!(CpuLimit { 0 });

/// Maximum CPU limit, in percent of one CPU.
const MAX_PERCENT: f64 = 1e6;

/// Minimum CPU limit: the kernel grants at least 1 ms in at most 1 s.
const MIN_PERCENT: f64 = 0.1;

/// CPU limit of the target, as a fraction of one CPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuLimit(f64);

impl CpuLimit {
    /// The limit as a fraction of one CPU.
    #[must_use]
    pub fn fraction(self) -> f64 {
        self.0 / 100.0
    }
}

impl Value for CpuLimit {
    type Error = ProcessError;

    const NAME: &'static str = "a share of a processor";
    const SYNTAX: &'static str = "a percentage";
    const EXAMPLE: &'static str = "25%";
    const PATTERN: Option<&'static str> = Some(PERCENT);
    const PARAMETERS: &'static [Parameter] = &[Parameter::percent(
        "share",
        "Share of one CPU, 0.1% to 1000000%; 150% is one and a half.",
    )];

    fn from_parameters(given: &Given) -> Result<Self, ProcessError> {
        let text = given.get("share").unwrap_or_default();
        let wrong = || ProcessError::Cpu(text.into());
        let percent = percent_number(text, MAX_PERCENT)?.ok_or_else(wrong)?;
        if (MIN_PERCENT..=MAX_PERCENT).contains(&percent) {
            Ok(Self(percent))
        } else {
            Err(wrong())
        }
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        vec![("share", format!("{}%", self.0))]
    }
}

impl ProcessFault for CpuLimit {
    const INFO: Info = Info {
        name: "cpu",
        instead: "systemd-run --scope -p CPUQuota=25% CMD",
        value: "P",
        help: "Limit total CPU time; 100% is one CPU",
        detail: "150% is one and a half.",
        examples: &["25%", "150%"],
        trial: Some(Trial { options: "--cpu 10%", effect: Effect::Process }),
        ..Info::DEFAULT
    };
}

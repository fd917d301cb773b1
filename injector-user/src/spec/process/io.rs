//! Block I/O limits.

use std::path::PathBuf;

use super::{ProcessError, ProcessFault};
use crate::spec::{
    info::{Effect, Info, Trial},
    interpolate::interpolate,
    packet::rate::BitRate,
    parameters::{Given, Parameter, Value, values},
};

values!(IoLimit);
interpolate!(IoLimit { rate, device });

/// Maximum read rate and maximum write rate of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoLimit {
    /// The limit for each direction.
    pub rate: BitRate,
    /// The limited device; `None` limits all devices.
    pub device: Option<PathBuf>,
}

impl Value for IoLimit {
    type Error = ProcessError;

    const NAME: &'static str = "a limit of I/O";
    const SYNTAX: &'static str = "R[,device=PATH]";
    const EXAMPLE: &'static str = "1mbps (10^6 bytes a second) or 500kbps,device=/dev/sda";
    const PARAMETERS: &'static [Parameter] = &[
        Parameter::amount(
            "rate",
            "How fast, in the units of `rate` of packets: 1mbps is 10^6 bytes a second.",
        ),
        Parameter::new("device", "The block device; all of them if left out."),
    ];

    fn from_parameters(given: &Given) -> Result<Self, ProcessError> {
        Ok(Self { rate: given.required("rate")?, device: given.get("device").map(PathBuf::from) })
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = vec![("rate", self.rate.to_string())];
        let device = self.device.as_ref();
        parameters.extend(device.map(|device| ("device", device.display().to_string())));
        parameters
    }
}

impl ProcessFault for IoLimit {
    const INFO: Info = Info {
        name: "io",
        instead: "systemd-run --scope -p 'IOWriteBandwidthMax=/dev/sda 1M' CMD",
        value: "R[,device=PATH]",
        placeholder: "R[,...]",
        help: "Limit block I/O to R per device",
        detail: "For all processes together, and for each device. Units are those of --rate: 1mbps is 10^6 bytes a \
                 second.",
        examples: &["1mbps", "500kbps,device=/dev/null"],
        trial: Some(Trial { options: "--io 1gbps", effect: Effect::Process }),
    };
}

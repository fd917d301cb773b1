//! Limits of CPU time and block I/O by the cgroup v2 controllers.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor, stat};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ProcessFaultError,
    scope::{Group, Scope},
};
use crate::{
    lifetime::{action::Action, instance::Instance},
    spec::process::{cpu::CpuLimit, io::IoLimit},
    target::cgroup::Cgroup,
};

/// The default period of cpu.max in µs, as in the kernel.
const PERIOD_US: f64 = 100_000.0;

/// The maximum period of cpu.max in µs.
const MAX_PERIOD_US: f64 = 1_000_000.0;

/// The minimum quota of cpu.max in µs.
const MIN_QUOTA_US: f64 = 1000.0;

/// Statistics of a limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LimitStatistics {
    /// The cgroup file and its content.
    pub limit: String,
    /// The throttled time in ms, if CPU time is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_ms: Option<f64>,
}

/// Active limits.
#[derive(Debug)]
pub struct Limits {
    cgroup: Cgroup,
    statistics: Vec<LimitStatistics>,
    /// The kernel's counter at the start.
    throttled_us: u64,
    /// The throttled time of earlier cgroups.
    before_ms: f64,
    /// Journaled actions, undone in reverse order.
    actions: Vec<u32>,
}

impl Limits {
    /// Sets the limits, if there are any. Fails or keeps the value where a tighter limit exists.
    pub fn install(
        instance: &mut Instance,
        scope: &Scope,
        cpu: Option<CpuLimit>,
        io: Option<&IoLimit>,
    ) -> Result<Option<Self>, ProcessFaultError> {
        let Some(cgroup) = check(scope, cpu, io)? else { return Ok(None) };
        let mut limits = Self {
            cgroup: cgroup.clone(),
            statistics: Vec::new(),
            throttled_us: 0,
            before_ms: 0.0,
            actions: Vec::new(),
        };
        if let Some(cpu) = cpu {
            limits.enable(instance, "cpu")?;
            limits.throttled_us = limits.read_throttled().unwrap_or_default();
            limits.set_cpu(instance, cpu)?;
        }
        if let Some(io) = io {
            limits.enable(instance, "io")?;
            for device in devices(io)? {
                limits.set_io(instance, &device, io.rate.0 / 8)?;
            }
        }
        Ok(Some(limits))
    }

    /// Enables a controller in the cgroup, from the root of the hierarchy down.
    fn enable(
        &mut self,
        instance: &mut Instance,
        controller: &'static str,
    ) -> Result<(), ProcessFaultError> {
        let target = self.cgroup.clone();
        let mut above: Vec<&Path> =
            target.path.ancestors().skip(1).take(target.level as usize).collect();
        above.reverse();
        for cgroup in above {
            let control = cgroup.join("cgroup.subtree_control");
            if has(&control, controller) {
                continue;
            }
            let action = Action::EnableController {
                cgroup: cgroup.into(),
                controller: controller.into(),
                inode: cgroup.metadata().map(|metadata| metadata.ino()).ok(),
            };
            let done = instance.perform(action, || fs::write(control, format!("+{controller}")))?;
            self.actions.push(done);
        }
        Ok(())
    }

    fn set_cpu(&mut self, instance: &mut Instance, cpu: CpuLimit) -> Result<(), ProcessFaultError> {
        let before = self.read("cpu.max")?;
        let before = before.trim();
        let mut words = before.split_whitespace().map(|word| word.parse::<f64>().ok());
        let quota = words.next().flatten();
        let period = words.next().flatten().unwrap_or(PERIOD_US);
        let period = period.max(MIN_QUOTA_US / cpu.fraction()).min(MAX_PERIOD_US);
        let share = (cpu.fraction() * period).max(MIN_QUOTA_US);
        if quota.is_some_and(|quota| quota < share) {
            return Err(ProcessFaultError::Tighter(
                self.cgroup.path.clone(),
                format!("cpu.max {before}"),
            ));
        }
        self.set(instance, "cpu.max", before.into(), format!("{share:.0} {period:.0}"))
    }

    fn set_io(
        &mut self,
        instance: &mut Instance,
        device: &str,
        bytes: u64,
    ) -> Result<(), ProcessFaultError> {
        let limits = self.read("io.max")?;
        let line = limits.lines().find(|line| line.split(' ').next() == Some(device));
        let none = format!("{device} rbps=max wbps=max riops=max wiops=max");
        let before = line.map_or(none, |line| line.trim().to_owned());
        let tightened = |word: &str| match word.split_once('=') {
            Some((name @ ("rbps" | "wbps"), limit)) => {
                format!("{name}={}", limit.parse().map_or(bytes, |limit: u64| limit.min(bytes)))
            }
            _ => word.to_owned(),
        };
        let after: Vec<String> = before.split(' ').map(tightened).collect();
        self.set(instance, "io.max", before, after.join(" "))
    }

    fn set(
        &mut self,
        instance: &mut Instance,
        file: &str,
        before: String,
        after: String,
    ) -> Result<(), ProcessFaultError> {
        let (path, limit) = (self.cgroup.path.join(file), after.clone());
        let action = Action::SetLimit { path, inode: self.cgroup.id, before, after };
        let cgroup = &self.cgroup;
        self.actions.push(instance.perform(action, || cgroup.write(file, &limit))?);
        let throttled_ms = (file == "cpu.max").then_some(0.0);
        self.statistics.push(LimitStatistics { limit: format!("{file} {limit}"), throttled_ms });
        Ok(())
    }

    fn read(&self, file: &str) -> Result<String, ProcessFaultError> {
        let path = self.cgroup.path.join(file);
        fs::read_to_string(&path).map_err(|source| ProcessFaultError::Limit { path, source })
    }

    /// `None` if the cgroup is gone.
    fn read_throttled(&self) -> Option<u64> {
        let text = fs::read_to_string(self.cgroup.path.join("cpu.stat")).ok()?;
        if !self.cgroup.is_there() {
            return None;
        }
        let line = text.lines().find_map(|line| line.strip_prefix("throttled_usec "));
        line.and_then(|number| number.parse().ok())
    }

    /// Continues the statistics of ended limits of an earlier cgroup.
    #[must_use]
    pub fn after(mut self, before: &Self) -> Self {
        let throttled = before.statistics.iter().filter_map(|limit| limit.throttled_ms);
        self.before_ms = throttled.sum();
        // The cgroup may be removed before its counter is read.
        for throttled_ms in
            self.statistics.iter_mut().filter_map(|limit| limit.throttled_ms.as_mut())
        {
            *throttled_ms = self.before_ms;
        }
        self
    }

    /// The statistics so far.
    pub fn statistics(&mut self) -> Vec<LimitStatistics> {
        // After the end, the last values stay.
        if !self.actions.is_empty()
            && let Some(throttled) = self.read_throttled()
        {
            let throttled = throttled.saturating_sub(self.throttled_us) as f64 / 1e3;
            for statistics in &mut self.statistics {
                if let Some(throttled_ms) = &mut statistics.throttled_ms {
                    *throttled_ms = self.before_ms + throttled;
                }
            }
        }
        self.statistics.clone()
    }

    /// Restores the previous limits.
    pub fn end(&mut self, instance: &mut Instance) -> Result<(), ProcessFaultError> {
        self.statistics();
        while let Some(&action) = self.actions.last() {
            instance.undo(action)?;
            self.actions.pop();
        }
        Ok(())
    }
}

/// The block devices to limit, as MAJOR:MINOR.
fn devices(io: &IoLimit) -> Result<Vec<String>, ProcessFaultError> {
    const BLOCK: &str = "/sys/block";
    let fail = |path: &Path, source| ProcessFaultError::Limit { path: path.into(), source };
    if let Some(path) = &io.device {
        let device = stat(path).map_err(|error| fail(path, error.into()))?.st_rdev;
        return Ok(vec![format!("{}:{}", major(device), minor(device))]);
    }
    let entries = fs::read_dir(BLOCK).map_err(|source| fail(Path::new(BLOCK), source))?;
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mut devices: Vec<String> = entries
        .flatten()
        // Drives without a medium, and loop devices without a file, have no size.
        .filter(|entry| read(entry.path().join("size")) != "0")
        .map(|entry| read(entry.path().join("dev")))
        .filter(|device| !device.is_empty())
        .collect();
    devices.sort();
    if devices.is_empty() { Err(ProcessFaultError::NoDevice) } else { Ok(devices) }
}

/// Whether a file lists the controller.
fn has(file: &Path, controller: &str) -> bool {
    let names = fs::read_to_string(file).unwrap_or_default();
    names.split_whitespace().any(|name| name == controller)
}

/// Why the v2 hierarchy lacks a controller.
fn why_not(controller: &str) -> String {
    let v1 = if controller == "io" { "blkio" } else { controller };
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let is_v1 = cgroups.lines().any(|line| {
        line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == v1))
    });
    if is_v1 {
        format!(
            "it is bound to a cgroup v1 hierarchy ({v1}), which injector does not use; boot with \
             cgroup_no_v1={v1} or systemd.unified_cgroup_hierarchy=1"
        )
    } else {
        "this kernel was built or booted without it".into()
    }
}

/// Checks that limits, if there are any, can be set on these processes, as far as possible
/// beforehand. Returns the cgroup to limit.
pub fn check<'a>(
    scope: &'a Scope,
    cpu: Option<CpuLimit>,
    io: Option<&IoLimit>,
) -> Result<Option<&'a Cgroup>, ProcessFaultError> {
    if cpu.is_none() && io.is_none() {
        return Ok(None);
    }
    let cgroup = match scope.group() {
        Group::Cgroup(cgroup) => cgroup,
        Group::Set(set) => {
            let pid = set.named().first().map_or(0, |(pid, _)| *pid);
            return Err(ProcessFaultError::LimitOfProcess(pid));
        }
    };
    let mount = cgroup.path.ancestors().nth(cgroup.level as usize).unwrap_or(&cgroup.path);
    if cpu.is_some() {
        check_controller(mount, "cpu")?;
    }
    if let Some(io) = io {
        check_controller(mount, "io")?;
        devices(io)?;
    }
    Ok(Some(cgroup))
}

/// Checks that the hierarchy mounted at `mount` has the controller.
pub fn check_controller(mount: &Path, controller: &'static str) -> Result<(), ProcessFaultError> {
    if has(&mount.join("cgroup.controllers"), controller) {
        Ok(())
    } else {
        Err(ProcessFaultError::NoController { controller, reason: why_not(controller) })
    }
}

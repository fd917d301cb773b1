//! The events of `run` and `inject`.

use std::{collections::BTreeMap, ffi::OsStr};

use injector_common::counter::SeenCounters;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    fault::{
        clock::{self, report::ClocksReport},
        network::{
            counts::Counts,
            hold::{self, Engine},
            report::{AttachedReport, RuleReport, Totals},
            unmatched,
        },
        process,
    },
    report::{HostReport, TargetReport},
    spec::{
        rule::Rule,
        value::{HumanDuration, is_default},
    },
    target::{peers::Resolved, pods::PodStatus},
};

/// Duration of faults: printed as given in text, and in milliseconds in JSON.
#[derive(Clone, Copy, Debug)]
pub struct Lasts(pub HumanDuration);

impl Serialize for Lasts {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Round up, so that less than a millisecond does not become 0.
        serializer.serialize_u64(self.0.0.as_nanos().div_ceil(1_000_000) as u64)
    }
}

/// A line of `run` and `inject`.
#[derive(Serialize, JsonSchema)]
pub struct EventLine<'a> {
    /// Time of the event (RFC 3339).
    pub time: String,
    /// The event.
    #[serde(flatten)]
    pub event: &'a Event<'a>,
    /// Lines dropped so far, because the reader was too slow or a write failed.
    #[serde(skip_serializing_if = "is_default")]
    pub reports_dropped: u64,
    /// The version of the JSON output.
    pub schema_version: u32,
}

/// An event of a session.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// The faults are active.
    Started {
        /// Display name of the target.
        title: &'a str,
        /// The target as requested.
        target: &'a TargetReport,
        /// PID of injector.
        pid: u32,
        /// Seed of the random decisions.
        seed: u64,
        /// The machine, and its versions. Absent with `--agent`.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<Box<HostReport>>,
        /// Time until the faults end, in milliseconds. Absent if only a signal or the end of the command ends them.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<u64>")]
        for_ms: Option<Lasts>,
        /// Whether only a signal ends the faults.
        #[serde(skip)]
        is_endless: bool,
        /// The interfaces to which programs are attached.
        attached: Vec<AttachedReport>,
        /// The rules, without counters.
        rules: Vec<RuleReport>,
        /// The user that the command runs as, if one was given.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a str>,
        /// The user who ran sudo, if the command runs as root.
        #[serde(skip)]
        sudo_user: Option<&'a OsStr>,
        /// The limit for packets of new TCP connections over the loopback, if it was not requested.
        #[serde(skip_serializing_if = "Option::is_none")]
        loopback_mtu: Option<u16>,
        /// Addresses of the peers that rules name.
        resolved: &'a [Resolved],
        /// Engine that delays packets, if any rule does.
        #[serde(skip_serializing_if = "Option::is_none")]
        engine: Option<Engine>,
        /// The clock fault, if there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        clock: Option<&'a str>,
        /// Engines of the clock fault.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        clock_engines: Vec<clock::engine::Engine>,
        /// The processes whose clocks are faulted so far.
        #[serde(skip_serializing_if = "Option::is_none")]
        clocks: Option<ClocksReport>,
        /// The process faults, if there are any.
        #[serde(skip_serializing_if = "Option::is_none")]
        process: Option<&'a str>,
        /// Time from the start of injector until the faults were active, in milliseconds.
        startup_ms: f64,
    },
    /// Programs were attached to interfaces that appeared later.
    Attached {
        /// These interfaces.
        attached: Vec<AttachedReport>,
    },
    /// The target is gone: its cgroup was removed, or its container, pod or process has ended.
    Gone {
        /// Display name of the target.
        title: &'a str,
        /// Whether nothing can replace the target, so injector does not wait for it.
        #[serde(rename = "final", skip_serializing_if = "std::ops::Not::not")]
        is_final: bool,
    },
    /// The target was replaced, and the faults apply to the replacement.
    Followed {
        /// Display name of the replacement.
        title: &'a str,
        /// The interfaces to which programs are attached so far; those in other namespaces follow as its processes
        /// enter them.
        attached: Vec<AttachedReport>,
    },
    /// The set of faulted pods changed, among those that labels select (`--pods`).
    #[cfg_attr(not(feature = "agent"), expect(dead_code, reason = "only an agent selects pods"))]
    Pods {
        /// All selected pods.
        pods: &'a [PodStatus],
    },
    /// The rules were replaced, or the addresses of peers changed.
    Changed {
        /// The new rules, without counters.
        rules: Vec<RuleReport>,
        /// The old rules with their counters, without those that stay.
        replaced: Vec<RuleReport>,
        /// The new clock fault, if there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        clock: Option<&'a str>,
        /// The peers with other addresses, if that is the change. The rules and their counters
        /// continue.
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        resolved: &'a [Resolved],
    },
    /// Progress, once a second.
    Progress {
        /// Time since the start, in milliseconds.
        elapsed_ms: u64,
        /// Whether there are packet faults.
        #[serde(skip)]
        has_rules: bool,
        /// Sum over all rules.
        #[serde(flatten)]
        total: Totals,
        /// The processes whose clocks are faulted.
        #[serde(skip_serializing_if = "Option::is_none")]
        clocks: Option<ClocksReport>,
        /// Effects of the process faults.
        #[serde(skip_serializing_if = "Option::is_none")]
        processes: Option<process::Statistics>,
    },
    /// Packets that no rule matched (`--verbose`). Of much traffic, only a part is listed.
    Unmatched {
        /// Packets that the target sent, matched or not.
        sent: u64,
        /// Packets that it received and that were looked at.
        received: u64,
        /// The packets by protocol and peer, most first.
        packets: Vec<unmatched::PeerTraffic>,
    },
    /// Something is probably not as intended. The faults continue, unless the message says otherwise.
    Warning {
        /// The warning.
        message: &'a str,
    },
    /// The faults have ended. It is the last event.
    Summary {
        /// Time since the start, in milliseconds.
        elapsed_ms: u64,
        /// Seed of the random decisions.
        seed: u64,
        /// Sum over all rules.
        #[serde(flatten)]
        total: Totals,
        /// Each rule with its counters.
        rules: Vec<RuleReport>,
        /// Packets seen on the interfaces. Absent with `--agent`.
        #[serde(skip_serializing_if = "Option::is_none")]
        seen: Option<SeenReport>,
        /// Counters of delayed packets, if any rule delays.
        #[serde(skip_serializing_if = "Option::is_none")]
        held: Option<HeldReport>,
        /// The processes whose clocks were faulted, if there was a clock fault.
        #[serde(skip_serializing_if = "Option::is_none")]
        clocks: Option<ClocksReport>,
        /// Effects of the process faults, if there were any.
        #[serde(skip_serializing_if = "Option::is_none")]
        processes: Option<process::Statistics>,
        /// The exit code of the command of `run`; 128+n if signal n ended it.
        #[serde(skip_serializing_if = "Option::is_none")]
        exit_code: Option<u8>,
    },
}

/// Sums the counters of all rules.
#[must_use]
pub fn total(counts: &[Counts]) -> Totals {
    (&counts.iter().sum::<Counts>()).into()
}

/// Each rule with its counters.
#[must_use]
pub fn each(rules: &[Rule], counts: &[Counts]) -> Vec<RuleReport> {
    let report =
        |(number, (rule, counts))| RuleReport::new(number, rule, Some(Totals::from(counts)));
    rules.iter().zip(counts).enumerate().map(report).collect()
}

/// Some rules with their counters, by number.
#[must_use]
pub fn some(rules: &[Rule], counts: &BTreeMap<u32, Counts>) -> Vec<RuleReport> {
    let reports = counts.iter().filter_map(|(&number, counts)| {
        let number = number as usize;
        Some(RuleReport::new(number, rules.get(number)?, Some(Totals::from(counts))))
    });
    reports.collect()
}

/// Packets seen on the attached interfaces, matched or not.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SeenReport {
    /// Sent packets.
    pub egress: u64,
    /// Received packets.
    pub ingress: u64,
    /// Packets of other protocols than IP.
    pub not_ip: u64,
    /// Packets with broken or too many headers, which passed unchanged.
    pub unparsed: u64,
    /// Matched, but skipped because they have several receivers.
    pub shared: u64,
    /// Not reset, because they were sent over the loopback with translated addresses.
    pub translated: u64,
}

impl From<SeenCounters> for SeenReport {
    fn from(seen: SeenCounters) -> Self {
        Self {
            egress: seen.packets[0],
            ingress: seen.packets[1],
            not_ip: seen.not_ip,
            unparsed: seen.unparsed,
            shared: seen.shared,
            translated: seen.translated,
        }
    }
}

/// Counters of delayed packets.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HeldReport {
    /// Engine that delayed them.
    pub engine: Engine,
    /// Dropped because the queue was full.
    pub dropped: u64,
    /// Still queued when the faults ended, and lost.
    pub lost: u64,
}

impl From<(Engine, hold::Statistics)> for HeldReport {
    fn from((engine, statistics): (Engine, hold::Statistics)) -> Self {
        Self { engine, dropped: statistics.dropped, lost: statistics.held }
    }
}

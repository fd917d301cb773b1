//! What is said over the API, and how it fails.

use std::{
    fmt::{self, Display, Formatter},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    fault::{
        clock::report::ClocksReport,
        network::{
            report::{AttachedReport, RuleReport, Totals},
            unmatched::{self, Explanation},
        },
        process,
    },
    output::chain,
    report::MAX_LISTED_RULES,
    spec::{
        clock::ClockSpec,
        list::list,
        process::ProcessSpec,
        rule::RuleSpec,
        target::TargetSpec,
        value::{HumanDuration, is_default},
    },
    target::{peers::Resolved, pods::PodStatus},
};

/// A fault that is asked for: what, to whom, and for how long. It says what a rule file says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct FaultRequest {
    /// What to call it: up to 128 letters, digits, dots, dashes and underscores, the first a letter or digit; one is
    /// made up if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is faulted.
    pub target: TargetSpec,
    /// What random decisions follow from: with it, they are repeatable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Packet faults, in order: the first rule that matches a packet decides.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub rules: Vec<RuleSpec>,
    /// How clocks go wrong.
    pub clocks: ClockSpec,
    /// What is done to processes.
    pub processes: ProcessSpec,
    /// How long it lasts, at most 24h. This, a lease or both must be given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#for: Option<HumanDuration>,
    /// For how long it outlives its last renewal, 1s to 10m. A fault with a lease ends after 24h in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<HumanDuration>,
}

/// Older warnings beyond this number are dropped.
const MAX_WARNINGS: usize = 16;

/// A fault that acts, or did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Fault {
    /// Its name, by which it is addressed.
    pub name: String,
    /// Whether it acts.
    pub phase: Phase,
    /// Why it ended, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What went wrong, if that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The client that requested it.
    pub owner: String,
    /// Display name of the target.
    #[serde(default)]
    pub title: String,
    /// What is faulted.
    pub target: TargetSpec,
    /// The fault of all selected pods that this one, of one of them, is a part of: it ends with that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<String>,
    /// The target is gone: its cgroup was removed, or its container, pod or process has ended. If there is one by the
    /// same path or name again, the fault goes on in that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// What kept it from acting for a while, or still does, such as programs of others that were put before injector's:
    /// the last 16, the newest at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Of which kinds it is.
    pub kinds: Vec<Kind>,
    /// What random decisions follow from.
    pub seed: u64,
    /// When it began, in RFC 3339.
    pub created: String,
    /// When it ends, unless its lease is renewed; or when it ended.
    pub ends: String,
    /// How long it was to last, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
    /// For how long it outlives its last renewal, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// The interfaces to which programs are attached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<AttachedReport>,
    /// The addresses of the peers that rules name; they may change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resolved: Vec<Resolved>,
    /// What was done to packets: the sum over all rules.
    #[serde(flatten)]
    pub packets: Totals,
    /// Why no packet has matched, 5 seconds after the start and later, or at the end. Absent if some have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmatched: Option<Explanation>,
    /// Each rule with its counters. Lists and events have the first 16 rules, without counters.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rules: Arc<Vec<RuleReport>>,
    /// The number of further rules, in lists and events.
    #[serde(default, skip_serializing_if = "is_default")]
    pub more_rules: usize,
    /// The clock fault, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<String>,
    /// What was done to clocks, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<ClocksReport>,
    /// The process faults, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// What was done to processes, if that was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<process::Statistics>,
    /// The pods that labels select. Each has a fault of its own, whose counters are included here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<Arc<Vec<PodStatus>>>,
}

impl Fault {
    /// Whether it is a fault of selected pods, which does nothing itself.
    #[must_use]
    pub const fn is_of_selected(&self) -> bool {
        self.target.pods.is_some()
    }

    /// Why no packet has matched, in one line.
    #[cfg_attr(not(feature = "kubernetes"), expect(dead_code, reason = "only resources have it"))]
    pub(crate) fn unmatched_message(&self) -> Option<String> {
        let explanation = self.unmatched.as_ref()?;
        Some(unmatched::messages("no packet has matched yet", Some(explanation)).join("; "))
    }

    /// Adds or moves a warning to the newest position. Returns whether anything changed.
    pub(super) fn warn(&mut self, message: &str) -> bool {
        if self.warnings.last().is_some_and(|last| last == message) {
            return false;
        }
        self.warnings.retain(|warning| warning != message);
        self.warnings.push(message.into());
        if self.warnings.len() > MAX_WARNINGS {
            self.warnings.remove(0);
        }
        true
    }

    /// A copy for lists: rules have no counters, and only the first ones are there.
    #[must_use]
    pub fn in_short(&self) -> Self {
        let rules = self.rules.iter().take(MAX_LISTED_RULES).map(RuleReport::without_counts);
        let rules: Vec<_> = rules.collect();
        let more_rules = self.rules.len() - rules.len();
        Self { rules: Arc::new(rules), more_rules, ..self.clone() }
    }
}

/// Whether a fault acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It does.
    Active,
    /// It did.
    Ended,
}

/// Why a fault ended.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A client deleted it.
    Deleted,
    /// Its time was over.
    Expired,
    /// Its lease was not renewed.
    Lapsed,
    /// It could not go on.
    Failed,
    /// The agent ended.
    Stopped,
}

impl Reason {
    /// All variants.
    pub const ALL: [Self; 5] =
        [Self::Deleted, Self::Expired, Self::Lapsed, Self::Failed, Self::Stopped];
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Deleted => "deleted",
            Self::Expired => "expired",
            Self::Lapsed => "lapsed",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        })
    }
}

/// What is faulted.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Packets.
    Network,
    /// Clocks.
    Clock,
    /// Processes.
    Process,
}

impl Kind {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::Network, Self::Clock, Self::Process];
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Clock => "clock",
            Self::Process => "process",
        })
    }
}

/// All faults.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FaultList {
    /// Those that act, and the last 64 that did.
    pub faults: Vec<Fault>,
}

/// How the agent is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `ok`, or else what is wrong.
    pub status: String,
    /// Faults that act.
    pub active: usize,
    /// The agent's version.
    pub version: String,
}

impl Health {
    /// The status of a healthy agent.
    pub const OK: &str = "ok";
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The kind of failure.
    pub error: Code,
    /// What is wrong, and what to do about it.
    pub message: String,
}

/// Kinds of failures.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// Not HTTP, or not JSON.
    BadRequest,
    /// No token, or a wrong one.
    Unauthorized,
    /// Asked in a way that is not let in.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// Not with what is there already.
    Conflict,
    /// It makes no sense, or not on this machine.
    Invalid,
    /// As many as there may be are there already.
    TooMany,
    /// The kernel refused.
    Failed,
    /// Not now.
    Busy,
}

impl Code {
    /// Its HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Invalid => 422,
            Self::TooMany => 429,
            Self::Failed => 500,
            Self::Busy => 503,
        }
    }

    /// The code for an HTTP status.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        match status {
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 | 405 => Self::NotFound,
            409 => Self::Conflict,
            422 => Self::Invalid,
            429 => Self::TooMany,
            503 => Self::Busy,
            500..=599 => Self::Failed,
            _ => Self::BadRequest,
        }
    }
}

impl Problem {
    /// Creates an error with this message.
    #[must_use]
    pub fn new(error: Code, message: impl Into<String>) -> Self {
        Self { status: error.status(), error, message: message.into() }
    }

    /// Creates an error with the message and all its causes.
    #[must_use]
    pub fn from_error(code: Code, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::new(code, text(error))
    }

    /// The error for an unknown fault.
    #[must_use]
    pub fn no_fault(name: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no active fault {name}"))
    }
}

/// The error message with all its causes.
pub(super) fn text(error: impl std::error::Error) -> String {
    chain(&error)
}

impl Display for Problem {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

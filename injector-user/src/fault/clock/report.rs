//! What clock faults did, as it is told.

use std::{borrow::Cow, collections::BTreeMap, ops::AddAssign};

use injector_common::probe::ProbeCounters;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Clocks, Statistics};

/// Processes whose clocks were faulted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClocksReport {
    /// Programs: those that ran, and those executed since.
    pub patched: u64,
    /// Processes made by faulted ones.
    pub inherited: u64,
    /// Processes that are there now.
    pub present: u64,
    /// Processes that could not be faulted, by the reason.
    pub refused: BTreeMap<Cow<'static, str>, u64>,
    /// What was done to system calls, by the probe engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<CallsReport>,
}

/// Time system calls, of the probe engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CallsReport {
    /// Readings of clocks.
    pub matched: u64,
    /// Those that were changed.
    pub rewritten: u64,
    /// Results and deadlines that could not be written.
    pub failed: u64,
    /// Deadlines that were replaced by the true ones.
    pub deadlines: u64,
    /// Deadlines that were left as they were.
    pub deadlines_left: u64,
    /// New programs that were left without vDSO.
    pub vdso_hidden: u64,
    /// New programs that could not be.
    pub vdso_not_hidden: u64,
}

impl From<ProbeCounters> for CallsReport {
    fn from(counters: ProbeCounters) -> Self {
        let ProbeCounters { matched, rewritten, failed, deadlines, left, hidden, not_hidden } =
            counters;
        Self {
            matched,
            rewritten,
            failed,
            deadlines,
            deadlines_left: left,
            vdso_hidden: hidden,
            vdso_not_hidden: not_hidden,
        }
    }
}

impl AddAssign for CallsReport {
    fn add_assign(&mut self, other: Self) {
        self.matched += other.matched;
        self.rewritten += other.rewritten;
        self.failed += other.failed;
        self.deadlines += other.deadlines;
        self.deadlines_left += other.deadlines_left;
        self.vdso_hidden += other.vdso_hidden;
        self.vdso_not_hidden += other.vdso_not_hidden;
    }
}

impl AddAssign<&Self> for ClocksReport {
    fn add_assign(&mut self, other: &Self) {
        self.patched += other.patched;
        self.inherited += other.inherited;
        self.present += other.present;
        for (reason, count) in &other.refused {
            *self.refused.entry(reason.clone()).or_default() += count;
        }
        if let Some(calls) = other.calls {
            *self.calls.get_or_insert_default() += calls;
        }
    }
}

impl ClocksReport {
    /// What was done so far.
    pub fn of(clocks: &mut Clocks) -> Self {
        let calls = clocks.calls().map(Into::into);
        let Statistics { patched, inherited, present, refused } = clocks.statistics();
        let refused = refused.into_iter().map(|(reason, count)| (reason.into(), count)).collect();
        Self { patched, inherited, present, refused, calls }
    }

    /// Whether no process was faulted.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        let calls = self.calls.is_some_and(|calls| calls.rewritten + calls.deadlines > 0);
        self.patched == 0 && self.inherited == 0 && !calls
    }
}

//! The report of clock faults in JSON.

use std::{borrow::Cow, collections::BTreeMap, ops::AddAssign};

use injector_common::probe::ProbeCounters;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Clocks, Statistics};
use crate::words::plural;

/// Processes with clock faults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClocksReport {
    /// Programs that were patched: those running at the start, and each one executed since.
    pub patched: u64,
    /// Forked processes that inherited the fault.
    pub inherited: u64,
    /// Faulted processes that exist now.
    pub present: u64,
    /// Processes that could not be faulted, by reason.
    pub refused: BTreeMap<Cow<'static, str>, u64>,
    /// System calls, by the probe engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<CallsReport>,
}

/// System calls of clocks and timers, by the probe engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CallsReport {
    /// Clock reads.
    pub matched: u64,
    /// Clock reads that were changed.
    pub rewritten: u64,
    /// Results and deadlines that could not be written.
    pub failed: u64,
    /// Absolute deadlines that were translated to the true time.
    pub deadlines: u64,
    /// Deadlines that were left unchanged.
    pub deadlines_left: u64,
    /// New programs whose vDSO was hidden.
    pub vdso_hidden: u64,
    /// New programs whose vDSO could not be hidden.
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
    /// The report of a running fault.
    pub fn of(clocks: &mut Clocks) -> Self {
        let calls = clocks.calls().map(Into::into);
        let Statistics { patched, inherited, present, refused } = clocks.statistics();
        let refused = refused.into_iter().map(|(reason, count)| (reason.into(), count)).collect();
        Self { patched, inherited, present, refused, calls }
    }

    /// The programs and processes that were faulted, for people, if there are any.
    #[must_use]
    pub fn applied(&self) -> Option<String> {
        let count = |count: u64, thing| (count > 0).then(|| plural(count, thing));
        let counts = [count(self.patched, "program"), count(self.inherited, "child process")];
        let counts: Vec<String> = counts.into_iter().flatten().collect();
        (!counts.is_empty()).then(|| format!("clock offset applied to {}", counts.join(" and ")))
    }

    /// The system calls that read clocks or wait for them, for people, if they are faulted.
    #[must_use]
    pub fn calls_text(&self) -> Option<String> {
        let CallsReport { matched, rewritten, deadlines, .. } = self.calls?;
        let (calls, moved) = (plural(matched, "system call"), plural(deadlines, "deadline"));
        Some(format!("{calls} read clocks, {rewritten} of them with the offset; {moved} moved"))
    }

    /// Whether no process was faulted.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        let calls = self.calls.is_some_and(|calls| calls.rewritten + calls.deadlines > 0);
        self.patched == 0 && self.inherited == 0 && !calls
    }
}

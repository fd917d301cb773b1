//! The aggregate statistics of the faults of several pods.

use std::sync::Arc;

use super::api::Fault;
use crate::fault::{
    clock::report::ClocksReport,
    network::{
        report::{RuleReport, Totals},
        unmatched::Explanation,
    },
    process,
};

/// An aggregate.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    packets: Totals,
    /// Statistics of each rule.
    rules: Vec<RuleReport>,
    clocks: Option<ClocksReport>,
    processes: Option<process::Statistics>,
    /// Why no packet matched in the first part in which none has.
    unmatched: Option<Explanation>,
}

impl Sum {
    /// An empty aggregate.
    pub fn new(rules: &[RuleReport]) -> Self {
        Self { rules: rules.to_vec(), ..Self::default() }
    }

    /// Adds the statistics of an active part.
    pub fn add(&mut self, part: &Fault) {
        if self.unmatched.is_none() {
            self.unmatched.clone_from(&part.unmatched);
        }
        self.packets += &part.packets;
        for (all, rule) in self.rules.iter_mut().zip(part.rules.iter()) {
            if let Some(counts) = &rule.counts {
                *all.counts.get_or_insert_default() += counts;
            }
        }
        if let Some(clocks) = &part.clocks {
            *self.clocks.get_or_insert_default() += clocks;
        }
        if let Some(processes) = &part.processes {
            *self.processes.get_or_insert_default() += processes;
        }
    }

    /// Adds the statistics of an ended part.
    pub fn add_ended(&mut self, part: &Fault) {
        self.add(part);
        if let (Some(all), Some(clocks)) = (&mut self.clocks, &part.clocks) {
            all.present -= clocks.present;
        }
    }

    /// Stores the aggregate in the whole. Returns whether it changed.
    pub fn note(self, whole: &mut Fault) -> bool {
        let Self { packets, rules, clocks, processes, unmatched } = self;
        let unmatched = unmatched.filter(|_| packets.is_untouched());
        if (&packets, &clocks, &processes, &unmatched)
            == (&whole.packets, &whole.clocks, &whole.processes, &whole.unmatched)
        {
            return false;
        }
        whole.unmatched = unmatched;
        (whole.packets, whole.clocks, whole.processes) = (packets, clocks, processes);
        whole.rules = Arc::new(rules);
        true
    }
}

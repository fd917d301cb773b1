//! The aggregate statistics of the faults of several pods.

use std::sync::Arc;

use super::api::Fault;
use crate::fault::{
    clock::report::ClocksReport,
    network::report::{RuleReport, Totals},
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
}

impl Sum {
    /// An empty aggregate.
    pub fn new(rules: &[RuleReport]) -> Self {
        Self { rules: rules.to_vec(), ..Self::default() }
    }

    /// Adds the statistics of an active part.
    pub fn add(&mut self, part: &Fault) {
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
        let Self { packets, rules, clocks, processes } = self;
        if (&packets, &clocks, &processes) == (&whole.packets, &whole.clocks, &whole.processes) {
            return false;
        }
        (whole.packets, whole.clocks, whole.processes) = (packets, clocks, processes);
        whole.rules = Arc::new(rules);
        true
    }
}

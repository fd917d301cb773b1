//! What faults of several pods did, all together.

use std::sync::Arc;

use super::api::{Fault, RuleStatus};
use crate::fault::{clock::report::ClocksReport, network::report::Totals, process};

/// A sum.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    packets: Totals,
    /// Of each rule.
    rules: Vec<RuleStatus>,
    clocks: Option<ClocksReport>,
    processes: Option<process::Statistics>,
}

impl Sum {
    /// Of nothing yet.
    pub fn new(rules: &[RuleStatus]) -> Self {
        Self { rules: rules.to_vec(), ..Self::default() }
    }

    /// Adds what a part does.
    pub fn add(&mut self, part: &Fault) {
        self.packets += &part.packets;
        for (all, rule) in self.rules.iter_mut().zip(part.rules.iter()) {
            all.packets += &rule.packets;
        }
        if let Some(clocks) = &part.clocks {
            *self.clocks.get_or_insert_default() += clocks;
        }
        if let Some(processes) = &part.processes {
            *self.processes.get_or_insert_default() += processes;
        }
    }

    /// Adds what a part did that has ended.
    pub fn add_ended(&mut self, part: &Fault) {
        self.add(part);
        if let (Some(all), Some(clocks)) = (&mut self.clocks, &part.clocks) {
            all.present -= clocks.present;
        }
    }

    /// Writes down that this is what the whole does. Returns whether that is news.
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

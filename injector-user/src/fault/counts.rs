//! What faults did, in numbers that can be added up: structs made from the tables of counters.

use injector_common::{counter::RuleCounters, packet_counters};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::process::Statistics;

/// A counter of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The name: the JSON key and the metric's label. Names that end in `_ms` are times in milliseconds.
    pub name: &'static str,
    /// What it counts, for people, after the number.
    pub label: &'static str,
    /// What it counts, as a sentence.
    pub help: &'static str,
}

impl Counter {
    /// The number with the label, for people: "3 dropped", "1 pause".
    #[must_use]
    pub fn text(&self, count: u64) -> String {
        const NOUNS: [&str; 4] = ["pauses", "signals", "calls", "connections"];
        let word = |word: &'static str| match word.strip_suffix('s') {
            Some(singular) if count == 1 && NOUNS.contains(&word) => singular,
            _ => word,
        };
        let label: Vec<&str> = self.label.split(' ').map(word).collect();
        format!("{count} {}", label.join(" "))
    }

    /// The metric of a process counter and by what its values are divided there: times are in seconds.
    #[must_use]
    pub fn metric(&self) -> (String, f64) {
        match self.name.strip_suffix("_ms") {
            Some(time) => (format!("injector_fault_{time}_seconds_total"), 1e3),
            None => (format!("injector_fault_{}_total", self.name), 1.0),
        }
    }
}

/// The table of process counters, as [`packet_counters`] has it for packets.
macro_rules! process_counters {
    ($callback:ident! { $($args:tt)* }) => {
        $callback! { $($args)*
            { pauses, "pauses", "pauses", "Pauses of processes." }
            { pauses_skipped, "pausesSkipped", "pauses skipped",
                "Pauses skipped because no process ran that could be stopped." }
            { paused_ms, "pausedMilliseconds", "ms paused", "Time that processes were paused, in milliseconds." }
            { signals, "signals", "signals", "Signals sent." }
            { signals_failed, "signalsFailed", "signals failed", "Signals that could not be sent." }
            { starting_spared, "startingSpared", "starting containers spared",
                "Containers that were not paused or killed because their runtime was starting them." }
            { calls_matched, "matchedCalls", "system calls matched", "System calls that matched." }
            { calls_failed, "failedCalls", "system calls failed", "System calls failed on purpose." }
            { throttled_ms, "throttledMilliseconds", "ms throttled",
                "Time that processes waited for CPU time because of a limit, in milliseconds." }
        }
    };
}
#[cfg(feature = "kubernetes")]
pub(crate) use process_counters;

/// Makes a struct with a field for each row of a table, and its conversions from structs with the same fields. `json`
/// names the fields as they are, `crd` by their keys in Kubernetes.
macro_rules! counts {
    (json $(#[$meta:meta])* $name:ident from [$($source:ty),*]
        $({ $field:ident, $key:literal, $label:literal, $doc:literal })*) => {
        $crate::fault::counts::counts! {
            @struct $(#[$meta])* $name from [$($source),*] $({ $field, $label, $doc })*
        }
    };
    (crd $(#[$meta:meta])* $name:ident from [$($source:ty),*]
        $({ $field:ident, $key:literal, $label:literal, $doc:literal })*) => {
        $crate::fault::counts::counts! {
            @struct $(#[$meta])* $name from [$($source),*]
            $({ $field, $label, $doc, #[serde(rename = $key)] })*
        }
    };
    (@struct $(#[$meta:meta])* $name:ident from [$($source:ty),*]
        $({ $field:ident, $label:literal, $doc:literal $(, #[$attribute:meta])? })*) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(default)]
        pub struct $name {
            $(#[doc = $doc] $(#[$attribute])? pub $field: u64,)*
        }

        impl $name {
            /// The counters with their values, in the order of the table.
            pub fn each(self) -> impl Iterator<Item = ($crate::fault::counts::Counter, u64)> {
                use $crate::fault::counts::Counter;
                [$((Counter { name: stringify!($field), label: $label, help: $doc }, self.$field),)*].into_iter()
            }
        }

        impl std::ops::AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                $(self.$field += other.$field;)*
            }
        }

        $crate::fault::counts::counts! { @from $name [$($source),*] [$($field)*] }
    };
    (@from $name:ident [] $fields:tt) => {};
    (@from $name:ident [$source:ty $(, $rest:ty)*] [$($field:ident)*]) => {
        impl From<$source> for $name {
            fn from(counts: $source) -> Self {
                Self { $($field: counts.$field,)* }
            }
        }
        $crate::fault::counts::counts! { @from $name [$($rest),*] [$($field)*] }
    };
}
pub(crate) use counts;

packet_counters!(counts! { json
    /// What was done to packets.
    PacketCounts from [RuleCounters]
});

process_counters!(counts! { json
    /// What was done to processes.
    ProcessCounts from []
});

impl From<&Statistics> for ProcessCounts {
    fn from(statistics: &Statistics) -> Self {
        let ms = |ms: f64| ms.max(0.0).round() as u64;
        let pauses = statistics.pauses.as_ref();
        let (kills, errnos) = (&statistics.kills, &statistics.errnos);
        let throttled = statistics.limits.iter().filter_map(|limit| limit.throttled_ms);
        Self {
            pauses: pauses.map_or(0, |pauses| pauses.done),
            pauses_skipped: pauses.map_or(0, |pauses| pauses.skipped),
            paused_ms: ms(pauses.map_or(0.0, |pauses| pauses.stopped_ms)),
            signals: kills.iter().map(|kill| kill.sent).sum(),
            signals_failed: kills.iter().map(|kill| kill.failed).sum(),
            starting_spared: kills.iter().map(|kill| kill.starting).sum::<u64>()
                + pauses.map_or(0, |pauses| pauses.starting),
            calls_matched: errnos.iter().map(|errno| errno.matched).sum(),
            calls_failed: errnos.iter().map(|errno| errno.failed).sum(),
            throttled_ms: ms(throttled.sum()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, to_value};

    use super::*;
    #[cfg(feature = "kubernetes")]
    use crate::kubernetes::crd::{Counters, definition_yaml};
    use crate::{fault::network::report::Totals, scenario::timeline};

    fn has(value: &impl Serialize, name: &str) -> bool {
        to_value(value).expect("plain data").get(name).is_some_and(Value::is_u64)
    }

    #[test]
    fn labels_agree_with_their_number() {
        let text = |label, count| Counter { name: "", label, help: "" }.text(count);
        for (label, one, two) in [
            ("pauses", "1 pause", "2 pauses"),
            ("pauses skipped", "1 pause skipped", "2 pauses skipped"),
            ("system calls matched", "1 system call matched", "2 system calls matched"),
            ("connections reset", "1 connection reset", "2 connections reset"),
            ("ms paused", "1 ms paused", "2 ms paused"),
            ("answered as too big", "1 answered as too big", "2 answered as too big"),
        ] {
            assert_eq!((text(label, 1), text(label, 2)), (one.into(), two.into()));
        }
    }

    #[test]
    fn every_packet_counter_is_in_every_output() {
        let metrics = include_str!("../../../docs/agent.md");
        for (counter, _) in PacketCounts::default().each() {
            let name = counter.name;
            assert!(has(&Totals::default(), name), "{name} in the summary");
            assert!(has(&timeline::Counts::default(), name), "{name} in the timeline");
            assert!(metrics.contains(name), "{name} in docs/agent.md");
        }
    }

    #[test]
    fn every_process_counter_is_in_every_output() {
        let metrics = include_str!("../../../docs/agent.md");
        for (counter, _) in ProcessCounts::default().each() {
            let name = counter.name;
            assert!(has(&timeline::Counts::default(), name), "{name} in the timeline");
            let (metric, _) = counter.metric();
            assert!(metrics.contains(&metric), "{metric} in docs/agent.md");
        }
    }

    #[cfg(feature = "kubernetes")]
    #[test]
    fn every_counter_is_in_the_status_of_the_resource() {
        let counters = to_value(Counters::default()).expect("plain data");
        let counters = counters.as_object().expect("an object");
        // The table's rows, and the processes whose clocks are faulted.
        let rows = PacketCounts::default().each().count() + ProcessCounts::default().each().count();
        assert_eq!(counters.len(), rows + 1);
        let definition = definition_yaml().expect("plain data");
        for key in counters.keys() {
            assert!(definition.contains(&format!(" {key}:\n")), "{key} in the definition");
        }
    }
}

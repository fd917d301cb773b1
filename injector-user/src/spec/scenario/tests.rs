use std::{collections::BTreeSet, error::Error, fmt::Write as _, time::Duration};

use proptest::prelude::*;

use super::{
    plan::{Node, Plan, What, plan},
    *,
};
use crate::spec::rule::Direction;

fn planned_with(yaml: &str, seed: u64) -> Result<Plan, ScenarioError> {
    let path = Path::new("scenario.yaml");
    plan(path, &parse(path, yaml)?, seed)
}

fn planned(yaml: &str) -> Plan {
    planned_with(yaml, 0).unwrap_or_else(|error| panic!("{yaml}: {error} {:?}", error.source()))
}

const TARGETS: &str = "targets: {a: {netns: a}, b: {netns: b}, c: {netns: c}}\n";

/// The changes of a plan by name: the time, the target, and its active parts.
fn times(plan: &Plan) -> Vec<(u64, &str, Vec<&str>)> {
    let changes = plan.changes.iter().flat_map(|change| {
        let at = change.at.as_millis() as u64;
        change.sets.iter().map(move |(target, parts)| (at, *target, parts))
    });
    changes
        .map(|(at, target, parts)| {
            let names = parts.iter().map(|&part| plan.parts[part].name.as_str()).collect();
            (at, plan.targets[target].as_str(), names)
        })
        .collect()
}

#[test]
fn steps_begin_and_end_and_what_touches_changes_at_once() {
    let plan = planned(&format!(
        "{TARGETS}faults: {{slow: {{rules: [{{delay: 50ms}}]}}}}\ntimeline:\n\
         - {{at: 1s, for: 2s, on: a, faults: slow}}\n\
         - {{at: 3s, for: 1s, on: [a, b], faults: [{{rules: [{{loss: 5%}}]}}]}}\n\
         - {{at: 3500ms, for: 1s, on: a, faults: [slow]}}\n"
    ));
    assert_eq!(
        times(&plan),
        [
            (1000, "a", vec!["slow"]),
            (3000, "a", vec!["loss 5%"]),
            (3000, "b", vec!["loss 5%"]),
            (3500, "a", vec!["loss 5%", "slow"]),
            (4000, "a", vec!["slow"]),
            (4000, "b", vec![]),
            (4500, "a", vec![]),
        ]
    );
    assert_eq!(plan.length, Some(Duration::from_millis(4500)));
}

#[test]
fn steps_are_repeated_so_often_or_until_the_end() {
    let step = "on: a, every: 1s, for: 400ms, faults: {rules: [{loss: 5%}]}";
    let plan = planned(&format!("{TARGETS}timeline: [{{{step}, times: 2}}]"));
    assert_eq!(times(&plan).iter().map(|time| time.0).collect::<Vec<_>>(), [0, 400, 1000, 1400]);
    let plan = planned(&format!("{TARGETS}for: 2200ms\ntimeline: [{{{step}}}]"));
    let at: Vec<u64> = times(&plan).iter().map(|time| time.0).collect();
    assert_eq!(at, [0, 400, 1000, 1400, 2000, 2200]);
    // Contiguous repetitions cause no change.
    let step = "on: a, every: 1s, for: 1s, times: 5, faults: {rules: [{loss: 5%}]}";
    let plan = planned(&format!("{TARGETS}timeline: [{{{step}}}]"));
    assert_eq!(times(&plan).iter().map(|time| time.0).collect::<Vec<_>>(), [0, 5000]);
}

#[test]
fn a_ramp_has_even_steps() {
    let plan = planned(&format!(
        "{TARGETS}faults: {{mild: {{rules: [{{loss: 0%}}]}}, harsh: {{rules: [{{loss: 30%}}]}}}}\n\
         timeline: [{{at: 1s, for: 4s, on: a, ramp: {{from: mild, to: harsh, steps: 4}}}}]"
    ));
    let names: Vec<_> = times(&plan).into_iter().map(|(at, _, names)| (at, names)).collect();
    assert_eq!(
        names,
        [
            (1000, vec!["mild to harsh: loss 0%"]),
            (2000, vec!["mild to harsh: loss 10%"]),
            (3000, vec!["mild to harsh: loss 20%"]),
            (4000, vec!["mild to harsh: loss 30%"]),
            (5000, vec![]),
        ]
    );
}

#[test]
fn choices_follow_their_weights() {
    let yaml = format!(
        "{TARGETS}timeline:\n- every: 1s\n  for: 1s\n  times: 3000\n  on: a\n  choose:\n\
         \x20 - {{weight: 3, faults: {{rules: [{{loss: 1%}}]}}}}\n\
         \x20 - {{weight: 1, faults: {{rules: [{{loss: 2%}}]}}}}\n\
         \x20 - {{weight: 1}}\n  - {{weight: 0, faults: {{rules: [{{loss: 3%}}]}}}}\n"
    );
    let plan = planned_with(&yaml, 7).expect("valid");
    let mut counts = [0; 4];
    let mut times = times(&plan).into_iter().peekable();
    while let Some((at, _, names)) = times.next() {
        let until = times.peek().map_or(at, |next| next.0);
        let choice = match names.as_slice() {
            ["loss 1%"] => 0,
            ["loss 2%"] => 1,
            [] => 2,
            _ => 3,
        };
        counts[choice] += (until - at) / 1000;
    }
    // The last repetition may draw no faults as well.
    assert!((1650..1950).contains(&counts[0]), "{counts:?}");
    assert!((480..720).contains(&counts[1]), "{counts:?}");
    assert_eq!(counts[3], 0);
    assert_eq!(planned_with(&yaml, 7).expect("valid"), plan);
    assert_ne!(planned_with(&yaml, 8).expect("valid").changes, plan.changes);
}

#[test]
fn partitions_are_cut_where_packets_are_sent_if_that_is_a_target() {
    let plan = planned(
        "targets: {a: {netns: a}, b: {netns: b}}\n\
         timeline: [{for: 1s, partition: {shape: halves, nodes: [a, b, 10.0.0.3]}}]",
    );
    let What::Partition(cuts) = &plan.parts[0].what else { panic!("no partition") };
    let remote = Node::Remote("10.0.0.3".parse().expect("an address"));
    let has = |at, direction, peer: &Node| {
        cuts.iter()
            .filter(|cut| cut.at == at && cut.direction == direction && cut.peer == *peer)
            .count()
    };
    assert_eq!(has(0, Direction::Egress, &Node::Target(1)), 1);
    assert_eq!(has(1, Direction::Egress, &Node::Target(0)), 1);
    assert_eq!(has(0, Direction::Egress, &remote), 1);
    assert_eq!(has(0, Direction::Ingress, &remote), 1);
    assert_eq!(cuts.len(), 4);
    assert_eq!(plan.peers(), [0, 1].into());

    let names: Vec<String> = plan.rules(0, &[0]).into_iter().map(|(_, rule)| rule.name).collect();
    assert_eq!(
        names,
        ["partition halves: to b, 10.0.0.3/32", "partition halves: from 10.0.0.3/32"]
    );
}

#[test]
fn a_partition_comes_before_other_rules() {
    let plan = planned(&format!(
        "{TARGETS}timeline:\n- {{for: 1s, faults: {{rules: [{{name: x, loss: 5%}}]}}}}\n\
         - {{for: 1s, partition: {{shape: halves, nodes: [a, b, c]}}}}"
    ));
    let rules = plan.rules(0, &plan.changes[0].sets[0].1);
    let names: Vec<&str> = rules.iter().map(|(_, rule)| rule.name.as_str()).collect();
    assert_eq!(names, ["partition halves: to b, c", "x"]);
}

#[test]
fn a_named_node_is_isolated_and_it_is_said_from_whom() {
    let of = |partition: &str| {
        let plan = planned(&format!("{TARGETS}timeline: [{{for: 1s, partition: {partition}}}]"));
        let targets: Vec<usize> = plan.changes[0].sets.iter().map(|set| set.0).collect();
        (plan.parts[0].name.clone(), targets)
    };
    let all = "partition one: b cut off from a, c";
    for (partition, name, targets) in [
        ("{isolate: b}", all, vec![0, 1, 2]),
        ("{isolate: b, nodes: [a, b, c]}", all, vec![0, 1, 2]),
        ("{shape: one, isolate: b, nodes: [a, c]}", all, vec![0, 1, 2]),
        ("{isolate: b, nodes: [c]}", "partition one: b cut off from c", vec![1, 2]),
        ("{isolate: b, nodes: [10.0.0.1]}", "partition one: b cut off from 10.0.0.1", vec![1]),
        ("{shape: one-way, nodes: [a, b, c]}", "partition one-way: a cannot send to b, c", vec![0]),
    ] {
        assert_eq!(of(partition), (name.to_owned(), targets), "{partition}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_where_is_said() {
    let fault = "{rules: [{loss: 1%}]}";
    for (step, words) in [
        ("{}", "exactly one of"),
        ("{faults: x}", "no fault x"),
        (&format!("{{on: z, faults: {fault}}}"), "no target z"),
        ("{faults: {rules: [{loss: 101%}]}}", "101%"),
        ("{faults: {rules: [{loss: 1%, for: 1s}]}}", "has no `for`"),
        ("{faults: {seed: 1, rules: [{loss: 1%}]}}", "no seed of its own"),
        (&format!("{{every: 1s, for: 1s, faults: {fault}}}"), "no end to it"),
        (&format!("{{every: 1s, for: 2s, times: 2, faults: {fault}}}"), "not longer"),
        (&format!("{{every: 1s, times: 2, faults: {fault}}}"), "not longer"),
        (&format!("{{times: 2, faults: {fault}}}"), "goes with `every`"),
        (&format!("{{for: 0s, faults: {fault}}}"), "more than 0"),
        (&format!("{{ramp: {{from: {fault}, to: {fault}, steps: 3}}}}"), "`for`"),
        (&format!("{{for: 1s, ramp: {{from: {fault}, to: {fault}, steps: 1}}}}"), "2 to 1000"),
        (&format!("{{for: 1s, choose: [{{weight: 0, faults: {fault}}}]}}"), "all be 0"),
        ("{partition: {shape: bridge, nodes: [a, b]}}", "takes 3"),
        ("{partition: {shape: halves, nodes: [a, a]}}", "twice"),
        ("{partition: {shape: halves, nodes: [a, host.example]}}", "neither a target"),
        ("{partition: {shape: primary-minority, nodes: [a, b, c]}}", "`primary`"),
        ("{partition: {shape: halves, primary: a, nodes: [a, b, c]}}", "`primary`"),
        ("{partition: {shape: halves, nodes: [10.0.0.1, 10.0.0.2]}}", "neither of them"),
        ("{on: a, partition: {shape: halves, nodes: [a, b]}}", "takes no `on`"),
        ("{partition: {nodes: [a, b]}}", "takes a `shape`, or `isolate`"),
        ("{partition: {shape: halves}}", "takes `nodes`"),
        ("{partition: {shape: halves, isolate: a, nodes: [a, b]}}", "not with `halves`"),
        ("{partition: {isolate: z}}", "neither a target"),
    ] {
        let yaml = format!("{TARGETS}timeline: [{{faults: {fault}}}, {step}]");
        let error = planned_with(&yaml, 0).expect_err(step);
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            write!(text, ": {error}").expect("a string");
            source = error.source();
        }
        assert!(text.contains(words), "{step}: {text}");
        assert!(text.contains("step 2") || text.contains("not a valid scenario"), "{text}");
    }
    for yaml in [
        "targets: {}\ntimeline: [{faults: x}]",
        "targets: {a: {}}\ntimeline: [{faults: {rules: [{loss: 1%}]}}]",
        "targets: {a: {netns: a}}\ntimeline: []",
        "targets: {a: {netns: a, typo: 1}}\ntimeline: [{faults: {rules: [{loss: 1%}]}}]",
        "targets: {a: {netns: a}}\ntimeline: [{faults: {rules: [{loss: 1%}]}, typo: 1}]",
        "targets: {a: {netns: a}}\nfor: 1s\ntimeline: [{at: 1s, faults: {rules: [{loss: 1%}]}}]",
    ] {
        assert!(planned_with(yaml, 0).is_err(), "{yaml}");
    }
}

#[test]
fn clocks_go_wrong_in_one_way_at_a_time() {
    let two = |second: &str| {
        planned_with(
            &format!(
                "{TARGETS}timeline:\n- {{for: 2s, on: a, faults: {{clocks: {{clock: +1s}}}}}}\n\
                 - {{at: {second}, for: 2s, on: [a, b], faults: {{clocks: {{clock: +2s}}}}}}"
            ),
            0,
        )
    };
    assert!(two("2s").is_ok());
    let error = two("1s").expect_err("two at once");
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    assert!(text.contains("clocks of a"), "{text}");
}

#[test]
fn processes_are_paused_and_limited_in_one_way_at_a_time() {
    let two = |one: &str, other: &str| {
        let yaml = format!(
            "{TARGETS}timeline:\n- {{for: 2s, faults: {{processes: {one}}}}}\n\
             - {{at: 1s, for: 2s, on: b, faults: {{processes: {other}}}}}"
        );
        planned_with(&yaml, 0)
    };
    assert!(two("{pause: 1s}", "{kill: [at=0s], cpu: 10%}").is_ok());
    assert!(two("{kill: [at=0s]}", "{kill: [at=0s]}").is_ok());
    for (fault, what) in
        [("{pause: 1s}", "pauses"), ("{cpu: 10%}", "processor time"), ("{io: 1mbps}", "block I/O")]
    {
        let error = two(fault, fault).expect_err("two at once");
        let text = error.source().map(ToString::to_string).unwrap_or_default();
        assert!(text.contains(&format!("{what} of b")), "{text}");
    }
}

#[test]
fn what_processes_suffer_begins_anew_each_time() {
    let step = "on: a, every: 1s, for: 1s, times: 3, faults: {processes: {pause: 100ms}}";
    let plan = planned(&format!("{TARGETS}timeline: [{{{step}}}]"));
    assert_eq!(times(&plan).iter().map(|time| time.0).collect::<Vec<_>>(), [0, 1000, 2000, 3000]);
}

#[test]
fn a_scenario_without_an_end_has_none() {
    let plan = planned(&format!("{TARGETS}timeline: [{{faults: {{rules: [{{loss: 1%}}]}}}}]"));
    assert_eq!((plan.length, plan.changes.len()), (None, 1));
}

proptest! {
    /// Compares the plan at each time with the steps, evaluated one by one.
    #[test]
    fn at_each_time_that_is_active_which_the_steps_say(
        steps in prop::collection::vec((0u64..50, 1u64..30, 0u64..20, 1u32..4, 0usize..3), 1..8),
        end in prop::option::of(51u64..120),
    ) {
        let mut yaml = TARGETS.to_owned();
        if let Some(end) = end {
            writeln!(yaml, "for: {end}ms").expect("a string");
        }
        yaml += "timeline:\n";
        for (number, (at, length, gap, times, target)) in steps.iter().enumerate() {
            writeln!(
                yaml,
                "- {{at: {at}ms, for: {length}ms, every: {}ms, times: {times}, on: {}, \
                 faults: {{rules: [{{name: r{number}, loss: 1%}}]}}}}",
                length + gap, ["a", "b", "c"][*target],
            )
            .expect("a string");
        }
        let plan = planned_with(&yaml, 1).expect("valid");
        prop_assert!(plan.changes.is_sorted_by(|a, b| a.at < b.at));
        let mut now = vec![BTreeSet::new(); 3];
        let mut changes = plan.changes.iter().peekable();
        for ms in 0..300 {
            let time = Duration::from_millis(ms);
            while let Some(change) = changes.next_if(|change| change.at <= time) {
                prop_assert_eq!(change.at, time);
                for (target, parts) in &change.sets {
                    let parts: BTreeSet<usize> = parts.iter().copied().collect();
                    prop_assert_ne!(&now[*target], &parts);
                    now[*target] = parts;
                }
            }
            for (number, (at, length, gap, times, target)) in steps.iter().enumerate() {
                let since = ms.checked_sub(*at).filter(|_| end.is_none_or(|end| ms < end));
                let expected = since.is_some_and(|since| {
                    since / (length + gap) < u64::from(*times) && since % (length + gap) < *length
                });
                prop_assert_eq!(now[*target].contains(&number), expected, "{} at {}", number, ms);
            }
        }
        prop_assert!(now.iter().all(BTreeSet::is_empty));
        if let Some(end) = end {
            prop_assert_eq!(plan.length, Some(Duration::from_millis(end)));
        }
    }
}

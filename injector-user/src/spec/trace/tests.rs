use std::fmt::Write as _;

use injector_common::model::trace::{NEVER, Steps};
use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;

impl Steps for Table {
    fn step(&self, index: u32) -> Step {
        self.steps.get(index as usize).copied().unwrap_or_default()
    }
}

/// A table as a rule plays it.
fn played(table: Table) -> (Arc<Table>, Trace) {
    let table = Arc::new(table);
    let trace = Played { table: Arc::clone(&table), queue: None, overhead: 0 }.compile();
    (table, trace)
}

fn opportunities(text: &str, is_loop: bool) -> (Arc<Table>, Trace) {
    played(Table::opportunities(text, is_loop).expect(text))
}

/// The table of a CSV file for sent packets.
fn csv(text: &str, is_loop: bool) -> (Arc<Table>, Trace) {
    let timeline = Timeline::parse(text, is_loop).expect(text);
    let table = timeline.up.expect("rows for sent packets");
    played(Arc::unwrap_or_clone(table))
}

/// An opportunity in each of `count` milliseconds.
fn lines(count: usize) -> String {
    (1..=count).map(|ms| ms.to_string() + "\n").collect()
}

#[test]
fn opportunities_pass_at_their_times() {
    let (table, trace) = opportunities("0\n2\n2\n\n5\r\n", false);
    let passed: Vec<u64> = (0..7).map(|ms| trace.passed(&*table, ms * MS)).collect();
    assert_eq!(passed, [1, 1, 3, 3, 3, 4, 4].map(|count| count * OPPORTUNITY));
    assert_eq!(trace.reached(&*table, 4 * OPPORTUNITY), 5 * MS);
    assert_eq!(trace.reached(&*table, 4 * OPPORTUNITY + 1), NEVER);
    let (table, trace) = opportunities("0\n2\n2\n\n5\r\n", true);
    // Both the last of a round and the first of the next are at 5 ms.
    assert_eq!(trace.passed(&*table, 5 * MS), 5 * OPPORTUNITY);
    assert_eq!(trace.reached(&*table, 5 * OPPORTUNITY), 5 * MS);
    assert_eq!(trace.reached(&*table, 5 * OPPORTUNITY + 1), 7 * MS);
}

#[test]
fn the_default_queue_is_100_ms_of_the_mean_rate() {
    assert_eq!(opportunities(&lines(100), true).1.queue, 150_000);
    assert_eq!(opportunities("1000", true).1.queue, 15_000);
    assert_eq!(csv("time,rate\n0s,1tbit", false).1.queue, u64::from(u32::MAX));
}

#[test]
fn bytes_pass_at_the_rates_of_their_times() {
    let (table, trace) = csv("time,rate\n0s,8mbit\n100ms,0\n300ms,1kbit\n", false);
    let passed = |ms: u64| trace.passed(&*table, ms * MS);
    assert_eq!([0, 1, 100, 300].map(passed), [0, 1000, 100_000, 100_000]);
    // 125 bytes a second, for ever.
    for seconds in [1, 8, 9, 3600, 1_000_000] {
        assert_eq!(passed(300 + seconds * 1000), 100_000 + 125 * seconds, "{seconds}");
        let at = trace.reached(&*table, 100_000 + 125 * seconds);
        assert_eq!(at, (300 + seconds * 1000) * MS, "{seconds}");
    }
    assert_eq!(trace.reached(&*table, 100_001), 308 * MS);
    let (table, trace) = csv("rate,time\n8mbit,0s\n0,100ms\n0,300ms\n", true);
    assert_eq!(trace.passed(&*table, 301 * MS), 101_000);
    assert_eq!(trace.reached(&*table, 100_001), 300 * MS + 1000);
}

#[test]
fn an_outage_that_lasts_delivers_nothing() {
    let (table, trace) = csv("time,rate\n0s,8mbit\n1ms,0bit\n", false);
    assert_eq!(trace.passed(&*table, u64::MAX / 4), 1000);
    assert_eq!((trace.reached(&*table, 1000), trace.reached(&*table, 1001)), (MS, NEVER));
}

#[test]
fn the_highest_rate_for_the_longest_time_fits() {
    let (table, trace) = csv("time,rate\n0s,1tbit\n24h,1tbit\n", false);
    let day = 86_400_000 * MS;
    for at in [1, 1000, day - 1, day, day + 1, 3 * day] {
        assert_eq!(trace.passed(&*table, at), 125 * at);
        assert_eq!(trace.reached(&*table, 125 * at), at);
    }
    assert!(table.steps.len() < MAX_STEPS as usize);
}

#[test]
fn values_hold_from_their_times() {
    let text = "time, loss, delay, direction\n0s,1%,1ms,both\n10ms,100%,0s,up\n20ms,0%,60s,down\n";
    let timeline = Timeline::parse(text, false).expect("valid");
    let at = |table: Option<Arc<Table>>, ms: u64| {
        let (table, trace) = played(Arc::unwrap_or_clone(table.expect("rows")));
        let step = trace.at(&*table, ms * MS);
        (Probability(step.loss).fraction(), u64::from(step.delay) << DELAY_SHIFT)
    };
    let near = |(loss, delay): (f64, u64)| ((loss * 1000.0).round() / 1000.0, delay);
    assert_eq!(near(at(timeline.up.clone(), 9)), (0.01, MS));
    assert_eq!(at(timeline.up.clone(), 10), (1.0, 0));
    assert_eq!(at(timeline.up, 9999), (1.0, 0));
    assert_eq!(near(at(timeline.down.clone(), 19)), (0.01, MS));
    assert_eq!(at(timeline.down, 20), (0.0, 60_000 * MS));
    let timeline = Timeline::parse("time,loss\n0s,1%\n", false).expect("valid");
    assert!(Arc::ptr_eq(&timeline.up.expect("rows"), &timeline.down.expect("rows")));
    let timeline = Timeline::parse("time,loss,direction\n0s,1%,down\n", false).expect("valid");
    assert!(timeline.up.is_none() && timeline.down.is_some());
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let line = |line, text: &str| format!("line {line}: {text}");
    for (text, expected) in [
        ("", "the trace is empty".into()),
        ("\n \n", "the trace is empty".into()),
        ("1\n-1", line(2, "`-1` is not a time in whole milliseconds of up to 24h")),
        ("1.5", line(1, "`1.5` is not a time in whole milliseconds of up to 24h")),
        ("86400001", line(1, "`86400001` is not a time in whole milliseconds of up to 24h")),
        ("3\n\n2", line(3, "2 is earlier than the time before; times must not fall")),
    ] {
        let error = Table::opportunities(text, false).expect_err(text);
        assert_eq!(error.to_string(), expected, "{text:?}");
    }
    assert_eq!(Table::opportunities("0\n0", true), Err(Wrong::NoTime));
    assert!(Table::opportunities("0\n0", false).is_ok());

    for (text, expected) in [
        ("", "the trace is empty".into()),
        ("time,rate", "the trace is empty".into()),
        ("time", line(1, "the columns must be time and at least one of rate, delay and loss")),
        ("rate", line(1, "the columns must be time and at least one of rate, delay and loss")),
        ("time,rate,rate", line(1, "the column rate is there twice")),
        ("time,rate\n0s", line(2, "1 values for 2 columns")),
        ("time,rate\n\n# x\n0s,1mbit,", line(4, "3 values for 2 columns")),
        ("time,rate\n1s,1mbit", line(2, "the first time must be 0s, in each direction")),
        (
            "time,loss\n0s,1%\n2s,1%\n2s,1%",
            line(4, "the time must be later than that of the row before"),
        ),
        (
            "time,loss,direction\n0s,1%,up\n5s,1%,down",
            line(3, "the first time must be 0s, in each direction"),
        ),
        (
            "time,loss,direction\n0s,1%,left",
            line(2, "`left` is not a direction: write down (ingress), up (egress) or both"),
        ),
        ("time,loss\n25h,1%", line(2, "the time 90000s is more than 24h")),
        (
            "time,delay\n0s,61s",
            line(2, "`61s` is too long: a delay and its jitter are 0s to 60s each"),
        ),
        ("time,rate\n0s,999bit", line(2, "`999bit` is out of range: a rate is 1kbit to 1tbit")),
        (
            "time,loss\n0s,101%",
            line(2, "`101%` is not a percentage: write 0% to 100%, for instance 20% or 0.1%"),
        ),
    ] {
        let error = Timeline::parse(text, false).expect_err(text);
        assert_eq!(error.to_string(), expected, "{text:?}");
    }
    assert_eq!(Timeline::parse("time,loss\n0s,1%", true), Err(Wrong::NoTime));
    let long = "time,loss\n0s,".to_owned() + &"1".repeat(1000);
    let error = Timeline::parse(&long, false).expect_err("too long").to_string();
    assert_eq!(error, "line 2: a value has more than 64 characters");
    let long = Table::opportunities(&"x".repeat(1000), false).expect_err("too long").to_string();
    assert!(long.len() < 200, "{long}");
}

#[test]
fn the_number_of_times_is_limited() {
    let table = Table::opportunities(&lines(MAX_TIMES), true).expect("an hour");
    assert_eq!(table.steps.len(), MAX_TIMES + 1);
    let error = Table::opportunities(&lines(MAX_TIMES + 1), true).expect_err("too long");
    assert_eq!(error, Wrong::TooLong("3600001 different times".into()));
}

proptest! {
    #[test]
    fn bytes_are_those_of_exact_arithmetic(
        rows in prop::collection::vec((1..20_000_000_000u64, prop_oneof![Just(0u64), 1000..10_000_000_000u64]), 1..20),
        is_loop in any::<bool>(),
        times in prop::collection::vec(0..400_000_000_000u64, 1..20),
    ) {
        let mut text = String::from("time,rate\n");
        let mut at = 0;
        let mut changes = Vec::new();
        for (length, bits) in &rows {
            writeln!(text, "{at}ns,{bits}bit").expect("a string");
            changes.push((at, *bits));
            at += length;
        }
        writeln!(text, "{at}ns,8mbit").expect("a string");
        changes.push((at, 8_000_000));
        let (table, trace) = csv(&text, is_loop);
        // In bits times nanoseconds.
        let exact = |until: u64| -> u128 {
            let ends = changes.iter().skip(1).map(|(at, _)| *at).chain([u64::MAX]);
            let part = |((start, bits), end): (&(u64, u64), u64)| {
                u128::from(*bits) * u128::from(until.min(end).saturating_sub(*start))
            };
            changes.iter().zip(ends).map(part).sum()
        };
        for time in times {
            let bytes = if is_loop {
                exact(at) / BYTE * u128::from(time / at) + exact(time % at) / BYTE
            } else {
                exact(time) / BYTE
            };
            let passed = trace.passed(&*table, time);
            prop_assert!(u128::from(passed).abs_diff(bytes) <= 1, "{} {}", passed, bytes);
            let leaves = trace.reached(&*table, passed + 1);
            prop_assert!(leaves > time);
            if leaves != NEVER {
                prop_assert!(trace.passed(&*table, leaves) > passed);
                prop_assert!(trace.passed(&*table, leaves - 1) <= passed);
            }
        }
    }

    #[test]
    fn traces_of_any_text_are_taken_or_refused(
        text in "[0-9\n]{0,60}|(time|rate|loss|delay|direction|[0-9.]{1,9}(ms|s|%|mbit)|up|[,\n]){0,60}|.{0,60}",
        is_loop in any::<bool>(),
    ) {
        let _ = Table::opportunities(&text, is_loop);
        let _ = Timeline::parse(&text, is_loop);
        let _ = Timeline::parse(&format!("time,rate,loss\n0s,{text}"), is_loop);
    }
}

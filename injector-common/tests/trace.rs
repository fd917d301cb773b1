//! The trace model, by the code that runs in the kernel, compared with simulations: of mahimahi's
//! `LinkQueue` by its own steps, and of a link by small time steps.

use std::collections::VecDeque;

use injector_common::model::trace::{JUMPS, NEVER, RATE, Step, Steps, Trace};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

const MS: u64 = 1_000_000;
const OPPORTUNITY: u64 = 1500;

/// Deterministic cases, without a file of past failures.
fn cases(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(5), failure_persistence: None, ..Config::default() }
}

struct Table(Vec<Step>);

impl Steps for Table {
    fn step(&self, index: u32) -> Step {
        self.0.get(index as usize).copied().unwrap_or_default()
    }
}

/// A table with this number of other steps before it.
fn table(steps: &[(u64, u64)], first: u32) -> Table {
    let others = (0..first).map(|_| Step { at_ns: 7, total: 9, ..Step::default() });
    let steps = steps.iter().map(|&(at_ns, total)| Step { at_ns, total, ..Step::default() });
    Table(others.chain(steps).collect())
}

/// A trace of opportunities at these times in milliseconds.
fn opportunities(times: &[u64], is_loop: bool, first: u32) -> (Table, Trace) {
    let mut steps = vec![(0, 0)];
    for &time in times {
        let &(at_ns, total) = steps.last().expect("not empty");
        if time * MS > at_ns || steps.len() == 1 {
            steps.push((time * MS, total));
        }
        steps.last_mut().expect("not empty").1 += OPPORTUNITY;
    }
    let &(end_ns, end_total) = steps.last().expect("not empty");
    let (cycle_ns, cycle_total) = if is_loop { (end_ns, end_total) } else { (0, 0) };
    let count = steps.len() as u32;
    let flags = RATE | JUMPS;
    let trace =
        Trace { end_ns, end_total, cycle_ns, cycle_total, first, count, flags, ..Trace::default() };
    (table(&steps, first), trace)
}

/// mahimahi's `LinkQueue` (`src/frontend/link_queue.cc`) with an infinite queue: when each packet, given by
/// its time of arrival in ms and its length, departs; `None` if not until `end`.
fn mahimahi(schedule: &[u64], packets: &[(u64, u64)], end: u64) -> Vec<Option<u64>> {
    let mut departures = vec![None; packets.len()];
    let mut queue: VecDeque<(usize, u64)> = VecDeque::new();
    let mut arrivals = packets.iter().enumerate().peekable();
    let (mut next, mut base) = (0, 0);
    loop {
        let time = schedule[next] + base;
        if time > end {
            return departures;
        }
        // Packets that arrive at the time of an opportunity, or later, do not use it.
        while let Some((number, (_, length))) = arrivals.next_if(|(_, (at, _))| *at < time) {
            queue.push_back((number, *length));
        }
        next += 1;
        if next == schedule.len() {
            next = 0;
            base += schedule[schedule.len() - 1];
        }
        let mut left = OPPORTUNITY;
        while left > 0
            && let Some((number, length)) = queue.front_mut()
        {
            let sent = left.min(*length);
            left -= sent;
            *length -= sent;
            if *length == 0 {
                departures[*number] = Some(time);
                queue.pop_front();
            }
        }
    }
}

/// When each packet leaves by the model, in nanoseconds.
fn departures(trace: &Trace, table: &Table, packets: &[(u64, u64)]) -> Vec<u64> {
    let mut used = 0;
    let mut send = |&(at_ns, length): &(u64, u64)| {
        let sent = trace.transmit(table, used, at_ns, length as u32);
        used = sent.used;
        sent.ends_ns
    };
    packets.iter().map(&mut send).collect()
}

/// Opportunities, not decreasing, with bursts and outages.
fn schedule() -> impl Strategy<Value = Vec<u64>> {
    let gap = prop_oneof![3 => Just(0u64), 5 => 1..4u64, 1 => 20..200u64];
    prop::collection::vec(gap, 1..60).prop_map(|gaps| {
        let times = gaps.iter().scan(0, |time, gap| {
            *time += gap;
            Some(*time)
        });
        let mut times: Vec<u64> = times.collect();
        // It must last some time to loop.
        let last = times.last_mut().expect("not empty");
        *last = (*last).max(1);
        times
    })
}

/// Packets by time of arrival in ms and length.
fn packets(max_length: u64) -> impl Strategy<Value = Vec<(u64, u64)>> {
    let gap = prop_oneof![4 => Just(0u64), 3 => 1..5u64, 1 => 50..400u64];
    let length = prop_oneof![Just(1500u64), 1..=max_length];
    prop::collection::vec((gap, length), 1..80).prop_map(|packets| {
        let mut time = 0;
        let at = |(gap, length): (u64, u64)| {
            time += gap;
            (time, length)
        };
        packets.into_iter().map(at).collect()
    })
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn packets_depart_as_in_mahimahi(
        schedule in schedule(),
        packets in packets(1500),
        first in 0..3u32,
    ) {
        let (table, trace) = opportunities(&schedule, true, first);
        let in_ns: Vec<(u64, u64)> = packets.iter().map(|&(at, length)| (at * MS, length)).collect();
        let modelled = departures(&trace, &table, &in_ns);
        let end = *modelled.iter().max().expect("not empty") / MS;
        for (number, simulated) in mahimahi(&schedule, &packets, end).into_iter().enumerate() {
            prop_assert_eq!(simulated.map(|ms| ms * MS), Some(modelled[number]), "{}", number);
        }
    }

    #[test]
    fn opportunities_that_end_deliver_no_more(schedule in schedule(), packets in packets(1500)) {
        let (table, trace) = opportunities(&schedule, false, 0);
        let in_ns: Vec<(u64, u64)> = packets.iter().map(|&(at, length)| (at * MS, length)).collect();
        let end = *schedule.last().expect("not empty");
        let simulated = mahimahi(&schedule, &packets, end);
        let modelled = departures(&trace, &table, &in_ns);
        for (number, (at, simulated)) in modelled.iter().zip(simulated).enumerate() {
            // The simulation loops, so that the first opportunities of the next round may be at the end.
            let is_end = simulated == Some(end) && schedule[0] == 0;
            let expected = simulated.map_or(NEVER, |ms| ms * MS);
            prop_assert!(*at == expected || is_end && *at == NEVER, "{}: {} {}", number, at, expected);
        }
    }

    #[test]
    fn packets_leave_when_a_link_with_these_rates_has_sent_them(
        rates in prop::collection::vec((1..2_000_000u64, prop_oneof![Just(0u64), 1..5000u64]), 1..40),
        packets in packets(9000),
        first in 0..3u32,
        start in 0..1000u64,
    ) {
        // Time and bytes of each piece.
        let mut steps = vec![(0, 0)];
        for (length, bytes) in &rates {
            let &(at_ns, total) = steps.last().expect("not empty");
            steps.push((at_ns + length, total + bytes));
        }
        let &(end_ns, end_total) = steps.last().expect("not empty");
        prop_assume!(end_total > 0);
        let trace = Trace {
            start_ns: start, end_ns, end_total, cycle_ns: end_ns, cycle_total: end_total, first,
            count: steps.len() as u32, flags: RATE, ..Trace::default()
        };
        let table = table(&steps, first);
        let packets: Vec<(u64, u64)> = packets.iter().map(|&(at, length)| (start + at * 10_007, length)).collect();
        // The bytes that have passed at a time, exactly.
        let passed = |at_ns: u64| {
            let (cycles, at) = (at_ns / end_ns, at_ns % end_ns);
            let next = steps.partition_point(|(start, _)| *start <= at);
            let ((from, low), (to, high)) = (steps[next - 1], steps[next]);
            let part = (high - low) as f64 * (at - from) as f64 / (to - from) as f64;
            cycles as f64 * end_total as f64 + low as f64 + part
        };
        let mut used: f64 = 0.0;
        for (number, leaves) in departures(&trace, &table, &packets).into_iter().enumerate() {
            let (at, length) = packets[number];
            used = used.max(passed(at - start).floor()) + length as f64;
            let leaves = leaves - start;
            // At that time all bytes have passed, and a nanosecond before they had not.
            prop_assert!(passed(leaves) + 1e-3 >= used, "{} {}", passed(leaves), used);
            prop_assert!(passed(leaves - 1) < used + 1e-3, "{} {}", passed(leaves - 1), used);
        }
    }

    // Overflows would panic in a debug build, except where the model wraps.
    #[test]
    fn any_table_is_read_without_a_panic(
        steps in prop::collection::vec((any::<u64>(), any::<u64>()), 1..20),
        [end_ns, end_total, cycle_ns, cycle_total] in any::<[u64; 4]>(),
        now_ns in any::<u64>(),
        used in any::<u64>(),
        bytes in any::<u32>(),
        overhead in any::<i32>(),
        flags in 0..8u32,
    ) {
        let count = steps.len() as u32;
        let trace = Trace {
            end_ns, end_total, cycle_ns, cycle_total, overhead, count, flags, ..Trace::default()
        };
        let _ = trace.transmit(&table(&steps, 0), used, now_ns, bytes);
        let _ = trace.at(&table(&steps, 0), now_ns);
    }
}

#[test]
fn an_hour_of_steps_of_1_ms_is_searched_to_its_ends() {
    let times: Vec<u64> = (1..=3_600_000).collect();
    let (table, trace) = opportunities(&times, true, 0);
    for ms in [0, 1, 2, 1_800_000, 3_599_999, 3_600_000, 3_600_001, 7_200_000, 9_999_999_999] {
        assert_eq!(trace.passed(&table, ms * MS), ms * OPPORTUNITY, "{ms}");
        assert_eq!(trace.passed(&table, ms * MS + MS - 1), ms * OPPORTUNITY, "{ms}");
        if ms > 0 {
            assert_eq!(trace.reached(&table, ms * OPPORTUNITY), ms * MS, "{ms}");
            assert_eq!(trace.reached(&table, ms * OPPORTUNITY - 1499), ms * MS, "{ms}");
        }
    }
}

#[test]
fn packets_shorter_than_their_overhead_take_a_byte() {
    let (table, trace) = opportunities(&[5], true, 0);
    let trace = Trace { overhead: -14, ..trace };
    let sent = trace.transmit(&table, 0, 0, 14);
    assert_eq!((sent.used, sent.ends_ns, sent.waits), (1, 5 * MS, 0));
    let sent = trace.transmit(&table, sent.used, 0, 1513);
    assert_eq!((sent.used, sent.ends_ns, sent.waits), (1500, 5 * MS, 1));
    let sent = trace.transmit(&table, sent.used, 0, 15);
    assert_eq!((sent.used, sent.ends_ns, sent.waits), (1501, 10 * MS, 1500));
}

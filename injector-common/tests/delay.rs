//! The delay model, by the code that runs in the kernel, compared with the specified distributions.
//!
//! Streams are seeded, so a run is repeatable. Each bound is one that a correct implementation exceeds for one
//! seed in 10^6.

mod kolmogorov;

use std::{cell::RefCell, collections::HashSet, fmt, mem};

use injector_common::{
    hold::{self, Table},
    model::{
        State,
        chance::{Chance, Probability},
        decide,
        delay::{Delay, MAX_NS, MAX_TABLE, Memory, Tables, UNIFORM},
        loss::Loss,
        random::{draw, stream},
    },
    rule::{Corrupt, RULE_CORRUPTS, RULE_DUPLICATES, Rule},
};
use kolmogorov::assert_distributed;
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, Normal};

/// The two-sided quantile of the normal distribution that a correct implementation exceeds once in 10^6.
const Z: f64 = 4.8917;

const MS: u64 = 1_000_000;

/// The share of a uniform jitter's width that is one step of the 26 bits that it is made from.
const STEP: f64 = 1.0 / (1u64 << 26) as f64;

/// Deterministic cases, without a file of past failures.
fn cases(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(3), failure_persistence: None, ..Config::default() }
}

/// The tables of a rule set.
#[derive(Clone)]
struct Set(Vec<Box<Table>>);

static NONE: Set = Set(Vec::new());
static EMPTY: Table = Table { length: 0, values: [0; MAX_TABLE] };

impl Set {
    fn of(tables: &[&[i32]]) -> Self {
        let table = |values: &&[i32]| {
            let mut table = Box::new(Table { length: values.len() as u32, ..EMPTY });
            table.values[..values.len()].copy_from_slice(values);
            table
        };
        Self(tables.iter().map(table).collect())
    }
}

impl fmt::Debug for Set {
    /// Only the used values.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_list()
            .entries(self.0.iter().map(|table| &table.values[..table.length as usize]))
            .finish()
    }
}

impl Tables for Set {
    fn value(&self, table: u32, random: u32) -> i32 {
        self.0.get(table as usize).map_or(0, |table| table.value(random))
    }
}

/// The decisions on successive packets of a rule, as on the eBPF side.
fn run(delay: &Delay, seed: u64, tables: &Set) -> impl Iterator<Item = Option<u64>> {
    let stream = stream(seed, 0);
    let mut memory = Memory::default();
    (0..).map(move |index| {
        let (held, next) = hold::delay(delay, stream, index, 0, memory, tables);
        memory = next;
        held
    })
}

/// The delays of a number of packets of a rule that holds each.
fn delays(delay: &Delay, seed: u64, tables: &Set, packets: usize) -> Vec<f64> {
    run(delay, seed, tables).take(packets).map(|held| held.expect("is held") as f64).collect()
}

/// The packets of a rule that are sent without delay.
fn let_go(delay: &Delay, seed: u64) -> impl Iterator<Item = bool> {
    run(delay, seed, &NONE).map(|held| held.is_none())
}

/// Panics if the number of hits is in a tail with a probability below 5 in 10^7.
fn assert_binomial(hits: usize, trials: usize, probability: f64) {
    const TAIL: f64 = 5e-7;
    let law = Binomial::new(probability, trials as u64).expect("a probability");
    let as_few = law.cdf(hits as u64);
    let as_many = if hits == 0 { 1.0 } else { law.sf(hits as u64 - 1) };
    assert!(
        as_few > TAIL && as_many > TAIL,
        "{hits} of {trials} at {probability}: P(as few) {as_few:e}, P(as many) {as_many:e}"
    );
}

/// Any delay within the limits, and tables for it.
fn any_delay() -> impl Strategy<Value = (Delay, Set)> {
    let time = || prop_oneof![Just(0), Just(1), Just(MAX_NS), 0..=MAX_NS, 0..1_000_000u64];
    let chance = (0.0..=1.0f64, 0.0..=1.0f64).prop_map(|(p, c)| Chance::new(p, c));
    let value = prop_oneof![Just(-1 << 20), Just(1 << 20), -1 << 20..=1 << 20];
    let correlation = prop_oneof![Just(0), Just(1), Just(u32::MAX), any::<u32>()];
    let table = prop::collection::vec(value, 1..20);
    // The last index is that of a missing table.
    (time(), time(), UNIFORM..=2, correlation, chance, 0..4u32, table).prop_map(
        |(latency_ns, jitter_ns, distribution, correlation, reorder, gap, table)| {
            let delay = Delay {
                latency_ns,
                jitter_ns,
                distribution,
                correlation,
                reorder,
                gap,
                ..Delay::default()
            };
            (delay, Set::of(&[&table]))
        },
    )
}

mod without_jitter {
    use super::*;

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn packets_are_held_for_exactly_the_latency(
            latency_ns in 0..=MAX_NS,
            correlation in any::<u32>(),
            distribution in 0..3u32,
            seed in any::<u64>(),
        ) {
            let delay = Delay { latency_ns, correlation, distribution, ..Delay::default() };
            let set = Set::of(&[&[1 << 20], &[-1 << 20]]);
            prop_assert!(run(&delay, seed, &set).take(50).all(|held| held == Some(latency_ns)));
        }
    }

    #[test]
    fn and_latency_packets_are_not_held_back() {
        let none = Delay::default();
        assert!(run(&none, 1, &NONE).take(100).all(|held| held == Some(0)));
    }
}

mod ordered_by_flow {
    use injector_common::{
        hold::{FLOW_SLOTS, flow_slot, in_order},
        packet::{Packet, protocol},
    };

    use super::*;

    /// A packet that a rule holds. Times are in nanoseconds.
    struct Held {
        sent: u64,
        drawn: u64,
        released: u64,
    }

    fn packet(flow: u16) -> Packet {
        Packet { protocol: protocol::UDP, source_port: flow, has_ports: true, ..Packet::EMPTY }
    }

    /// The packets of flows that send in turn, one packet every `gap` nanoseconds.
    fn held(delay: &Delay, seed: u64, flows: u16, gap: u64, packets: usize) -> Vec<Held> {
        let mut slots = vec![0; FLOW_SLOTS as usize];
        let drawn = delays(delay, seed, &NONE, packets).into_iter().map(|delay| delay as u64);
        let hold = |((number, drawn), flow): ((u64, u64), u16)| {
            let sent = number * gap;
            let slot: &mut u64 = &mut slots[flow_slot(&packet(flow), seed) as usize];
            *slot = in_order(sent + drawn, *slot);
            Held { sent, drawn, released: *slot }
        };
        (0..).zip(drawn).zip((0..flows).cycle()).map(hold).collect()
    }

    fn uniform(latency_ns: u64, jitter_ns: u64) -> Delay {
        Delay { latency_ns, jitter_ns, ordered: 1, ..Delay::default() }
    }

    #[test]
    fn packets_leave_with_the_latest_of_their_flow_so_far() {
        const FLOWS: usize = 3;
        let held = held(&uniform(50 * MS, 50 * MS), 1, FLOWS as u16, MS, 10_000);
        let mut overtaken = 0;
        for flow in 0..FLOWS {
            let mut latest = 0;
            for packet in held.iter().skip(flow).step_by(FLOWS) {
                let due = packet.sent + packet.drawn;
                overtaken += usize::from(due < latest);
                latest = latest.max(due);
                assert_eq!(packet.released, latest);
            }
        }
        assert!(overtaken > 1000, "{overtaken}");
        let is_later = |pair: &[Held]| pair[1].released < pair[0].released;
        assert!(held.windows(2).any(is_later), "flows do not wait for each other");
    }

    /// A delay is the largest of the draw of the packet and those before it, less the time since. Draws
    /// are independent, so the chance that it is at most x is the product of F(x + k gap) for all k.
    #[test]
    fn delays_are_distributed_as_the_running_maximum_of_draws() {
        for (seed, (latency, jitter, gap)) in
            [(50 * MS, 10 * MS, MS), (50 * MS, 10 * MS, 7 * MS), (5 * MS, 5 * MS, MS / 2)]
                .into_iter()
                .enumerate()
        {
            let delay = uniform(latency, jitter);
            let window = (2 * jitter).div_ceil(gap) + 1;
            let packets = 20_000 * window as usize;
            let held = held(&delay, seed as u64, 1, gap, packets);
            // Delays that share no draw are independent.
            let apart = held.iter().skip(window as usize - 1).step_by(window as usize);
            let samples: Vec<f64> = apart.map(|held| (held.released - held.sent) as f64).collect();
            let draw = |value: f64| {
                let low = (latency - jitter) as f64;
                ((value.floor() - low + 1.0) / (2.0 * jitter as f64 + 1.0)).clamp(0.0, 1.0)
            };
            let cdf = |value: f64| -> f64 {
                (0..window).map(|before| draw(value + (before * gap) as f64)).product()
            };
            assert_distributed(samples, cdf, window as f64 * STEP, &format!("{delay:?} {gap}"));
        }
    }

    #[test]
    fn flows_differ_by_any_field_and_by_queue() {
        const COUNT: u32 = 10_000;
        // Of so many slots drawn at random, about 9,270 differ, with a deviation of 25.
        const LEAST: usize = 9_100;
        let fields: [fn(&mut Packet, u32); 6] = [
            |packet, n| packet.source_port = n as u16,
            |packet, n| packet.destination_port = n as u16,
            |packet, n| packet.source[0] = n,
            |packet, n| packet.source[3] = n,
            |packet, n| packet.destination[1] = n,
            |packet, n| packet.destination[2] = n.swap_bytes(),
        ];
        for (field, set) in fields.into_iter().enumerate() {
            let slot = |n| {
                let mut packet = packet(1);
                set(&mut packet, n);
                flow_slot(&packet, 0)
            };
            let slots: HashSet<u32> = (0..COUNT).map(slot).collect();
            assert!(slots.len() > LEAST, "{field}: {}", slots.len());
        }
        let slots: HashSet<u32> =
            (0..COUNT).map(|queue| flow_slot(&packet(1), queue.into())).collect();
        assert!(slots.len() > LEAST, "{}", slots.len());
        let tcp = Packet { protocol: protocol::TCP, ..packet(1) };
        assert_ne!(flow_slot(&tcp, 0), flow_slot(&packet(1), 0));
        // What is not of the flow does not count.
        let other = Packet { tcp_flags: 1, payload: 60, end: 100, ..packet(1) };
        assert_eq!(flow_slot(&other, 7), flow_slot(&packet(1), 7));
    }
}

mod uniform_jitter {
    use super::*;

    fn uniform(latency_ns: u64, jitter_ns: u64) -> Delay {
        Delay { latency_ns, jitter_ns, distribution: UNIFORM, ..Delay::default() }
    }

    /// The chance of a delay of up to `value`: each nanosecond from latency - jitter to latency + jitter is
    /// as likely as the next, and what would be negative is 0.
    fn cdf(delay: &Delay, value: f64) -> f64 {
        if value < 0.0 {
            return 0.0;
        }
        let (latency, jitter) = (delay.latency_ns as f64, delay.jitter_ns as f64);
        ((value.floor() - (latency - jitter) + 1.0) / (2.0 * jitter + 1.0)).clamp(0.0, 1.0)
    }

    #[test]
    fn is_uniform_from_latency_less_jitter_to_latency_and_jitter() {
        // A few nanoseconds, to check each value; usual values; the maximum.
        let settings = [(10, 3), (10, 10), (100 * MS, 10 * MS), (5 * MS, 5 * MS), (MAX_NS, MAX_NS)];
        for (seed, (latency, jitter)) in settings.into_iter().enumerate() {
            let delay = uniform(latency, jitter);
            let samples = delays(&delay, seed as u64, &NONE, 50_000);
            assert_distributed(samples, |value| cdf(&delay, value), STEP, &format!("{delay:?}"));
        }
    }

    #[test]
    fn beyond_the_latency_makes_the_negative_delays_0() {
        for (seed, (latency, jitter)) in
            [(0, 2), (0, 10 * MS), (MS, 3 * MS), (1, MAX_NS), (MS, MAX_NS)].into_iter().enumerate()
        {
            let delay = uniform(latency, jitter);
            let samples = delays(&delay, seed as u64, &NONE, 50_000);
            let zero = samples.iter().filter(|&&delay| delay == 0.0).count();
            assert_binomial(zero, samples.len(), cdf(&delay, 0.0));
            assert_distributed(samples, |value| cdf(&delay, value), STEP, &format!("{delay:?}"));
        }
    }

    proptest! {
        #![proptest_config(cases(512))]

        // Both ends are included, to within the step of the random number.
        #[test]
        fn has_the_ends_asked_for_and_grows_with_the_random_number(
            jitter in prop_oneof![1..1_000u64, 1..=MAX_NS],
            above in 0..=MAX_NS,
            one in any::<u32>(),
            other in any::<u32>(),
        ) {
            let latency = (jitter + above).min(MAX_NS);
            let delay = uniform(latency, jitter);
            let at = |random: u32| {
                let random = u64::from(random) << 32;
                delay.step(Memory::default(), random, &NONE).0.expect("is held")
            };
            let step = (2 * jitter + 1) >> 26;
            prop_assert_eq!(at(0), latency - jitter);
            prop_assert!(at(u32::MAX) <= latency + jitter);
            prop_assert!(at(u32::MAX) >= latency + jitter - step);
            prop_assert!(at(one.min(other)) <= at(one.max(other)));
        }
    }
}

mod a_table {
    use super::*;

    /// The normal distribution as netem's file of that name has it: the quantiles of so many equal shares.
    fn normal() -> Vec<i32> {
        let quantile = |number: usize| {
            let share = (number as f64 + 0.5) / MAX_TABLE as f64;
            (Normal::standard().inverse_cdf(share) * 8192.0).round() as i32
        };
        (0..MAX_TABLE).map(quantile).collect()
    }

    fn first(latency_ns: u64, jitter_ns: u64) -> Delay {
        Delay { latency_ns, jitter_ns, distribution: 1, ..Delay::default() }
    }

    #[test]
    fn of_the_normal_distribution_gives_normal_delays() {
        // Its steps are half of 1/16384 from the smooth function, and rounding its values to 1/8192 moves
        // them by no more than half of that times the density of at most 0.4: less than 1/16384 together,
        // with enough to spare for a nanosecond in a millisecond.
        let inexact = 1.0 / MAX_TABLE as f64;
        let set = Set::of(&[&normal()]);
        for (seed, (latency, jitter)) in
            [(100 * MS, 10 * MS), (10 * MS, 10 * MS), (0, MS), (MAX_NS, MAX_NS)]
                .into_iter()
                .enumerate()
        {
            let law = Normal::new(latency as f64, jitter as f64).expect("a deviation");
            let delay = first(latency, jitter);
            let samples = delays(&delay, seed as u64, &set, 50_000);
            let cdf = |value| if value < 0.0 { 0.0 } else { law.cdf(value) };
            assert_distributed(samples, cdf, inexact, &format!("{delay:?}"));
        }
    }

    #[test]
    fn of_any_length_gives_each_of_its_values_as_often() {
        // In no order, with one value twice, and no length a power of 2.
        let tables: [&[i32]; 4] = [
            &[8192, -8192, 4096, 0, 8192, 12_288, -4096],
            &[0, 8192, 4096],
            &[1, 0, 2, 4, 3],
            &[5],
        ];
        let (latency, jitter) = (10 * MS, 8192);
        for (seed, values) in tables.into_iter().enumerate() {
            let samples = delays(&first(latency, jitter), seed as u64, &Set::of(&[values]), 50_000);
            let cdf = |delay: f64| {
                let up_to = |&&value: &&i32| latency as f64 + f64::from(value) <= delay;
                values.iter().filter(up_to).count() as f64 / values.len() as f64
            };
            // Shares of 2^32 numbers are equal to within one of them.
            let inexact = values.len() as f64 / 4_294_967_296.0;
            assert_distributed(samples, cdf, inexact, &format!("{values:?}"));
        }
    }

    #[test]
    fn beyond_the_latency_makes_the_negative_delays_0() {
        let delay = first(100, 100);
        let set = Set::of(&[&[-8192 * 2, -8192, -4096, 8192]]);
        let samples = delays(&delay, 1, &set, 50_000);
        let cdf = |value| match value {
            ..0.0 => 0.0,
            0.0..50.0 => 0.5,
            50.0..200.0 => 0.75,
            _ => 1.0,
        };
        assert_distributed(samples, cdf, 1e-9, "clamped");
    }

    #[test]
    fn is_found_by_its_number() {
        let set = Set::of(&[&[8192], &[-8192], &[4096]]);
        for (distribution, expected) in [(1, 1_100), (2, 900), (3, 1_050), (4, 1_000)] {
            let delay = Delay { distribution, ..first(1_000, 100) };
            assert!(run(&delay, 1, &set).take(100).all(|held| held == Some(expected)));
        }
    }

    proptest! {
        #![proptest_config(cases(256))]

        // The random numbers are shared out evenly and in order: value i of n has those from i/n of 2^32 up.
        #[test]
        fn of_any_length_is_read_to_both_ends_and_no_further(
            length in prop_oneof![1..20u64, 1..=MAX_TABLE as u64, Just(MAX_TABLE as u64)],
            place in 0.0..1.0f64,
        ) {
            let values: Vec<i32> = (1..=length as i32).collect();
            let table = &Set::of(&[&values]).0[0];
            let number = (place * length as f64) as u64;
            let start = (number << 32).div_ceil(length);
            let last = ((number + 1) << 32).div_ceil(length) - 1;
            prop_assert_eq!(table.value(start as u32), values[number as usize]);
            prop_assert_eq!(table.value(last as u32), values[number as usize]);
            prop_assert_eq!(table.value(0), 1);
            prop_assert_eq!(u64::from(table.value(u32::MAX).cast_unsigned()), length);
        }

        // To less than a nanosecond, in units of 1/8192 of the jitter.
        #[test]
        fn is_scaled_by_the_jitter(
            latency in 0..=MAX_NS,
            jitter in 1..=MAX_NS,
            value in -1 << 20..=1i32 << 20,
        ) {
            let set = Set::of(&[&[value]]);
            let delay = first(latency, jitter);
            let held = delay.step(Memory::default(), 0, &set).0.expect("is held");
            let exact = i128::from(latency) * 8192 + i128::from(value) * i128::from(jitter);
            let off = i128::from(held) * 8192 - exact.max(0);
            prop_assert!(off.abs() < 8192, "{} of {}", held, exact / 8192);
        }
    }
}

mod the_limits {
    use super::*;

    const RANDOMS: [u64; 6] =
        [0, 1, u32::MAX as u64, 1 << 32, u64::MAX - u32::MAX as u64, u64::MAX];

    /// The least and the most that `delay` gives for extreme random numbers.
    fn extremes(delay: &Delay, set: &Set) -> (u64, u64) {
        let held =
            RANDOMS.map(|random| delay.step(Memory(u64::MAX), random, set).0.expect("is held"));
        (*held.iter().min().expect("some"), *held.iter().max().expect("some"))
    }

    fn largest(distribution: u32) -> Delay {
        Delay { latency_ns: MAX_NS, jitter_ns: MAX_NS, distribution, ..Delay::default() }
    }

    #[test]
    fn of_latency_and_uniform_jitter_do_not_overflow() {
        let (least, most) = extremes(&largest(UNIFORM), &NONE);
        assert_eq!(least, 0);
        assert!((2 * MAX_NS - (MAX_NS >> 25)..=2 * MAX_NS).contains(&most), "{most}");
    }

    #[test]
    fn of_a_table_do_not_overflow() {
        // 2^20 is 128 times the jitter.
        let set = Set::of(&[&[-1 << 20, 1 << 20]]);
        assert_eq!(extremes(&largest(1), &set), (0, 129 * MAX_NS));
    }

    #[test]
    fn of_correlation_do_not_overflow() {
        for correlation in [1, u32::MAX - 1, u32::MAX] {
            let delay = Delay { correlation, ..largest(UNIFORM) };
            let (_, most) = extremes(&delay, &NONE);
            assert!((2 * MAX_NS - (MAX_NS >> 24)..=2 * MAX_NS).contains(&most), "{most}");
        }
    }

    #[test]
    fn of_the_count_since_one_was_let_go_are_kept_to() {
        // The count stays at its most, and does not run into the bit above it.
        let full = Memory(0x7fff_ffff);
        let never = Delay { gap: 1 << 31, reorder: Chance::NEVER, ..Delay::default() };
        let (held, memory) = never.step(full, 0, &NONE);
        assert_eq!((held, memory.0 as u32), (Some(0), 0x7fff_ffff));
        let always = Delay { reorder: Chance::new(1.0, 0.0), ..never };
        assert_eq!(always.step(full, 0, &NONE).0, None);
        assert_eq!(always.step(Memory(0x7fff_fffe), 0, &NONE).0, Some(0));
    }

    proptest! {
        #![proptest_config(cases(1024))]

        #[test]
        fn are_kept_whatever_is_remembered(
            (delay, set) in any_delay(),
            memory in any::<u64>(),
            random in any::<u64>(),
        ) {
            // Overflows would panic.
            if let (Some(held), _) = delay.step(Memory(memory), random, &set) {
                let most = if delay.distribution == UNIFORM { 1 } else { 128 };
                prop_assert!(held <= delay.latency_ns + most * delay.jitter_ns);
            }
        }
    }
}

mod correlated_jitter {
    use super::*;

    const PACKETS: usize = 100_000;
    const RHOS: [f64; 4] = [0.1, 0.5, 0.9, 0.99];

    /// The number of packets until the first has no effect: 0.99^2000 is 2 in 10^9.
    const START: usize = 2_000;

    fn correlated(rho: f64) -> Delay {
        Delay {
            latency_ns: MAX_NS,
            jitter_ns: MAX_NS,
            correlation: Delay::correlation_from(rho),
            ..Delay::default()
        }
    }

    /// The drawn numbers of the packets that are held, from -1/2 to 1/2, as far as the delays tell.
    fn numbers(delay: &Delay, seed: u64) -> Vec<f64> {
        let held = run(delay, seed, &NONE).flatten().skip(START).take(PACKETS);
        held.map(|held| (held as f64 / MAX_NS as f64 - 1.0) / 2.0).collect()
    }

    /// The uniform u from which each number but the first came: x' = (1 - rho) u + rho x.
    fn innovations(numbers: &[f64], rho: f64) -> Vec<f64> {
        let innovation = |pair: &[f64]| (pair[1] - rho * pair[0]) / (1.0 - rho);
        numbers.windows(2).map(innovation).collect()
    }

    fn assert_uniform(innovations: Vec<f64>, rho: f64) {
        // Each of two numbers is off by less than two steps.
        let inexact = 4.0 * STEP / (1.0 - rho);
        let cdf = |value: f64| (value + 0.5).clamp(0.0, 1.0);
        assert_distributed(innovations, cdf, inexact, &format!("correlation {rho}"));
    }

    #[test]
    fn averages_a_new_number_with_the_last_one() {
        for (seed, rho) in RHOS.into_iter().enumerate() {
            assert_uniform(innovations(&numbers(&correlated(rho), seed as u64), rho), rho);
        }
    }

    // Packets sent without delay are left out.
    #[test]
    fn remembers_the_last_number_while_packets_are_let_go() {
        for (seed, rho) in RHOS.into_iter().enumerate() {
            let delay = Delay { gap: 1, reorder: Chance::new(0.5, 0.5), ..correlated(rho) };
            assert_uniform(innovations(&numbers(&delay, seed as u64), rho), rho);
        }
    }

    #[test]
    fn has_the_autocorrelation_asked_for() {
        for (seed, rho) in RHOS.into_iter().enumerate() {
            let numbers = numbers(&correlated(rho), seed as u64);
            let product: f64 = numbers.windows(2).map(|pair| pair[0] * pair[1]).sum();
            let square: f64 = numbers.iter().map(|x| x * x).sum();
            let found = product / square;
            // Of a process x' = rho x + e this has variance (1 - rho^2) / n in the limit, whatever the law
            // of e (Bartlett), and a bias of order 1/n.
            let deviation = ((1.0 - rho * rho) / PACKETS as f64).sqrt();
            let bias = 4.0 / PACKETS as f64;
            assert!(
                (found - rho).abs() <= Z * deviation + bias,
                "correlation {rho}: found {found}, standard deviation {deviation}"
            );
        }
    }

    // The known flaw of averaging: the delays draw together. With Var(x) = (1-rho)^2 Var(u) + rho^2 Var(x),
    // Var(x) = Var(u) (1-rho) / (1+rho).
    #[test]
    fn has_the_smaller_variance_that_averaging_leaves() {
        for (seed, rho) in RHOS.into_iter().enumerate() {
            let numbers = numbers(&correlated(rho), 10 + seed as u64);
            let found = numbers.iter().map(|x| x * x).sum::<f64>() / PACKETS as f64;
            let expected = (1.0 - rho) / (1.0 + rho) / 12.0;
            // Bartlett's formula: n Var = (excess kurtosis of u + 2 sum over all k of rho^2k) Var(x)^2; a
            // uniform u has an excess kurtosis of -1.2.
            let squared = rho * rho;
            let factor = 2.0 * (1.0 + squared) / (1.0 - squared) - 1.2;
            let deviation = expected * (factor / PACKETS as f64).sqrt();
            assert!(
                (found - expected).abs() <= Z * deviation,
                "correlation {rho}: variance {found}, expected {expected}, standard deviation {deviation}"
            );
        }
    }

    #[test]
    fn of_100_percent_never_changes() {
        let delay = Delay { correlation: Delay::correlation_from(1.0), ..correlated(0.0) };
        let drawn = 0x4000_0000;
        let mut memory = Memory(drawn << 32);
        for index in 0..1_000 {
            let (held, next) = hold::delay(&delay, stream(1, 0), index, 0, memory, &NONE);
            assert_eq!(held, Some(MAX_NS / 2));
            memory = next;
        }
    }

    // netem starts from a random number. We start from what the memory holds; if that is 0, the first delays
    // are all but the least.
    #[test]
    fn starts_from_the_number_that_is_remembered() {
        let rho = 0.9;
        let delay = correlated(rho);
        for remembered in [0u32, 1 << 30, 1 << 31, u32::MAX] {
            let memory = Memory(u64::from(remembered) << 32);
            let number = |seed| {
                let (held, _) = hold::delay(&delay, stream(seed, 0), 0, 0, memory, &NONE);
                (held.expect("is held") as f64 / MAX_NS as f64 - 1.0) / 2.0
            };
            let before = f64::from(remembered) / 4_294_967_296.0 - 0.5;
            let innovation = |seed| (number(seed) - rho * before) / (1.0 - rho);
            assert_uniform((0..10_000).map(innovation).collect(), rho);
        }
    }
}

mod reordering {
    use super::*;

    const PACKETS: usize = 100_000;

    fn reorder(gap: u32, probability: f64, correlation: f64) -> Delay {
        let reorder = Chance::new(probability, correlation);
        Delay { latency_ns: MS, jitter_ns: MS / 2, gap, reorder, ..Delay::default() }
    }

    /// The distances between packets sent without delay, the first from before the first packet.
    fn distances(delay: &Delay, seed: u64, count: usize) -> Vec<u64> {
        let mut last = 0u64;
        let numbers =
            (1u64..).zip(let_go(delay, seed)).filter_map(|(number, gone)| gone.then_some(number));
        let distance = |number| number - mem::replace(&mut last, number);
        numbers.map(distance).take(count).collect()
    }

    /// The chance that a first success at `probability` takes up to `trials`.
    fn geometric(probability: f64, trials: f64) -> f64 {
        1.0 - (1.0 - probability).powf(trials.floor().max(0.0))
    }

    #[test]
    fn with_a_gap_of_0_lets_none_go() {
        assert!(!let_go(&reorder(0, 1.0, 0.0), 1).take(PACKETS).any(|gone| gone));
    }

    #[test]
    fn of_0_percent_lets_none_go() {
        for gap in [1, 2, 5] {
            assert!(!let_go(&reorder(gap, 0.0, 0.5), 1).take(PACKETS).any(|gone| gone));
        }
    }

    proptest! {
        #![proptest_config(cases(64))]

        #[test]
        fn with_a_gap_of_1_lets_a_binomial_share_go(
            p in prop_oneof![0.0..=1.0f64, 0.0..0.01f64, 0.99..=1.0f64],
            seed in any::<u64>(),
        ) {
            let gone = let_go(&reorder(1, p, 0.0), seed).take(20_000).filter(|&gone| gone).count();
            assert_binomial(gone, 20_000, Probability::from_fraction(p).fraction());
        }

        #[test]
        fn of_100_percent_lets_exactly_every_nth_go(
            gap in prop_oneof![1..10u32, 10..1_000u32],
            correlation in 0.0..=1.0f64,
            seed in any::<u64>(),
        ) {
            for (number, gone) in (1..4_000u32).zip(let_go(&reorder(gap, 1.0, correlation), seed)) {
                prop_assert_eq!(gone, number.is_multiple_of(gap), "packet {}", number);
            }
        }
    }

    #[test]
    fn tries_again_with_each_packet_after_the_gap() {
        for (seed, (gap, p)) in
            [(1, 0.05), (1, 0.5), (2, 0.25), (5, 0.25), (5, 0.9), (20, 0.1)].into_iter().enumerate()
        {
            let found = distances(&reorder(gap, p, 0.0), seed as u64, 10_000);
            assert!(found.iter().all(|&distance| distance >= u64::from(gap)), "gap {gap}");
            let tries = found.iter().map(|distance| (distance - u64::from(gap) + 1) as f64);
            let cdf = |tries| geometric(p, tries);
            assert_distributed(tries.collect(), cdf, 1e-8, &format!("gap {gap}, probability {p}"));
        }
    }

    // The bound is that of loss with correlation: the variance of the mean is that of independent packets
    // times (1+C)/(1-C), and the start after one that was not let go lacks at most P/(1-C).
    #[test]
    fn with_correlation_keeps_the_rate() {
        for p in [0.05, 0.5, 0.9] {
            for c in [0.1, 0.5, 0.9] {
                let gone = let_go(&reorder(1, p, c), 2).take(PACKETS).filter(|&gone| gone).count();
                let n = PACKETS as f64;
                let deviation = (n * p * (1.0 - p) * (1.0 + c) / (1.0 - c)).sqrt();
                let difference = gone as f64 - n * p;
                assert!(
                    difference.abs() <= Z * deviation + p / (1.0 - c),
                    "P {p}, C {c}: {difference} too many, standard deviation {deviation}"
                );
            }
        }
    }

    // Only packets that may be let go count: the first after the gap follows one that was, however many were
    // held in between; each further one follows one that was not.
    #[test]
    fn with_correlation_depends_on_the_last_packet_that_might_be_let_go() {
        const COUNT: usize = 30_000;
        for (gap, p, c) in [(1, 0.3, 0.5), (2, 0.5, 0.2), (5, 0.3, 0.5)] {
            let delay = reorder(gap, p, c);
            // The first distance follows a miss.
            let found = &distances(&delay, 3, COUNT + 1)[1..];
            let further = found.iter().filter(|&&distance| distance > u64::from(gap));
            let further: Vec<f64> =
                further.map(|distance| (distance - u64::from(gap)) as f64).collect();
            assert_binomial(COUNT - further.len(), COUNT, p + c * (1.0 - p));
            let cdf = |tries| geometric(p * (1.0 - c), tries);
            assert_distributed(further, cdf, 1e-8, &format!("gap {gap}, P {p}, C {c}"));
        }
    }

    // The jitter of held packets is unaffected.
    #[test]
    fn does_not_depend_on_the_jitter() {
        let delay = reorder(1, 0.5, 0.0);
        let held = run(&delay, 4, &NONE).flatten().take(50_000);
        let cdf = |held: f64| ((held.floor() - 5e5 + 1.0) / 1_000_001.0).clamp(0.0, 1.0);
        assert_distributed(
            held.map(|held| held as f64).collect(),
            cdf,
            STEP,
            "those that are held",
        );
    }
}

mod a_delay {
    use super::*;

    fn fair(gap: u32) -> Delay {
        let reorder = Chance::new(0.5, 0.0);
        Delay { latency_ns: 1 << 30, jitter_ns: 1 << 30, gap, reorder, ..Delay::default() }
    }

    /// Each packet's delay, or with a gap whether it is sent without delay, as a coin.
    fn coins(gap: u32, stream: u64, copy: u64, packets: u64) -> Vec<bool> {
        let coin = |index| {
            let memory = Memory::default();
            let (held, _) = hold::delay(&fair(gap), stream, index, copy, memory, &NONE);
            if gap == 0 { held.expect("is held") >= 1 << 30 } else { held.is_none() }
        };
        (0..packets).map(coin).collect()
    }

    // Decisions on a packet, on its copy and on neighbouring packets use independent random bits.
    #[test]
    fn is_independent_of_every_other_decision() {
        const PACKETS: usize = 50_000;
        const LATER: usize = 3;
        let total = (PACKETS + LATER) as u64;
        let half = Chance::new(0.5, 0.0);
        let stream = stream(5, 5);
        let rule = Rule {
            loss: Loss::random(half),
            corrupt: Corrupt { chance: half, ..Corrupt::default() },
            duplicate: half,
            stream,
            flags: RULE_CORRUPTS | RULE_DUPLICATES,
            ..Rule::default()
        };
        let decisions: Vec<_> =
            (0..total).map(|index| decide(&rule, State(index << 16)).0).collect();
        let drawn =
            |number| (0..total).map(move |index| draw(stream, index * 3 + number) >> 63 != 0);
        let signals: Vec<(&str, Vec<bool>)> = vec![
            ("delay", coins(0, stream, 0, total)),
            ("delay of the copy", coins(0, stream, 1, total)),
            ("reordering", coins(1, stream, 0, total)),
            ("reordering of the copy", coins(1, stream, 1, total)),
            ("loss", decisions.iter().map(|decision| decision.lost).collect()),
            ("duplication", decisions.iter().map(|decision| decision.duplicate).collect()),
            ("corruption", decisions.iter().map(|decision| decision.corrupt).collect()),
            ("loss in a state", drawn(0).collect()),
            ("position", drawn(2).collect()),
        ];
        // Delays of the first four with all signals, earlier and later.
        let tests = (4 * signals.len() * 2 * (LATER + 1)) as f64;
        let quantile = Normal::standard().inverse_cdf(1.0 - 5e-7 / tests);
        for (a, (one, left)) in signals.iter().enumerate() {
            for (b, (other, right)) in signals.iter().enumerate() {
                for later in 0..=LATER {
                    if (a == b && later == 0) || (a >= 4 && b >= 4) {
                        continue;
                    }
                    let pairs = left[..PACKETS].iter().zip(&right[later..]);
                    let agreeing = pairs.filter(|(left, right)| left == right).count() as f64;
                    let n = PACKETS as f64;
                    let deviation = (agreeing - n / 2.0) / (n / 4.0).sqrt();
                    assert!(
                        deviation.abs() <= quantile,
                        "{one} and {other} {later} packets later: {deviation} standard deviations"
                    );
                }
            }
        }
    }

    /// Records the requested random numbers.
    #[derive(Default)]
    struct Asked(RefCell<Vec<u32>>);

    impl Tables for Asked {
        fn value(&self, _: u32, random: u32) -> i32 {
            self.0.borrow_mut().push(random);
            0
        }
    }

    // Nor are they those of packets anywhere else in the run. Of 20,000 numbers of 32 bits and 30,000 others,
    // 0.14 pairs are equal by chance, and 6 or more in one of 10^8 cases.
    #[test]
    fn draws_no_number_that_another_decision_draws() {
        const PACKETS: u64 = 10_000;
        let delay = Delay { jitter_ns: 1, distribution: 1, ..Delay::default() };
        for seed in 0..4 {
            let stream = stream(seed, 0);
            let asked = Asked::default();
            for index in 0..PACKETS {
                for copy in 0..=1 {
                    let _ = hold::delay(&delay, stream, index, copy, Memory::default(), &asked);
                }
            }
            let others: HashSet<u32> =
                (0..3 * PACKETS).map(|number| (draw(stream, number) >> 32) as u32).collect();
            let asked = asked.0.into_inner();
            assert_eq!(asked.len() as u64, 2 * PACKETS);
            let equal = asked.iter().filter(|number| others.contains(number)).count();
            assert!(equal < 6, "{equal} of them, seed {seed}");
        }
    }

    #[test]
    fn differs_for_a_copy() {
        for seed in 0..64 {
            let stream = stream(seed, 0);
            let original = coins(0, stream, 0, 64);
            let copy = coins(0, stream, 1, 64);
            assert_ne!(original, copy, "seed {seed}");
            // Nor is it the next packet's.
            assert_ne!(original[1..], copy[..63], "seed {seed}");
        }
    }

    #[test]
    fn differs_from_seed_to_seed_and_from_rule_to_rule() {
        let streams = || (0..8).flat_map(|seed| (0..8).map(move |rule| stream(seed, rule)));
        for (a, one) in streams().enumerate() {
            for other in streams().skip(a + 1) {
                assert_ne!(coins(0, one, 0, 64), coins(0, other, 0, 64));
            }
        }
    }

    proptest! {
        #![proptest_config(cases(512))]

        // A pure function, also late in a long run.
        #[test]
        fn is_the_same_for_the_same_packet(
            (delay, set) in any_delay(),
            stream in any::<u64>(),
            index in prop_oneof![0..1_000u64, any::<u64>()],
            copy in 0..=1u64,
            memory in any::<u64>(),
        ) {
            let once = hold::delay(&delay, stream, index, copy, Memory(memory), &set);
            let again = hold::delay(&delay.clone(), stream, index, copy, Memory(memory), &set.clone());
            prop_assert_eq!(once, again);
        }

        // The eBPF side does not store the state of such a rule.
        #[test]
        fn without_memory_does_not_depend_on_what_is_remembered(
            (delay, set) in any_delay(),
            stream in any::<u64>(),
            index in any::<u64>(),
            memory in any::<u64>(),
        ) {
            let of = |delay: &Delay, memory| hold::delay(delay, stream, index, 0, Memory(memory), &set).0;
            for delay in [
                Delay { gap: 0, correlation: 0, ..delay },
                Delay { gap: 0, jitter_ns: 0, ..delay },
            ] {
                prop_assert!(!delay.has_memory());
                prop_assert_eq!(of(&delay, memory), of(&delay, 0));
            }
        }

        // Rules without randomness draw no number.
        #[test]
        fn that_is_not_random_does_not_depend_on_the_random_number(
            (delay, set) in any_delay(),
            memory in any::<u64>(),
            random in any::<u64>(),
        ) {
            let delay = Delay { gap: 0, jitter_ns: 0, ..delay };
            prop_assert!(!delay.is_random());
            let of = |random| delay.step(Memory(memory), random, &set).0;
            prop_assert_eq!(of(random), of(0));
        }

        // State outside of these bits would be lost between packets.
        #[test]
        fn that_depends_on_the_last_packet_or_on_chance_says_so(
            (delay, set) in any_delay(),
            memory in any::<u64>(),
            random in any::<u64>(),
        ) {
            let of = |memory, random| delay.step(Memory(memory), random, &set).0;
            if of(memory, random) != of(0, random) {
                prop_assert!(delay.has_memory());
            }
            if of(memory, random) != of(memory, 0) {
                prop_assert!(delay.is_random());
            }
        }
    }
}

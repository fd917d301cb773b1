//! The random stream, and decisions that follow from it.
//!
//! All seeds are fixed; each bound is one that a correct implementation exceeds for one seed in 10^6.

use std::collections::HashSet;

use injector_common::{
    model::{
        Decision, State,
        chance::{Chance, Probability},
        decide,
        loss::Loss,
        random::{draw, stream},
    },
    rule::{Corrupt, RULE_CORRUPTS, RULE_DUPLICATES, Rule},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};
use statrs::distribution::{ChiSquared, ContinuousCDF, Normal};

/// Deterministic cases, without a file of past failures.
fn cases(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(2), failure_persistence: None, ..Config::default() }
}

/// Panics unless `values` are uniform over `0..buckets`, neither too uneven nor too even.
fn assert_uniform(values: impl Iterator<Item = usize>, buckets: usize, what: &str) {
    let mut counts = vec![0u32; buckets];
    for value in values {
        counts[value] += 1;
    }
    let expected = f64::from(counts.iter().sum::<u32>()) / buckets as f64;
    let statistic: f64 =
        counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum();
    let law = ChiSquared::new(buckets as f64 - 1.0).expect("degrees of freedom");
    let (below, above) = (law.cdf(statistic), law.sf(statistic));
    assert!(below > 5e-7 && above > 5e-7, "{what}: chi-square {statistic}, P(above) {above:e}");
}

/// Panics if more or fewer of `bits` fair coins than chance allows in one of 10^6 × `tests` cases are
/// heads.
fn assert_fair(heads: u64, bits: u64, tests: usize, what: impl Fn() -> String) {
    let quantile = Normal::standard().inverse_cdf(1.0 - 5e-7 / tests as f64);
    let deviation = (heads as f64 - bits as f64 / 2.0) / (bits as f64 / 4.0).sqrt();
    assert!(deviation.abs() <= quantile, "{}: {deviation} standard deviations", what());
}

mod a_stream {
    use super::*;

    #[test]
    fn is_splitmix64() {
        // The reference implementation's first numbers for the seed 1234567.
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        for (index, number) in expected.into_iter().enumerate() {
            assert_eq!(draw(1_234_567, index as u64), number);
        }
    }

    #[test]
    fn is_uniform_in_each_byte_of_its_numbers() {
        for (seed, rule) in [(0, 0), (0, 1), (1, 0), (42, 7), (u64::MAX, 65_535)] {
            let stream = stream(seed, rule);
            for byte in 0..8 {
                let values =
                    (0..65_536).map(|index| draw(stream, index).to_le_bytes()[byte].into());
                assert_uniform(values, 256, &format!("seed {seed}, rule {rule}, byte {byte}"));
            }
        }
    }

    // A decision uses every third number for one purpose.
    #[test]
    fn is_uniform_in_pairs_of_numbers_that_are_three_apart() {
        let stream = stream(5, 5);
        let high = |index| (draw(stream, index) >> 60) as usize;
        let pairs = (0..100_000).map(|packet| high(packet * 3) << 4 | high(packet * 3 + 3));
        assert_uniform(pairs, 256, "pairs");
    }

    #[test]
    fn has_independent_halves() {
        let stream = stream(6, 0);
        let pairs = (0..100_000).map(|index| {
            let number = draw(stream, index);
            (number >> 60) as usize | (number >> 24 & 0xf0) as usize
        });
        assert_uniform(pairs, 256, "halves");
    }

    #[test]
    fn can_be_read_at_any_index() {
        let _ = draw(u64::MAX, u64::MAX);
        assert_ne!(draw(1, u64::MAX), draw(1, u64::MAX - 1));
    }
}

mod streams {
    use super::*;

    #[test]
    fn of_all_small_seeds_and_rules_differ() {
        // Users choose seeds 1, 2, 3: these must not share streams, whatever the rules.
        let starts: HashSet<u64> =
            (0..300).flat_map(|seed| (0..300).map(move |rule| stream(seed, rule))).collect();
        assert_eq!(starts.len(), 300 * 300);
    }

    #[test]
    fn of_the_most_rules_that_there_can_be_differ() {
        let starts: HashSet<u64> = (0..65_536).map(|rule| stream(9, rule)).collect();
        assert_eq!(starts.len(), 65_536);
    }

    #[test]
    fn of_a_thousand_rules_do_not_run_into_each_other() {
        // All streams walk one circle of 2^64 numbers in steps of the same odd constant; divided by
        // it, starts are positions on the circle. 1024 random positions have two within 2^24 steps of
        // each other (5 million packets) in one of 2 million cases.
        let golden = draw_step();
        let inverse = inverse_of_odd(golden);
        assert_eq!(golden.wrapping_mul(inverse), 1);
        for seed in [0, 1, 2, 42, 0xdead_beef] {
            let mut positions: Vec<u64> =
                (0..1024).map(|rule| stream(seed, rule).wrapping_mul(inverse)).collect();
            positions.sort_unstable();
            let first = positions[0];
            let neighbours = positions.iter().zip(positions[1..].iter().chain([&first]));
            let nearest = neighbours.map(|(here, next)| next.wrapping_sub(*here)).min();
            assert!(nearest > Some(1 << 24), "seed {seed}: {nearest:?} steps apart");
        }
    }

    /// What one more number adds to the generator's counter, found from outside: a stream started one
    /// step later gives the same numbers one index earlier.
    fn draw_step() -> u64 {
        let golden = 0x9e37_79b9_7f4a_7c15;
        assert_eq!(draw(golden, 0), draw(0, 1));
        golden
    }

    /// The inverse modulo 2^64 by Newton's iteration, which doubles the number of right bits.
    fn inverse_of_odd(number: u64) -> u64 {
        (0..6).fold(number, |x, _| x.wrapping_mul(2u64.wrapping_sub(number.wrapping_mul(x))))
    }

    #[test]
    fn of_different_rules_and_seeds_are_uncorrelated_at_any_small_shift() {
        const NUMBERS: u64 = 1_000;
        const SHIFTS: [u64; 5] = [0, 1, 2, 3, 6];
        let streams: Vec<(u64, u32)> =
            (0..6).flat_map(|seed| (0..6).map(move |rule| (seed, rule))).collect();
        let tests = streams.len() * (streams.len() - 1) * SHIFTS.len();
        let numbers: Vec<Vec<u64>> = streams
            .iter()
            .map(|&(seed, rule)| {
                (0..NUMBERS + 6).map(|index| draw(stream(seed, rule), index)).collect()
            })
            .collect();
        for (a, left) in numbers.iter().enumerate() {
            for (b, right) in numbers.iter().enumerate().filter(|&(b, _)| b != a) {
                for shift in SHIFTS {
                    let equal_bits: u64 = left[..NUMBERS as usize]
                        .iter()
                        .zip(&right[shift as usize..])
                        .map(|(x, y)| u64::from((x ^ y).count_zeros()))
                        .sum();
                    assert_fair(equal_bits, NUMBERS * 64, tests, || {
                        format!("{:?} and {:?} shifted by {shift}", streams[a], streams[b])
                    });
                }
            }
        }
    }
}

fn chance() -> impl Strategy<Value = Chance> {
    (0.0..=1.0f64, 0.0..=1.0f64).prop_map(|(p, c)| Chance::new(p, c))
}

fn memoryless_chance() -> impl Strategy<Value = Chance> {
    (0.0..=1.0f64).prop_map(|p| Chance::new(p, 0.0))
}

fn memoryless_loss() -> impl Strategy<Value = Loss> {
    prop_oneof![
        Just(Loss::default()),
        memoryless_chance().prop_map(Loss::random),
        (1..50u32).prop_map(Loss::every),
    ]
}

fn loss() -> impl Strategy<Value = Loss> {
    let p = || (0.0..=1.0f64).prop_map(Probability::from_fraction);
    prop_oneof![
        memoryless_loss(),
        chance().prop_map(Loss::random),
        (p(), p(), p(), p(), p())
            .prop_map(|(p13, p31, p32, p23, p14)| { Loss::state(p13, p31, p32, p23, p14) }),
        (p(), p(), p(), p()).prop_map(|(p, r, bad, good)| Loss::gemodel(p, r, bad, good)),
    ]
}

fn rule_of(
    loss: impl Strategy<Value = Loss>,
    chance: impl Strategy<Value = Chance> + Clone,
) -> impl Strategy<Value = Rule> {
    (
        loss,
        chance.clone(),
        chance,
        any::<u64>(),
        any::<u32>(),
        prop_oneof![Just(0), Just(RULE_CORRUPTS | RULE_DUPLICATES)],
    )
        .prop_map(|(loss, corrupt, duplicate, seed, number, flags)| Rule {
            loss,
            corrupt: Corrupt { chance: corrupt, ..Corrupt::default() },
            duplicate,
            stream: stream(seed, number),
            flags,
            ..Rule::default()
        })
}

fn memoryless_rule() -> impl Strategy<Value = Rule> {
    rule_of(memoryless_loss(), (0.0..=1.0f64).prop_map(|p| Chance::new(p, 0.0)).boxed())
}

fn any_rule() -> impl Strategy<Value = Rule> {
    rule_of(loss(), chance().boxed())
}

fn run(rule: &Rule, packets: u64) -> Vec<Decision> {
    let mut state = State::default();
    (0..packets)
        .map(|_| {
            let (decision, next) = decide(rule, state);
            state = next;
            decision
        })
        .collect()
}

mod decisions {
    use super::*;

    /// A rule with only random decisions.
    fn uncertain(seed: u64, number: u32) -> Rule {
        let half = Chance::new(0.5, 0.0);
        Rule {
            loss: Loss::random(half),
            corrupt: Corrupt { chance: half, ..Corrupt::default() },
            duplicate: half,
            stream: stream(seed, number),
            flags: RULE_CORRUPTS | RULE_DUPLICATES,
            ..Rule::default()
        }
    }

    #[test]
    fn of_different_seeds_or_rules_differ() {
        let runs: HashSet<Vec<bool>> = (0..8)
            .flat_map(|seed| (0..8).map(move |number| uncertain(seed, number)))
            .map(|rule| run(&rule, 64).iter().map(|decision| decision.lost).collect())
            .collect();
        assert_eq!(runs.len(), 64);
    }

    // Each decision has its own random bits, shared neither with this packet's others nor the next packet's.
    #[test]
    fn of_all_kinds_are_independent_of_each_other_and_of_those_about_the_next_packets() {
        const PACKETS: usize = 50_000;
        let random = uncertain(3, 3);
        // Uses the other half of random loss's number, and always chooses a position.
        let always_corrupt = Rule {
            loss: Loss::gemodel(
                Probability::NEVER,
                Probability::NEVER,
                Probability::NEVER,
                Probability::from_fraction(0.5),
            ),
            corrupt: Corrupt { chance: Chance::new(1.0, 0.0), ..Corrupt::default() },
            ..random
        };
        let signal = |rule, of: fn(&Decision) -> bool| -> Vec<bool> {
            run(rule, PACKETS as u64 + 2).iter().map(of).collect()
        };
        let signals = [
            ("random loss", signal(&random, |decision| decision.lost)),
            ("loss in a state", signal(&always_corrupt, |decision| decision.lost)),
            ("duplication", signal(&random, |decision| decision.duplicate)),
            ("corruption", signal(&random, |decision| decision.corrupt)),
            ("position", signal(&always_corrupt, |decision| decision.position >= 1 << 31)),
        ];
        for (a, (one, left)) in signals.iter().enumerate() {
            for (b, (other, right)) in signals.iter().enumerate() {
                for later in 0..=2 {
                    if a == b && later == 0 {
                        continue;
                    }
                    let pairs = left[..PACKETS].iter().zip(&right[later..]);
                    let agreeing = pairs.filter(|(left, right)| left == right).count() as u64;
                    assert_fair(agreeing, PACKETS as u64, 75, || {
                        format!("{one} and {other} {later} packets later")
                    });
                }
            }
        }
    }

    #[test]
    fn to_corrupt_choose_positions_evenly() {
        let decisions = run(&uncertain(4, 4), 100_000);
        let positions = || {
            decisions.iter().filter(|decision| decision.corrupt).map(|decision| decision.position)
        };
        assert_uniform(positions().map(|position| (position & 0xff) as usize), 256, "bit");
        assert_uniform(positions().map(|position| ((position >> 8) % 512) as usize), 512, "word");
    }

    #[test]
    fn to_alter_are_not_made_for_a_rule_that_does_not_alter() {
        let rule = Rule { flags: 0, ..uncertain(5, 5) };
        assert!(run(&rule, 1_000).iter().all(|decision| !decision.corrupt && !decision.duplicate));
    }

    proptest! {
        #![proptest_config(cases(200))]

        #[test]
        fn of_equal_seeds_are_equal(rule in any_rule()) {
            let copy = rule;
            prop_assert_eq!(run(&rule, 300), run(&copy, 300));
        }

        // The eBPF side increments the index of such a rule and does not store its state.
        #[test]
        fn of_a_memoryless_rule_depend_on_nothing_but_the_index(
            rule in memoryless_rule(),
            memory in any::<u16>(),
        ) {
            prop_assert!(!rule.loss.has_memory());
            prop_assert!(!rule.corrupt.chance.is_correlated() && !rule.duplicate.is_correlated());
            for (index, decision) in run(&rule, 100).into_iter().enumerate() {
                let counted = State(State::ONE_PACKET * index as u64);
                prop_assert_eq!(decide(&rule, counted).0, decision);
                // Other models may have left any state.
                let dirty = State(counted.0 | u64::from(memory));
                prop_assert_eq!(decide(&rule, dirty).0, decision);
            }
        }

        // Decisions depend only on the index, not on when the rule was attached.
        #[test]
        fn go_on_from_a_saved_state(rule in any_rule(), cut in 0..200usize) {
            let whole = run(&rule, 300);
            let mut state = State::default();
            for _ in 0..cut {
                state = decide(&rule, state).1;
            }
            for expected in &whole[cut..] {
                let (decision, next) = decide(&rule, state);
                prop_assert_eq!(&decision, expected);
                state = next;
            }
        }

        #[test]
        fn count_each_packet_once_and_stand_any_state(rule in any_rule(), word in any::<u64>()) {
            let state = State(word);
            let (_, next) = decide(&rule, state);
            prop_assert_eq!(next.index(), (state.index() + 1) % (1 << 48));
        }
    }
}

mod a_probability {
    use super::*;

    fn randoms() -> impl Iterator<Item = u32> {
        [0, 1, u32::MAX / 2, u32::MAX - 1, u32::MAX].into_iter()
    }

    #[test]
    fn of_0_never_hits() {
        assert_eq!(Probability::from_fraction(0.0), Probability::NEVER);
        assert!(randoms().all(|random| !Probability::NEVER.hit(random)));
    }

    #[test]
    fn of_1_always_hits() {
        assert_eq!(Probability::from_fraction(1.0), Probability::ALWAYS);
        assert!(randoms().all(|random| Probability::ALWAYS.hit(random)));
    }

    #[test]
    fn outside_0_to_1_is_clamped() {
        for below in [-0.0, -1e-300, -0.5, -1e300, f64::NEG_INFINITY] {
            assert_eq!(Probability::from_fraction(below), Probability::NEVER, "{below}");
        }
        for above in [1.0 + f64::EPSILON, 2.0, 1e300, f64::INFINITY] {
            assert_eq!(Probability::from_fraction(above), Probability::ALWAYS, "{above}");
        }
    }

    #[test]
    fn that_is_not_a_number_never_hits() {
        assert_eq!(Probability::from_fraction(f64::NAN), Probability::NEVER);
        assert_eq!(Chance::new(f64::NAN, 0.0), Chance::NEVER);
    }

    #[test]
    fn of_a_half_hits_half_of_the_numbers() {
        let half = Probability::from_fraction(0.5);
        assert!(half.hit(0) && half.hit(0x7fff_ffff));
        assert!(!half.hit(0x8000_0000) && !half.hit(u32::MAX));
    }

    proptest! {
        #![proptest_config(cases(512))]

        #[test]
        fn survives_the_conversion_to_within_its_unit(fraction in 0.0..=1.0f64) {
            let kept = Probability::from_fraction(fraction).fraction();
            prop_assert!((kept - fraction).abs() <= 1.0 / 4_294_967_296.0);
        }

        #[test]
        fn grows_with_the_fraction(one in 0.0..=1.0f64, other in 0.0..=1.0f64) {
            let (low, high) = if one <= other { (one, other) } else { (other, one) };
            prop_assert!(Probability::from_fraction(low) <= Probability::from_fraction(high));
        }

        // The number of hits among 2^32 numbers equals the probability in units.
        #[test]
        fn hits_the_numbers_below_it(units in 1..u32::MAX) {
            prop_assert!(Probability(units).hit(units - 1));
            prop_assert!(!Probability(units).hit(units));
        }

        // The definition: P + C (1-P) after a hit, P (1-C) after a miss.
        #[test]
        fn with_correlation_has_the_rate_and_the_autocorrelation_asked_for(
            p in 0.0..0.999f64,
            c in 0.0..0.999f64,
        ) {
            let chance = Chance::new(p, c);
            let (hit, miss) = (chance.after_hit.fraction(), chance.after_miss.fraction());
            prop_assert!((hit - miss - c).abs() < 1e-9);
            // The long-run rate of the chain with these two chances, without the division.
            prop_assert!((p * (1.0 - hit) - (1.0 - p) * miss).abs() < 1e-9);
        }
    }
}

//! The loss models, by the code that runs in the kernel, compared with their closed forms.
//!
//! Streams are seeded, so a run is repeatable. Each bound is one that a correct implementation exceeds
//! for one seed in 10^6.

mod markov;

use injector_common::{
    model::{
        Decision, State,
        chance::{Chance, Probability},
        decide,
        loss::Loss,
        random,
    },
    rule::{Corrupt, RULE_CORRUPTS, RULE_DUPLICATES, Rule},
};
use markov::{Chain, Z};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};
use statrs::distribution::{Binomial, DiscreteCDF};

/// Deterministic cases, without a file of past failures.
fn cases(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() }
}

/// The decisions on the first `packets` packets of a rule, as on the eBPF side.
fn decisions(rule: &Rule, packets: usize) -> impl Iterator<Item = Decision> {
    let mut state = State::default();
    (0..packets).map(move |_| {
        let (decision, next) = decide(rule, state);
        state = next;
        decision
    })
}

fn losing(loss: Loss, seed: u64) -> Rule {
    Rule { loss, stream: random::stream(seed, 0), ..Rule::default() }
}

fn losses(loss: Loss, seed: u64, packets: usize) -> Vec<bool> {
    decisions(&losing(loss, seed), packets).map(|decision| decision.lost).collect()
}

fn count(hits: &[bool]) -> usize {
    hits.iter().filter(|&&hit| hit).count()
}

/// Panics if the number of hits is in a tail with a probability below 5 in 10^7.
fn assert_binomial(hits: usize, trials: usize, probability: Probability) {
    const TAIL: f64 = 5e-7;
    let law = Binomial::new(probability.fraction(), trials as u64).expect("a probability");
    let as_few = law.cdf(hits as u64);
    let as_many = if hits == 0 { 1.0 } else { law.sf(hits as u64 - 1) };
    assert!(
        as_few > TAIL && as_many > TAIL,
        "{hits} of {trials} at {}: P(as few) {as_few:e}, P(as many) {as_many:e}",
        probability.fraction()
    );
}

fn fraction(probability: f64) -> Probability {
    Probability::from_fraction(probability)
}

mod without_loss {
    use super::*;

    #[test]
    fn a_rule_without_a_loss_model_loses_nothing() {
        assert_eq!(count(&losses(Loss::default(), 1, 10_000)), 0);
    }

    #[test]
    fn an_unknown_loss_model_loses_nothing() {
        let unknown = Loss { kind: 99, parameters: [u32::MAX; 5] };
        assert_eq!(count(&losses(unknown, 1, 10_000)), 0);
    }
}

mod random_loss {
    use super::*;

    #[test]
    fn of_0_percent_loses_nothing() {
        assert_eq!(count(&losses(Loss::random(Chance::new(0.0, 0.0)), 1, 100_000)), 0);
    }

    #[test]
    fn of_100_percent_loses_everything() {
        assert_eq!(count(&losses(Loss::random(Chance::new(1.0, 0.0)), 1, 100_000)), 100_000);
    }

    #[test]
    fn of_100_percent_loses_everything_from_the_first_packet_whatever_the_correlation() {
        for correlation in [0.25, 0.9, 1.0] {
            let loss = Loss::random(Chance::new(1.0, correlation));
            assert_eq!(count(&losses(loss, 1, 1_000)), 1_000, "correlation {correlation}");
        }
    }

    #[test]
    fn of_0_percent_loses_nothing_whatever_the_correlation() {
        for correlation in [0.25, 0.9, 1.0] {
            let loss = Loss::random(Chance::new(0.0, correlation));
            assert_eq!(count(&losses(loss, 1, 1_000)), 0, "correlation {correlation}");
        }
    }

    #[test]
    fn has_no_memory_without_correlation() {
        assert!(!Loss::random(Chance::new(0.3, 0.0)).has_memory());
        assert!(Loss::random(Chance::new(0.3, 0.1)).has_memory());
    }

    proptest! {
        #![proptest_config(cases(96))]

        // Log-uniform near 0 and near 1, where rounding matters.
        #[test]
        fn of_p_loses_a_share_of_p(
            exponent in -4.0..0.0f64,
            mirrored in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let small = 10.0f64.powf(exponent);
            let p = if mirrored { 1.0 - small } else { small };
            let lost = count(&losses(Loss::random(Chance::new(p, 0.0)), seed, 20_000));
            assert_binomial(lost, 20_000, fraction(p));
        }

        // Independence of packets: losses among the packets that follow a loss.
        #[test]
        fn without_correlation_does_not_depend_on_the_packet_before(
            p in 0.05..0.95f64,
            seed in any::<u64>(),
        ) {
            let lost = losses(Loss::random(Chance::new(p, 0.0)), seed, 20_000);
            let followers: Vec<bool> =
                lost.windows(2).filter(|pair| pair[0]).map(|pair| pair[1]).collect();
            assert_binomial(count(&followers), followers.len(), fraction(p));
        }
    }
}

mod correlated {
    use super::*;

    const PACKETS: usize = 200_000;

    /// Checks the rate of hits and their autocorrelation for a rule that applies `chance` and shows
    /// the outcome through `hit`.
    fn check(rule: impl Fn(Chance) -> Rule, hit: fn(Decision) -> bool) {
        for p in [0.01, 0.1, 0.5, 0.9] {
            for c in [0.1, 0.5, 0.9] {
                let rule = rule(Chance::new(p, c));
                let hits: Vec<bool> = decisions(&rule, PACKETS).map(hit).collect();
                assert_share(&hits, p, c);
                assert_autocorrelation(&hits, p, c);
            }
        }
    }

    /// The variance of the mean is that of independent packets times (1+C)/(1-C); the start after a
    /// miss lacks at most P/(1-C) hits.
    fn assert_share(hits: &[bool], p: f64, c: f64) {
        let n = hits.len() as f64;
        let deviation = (n * p * (1.0 - p) * (1.0 + c) / (1.0 - c)).sqrt();
        let difference = count(hits) as f64 - n * p;
        assert!(
            difference.abs() <= Z * deviation + p / (1.0 - c),
            "P {p}, C {c}: {difference} hits too many, standard deviation {deviation}"
        );
    }

    /// The usual estimate; for a chain of two states it is the share of hits after a hit less that
    /// after a miss, from which its variance follows.
    fn assert_autocorrelation(hits: &[bool], p: f64, c: f64) {
        let n = hits.len() as f64;
        let mean = count(hits) as f64 / n;
        let both = hits.windows(2).filter(|pair| pair[0] && pair[1]).count() as f64 / (n - 1.0);
        let found = (both - mean * mean) / (mean * (1.0 - mean));

        let (after_hit, after_miss) = (p + c * (1.0 - p), p * (1.0 - c));
        let variance = after_hit * (1.0 - after_hit) / (n * p)
            + after_miss * (1.0 - after_miss) / (n * (1.0 - p));
        let ends = 4.0 / (n * p * (1.0 - p));
        assert!(
            (found - c).abs() <= Z * variance.sqrt() + ends,
            "P {p}, C {c}: autocorrelation {found}, standard deviation {}",
            variance.sqrt()
        );
    }

    #[test]
    fn loss_keeps_the_rate_and_has_the_autocorrelation_asked_for() {
        check(|chance| losing(Loss::random(chance), 2), |decision| decision.lost);
    }

    #[test]
    fn duplication_keeps_the_rate_and_has_the_autocorrelation_asked_for() {
        let rule = |duplicate| Rule {
            duplicate,
            flags: RULE_CORRUPTS | RULE_DUPLICATES,
            ..losing(Loss::default(), 3)
        };
        check(rule, |decision| decision.duplicate);
    }

    #[test]
    fn corruption_keeps_the_rate_and_has_the_autocorrelation_asked_for() {
        let rule = |chance| Rule {
            corrupt: Corrupt { chance, ..Corrupt::default() },
            flags: RULE_CORRUPTS | RULE_DUPLICATES,
            ..losing(Loss::default(), 4)
        };
        check(rule, |decision| decision.corrupt);
    }

    #[test]
    fn faults_of_one_rule_remember_only_their_own_hits() {
        // A fault that strikes only after it has struck never starts, unless it takes another's memory
        // for its own.
        let frozen = Chance { after_miss: Probability::NEVER, after_hit: Probability::ALWAYS };
        let half = Chance::new(0.5, 0.5);
        let rule = |loss, corrupt, duplicate| Rule {
            loss: Loss::random(loss),
            corrupt: Corrupt { chance: corrupt, ..Corrupt::default() },
            duplicate,
            flags: RULE_CORRUPTS | RULE_DUPLICATES,
            ..losing(Loss::default(), 5)
        };
        assert!(decisions(&rule(frozen, half, half), 10_000).all(|decision| !decision.lost));
        assert!(decisions(&rule(half, frozen, half), 10_000).all(|decision| !decision.corrupt));
        assert!(decisions(&rule(half, half, frozen), 10_000).all(|decision| !decision.duplicate));
    }
}

mod loss_of_every_nth {
    use super::*;

    proptest! {
        #![proptest_config(cases(64))]

        #[test]
        fn packet_loses_exactly_the_multiples_of_n(
            n in prop_oneof![1..20u32, 20..3_000u32],
            seed in any::<u64>(),
        ) {
            for (index, lost) in losses(Loss::every(n), seed, 4_000).into_iter().enumerate() {
                let number = index as u64 + 1;
                prop_assert_eq!(lost, number.is_multiple_of(u64::from(n)), "packet {}", number);
            }
        }

        // The index has 48 bits and n 32: no truncation in between.
        #[test]
        fn packet_is_right_late_in_a_long_run(n in 2..=u32::MAX, multiple in 1..1u64 << 16) {
            let rule = losing(Loss::every(n), 1);
            // Packets are numbered from 1, indices from 0.
            let is_lost = |number: u64| decide(&rule, State((number - 1) << 16)).0.lost;
            let number = u64::from(n) * multiple;
            prop_assert!(is_lost(number));
            prop_assert!(!is_lost(number - 1) && !is_lost(number + 1));
        }
    }

    #[test]
    fn packet_with_n_of_0_loses_nothing() {
        assert_eq!(count(&losses(Loss::every(0), 1, 10_000)), 0);
    }
}

/// A loss model and the equivalent Markov chain.
struct Model {
    loss: Loss,
    chain: Chain,
    /// 1 for states whose packet was lost, else 0.
    lost: Vec<f64>,
}

impl Model {
    /// p13, p31, p32, p23, p14 as in Salsano et al., "Definition of a general and intuitive loss model
    /// for packet networks and its implementation in the Netem module", 2012; states 1 to 4 in order.
    fn four_state([p13, p31, p32, p23, p14]: [f64; 5]) -> Self {
        Self {
            loss: Loss::state(
                fraction(p13),
                fraction(p31),
                fraction(p32),
                fraction(p23),
                fraction(p14),
            ),
            chain: Chain::new(vec![
                vec![1.0 - p13 - p14, 0.0, p13, p14],
                vec![0.0, 1.0 - p23, p23, 0.0],
                vec![p31, p32, 1.0 - p31 - p32, 0.0],
                vec![1.0, 0.0, 0.0, 0.0],
            ]),
            lost: vec![0.0, 0.0, 1.0, 1.0],
        }
    }

    /// p, r, 1-h, 1-k. A state of the chain is the model's state after a packet and that packet's fate:
    /// good and received, good and lost, bad and received, bad and lost.
    fn gilbert_elliott([p, r, loss_in_bad, loss_in_good]: [f64; 4]) -> Self {
        let row = |to_bad: f64, loss: f64| {
            vec![
                (1.0 - to_bad) * (1.0 - loss),
                (1.0 - to_bad) * loss,
                to_bad * (1.0 - loss),
                to_bad * loss,
            ]
        };
        let (good, bad) = (row(p, loss_in_good), row(1.0 - r, loss_in_bad));
        Self {
            loss: Loss::gemodel(
                fraction(p),
                fraction(r),
                fraction(loss_in_bad),
                fraction(loss_in_good),
            ),
            chain: Chain::new(vec![good.clone(), good, bad.clone(), bad]),
            lost: vec![0.0, 1.0, 0.0, 1.0],
        }
    }

    fn loss_rate(&self) -> f64 {
        self.chain.mean(&self.lost)
    }

    /// The chain of steps, with the rewards for a loss and for the first loss of a burst.
    fn bursts(&self) -> (Chain, Vec<f64>, Vec<f64>) {
        let (chain, steps) = self.chain.steps();
        let lost = steps.iter().map(|&(_, to)| self.lost[to]).collect();
        let first =
            steps.iter().map(|&(from, to)| self.lost[to] * (1.0 - self.lost[from])).collect();
        (chain, lost, first)
    }

    /// The mean burst length.
    fn burst_length(&self) -> f64 {
        let (chain, lost, first) = self.bursts();
        chain.mean(&lost) / chain.mean(&first)
    }

    /// Runs the model and compares its loss rate and burst length with the chain's.
    fn check(&self, seed: u64) {
        const PACKETS: usize = 1_000_000;
        let lost = losses(self.loss, seed, PACKETS);

        let expected = self.loss_rate();
        let bound = self.chain.bound(&self.lost, PACKETS);
        let difference = count(&lost) as f64 - expected * PACKETS as f64;
        assert!(
            difference.abs() <= bound,
            "{:?}: {difference} losses too many at a rate of {expected}, bound {bound}",
            self.loss
        );

        // Losses less the mean length times the bursts have mean 0.
        let length = self.burst_length();
        let (chain, is_lost, is_first) = self.bursts();
        let reward: Vec<f64> =
            is_lost.iter().zip(&is_first).map(|(lost, first)| lost - length * first).collect();
        let bursts =
            lost.iter().zip([false].iter().chain(&lost)).filter(|&(&now, &before)| now && !before);
        let bursts = bursts.count() as f64;
        let bound = chain.bound(&reward, PACKETS);
        let found = count(&lost) as f64 / bursts;
        assert!(
            (found - length).abs() * bursts <= bound,
            "{:?}: bursts of {found} packets instead of {length}, bound {}",
            self.loss,
            bound / bursts
        );
    }
}

fn assert_close(found: f64, expected: f64) {
    assert!(
        (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
        "found {found}, expected {expected}"
    );
}

mod four_state_loss {
    use super::*;

    /// From the balance of the states: pi1 p13 = pi3 p31, pi2 p23 = pi3 p32, pi4 = pi1 p14.
    fn stationary([p13, p31, p32, p23, p14]: [f64; 5]) -> [f64; 4] {
        let weights = [p31 * p23, p13 * p32, p13 * p23, p14 * p31 * p23];
        let sum: f64 = weights.iter().sum();
        weights.map(|weight| weight / sum)
    }

    const SETTINGS: [[f64; 5]; 7] = [
        // Bursts with gaps in them, and single losses.
        [0.02, 0.2, 0.3, 0.4, 0.01],
        [0.1, 0.3, 0.1, 0.6, 0.05],
        // netem's defaults for `loss state 5%`: Bernoulli-like, p31 = 1 - p13.
        [0.05, 0.95, 0.0, 1.0, 0.0],
        // Simple Gilbert: no received packets within a burst.
        [0.01, 0.1, 0.0, 1.0, 0.0],
        // Long bursts with long good stretches in them.
        [0.002, 0.05, 0.2, 0.05, 0.001],
        // Single losses only.
        [0.0, 0.5, 0.2, 0.5, 0.03],
        // All ways out of a state add up to exactly 1.
        [0.7, 0.4, 0.6, 0.9, 0.3],
    ];

    #[test]
    fn has_the_stationary_rate_and_the_burst_length_of_its_chain() {
        for (number, parameters) in SETTINGS.into_iter().enumerate() {
            Model::four_state(parameters).check(number as u64);
        }
    }

    #[test]
    fn with_p13_p32_and_p23_certain_loses_every_other_packet() {
        let lost = losses(Model::four_state([1.0, 0.0, 1.0, 1.0, 0.0]).loss, 1, 1_000);
        assert!(lost.iter().enumerate().all(|(index, &lost)| lost == (index % 2 == 0)));
    }

    #[test]
    fn with_p14_only_never_loses_two_in_a_row() {
        let model = Model::four_state([0.0, 0.5, 0.2, 0.5, 0.6]);
        let lost = losses(model.loss, 1, 100_000);
        assert!(count(&lost) > 0);
        assert!(lost.windows(2).all(|pair| !(pair[0] && pair[1])));
    }

    #[test]
    fn that_never_leaves_the_burst_loses_everything_after_the_first_loss() {
        let [p13, p23, p14] = [fraction(0.01), fraction(0.5), Probability::NEVER];
        let model = Loss::state(p13, Probability::NEVER, Probability::NEVER, p23, p14);
        let lost = losses(model, 1, 10_000);
        let first = lost.iter().position(|&lost| lost).expect("a loss among 10,000 at 1 %");
        assert!(lost[first..].iter().all(|&lost| lost));
    }

    proptest! {
        #![proptest_config(cases(256))]

        // The closed form is ours, the numeric solution is of the chain; `check` holds the code
        // against the latter.
        #[test]
        fn rate_and_burst_length_in_closed_form_are_those_of_the_chain(
            to_loss in 0.001..1.0f64, share_alone in 0.0..1.0f64,
            from_burst in 0.001..1.0f64, share_end in 0.001..1.0f64,
            p23 in 0.001..1.0f64,
        ) {
            let (p13, p14) = (to_loss * (1.0 - share_alone), to_loss * share_alone);
            let (p31, p32) = (from_burst * share_end, from_burst * (1.0 - share_end));
            let parameters = [p13, p31, p32, p23, p14];
            let pi = stationary(parameters);
            let model = Model::four_state(parameters);
            for (found, expected) in model.chain.stationary().iter().zip(pi) {
                assert_close(*found, expected);
            }

            let rate = (p13 * p23 + p14 * p23 * p31)
                / (p13 * (p23 + p32) + p31 * p23 + p14 * p23 * p31);
            assert_close(model.loss_rate(), rate);

            // Bursts begin by p13, p14 and p23.
            let beginnings = pi[0] * (p13 + p14) + pi[1] * p23;
            assert_close(model.burst_length(), rate / beginnings);
            // Without single losses a burst is a stay in state 3.
            let [p13, p31, p32, p23, _] = parameters;
            assert_close(
                Model::four_state([p13, p31, p32, p23, 0.0]).burst_length(),
                1.0 / (p31 + p32),
            );
        }

        #[test]
        fn of_any_parameters_has_the_rate_of_its_chain(
            to_loss in 0.01..0.9f64, share_alone in 0.0..0.9f64,
            from_burst in 0.05..0.95f64, share_end in 0.05..0.95f64,
            p23 in 0.05..0.95f64, seed in any::<u64>(),
        ) {
            let (p13, p14) = (to_loss * (1.0 - share_alone), to_loss * share_alone);
            let (p31, p32) = (from_burst * share_end, from_burst * (1.0 - share_end));
            let model = Model::four_state([p13, p31, p32, p23, p14]);
            let packets = 10_000;
            let difference = count(&losses(model.loss, seed, packets)) as f64
                - model.loss_rate() * packets as f64;
            prop_assert!(difference.abs() <= model.chain.bound(&model.lost, packets));
        }
    }
}

mod gilbert_elliott_loss {
    use super::*;

    #[test]
    fn has_the_stationary_rate_and_the_burst_length_of_its_chain() {
        let settings = [
            // Simple Gilbert: everything is lost in the bad state, nothing in the good one.
            [0.01, 0.1, 1.0, 0.0],
            [0.2, 0.5, 1.0, 0.0],
            [0.001, 0.02, 1.0, 0.0],
            // Gilbert: some packets come through in the bad state.
            [0.02, 0.2, 0.6, 0.0],
            // Gilbert-Elliott: some are lost in the good state.
            [0.02, 0.2, 0.7, 0.01],
            [0.3, 0.4, 0.2, 0.9],
            // The rates of the two states are the same: Bernoulli.
            [0.1, 0.1, 0.3, 0.3],
            // Leaves each state at once.
            [1.0, 1.0, 0.5, 0.1],
        ];
        for (number, parameters) in settings.into_iter().enumerate() {
            Model::gilbert_elliott(parameters).check(number as u64);
        }
    }

    #[test]
    fn with_h_0_and_k_1_loses_bursts_of_geometric_length() {
        // The share of bursts that end after 1, 2, 3 packets: r of those that got so far.
        let r = 0.3;
        let lost = losses(Model::gilbert_elliott([0.05, r, 1.0, 0.0]).loss, 1, 300_000);
        let bursts: Vec<usize> =
            lost.split(|&lost| !lost).map(<[bool]>::len).filter(|&length| length > 0).collect();
        for length in 1..=3 {
            let reached = bursts.iter().filter(|&&burst| burst >= length).count();
            let ended = bursts.iter().filter(|&&burst| burst == length).count();
            assert_binomial(ended, reached, fraction(r));
        }
    }

    #[test]
    fn that_never_turns_bad_loses_the_share_of_the_good_state() {
        let lost = losses(Model::gilbert_elliott([0.0, 0.5, 1.0, 0.1]).loss, 1, 100_000);
        assert_binomial(count(&lost), lost.len(), fraction(0.1));
    }

    #[test]
    fn draws_a_packets_loss_in_the_state_that_the_packet_finds() {
        // Turns bad at once and stays so: only the first packet meets the good state.
        let model = Loss::gemodel(
            Probability::ALWAYS,
            Probability::NEVER,
            Probability::ALWAYS,
            Probability::NEVER,
        );
        let lost = losses(model, 1, 1_000);
        assert!(!lost[0]);
        assert!(lost[1..].iter().all(|&lost| lost));
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn rate_and_burst_length_in_closed_form_are_those_of_the_chain(
            p in 0.001..1.0f64, r in 0.001..1.0f64, h in 0.0..1.0f64, k in 0.0..1.0f64,
        ) {
            let bad = p / (p + r);
            let rate = bad * (1.0 - h) + (1.0 - bad) * (1.0 - k);
            assert_close(Model::gilbert_elliott([p, r, 1.0 - h, 1.0 - k]).loss_rate(), rate);
            // With h = 0 and k = 1 a burst is a stay in the bad state.
            assert_close(Model::gilbert_elliott([p, r, 1.0, 0.0]).burst_length(), 1.0 / r);
        }

        #[test]
        fn of_any_parameters_has_the_rate_of_its_chain(
            p in 0.02..0.98f64, r in 0.02..0.98f64, h in 0.0..1.0f64, k in 0.0..1.0f64,
            seed in any::<u64>(),
        ) {
            let model = Model::gilbert_elliott([p, r, 1.0 - h, 1.0 - k]);
            let packets = 10_000;
            let difference = count(&losses(model.loss, seed, packets)) as f64
                - model.loss_rate() * packets as f64;
            prop_assert!(difference.abs() <= model.chain.bound(&model.lost, packets));
        }
    }
}

mod the_bounds {
    use super::*;

    #[test]
    fn for_a_chain_of_two_states_are_those_of_the_correlated_mean() {
        // The known special case: the variance of independent draws times (1+C)/(1-C).
        let (p, c) = (0.2, 0.7);
        let row = |hit: f64| vec![1.0 - hit, hit];
        let chain = Chain::new(vec![row(p * (1.0 - c)), row(p + c * (1.0 - p))]);
        assert_close(chain.mean(&[0.0, 1.0]), p);
        let expected = p * (1.0 - p) * (1.0 + c) / (1.0 - c);
        assert_close(chain.asymptotic_variance(&[0.0, 1.0]), expected);
    }

    #[test]
    fn catch_a_rate_that_is_off_by_a_tenth() {
        let model = Model::gilbert_elliott([0.01, 0.1, 1.0, 0.0]);
        let rate = model.loss_rate();
        assert!(model.chain.bound(&model.lost, 1_000_000) < rate * 0.1 * 1e6);
    }
}

mod any_model {
    use super::*;

    #[test]
    fn loses_the_same_packets_whether_or_not_the_rule_also_alters() {
        let models = [
            Loss::random(Chance::new(0.3, 0.4)),
            Loss::every(7),
            Model::four_state([0.02, 0.2, 0.3, 0.4, 0.01]).loss,
            Model::gilbert_elliott([0.02, 0.2, 0.7, 0.01]).loss,
        ];
        for loss in models {
            let plain = losing(loss, 6);
            let altering = Rule {
                flags: RULE_CORRUPTS | RULE_DUPLICATES,
                corrupt: Corrupt { chance: Chance::new(0.5, 0.5), ..Corrupt::default() },
                duplicate: Chance::new(0.5, 0.5),
                ..plain
            };
            let lost = |rule| decisions(rule, 10_000).map(|decision| decision.lost).collect();
            let (plain, altering): (Vec<bool>, Vec<bool>) = (lost(&plain), lost(&altering));
            assert_eq!(plain, altering, "{loss:?}");
        }
    }
}

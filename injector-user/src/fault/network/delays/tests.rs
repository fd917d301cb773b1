use injector_common::{
    counter::RuleCounters,
    histogram::{MAX_NS, MAX_RESOLUTION, MIN_RESOLUTION},
};
use proptest::prelude::*;

use super::*;

/// The counts after packets were held for so long, at a resolution.
fn counted(resolution: u32, direction: usize, delays_ns: &[u64]) -> Counts {
    let counts = vec![0; histogram::cells_of(resolution) as usize];
    let mut cells = DelayCells { resolution, counts };
    let mut counters = RuleCounters::default();
    let first = direction * histogram::buckets(resolution) as usize;
    for &delay_ns in delays_ns {
        cells.counts[first + histogram::bucket(resolution, delay_ns) as usize] += 1;
        counters.count_delay(direction, delay_ns);
    }
    Counts { counters, delays: Some(Delays::from(&cells)) }
}

fn held(direction: usize, delays_ns: &[u64]) -> Counts {
    counted(MAX_RESOLUTION, direction, delays_ns)
}

fn egress(counts: &Counts) -> DelayReport {
    DelaysReport::of(counts).and_then(|report| report.egress).expect("some were held")
}

#[test]
fn delays_are_reported_by_direction_with_quantiles() {
    let report = DelaysReport::of(&held(0, &[5_000_000; 100])).expect("some were held");
    assert_eq!(report.ingress, None);
    let egress = report.egress.expect("some were held");
    assert_eq!((egress.count, egress.sum_ms), (100, 500.0));
    assert_eq!(egress.buckets, [DelayBucket { up_to_ms: Some(6.0), count: 100 }]);
    let DelayReport { min_ms, p50_ms, p99_ms, max_ms, .. } = egress;
    assert!([min_ms, p50_ms, p99_ms, max_ms].iter().all(|ms| ms.total_cmp(&5.0).is_eq()));
    assert_eq!(DelaysReport::of(&held(0, &[])), None);
    assert_eq!(DelaysReport::of(&Counts::default()), None);
}

#[test]
fn the_sum_of_reports_is_the_report_of_the_sum() {
    let (one, other) = ([1, 62_501, 70_000_000_000], [3_000_000, 3_000_001]);
    let mut counts = held(1, &one);
    counts += &held(1, &other);
    let mut report = DelaysReport::of(&held(1, &one)).expect("some were held");
    report += &DelaysReport::of(&held(1, &other)).expect("some were held");
    report += &DelaysReport::default();
    assert_eq!(Some(&report), DelaysReport::of(&counts).as_ref());
    let ingress = report.ingress.expect("some were held");
    let reported: Vec<_> =
        ingress.buckets.iter().map(|reported| (reported.up_to_ms, reported.count)).collect();
    let bounds = [Some(0.0625), Some(0.09375), Some(3.0), Some(4.0), None];
    assert_eq!(reported, bounds.map(|bound| (bound, 1)));
    let cumulative: Vec<_> = ingress.cumulative().collect();
    assert_eq!(cumulative.len(), BOUNDS);
    assert_eq!((cumulative[0], cumulative[BOUNDS - 1]), ((62.5e-6, 1), (65.536, 4)));
    let text = serde_json::to_string(&ingress).expect("JSON");
    let parsed: DelayReport = serde_json::from_str(&text).expect("the same");
    assert_eq!(parsed, DelayReport { samples: Samples::new(), ..ingress.clone() });
    // Without samples, a sum is as exact as the buckets.
    let (mut sum, parsed) = (Some(ingress), Some(parsed));
    add(&mut sum, parsed.as_ref());
    let sum = sum.expect("some were held");
    assert_eq!((sum.count, sum.min_ms, sum.max_ms), (10, 1e-6, 70_000.0));
    assert!(sum.p50_ms > 2.9 && sum.p50_ms <= 3.0, "{sum:?}");
}

#[test]
fn report_bounds_are_round() {
    let milliseconds: Vec<_> = (8..19).filter_map(bound_ms).collect();
    assert_eq!(milliseconds, [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0]);
    assert_eq!(bound_ns(0), Some(62_500));
    assert_eq!(bound_ns(BOUNDS - 1), Some(65_536_000_000));
    assert_eq!(bound_ns(BOUNDS), None);
}

prop_compose! {
    /// Delays of any magnitude that the eBPF side can choose.
    fn delay()(power in 0u32..42, fraction in any::<u64>()) -> u64 {
        ((1 << power) + fraction % (1 << power)).min(MAX_NS)
    }
}

proptest! {
    #[test]
    fn quantiles_are_within_1_percent_of_the_exact(
        delays in prop::collection::vec(delay(), 1..200),
    ) {
        let report = egress(&held(0, &delays));
        let mut sorted = delays;
        sorted.sort_unstable();
        for (part, told) in [(0.5, report.p50_ms), (0.99, report.p99_ms)] {
            let rank = (part * sorted.len() as f64).ceil() as usize;
            let exact = sorted[rank - 1] as f64 / 1e6;
            // Below 488 ns, buckets have a fixed width.
            prop_assert!((told - exact).abs() <= (0.01 * exact).max(5e-6), "{told} {exact}");
        }
        prop_assert!(report.min_ms.total_cmp(&ms(sorted[0])).is_eq());
        prop_assert!(report.max_ms.total_cmp(&ms(sorted[sorted.len() - 1])).is_eq());
        prop_assert!(report.min_ms <= report.p50_ms && report.p50_ms <= report.p99_ms);
        prop_assert!(report.p99_ms <= report.max_ms);
    }

    #[test]
    fn buckets_are_exact_at_any_resolution(
        delays in prop::collection::vec(delay(), 1..100),
        bounds in prop::collection::vec((0..BOUNDS, 0u64..2), 0..50),
        resolution in MIN_RESOLUTION..=MAX_RESOLUTION,
    ) {
        let at_bounds = bounds.into_iter().filter_map(|(bucket, above)| Some(bound_ns(bucket)? + above));
        let delays: Vec<u64> = delays.into_iter().chain(at_bounds).collect();
        let report = egress(&counted(resolution, 0, &delays));
        for (bucket, count) in report.counts().into_iter().enumerate() {
            let expected = delays.iter().filter(|delay| report_bucket(**delay) == bucket).count();
            prop_assert_eq!(count, expected as u64, "bucket {}", bucket);
        }
    }
}

//! The histogram buckets of delays.

use injector_common::{
    counter::RuleCounters,
    histogram::{
        MAX_NS, MAX_RESOLUTION, MIN_RESOLUTION, bounds_ns, bucket, buckets, cells_of,
        resolution_for,
    },
};

#[test]
fn a_bucket_takes_delays_up_to_its_bound_and_longer_than_the_bound_before() {
    for resolution in MIN_RESOLUTION..=MAX_RESOLUTION {
        let mut last = 0.0;
        for number in 0..buckets(resolution) {
            let (lower, upper) = bounds_ns(resolution, number);
            assert!(lower.total_cmp(&last).is_eq(), "{lower} {last}");
            let width = f64::from(1u32 << resolution).recip();
            assert!(upper > lower && (lower < 488.0 || upper - lower <= lower * width));
            let (shortest, longest) = (lower.floor() as u64 + 1, upper.floor() as u64);
            for delay_ns in [shortest, longest] {
                assert_eq!(bucket(resolution, delay_ns), number, "{delay_ns} at {resolution}");
            }
            last = upper;
        }
        assert!(last.total_cmp(&(MAX_NS as f64)).is_eq(), "{last}");
        let last = buckets(resolution) - 1;
        for longer in [MAX_NS, MAX_NS + 1, u64::MAX] {
            assert_eq!(bucket(resolution, longer), last);
        }
        assert_eq!(bucket(resolution, 0), 0);
    }
}

#[test]
fn bounds_of_a_resolution_are_bounds_of_all_higher_ones() {
    for resolution in MIN_RESOLUTION..MAX_RESOLUTION {
        for number in 0..buckets(resolution) {
            let (lower, upper) = bounds_ns(resolution, number);
            let within = [lower.floor() as u64 + 1, upper.floor() as u64];
            let finer = within.map(|delay_ns| {
                let finer = resolution + 1;
                bounds_ns(finer, bucket(finer, delay_ns))
            });
            assert_eq!((finer[0].0, finer[1].1), (lower, upper));
        }
    }
}

#[test]
fn the_resolution_is_the_highest_that_fits() {
    let full = cells_of(MAX_RESOLUTION) as u32;
    assert_eq!(resolution_for(1, full), MAX_RESOLUTION);
    assert_eq!(resolution_for(2, full), MAX_RESOLUTION - 1);
    assert_eq!(resolution_for(4, full), MAX_RESOLUTION - 2);
    assert_eq!(resolution_for(1_000_000, full), MIN_RESOLUTION);
    assert_eq!(resolution_for(0, 0), MAX_RESOLUTION);
}

#[test]
fn extremes_are_kept_by_direction_and_across_sums() {
    let mut sum = RuleCounters::default();
    assert_eq!((sum.min_delay_ns(0), sum.max_delay_ns), (u64::MAX, [0, 0]));
    for delays in [&[5, 3][..], &[9], &[]] {
        let mut cpu = RuleCounters::default();
        for &delay_ns in delays {
            cpu.count_delay(0, delay_ns);
        }
        cpu.count_delay(1, 0);
        sum += cpu;
    }
    assert_eq!((sum.delayed, sum.delay_ns), (6, [17, 0]));
    assert_eq!([sum.min_delay_ns(0), sum.min_delay_ns(1)], [3, 0]);
    assert_eq!(sum.max_delay_ns, [9, 0]);
}

//! The histogram buckets of delays.

use injector_common::counter::{DELAY_BOUNDS, Delays};

#[test]
fn a_bucket_takes_delays_up_to_its_bound_and_longer_than_the_bound_before() {
    let mut lower = 0;
    for bucket in 0..DELAY_BOUNDS {
        let bound = Delays::bound_ns(bucket).expect("it has one");
        assert_eq!(Delays::bucket(lower + 1), bucket);
        assert_eq!(Delays::bucket(bound), bucket);
        assert!(bound > lower && (lower == 0 || 2 * bound <= 3 * lower), "{lower} to {bound} ns");
        lower = bound;
    }
    assert_eq!(Delays::bound_ns(DELAY_BOUNDS), None);
    for longer in [lower + 1, 1 << 40, u64::MAX] {
        assert_eq!(Delays::bucket(longer), DELAY_BOUNDS);
    }
    assert_eq!(Delays::bucket(0), 0);
}

#[test]
fn bounds_are_round() {
    let milliseconds =
        (8..19).filter_map(Delays::bound_ns).map(|ns| ns as f64 / 1e6).collect::<Vec<_>>();
    assert_eq!(milliseconds, [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0]);
    assert_eq!(Delays::bound_ns(0), Some(62_500));
    assert_eq!(Delays::bound_ns(DELAY_BOUNDS - 1), Some(65_536_000_000));
}

#[test]
fn directions_are_counted_apart() {
    let mut delays = Delays::default();
    for (direction, delay_ns) in [(0, 1), (0, u64::MAX), (1, 1), (1, 1), (1, u64::MAX)] {
        delays.counts[Delays::place(direction, delay_ns)] += 1;
    }
    let (first, last) = (|way: &[u64]| way[0], |way: &[u64]| way[DELAY_BOUNDS]);
    assert_eq!((first(delays.of(0)), last(delays.of(0))), (1, 1));
    assert_eq!((first(delays.of(1)), last(delays.of(1))), (2, 1));
    let mut sum = delays;
    sum += &delays;
    assert_eq!((first(sum.of(0)), first(sum.of(1)), last(sum.of(1))), (2, 4, 2));
}

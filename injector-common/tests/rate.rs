//! The rate model, by the code that runs in the kernel, compared with exact arithmetic.
//!
//! The model is deterministic. The bounds follow from its rounding: a byte's cost to 2^-20 ns, and each
//! packet's time to a nanosecond.

use injector_common::model::rate::{Rate, Transmission};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

/// The maximum length of a packet, to which longer ones are clamped.
const MAX_BYTES: u32 = 1 << 20;

/// The time of a byte at one bit a second, in nanoseconds.
const BYTE: u128 = 8_000_000_000;

const FOREVER: u64 = u64::MAX;

/// Deterministic cases, without a file of past failures.
fn cases(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..Config::default() }
}

/// A link as on the eBPF side.
struct Link {
    rate: Rate,
    free_ns: u64,
}

impl Link {
    fn new(rate: Rate) -> Self {
        Self { rate, free_ns: 0 }
    }

    /// Sends a packet, or drops it if it would wait longer than the queue limit.
    fn send(&mut self, now_ns: u64, bytes: u32) -> Option<Transmission> {
        let sent = self.rate.transmit(self.free_ns, now_ns, bytes);
        if sent.waits_ns > self.rate.queue_ns {
            return None;
        }
        self.free_ns = sent.free_ns;
        Some(sent)
    }
}

/// A rate without burst, overhead and queue limit.
fn plain(bits_a_second: u64) -> Rate {
    Rate::new(bits_a_second, 0, FOREVER, 0)
}

/// The maximum rounding error in nanoseconds: below 1 for each packet, and below 2^-20 for each byte.
fn rounding(bytes: u64, packets: u64) -> u64 {
    packets + (bytes >> 20) + 1
}

/// Panics unless `packets` packets of `bytes` in total took the exact time at that rate, except for
/// rounding.
fn assert_time(taken_ns: u64, bits_a_second: u64, bytes: u64, packets: u64) {
    let rate = u128::from(bits_a_second);
    let off = (u128::from(taken_ns) * rate).abs_diff(u128::from(bytes) * BYTE);
    assert!(
        off < u128::from(rounding(bytes, packets)) * rate,
        "{bytes} bytes in {packets} packets at {bits_a_second} took {taken_ns} ns"
    );
}

/// Rates from the minimum to the maximum, log-uniform.
fn bits_a_second() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (3.0..=12.0f64).prop_map(|exponent| 10f64.powf(exponent) as u64),
        1 => Just(1_000),
        1 => Just(1_000_000_000_000),
    ]
}

/// Times from 0 to a year of uptime.
fn time() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..1_000u64, 0..100_000_000_000u64, 0..1u64 << 55]
}

/// Sizes of frames and GSO packets.
fn bytes() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 1..100u32, 60..1_515u32, 1_515..65_536u32]
}

mod back_to_back {
    use super::*;

    #[test]
    fn packets_leave_at_exactly_a_rate_that_needs_no_rounding() {
        for (bits_a_second, byte_ns) in
            [(1_000, 8_000_000), (8_000, 1_000_000), (1_000_000, 8_000), (1_000_000_000, 8)]
        {
            let mut link = Link::new(plain(bits_a_second));
            let mut total = 0;
            for bytes in [1_514, 60, 0, 1, 65_535, 1_514, 999] {
                total += u64::from(bytes);
                let sent = link.send(0, bytes).expect("is sent");
                assert_eq!(sent.ends_ns, total * byte_ns, "{bits_a_second}");
            }
        }
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn packets_leave_at_the_rate(
            bits_a_second in bits_a_second(),
            lengths in prop::collection::vec(bytes(), 1..100),
            // Up to a year of uptime.
            start_ns in 0..1u64 << 55,
        ) {
            let mut link = Link::new(plain(bits_a_second));
            for &bytes in &lengths {
                prop_assert!(link.send(start_ns, bytes).is_some());
            }
            let total = lengths.iter().map(|&bytes| u64::from(bytes)).sum();
            assert_time(link.free_ns - start_ns, bits_a_second, total, lengths.len() as u64);
        }

        // However bytes are split, they take the same time to within the rounding of each piece.
        #[test]
        fn bytes_take_the_time_that_they_take_at_once(
            bits_a_second in bits_a_second(),
            lengths in prop::collection::vec(bytes(), 1..15),
        ) {
            let mut link = Link::new(plain(bits_a_second));
            for &bytes in &lengths {
                let _ = link.send(0, bytes);
            }
            let once = link.rate.time_of(lengths.iter().map(|&bytes| u64::from(bytes)).sum());
            prop_assert!(link.free_ns.abs_diff(once) <= lengths.len() as u64);
        }
    }
}

mod at_high_rates {
    use super::*;

    #[test]
    fn packets_of_whole_nanoseconds_take_exactly_these() {
        for gigabits in [10, 25, 40, 100, 400, 1_000] {
            let rate = plain(gigabits * 1_000_000_000);
            for time_ns in 1..2_000 {
                let bits = time_ns * gigabits;
                if bits.is_multiple_of(8) {
                    let sent = rate.transmit(0, 0, (bits / 8) as u32);
                    assert_eq!(sent.ends_ns, time_ns, "{} bytes at {gigabits} Gbit/s", bits / 8);
                }
            }
        }
    }
}

mod the_limits {
    use super::*;

    #[test]
    fn of_the_lowest_rate_do_not_overflow() {
        let rate = plain(1_000);
        let longest = u64::from(MAX_BYTES) * 8_000_000;
        for bytes in [MAX_BYTES, MAX_BYTES + 1, u32::MAX] {
            assert_eq!(rate.transmit(0, 0, bytes).ends_ns, longest);
        }
        // 2^62 ns are 146 years.
        let late = 1 << 62;
        let sent = rate.transmit(late + longest, late, u32::MAX);
        let ends_ns = late + 2 * longest;
        assert_eq!(sent, Transmission { waits_ns: longest, ends_ns, free_ns: ends_ns });
    }

    #[test]
    fn of_the_highest_rate_do_not_overflow() {
        let rate = plain(1_000_000_000_000);
        for bytes in [0, 1, 1_500, 65_535, MAX_BYTES] {
            let taken = rate.transmit(1 << 62, 0, bytes).ends_ns - (1 << 62);
            assert_time(taken, 1_000_000_000_000, bytes.into(), 1);
        }
        assert_eq!(rate.transmit(0, 0, u32::MAX), rate.transmit(0, 0, MAX_BYTES));
    }

    #[test]
    fn of_a_burst_do_not_overflow() {
        for bits_a_second in [1_000, 1_000_000_000_000] {
            let rate = Rate::new(bits_a_second, u64::MAX, FOREVER, 0);
            for now_ns in [0, 1, 1 << 62] {
                let sent = rate.transmit(0, now_ns, u32::MAX);
                assert_eq!(sent.waits_ns, 0);
                assert!(sent.ends_ns <= now_ns + rate.time_of(MAX_BYTES.into()));
            }
        }
    }

    #[test]
    fn of_the_time_of_bytes_are_kept_to() {
        assert_eq!(plain(1_000).time_of(u64::MAX), u64::MAX);
        assert_eq!(plain(1_000).time_of(0), 0);
        assert_eq!(plain(1_000_000_000).time_of(1 << 60), 1 << 63);
    }

    #[test]
    fn that_there_are_none_take_no_time() {
        let unlimited = Rate { queue_ns: FOREVER, ..Rate::default() };
        let mut link = Link::new(unlimited);
        for now_ns in [0, 0, 5, 5, 1 << 62] {
            let sent = link.send(now_ns, u32::MAX);
            let expected = Transmission { waits_ns: 0, ends_ns: now_ns, free_ns: now_ns };
            assert_eq!(sent, Some(expected));
        }
    }

    proptest! {
        #![proptest_config(cases(1024))]

        // Overflows would panic.
        #[test]
        fn are_kept_whatever_the_packet(
            bits_a_second in bits_a_second(),
            burst in prop_oneof![0..1u64 << 32, any::<u64>()],
            overhead in prop_oneof![any::<i32>(), Just(i32::MIN), Just(i32::MAX)],
            bytes in prop_oneof![any::<u32>(), Just(0), Just(u32::MAX)],
            free_ns in 0..1u64 << 62,
            now_ns in 0..1u64 << 62,
        ) {
            let rate = Rate::new(bits_a_second, burst, FOREVER, overhead);
            let sent = rate.transmit(free_ns, now_ns, bytes);
            let starts_ns = free_ns.max(now_ns);
            prop_assert!(sent.free_ns >= starts_ns);
            prop_assert!(sent.free_ns - starts_ns <= rate.time_of(MAX_BYTES.into()));
            prop_assert_eq!(sent.ends_ns, sent.free_ns.saturating_sub(rate.burst_ns));
        }
    }
}

mod an_idle_link {
    use super::*;

    proptest! {
        #![proptest_config(cases(512))]

        #[test]
        fn sends_at_once_and_takes_the_time_of_the_packet_alone(
            bits_a_second in bits_a_second(),
            bytes in bytes(),
            free_ns in 0..1u64 << 55,
            idle_ns in prop_oneof![Just(0), 0..1_000u64, 0..1u64 << 55],
        ) {
            let now_ns = free_ns + idle_ns;
            let sent = plain(bits_a_second).transmit(free_ns, now_ns, bytes);
            prop_assert_eq!(sent.waits_ns, 0);
            assert_time(sent.ends_ns - now_ns, bits_a_second, bytes.into(), 1);
        }

        // After any idle time, and at any time of the clock, exactly a burst is sent without waiting.
        #[test]
        fn sends_a_burst_without_waiting_and_then_at_the_rate(
            bits_a_second in bits_a_second(),
            within in prop::collection::vec(bytes(), 0..50),
            spare in bytes(),
            beyond in prop::collection::vec(bytes(), 0..50),
            now_ns in time(),
        ) {
            let sum = |lengths: &[u32]| lengths.iter().map(|&bytes| u64::from(bytes)).sum::<u64>();
            let burst = sum(&within) + u64::from(spare);
            let rate = Rate::new(bits_a_second, burst, FOREVER, 0);
            let mut link = Link::new(rate);
            for &bytes in &within {
                let sent = link.send(now_ns, bytes).expect("is sent");
                prop_assert!(sent.waits_ns == 0 && sent.ends_ns <= now_ns, "{:?}", sent);
            }
            for &bytes in &beyond {
                let _ = link.send(now_ns, bytes);
            }
            // All of it as from a burst's time ago, where the link's own clock is, if it was sent at all.
            if within.len() + beyond.len() > 0 {
                let total = sum(&within) + sum(&beyond);
                let packets = (within.len() + beyond.len()) as u64;
                let taken_ns = link.free_ns - now_ns;
                assert_time(taken_ns, bits_a_second, total, packets);
            }
        }
    }

    #[test]
    fn has_its_whole_burst_when_the_clock_has_just_begun() {
        // A burst of 100 s, 1 s after boot.
        let mut link = Link::new(Rate::new(1_000, 12_500, 0, 0));
        let second = 1_000_000_000;
        let sent =
            (0..20).filter_map(|_| link.send(second, 1_250)).filter(|sent| sent.waits_ns == 0);
        // The next one starts when the burst is used up.
        assert_eq!(sent.count(), 11);
        // It takes 10 s.
        assert_eq!(link.send(11 * second - 1, 1), None);
        assert!(link.send(11 * second, 1).is_some());
    }

    #[test]
    fn has_its_burst_again_after_the_time_that_it_takes() {
        // 1 Mbit/s: 8 us for each byte.
        let mut link = Link::new(Rate::new(1_000_000, 10_000, FOREVER, 0));
        let second = 1_000_000_000;
        for now_ns in [second, second + 80_000_000, second + 160_000_000] {
            for number in 1..=10 {
                let sent = link.send(now_ns, 1_000).expect("is sent");
                assert_eq!(sent.ends_ns, now_ns - 80_000_000 + number * 8_000_000);
            }
            let waiting = link.rate.transmit(link.free_ns, now_ns, 1_000);
            assert_eq!((waiting.waits_ns, waiting.ends_ns), (0, now_ns + 8_000_000));
        }
    }

    #[test]
    fn has_as_much_of_its_burst_as_it_was_idle_for() {
        let mut link = Link::new(Rate::new(1_000_000, 10_000, FOREVER, 0));
        let second = 1_000_000_000;
        assert_eq!(link.send(second, 10_000).map(|sent| sent.ends_ns), Some(second));
        let soon = second + 24_000_000;
        assert_eq!(link.send(soon, 3_000).map(|sent| sent.ends_ns), Some(soon));
        assert_eq!(link.send(soon, 1_000).map(|sent| sent.ends_ns), Some(soon + 8_000_000));
    }
}

mod overhead {
    use super::*;

    proptest! {
        #![proptest_config(cases(1024))]

        #[test]
        fn lengthens_or_shortens_each_packet(
            bits_a_second in bits_a_second(),
            bytes in 0..1u32 << 19,
            overhead in prop_oneof![-100..100i32, -(1 << 19)..1 << 19],
            free_ns in 0..1u64 << 55,
            now_ns in 0..1u64 << 55,
        ) {
            let with = Rate::new(bits_a_second, 5_000, FOREVER, overhead);
            let without = Rate { overhead: 0, ..with };
            let length = bytes.saturating_add_signed(overhead);
            prop_assert_eq!(
                with.transmit(free_ns, now_ns, bytes),
                without.transmit(free_ns, now_ns, length)
            );
        }
    }

    #[test]
    fn that_takes_off_more_than_there_is_leaves_nothing() {
        for overhead in [-100, -101, i32::MIN] {
            let rate = Rate::new(1_000, 0, FOREVER, overhead);
            let expected = Transmission { waits_ns: 7, ends_ns: 7, free_ns: 7 };
            assert_eq!(rate.transmit(7, 0, 100), expected);
        }
        assert_eq!(Rate::new(1_000, 0, FOREVER, -99).transmit(0, 0, 100).ends_ns, 8_000_000);
    }

    #[test]
    fn is_added_for_what_ethernet_adds_and_taken_off_for_a_header() {
        // Preamble, checksum and gap: 24 bytes on each frame, and the shortest packets 84 bytes each.
        let ethernet = Rate::new(1_000_000_000, 0, FOREVER, 24);
        assert_eq!(ethernet.transmit(0, 0, 60).ends_ns, 84 * 8);
        let without_header = Rate::new(1_000_000_000, 0, FOREVER, -14);
        assert_eq!(without_header.transmit(0, 0, 1_514).ends_ns, 1_500 * 8);
    }
}

/// A link, and packets with their times of arrival.
#[derive(Clone, Debug)]
struct Traffic {
    bits_a_second: u64,
    rate: Rate,
    packets: Vec<(u64, u32)>,
}

/// Packets at rates from far below the limit to far above, with pauses.
fn traffic() -> impl Strategy<Value = Traffic> {
    // Gaps, bursts and queues are in units of the time that 1500 bytes take.
    let gap = prop_oneof![Just(0.0), 0.0..1.0f64, 0.0..3.0f64, 0.0..60.0f64];
    let burst = prop_oneof![Just(0), 1..3_000u64, 3_000..100_000u64];
    let queue = prop_oneof![Just(None), (0.0..20.0f64).prop_map(Some)];
    let packets = prop::collection::vec((gap, bytes()), 1..60);
    (bits_a_second(), burst, queue, -20..40i32, time(), packets).prop_map(
        |(bits_a_second, burst, queue, overhead, mut now_ns, packets)| {
            let unit = plain(bits_a_second).time_of(1_500) as f64;
            let queue_ns = queue.map_or(FOREVER, |queue: f64| (queue * unit) as u64);
            let rate = Rate::new(bits_a_second, burst, queue_ns, overhead);
            let arrive = |(gap, bytes): (f64, u32)| {
                now_ns += (gap * unit) as u64;
                (now_ns, bytes)
            };
            let packets = packets.into_iter().map(arrive).collect();
            Traffic { bits_a_second, rate, packets }
        },
    )
}

impl Traffic {
    /// Each packet's time of arrival, its length on the link and its result.
    fn run(&self) -> Vec<(u64, u64, Option<Transmission>)> {
        let mut link = Link::new(self.rate);
        let send = |&(now_ns, bytes): &(u64, u32)| {
            let length = bytes.saturating_add_signed(self.rate.overhead);
            (now_ns, length.into(), link.send(now_ns, bytes))
        };
        self.packets.iter().map(send).collect()
    }
}

mod any_traffic {
    use super::*;

    proptest! {
        #![proptest_config(cases(128))]

        // In any interval, what leaves is at most the rate times its length, and a burst or the packet that
        // was on its way at the start. It is enough to look at intervals from one packet to another.
        #[test]
        fn leaves_at_no_more_than_the_rate_and_a_burst(traffic in traffic()) {
            let sent: Vec<(u64, u64)> = traffic
                .run()
                .into_iter()
                .filter_map(|(now_ns, length, sent)| Some((length, sent?.ends_ns.max(now_ns))))
                .collect();
            let rate = u128::from(traffic.bits_a_second);
            for (first, &(head, start_ns)) in sent.iter().enumerate() {
                let credit_ns = traffic.rate.burst_ns.max(traffic.rate.time_of(head) + 1);
                let mut total = 0;
                for (packets, &(length, end_ns)) in (1..).zip(&sent[first..]) {
                    total += length;
                    let allowed_ns = end_ns - start_ns + credit_ns;
                    let rounding_ns = rounding(total, packets);
                    prop_assert!(
                        u128::from(total) * BYTE <= u128::from(allowed_ns + rounding_ns) * rate,
                        "{} bytes from {} to {}", total, start_ns, end_ns
                    );
                }
            }
        }

        // The link by another description: credit that grows with time up to the burst, and that packets take
        // from; what is missing is what they wait for.
        #[test]
        fn waits_for_the_backlog(traffic in traffic()) {
            let rate = traffic.rate;
            let (mut credit, mut before) = (i128::from(rate.burst_ns), 0);
            for (now_ns, length, sent) in traffic.run() {
                credit = (credit + i128::from(now_ns - before)).min(rate.burst_ns.into());
                before = now_ns;
                let backlog = -credit.min(0);
                prop_assert_eq!(sent.is_none(), backlog > i128::from(rate.queue_ns));
                if let Some(sent) = sent {
                    prop_assert_eq!(i128::from(sent.waits_ns), backlog);
                    credit -= i128::from(rate.time_of(length));
                    // Times before the clock's zero are not represented.
                    prop_assert_eq!(i128::from(sent.ends_ns), (i128::from(now_ns) - credit).max(0));
                }
            }
        }

        #[test]
        fn leaves_in_order(traffic in traffic()) {
            let (mut free_ns, mut left_ns) = (0, 0);
            for (now_ns, length, sent) in traffic.run() {
                let Some(sent) = sent else { continue };
                prop_assert!(sent.free_ns >= free_ns, "{} after {}", sent.free_ns, free_ns);
                prop_assert!(sent.free_ns - free_ns >= traffic.rate.time_of(length));
                prop_assert!(sent.ends_ns.max(now_ns) >= left_ns);
                (free_ns, left_ns) = (sent.free_ns, sent.ends_ns.max(now_ns));
            }
        }

        // This implies a queue limit in bytes.
        #[test]
        fn waits_for_no_longer_than_the_queue(traffic in traffic()) {
            for (now_ns, length, sent) in traffic.run() {
                let Some(sent) = sent else { continue };
                prop_assert!(sent.waits_ns <= traffic.rate.queue_ns);
                prop_assert!(sent.ends_ns <= now_ns + sent.waits_ns + traffic.rate.time_of(length));
            }
        }

        // The link is never idle while there is a backlog.
        #[test]
        fn keeps_a_busy_link_busy(traffic in traffic()) {
            let mut free_ns = 0;
            for (now_ns, length, sent) in traffic.run() {
                let Some(sent) = sent else { continue };
                if free_ns >= now_ns {
                    prop_assert_eq!(sent.free_ns, free_ns + traffic.rate.time_of(length));
                }
                free_ns = sent.free_ns;
            }
        }
    }
}

mod a_change_known_in_advance {
    use super::*;

    /// Sends packets back to back over a link whose rate changes at `change_ns`.
    fn ends(before: u64, after: u64, change_ns: u64, lengths: &[u32]) -> Vec<u64> {
        let next_cost = plain(after).cost;
        let mut link = Link::new(Rate { next_ns: change_ns, next_cost, ..plain(before) });
        let sent = lengths.iter().map(|&bytes| link.send(1_000, bytes).expect("is sent").ends_ns);
        sent.collect()
    }

    #[test]
    fn splits_the_packet_on_the_wire() {
        // A byte takes 1 µs, then 4 µs.
        let found = ends(8_000_000, 2_000_000, 501_000, &[400, 200, 100]);
        assert_eq!(found, [401_000, 501_000 + 400_000, 501_000 + 800_000]);
        let found = ends(2_000_000, 8_000_000, 501_000, &[100, 100, 100]);
        assert_eq!(found, [401_000, 501_000 + 75_000, 501_000 + 175_000]);
    }

    proptest! {
        #![proptest_config(cases(256))]

        // The bytes up to any packet take the time of a link that changes its rate in the middle.
        #[test]
        fn is_that_of_a_link_that_changes(
            before in 1_000_000..10_000_000_000u64,
            after in 1_000_000..10_000_000_000u64,
            change_ns in 1_001..10_000_000_000u64,
            lengths in prop::collection::vec(1..65_536u32, 1..100),
        ) {
            let mut bytes = 0.0;
            let ends = ends(before, after, change_ns, &lengths);
            for (count, (end, length)) in (1u32..).zip(ends.into_iter().zip(&lengths)) {
                bytes += f64::from(*length);
                let at = |rate: u64, bytes: f64| bytes * 8e9 / rate as f64;
                let early = (change_ns - 1_000) as f64;
                let until = early / at(before, 1.0);
                let expected = if bytes <= until {
                    at(before, bytes)
                } else {
                    early + at(after, bytes - until)
                };
                // A byte is split at the change, and each time rounded to a nanosecond.
                let rounding = at(after, 1.0).max(at(before, 1.0)) + 2.0 * f64::from(count) + expected * 1e-5;
                let found = (end - 1_000) as f64;
                prop_assert!((found - expected).abs() <= rounding, "{found} for {expected}");
            }
        }
    }
}

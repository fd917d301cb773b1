//! Delay, jitter and reordering, measured by packets stamped at both ends, with each available engine.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::Signal,
    socket::{setsockopt, sockopt},
};
use serde_json::Value;
use statrs::distribution::{ContinuousCDF as _, Normal};
use testbed::{
    FAMILIES, Family, Host, Injector, Lab, RuleFile, TestCgroup, binomial, engines, median, number,
    serve, talk,
};

/// The number of datagrams for each measurement of accuracy.
const COUNT: usize = 10_000;

/// The bound that a correct implementation exceeds once in 10^6 runs: that of Dvoretzky, Kiefer and
/// Wolfowitz with Massart's constant, for [`COUNT`] values.
fn kolmogorov_smirnov() -> f64 {
    (f64::ln(2.0 / 1e-6) / (2.0 * COUNT as f64)).sqrt()
}

/// Serializes tests, since load delays packets.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A received datagram.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    number: u64,
    /// The one-way delay.
    delay_ms: f64,
    /// The time of arrival, by the common clock.
    at_ms: f64,
}

fn arrivals(report: &Value) -> Vec<Arrival> {
    let arrivals = testbed::arrivals(report).into_iter();
    arrivals.map(|(number, delay_ms, at_ms)| Arrival { number, delay_ms, at_ms }).collect()
}

/// Sends stamped datagrams. `wait_ms` is the maximum delay of the last one.
fn stamped(
    from: &Host,
    cgroup: Option<&TestCgroup>,
    to: &Host,
    line: &str,
    wait_ms: u64,
) -> Vec<Arrival> {
    let family = Family::V4;
    let at = to.at(family, 9000);
    let receiver = serve(to, None, &format!("stamp-receive --bind {at}"));
    talk(from, cgroup, &format!("stamp-send --to {at} {line}"));
    thread::sleep(Duration::from_millis(wait_ms));
    arrivals(&receiver.finish())
}

/// The maximum distance of the empirical distribution from `cdf`.
fn distance(values: &[f64], cdf: impl Fn(f64) -> f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let each = sorted.iter().enumerate().map(|(rank, &value)| {
        let expected = cdf(value);
        (expected - rank as f64 / n).abs().max((expected - (rank + 1) as f64 / n).abs())
    });
    each.fold(0.0, f64::max)
}

#[test]
fn a_fixed_delay_is_never_undercut_and_keeps_the_order() {
    let _turn = turn();
    let lab = Lab::new();
    for engine in engines() {
        for ms in [1, 5, 20, 100] {
            let line = format!(
                "--engine {engine} --direction egress --interface veth0 --protocol udp --delay {ms}ms"
            );
            let injector = Injector::start(&lab.left, &line);
            let line = format!("--count {COUNT} --every-us 200");
            let arrivals = stamped(&lab.left, None, &lab.right, &line, 2 * ms);
            let summary = injector.stop();
            let total = summary.total;
            assert_eq!(arrivals.len(), COUNT, "{engine} {ms} ms: {total:?} {:?}", summary.held);
            assert_eq!((total.delayed, total.reordered), (COUNT as u64, 0), "{engine} {ms} ms");
            let told = &total.delay["egress"];
            assert_eq!(told["count"], COUNT, "{engine} {ms} ms: {told}");
            assert_eq!(told["sum_ms"], (COUNT as u64 * ms) as f64, "{engine} {ms} ms: {told}");
            let buckets = told["buckets"].as_array().expect("a list");
            let up_to = buckets[0]["up_to_ms"].as_f64().expect("a number");
            let is_right = buckets.len() == 1 && (ms as f64..1.5 * ms as f64).contains(&up_to);
            assert!(is_right, "{engine} {ms} ms: {told}");
            for key in ["min_ms", "p50_ms", "p99_ms", "max_ms"] {
                assert_eq!(told[key], ms as f64, "{engine} {ms} ms: {told}");
            }
            assert!(arrivals.is_sorted_by_key(|arrival| arrival.number), "{engine} {ms} ms");
            let early = arrivals.iter().find(|arrival| arrival.delay_ms < ms as f64);
            assert!(early.is_none(), "{engine} {ms} ms: {early:?}");
            // The benchmark measures the overhead; this only rules out gross errors.
            let median = median(arrivals.iter().map(|arrival| arrival.delay_ms).collect());
            assert!(median < ms as f64 + 5.0, "{engine} {ms} ms: {median}");
        }
    }
}

/// A distribution of delays in milliseconds.
type Cdf = Box<dyn Fn(f64) -> f64>;

#[test]
fn each_distribution_is_the_one_that_it_is_called_after() {
    // Wide enough that the overhead does not matter.
    const MEAN: f64 = 200.0;
    const JITTER: f64 = 50.0;
    let _turn = turn();
    let normal = Normal::new(MEAN, JITTER).expect("a distribution");
    // netem's Pareto: a = 3, so mean and deviation are 1.5 and sqrt(3)/2, cut off at 4 deviations.
    let pareto = |t: f64| {
        let x = t * 0.75 + 1.5;
        if x <= 1.0 {
            0.0
        } else if t >= 32767.0 / 8192.0 {
            1.0
        } else {
            1.0 - x.powi(-3)
        }
    };
    let lines = |line: &dyn Fn(u32) -> String| (0..1000).map(line).collect::<Vec<_>>().join("\n");
    let file = RuleFile::new(&lines(&|n| n.to_string()));
    let samples = RuleFile::new(&lines(&|n| format!("{}ms", 100.0 + f64::from(n) / 5.0)));
    let lab = Lab::new();
    let line = format!("jitter={JITTER}ms");
    let cases: [(String, Cdf); 5] = [
        (
            format!("{MEAN}ms,{line}"),
            Box::new(|ms| ((ms - MEAN + JITTER) / (2.0 * JITTER)).clamp(0.0, 1.0)),
        ),
        (format!("{MEAN}ms,{line},dist=normal"), Box::new(move |ms| normal.cdf(ms))),
        (format!("{MEAN}ms,{line},dist=pareto"), Box::new(move |ms| pareto((ms - MEAN) / JITTER))),
        // Its values run from 0 to 999 of 8192.
        (
            format!("{MEAN}ms,jitter=500ms,dist={}", file.path.display()),
            Box::new(|ms| ((ms - MEAN) / (500.0 * 1000.0 / 8192.0)).clamp(0.0, 1.0)),
        ),
        (
            format!("samples={}", samples.path.display()),
            Box::new(|ms| ((ms - 100.0) / 200.0).clamp(0.0, 1.0)),
        ),
    ];
    for engine in engines() {
        // The delay of the machine itself.
        let line = format!(
            "--engine {engine} --direction egress --interface veth0 --protocol udp --delay {MEAN}ms"
        );
        let injector = Injector::start(&lab.left, &line);
        let fixed = stamped(&lab.left, None, &lab.right, "--count 2000 --every-us 300", 500);
        drop(injector);
        let late = median(fixed.iter().map(|arrival| arrival.delay_ms).collect()) - MEAN;
        assert!((0.0..10.0).contains(&late), "{engine}: {late}");
        for (delay, cdf) in &cases {
            let line = format!(
                "--engine {engine} --direction egress --interface veth0 --protocol udp --seed 7 --delay {delay}"
            );
            let injector = Injector::start(&lab.left, &line);
            let line = format!("--count {COUNT} --every-us 300");
            let arrivals = stamped(&lab.left, None, &lab.right, &line, 1000);
            let total = injector.stop().total;
            assert_eq!((arrivals.len(), total.delayed), (COUNT, COUNT as u64), "{engine} {delay}");
            let values: Vec<f64> = arrivals.iter().map(|arrival| arrival.delay_ms - late).collect();
            let found = distance(&values, cdf);
            // It varies, which moves the distribution by at most the density times that.
            let unequal = 0.01;
            assert!(found < kolmogorov_smirnov() + unequal, "{engine} {delay}: {found}");
        }
    }
}

#[test]
fn a_packet_does_not_wait_for_one_that_is_due_later() {
    const COUNT: u64 = 300;
    let [short, long] = [10.0, 110.0];
    let _turn = turn();
    let lab = Lab::new();
    let samples = RuleFile::new(&format!("{short}ms\n{long}ms"));
    for engine in engines() {
        let line = format!(
            "--engine {engine} --direction egress --interface veth0 --protocol udp \
             --delay samples={}",
            samples.path.display()
        );
        let injector = Injector::start(&lab.left, &line);
        // Few are held at a time, so that most short delays begin while a long one is under way.
        let line = format!("--count {COUNT} --every-us 10000");
        let arrivals = stamped(&lab.left, None, &lab.right, &line, 200);
        drop(injector);
        assert_eq!(arrivals.len() as u64, COUNT, "{engine}");
        let early = arrivals.iter().filter(|arrival| arrival.delay_ms < long / 2.0).count() as u64;
        assert!(binomial(COUNT, 0.5).contains(&early), "{engine}: {early} of {COUNT}");
    }
}

#[test]
fn packets_of_the_highest_priority_are_delayed_as_well() {
    const DELAY: Duration = Duration::from_millis(200);
    let _turn = turn();
    let lab = Lab::new();
    let to = lab.right.at(Family::V4, 9000);
    for engine in engines() {
        let line = format!(
            "--engine {engine} --direction egress --interface veth0 --protocol udp --delay 200ms"
        );
        let injector = Injector::start(&lab.left, &line);
        let receiver = lab.right.inside(|| UdpSocket::bind(to).expect("a free port"));
        receiver.set_read_timeout(Some(testbed::TIMEOUT)).expect("a socket");
        let sender = lab.left.inside(|| UdpSocket::bind("0.0.0.0:0").expect("a free port"));
        // TC_PRIO_CONTROL, and a class whose lowest bits are the same.
        for priority in [7, 0x1_0007] {
            setsockopt(&sender, sockopt::Priority, &priority).expect("root may");
            let start = Instant::now();
            sender.send_to(b"a", to).expect("a route");
            receiver.recv(&mut [0]).expect("a datagram");
            assert!(start.elapsed() >= DELAY, "{engine} {priority}: {:?}", start.elapsed());
        }
        assert_eq!(injector.stop().total.delayed, 2, "{engine}");
    }
}

#[test]
fn only_every_gapth_packet_overtakes_and_so_often_as_asked() {
    const GAP: u64 = 5;
    const N: u64 = 4000;
    let _turn = turn();
    let lab = Lab::new();
    for engine in engines() {
        let line = format!(
            "--engine {engine} --direction egress --interface veth0 --protocol udp --delay 30ms --reorder 50%,gap={GAP}"
        );
        let injector = Injector::start(&lab.left, &line);
        let line = format!("--count {N} --every-us 500");
        let arrivals = stamped(&lab.left, None, &lab.right, &line, 100);
        let total = injector.stop().total;
        assert_eq!(arrivals.len() as u64, N);
        let mut early: Vec<u64> = arrivals
            .iter()
            .filter(|arrival| arrival.delay_ms < 30.0)
            .map(|arrival| arrival.number)
            .collect();
        early.sort_unstable();
        assert_eq!(early.len() as u64, total.reordered, "{engine}: {total:?}");
        assert!(early.windows(2).all(|pair| pair[1] - pair[0] >= GAP), "{engine}");
        // The gap is 4 packets plus a geometric number with probability 1/2.
        let extra = early.windows(2).map(|pair| pair[1] - pair[0] - GAP).sum::<u64>();
        let trials = extra + early.len() as u64 - 1;
        assert!(binomial(trials, 0.5).contains(&extra), "{engine}: {extra} of {trials}");
        assert!(!arrivals.is_sorted_by_key(|arrival| arrival.number), "{engine}");
    }
}

#[test]
fn ordered_delays_vary_but_keep_the_order_of_each_flow() {
    const FLOWS: u64 = 2;
    const COUNT: usize = 2000;
    /// Mean and jitter: far more than the interval of the packets of a flow, 1 ms.
    const DELAY: [f64; 2] = [30.0, 20.0];
    let _turn = turn();
    let lab = Lab::new();
    let (left, right) = (&lab.left, &lab.right);
    let [mean, jitter] = DELAY;
    for engine in engines() {
        // Over the loopback, to this host, and from it.
        for (interface, direction, from, to) in [
            ("lo", "egress", left, left),
            ("veth0", "ingress", right, left),
            ("veth0", "egress", left, right),
        ] {
            for ordered in ["", ",ordered"] {
                let line = format!(
                    "--engine {engine} --interface {interface} --protocol udp --direction {direction} \
                     --delay {mean}ms,jitter={jitter}ms{ordered}"
                );
                let injector = Injector::start(left, &line);
                let line = format!("--count {COUNT} --every-us 500 --flows {FLOWS}");
                let arrivals = stamped(from, None, to, &line, 200);
                let summary = injector.stop();
                let what = format!("{engine} {interface} {direction}{ordered}");
                assert_eq!(arrivals.len(), COUNT, "{what}: {summary:?}");
                for flow in 0..FLOWS {
                    let of_flow = |arrival: &&Arrival| arrival.number % FLOWS == flow;
                    let numbers = arrivals.iter().filter(of_flow).map(|arrival| arrival.number);
                    assert_eq!(numbers.is_sorted(), !ordered.is_empty(), "{what}");
                }
                let mut delays: Vec<f64> =
                    arrivals.iter().map(|arrival| arrival.delay_ms).collect();
                delays.sort_by(f64::total_cmp);
                assert!(delays[0] >= mean - jitter, "{what}: {} ms", delays[0]);
                // The medium 80 % of the running maximum are 9 ms apart, those of the draws 32 ms.
                let spread = delays[COUNT * 9 / 10] - delays[COUNT / 10];
                assert!(spread > 4.0, "{what}: {spread} ms");
            }
        }
    }
}

#[test]
fn the_order_of_a_flow_ends_with_its_rule() {
    let _turn = turn();
    let lab = Lab::new();
    let to = lab.right.address(Family::V4);
    for engine in engines() {
        let rule = |delay: &str, matching: &str| {
            format!("rules: [{{delay: '{delay},ordered', protocol: icmp{matching}}}]")
        };
        // Packets of one flow, which leave after a minute at the latest.
        let file = RuleFile::new(&rule("50s,jitter=10s", ""));
        let line = format!("--interface veth0 --engine {engine} {}", file.option());
        let mut injector = Injector::start(&lab.left, &line);
        assert_eq!(lab.left.ping(None, to, 3), 0);
        // Another link each time, at last the first one again.
        for matching in [", direction: egress", ", direction: both, remote: 10.0.0.0/8"] {
            file.write(&rule("20ms,jitter=10ms", matching));
            injector.process.signal(Signal::SIGHUP);
            injector.process.wait_for("changed");
            let (_, output) = lab.left.run_in(None, &format!("ping -n -c 3 -i 0.2 -W 5 {to}"));
            let rtt = round_trip_ms(&output);
            assert!((10.0..5000.0).contains(&rtt), "{engine} {matching}: {rtt} ms");
        }
        drop(injector);
    }
}

#[test]
fn both_directions_of_both_families_are_delayed_and_others_are_not() {
    let _turn = turn();
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    for engine in engines() {
        for (direction, least) in [("egress", 40.0), ("ingress", 40.0), ("both", 80.0)] {
            let line = format!("--engine {engine} --direction {direction} --delay 40ms");
            let injector = Injector::on(&lab.left, &cgroup, &line);
            for family in FAMILIES {
                let to = lab.right.address(family);
                let round_trip = |cgroup| {
                    let (_, output) = lab.left.run_in(cgroup, &format!("ping -n -c 3 -i 0.2 {to}"));
                    round_trip_ms(&output)
                };
                let (inside, beside) = (round_trip(Some(&cgroup)), round_trip(None));
                assert!(
                    (least..least + 20.0).contains(&inside),
                    "{engine} {direction}: {inside} ms"
                );
                assert!(beside < 20.0, "{engine} {direction}: {beside} ms beside the target");
            }
            let summary = injector.stop();
            assert_eq!(summary.held.map(|held| held.engine).as_deref(), Some(engine));
            assert_eq!(summary.total.delayed, summary.total.matched, "{:?}", summary.total);
        }
        let injector = Injector::on(&lab.left, &cgroup, &format!("--engine {engine} --rtt 60ms"));
        let (_, output) = lab.left.run_in(
            Some(&cgroup),
            &format!("ping -n -c 3 -i 0.2 {}", lab.right.address(Family::V6)),
        );
        let rtt = round_trip_ms(&output);
        assert!((60.0..80.0).contains(&rtt), "{engine}: {rtt} ms");
        drop(injector);
    }
}

#[test]
fn a_packet_over_loopback_is_delayed_once() {
    let _turn = turn();
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    for engine in engines() {
        let injector = Injector::on(&lab.left, &cgroup, &format!("--engine {engine} --delay 30ms"));
        for to in ["127.0.0.1", "::1", "192.0.2.1"] {
            let to = if to == "192.0.2.1" {
                lab.left.address(Family::V4).to_string()
            } else {
                to.into()
            };
            let (_, output) = lab.left.run_in(Some(&cgroup), &format!("ping -n -c 3 -i 0.2 {to}"));
            // Round trip.
            let rtt = round_trip_ms(&output);
            assert!((60.0..90.0).contains(&rtt), "{engine} {to}: {rtt} ms: {output}");
        }
        drop(injector);
        let settings = "sysctl -n net.ipv4.conf.lo.accept_local net.ipv4.conf.lo.route_localnet";
        let end = Instant::now() + Duration::from_secs(2);
        while lab.left.run(settings) != "0\n0\n" {
            assert!(Instant::now() < end, "{engine}: {}", lab.left.run(settings));
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn settings_of_the_loopback_that_others_have_made_stay() {
    const SETTINGS: [&str; 2] = ["accept_local", "route_localnet"];
    let lab = Lab::new();
    let read = || {
        let settings = SETTINGS.map(|name| format!("net.ipv4.conf.lo.{name}"));
        let text = lab.left.run(&format!("sysctl -n {}", settings.join(" ")));
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let set = |name: &str, value: &str| {
        lab.left.run(&format!("sysctl -q -w net.ipv4.conf.lo.{name}={value}"))
    };
    // What others set before, while it runs if they do, and what is there afterwards.
    for (before, meanwhile, during, after) in [
        (["0", "0"], None, "2 2", "0 0"),
        (["1", "0"], None, "1 2", "1 0"),
        (["1", "1"], None, "1 1", "1 1"),
        (["0", "1"], Some("1"), "2 1", "1 1"),
    ] {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            SETTINGS.iter().zip(before).for_each(|(name, value)| drop(set(name, value)));
            let injector = Injector::start(&lab.left, "--interface lo --no-protect --delay 1ms");
            let what = format!("{before:?} {meanwhile:?} {signal}");
            assert_eq!(read(), during, "{what}");
            if let Some(value) = meanwhile {
                set("accept_local", value);
            }
            injector.process.signal(signal);
            drop(injector);
            testbed::wait_until(testbed::TIMEOUT, &what, || read() == after);
        }
    }
}

#[test]
fn a_stream_is_whole_under_delay_jitter_loss_and_corruption() {
    const BYTES: u64 = 3_000_000;
    let _turn = turn();
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    for engine in engines() {
        let line = format!(
            "--engine {engine} --delay 5ms,jitter=1ms --loss 0.5% --duplicate 1% --corrupt 0.5% --reorder 2%"
        );
        let injector = Injector::on(&lab.left, &cgroup, &line);
        for family in FAMILIES {
            let to = lab.right.at(family, 9000);
            let line =
                format!("tcp-connect --mode echo --to {to} --bytes {BYTES} --timeout-ms 30000");
            let report = talk(&lab.left, Some(&cgroup), &line);
            assert_eq!(report["error"], Value::Null, "{engine} {report}");
            let read = &report["read"];
            let got = (number(read, "bytes"), number(read, "wrong"));
            assert_eq!(got, (BYTES, 0), "{engine} {report}");
        }
        let total = injector.stop().total;
        assert!(
            total.delayed > 0 && total.reordered > 0 && total.skipped == 0,
            "{engine} {total:?}"
        );
    }
    drop(server);
}

#[test]
fn equal_seeds_give_equal_delays() {
    let _turn = turn();
    let lab = Lab::new();
    for engine in engines() {
        let run = || {
            let line = format!(
                "--engine {engine} --direction egress --interface veth0 --protocol udp --seed 11 --delay 50ms,jitter=40ms --reorder 10%"
            );
            let injector = Injector::start(&lab.left, &line);
            let mut arrivals =
                stamped(&lab.left, None, &lab.right, "--count 300 --every-us 1000", 200);
            drop(injector);
            arrivals.sort_by_key(|arrival| arrival.number);
            arrivals
        };
        let (first, second) = (run(), run());
        assert_eq!((first.len(), second.len()), (300, 300), "{engine}");
        // The overhead varies, so compare most packets only.
        let same = first.iter().zip(&second).filter(|(a, b)| (a.delay_ms - b.delay_ms).abs() < 5.0);
        assert!(same.count() > 200, "{engine}");
    }
}

#[test]
fn rate_builds_a_queue_and_then_drops_and_both_are_counted() {
    const N: u64 = 100;
    const PAYLOAD: u64 = 958;
    // Ethernet, IPv4, UDP.
    const FRAME: u64 = PAYLOAD + 42;
    let _turn = turn();
    let lab = Lab::new();
    for engine in engines() {
        let on = format!("--engine {engine} --direction egress --interface veth0 --protocol udp");
        // 10 ms a frame, sent as a burst: faster than 10 ms each even on a slow machine.
        let injector = Injector::start(&lab.left, &format!("{on} --rate 800kbit,queue=10s"));
        let line = format!("--count {N} --size {PAYLOAD} --every-us 0");
        let arrivals = stamped(&lab.left, None, &lab.right, &line, 1500);
        let total = injector.stop().total;
        assert_eq!((arrivals.len() as u64, total.queue_dropped), (N, 0), "{engine}");
        assert!(total.queued >= N - 10, "{engine} {total:?}");
        let took = arrivals[N as usize - 1].at_ms - arrivals[0].at_ms;
        let expected = (N - 1) as f64 * FRAME as f64 * 8.0 / 800.0;
        assert!((took - expected).abs() < 20.0, "{engine}: {took} ms, not {expected}");

        // A queue of 200 ms holds 20 frames besides the one being sent.
        let injector = Injector::start(&lab.left, &format!("{on} --rate 800kbit,queue=200ms"));
        let arrivals = stamped(&lab.left, None, &lab.right, &line, 500);
        let total = injector.stop().total;
        let arrived = arrivals.len() as u64;
        assert_eq!(arrived + total.queue_dropped, N, "{engine} {total:?}");
        assert!((21..N).contains(&arrived), "{engine}: {arrived}");
        let longest = arrivals.iter().map(|arrival| arrival.delay_ms).fold(0.0, f64::max);
        assert!((190.0..240.0).contains(&longest), "{engine}: {longest} ms");
    }
}

#[test]
fn the_whole_burst_is_there_from_the_start() {
    // A burst of 2.8 MB, which one kilobit a second takes six hours to send: longer than the uptime.
    const N: u64 = 2000;
    let _turn = turn();
    let lab = Lab::new();
    for engine in engines() {
        let line = format!(
            "--engine {engine} --interface veth0 --protocol udp --rate 1kbit,burst=100mb,queue=1b"
        );
        let injector = Injector::start(&lab.left, &line);
        for (from, to) in [(&lab.left, &lab.right), (&lab.right, &lab.left)] {
            let at = to.at(Family::V4, 9000);
            let receiver = serve(to, None, &format!("udp-receive --bind {at}"));
            let line = format!("udp-send --to {at} --count {N} --size 1400 --pause-us 50");
            assert_eq!(number(&talk(from, None, &line), "sent"), N);
            assert_eq!(number(&receiver.finish(), "received"), N, "{engine}");
        }
        let total = injector.stop().total;
        assert_eq!((total.matched, total.queue_dropped), (2 * N, 0), "{engine} {total:?}");
    }
}

#[test]
fn a_kilobit_a_second_is_a_kilobit_a_second() {
    let _turn = turn();
    let lab = Lab::new();
    for engine in engines() {
        let line = format!(
            "--engine {engine} --direction egress --interface veth0 --protocol udp --rate 1kbit,queue=10s"
        );
        let injector = Injector::start(&lab.left, &line);
        // 83 bytes on the wire.
        let line = "--count 3 --size 41 --every-us 0";
        let arrivals = stamped(&lab.left, None, &lab.right, line, 2500);
        drop(injector);
        let gaps: Vec<f64> =
            arrivals.windows(2).map(|pair| pair[1].at_ms - pair[0].at_ms).collect();
        assert_eq!(gaps.len(), 2, "{engine}");
        assert!(gaps.iter().all(|gap| (gap - 664.0).abs() < 30.0), "{engine}: {gaps:?}");
    }
}

#[test]
fn with_ecn_packets_are_marked_and_not_lost() {
    const N: u64 = 400;
    const ECT0: u8 = 2;
    let _turn = turn();
    let lab = Lab::new();
    let marked_at = || -> u64 {
        let table = lab.right.run("cat /proc/net/netstat");
        let mut lines = table.lines().filter(|line| line.starts_with("IpExt:"));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let place = names.split(' ').position(|name| name == "InCEPkts").expect("the counter");
        values.split(' ').nth(place).and_then(|value| value.parse().ok()).expect("a number")
    };
    for engine in engines() {
        let on =
            format!("--engine {engine} --direction egress --interface veth0 --protocol udp --ecn");
        let before = marked_at();
        let injector = Injector::start(&lab.left, &format!("{on} --loss 25% --delay 1ms"));
        let line = format!("--count {N} --every-us 200 --tos {ECT0}");
        let arrivals = stamped(&lab.left, None, &lab.right, &line, 50);
        let total = injector.stop().total;
        assert_eq!((arrivals.len() as u64, total.dropped), (N, 0), "{engine}");
        assert!(binomial(N, 0.25).contains(&total.marked), "{engine} {total:?}");
        assert_eq!(marked_at() - before, total.marked, "{engine}");

        // Packets that are not ECN-capable are dropped.
        let injector = Injector::start(&lab.left, &format!("{on} --loss 25%"));
        let line = format!("--count {N} --every-us 200");
        let arrivals = stamped(&lab.left, None, &lab.right, &line, 50);
        let total = injector.stop().total;
        assert_eq!((arrivals.len() as u64 + total.dropped, total.marked), (N, 0), "{engine}");

        let before = marked_at();
        let injector = Injector::start(&lab.left, &format!("{on} --rate 8mbit,queue=20ms"));
        let line = format!("--count {N} --size 958 --every-us 0 --tos {ECT0}");
        let arrivals = stamped(&lab.left, None, &lab.right, &line, 200);
        let total = injector.stop().total;
        // Marked packets may fill the queue once more; then it is full.
        assert!(total.marked > 0, "{engine} {total:?}");
        assert_eq!(arrivals.len() as u64 + total.queue_dropped, N, "{engine} {total:?}");
        assert_eq!(marked_at() - before, total.marked, "{engine}");
    }
}

#[test]
fn foreign_qdiscs_are_left_as_they_are() {
    let _turn = turn();
    let lab = Lab::new();
    let show = || qdiscs(&lab.left);
    for (kind, options) in
        [("htb", "default 1"), ("pfifo", "limit 77"), ("tbf", "rate 1gbit burst 1mb latency 50ms")]
    {
        lab.left.run(&format!("tc qdisc add dev veth0 root handle 7: {kind} {options}"));
        let before = show();
        assert!(before.len() == 1 && before[0].contains(kind), "{before:?}");
        for engine in engines() {
            let line = format!("--engine {engine} --interface veth0 --delay 20ms");
            let injector = Injector::start(&lab.left, &line);
            assert_eq!(show(), before, "{engine}");
            let (_, output) = lab
                .left
                .run_in(None, &format!("ping -n -c 2 -i 0.2 {}", lab.right.address(Family::V4)));
            assert!(round_trip_ms(&output) >= 40.0, "{engine} {kind}: {output}");
            injector.stop();
            assert_eq!(show(), before, "{engine}");
        }
        lab.left.run("tc qdisc del dev veth0 root");
    }
}

#[test]
fn flows_over_many_queues_keep_their_order_and_a_device_its_queues() {
    const QUEUES: usize = 4;
    const FLOWS: u64 = 16;
    const N: usize = 1600;
    const DELAY: f64 = 20.0;
    let _turn = turn();
    let lab = Lab::with_queues(QUEUES as u32);
    let (left, right) = (&lab.left, &lab.right);
    let queues = || (left.run("ip -d link show veth0"), left.run("ethtool -l veth0"));
    let line = format!("--count {N} --every-us 1000 --flows {FLOWS}");
    // Without a qdisc, as on a veth pair, and with one for each queue, as on hardware.
    for has_qdisc in [false, true] {
        if has_qdisc {
            left.run("tc qdisc add dev veth0 root handle 7: mq");
            // The flows use several queues, in all but 1 of 10^9 runs.
            let before = queues_in_use(left);
            stamped(left, None, right, &line, 0);
            assert!(queues_in_use(left).difference(&before).count() > 1, "{before:?}");
        }
        let before = (qdiscs(left), queues());
        assert_eq!(before.0.len(), if has_qdisc { 1 + QUEUES } else { 1 }, "{before:?}");
        for engine in engines() {
            for (direction, from, to) in [("egress", left, right), ("ingress", right, left)] {
                let what = format!("{engine} {direction}, mq: {has_qdisc}");
                let options = format!(
                    "--engine {engine} --direction {direction} --interface veth0 --protocol udp --delay {DELAY}ms"
                );
                let injector = Injector::start(left, &options);
                assert_eq!((qdiscs(left), queues()), before, "{what}");
                let used = queues_in_use(left);
                let arrivals = stamped(from, None, to, &line, 100);
                let used: Vec<_> = queues_in_use(left).difference(&used).cloned().collect();
                let summary = injector.stop();
                assert_eq!((qdiscs(left), queues()), before, "{what}");

                assert_eq!(arrivals.len(), N, "{what}: {summary:?}");
                assert_eq!(summary.total.delayed, N as u64, "{what}: {summary:?}");
                for flow in 0..FLOWS {
                    let flow = arrivals.iter().filter(|arrival| arrival.number % FLOWS == flow);
                    assert!(flow.is_sorted_by_key(|arrival| arrival.number), "{what}");
                }
                let early = arrivals.iter().find(|arrival| arrival.delay_ms < DELAY);
                assert!(early.is_none(), "{what}: {early:?}");
                let median = median(arrivals.iter().map(|arrival| arrival.delay_ms).collect());
                assert!(median < DELAY + 5.0, "{what}: {median}");
                let is_spread = has_qdisc && direction == "egress";
                assert!(!is_spread || used.len() > 1, "{what}: of {QUEUES} queues in use {used:?}");
            }
        }
    }
}

/// The qdiscs of a host's interface, except for those that injector may add for its programs.
fn qdiscs(host: &Host) -> Vec<String> {
    let shown = host.run("tc qdisc show dev veth0");
    // Counters are not settings.
    let settings = |line: &str| line.split(" direct_packets_stat").next().map(str::to_owned);
    shown.lines().filter(|line| !line.contains("clsact")).filter_map(settings).collect()
}

/// The qdiscs of single queues with their sent counters, which show the queues in use.
fn queues_in_use(host: &Host) -> BTreeSet<String> {
    let shown = host.run("tc -s qdisc show dev veth0");
    let lines: Vec<_> = shown.lines().collect();
    let queues = lines.windows(2).filter(|lines| lines[0].contains(" parent 7:"));
    queues.map(|lines| format!("{} {}", lines[0], lines[1])).collect()
}

/// The minimum round-trip time of ping.
fn round_trip_ms(output: &str) -> f64 {
    let times = output.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next());
    times
        .filter_map(|time| time.parse::<f64>().ok())
        .reduce(f64::min)
        .unwrap_or_else(|| panic!("{output}"))
}

#[test]
fn a_link_has_values_for_each_direction() {
    const PINGS: u32 = 5;
    let _turn = turn();
    let lab = Lab::new();
    let line = "--interface veth0 --protocol icmp --delay down=60ms,up=20ms --loss up=0%";
    let injector = Injector::start(&lab.left, line);
    let to = lab.right.address(Family::V4);
    assert_eq!(lab.left.ping(None, to, PINGS), u64::from(PINGS));
    let total = injector.stop().total;
    for (direction, ms) in [("ingress", 60.0), ("egress", 20.0)] {
        let told = &total.delay[direction];
        assert_eq!((&told["count"], &told["min_ms"]), (&PINGS.into(), &ms.into()), "{total:?}");
        assert_eq!(told["max_ms"], ms, "{total:?}");
    }
}

//! Traces on real traffic, compared with their definition.

use std::{
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use testbed::{
    Arrival, Family, Host, Injector, Lab, RuleFile, arrivals, engines, is_guest, median, serve,
};

/// IPv4 and UDP headers.
const HEADERS: u64 = 28;

/// Bytes of an opportunity.
const OPPORTUNITY: u64 = 1500;

/// The interval that the definition is compared in.
const WINDOW_MS: f64 = 100.0;

/// Times in milliseconds, 12 Mbit/s in the mean, with bursts and outages.
fn opportunities(seed: u64, length_ms: u64) -> Vec<u64> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut times = Vec::new();
    let mut ms = 0;
    while ms < length_ms {
        // Opportunities in each of the next milliseconds.
        let (length, each) = match random.random_range(0..10) {
            0 => (random.random_range(50..250), 0),
            1 => (random.random_range(10..60), 4),
            _ => (random.random_range(20..200), 1),
        };
        for _ in 0..length {
            ms += 1;
            let count = if each == 1 { random.random_range(0..3) } else { each };
            times.extend((0..count).map(|_| ms));
        }
    }
    times.push(ms);
    times
}

/// A file with a trace of these times.
fn file(times: &[u64]) -> RuleFile {
    let mut text = String::new();
    for time in times {
        writeln!(text, "{time}").expect("a string");
    }
    RuleFile::new(&text)
}

/// Sends datagrams with `size` bytes of payload.
fn send(from: &Host, to: &Host, size: u64, every_us: u64, time: Duration) -> Vec<Arrival> {
    let at = to.at(Family::V4, 9000);
    let receiver = serve(to, None, &format!("stamp-receive --bind {at}"));
    let line = format!("stamp-send --to {at} --endless --size {size} --every-us {every_us}");
    let sender = serve(from, None, &line);
    thread::sleep(time);
    sender.finish();
    arrivals(&receiver.finish())
}

/// A trace that loops, as a list of times in milliseconds, not falling, with the bytes that have passed
/// until then.
struct Definition {
    steps: Vec<(f64, u64)>,
    /// Whether bytes pass at these times, rather than evenly between them.
    jumps: bool,
}

impl Definition {
    /// The opportunities at these times.
    fn of(times: &[u64]) -> Self {
        let opportunities = (1..).zip(times).map(|(n, ms)| (*ms as f64, n * OPPORTUNITY));
        Self { steps: opportunities.collect(), jumps: true }
    }

    fn end(&self) -> (f64, u64) {
        self.steps[self.steps.len() - 1]
    }

    /// The bytes that have passed at a time.
    fn passed(&self, ms: f64) -> u64 {
        let (length, total) = self.end();
        let (rounds, ms) = ((ms / length).floor(), ms.rem_euclid(length));
        let next = self.steps.partition_point(|(at, _)| *at <= ms);
        let before = if next == 0 { (0.0, 0) } else { self.steps[next - 1] };
        let mut bytes = before.1;
        if !self.jumps {
            let after = self.steps[next];
            let part = (ms - before.0) / (after.0 - before.0);
            bytes += ((after.1 - before.1) as f64 * part) as u64;
        }
        rounds as u64 * total + bytes
    }

    /// When so many bytes have passed.
    fn reached(&self, bytes: u64) -> f64 {
        let (length, total) = self.end();
        let (rounds, bytes) = ((bytes - 1) / total, (bytes - 1) % total + 1);
        let next = self.steps.partition_point(|(_, passed)| *passed < bytes);
        let after = self.steps[next];
        let mut ms = after.0;
        if !self.jumps {
            let before = if next == 0 { (0.0, 0) } else { self.steps[next - 1] };
            let part = (bytes - before.1) as f64 / (after.1 - before.1) as f64;
            ms = before.0 + (after.0 - before.0) * part;
        }
        rounds as f64 * length + ms
    }

    /// When packets of `length` bytes leave a link whose trace started at `start`, by the times at which
    /// they were sent. Also returns the number of bytes that passed without a packet.
    fn departures(&self, start: f64, arrivals: &[Arrival], length: u64) -> (Vec<f64>, u64) {
        let (mut used, mut unused) = (0, 0);
        let leave = |(number, (_, delay, at)): (usize, &Arrival)| {
            let passed = self.passed((at - delay - start).max(0.0));
            if passed > used {
                unused += if number == 0 { 0 } else { passed - used };
                used = passed;
            }
            used += length;
            start + self.reached(used)
        };
        let departures = arrivals.iter().enumerate().map(leave).collect();
        (departures, unused)
    }

    /// Compares arrivals with the definition. The trace started before `now`, at the time that explains
    /// the arrivals best. Fails with what differs.
    fn check(&self, arrivals: &[Arrival], length: u64, now: f64, what: &str) -> Result<(), String> {
        let late = |start: f64, arrivals: &[Arrival]| -> Vec<f64> {
            let (departures, _) = self.departures(start, arrivals, length);
            arrivals.iter().zip(departures).map(|((.., at), leaves)| at - leaves).collect()
        };
        let some = &arrivals[..arrivals.len().min(800)];
        let off = |start: &f64| median(late(*start, some).iter().map(|ms| ms.abs()).collect());
        let best = |starts: &mut dyn Iterator<Item = f64>| {
            let rated = starts.map(|start| (off(&start), start));
            rated.min_by(|a, b| a.0.total_cmp(&b.0)).expect("some start").1
        };
        let rough = best(&mut (0..self.end().0 as u32).map(|ms| now - f64::from(ms)));
        let start = best(&mut (-100..=100).map(|part| rough + f64::from(part) / 50.0));
        let (departures, unused) = self.departures(start, arrivals, length);
        // Packets at the edge of an outage may leave before or behind it: when they are sent is known to a
        // few bytes.
        let mut late = late(start, arrivals);
        late.sort_by(f64::total_cmp);
        let (early, latest) = (late[late.len() / 100], late[late.len() * 99 / 100]);
        let in_window = |time: f64, window: f64| (window..window + WINDOW_MS).contains(&time);
        // Between the times of opportunities.
        let begin = start + (departures[0] - start).ceil() + 0.5;
        let count = ((departures[departures.len() - 1] - begin) / WINDOW_MS) as usize;
        let exact = (0..count).map(|number| begin + number as f64 * WINDOW_MS).filter(|window| {
            let defined = departures.iter().filter(|time| in_window(**time, *window)).count();
            let delivered = arrivals.iter().filter(|(.., at)| in_window(*at, *window)).count();
            defined.abs_diff(delivered) <= 1
        });
        let exact = exact.count();
        let middle = median(late);
        let what = format!(
            "{what}: {exact} of {count} windows, late {early:.2} to {latest:.2} ms, median {middle:.3}, {unused} bytes unused"
        );
        println!("{what}");
        // An emulated machine is late, and may not keep the queue filled.
        let (most, least) = if is_guest() { (1000.0, count / 2) } else { (80.0, count * 3 / 4) };
        // The queue fills while the first packets are sent.
        let is_filled = is_guest() || unused * 100 <= arrivals.len() as u64 * length;
        let is_exact = early > -3.0 && latest < most && exact >= least;
        if is_exact && is_filled { Ok(()) } else { Err(what) }
    }
}

/// Measures until it is right, since others may keep the processors busy. Panics after the last try.
fn measure(mut once: impl FnMut() -> Result<(), String>) {
    const TRIES: usize = 4;
    let failed: Vec<String> = (0..TRIES).map_while(|_| once().err()).collect();
    assert!(failed.len() < TRIES, "{failed:?}");
}

/// The time by `CLOCK_MONOTONIC` in milliseconds.
fn now_ms() -> f64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("it is there");
    Duration::from(now).as_secs_f64() * 1e3
}

#[test]
fn a_backlogged_sender_gets_the_opportunities_of_the_file() {
    let times = opportunities(15, 2500);
    let definition = Definition::of(&times);
    let file = file(&times);
    for engine in engines() {
        for length in [1500, 1000] {
            let lab = Lab::new();
            let line = format!(
                "--engine {engine} --interface veth0 --protocol udp --rate trace={},loop,queue=1mb",
                file.path.display()
            );
            let injector = Injector::start(&lab.left, &line);
            let now = now_ms();
            for (from, to, way) in [(&lab.left, &lab.right, "up"), (&lab.right, &lab.left, "down")]
            {
                // 40 Mbit/s for longer than the trace.
                let every_us = length / 5;
                let time = Duration::from_millis(4500);
                measure(|| {
                    let arrivals = send(from, to, length - HEADERS, every_us, time);
                    definition.check(&arrivals, length, now, &format!("{engine} {way} {length}"))
                });
            }
            let total = injector.stop().total;
            assert!(total.queue_dropped > 0 && total.dropped == 0, "{total:?}");
        }
    }
}

#[test]
fn a_trace_that_does_not_loop_delivers_no_more_than_it_has() {
    let times: Vec<u64> = (0..200).map(|number| 4000 + number * 2).collect();
    let file = file(&times);
    for engine in engines() {
        let lab = Lab::new();
        let line = format!(
            "--engine {engine} --interface veth0 --direction egress --protocol udp --rate trace={},queue=1mb",
            file.path.display()
        );
        let injector = Injector::start(&lab.left, &line);
        let arrivals = send(&lab.left, &lab.right, 1472, 500, Duration::from_secs(6));
        let total = injector.stop().total;
        // The sender started within the first four seconds, and so had a backlog.
        assert_eq!(arrivals.len(), times.len(), "{engine}");
        assert!(total.queue_dropped > 1000, "{engine}: {total:?}");
    }
}

#[test]
fn delay_and_loss_follow_the_columns_of_a_csv_file() {
    let file = RuleFile::new(
        "# a comment\ntime, delay, loss\n0s,10ms,0%\n400ms,60ms,0%\n800ms,10ms,100%\n1200ms,0s,0%\n",
    );
    for engine in engines() {
        let lab = Lab::new();
        let line = format!(
            "--engine {engine} --interface veth0 --direction egress --trace {},loop",
            file.path.display()
        );
        let injector = Injector::start(&lab.left, &line);
        measure(|| {
            let arrivals = send(&lab.left, &lab.right, 64, 1000, Duration::from_millis(4100));
            // The delay of each packet by the time of sending, for the start that explains them best.
            let defined = |start: f64, (_, delay, at): &Arrival| match (at - delay - start)
                .rem_euclid(1200.0)
            {
                phase if phase < 400.0 => Some(10.0),
                phase if phase < 800.0 => Some(60.0),
                _ => None,
            };
            let explained = |start: f64, most: f64| {
                let is_so = |arrival: &&Arrival| {
                    let late = defined(start, arrival).map(|delay| arrival.1 - delay);
                    late.is_some_and(|late| (-0.01..most).contains(&late))
                };
                arrivals.iter().filter(is_so).count()
            };
            let starts = (0..1200).map(f64::from);
            let start = starts.max_by_key(|start| explained(*start, 5.0)).expect("some");
            let (in_time, late) = (explained(start, 5.0), explained(start, 1000.0));
            // Another process may run between the stamp of a packet and its departure.
            if in_time * 5 > arrivals.len() * 3 && late * 100 > arrivals.len() * 97 {
                return Ok(());
            }
            Err(format!("{engine}: {in_time} in time, {late} in all of {}", arrivals.len()))
        });
        let total = injector.stop().total;
        let third = total.matched / 3;
        assert!(total.dropped.abs_diff(third) < third / 2, "{engine}: {total:?}");
    }
}

#[test]
fn a_backlogged_sender_gets_the_rates_of_a_csv_file() {
    let file = RuleFile::new("rate,time\n8mbit,0s\n2mbit,250ms\n0,500ms\n20mbit,600ms\n0,700ms\n");
    let definition = Definition {
        steps: vec![(250.0, 250_000), (500.0, 312_500), (600.0, 312_500), (700.0, 562_500)],
        jumps: false,
    };
    for engine in engines() {
        let lab = Lab::new();
        let line = format!(
            "--engine {engine} --interface veth0 --protocol udp --trace {},loop,queue=200kb",
            file.path.display()
        );
        let injector = Injector::start(&lab.left, &line);
        let now = now_ms();
        for (from, to, way) in [(&lab.left, &lab.right, "up"), (&lab.right, &lab.left, "down")] {
            measure(|| {
                // With the Ethernet header; 20 Mbit/s.
                let time = Duration::from_millis(3500);
                let arrivals = send(from, to, 1250 - 14 - HEADERS, 500, time);
                definition.check(&arrivals, 1250, now, &format!("{engine} {way}"))
            });
        }
        injector.stop();
    }
}

#[test]
fn a_trace_keeps_its_position_when_other_rules_change_and_a_new_one_starts() {
    let lossy = RuleFile::new("time,loss\n0s,0%\n500ms,100%\n");
    let other = RuleFile::new("time,loss\n0s,0%\n1h,100%\n");
    let rule = |file: &RuleFile| format!("{{trace: {}, protocol: icmp}}", file.path.display());
    let lab = Lab::new();
    let rules = RuleFile::new(&format!("rules: [{}]", rule(&lossy)));
    let line = format!("--interface veth0 {}", rules.option());
    let mut injector = Injector::start(&lab.left, &line);
    let to = lab.right.address(Family::V4);
    testbed::wait_until(testbed::TIMEOUT, "all packets are lost", || {
        lab.left.ping(None, to, 1) == 0
    });
    let mut reload = |text: &str| {
        rules.write(text);
        injector.process.signal(Signal::SIGHUP);
        injector.process.wait_for("changed");
    };
    reload(&format!("rules: [{{loss: 1%, protocol: tcp}}, {}]", rule(&lossy)));
    assert_eq!(lab.left.ping(None, to, 3), 0, "its position is kept");
    reload(&format!("rules: [{}]", rule(&other)));
    assert_eq!(lab.left.ping(None, to, 3), 3, "another trace starts");
    // What the file says now is another trace as well.
    other.write("time,loss\n0s,100%\n");
    reload(&format!("rules: [{}]", rule(&other)));
    assert_eq!(lab.left.ping(None, to, 3), 0, "it has changed");
    injector.stop();
}

#[test]
fn a_trace_of_a_scenario_starts_with_its_step_and_continues_through_others() {
    let lossy = RuleFile::new("time,loss\n0s,0%\n1s,100%\n");
    let lab = Lab::new();
    let scenario = RuleFile::new(&format!(
        "targets: {{l: {{netns: {}}}}}\ntimeline:\n\
         - {{at: 2s, faults: {{rules: [{{trace: {}, protocol: icmp}}]}}}}\n\
         - {{at: 5s, for: 1m, faults: {{rules: [{{loss: 1%, protocol: tcp}}]}}}}\n",
        lab.left.netns,
        lossy.path.display(),
    ));
    let mut process = testbed::start_scenario(&lab.left, &scenario.path, &[]);
    let to = lab.right.address(Family::V4);
    process.wait_for("change");
    // The step was prepared long before.
    assert_eq!(lab.left.ping(None, to, 1), 1, "it starts now");
    process.wait_for("change");
    assert_eq!(lab.left.ping(None, to, 3), 0, "its position is kept");
    process.signal(Signal::SIGTERM);
    process.finish();
}

#[test]
fn each_direction_has_its_rows() {
    let file = RuleFile::new(
        "time,direction,delay\n0s,up,5ms\n0s,down,95ms\n1s,ingress,95ms\n1s,egress,5ms\n",
    );
    let lab = Lab::new();
    let path = file.path.display();
    for engine in engines() {
        let line = format!("--engine {engine} --interface veth0 --trace {path},loop");
        let injector = Injector::start(&lab.left, &line);
        let rules = injector.started["rules"].as_array().expect("a list");
        let rules: Vec<&str> = rules.iter().filter_map(|rule| rule["name"].as_str()).collect();
        let names = [format!("down: trace {path},loop"), format!("up: trace {path},loop")];
        assert_eq!(rules, names);
        let to = lab.right.address(Family::V4);
        assert_eq!(lab.left.ping(None, to, 3), 3);
        let summary = injector.stop();
        for (rule, way, ms) in [(0, "ingress", 95.0), (1, "egress", 5.0)] {
            let delay = &summary.rules[rule].delay[way];
            let (p50, max) = (delay["p50_ms"].as_f64(), delay["max_ms"].as_f64());
            assert!(p50.is_some_and(|p50| (p50 - ms).abs() < 1.0), "{way}: {delay}");
            assert!(max.is_some_and(|max| max < ms + 1.0), "{way}: {delay}");
        }
    }
}

#[test]
fn an_hour_of_steps_of_1_ms_is_loaded_and_played() {
    let times: Vec<u64> = (1..=3_600_000).collect();
    let file = file(&times);
    let lab = Lab::new();
    let line = format!("--interface veth0 --rate trace={},loop", file.path.display());
    let start = Instant::now();
    let injector = Injector::start(&lab.left, &line);
    println!("started after {:?}", start.elapsed());
    let to = lab.right.address(Family::V4);
    assert_eq!(lab.left.ping(None, to, 5), 5);
    let total = injector.stop().total;
    assert_eq!(total.queue_dropped, 0, "{total:?}");
}

#[test]
fn what_is_no_trace_is_refused_with_its_line() {
    let lab = Lab::new();
    for (options, text, reason) in [
        ("--rate trace=", "1\n2\nx\n", "line 3: `x` is not a time"),
        ("--rate trace=", "5\n4\n", "line 2: 4 is earlier"),
        ("--trace ", "time,rate\n0s,1mbit\n0s,2mbit\n", "line 3: the time must be later"),
        ("--trace ", "time,rate\n0s,1xbit\n", "line 2: `1xbit` is not a rate"),
        ("--trace ", "time,loss\n0s,0.1\n", "line 2: `0.1` has no % sign"),
        ("--trace ", "time,speed\n0s,0.1\n", "line 1: `speed` is not a column"),
    ] {
        let file = RuleFile::new(text);
        let line = format!("--interface veth0 {options}{}", file.path.display());
        let output = Injector::command(&lab.left, &line).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text:?}: {told}");
        assert!(told.contains(reason), "{text:?}: {told}");
        assert!(told.contains(&file.path.display().to_string()), "{text:?}: {told}");
    }
    let line = "--interface veth0 --trace /dev/zero";
    let output = Injector::command(&lab.left, line).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("it is a device; a regular file is required"), "{told}");
}

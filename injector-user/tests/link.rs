//! A link whose properties change keeps its queue, its clock and the order of its packets.
//!
//! The bounds follow from the model and hold however slow the machine is: a link that is never idle
//! sends no faster than its rates allow. `cargo xtask bench delay` measures how exactly it reaches
//! them.

use std::{
    fs,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{
    Arrival, Family, Host, Injector, Lab, Process, RuleFile, arrivals, engines, number, serve, talk,
};

/// The number of changes in each test.
const CHANGES: u64 = 100;

/// The interval of changes of a scenario in milliseconds.
const STEP_MS: u64 = 60;

/// The number of changes by SIGHUP in each test.
const RELOADS: u64 = 40;

/// The interval of changes by SIGHUP in milliseconds. It is longer than the notice, so that each rate comes.
const RELOAD_MS: u64 = 200;

/// The time from a change by SIGHUP to that of the rate, in milliseconds: docs/packets.md.
const NOTICE_MS: f64 = 150.0;

/// Ethernet, IPv4 and UDP headers.
const HEADERS: u64 = 42;

/// Serializes tests, which use much of a CPU.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How rules are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Steps of a scenario.
    Steps,
    /// Ramps of a scenario.
    Ramp,
    /// SIGHUP after writing the rule file.
    Reload,
}

const ALL: [How; 3] = [How::Steps, How::Ramp, How::Reload];

/// The ways of changing a rule at once.
const SWITCHES: [How; 2] = [How::Steps, How::Reload];

/// A change of a rate.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// The planned time in milliseconds, by `CLOCK_MONOTONIC`.
    at_ms: f64,
    /// How much later it happened.
    late_ms: f64,
    /// The new rate.
    bits_a_second: f64,
}

impl Step {
    /// Reads it from an event of a scenario; `None` if there is no rate afterwards.
    fn of(event: &Value) -> Option<Self> {
        let ms = |key: &str| event[key].as_f64().expect("a time") / 1e6;
        let at_ms = ms("planned_monotonic_ns");
        let name = event["targets"][0]["active"][0].as_str()?;
        let bits_a_second = name.contains("rate ").then(|| rate_in(name))?;
        Some(Self { at_ms, late_ms: ms("actual_monotonic_ns") - at_ms, bits_a_second })
    }
}

/// Panics if a link whose rate changes by `steps` passed `bytes` bytes faster than it allows.
fn check(steps: &[Step], bytes: u64, from_ms: f64, to_ms: f64, what: &str) {
    let ends = steps.iter().skip(1).map(|step| step.at_ms).chain([f64::MAX]);
    let allowed = steps.iter().zip(ends).map(|(step, end)| {
        let time = (end.min(to_ms) - step.at_ms.max(from_ms)).max(0.0);
        // A link knows one change in advance, so if that is late, it may miss the next.
        let missed = if step.late_ms > 5.0 { 2.0 * STEP_MS as f64 } else { 0.0 };
        let is_inside = step.at_ms < to_ms && end > from_ms;
        let missed = if is_inside { step.late_ms + missed } else { 0.0 };
        time * step.bits_a_second + missed * 6e6
    });
    let allowed = allowed.sum::<f64>() / 8e3 + 1514.0;
    assert!(bytes as f64 <= allowed, "{what}: {bytes} bytes, allowed {allowed}");
}

/// A link with alternating properties.
struct Changing {
    how: How,
    process: Process,
    file: RuleFile,
    /// The alternating rules.
    rules: [String; 2],
    changes: u64,
    steps: Vec<Step>,
    /// Packets that rules before the present one delayed.
    delayed: u64,
}

/// The rate in a rule, or in the name of a fault.
fn rate_in(text: &str) -> f64 {
    let (_, rest) = text.split_once("rate").unwrap_or_else(|| panic!("no rate in {text}"));
    let rest = rest.trim_start_matches([':', ' ', '\'']);
    let digits = rest.find(|c: char| !c.is_ascii_digit()).expect("a unit");
    let factor = match &rest[digits..=digits] {
        "m" => 1e6,
        "k" => 1e3,
        _ => 1.0,
    };
    rest[..digits].parse::<f64>().expect("a number") * factor
}

impl Changing {
    /// Starts with the first of two rules for `matching`, in the syntax of a rule file.
    fn start(host: &Host, engine: &str, how: How, rules: [&str; 2], matching: &str) -> Self {
        let [first, second] = rules.map(|rule| format!("{{{rule}, {matching}}}"));
        let steps = 10_000;
        let text = match how {
            How::Reload => format!("rules: [{first}]\n"),
            How::Steps => format!(
                "targets: {{l: {{netns: {}}}}}\ntimeline:\n\
                 - {{at: 0s, every: {}ms, for: {STEP_MS}ms, times: {steps}, faults: {{rules: [{first}]}}}}\n\
                 - {{at: {STEP_MS}ms, every: {}ms, for: {STEP_MS}ms, times: {steps}, faults: {{rules: [{second}]}}}}\n",
                host.netns,
                2 * STEP_MS,
                2 * STEP_MS,
            ),
            How::Ramp => format!(
                "targets: {{l: {{netns: {}}}}}\ntimeline:\n\
                 - {{at: 0s, every: {}ms, for: {}ms, times: {steps}, \
                 ramp: {{from: {{rules: [{first}]}}, to: {{rules: [{second}]}}, steps: 43}}}}\n",
                host.netns,
                44 * STEP_MS,
                44 * STEP_MS,
            ),
        };
        let file = RuleFile::new(&text);
        let process = if how == How::Reload {
            let line = format!("--engine {engine} --interface veth0 {}", file.option());
            Injector::start(host, &line).process
        } else {
            testbed::start_scenario(host, &file.path, &["--engine", engine, "--sample", "1h"])
        };
        let mut changing = Self {
            how,
            process,
            file,
            rules: [first, second],
            changes: 0,
            steps: Vec::new(),
            delayed: 0,
        };
        changing.rate_from(0.0, 0.0);
        if how != How::Reload {
            // From the second one on, each change is known in advance.
            (0..3).for_each(|_| changing.change());
        }
        changing
    }

    /// Notes the rate of the present rule, if it has one.
    fn rate_from(&mut self, at_ms: f64, late_ms: f64) {
        let rule = &self.rules[self.changes as usize % 2];
        if self.how == How::Reload && rule.contains("rate") {
            let bits_a_second = rate_in(rule);
            self.steps.push(Step { at_ms, late_ms, bits_a_second });
        }
    }

    /// Makes or awaits all changes.
    fn change_often(&mut self) {
        for _ in 0..if self.how == How::Reload { RELOADS } else { CHANGES } {
            self.change();
        }
    }

    /// Waits for a change, or makes one.
    fn change(&mut self) {
        self.changes += 1;
        if self.how != How::Reload {
            let event = self.process.wait_for("change");
            self.steps.extend(Step::of(&event));
            return;
        }
        self.file.write(&format!("rules: [{}]\n", self.rules[self.changes as usize % 2]));
        let before = now_ms();
        self.process.signal(Signal::SIGHUP);
        let changed = self.process.wait_for("changed");
        self.rate_from(before + NOTICE_MS, now_ms() - before);
        let replaced = &changed["replaced"][0];
        assert_eq!(number(replaced, "expired"), 0, "{changed}");
        self.delayed += number(replaced, "delayed");
        thread::sleep(Duration::from_millis(RELOAD_MS));
    }

    /// Ends the faults. Returns the number of packets that were delayed, and the rates.
    fn stop(mut self) -> (u64, Vec<Step>) {
        self.process.signal(Signal::SIGTERM);
        let (_, events) = self.process.end();
        self.steps
            .extend(events.iter().filter(|event| event["event"] == "change").filter_map(Step::of));
        let end = events.last().expect("a report");
        if self.how == How::Reload {
            return (self.delayed + number(&end["rules"][0], "delayed"), self.steps);
        }
        let faults = end["faults"]["l"].as_object().expect("faults");
        let sum = |counter: &str| faults.values().map(|counts| number(counts, counter)).sum();
        assert_eq!(sum("expired"), 0, "{end}");
        let packets = sum("delayed");
        (packets, self.steps)
    }
}

/// Sends datagrams of `size` bytes while the rules change.
fn datagrams(lab: &Lab, changing: &mut Changing, size: u64, every_us: u64) -> Vec<Arrival> {
    let at = lab.right.at(Family::V4, 9000);
    let receiver = serve(&lab.right, None, &format!("stamp-receive --bind {at}"));
    let line = format!("stamp-send --to {at} --endless --size {size} --every-us {every_us}");
    let sender = serve(&lab.left, None, &line);
    changing.change_often();
    sender.finish();
    // The longest queue and delay.
    thread::sleep(Duration::from_millis(500));
    arrivals(&receiver.finish())
}

/// The number of packets that arrived before an earlier one.
fn out_of_order(arrivals: &[Arrival]) -> usize {
    let mut last = 0;
    let late = arrivals.iter().filter(|(number, ..)| {
        let is_late = *number < last;
        last = last.max(*number);
        is_late
    });
    late.count()
}

#[test]
fn a_changing_rate_is_never_exceeded_and_keeps_the_order_of_datagrams() {
    const SIZE: u64 = 1000 - HEADERS;
    let _turn = turn();
    for engine in engines() {
        for how in ALL {
            let lab = Lab::new();
            // Shorter than a step, so that each packet waits for one change at most.
            let rules = ["rate: '8mbit,queue=50ms'", "rate: '2mbit,queue=50ms'"];
            let matching = "protocol: udp, direction: egress";
            let mut changing = Changing::start(&lab.left, engine, how, rules, matching);
            // 16 Mbit/s.
            let arrivals = datagrams(&lab, &mut changing, SIZE, 500);
            let (packets, steps) = changing.stop();
            let what = format!("{engine} {how:?}");
            assert_eq!(arrivals.len() as u64, packets, "{what}");
            assert_eq!(out_of_order(&arrivals), 0, "{what}: of {}", arrivals.len());
            let (_, delay, first) = arrivals[0];
            let last = arrivals.last().expect("some arrived").2;
            check(&steps, packets * (SIZE + HEADERS), first - delay, last, &what);
        }
    }
}

#[test]
fn a_changing_rate_is_never_exceeded_and_keeps_the_order_of_a_tcp_connection() {
    const BYTES: u64 = 1_000_000;
    let _turn = turn();
    for engine in engines() {
        for how in ALL {
            let lab = Lab::new();
            // A connection never fills the queue, so that each packet that matches passes.
            let memory = || fs::write("/proc/sys/net/ipv4/tcp_rmem", "4096 16384 16384");
            lab.right.inside(memory).expect("it can be set");
            let rules = ["rate: '8mbit,queue=10s'", "rate: '2mbit,queue=10s'"];
            let matching = "protocol: tcp, direction: egress";
            let mut changing = Changing::start(&lab.left, engine, how, rules, matching);
            let at = lab.right.at(Family::V4, 9000);
            let server = serve(&lab.right, None, &format!("tcp-serve --bind {at}"));
            let line = format!("tcp-connect --to {at} --bytes {BYTES} --timeout-ms 60000");
            let is_over = AtomicBool::new(false);
            let start_ms = now_ms();
            let reports = thread::scope(|scope| {
                let client = scope.spawn(|| {
                    let mut reports = Vec::new();
                    while !is_over.load(Ordering::SeqCst) {
                        reports.push(talk(&lab.left, None, &line));
                    }
                    reports
                });
                changing.change_often();
                is_over.store(true, Ordering::SeqCst);
                client.join().expect("it does not panic")
            });
            drop(server);
            let end_ms = now_ms();
            let (_, steps) = changing.stop();
            for report in &reports {
                assert_eq!(number(&report["written"], "bytes"), BYTES, "{report}");
            }
            let what = format!("{engine} {how:?}");
            check(&steps, BYTES * reports.len() as u64, start_ms, end_ms, &what);
            assert_eq!(queued_out_of_order(&lab.right), 0, "{engine} {how:?}");
        }
    }
}

/// The time by `CLOCK_MONOTONIC` in milliseconds.
fn now_ms() -> f64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("it is there");
    Duration::from(now).as_secs_f64() * 1e3
}

/// TCP segments that arrived before an earlier one.
fn queued_out_of_order(host: &Host) -> u64 {
    let text = host.run("cat /proc/self/net/netstat");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let names = lines.next().expect("names");
    let numbers = lines.next().expect("numbers");
    let mut pairs = names.split(' ').zip(numbers.split(' '));
    let (_, number) = pairs.find(|(name, _)| *name == "TCPOFOQueue").expect("such a counter");
    number.parse().expect("a number")
}

const ORDERED: &str = "delay: '10ms,jitter=5ms,ordered'";

#[test]
fn a_delay_that_falls_keeps_the_order() {
    keeps_order(&ALL, ["delay: 100ms", "delay: 10ms"], 10.0);
}

#[test]
fn a_delay_that_ends_keeps_the_order_while_the_rule_goes_on() {
    keeps_order(&SWITCHES, ["delay: 10ms", "loss: 0%"], 0.0);
    keeps_order(&SWITCHES, ["delay: 20ms", "delay: 0s"], 0.0);
}

#[test]
fn order_by_flow_and_the_order_of_a_link_go_together() {
    keeps_order(&SWITCHES, ["delay: 50ms", ORDERED], 5.0);
}

#[test]
fn order_by_flow_is_kept_when_the_delay_changes() {
    keeps_order(&SWITCHES, ["delay: '60ms,jitter=20ms,ordered'", ORDERED], 5.0);
}

#[test]
fn order_by_flow_is_kept_when_the_rule_no_longer_delays() {
    keeps_order(&SWITCHES, [ORDERED, "loss: 0%"], 0.0);
}

/// Receives on one CPU, as from a wire: a veth has a backlog on each CPU that sends, and these are not in
/// order with each other.
fn receive_on_one_cpu(host: &Host) {
    let script = "echo 1 > /sys/class/net/veth0/queues/rx-0/rps_cpus";
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &host.netns, "sh", "-c", script]);
    assert!(command.status().expect("it can be run").success());
    if testbed::is_guest() {
        // An emulated CPU stands still for longer than the backlog lasts.
        let limit = fs::write("/proc/sys/net/core/netdev_max_backlog", "100000");
        limit.expect("it is the test's own machine");
    }
}

/// Checks that all datagrams arrive in order and with at least this delay while rules alternate.
fn keeps_order(ways: &[How], rules: [&str; 2], least_ms: f64) {
    let _turn = turn();
    for (engine, &how) in
        engines().iter().flat_map(|engine| ways.iter().map(move |how| (engine, how)))
    {
        let lab = Lab::new();
        receive_on_one_cpu(&lab.right);
        let matching = "protocol: udp, direction: egress";
        let mut changing = Changing::start(&lab.left, engine, how, rules, matching);
        let arrivals = datagrams(&lab, &mut changing, 64, 300);
        changing.stop();
        let what = format!("{engine} {how:?} {rules:?}");
        let first = arrivals.windows(2).position(|pair| pair[1].0 < pair[0].0);
        let around = first.map(|at| &arrivals[at.saturating_sub(3)..arrivals.len().min(at + 5)]);
        let late = out_of_order(&arrivals);
        assert_eq!(late, 0, "{what}: of {}, first: {around:?}", arrivals.len());
        let early = arrivals.iter().find(|(_, delay, _)| *delay < least_ms);
        assert!(early.is_none(), "{what}: {early:?}");
        let last = arrivals.last().expect("some arrived").0;
        assert_eq!(arrivals.len() as u64, last + 1, "{what}: some are lost");
    }
}

#[test]
fn a_rule_that_stays_keeps_its_state_and_its_counters() {
    const N: u64 = 7;
    const COUNT: u64 = 1000;
    let lab = Lab::new();
    let rule =
        |rest: &str| format!("{{{rest}, protocol: udp, direction: egress, remote-port: 9000}}");
    let (stays, other) = (rule("loss-every: 7"), "{loss: 1%, protocol: tcp}");
    let file = RuleFile::new(&format!("rules: [{stays}]"));
    let mut injector = Injector::start(&lab.left, &format!("--interface veth0 {}", file.option()));
    let at = lab.right.at(Family::V4, 9000);
    let send = || {
        let receiver = serve(&lab.right, None, &format!("udp-receive --bind {at}"));
        talk(&lab.left, None, &format!("udp-send --to {at} --count {COUNT}"));
        number(&receiver.finish(), "received")
    };
    let mut received = send();
    let mut reload = |text: &str| {
        file.write(text);
        injector.process.signal(Signal::SIGHUP);
        injector.process.wait_for("changed")
    };
    // The rule stays, in another place.
    let changed = reload(&format!("rules: [{other}, {stays}]"));
    assert_eq!(changed["replaced"], serde_json::json!([]));
    received += send();
    // It changes: the number of packets goes on, and the counters start anew.
    let changed = reload(&format!("rules: [{other}, {}]", rule("loss-every: 14")));
    let replaced = &changed["replaced"][0];
    assert_eq!(
        (number(replaced, "rule"), number(replaced, "matched")),
        (1, 2 * COUNT),
        "{changed}"
    );
    assert_eq!(number(replaced, "dropped"), 2 * COUNT / N);
    assert_eq!(received, 2 * COUNT - 2 * COUNT / N);
    received += send();
    let summary = injector.stop();
    let dropped = 3 * COUNT / (2 * N) - 2 * COUNT / (2 * N);
    assert_eq!((summary.rules[1].matched, summary.rules[1].dropped), (COUNT, dropped));
    assert_eq!(received, 3 * COUNT - 2 * COUNT / N - dropped);
}

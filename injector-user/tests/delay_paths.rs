//! Held packets are not charged to their sender's socket, wherever they are held. Rates are compared with netem's
//! in guests; `cargo xtask bench delay --only paths` compares them here.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use testbed::{
    Host, Injector, TestCgroup, engines, is_guest,
    path::{Middle, OFFERED, Row, TO_RECEIVER, TO_SENDER},
    skip,
};

/// The duration of each rate measurement.
const TIME: Duration = Duration::from_secs(1);

/// The maximum number of measurements of each place, as a busy machine delivers less.
const ATTEMPTS: u32 = 4;

/// A place at which packets are held.
struct Place {
    what: &'static str,
    middle: Middle,
    /// The host on which injector runs.
    host: fn(&Row) -> &Host,
    /// Its options besides the delay.
    line: fn(&Row, &TestCgroup) -> String,
}

const PLACES: [Place; 10] = [
    Place {
        what: "sent, local",
        middle: Middle::Routes,
        host: |row| &row.sender,
        line: |_, _| "--interface veth0 --direction egress".into(),
    },
    Place {
        what: "received, local",
        middle: Middle::Routes,
        host: |row| &row.receiver,
        line: |_, _| "--interface veth0 --direction ingress".into(),
    },
    Place {
        what: "sent, forwarded",
        middle: Middle::Routes,
        host: |row| &row.middle,
        line: |_, _| format!("--interface {TO_RECEIVER} --direction egress"),
    },
    Place {
        what: "received, forwarded",
        middle: Middle::Routes,
        host: |row| &row.middle,
        line: |_, _| format!("--interface {TO_SENDER} --direction ingress"),
    },
    Place {
        what: "sent, bridged",
        middle: Middle::Bridges,
        host: |row| &row.middle,
        line: |_, _| format!("--interface {TO_RECEIVER} --direction egress"),
    },
    Place {
        what: "received, bridged",
        middle: Middle::Bridges,
        host: |row| &row.middle,
        line: |_, _| format!("--interface {TO_SENDER} --direction ingress"),
    },
    // A container is a namespace behind a bridge, faulted from outside, or a cgroup.
    Place {
        what: "sent, container's namespace",
        middle: Middle::Bridges,
        host: |row| &row.middle,
        line: |row, _| format!("--netns {} --direction egress", row.sender.netns),
    },
    Place {
        what: "received, container's namespace",
        middle: Middle::Bridges,
        host: |row| &row.middle,
        line: |row, _| format!("--netns {} --direction ingress", row.receiver.netns),
    },
    Place {
        what: "sent, container's cgroup",
        middle: Middle::Bridges,
        host: |row| &row.sender,
        line: |_, cgroup| format!("--cgroup {} --direction egress", cgroup.path.display()),
    },
    Place {
        what: "received, container's cgroup",
        middle: Middle::Bridges,
        host: |row| &row.receiver,
        line: |_, cgroup| format!("--cgroup {} --direction ingress", cgroup.path.display()),
    },
];

/// Longer than any stall of this machine.
const HELD: Duration = Duration::from_secs(5);

impl Place {
    /// The command line that holds packets there.
    fn line(&self, row: &Row, cgroup: &TestCgroup, engine: &str, delay: Duration) -> String {
        let line = (self.line)(row, cgroup);
        let ms = delay.as_millis();
        format!("{line} --engine {engine} --no-protect --delay {ms}ms")
    }
}

/// This process is moved between cgroups for the sockets, and rates are not measured side by side.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn what_waits_is_charged_to_nobody() {
    let _turn = turn();
    let cgroup = TestCgroup::new();
    for middle in [Middle::Routes, Middle::Bridges] {
        let row = Row::new(middle);
        for engine in engines() {
            for place in PLACES.iter().filter(|place| place.middle == middle) {
                let what = format!("{engine} {}", place.what);
                let flows = row.connect(Some(&cgroup));
                let line = place.line(&row, &cgroup, engine, HELD);
                let injector = Injector::start((place.host)(&row), &line);
                flows.send();
                // Packets pass to the next host after the send calls.
                let start = Instant::now();
                loop {
                    let charged = flows.charged();
                    if charged == [0, 0] {
                        break;
                    }
                    assert!(
                        start.elapsed() < HELD && !flows.has_arrived(),
                        "{what}: TCP and UDP are charged {charged:?} bytes"
                    );
                }
                let total = injector.stop().total;
                assert!(total.delayed >= 2 && total.skipped == 0, "{what}: {total:?}");
            }
        }
    }
}

/// Compares the rates of all places with those of netem at the sender.
fn compare(delay: Duration) {
    if !is_guest() {
        skip("rates are compared by a benchmark, or in a guest");
        return;
    }
    let _turn = turn();
    let cgroup = TestCgroup::new();
    let mut wrong = Vec::new();
    for middle in [Middle::Routes, Middle::Bridges] {
        let row = Row::new(middle);
        let ms = delay.as_millis();
        row.sender.run(&format!("tc qdisc add dev veth0 root netem limit 1000000 delay {ms}ms"));
        let netem = row.rates(Some(&cgroup), delay, TIME);
        row.sender.run("tc qdisc del dev veth0 root");
        println!("{delay:?} {middle:?} netem: {netem:?}");
        // It may be more after a stall.
        let enough = |ours: f64, theirs: f64| ours >= 0.9 * theirs.min(OFFERED);
        for place in PLACES.iter().filter(|place| place.middle == middle) {
            let what = format!("{delay:?} {}", place.what);
            // Emulated machines are too slow for the TAP's thread.
            let line = place.line(&row, &cgroup, "edt", delay);
            let injector = Injector::start((place.host)(&row), &line);
            let is_right = (0..ATTEMPTS).any(|_| {
                let rates = row.rates(Some(&cgroup), delay, TIME);
                println!("{what}: {rates:?}");
                enough(rates.tcp, netem.tcp) && enough(rates.udp, netem.udp)
            });
            let total = injector.stop().total;
            assert!(total.delayed > 100 && total.skipped == 0, "{what}: {total:?}");
            if !is_right {
                wrong.push(what);
            }
        }
    }
    assert!(wrong.is_empty(), "less than 0.9 of netem's rate: {wrong:#?}");
}

#[test]
fn rates_at_20_ms_are_those_of_netem() {
    compare(Duration::from_millis(20));
}

#[test]
fn rates_at_100_ms_are_those_of_netem() {
    compare(Duration::from_millis(100));
}

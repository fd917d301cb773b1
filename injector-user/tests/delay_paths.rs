//! Held packets are not charged to sockets, wherever they are held: compared with netem, or else with the
//! bare path.

use std::{
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use testbed::{
    Host, Injector, TestCgroup, engines, is_guest,
    path::{Middle, OFFERED, Rates, Row, TO_RECEIVER, TO_SENDER},
    skip,
};

/// The duration of each rate measurement.
const TIME: Duration = Duration::from_secs(1);

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

/// The rates with netem at the sender or, where it is missing, without a delay.
fn reference(row: &Row, cgroup: &TestCgroup, delay: Duration) -> Rates {
    let ms = delay.as_millis();
    let add = format!("qdisc add dev veth0 root netem limit 1000000 delay {ms}ms");
    let tc = |line: &str| {
        let mut command: Command = row.sender.command("tc", None);
        command.args(line.split(' ')).output().expect("tc is installed").status.success()
    };
    if !tc(&add) {
        skip("no netem: held packets are compared with those of the bare path");
        return row.rates(Some(cgroup), Duration::ZERO, TIME);
    }
    let rates = row.rates(Some(cgroup), delay, TIME);
    assert!(tc("qdisc del dev veth0 root"), "netem can be removed");
    rates
}

/// The maximum number of measurements of each place, as a busy machine delivers less.
const ATTEMPTS: u32 = 4;

/// Compares all places with the reference.
fn compare(delay: Duration) {
    // Serialized, since load delays packets and each test moves this process between cgroups.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cgroup = TestCgroup::new();
    let mut wrong = Vec::new();
    for middle in [Middle::Routes, Middle::Bridges] {
        let row = Row::new(middle);
        let netem = reference(&row, &cgroup, delay);
        println!("{delay:?} {middle:?} reference: {netem:?}");
        // It may be more after a stall.
        let enough = |ours: f64, theirs: f64| ours >= 0.9 * theirs.min(OFFERED);
        // Emulated machines are too slow for the TAP's thread: that engine is compared natively only.
        for engine in engines().into_iter().filter(|&engine| engine == "edt" || !is_guest()) {
            for place in PLACES.iter().filter(|place| place.middle == middle) {
                let what = format!("{delay:?} {engine} {}", place.what);
                let line = (place.line)(&row, &cgroup);
                let line = format!(
                    "{line} --engine {engine} --no-protect --delay {}ms",
                    delay.as_millis()
                );
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
    }
    assert!(wrong.is_empty(), "less than 0.9 of the reference: {wrong:#?}");
}

#[test]
fn what_waits_for_20_ms_is_charged_to_nobody() {
    compare(Duration::from_millis(20));
}

#[test]
fn what_waits_for_100_ms_is_charged_to_nobody() {
    compare(Duration::from_millis(100));
}

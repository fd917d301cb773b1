//! Packets of an interface without an Ethernet header are segmented and held like those of others.

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::Value;
use testbed::{
    FAMILIES, Family, Host, Injector, Lab, TIMEOUT, binomial, engines, number, serve, talk,
    tunnel::{self, TUNNEL, Tunnel},
    wait_until,
};

/// Datagrams of each family.
const COUNT: u64 = 200;

/// Runs `test` for each engine and direction with the options for packets of the first host's tunnel, the
/// sender and the receiver.
fn everywhere(test: impl Fn(&str, &Lab, &Host, &Host)) {
    let lab = Lab::new();
    for engine in engines() {
        for (direction, from, to) in
            [("egress", &lab.left, &lab.right), ("ingress", &lab.right, &lab.left)]
        {
            let _tunnel = Tunnel::new([from, to]);
            let options = format!(
                "--interface {TUNNEL} --no-protect --engine {engine} --direction {direction}"
            );
            test(&options, &lab, from, to);
        }
    }
}

/// Sends data over a new connection through the tunnel; all of it must be echoed.
fn transfer(from: &Host, family: Family, bytes: u64, options: &str) {
    let at = SocketAddr::from((tunnel::address(family, 2), 9000));
    let line = format!("tcp-connect --mode echo --to {at} --bytes {bytes} --timeout-ms 60000");
    let report = talk(from, None, &line);
    assert_eq!(report["error"], Value::Null, "{options} {report}");
    let read = &report["read"];
    let got = (number(read, "bytes"), number(read, "wrong"));
    assert_eq!(got, (bytes, 0), "{options} {report}");
}

#[test]
fn packets_are_delayed_and_so_are_their_copies() {
    const MS: u64 = 50;
    everywhere(|options, lab, from, to| {
        let faults = format!("--protocol udp --delay {MS}ms --reorder 25% --duplicate 100%");
        let injector = Injector::start(&lab.left, &format!("{options} {faults}"));
        let mut early = 0;
        for family in FAMILIES {
            let at = SocketAddr::from((tunnel::address(family, 2), 9000));
            let before = to.datagrams_received();
            let receiver = serve(to, None, &format!("stamp-receive --bind {at}"));
            talk(from, None, &format!("stamp-send --to {at} --count {COUNT} --every-us 500"));
            let all = before + 2 * COUNT;
            wait_until(TIMEOUT, "all packets", || to.datagrams_received() >= all);
            let report = receiver.finish();
            let list = |key: &str| report[key].as_array().cloned().unwrap_or_default();
            let mut arrived = BTreeMap::new();
            for packet in list("numbers") {
                *arrived.entry(packet.as_u64()).or_insert(0) += 1;
            }
            let is_whole = arrived.len() as u64 == COUNT && arrived.values().all(|&n| n == 2);
            assert!(is_whole, "{options} {family:?}: {arrived:?}");
            let is_early = |delay: &&Value| delay.as_u64().is_some_and(|ns| ns < MS * 1_000_000);
            early += list("delays_ns").iter().filter(is_early).count() as u64;
        }
        let total = injector.stop().total;
        let all = (total.matched, total.duplicated, total.skipped);
        assert_eq!(all, (2 * COUNT, 2 * COUNT, 0), "{options}");
        // Those that were to overtake may be late on a busy machine.
        assert_eq!(total.delayed + total.reordered, 4 * COUNT, "{options}");
        assert!(early <= total.reordered, "{options}: {early} of {}", total.reordered);
    });
}

#[test]
fn a_stream_is_whole() {
    const BYTES: u64 = 1_000_000;
    everywhere(|options, lab, from, to| {
        let _server = serve(to, None, "tcp-serve --mode echo --bind [::]:9000");
        let faults =
            "--delay 5ms,jitter=1ms --loss 0.5% --duplicate 1% --corrupt 0.5% --reorder 2%";
        let injector = Injector::start(&lab.left, &format!("{options} {faults}"));
        for family in FAMILIES {
            transfer(from, family, BYTES, options);
        }
        let total = injector.stop().total;
        let done = [total.delayed, total.reordered, total.duplicated, total.dropped];
        assert!(done.iter().all(|&count| count > 0), "{options}: {total:?}");
        assert_eq!(total.skipped, 0, "{options}: {total:?}");
    });
}

#[test]
fn a_rate_is_never_exceeded() {
    const SIZE: u64 = 1000;
    /// IPv4 and UDP.
    const HEADERS: u64 = 28;
    const RATE: u64 = 2_000_000;
    everywhere(|options, lab, from, to| {
        let faults = format!("--protocol udp --rate {RATE}bit,queue=10s");
        let injector = Injector::start(&lab.left, &format!("{options} {faults}"));
        let at = SocketAddr::from((tunnel::address(FAMILIES[0], 2), 9000));
        let before = to.datagrams_received();
        let receiver = serve(to, None, &format!("stamp-receive --bind {at}"));
        let line = format!("stamp-send --to {at} --count {COUNT} --every-us 1 --size {SIZE}");
        talk(from, None, &line);
        let all = before + COUNT;
        wait_until(TIMEOUT, "all packets", || to.datagrams_received() >= all);
        let report = receiver.finish();
        let list = |key: &str| -> Vec<u64> {
            report[key].as_array().into_iter().flatten().filter_map(Value::as_u64).collect()
        };
        let (times, delays) = (list("times_ns"), list("delays_ns"));
        let total = injector.stop().total;
        assert_eq!((times.len() as u64, total.skipped), (COUNT, 0), "{options}");
        // However busy the machine is, the last bit has left no earlier than this after the first was sent.
        let least_ns = COUNT * (SIZE + HEADERS) * 8 * 1_000_000_000 / RATE;
        let took_ns = times[times.len() - 1] - (times[0] - delays[0]);
        assert!(took_ns >= least_ns, "{options}: {took_ns} of {least_ns}");
    });
}

#[test]
fn tcp_loses_single_segments() {
    const BYTES: u64 = 1_000_000;
    const MTU: u64 = 1500;
    everywhere(|options, lab, from, to| {
        let _server = serve(to, None, "tcp-serve --mode echo --bind [::]:9000");
        let injector = Injector::start(&lab.left, &format!("{options} --loss 1%"));
        for family in FAMILIES {
            transfer(from, family, BYTES, options);
        }
        let total = injector.stop().total;
        let bytes = total.egress.bytes + total.ingress.bytes;
        assert!(bytes > 2 * BYTES, "{options}: {total:?}");
        assert!(bytes <= total.matched * MTU, "{options}: larger than a segment: {total:?}");
        assert!(binomial(total.matched, 0.01).contains(&total.dropped), "{options}: {total:?}");
    });
}

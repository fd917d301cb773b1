//! Duplication: exactly one additional copy.

use std::net::SocketAddr;

use serde_json::Value;
use testbed::{FAMILIES, Host, Injector, Lab, TestCgroup, binomial, number, serve, talk};

const COUNT: u64 = 800;

fn datagrams(
    (from, sender): (&Host, Option<&TestCgroup>),
    (to, receiver): (&Host, Option<&TestCgroup>),
    at: SocketAddr,
) -> Value {
    let receiver = serve(to, receiver, &format!("udp-receive --bind {at}"));
    let sent = talk(from, sender, &format!("udp-send --to {at} --count {COUNT}"));
    assert_eq!(number(&sent, "sent"), COUNT, "{sent}");
    receiver.finish()
}

#[test]
fn datagrams_of_the_target_are_doubled_as_counted_and_others_are_not() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    for direction in ["egress", "ingress"] {
        let line = format!("--duplicate 20% --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        let (left, right) = ((&lab.left, Some(&cgroup)), (&lab.right, None));
        let (from, to) = if direction == "egress" { (left, right) } else { (right, left) };
        let mut doubled = 0;
        for family in FAMILIES {
            let report = datagrams(from, to, to.0.at(family, 9000));
            assert_eq!((number(&report, "distinct"), number(&report, "corrupted")), (COUNT, 0));
            let more = number(&report, "duplicated");
            assert!(binomial(COUNT, 0.2).contains(&more), "{more} {direction} {family:?}");
            doubled += more;
            let beside = datagrams((from.0, None), (to.0, None), to.0.at(family, 9000));
            assert_eq!(number(&beside, "received"), COUNT);
        }
        let total = injector.stop().total;
        // Copies are not classified again.
        assert_eq!((total.matched, total.duplicated), (2 * COUNT, doubled), "{direction}");
    }
}

#[test]
fn over_loopback_there_is_one_copy_though_both_directions_are_faulted() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--duplicate 100%");
    for at in ["127.0.0.1:9000", "[::1]:9000"] {
        let inside = (&lab.left, Some(&cgroup));
        let report = datagrams(inside, inside, at.parse().expect("an address"));
        assert_eq!((number(&report, "received"), number(&report, "distinct")), (2 * COUNT, COUNT));
    }
    let total = injector.stop().total;
    assert_eq!((total.matched, total.duplicated), (2 * COUNT, 2 * COUNT));
}

#[test]
fn a_datagram_both_doubled_and_lost_arrives_once() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let line = "--duplicate 100% --loss 50% --direction egress";
    let injector = Injector::on(&lab.left, &cgroup, line);
    let to = lab.right.at(FAMILIES[0], 9000);
    let report = datagrams((&lab.left, Some(&cgroup)), (&lab.right, None), to);
    let total = injector.stop().total;
    assert_eq!((total.matched, total.duplicated), (COUNT, COUNT));
    assert_eq!(number(&report, "distinct"), COUNT);
    assert_eq!(number(&report, "received"), 2 * COUNT - total.dropped);
    assert!(binomial(COUNT, 0.5).contains(&total.dropped), "{total:?}");
}

#[test]
fn a_stream_of_doubled_segments_arrives_once() {
    const BYTES: u64 = 500_000;
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    let injector = Injector::on(&lab.left, &cgroup, "--duplicate 30%");
    for family in FAMILIES {
        let to = lab.right.at(family, 9000);
        let line = format!("tcp-connect --mode echo --to {to} --bytes {BYTES}");
        let report = talk(&lab.left, Some(&cgroup), &line);
        assert_eq!(report["error"], Value::Null, "{report}");
        let read = &report["read"];
        assert_eq!((number(read, "bytes"), number(read, "wrong")), (BYTES, 0), "{report}");
    }
    drop(server);
    let total = injector.stop().total;
    assert!(total.duplicated > 0 && total.skipped == 0, "{total:?}");
}

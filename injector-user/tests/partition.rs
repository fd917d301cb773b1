//! Partition: only packets between the target and the named addresses are lost.

use testbed::{FAMILIES, Family, Injector, Lab, TestCgroup, number, serve, talk};

const COUNT: u64 = 50;

/// Whether all datagrams pass between the target (or a process outside it) and one of the peer's three
/// addresses, out and in.
fn passes(lab: &Lab, cgroup: Option<&TestCgroup>, family: Family, n: u8) -> (bool, bool) {
    let (here, there) = (lab.left.at(family, 9000), (lab.right.nth(family, n), 9001).into());
    let there: std::net::SocketAddr = there;
    let all = |received: u64| {
        assert!(received == 0 || received == COUNT, "{received}");
        received == COUNT
    };
    let receiver = serve(&lab.right, None, &format!("udp-receive --bind {there}"));
    talk(&lab.left, cgroup, &format!("udp-send --to {there} --count {COUNT}"));
    let out = all(number(&receiver.finish(), "received"));
    let receiver = serve(&lab.left, cgroup, &format!("udp-receive --bind {here}"));
    talk(&lab.right, None, &format!("udp-send --bind {there} --to {here} --count {COUNT}"));
    let back = all(number(&receiver.finish(), "received"));
    (out, back)
}

#[test]
fn the_named_addresses_are_cut_off_both_ways_for_the_target_alone() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    // The second and the third address of the peer, by address and by prefix.
    let line = "--partition 10.9.0.21,10.9.0.22/31,fd09::21/128,fd09::22/127";
    let injector = Injector::on(&lab.left, &cgroup, line);
    for family in FAMILIES {
        for (n, open) in [(0, true), (1, false), (2, false)] {
            assert_eq!(passes(&lab, Some(&cgroup), family, n), (open, open), "{family:?} {n}");
            assert_eq!(passes(&lab, None, family, n), (true, true), "{family:?} {n}");
        }
        assert_eq!(lab.left.ping(Some(&cgroup), lab.right.nth(family, 0), 3), 3);
        assert_eq!(lab.left.ping(Some(&cgroup), lab.right.nth(family, 1), 3), 0);
    }
    let total = injector.stop().total;
    assert_eq!((total.matched, total.dropped), (8 * COUNT + 6, 8 * COUNT + 6));
}

#[test]
fn a_partition_of_one_direction_lets_the_other_pass() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    for (direction, expected) in [("egress", (false, true)), ("ingress", (true, false))] {
        let line = format!("--partition 10.9.0.20/30,fd09::20/124 --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        for family in FAMILIES {
            assert_eq!(passes(&lab, Some(&cgroup), family, 1), expected, "{family:?}");
        }
        assert_eq!(injector.stop().total.dropped, 2 * COUNT);
    }
}

#[test]
fn a_partition_stands_before_the_other_faults_of_the_same_command_line() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let line = "--partition 10.9.0.21 --duplicate 100% --direction egress";
    let injector = Injector::on(&lab.left, &cgroup, line);
    for (n, expected) in [(0, 2 * COUNT), (1, 0)] {
        let to = std::net::SocketAddr::from((lab.right.nth(Family::V4, n), 9000));
        let receiver = serve(&lab.right, None, &format!("udp-receive --bind {to}"));
        talk(&lab.left, Some(&cgroup), &format!("udp-send --to {to} --count {COUNT}"));
        assert_eq!(number(&receiver.finish(), "received"), expected);
    }
    let summary = injector.stop();
    assert_eq!((summary.rules[0].dropped, summary.rules[0].duplicated), (COUNT, 0));
    assert_eq!((summary.rules[1].dropped, summary.rules[1].duplicated), (0, COUNT));
}

//! Targets: namespaces, processes and interfaces of other namespaces.

use testbed::{FAMILIES, Host, Injector, Lab, TestCgroup, ip, number, serve, talk};

const COUNT: u64 = 50;

/// Whether all datagrams pass from one host to another.
fn passes(from: &Host, cgroup: Option<&TestCgroup>, to: &Host, at: std::net::SocketAddr) -> bool {
    let receiver = serve(to, None, &format!("udp-receive --bind {at}"));
    talk(from, cgroup, &format!("udp-send --to {at} --count {COUNT}"));
    let arrived = number(&receiver.finish(), "received");
    assert!(arrived == 0 || arrived == COUNT, "{arrived}");
    arrived == COUNT
}

#[test]
fn a_namespace_is_faulted_by_name_from_another_one_and_that_one_is_not() {
    let lab = Lab::new();
    let (left, right) = (&lab.left, &lab.right);
    for name in [left.netns.clone(), format!("/run/netns/{}", left.netns)] {
        let line = format!("--netns {name} --loss 100% --direction egress --protocol udp");
        let injector = Injector::start(right, &line);
        for family in FAMILIES {
            assert!(!passes(left, None, right, right.at(family, 9000)));
            assert!(passes(right, None, left, left.at(family, 9000)));
        }
        for (host, passed) in [(left, false), (right, true)] {
            let loopback = "127.0.0.1:9000".parse().expect("an address");
            assert_eq!(passes(host, None, host, loopback), passed);
        }
        assert_eq!(injector.stop().total.dropped, 3 * COUNT);
    }
}

#[test]
fn the_cgroup_of_a_process_is_faulted_in_its_namespaces() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let (left, right) = (&lab.left, &lab.right);
    let target = serve(left, Some(&cgroup), "udp-receive --bind 127.0.0.1:1");
    let line = format!("--cgroup-of {} --loss 100% --direction egress", target.pid());
    let injector = Injector::start(right, &line);
    for family in FAMILIES {
        assert!(!passes(left, Some(&cgroup), right, right.at(family, 9000)));
        assert!(passes(left, None, right, right.at(family, 9000)));
    }
    assert_eq!(injector.stop().total.dropped, 2 * COUNT);
}

#[test]
fn a_cgroup_is_faulted_in_all_namespaces_of_its_processes() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let (left, right) = (&lab.left, &lab.right);
    let _target = serve(left, Some(&cgroup), "udp-receive --bind 127.0.0.1:1");
    let injector = Injector::on(right, &cgroup, "--loss 100% --direction egress");
    for family in FAMILIES {
        assert!(!passes(left, Some(&cgroup), right, right.at(family, 9000)));
        assert!(!passes(right, Some(&cgroup), left, left.at(family, 9000)));
        assert!(passes(left, None, right, right.at(family, 9000)));
    }
    assert_eq!(injector.stop().total.dropped, 4 * COUNT);
}

#[test]
fn an_interface_that_comes_later_is_faulted_and_one_that_goes_ends_nothing() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let (left, right) = (&lab.left, &lab.right);
    let mut injector = Injector::on(left, &cgroup, "--loss 100% --direction egress");
    ip(
        &["-n", &left.netns],
        &format!(
            "link add later type veth peer name later netns {}\naddr add 10.8.0.1/24 dev later\n\
             link set later up\n",
            right.netns
        ),
    );
    ip(&["-n", &right.netns], "addr add 10.8.0.2/24 dev later\nlink set later up\n");
    let attached = injector.process.wait_for("attached");
    assert_eq!(attached["attached"][0]["interface"], "later", "{attached}");
    let at = "10.8.0.2:9000".parse().expect("an address");
    assert!(!passes(left, Some(&cgroup), right, at));
    assert!(passes(left, None, right, at));
    ip(&["-n", &left.netns], "link del later\n");
    injector.process.wait_for("progress");
    assert!(!passes(left, Some(&cgroup), right, right.at(FAMILIES[0], 9000)));
    assert_eq!(injector.stop().total.dropped, 2 * COUNT);
}

#[test]
fn only_the_named_interface_is_faulted() {
    let lab = Lab::new();
    let (left, right) = (&lab.left, &lab.right);
    let loopback = "127.0.0.1:9000".parse().expect("an address");
    for (interface, over_loopback) in [("lo", false), (testbed::INTERFACE, true)] {
        let line = format!("--interface {interface} --loss 100% --protocol udp --direction egress");
        let injector = Injector::start(left, &line);
        assert_eq!(passes(left, None, left, loopback), over_loopback);
        for family in FAMILIES {
            assert_eq!(passes(left, None, right, right.at(family, 9000)), !over_loopback);
        }
        drop(injector.stop());
    }
}

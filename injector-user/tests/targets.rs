//! Targets: namespaces, processes and interfaces of other namespaces.

use std::{fs, os::unix::fs::MetadataExt as _};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{
    FAMILIES, Host, INTERFACE, Injector, Lab, RuleFile, TestCgroup, ip, number, serve, talk,
};

const COUNT: u64 = 50;

/// Whether all datagrams pass from one host to another.
fn passes(from: &Host, cgroup: Option<&TestCgroup>, to: &Host, at: std::net::SocketAddr) -> bool {
    let receiver = serve(to, None, &format!("udp-receive --bind {at}"));
    talk(from, cgroup, &format!("udp-send --to {at} --count {COUNT}"));
    let arrived = number(&receiver.finish(), "received");
    assert!(arrived == 0 || arrived == COUNT, "{arrived}");
    arrived == COUNT
}

/// The namespaces and interfaces in an event, each once, in order.
fn attached(event: &Value) -> Vec<(u64, String)> {
    let places = event["attached"].as_array().expect("a list").iter();
    let mut places: Vec<_> = places
        .map(|place| {
            let interface = place["interface"].as_str().expect("a name");
            (number(place, "netns_inode"), interface.to_owned())
        })
        .collect();
    places.sort();
    places.dedup();
    places
}

/// The inode of the namespace of a host.
fn inode(host: &Host) -> u64 {
    fs::metadata(format!("/run/netns/{}", host.netns)).expect("it is there").ino()
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
    let mut injector = Injector::on(right, &cgroup, "--loss 100% --direction egress");
    // None of its processes is in injector's own namespace.
    let places = attached(&injector.started);
    let of = |host: &Host| ["lo", INTERFACE].map(|interface| (inode(host), interface.to_owned()));
    assert_eq!(places, of(left));
    for family in FAMILIES {
        assert!(!passes(left, Some(&cgroup), right, right.at(family, 9000)));
        assert!(passes(left, None, right, right.at(family, 9000)));
    }
    let _later = serve(right, Some(&cgroup), "udp-receive --bind 127.0.0.1:1");
    assert_eq!(attached(&injector.process.wait_for("attached")), of(right));
    for family in FAMILIES {
        assert!(!passes(right, Some(&cgroup), left, left.at(family, 9000)));
        assert!(passes(right, None, left, left.at(family, 9000)));
    }
    assert_eq!(injector.stop().total.dropped, 4 * COUNT);
}

#[test]
fn a_cgroup_without_processes_is_faulted_where_injector_runs() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let (left, right) = (&lab.left, &lab.right);
    let injector = Injector::on(left, &cgroup, "--loss 100% --direction egress");
    assert!(attached(&injector.started).iter().all(|(netns, _)| *netns == inode(left)));
    assert!(!passes(left, Some(&cgroup), right, right.at(FAMILIES[0], 9000)));
    assert_eq!(injector.stop().total.dropped, COUNT);
}

#[test]
fn rules_for_loopback_addresses_are_attached_only_where_these_pass() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let (left, right) = (&lab.left, &lab.right);
    let loopback = "127.0.0.1:9000".parse().expect("an address");
    let both = vec!["lo", INTERFACE];
    let setting = format!("net.ipv4.conf.{INTERFACE}.route_localnet");
    for (remotes, routes, expected) in [
        ("--remote 127.0.0.1", 0, vec!["lo"]),
        ("--remote 127.0.0.0/8 --remote ::1", 0, vec!["lo"]),
        ("--remote 127.0.0.1", 1, both.clone()),
        ("--remote 127.0.0.1 --remote 10.9.0.20", 0, both),
    ] {
        left.run(&format!("sysctl -q -w {setting}={routes}"));
        let line = format!("{remotes} --loss 100% --direction egress");
        let injector = Injector::on(left, &cgroup, &line);
        let places = attached(&injector.started);
        let names: Vec<&str> = places.iter().map(|(_, interface)| interface.as_str()).collect();
        assert_eq!(names, expected, "{line}, route_localnet={routes}");
        assert!(!passes(left, Some(&cgroup), left, loopback));
        assert_eq!(injector.stop().total.dropped, COUNT);
    }
    let rules = RuleFile::new("rules: [{loss: 100%, direction: egress, remote: 127.0.0.1}]");
    let mut injector = Injector::on(left, &cgroup, &rules.option());
    assert_eq!(attached(&injector.started), [(inode(left), "lo".to_owned())]);
    assert!(passes(left, Some(&cgroup), right, right.at(FAMILIES[0], 9000)));
    rules.write("rules: [{loss: 100%, direction: egress}]");
    injector.process.signal(Signal::SIGHUP);
    let attached = attached(&injector.process.wait_for("attached"));
    assert_eq!(attached, [(inode(left), INTERFACE.to_owned())]);
    assert!(!passes(left, Some(&cgroup), right, right.at(FAMILIES[0], 9000)));
    drop(injector.stop());
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
    for (interface, over_loopback) in [("lo", false), (INTERFACE, true)] {
        let line = format!("--interface {interface} --loss 100% --protocol udp --direction egress");
        let injector = Injector::start(left, &line);
        assert_eq!(passes(left, None, left, loopback), over_loopback);
        for family in FAMILIES {
            assert_eq!(passes(left, None, right, right.at(family, 9000)), !over_loopback);
        }
        drop(injector.stop());
    }
}

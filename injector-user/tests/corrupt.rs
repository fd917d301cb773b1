//! Corruption: the receiving kernel detects `wire` corruption and drops the packet; `silent` corruption
//! reaches the application undetected.

use std::net::SocketAddr;

use serde_json::Value;
use testbed::{
    FAMILIES, Family, Host, INTERFACE, Injector, Lab, TestCgroup, binomial, ip, number, serve,
    talk,
    tunnel::{self, TUNNEL, Tunnel},
};

const COUNT: u64 = 800;

/// The offloads by which checksums are left to the hardware. On a veth pair, they are never completed
/// nor verified.
const OFFLOADS: [&str; 2] = ["on", "off"];

fn set_offload(lab: &Lab, offload: &str) {
    for host in [&lab.left, &lab.right] {
        host.run(&format!("ethtool -K {INTERFACE} tx {offload}"));
    }
}

/// Sends datagrams to a new receiver. Returns its report. Their size is odd, so that the last byte is
/// padded in the checksum.
fn datagrams(
    (from, sender): (&Host, Option<&TestCgroup>),
    (to, receiver): (&Host, Option<&TestCgroup>),
    family: Family,
) -> Value {
    let at = to.at(family, 9000);
    let receiver = serve(to, receiver, &format!("udp-receive --bind {at}"));
    let line = format!("udp-send --to {at} --count {COUNT} --size 65");
    let sent = talk(from, sender, &line);
    assert_eq!(number(&sent, "sent"), COUNT, "{sent}");
    receiver.finish()
}

#[test]
fn datagrams_corrupted_on_the_wire_do_not_arrive_and_all_others_do() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    for direction in ["egress", "ingress"] {
        let line = format!("--corrupt 20% --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        let (left, right) = ((&lab.left, Some(&cgroup)), (&lab.right, None));
        let (from, to) = if direction == "egress" { (left, right) } else { (right, left) };
        let (mut arrived, mut sent) = (0, 0);
        for offload in OFFLOADS {
            set_offload(&lab, offload);
            for family in FAMILIES {
                let report = datagrams(from, to, family);
                assert_eq!(number(&report, "corrupted"), 0, "{direction} {offload} {family:?}");
                let received = number(&report, "received");
                assert!(
                    binomial(COUNT, 0.8).contains(&received),
                    "{received} {direction} {offload} {family:?}"
                );
                arrived += received;
                sent += COUNT;
            }
        }
        let beside = datagrams((from.0, None), (to.0, None), FAMILIES[0]);
        assert_eq!((number(&beside, "distinct"), number(&beside, "corrupted")), (COUNT, 0));
        let total = injector.stop().total;
        assert_eq!((total.matched, total.skipped), (sent, 0), "{direction}");
        assert_eq!(total.corrupted, sent - arrived, "{direction}");
    }
}

#[test]
fn silently_corrupted_datagrams_arrive_wrong_and_all_others_right() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    for direction in ["egress", "ingress"] {
        let line = format!("--corrupt 20% --corrupt-mode silent --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        let (left, right) = ((&lab.left, Some(&cgroup)), (&lab.right, None));
        let (from, to) = if direction == "egress" { (left, right) } else { (right, left) };
        let (mut wrong, mut sent) = (0, 0);
        for offload in OFFLOADS {
            set_offload(&lab, offload);
            for family in FAMILIES {
                let report = datagrams(from, to, family);
                assert_eq!(number(&report, "received"), COUNT, "{direction} {offload} {family:?}");
                assert_eq!(number(&report, "duplicated"), 0);
                let corrupted = number(&report, "corrupted");
                assert!(
                    binomial(COUNT, 0.2).contains(&corrupted),
                    "{corrupted} {direction} {offload} {family:?}"
                );
                wrong += corrupted;
                sent += COUNT;
            }
        }
        let beside = datagrams((from.0, None), (to.0, None), FAMILIES[0]);
        assert_eq!((number(&beside, "distinct"), number(&beside, "corrupted")), (COUNT, 0));
        let total = injector.stop().total;
        assert_eq!((total.matched, total.skipped), (sent, 0), "{direction}");
        assert_eq!(total.corrupted, wrong, "{direction}");
    }
}

/// Transfers bytes from and to the target. Returns the numbers of received and of wrong bytes.
fn streams(lab: &Lab, cgroup: &TestCgroup, bytes: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    for family in FAMILIES {
        let to = lab.right.at(family, 9000);
        let server = serve(&lab.right, None, &format!("tcp-serve --bind {to}"));
        let line = format!("tcp-connect --to {to} --bytes {bytes}");
        let report = talk(&lab.left, Some(cgroup), &line);
        assert_eq!(report["error"], Value::Null, "{report}");
        let report = server.finish();
        let stream = &report["streams"][0];
        found.push((number(stream, "bytes"), number(stream, "wrong")));

        let to = lab.right.at(family, 9001);
        let line = format!("tcp-serve --mode source --bytes {bytes} --bind {to}");
        let _server = serve(&lab.right, None, &line);
        let line = format!("tcp-connect --mode source --to {to}");
        let report = talk(&lab.left, Some(cgroup), &line);
        assert_eq!(report["error"], Value::Null, "{report}");
        found.push((number(&report["read"], "bytes"), number(&report["read"], "wrong")));
    }
    found
}

#[test]
fn streams_corrupted_on_the_wire_arrive_whole_and_right() {
    const BYTES: u64 = 500_000;
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--corrupt 5%");
    for offload in OFFLOADS {
        // With segmentation offload, a packet here is several on the wire.
        set_offload(&lab, offload);
        assert_eq!(streams(&lab, &cgroup, BYTES), [(BYTES, 0); 4], "tx {offload}");
    }
    let total = injector.stop().total;
    assert!(total.corrupted > 10, "{total:?}");
    assert_eq!(total.skipped, 0, "{total:?}");
}

#[test]
fn silently_corrupted_streams_arrive_whole_and_wrong() {
    const BYTES: u64 = 500_000;
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    lab.without_segmentation();
    let line = "--corrupt 100% --corrupt-mode silent --data-only";
    let injector = Injector::on(&lab.left, &cgroup, line);
    let mut wrong = 0;
    for offload in OFFLOADS {
        set_offload(&lab, offload);
        lab.without_segmentation();
        for (bytes, wrong_bytes) in streams(&lab, &cgroup, BYTES) {
            assert_eq!(bytes, BYTES);
            assert!(wrong_bytes > 0);
            wrong += wrong_bytes;
        }
    }
    let total = injector.stop().total;
    assert_eq!((total.corrupted, total.skipped), (total.matched, 0));
    // One bit in each segment. Retransmissions are corrupted again.
    assert!(wrong <= total.corrupted && wrong >= total.corrupted * 9 / 10, "{wrong} {total:?}");
}

#[test]
fn echo_requests_corrupted_on_the_wire_are_not_answered() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--corrupt 20% --direction egress");
    let answered: u64 = FAMILIES
        .iter()
        .map(|&family| lab.left.ping(Some(&cgroup), lab.right.address(family), 150))
        .sum();
    let total = injector.stop().total;
    assert_eq!((total.matched, total.corrupted, total.skipped), (300, 300 - answered, 0));
    assert!(binomial(300, 0.8).contains(&answered), "{answered}");
}

#[test]
fn of_a_fragmented_datagram_the_checksum_is_broken_or_kept_as_for_others() {
    const COUNT: u64 = 50;
    // Of an MTU of 1500.
    const FRAGMENTS: u64 = 3;
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    // Silent corruption needs the checksum, so it applies to first fragments only; wire corruption applies
    // to any fragment.
    for (mode, arrive, corrupted) in [("silent", COUNT, COUNT), ("wire", 0, FRAGMENTS * COUNT)] {
        let line = format!("--corrupt 100% --corrupt-mode {mode} --direction egress");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        for family in FAMILIES {
            let at = lab.right.at(family, 9000);
            let receiver = serve(&lab.right, None, &format!("udp-receive --bind {at}"));
            let line = format!("udp-send --to {at} --count {COUNT} --size 4000");
            talk(&lab.left, Some(&cgroup), &line);
            let report = receiver.finish();
            let found = (number(&report, "received"), number(&report, "corrupted"));
            assert_eq!(found, (arrive, arrive), "{mode} {family:?}");
        }
        let total = injector.stop().total;
        assert_eq!(total.matched, 2 * FRAGMENTS * COUNT, "{mode}");
        assert_eq!(
            (total.corrupted, total.skipped),
            (2 * corrupted, total.matched - 2 * corrupted)
        );
    }
}

/// Packets that this host sends over a tunnel and receives from it.
#[test]
fn nothing_corrupted_on_the_wire_comes_out_of_a_tunnel_that_vouches_for_it() {
    const PINGS: u32 = 30;
    let lab = Lab::new();
    for (direction, from, to) in
        [("egress", &lab.left, &lab.right), ("ingress", &lab.right, &lab.left)]
    {
        let _tunnel = Tunnel::new([from, to]);
        let line =
            format!("--interface {TUNNEL} --no-protect --corrupt 50% --direction {direction}");
        let injector = Injector::start(&lab.left, &line);
        let (mut passed, mut sent) = (0, 0);
        for family in FAMILIES {
            let at = SocketAddr::from((tunnel::address(family, 2), 9000));
            let receiver = serve(to, None, &format!("udp-receive --bind {at}"));
            talk(from, None, &format!("udp-send --to {at} --count {COUNT} --size 65"));
            let report = receiver.finish();
            assert_eq!(number(&report, "corrupted"), 0, "{direction} {family:?} {report}");
            passed += number(&report, "received");
            passed += from.ping(None, at.ip(), PINGS);
            sent += COUNT + u64::from(PINGS);
        }
        let total = injector.stop().total;
        assert_eq!((total.matched, total.skipped), (sent, 0), "{direction}");
        let come_through = sent - total.corrupted;
        assert_eq!(passed, come_through, "{direction}");
        assert!(binomial(sent, 0.5).contains(&total.corrupted), "{direction} {}", total.corrupted);
    }
}

/// Packets forwarded into a tunnel carry the sender's checksum, which is not verified.
#[test]
fn nothing_corrupted_on_the_wire_comes_out_of_a_tunnel_behind_a_router() {
    const BYTES: u64 = 300_000;
    let (lab, beyond) = (Lab::new(), Lab::new());
    let (client, router, server) = (&lab.right, &lab.left, &beyond.left);
    let _tunnel = Tunnel::new([router, server]);
    set_offload(&lab, "off");
    lab.without_segmentation();
    ip(&["-n", &server.netns], &format!("link set {TUNNEL} gso_max_segs 1\n"));
    router.run("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    ip(&["-n", &server.netns], "link set veth0 down\n");
    for family in FAMILIES {
        let (way, back) = match family {
            Family::V4 => ("10.8.0.0/24", "10.9.0.0/24"),
            Family::V6 => ("fd08::/64", "fd09::/64"),
        };
        client.run(&format!("ip route add {way} via {}", router.address(family)));
        server.run(&format!("ip route add {back} via {}", tunnel::address(family, 1)));
    }
    let _server = serve(server, None, "tcp-serve --mode echo --bind [::]:9000");
    // On the way into the tunnel, before the router forwards it, and before it leaves its sender.
    for (host, interface, direction) in [
        (router, TUNNEL, "egress"),
        (router, TUNNEL, "ingress"),
        (router, INTERFACE, "ingress"),
        (router, INTERFACE, "egress"),
        (client, INTERFACE, "egress"),
        (client, INTERFACE, "ingress"),
    ] {
        let line = format!(
            "--interface {interface} --no-protect --corrupt 5% --protocol tcp --direction {direction}"
        );
        let injector = Injector::start(host, &line);
        for family in FAMILIES {
            let to = tunnel::address(family, 2);
            let line = format!(
                "tcp-connect --mode echo --to {} --bytes {BYTES} --timeout-ms 20000",
                SocketAddr::from((to, 9000))
            );
            let report = talk(client, None, &line);
            assert_eq!(report["error"], Value::Null, "{interface} {direction} {report}");
            let read = &report["read"];
            assert_eq!((number(read, "bytes"), number(read, "wrong")), (BYTES, 0));
        }
        let total = injector.stop().total;
        assert!(total.corrupted > 0 && total.skipped == 0, "{interface} {direction} {total:?}");
    }
}

//! Matching: a rule affects exactly the packets that it names.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::Stdio,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use testbed::{
    FAMILIES, Family, Host, INJECTOR, INTERFACE, Injector, Lab, RuleFile, TestCgroup,
    frames::{self, ethernet, ethertype, hex, ip_udp, ipv6, udp},
    ip, is_guest, number, serve, talk,
};

const COUNT: u64 = 20;

/// Whether all datagrams pass.
fn passes(
    (from, sender, bind): (&Host, Option<&TestCgroup>, Option<SocketAddr>),
    (to, receiver, at): (&Host, Option<&TestCgroup>, SocketAddr),
) -> bool {
    let process = serve(to, receiver, &format!("udp-receive --bind {at}"));
    let bind = bind.map(|bind| format!("--bind {bind}")).unwrap_or_default();
    let sent = talk(from, sender, &format!("udp-send --to {at} --count {COUNT} {bind}"));
    assert_eq!(number(&sent, "sent"), COUNT);
    let arrived = number(&process.finish(), "received");
    assert!(arrived == 0 || arrived == COUNT, "{arrived}");
    arrived == COUNT
}

/// Whether a TCP connection from the target can be established and transfers bytes.
fn connects(lab: &Lab, cgroup: &TestCgroup, to: SocketAddr) -> bool {
    let line = format!("tcp-connect --to {to} --bytes 1000 --timeout-ms 300");
    let report = talk(&lab.left, Some(cgroup), &line);
    report["error"] == Value::Null && number(&report["written"], "bytes") == 1000
}

#[test]
fn rules_tell_protocols_addresses_and_ports_of_sent_packets_apart() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let rules = RuleFile::new(
        "rules:
- {loss: 100%, direction: egress, protocol: udp, remote-port: 9000}
- {loss: 100%, direction: egress, remote: [10.9.0.21, 'fd09::21'], remote-port: 9010}
- {loss: 100%, direction: egress, remote-port: '9020-9029,!9025,9035'}
- {loss: 100%, direction: egress, protocol: [tcp, udp], local-port: '7000-7010,!7005'}
- {loss: 100%, direction: egress, protocol: icmp}
- {loss: 100%, direction: egress, remote-port: '!1-65534'}
",
    );
    let injector = Injector::on(&lab.left, &cgroup, &rules.option());
    let _server = serve(&lab.right, None, "tcp-serve --bind [::]:9000");
    let mut matched = [0; 6];
    for family in FAMILIES {
        let mut check = |n: u8, port: u16, bind: Option<u16>, rule: Option<usize>| {
            let at = SocketAddr::from((lab.right.nth(family, n), port));
            let bind = bind.map(|port| lab.left.at(family, port));
            let passed = passes((&lab.left, Some(&cgroup), bind), (&lab.right, None, at));
            assert_eq!(passed, rule.is_none(), "{at} from {bind:?}");
            if let Some(rule) = rule {
                matched[rule] += COUNT;
            }
        };
        check(0, 9000, None, Some(0));
        check(0, 9001, None, None);
        check(0, 9010, None, None);
        check(1, 9010, None, Some(1));
        check(1, 9011, None, None);
        for (port, rule) in [
            (9019, None),
            (9020, Some(2)),
            (9024, Some(2)),
            (9025, None),
            (9026, Some(2)),
            (9029, Some(2)),
            (9030, None),
            (9034, None),
            (9035, Some(2)),
            (9036, None),
        ] {
            check(0, port, None, rule);
        }
        for (port, rule) in
            [(6999, None), (7000, Some(3)), (7005, None), (7010, Some(3)), (7011, None)]
        {
            check(0, 9001, Some(port), rule);
        }
        check(0, 65535, None, Some(5));
        // The first of two rules that match.
        check(0, 9000, Some(7000), Some(0));
        check(1, 9010, Some(7000), Some(1));
        // The first rule is for UDP.
        assert!(connects(&lab, &cgroup, lab.right.at(family, 9000)), "{family:?}");
    }
    // "icmp" is ICMP for IPv4.
    assert_eq!(lab.left.ping(Some(&cgroup), lab.right.address(Family::V4), 3), 0);
    assert_eq!(lab.left.ping(Some(&cgroup), lab.right.address(Family::V6), 3), 3);
    matched[4] = 3;
    let counted: Vec<u64> = injector.stop().rules.iter().map(|rule| rule.dropped).collect();
    assert_eq!(counted, matched);
}

#[test]
fn rules_tell_addresses_and_ports_of_received_packets_apart() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let rules = RuleFile::new(
        "rules:
- {loss: 100%, direction: ingress, local-port: '9000,9002-9003'}
- {loss: 100%, direction: ingress, remote: [10.9.0.21, 'fd09::21'], local-port: '9010-9011'}
- {loss: 100%, direction: ingress, remote-port: '7000-7010,!7005', remote: ['::/0', 0.0.0.0/0]}
",
    );
    let injector = Injector::on(&lab.left, &cgroup, &rules.option());
    let mut matched = [0; 3];
    for family in FAMILIES {
        for (n, port, bind, rule) in [
            (0, 9000, 6000, Some(0)),
            (0, 9001, 6000, None),
            (1, 9002, 6000, Some(0)),
            (0, 9003, 6000, Some(0)),
            (0, 9004, 6000, None),
            (0, 9010, 6000, None),
            (1, 9010, 6000, Some(1)),
            (1, 9012, 6000, None),
            (0, 9001, 7000, Some(2)),
            (0, 9001, 7005, None),
            (0, 9001, 7010, Some(2)),
            (0, 9000, 7000, Some(0)),
        ] {
            let at = lab.left.at(family, port);
            let bind = SocketAddr::from((lab.right.nth(family, n), bind));
            let passed = passes((&lab.right, None, Some(bind)), (&lab.left, Some(&cgroup), at));
            assert_eq!(passed, rule.is_none(), "{at} from {bind}");
            if let Some(rule) = rule {
                matched[rule] += COUNT;
            }
        }
    }
    let counted: Vec<u64> = injector.stop().rules.iter().map(|rule| rule.dropped).collect();
    assert_eq!(counted, matched);
}

#[test]
fn tcp_flags_tell_new_connections_from_old_and_data_only_spares_the_handshake() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _servers = [9000, 9001]
        .map(|port| serve(&lab.right, None, &format!("tcp-serve --mode echo --bind [::]:{port}")));
    let held: Vec<_> = FAMILIES
        .iter()
        .map(|&family| {
            let to = lab.right.at(family, 9000);
            let line = format!("tcp-connect --hold --mode echo --to {to} --bytes 10000");
            serve(&lab.left, Some(&cgroup), &line)
        })
        .collect();
    let rules = RuleFile::new(
        "rules:
- {loss: 100%, direction: egress, tcp-flags: 'syn,!ack', remote-port: 9000}
- {loss: 100%, direction: egress, data-only: true, remote-port: 9001}
",
    );
    let injector = Injector::on(&lab.left, &cgroup, &rules.option());
    for mut connection in held {
        connection.tell("go");
        let report = connection.finish();
        assert_eq!(report["error"], Value::Null, "{report}");
        assert_eq!(number(&report["read"], "bytes"), 10000);
    }
    for family in FAMILIES {
        let connect = |port| {
            let to = lab.right.at(family, port);
            let line = format!("tcp-connect --mode echo --to {to} --bytes 1000 --timeout-ms 300");
            talk(&lab.left, Some(&cgroup), &line)
        };
        let report = connect(9000);
        assert_eq!((&report["connected"], &report["error"]), (&false.into(), &"timeout".into()));
        let report = connect(9001);
        assert_eq!((&report["connected"], &report["error"]), (&true.into(), &"timeout".into()));
        assert_eq!(number(&report["read"], "bytes"), 0);
    }
    let summary = injector.stop();
    assert!(summary.rules.iter().all(|rule| rule.dropped >= 2 && rule.dropped == rule.matched));
}

#[test]
fn all_fragments_of_a_datagram_fall_under_its_rule() {
    // Of an MTU of 1500.
    const FRAGMENTS: u64 = 3;
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let injector =
        Injector::on(&lab.left, &cgroup, "--loss 100% --protocol udp --remote-port 9000");
    let mut lost = 0;
    for family in FAMILIES {
        for (from, to) in [(&lab.left, &lab.right), (&lab.right, &lab.left)] {
            let inside = |host: &Host| (host.netns == lab.left.netns).then_some(&cgroup);
            // Seen from the left, the destination or the source.
            for (port, arrive) in [(9000, 0), (9001, COUNT)] {
                let (bind, at) = if inside(from).is_some() {
                    (from.at(family, 8000), to.at(family, port))
                } else {
                    (from.at(family, port), to.at(family, 8000))
                };
                let receiver = serve(to, inside(to), &format!("udp-receive --bind {at}"));
                let line = format!("udp-send --bind {bind} --to {at} --count {COUNT} --size 4000");
                let sent = talk(from, inside(from), &line);
                assert_eq!(number(&sent, "sent"), COUNT);
                let report = receiver.finish();
                assert_eq!(number(&report, "distinct"), arrive, "{family:?} {bind} {at}");
                lost += FRAGMENTS * (COUNT - arrive);
            }
        }
    }
    let total = injector.stop().total;
    assert_eq!((total.matched, total.dropped), (lost, lost));
}

/// Sends frames from one host to the other, `count` times each. Returns how many arrived, as a
/// packet socket saw them, without their tags.
fn raw(
    (from, sender): (&Host, Option<&TestCgroup>),
    to: &Host,
    frames: &[Vec<u8>],
    tags: usize,
    count: u64,
) -> u64 {
    let ends = options("--ending", frames.iter().map(|frame| &frame[14 + 4 * tags..]));
    let sniffer = serve(to, None, &format!("sniff --interface {INTERFACE}{ends}"));
    raw_send(from, sender, frames, count);
    number(&sniffer.finish(), "frames")
}

/// A hexadecimal option for each of some bytes.
fn options<'a>(name: &str, all: impl Iterator<Item = &'a [u8]>) -> String {
    all.map(|bytes| [" ", name, " ", &hex(bytes)].concat()).collect()
}

fn raw_send(host: &Host, cgroup: Option<&TestCgroup>, frames: &[Vec<u8>], count: u64) {
    let frames = options("--frame", frames.iter().map(Vec::as_slice));
    let line = format!("raw-send --interface {INTERFACE} --count {count}{frames}");
    assert_eq!(number(&talk(host, cgroup, &line), "errors"), 0);
}

/// A datagram from left to right behind tags.
fn tagged(lab: &Lab, tags: &[u16], family: Family, port: u16) -> Vec<u8> {
    let (from, to) = (&lab.left, &lab.right);
    let packet = ip_udp(from.address(family), to.address(family), (8000, port), b"payload");
    ethernet(from, to, tags, ethertype(family), &packet)
}

#[test]
fn packets_behind_one_and_two_vlan_tags_match_as_others_do() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let line = "--loss 100% --direction egress --protocol udp --remote-port 9000";
    let injector = Injector::on(&lab.left, &cgroup, line);
    let mut matched = 0;
    for family in FAMILIES {
        for tags in [&[][..], &[5][..], &[6, 5][..]] {
            for (port, arrive) in [(9000, 0), (9001, COUNT)] {
                let frame = tagged(&lab, tags, family, port);
                let inside = (&lab.left, Some(&cgroup));
                let arrived = raw(inside, &lab.right, &[frame], tags.len(), COUNT);
                assert_eq!(arrived, arrive, "{family:?} {tags:?} {port}");
                matched += COUNT - arrive;
            }
        }
    }
    let total = injector.stop().total;
    assert_eq!((total.matched, total.dropped), (matched, matched));
}

#[test]
fn received_packets_behind_vlan_tags_match_at_both_hooks() {
    let lab = Lab::new();
    for xdp in ["", "--xdp"] {
        let line = format!(
            "--interface {INTERFACE} --no-protect --direction ingress {xdp} --loss 100% --remote-port 9000"
        );
        let injector = Injector::start(&lab.left, &line);
        for family in FAMILIES {
            for tags in [&[][..], &[5][..], &[6, 5][..]] {
                for port in [9000, 9001] {
                    let (from, to) = (&lab.right, &lab.left);
                    let ports = (port, 8000);
                    let packet =
                        ip_udp(from.address(family), to.address(family), ports, b"payload");
                    let frame = ethernet(from, to, tags, ethertype(family), &packet);
                    raw_send(from, None, &[frame], COUNT);
                }
            }
        }
        thread::sleep(Duration::from_millis(20));
        let total = injector.stop().total;
        assert_eq!((total.matched, total.dropped), (6 * COUNT, 6 * COUNT), "{xdp}");
    }
}

#[test]
fn the_protocol_behind_ipv6_extension_headers_is_found() {
    const HOP_BY_HOP: u8 = 0;
    const DESTINATION: u8 = 60;
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let line = "--loss 100% --direction egress --protocol udp --remote-port 9000";
    let injector = Injector::on(&lab.left, &cgroup, line);
    let (from, to) = (lab.left.v6, lab.right.v6);
    // 8 bytes padded by a PadN option, and 16 by an experimental one that receivers skip (RFC 4727).
    // Linux accepts at most 7 bytes of padding.
    let short = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let long = |next: u8| [next, 1, 0x1e, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (port, arrive) in [(9000, 0), (9001, 3 * COUNT)] {
        let datagram = udp(from.into(), to.into(), (8000, port), b"payload");
        let one = [&short(frames::UDP)[..], &datagram].concat();
        let two = [&long(DESTINATION)[..], &short(frames::UDP), &datagram].concat();
        let packets = [
            ipv6(from, to, DESTINATION, &one),
            ipv6(from, to, HOP_BY_HOP, &one),
            ipv6(from, to, HOP_BY_HOP, &two),
        ];
        let frames = packets
            .map(|packet| ethernet(&lab.left, &lab.right, &[], ethertype(Family::V6), &packet));
        let receiver = serve(&lab.right, None, &format!("udp-receive --bind [{to}]:{port}"));
        raw_send(&lab.left, Some(&cgroup), &frames, COUNT);
        assert_eq!(number(&receiver.finish(), "received"), arrive);
    }
    let summary = injector.stop();
    assert_eq!((summary.total.dropped, summary.seen.unparsed), (3 * COUNT, 0));
}

#[test]
fn broken_packets_are_counted_as_unparsed_and_pass() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let (left, right) = (&lab.left, &lab.right);
    let frame = |family, packet: &[u8]| ethernet(left, right, &[], ethertype(family), packet);
    let good = |family| ip_udp(left.address(family), right.address(family), (1, 2), b"payload");
    let changed = |family, at: usize, value: u8| {
        let mut packet = good(family);
        packet[at] = value;
        frame(family, &packet)
    };
    let broken = [
        // Truncated in the IP header, and in the UDP header.
        frame(Family::V4, &good(Family::V4)[..15]),
        frame(Family::V4, &good(Family::V4)[..24]),
        frame(Family::V6, &good(Family::V6)[..30]),
        frame(Family::V6, &good(Family::V6)[..44]),
        // A header length of 16 bytes, and one beyond the packet.
        changed(Family::V4, 0, 0x44),
        changed(Family::V4, 0, 0x4f),
        // A total length beyond the end, and one within the header.
        changed(Family::V4, 2, 0x10),
        changed(Family::V4, 3, 10),
        changed(Family::V6, 4, 0x10),
        // IPv6 in the ethertype and IPv4 in the header.
        changed(Family::V6, 0, 0x45),
        // Too short for a TCP header, and for an IPv6 extension header.
        changed(Family::V4, 9, 6),
        changed(Family::V6, 6, 6),
        changed(Family::V6, 6, 0),
    ];
    // The kernels occasionally send ICMPv6 themselves.
    let fault = "--loss 100% --protocol tcp,udp";
    let not_ip = ethernet(left, right, &[], 0x88b5, b"IEEE 802 local experimental ethertype");
    for (hook, from) in
        [("--direction egress", left), ("--direction ingress", right), ("--xdp", right)]
    {
        let line = if hook == "--direction egress" {
            format!("--cgroup {} {hook} {fault}", cgroup.path.display())
        } else {
            format!("--interface {INTERFACE} --no-protect {hook} {fault}")
        };
        let injector = Injector::start(left, &line);
        let (sender, to) =
            if from.netns == left.netns { (Some(&cgroup), right) } else { (None, left) };
        let arrived = raw((from, sender), to, &broken, 0, COUNT);
        let sent = COUNT * broken.len() as u64;
        assert_eq!(arrived, sent, "{hook}");
        assert_eq!(
            raw((from, sender), to, std::slice::from_ref(&not_ip), 0, COUNT),
            COUNT,
            "{hook}"
        );
        let summary = injector.stop();
        assert_eq!((summary.seen.unparsed, summary.seen.not_ip), (sent, COUNT), "{hook}");
        assert_eq!(summary.total.matched, 0, "{hook}");
    }
}

/// A file of `count` rules for different addresses, the last few of which are the peer's. Each rule loses
/// all packets and is named by its number.
fn many_rules(lab: &Lab, count: usize) -> RuleFile {
    let mut text = String::from("rules:\n");
    for number in 0..count - 3 {
        let [a, b, c, _] = (number as u32).to_be_bytes().map(u32::from).map(|byte| byte as u8);
        let d = number as u8;
        writeln!(
            text,
            "- {{loss: 100%, direction: egress, remote: 10.{}.{b}.{c}, remote-port: {}}}",
            100 + a,
            1 + u16::from(d)
        )
        .expect("a string");
    }
    for n in 0..3 {
        let remote = lab.right.nth(Family::V4, n);
        writeln!(
            text,
            "- {{loss: 100%, direction: egress, remote: {remote}, remote-port: {}}}",
            9000 + u16::from(n)
        )
        .expect("a string");
    }
    RuleFile::new(&text)
}

/// An unoptimized injector takes 16 s of CPU time to read 65,536 rules, and several times that in an
/// emulated machine. The benchmark measures an optimized one.
const TIMEOUT: Duration = Duration::from_mins(4);

#[test]
fn of_many_rules_the_right_one_is_found() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    // Unoptimized and emulated, reading the maximum number takes minutes.
    let most = if is_guest() { 16_384 } else { 65_536 };
    for count in [5_000, most] {
        let rules = many_rules(&lab, count);
        let line = format!("--cgroup {} {}", cgroup.path.display(), rules.option());
        let injector = Injector::start_within(&lab.left, &line, TIMEOUT);
        for n in 0..3u8 {
            for (port, passed) in [(9000 + u16::from(n), false), (9003 + u16::from(n), true)] {
                let at = SocketAddr::from((lab.right.nth(Family::V4, n), port));
                let found = passes((&lab.left, Some(&cgroup), None), (&lab.right, None, at));
                assert_eq!(found, passed, "{count} {at}");
            }
        }
        let summary = injector.stop();
        assert_eq!(summary.rules.len(), count);
        let dropped: Vec<u64> =
            summary.rules[count - 3..].iter().map(|rule| rule.dropped).collect();
        assert_eq!(dropped, [COUNT; 3]);
        assert_eq!(summary.total.matched, 3 * COUNT);
    }
}

#[test]
fn of_rules_that_overlap_the_first_wins() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let to = lab.right.at(Family::V4, 9000);
    let narrow = format!("{{loss: 100%, remote: {}, remote-port: 9000}}", to.ip());
    let wide = "{duplicate: 100%, direction: egress}";
    for (rules, expected) in [([narrow.as_str(), wide], 0), ([wide, narrow.as_str()], 2 * COUNT)] {
        let file = RuleFile::new(&format!("rules: [{}]", rules.join(", ")));
        let injector = Injector::on(&lab.left, &cgroup, &file.option());
        let receiver = serve(&lab.right, None, &format!("udp-receive --bind {to}"));
        talk(&lab.left, Some(&cgroup), &format!("udp-send --to {to} --count {COUNT}"));
        assert_eq!(number(&receiver.finish(), "received"), expected);
        let summary = injector.stop();
        assert_eq!((summary.rules[0].matched, summary.rules[1].matched), (COUNT, 0));
    }
}

#[test]
fn while_one_rule_replaces_another_no_packet_slips_through() {
    const CHANGES: usize = 12;
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let to = lab.right.at(Family::V4, 9000);
    let bodies = [
        "- {name: one, loss: 100%, remote-port: 9000}",
        "- {name: two, loss: 0%, remote-port: 1}\n- {name: three, loss: 100%, protocol: udp}",
    ];
    let file = RuleFile::new(&format!("rules:\n{}\n", bodies[0]));
    let mut injector = Injector::on(&lab.left, &cgroup, &file.option());
    let receiver = serve(&lab.right, None, &format!("udp-receive --bind {to}"));
    let line = format!("udp-send --endless --pause-us 20 --to {to}");
    let sender = serve(&lab.left, Some(&cgroup), &line);
    let mut dropped = 0;
    for change in 1..=CHANGES {
        file.write(&format!("rules:\n{}\n", bodies[change % 2]));
        injector.process.signal(Signal::SIGHUP);
        let changed = injector.process.wait_for("changed");
        let replaced = changed["replaced"].as_array().expect("a list");
        dropped += replaced.iter().map(|rule| number(rule, "dropped")).sum::<u64>();
    }
    // An invalid file changes nothing.
    file.write("rules: [{loss: 101%}]");
    injector.process.signal(Signal::SIGHUP);
    injector.process.wait_for("warning");
    let sent = sender.finish();
    assert_eq!(number(&receiver.finish(), "received"), 0);
    dropped += injector.stop().total.dropped;
    assert_eq!((dropped, number(&sent, "errors")), (number(&sent, "sent"), 0));
    assert!(dropped > 100, "{dropped}");
}

/// A destination with several receiving sockets: an address, and the group to join for it.
fn shared_addresses(host: &Host) -> [(SocketAddr, String); 3] {
    host.run(&format!("ip route replace 239.0.0.0/8 dev {INTERFACE}"));
    ["239.1.2.3:9000", "[ff05::1:9]:9000", "10.9.0.255:9000"].map(|at| {
        let at: SocketAddr = at.parse().expect("an address");
        let group = at.ip().is_multicast().then(|| format!("--group {}", at.ip()));
        (at, group.unwrap_or_default())
    })
}

#[test]
fn datagrams_for_several_receivers_are_left_alone_and_counted_if_one_is_the_target() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let addresses = shared_addresses(&lab.left);
    shared_addresses(&lab.right);
    let injector = Injector::on(&lab.left, &cgroup, "--loss 100% --direction ingress");
    let mut skipped = 0;
    for (at, group) in &addresses {
        for first in [None, Some(&cgroup)] {
            let second = if first.is_none() { Some(&cgroup) } else { None };
            let any = if at.is_ipv4() { "0.0.0.0" } else { "[::]" };
            let line = format!("udp-receive --bind {any}:9000 --shared {group}");
            let receivers = [first, second].map(|inside| serve(&lab.left, inside, &line));
            let line = format!("udp-send --to {at} --count {COUNT}");
            assert_eq!(number(&talk(&lab.right, None, &line), "sent"), COUNT);
            for receiver in receivers {
                let report = receiver.finish();
                assert_eq!(number(&report, "received"), COUNT, "{at} {report}");
            }
            skipped += COUNT;
        }
    }
    let summary = injector.stop();
    let total = summary.total;
    assert_eq!((total.matched, total.dropped, total.skipped), (0, 0, skipped));
    assert_eq!(summary.seen.shared, skipped);
}

#[test]
fn the_summary_says_why_datagrams_for_several_receivers_were_skipped() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let [(at, group), ..] = shared_addresses(&lab.left);
    shared_addresses(&lab.right);
    let receiver =
        serve(&lab.left, Some(&cgroup), &format!("udp-receive --bind 0.0.0.0:9000 {group}"));
    let path = cgroup.path.display();
    let script =
        format!("exec {INJECTOR} inject --cgroup {path} --loss 100% --direction ingress 2>&1");
    let mut command = lab.left.command("sh", None);
    let mut injector =
        command.args(["-c", &script]).stdout(Stdio::piped()).spawn().expect("it can be run");
    let mut lines = BufReader::new(injector.stdout.take().expect("piped")).lines();
    let is_started = lines.by_ref().map_while(Result::ok).any(|line| line.contains("faulting"));
    assert!(is_started);
    let line = format!("udp-send --to {at} --count {COUNT}");
    assert_eq!(number(&talk(&lab.right, None, &line), "sent"), COUNT);
    receiver.finish();
    kill(Pid::from_raw(injector.id().cast_signed()), Signal::SIGTERM).expect("it is alive");
    let text: String = lines.map_while(Result::ok).map(|line| line + "\n").collect();
    assert!(injector.wait().expect("it ends").success(), "{text}");
    let why = format!("{COUNT} packets skipped: multicast and broadcast have several receivers");
    assert!(text.contains(&why), "{text}");
}

#[test]
fn what_a_host_receives_of_its_own_multicast_and_broadcast_is_known_for_ip() {
    let lab = Lab::new();
    let addresses = shared_addresses(&lab.left);
    // Its first two bytes are where an Ethernet header has its type, and that of IPv4.
    let misleading = "8.0.69.0";
    ip(&["-n", &lab.left.netns], &format!("addr add {misleading}/32 dev {INTERFACE}\n"));
    for (fault, arrive) in [("--loss 100%", 0), ("--corrupt 100%", 0), ("--loss 0%", COUNT)] {
        let line = format!(
            "--interface {INTERFACE} --no-protect --direction ingress --local-port 9000 {fault}"
        );
        let injector = Injector::start(&lab.left, &line);
        for (at, group) in &addresses {
            let any = if at.is_ipv4() { "0.0.0.0" } else { "[::]" };
            let line = format!("udp-receive --bind {any}:9000 {group}");
            let sources = if at.is_ipv4() { vec!["", misleading] } else { vec![""] };
            for source in sources {
                let receiver = serve(&lab.left, None, &line);
                let bind = if source.is_empty() { source } else { &format!("--bind {source}:0") };
                let line = format!("udp-send --to {at} --count {COUNT} {bind}");
                assert_eq!(number(&talk(&lab.left, None, &line), "sent"), COUNT);
                let report = receiver.finish();
                let what = format!("{fault} {source} {at} {report}");
                assert_eq!(number(&report, "received"), arrive, "{what}");
            }
        }
        let summary = injector.stop();
        assert_eq!((summary.total.matched, summary.total.skipped), (5 * COUNT, 0), "{fault}");
        assert_eq!(summary.seen.not_ip, 0, "{fault}");
    }
}

#[test]
fn a_path_mtu_black_hole_loses_long_packets_only() {
    let lab = Lab::new();
    let line = "--for 60s --direction egress --longer-than 1000 --loss 100%";
    let injector = Injector::start(&lab.left, &format!("--interface {INTERFACE} {line}"));
    for family in FAMILIES {
        let to = lab.right.address(family);
        // With the IP and the ICMP header, the length of the packet.
        let headers = if family == Family::V4 { 28 } else { 48 };
        for (length, passes) in [(100, true), (1000, true), (1001, false), (1400, false)] {
            let line = format!("ping -n -c 3 -i 0.2 -W 1 -s {} {to}", length - headers);
            let (passed, output) = lab.left.run_in(None, &line);
            assert_eq!(passed, passes, "{length} bytes: {output}");
        }
    }
    let counts = injector.stop().total;
    // Two lengths, three packets each, in both families.
    assert_eq!((counts.matched, counts.dropped), (12, 12));
}

#[test]
fn a_packet_to_be_split_is_as_long_as_its_wire_packets() {
    const BYTES: u64 = 2_000_000;

    let lab = Lab::new();
    let _sink = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    for direction in ["egress", "ingress"] {
        let line = format!(
            "--interface {INTERFACE} --protocol tcp --direction {direction} --longer-than 1500 --loss 100%"
        );
        let injector = Injector::start(&lab.left, &line);
        for family in FAMILIES {
            let to = lab.right.at(family, 9000);
            let line = format!("tcp-connect --mode echo --to {to} --bytes {BYTES}");
            let report = talk(&lab.left, None, &line);
            assert_eq!(number(&report["read"], "bytes"), BYTES, "{direction} {family:?}: {report}");
        }
        let summary = injector.stop();
        assert_eq!(summary.total.matched, 0, "{direction}");
        // The hook saw fewer packets than the wire: they were to be split, or merged.
        let seen = summary.seen.egress.max(summary.seen.ingress);
        assert!(seen < 2 * BYTES / 1500, "{direction}: {seen}");

        let injector = Injector::start(&lab.left, &line.replace("1500", "1499"));
        let to = lab.right.at(Family::V4, 9000);
        let line = format!("tcp-connect --mode echo --to {to} --bytes {BYTES} --timeout-ms 500");
        let report = talk(&lab.left, None, &line);
        assert_eq!((&report["connected"], number(&report["read"], "bytes")), (&true.into(), 0));
        assert!(injector.stop().total.dropped > 0, "{direction}");
    }
}

#[test]
fn a_peer_that_is_the_target_itself_is_told() {
    let lab = Lab::new();
    let (own, peer) = (lab.left.address(Family::V4), lab.right.address(Family::V4));
    let own6 = lab.left.address(Family::V6);
    for (remote, expected) in [
        (format!("--remote {own}"), vec![own.to_string()]),
        (format!("--remote {peer},{own},{own6}"), vec![own.to_string(), own6.to_string()]),
        (format!("--remote {peer}"), vec![]),
        (format!("--remote {own}/24"), vec![]),
        ("--remote 127.0.0.1".to_owned(), vec![]),
    ] {
        let mut injector =
            Injector::start(&lab.left, &format!("--interface veth0 {remote} --loss 0%"));
        injector.process.signal(Signal::SIGTERM);
        let events = std::iter::from_fn(|| injector.process.next());
        let warnings = events.filter(|event| event["event"] == "warning");
        let said = warnings.map(|warning| warning.to_string());
        let said: Vec<String> = said.filter(|text| text.contains("itself")).collect();
        assert_eq!(said.len(), expected.len(), "{remote}: {said:?}");
        for (said, address) in said.iter().zip(expected) {
            assert!(said.contains(&format!("address {address} is one")), "{remote}: {said}");
        }
    }
}

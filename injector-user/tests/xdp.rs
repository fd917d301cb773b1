//! XDP, and protection of port 22.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use serde_json::Value;
use testbed::{
    FAMILIES, Family, Host, INTERFACE, Injector, Lab, TIMEOUT, binomial, number, serve, talk,
};

const COUNT: u64 = 800;

/// Sends datagrams to a new receiver. Returns its report.
fn datagrams(from: &Host, to: &Host, at: SocketAddr) -> Value {
    let receiver = serve(to, None, &format!("udp-receive --bind {at}"));
    let sent = talk(from, None, &format!("udp-send --to {at} --count {COUNT} --size 65"));
    assert_eq!(number(&sent, "sent"), COUNT, "{sent}");
    receiver.finish()
}

/// The paths of datagrams: over the cable with native XDP, and over loopback with generic XDP.
fn ways(lab: &Lab) -> Vec<(&'static str, &'static str, &Host, SocketAddr)> {
    let mut ways = Vec::new();
    for family in FAMILIES {
        ways.push((INTERFACE, "xdp-native", &lab.right, lab.left.at(family, 9000)));
    }
    for address in ["127.0.0.1:9000", "[::1]:9000"] {
        ways.push(("lo", "xdp-generic", &lab.left, address.parse().expect("an address")));
    }
    ways
}

/// Starts injector with XDP on one interface and checks the reported hook.
fn start(lab: &Lab, interface: &str, hook: &str, fault: &str) -> Injector {
    let line = format!("--interface {interface} --xdp --local-port 9000 {fault}");
    let injector = Injector::start(&lab.left, &line);
    let attached = injector.started["attached"].as_array().expect("a list");
    assert_eq!(attached.len(), 1, "{}", injector.started);
    assert_eq!(
        (&attached[0]["interface"], &attached[0]["hook"]),
        (&interface.into(), &hook.into())
    );
    assert_eq!(attached[0]["directions"], serde_json::json!(["ingress"]));
    injector
}

/// Sends datagrams over each path under a fault. `check` gets the receiver's report and returns how many
/// datagrams were hit.
fn under(fault: &str, mut check: impl FnMut(&Value) -> u64) {
    let lab = Lab::new();
    for pair in ways(&lab).chunks(2) {
        let (interface, hook, ..) = pair[0];
        let injector = start(&lab, interface, hook, fault);
        let mut hit = 0;
        for &(_, _, from, at) in pair {
            hit += check(&datagrams(from, &lab.left, at));
        }
        let total = injector.stop().total;
        assert_eq!((total.matched, total.skipped), (2 * COUNT, 0), "{hook}");
        assert_eq!(total.dropped + total.corrupted, hit, "{hook}");
        assert!(binomial(2 * COUNT, 0.2).contains(&hit), "{hook} {hit}");
    }
}

#[test]
fn received_packets_are_lost_as_counted() {
    under("--loss 20%", |report| {
        assert_eq!(number(report, "corrupted"), 0);
        COUNT - number(report, "distinct")
    });
}

#[test]
fn packets_corrupted_on_the_wire_do_not_arrive() {
    under("--corrupt 20%", |report| {
        assert_eq!(number(report, "corrupted"), 0);
        COUNT - number(report, "distinct")
    });
}

#[test]
fn silently_corrupted_packets_arrive_wrong() {
    under("--corrupt 20% --corrupt-mode silent", |report| {
        assert_eq!(number(report, "received"), COUNT);
        number(report, "corrupted")
    });
}

#[test]
fn silent_corruption_holds_where_checksums_are_verified() {
    let lab = Lab::new();
    lab.right.run(&format!("ethtool -K {INTERFACE} tx off"));
    let fault = "--corrupt 20% --corrupt-mode silent";
    let injector = start(&lab, INTERFACE, "xdp-native", fault);
    let mut wrong = 0;
    for family in FAMILIES {
        let report = datagrams(&lab.right, &lab.left, lab.left.at(family, 9000));
        assert_eq!(number(&report, "received"), COUNT, "{family:?}");
        wrong += number(&report, "corrupted");
    }
    assert_eq!(injector.stop().total.corrupted, wrong);
}

/// A payload for datagrams with a complete checksum that equals the pseudo-header sum.
fn payload_like_a_partial_checksum(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    const LENGTH: usize = 65;
    let add = |sum: u16, word: u16| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    };
    let octets = |at: SocketAddr| match at.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = LENGTH as u16 + 8;
    let addresses = [octets(from), octets(to)].concat();
    let pseudo = addresses
        .chunks(2)
        .map(|word| u16::from_be_bytes([word[0], word[1]]))
        .chain([17, length])
        .fold(0, add);
    let header = [from.port(), to.port(), length].into_iter().fold(0, add);
    // pseudo = !(pseudo + header + word)
    let word = !add(add(pseudo, pseudo), header);
    let mut payload = vec![0; LENGTH];
    payload[..2].copy_from_slice(&word.to_be_bytes());
    payload
}

#[test]
fn a_checksum_that_looks_partial_is_repaired() {
    const SENT: usize = 20;
    let lab = Lab::new();
    lab.right.run(&format!("ethtool -K {INTERFACE} tx off"));
    let injector = start(&lab, INTERFACE, "xdp-native", "--corrupt 100% --corrupt-mode silent");
    for family in FAMILIES {
        let (from, to) = (lab.right.at(family, 9001), lab.left.at(family, 9000));
        let [sender, receiver] = [(&lab.right, from), (&lab.left, to)]
            .map(|(host, at)| host.inside(|| UdpSocket::bind(at).expect("a free port")));
        receiver.set_read_timeout(Some(TIMEOUT)).expect("a socket");
        let payload = payload_like_a_partial_checksum(from, to);
        for _ in 0..SENT {
            sender.send_to(&payload, to).expect("a route");
            let mut buffer = [0; 100];
            let length = receiver.recv(&mut buffer).expect("a datagram");
            let flipped: u32 =
                payload.iter().zip(&buffer[..length]).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert_eq!((length, flipped), (payload.len(), 1), "{family:?}");
        }
    }
    assert_eq!(injector.stop().total.corrupted, 2 * SENT as u64);
}

#[test]
fn streams_over_lossy_xdp_arrive_whole() {
    const BYTES: u64 = 300_000;
    let lab = Lab::new();
    let server = serve(&lab.left, None, "tcp-serve --mode echo --bind [::]:9000");
    let injector = start(&lab, INTERFACE, "xdp-native", "--loss 3%");
    for family in FAMILIES {
        let to = lab.left.at(family, 9000);
        let line = format!("tcp-connect --mode echo --to {to} --bytes {BYTES} --timeout-ms 20000");
        let report = talk(&lab.right, None, &line);
        assert_eq!(report["error"], Value::Null, "{report}");
        let read = &report["read"];
        assert_eq!((number(read, "bytes"), number(read, "wrong")), (BYTES, 0));
    }
    drop(server);
    assert!(injector.stop().total.matched > 0);
}

/// Whether a TCP connection to the left can be established and transfers bytes.
fn connects(lab: &Lab, family: Family, port: u16) -> bool {
    let to = lab.left.at(family, port);
    let line = format!("tcp-connect --to {to} --bytes 1000 --timeout-ms 300");
    talk(&lab.right, None, &line)["error"] == Value::Null
}

#[test]
fn port_22_is_left_alone_unless_no_protect_is_given() {
    let lab = Lab::new();
    let _servers =
        [22, 9000].map(|port| serve(&lab.left, None, &format!("tcp-serve --bind [::]:{port}")));
    for hook in ["", "--xdp"] {
        for protect in ["", "--no-protect"] {
            let line = format!("--interface {INTERFACE} {hook} {protect} --loss 100%");
            let injector = Injector::start(&lab.left, &line);
            for family in FAMILIES {
                assert_eq!(connects(&lab, family, 22), protect.is_empty(), "{line} {family:?}");
                assert!(!connects(&lab, family, 9000), "{line} {family:?}");
            }
            let total = injector.stop().total;
            assert_eq!(total.protected > 0, protect.is_empty(), "{line} {total:?}");
            assert_eq!(total.dropped, total.matched);
        }
    }
}

#[test]
fn the_whole_host_is_faulted_but_for_loopback() {
    let lab = Lab::new();
    let injector = Injector::start(&lab.left, "--host --loss 100% --protocol udp");
    let hooks = injector.started["attached"].as_array().expect("a list");
    assert!(hooks.iter().all(|place| place["interface"] == INTERFACE), "{hooks:?}");
    for family in FAMILIES {
        let report = datagrams(&lab.right, &lab.left, lab.left.at(family, 9000));
        assert_eq!(number(&report, "received"), 0);
        let report = datagrams(&lab.left, &lab.right, lab.right.at(family, 9000));
        assert_eq!(number(&report, "received"), 0);
    }
    let loopback = "127.0.0.1:9000".parse().expect("an address");
    assert_eq!(number(&datagrams(&lab.left, &lab.left, loopback), "received"), COUNT);
    let total = injector.stop().total;
    assert_eq!((total.egress.packets, total.ingress.packets), (2 * COUNT, 2 * COUNT));
}

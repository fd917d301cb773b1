//! Answers to packets that are too big for the path: senders learn the MTU and send smaller ones.

use std::net::IpAddr;

use testbed::{FAMILIES, Family, Host, INTERFACE, Injector, Lab, number, serve, talk};

const MTU: u32 = 1300;

const BYTES: u64 = 1_000_000;

/// The path MTU that a host knows to an address.
fn path_mtu(host: &Host, to: IpAddr) -> Option<u32> {
    let route = host.run(&format!("ip route get {to}"));
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).map(|mtu| mtu.parse().expect("a number"))
}

/// Sends data over a new connection; all of it must be echoed.
fn transfer(from: &Host, to: &Host, family: Family) {
    let to = to.at(family, 9000);
    let line = format!("tcp-connect --mode echo --to {to} --bytes {BYTES}");
    let report = talk(from, None, &line);
    let read = &report["read"];
    assert_eq!((number(read, "bytes"), number(read, "wrong")), (BYTES, 0), "{report}");
}

#[test]
fn connections_lower_their_segment_size_to_the_mtu_that_they_are_told() {
    // The answers to sent packets go to this host, and those to received ones to the peer.
    for direction in ["egress", "ingress"] {
        let lab = Lab::new();
        let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
        let line = format!(
            "--interface {INTERFACE} --direction {direction} --protocol tcp --longer-than {MTU} --too-big"
        );
        let injector = Injector::start(&lab.left, &line);
        for family in FAMILIES {
            let (sender, receiver) = match direction {
                "egress" => (&lab.left, &lab.right),
                _ => (&lab.right, &lab.left),
            };
            // The connection may use any of a host's addresses.
            let told = || {
                let addresses = (0..3).map(|n| receiver.nth(family, n));
                addresses.filter_map(|address| path_mtu(sender, address)).collect::<Vec<_>>()
            };
            assert!(told().is_empty(), "{direction} {family:?}");
            transfer(&lab.left, &lab.right, family);
            assert_eq!(told(), [MTU], "{direction} {family:?}");
        }
        let total = injector.stop().total;
        assert!(total.too_big >= 2 && total.skipped == 0, "{direction}: {total:?}");
        assert_eq!(total.matched, total.too_big, "{direction}: {total:?}");
    }
}

#[test]
fn packets_that_may_be_fragmented_and_short_ones_pass() {
    let lab = Lab::new();
    let line = format!("--interface {INTERFACE} --direction egress --longer-than {MTU} --too-big");
    let injector = Injector::start(&lab.left, &line);
    for family in FAMILIES {
        let to = lab.right.address(family);
        let headers = if family == Family::V4 { 28 } else { 48 };
        // Neither too long, nor (IPv4 without "don't fragment") to be answered.
        let mut passing = vec![format!("ping -n -c 3 -i 0.2 -s {} {to}", MTU - headers)];
        if family == Family::V4 {
            passing.push(format!("ping -n -M dont -c 3 -i 0.2 -s {} {to}", MTU - headers + 1));
        }
        for line in passing {
            let (passed, output) = lab.left.run_in(None, &line);
            assert!(passed, "{output}");
        }
        let line = format!("ping -n -M do -c 1 -W 1 -s {} {to}", MTU - headers + 1);
        let (passed, output) = lab.left.run_in(None, &line);
        assert!(!passed, "{output}");
        assert_eq!(path_mtu(&lab.left, to), Some(MTU), "{family:?}: {output}");
    }
    let total = injector.stop().total;
    assert_eq!((total.matched, total.too_big, total.skipped), (5, 2, 3), "{total:?}");
}

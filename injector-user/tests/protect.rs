//! `--protect` exempts the operator's connections and the protocols that they need. For port 22 see xdp.rs.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use serde_json::Value;

use testbed::{
    FAMILIES, Family, Host, INTERFACE, Injector, Lab,
    frames::{ethernet, ethertype, hex, ip, ip_udp},
    number, serve, talk,
};

/// A connection between the two hosts with both ends in this process, the parent of injector, like sshd's
/// connection.
fn connection(lab: &Lab, at: SocketAddr) -> (TcpStream, TcpStream) {
    let listener = lab.right.inside(|| TcpListener::bind(at)).expect("the address is its own");
    let near = lab.left.inside(|| TcpStream::connect(at)).expect("somebody listens");
    let (far, _) = listener.accept().expect("somebody has connected");
    for end in [&near, &far] {
        end.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
        end.set_nodelay(true).expect("an option");
    }
    (near, far)
}

/// Whether a byte can be sent and returned.
fn exchange((near, far): &mut (TcpStream, TcpStream)) -> io::Result<()> {
    let mut byte = [0];
    near.write_all(b"?")?;
    far.read_exact(&mut byte)?;
    far.write_all(b"!")?;
    near.read_exact(&mut byte)
}

#[test]
fn connections_of_the_shell_go_on_and_others_do_not() {
    for family in FAMILIES {
        let lab = Lab::new();
        let at = lab.right.at(family, 4022);
        let mut own = connection(&lab, at);
        exchange(&mut own).expect("nothing is faulted yet");

        let injector = Injector::start(&lab.left, &format!("--interface {INTERFACE} --loss 100%"));
        exchange(&mut own).expect("it is the operator's");
        let other = lab.left.inside(|| TcpStream::connect_timeout(&at, Duration::from_millis(500)));
        assert!(other.is_err(), "a connection made later is not protected");
        let total = injector.stop().total;
        assert!(total.protected >= 2, "{total:?}");
        assert!(total.dropped > 0, "{total:?}");
    }
}

#[test]
fn no_protect_lifts_it() {
    let lab = Lab::new();
    let mut own = connection(&lab, lab.right.at(Family::V4, 4022));
    let line = format!("--interface {INTERFACE} --no-protect --loss 100%");
    let injector = Injector::start(&lab.left, &line);
    exchange(&mut own).expect_err("it is not protected");
    assert_eq!(injector.stop().total.protected, 0);
}

#[test]
fn loopback_is_left_alone_unless_it_is_asked_for() {
    let lab = Lab::new();
    let localhost = "127.0.0.1".parse().expect("an address");
    let answers = || lab.left.ping(None, localhost, 3) == 3;
    for (line, spared) in [
        ("--host", true),
        ("--host --no-protect", false),
        ("--interface lo", false),
        (&format!("--interface {INTERFACE}"), true),
    ] {
        let injector = Injector::start(&lab.left, &format!("{line} --loss 100%"));
        assert_eq!(answers(), spared, "{line}");
        injector.stop();
    }
}

#[test]
fn the_log_of_the_ebpf_side_is_on_with_debug_and_off_without() {
    let lab = Lab::new();
    let to = lab.right.address(Family::V4).to_string();
    for (option, logged) in [("--debug", true), ("--verbose", false), ("--seed=1", false)] {
        let mut command = lab.left.command(testbed::INJECTOR, None);
        command.args(["run", option, "--loss", "100%", "--direction", "egress", "--"]);
        command.args(["ping", "-q", "-c", "2", "-i", "0.3", "-W", "0.3", &to]);
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.contains("rule 0: lost"), logged, "{option}: {said}");
    }
}

/// Removes the neighbour entries of both ends of the cable.
fn forget_neighbours(lab: &Lab) {
    for host in [&lab.left, &lab.right] {
        for family in ["-4", "-6"] {
            host.run(&format!("ip {family} neigh flush dev {INTERFACE} nud permanent"));
            host.run(&format!("ip {family} neigh flush dev {INTERFACE}"));
        }
    }
}

#[test]
fn ssh_comes_through_though_neighbours_have_to_be_found_anew() {
    let lab = Lab::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:22");
    for host in [&lab.left, &lab.right] {
        let line = format!("--interface {INTERFACE} --loss 100%");
        let injector = Injector::start(host, &line);
        for family in FAMILIES {
            let to = lab.right.at(family, 22);
            forget_neighbours(&lab);
            let line =
                format!("tcp-connect --hold --mode echo --to {to} --bytes 1000 --timeout-ms 5000");
            let mut connection = serve(&lab.left, None, &line);
            forget_neighbours(&lab);
            connection.tell("go");
            let report = connection.finish();
            assert_eq!(report["error"], Value::Null, "{} {family:?} {report}", host.netns);
            assert_eq!(number(&report["read"], "bytes"), 1000, "{} {family:?}", host.netns);
        }
        let total = injector.stop().total;
        assert!(total.protected > 0, "{total:?}");
    }
}

/// Messages of each essential kind, and some others.
fn messages(from: &Host, to: &Host) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    const ICMP: u8 = 1;
    const ICMPV6: u8 = 58;
    let frame = |family, packet: &[u8]| ethernet(from, to, &[], ethertype(family), packet);
    let icmp = |family, kind: u8, code: u8| {
        let protocol = if family == Family::V4 { ICMP } else { ICMPV6 };
        // The kernel ignores them, given a hop limit below 255 and no checksum.
        let message = [kind, code, 0, 0, 1, 2, 3, 4, 0xee, kind, code, protocol];
        frame(family, &ip(from.address(family), to.address(family), protocol, &message))
    };
    let udp = |family, ports: (u16, u16)| {
        let body = [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes()].concat();
        frame(family, &ip_udp(from.address(family), to.address(family), ports, &body))
    };
    let mut needed = vec![
        icmp(Family::V4, 3, 4),
        udp(Family::V4, (68, 67)),
        udp(Family::V4, (67, 68)),
        udp(Family::V4, (67, 67)),
        udp(Family::V6, (546, 547)),
        udp(Family::V6, (547, 546)),
    ];
    let kinds = [2, 130, 131, 132, 133, 134, 135, 136, 137, 143];
    needed.extend(kinds.map(|kind| icmp(Family::V6, kind, 0)));
    let mut others = vec![
        icmp(Family::V4, 3, 1),
        icmp(Family::V4, 8, 4),
        // These numbers have another meaning in each family.
        icmp(Family::V4, 135, 0),
        icmp(Family::V6, 3, 4),
        udp(Family::V4, (67, 9000)),
        udp(Family::V4, (546, 547)),
        udp(Family::V6, (547, 9000)),
        udp(Family::V6, (68, 67)),
    ];
    others.extend([1, 128, 129, 138, 139, 144].map(|kind| icmp(Family::V6, kind, 0)));
    (needed, others)
}

/// Sends frames from one host to the other, `count` times each. Returns how many a packet socket saw.
fn send(from: &Host, to: &Host, frames: &[Vec<u8>], count: u64) -> u64 {
    let options = |name: &str, skip: usize| {
        let options = frames.iter().flat_map(|frame| [name.to_owned(), hex(&frame[skip..])]);
        options.collect::<Vec<_>>().join(" ")
    };
    let line = format!("sniff --interface {INTERFACE} {}", options("--ending", 14));
    let sniffer = serve(to, None, &line);
    let line =
        format!("raw-send --interface {INTERFACE} --count {count} {}", options("--frame", 0));
    assert_eq!(number(&talk(from, None, &line), "errors"), 0);
    number(&sniffer.finish(), "frames")
}

#[test]
fn what_hosts_need_to_reach_each_other_is_protected_and_nothing_beside_it() {
    const COUNT: u64 = 3;
    let lab = Lab::new();
    for (options, is_sent) in
        [("--direction egress", true), ("--direction ingress", false), ("--xdp", false)]
    {
        let (from, to) = if is_sent { (&lab.left, &lab.right) } else { (&lab.right, &lab.left) };
        let (needed, others) = messages(from, to);
        let (v4, v6) = (lab.right.address(Family::V4), lab.right.address(Family::V6));
        let line =
            format!("--interface {INTERFACE} {options} --loss 100% --remote {v4} --remote {v6}");
        let injector = Injector::start(&lab.left, &line);
        let (all, none) = (COUNT * needed.len() as u64, COUNT * others.len() as u64);
        assert_eq!(send(from, to, &needed, COUNT), all, "{options}");
        let arrived = send(from, to, &others, COUNT);
        // A packet socket sees packets before they are lost, except with XDP.
        assert!(arrived == 0 || options.ends_with("ingress"), "{options}: {arrived}");
        let total = injector.stop().total;
        assert_eq!((total.protected, total.matched, total.dropped), (all, none, none), "{options}");
    }
}

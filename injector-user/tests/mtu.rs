//! The packet size of new TCP connections: `--mtu`, and its default on loopback.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, getsockopt, recv, send,
        setsockopt, socket, sockopt,
    },
    time::{TimeVal, TimeValLike as _},
};
use serde_json::Value;
use testbed::{
    FAMILIES, Family, Host, INJECTOR, INTERFACE, Injector, Lab, Process, RuleFile, Summary,
    TIMEOUT, TestCgroup, frames, number, program, serve, talk,
};

const PORT: u16 = 9000;
const OTHER_PORT: u16 = 9001;

/// The TCP option of timestamps, with padding.
const TIMESTAMPS: u64 = 12;

/// The loopback's address.
fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The payload of a full segment in IP packets of `mtu` bytes.
fn payload(family: Family, mtu: u64) -> u64 {
    let headers = match family {
        Family::V4 => 40,
        Family::V6 => 60,
    };
    mtu - headers - TIMESTAMPS
}

/// The maximum payload of segments that the client and the server send, after a connection between them.
fn maximum_segments(
    (client, client_cgroup): (&Host, Option<&TestCgroup>),
    (server, server_cgroup): (&Host, Option<&TestCgroup>),
    at: SocketAddr,
) -> [u64; 2] {
    let server = serve(server, server_cgroup, &format!("tcp-serve --bind {at} --mode echo"));
    let report = talk(client, client_cgroup, &format!("tcp-connect --to {at} --mode echo"));
    let sent = number(&report["after_write"], "mss");
    [sent, server.finish()["mss"][0].as_u64().expect("one connection")]
}

#[test]
fn both_sides_of_a_connection_get_it_in_whichever_direction_the_rule_acts() {
    let lab = Lab::new();
    let [left, right] = [&lab.left, &lab.right];
    let cgroup = TestCgroup::new();
    let inside = Some(&cgroup);
    for family in FAMILIES {
        let expected = [payload(family, 1000); 2];
        for direction in ["egress", "ingress"] {
            for (target, client, server) in [
                ("--interface lo", (left, None), (left, None)),
                ("--cgroup", (left, inside), (left, None)),
                ("--cgroup", (left, None), (left, inside)),
                ("--cgroup", (left, inside), (left, inside)),
                (INTERFACE, (left, None), (right, None)),
                (INTERFACE, (right, None), (left, None)),
                ("--cgroup", (left, inside), (right, None)),
                ("--cgroup", (right, None), (left, inside)),
            ] {
                // The rule is that of the left host, if both are on it that of the client.
                let is_client =
                    client.0.netns == left.netns && (server.1.is_none() || client.1.is_some());
                let port = if is_client { "--remote-port" } else { "--local-port" };
                let faults =
                    format!("--direction {direction} {port} {PORT} --loss 0.000001% --mtu 1000");
                let injector = match target {
                    "--cgroup" => Injector::on(left, &cgroup, &faults),
                    INTERFACE => {
                        Injector::start(left, &format!("--interface {INTERFACE} {faults}"))
                    }
                    target => Injector::start(left, &format!("{target} {faults}")),
                };
                let at = |port| {
                    let is_local = client.0.netns == server.0.netns;
                    let address =
                        if is_local { loopback(family) } else { server.0.address(family) };
                    SocketAddr::from((address, port))
                };
                let context = format!("{family:?} {direction} {target} {client:?} {server:?}");
                assert_eq!(maximum_segments(client, server, at(PORT)), expected, "{context}");
                let others = maximum_segments(client, server, at(OTHER_PORT));
                assert!(others.iter().all(|&other| other > 1400), "{context}: {others:?}");
                injector.stop();
            }
        }
    }
}

#[test]
fn a_rule_that_matches_a_syn_first_does_not_hide_it() {
    let lab = Lab::new();
    let file = RuleFile::new(&format!(
        "rules:\n- {{local-port: {PORT}, loss: 0.000001%}}\n\
         - {{remote-port: {PORT}, loss: 0.000001%, mtu: 1000}}\n"
    ));
    let injector = Injector::start(&lab.left, &format!("--interface lo {}", file.option()));
    for family in FAMILIES {
        let at = (loopback(family), PORT).into();
        let segments = maximum_segments((&lab.left, None), (&lab.left, None), at);
        assert_eq!(segments, [payload(family, 1000); 2], "{family:?}");
    }
    injector.stop();
}

#[test]
fn smaller_segments_and_existing_connections_stay_as_they_are() {
    let lab = Lab::new();
    let at = lab.right.at(Family::V4, PORT);
    let line = format!("tcp-connect --to {at} --mode echo --hold");
    let server = serve(&lab.right, None, &format!("tcp-serve --bind {at} --mode echo"));
    let mut before = serve(&lab.left, None, &line);
    let options = format!("--interface {INTERFACE} --loss 0.000001% --mtu");
    let injector = Injector::start(&lab.left, &format!("{options} 1000"));
    before.tell("go");
    let segment = |report: &Value| number(&report["after_write"], "mss");
    assert_eq!(segment(&before.finish()), payload(Family::V4, 1500));
    injector.stop();
    let injector = Injector::start(&lab.left, &format!("{options} 65535"));
    let report = talk(&lab.left, None, &line.replace("--hold", ""));
    assert_eq!(segment(&report), payload(Family::V4, 1500));
    injector.stop();
    server.finish();
}

/// Packets that an interface sends.
struct Capture {
    socket: OwnedFd,
}

impl Capture {
    fn on(host: &Host, interface: &str) -> Self {
        host.inside(|| {
            let (family, protocol) = (AddressFamily::Packet, SockProtocol::EthAll);
            let socket = socket(family, SockType::Raw, SockFlag::empty(), protocol);
            let socket = socket.expect("root may");
            let index = nix::net::if_::if_nametoindex(interface).expect("it is there");
            // SAFETY: plain data, for which zeroes are valid.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            address.sll_ifindex = index.cast_signed();
            let length = size_of_val(&address) as u32;
            // SAFETY: the address has this length.
            let bound =
                unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
            assert_eq!(bound, 0);
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))
                .expect("it can be set");
            Self { socket }
        })
    }

    /// The length of the longest packet that was sent until `ends`.
    fn longest(&self, ends: &AtomicBool) -> usize {
        let mut buffer = vec![0; 1 << 17];
        let mut longest = 0;
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => longest = longest.max(length),
                Err(_) if ends.load(Ordering::Relaxed) => return longest,
                Err(_) => {}
            }
        }
    }
}

#[test]
fn the_option_is_found_behind_others_at_any_offset() {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    const NO_OPERATION: u8 = 1;
    const MSS: [u8; 4] = [2, 4, 0x05, 0xb4];
    /// Of no host, so that no kernel answers for it.
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 99);
    const TCP: usize = 14 + 20;

    let lab = Lab::new();
    let [left, right] = [&lab.left, &lab.right];
    let mac = right.mac.map(|byte| format!("{byte:02x}")).join(":");
    left.run(&format!("ip neigh add {PEER} lladdr {mac} dev {INTERFACE} nud permanent"));
    let injector =
        Injector::start(left, &format!("--interface {INTERFACE} --loss 0.000001% --mtu 1000"));
    let listener = left.inside(|| TcpListener::bind((left.v4, PORT)).expect("it is free"));
    let wire = Capture::on(right, INTERFACE);
    for (port, before) in (1000..).zip([
        vec![],
        vec![NO_OPERATION],
        // A window scale.
        vec![3, 3, 7],
        // Timestamps, SACK, a window scale.
        vec![8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 4, 2, 3, 3, 7],
        vec![NO_OPERATION; 36],
    ]) {
        let mut options = [before, MSS.to_vec()].concat();
        options.resize(options.len().next_multiple_of(4), NO_OPERATION);
        let send_segment = |numbers, flags, options: &[u8]| {
            let addresses = (PEER.into(), left.v4.into());
            let segment = frames::tcp(addresses, (port, PORT), numbers, flags, options);
            let packet = frames::ipv4(PEER, left.v4, frames::TCP, &segment);
            let ethertype = frames::ethertype(Family::V4);
            let frame = frames::ethernet(right, left, &[], ethertype, &packet);
            let sent = send(wire.socket.as_raw_fd(), &frame, MsgFlags::empty());
            assert_eq!(sent, Ok(frame.len()));
        };
        send_segment((0, 0), SYN, &options);
        let end = Instant::now() + TIMEOUT;
        let mut frame = [0; 256];
        let is_answer = |frame: &[u8; 256]| {
            let to = u16::from_be_bytes([frame[TCP + 2], frame[TCP + 3]]);
            frame[TCP + 13] == SYN | ACK && to == port
        };
        while !is_answer(&frame) {
            assert!(Instant::now() < end, "no answer to {options:?}");
            let _ = recv(wire.socket.as_raw_fd(), &mut frame, MsgFlags::empty());
        }
        let (_, sequence) = frame.split_at(TCP + 4);
        let sequence = u32::from_be_bytes(*sequence.first_chunk().expect("four bytes"));
        send_segment((1, sequence.wrapping_add(1)), ACK, &[]);
        let (connection, _) = listener.accept().expect("it is established");
        let segment = u64::from(getsockopt(&connection, sockopt::TcpMaxSeg).expect("of TCP"));
        let full = payload(Family::V4, 1000);
        assert!([full, full + TIMESTAMPS].contains(&segment), "{options:?}: {segment}");
    }
    injector.stop();
}

/// Bits a second of a connection over the loopback of a host, and the longest packet.
fn transfer(host: &Host, at: SocketAddr, bytes: usize) -> (f64, usize) {
    let capture = Capture::on(host, "lo");
    let ends = AtomicBool::new(false);
    let listener = host.inside(|| TcpListener::bind(at).expect("it is free"));
    thread::scope(|scope| {
        let capture = scope.spawn(|| capture.longest(&ends));
        let sender = scope.spawn(|| {
            let mut sender = host.inside(|| TcpStream::connect(at).expect("it listens"));
            sender.set_write_timeout(Some(TIMEOUT)).expect("it can be set");
            sender.write_all(&vec![0; bytes]).expect("it is read");
        });
        let (mut receiver, _) = listener.accept().expect("it connects");
        receiver.set_read_timeout(Some(TIMEOUT)).expect("it can be set");
        let mut buffer = vec![0; 1 << 16];
        let mut count = receiver.read(&mut buffer).expect("it sends");
        let (start, before) = (Instant::now(), count);
        while count < bytes {
            count += receiver.read(&mut buffer).expect("it sends");
        }
        let rate = (bytes - before) as f64 * 8.0 / start.elapsed().as_secs_f64();
        sender.join().expect("it does not panic");
        ends.store(true, Ordering::Relaxed);
        (rate, capture.join().expect("it does not panic"))
    })
}

#[test]
fn a_limited_rate_over_loopback_is_that_of_a_wire() {
    const ETHERNET_HEADER: usize = 14;
    const RATE: f64 = 1e6;
    for family in FAMILIES {
        let lab = Lab::new();
        // Acknowledgments do not share the rate.
        let line = format!("--interface lo --remote-port {PORT} --rate 1mbit --mtu 1500");
        let injector = Injector::start(&lab.left, &line);
        let at = (loopback(family), PORT).into();
        let (rate, longest) = transfer(&lab.left, at, 1_000_000);
        let Summary { total, .. } = injector.stop();
        // A full packet counts with its Ethernet header.
        let expected = payload(family, 1500) as f64 / (1500 + ETHERNET_HEADER) as f64;
        let goodput = rate / RATE;
        let context = format!("{family:?}: {goodput} of {expected}, {total:?}");
        // A timeout of TCP leaves the link idle for 0.2 s of 8 s.
        assert!((0.96..1.005).contains(&(goodput / expected)), "{context}");
        assert_eq!(longest, 1500 + ETHERNET_HEADER, "{context}");
    }
}

/// The `started` event and the maximum segments of client and server of `injector run` in a namespace
/// with the loopback alone, or also with another interface.
fn run(options: &str, others: &str) -> (Value, [u64; 2]) {
    let report = testbed::scratch_file();
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let script = format!(
        "ip link set lo up; {others}
         exec {INJECTOR} run --output json --output-file {report} {options} -- bash -c '
             mkfifo {report}.in
             {traffic} tcp-serve --mode echo --bind {at} <{report}.in >{report}.server &
             exec 3>{report}.in
             until grep -q ready {report}.server; do sleep 0.01; done
             {traffic} tcp-connect --mode echo --to {at}
             exec 3>&-
             wait'",
        report = report.display(),
        traffic = program("traffic").display(),
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--net", "bash", "-c", &script]);
    let client = Process::start(command).finish();
    let path = |suffix: &str| format!("{}{suffix}", report.display());
    let read = |path: &str| std::fs::read_to_string(path).expect("it was written");
    let (events, server) = (read(&path("")), read(&path(".server")));
    for suffix in ["", ".in", ".server"] {
        std::fs::remove_file(path(suffix)).expect("it is there");
    }
    let line = |line: &str| -> Value { serde_json::from_str(line).expect("JSON") };
    let started =
        testbed::output::lines(&events).into_iter().find(|event| event["event"] == "started");
    let server = line(server.lines().last().expect("a report"));
    let segments =
        [number(&client["after_write"], "mss"), server["mss"][0].as_u64().expect("a connection")];
    (started.expect("it started"), segments)
}

#[test]
fn run_on_loopback_alone_sends_packets_as_on_ethernet_by_default() {
    let other = "ip link add near type veth peer name far; ip link set near up";
    let remote = "--remote 127.0.0.0/8,::1";
    let ethernet = payload(Family::V4, 1500);
    for (options, others, limit) in [
        ("--loss 0.000001%", "", Some(ethernet)),
        ("--direction egress --rate 1gbit", "", Some(ethernet)),
        (&format!("--loss 0.000001% {remote}"), other, Some(ethernet)),
        ("--loss 0.000001%", other, None),
        ("--loss 0.000001% --pieces", "", None),
        ("--delay 1ms", "", None),
        ("--loss 1% --protocol udp", "", None),
    ] {
        let (started, segments) = run(options, others);
        let told = started["loopback_mtu"].as_u64();
        let context = format!("{options} {others}: {segments:?}, {started}");
        assert_eq!(told, limit.map(|_| 1500), "{context}");
        match limit {
            Some(limit) => assert_eq!(segments, [limit; 2], "{context}"),
            None => assert!(segments.iter().all(|&segment| segment > 30_000), "{context}"),
        }
    }
    let (started, segments) = run("--loss 0.000001% --mtu 9000", "");
    assert_eq!(segments, [payload(Family::V4, 9000); 2], "{started}");
    assert_eq!(started["loopback_mtu"], Value::Null, "{started}");
}

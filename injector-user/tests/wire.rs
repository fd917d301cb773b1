//! Faults that decide per packet act on wire packets, also where the kernel hands down GSO packets or has
//! merged what it received.

use std::{
    io::Write as _,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, setsockopt, socket, sockopt},
};
use testbed::{
    FAMILIES, Family, Host, INTERFACE, Injector, Lab, Summary, TIMEOUT, TestCgroup, binomial,
    engines, frames, number, serve, talk,
    tunnel::{self, TUNNEL},
    wait_until,
};

const PORT: u16 = 9000;

/// The longest frame: the MTU and an Ethernet header.
const FRAME: u64 = 1514;

/// Sends bytes from one host to the other by TCP.
fn transfer(from: &Host, to: &Host, family: Family, port: u16, bytes: usize) {
    let at = to.at(family, port);
    let server = serve(to, None, &format!("tcp-serve --bind {at}"));
    let line = format!("tcp-connect --to {at} --bytes {bytes} --timeout-ms 60000");
    let report = talk(from, None, &line);
    assert_eq!(number(&report["written"], "bytes"), bytes as u64, "{report}");
    server.finish();
}

/// The TCP segments that `sender` sent and `receiver` received during `work`, by the kernel's counters.
fn segments(lab: &Lab, sender: &Host, receiver: &Host, work: impl FnOnce()) -> (u64, u64) {
    let before = (sender.segments_sent(), receiver.segments_received());
    work();
    lab.settle();
    (sender.segments_sent() - before.0, receiver.segments_received() - before.1)
}

/// The rule is on the left host; the sender is on the left for sent packets, else on the right.
fn sides<'a>(lab: &'a Lab, direction: &str) -> (&'a Host, &'a Host, &'static str) {
    match direction {
        "egress" => (&lab.left, &lab.right, "--remote-port"),
        _ => (&lab.right, &lab.left, "--local-port"),
    }
}

#[test]
fn tcp_loses_single_segments_in_both_directions() {
    const BYTES: usize = 30_000_000;
    for family in FAMILIES {
        for direction in ["egress", "ingress"] {
            let lab = Lab::new();
            let (sender, receiver, port) = sides(&lab, direction);
            let line = format!(
                "--interface {INTERFACE} --direction {direction} --protocol tcp {port} {PORT} --loss 1%"
            );
            let injector = Injector::start(&lab.left, &line);
            let (sent, arrived) = segments(&lab, sender, receiver, || {
                transfer(sender, receiver, family, PORT, BYTES);
            });
            let Summary { total, .. } = injector.stop();
            let context = format!("{family:?} {direction}: {total:?}");
            assert!(sent > BYTES as u64 / FRAME, "{context}");
            assert_eq!(
                (total.matched, total.matched - total.dropped),
                (sent, arrived),
                "{context}"
            );
            assert!(binomial(total.matched, 0.01).contains(&total.dropped), "{context}");
            let bytes = total.egress.bytes + total.ingress.bytes;
            assert!(bytes > BYTES as u64 && bytes <= total.matched * FRAME, "{context}");
        }
    }
}

#[test]
fn tcp_data_survives_corrupted_and_duplicated_segments() {
    const BYTES: usize = 10_000_000;
    for direction in ["egress", "ingress"] {
        let lab = Lab::new();
        // Receivers verify real checksums.
        for host in [&lab.left, &lab.right] {
            host.run(&format!("ethtool -K {INTERFACE} tx off rx off"));
        }
        let (sender, receiver, port) = sides(&lab, direction);
        let line = format!(
            "--interface {INTERFACE} --direction {direction} {port} {PORT} --corrupt 1% --duplicate 1%"
        );
        let injector = Injector::start(&lab.left, &line);
        let (sent, arrived) = segments(&lab, sender, receiver, || {
            transfer(sender, receiver, Family::V4, PORT, BYTES);
        });
        let Summary { total, .. } = injector.stop();
        assert_eq!(total.matched, sent, "{direction}: {total:?}");
        // A corrupted packet does not reach TCP. Its duplicate was made before and is intact.
        assert_eq!(arrived, sent + total.duplicated - total.corrupted, "{direction}: {total:?}");
        for count in [total.corrupted, total.duplicated] {
            assert!(binomial(sent, 0.01).contains(&count), "{direction}: {total:?}");
        }
    }
}

/// A GSO packet of a protocol that the kernel cannot segment, as a device or a packet socket takes it.
fn unsegmentable(from: &Host, to: &Host, link_header: &[u8]) -> Vec<u8> {
    /// Of `struct virtio_net_hdr`: the checksum is missing; a TCP packet over IPv4.
    const NEEDS_CHECKSUM: u8 = 1;
    const TCP_V4: u8 = 1;
    /// For experiments (RFC 3692).
    const PROTOCOL: u8 = 253;

    let packet = frames::ipv4(from.v4, to.v4, PROTOCOL, &[0; 3000]);
    let upper = link_header.len() as u16 + 20;
    let fields = [upper + 20, 1000, upper, 16].map(u16::to_ne_bytes);
    [&[NEEDS_CHECKSUM, TCP_V4][..], &fields.concat(), link_header, &packet].concat()
}

/// A packet socket of an interface that takes a `virtio_net_hdr` before each packet.
fn packet_socket(host: &Host) -> OwnedFd {
    const PACKET_VNET_HDR: i32 = 15;

    host.inside(|| {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None);
        let socket = socket.expect("root may");
        // SAFETY: plain data, for which zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = if_nametoindex(INTERFACE).expect("it is there").cast_signed();
        let (length, on) = (size_of_val(&address) as u32, 1i32);
        // SAFETY: the values have these lengths.
        let results = unsafe {
            let option = (&raw const on).cast();
            let size = size_of_val(&on) as u32;
            [
                libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length),
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    PACKET_VNET_HDR,
                    option,
                    size,
                ),
            ]
        };
        assert_eq!(results, [0, 0]);
        socket
    })
}

#[test]
fn packets_that_cannot_be_segmented_are_counted() {
    const COUNT: u64 = 5;
    let options = "--loss 0.000001% --direction";
    let lab = Lab::new();
    let [left, right] = [&lab.left, &lab.right];

    let injector = Injector::start(left, &format!("--interface {INTERFACE} {options} egress"));
    let socket = packet_socket(left);
    let header = frames::ethernet(left, right, &[], frames::ethertype(Family::V4), &[]);
    let packet = unsegmentable(left, right, &header);
    let flood = || {
        for _ in 0..COUNT {
            let sent = send(socket.as_raw_fd(), &packet, MsgFlags::empty());
            assert_eq!(sent, Ok(packet.len()));
        }
    };
    let (sent, _) = segments(&lab, left, right, || {
        flood();
        transfer(left, right, Family::V4, PORT, 1_000_000);
        flood();
    });
    let Summary { total, .. } = injector.stop();
    assert_eq!((total.unsegmented, total.matched), (2 * COUNT, sent), "{total:?}");

    let mut tun = left.inside(tunnel::open);
    left.run(&format!("ip link set {TUNNEL} up"));
    let injector = Injector::start(left, &format!("--interface {TUNNEL} {options} ingress"));
    let packet = unsegmentable(right, left, &[]);
    for _ in 0..COUNT {
        tun.write_all(&packet).expect("the device takes it");
    }
    let Summary { total, .. } = injector.stop();
    assert_eq!((total.unsegmented, total.matched), (COUNT, 0), "{total:?}");
}

#[test]
fn pieces_are_kept_whole_if_asked_for() {
    let lab = Lab::new();
    let line = format!("--interface {INTERFACE} --direction egress --loss 0.000001% --pieces");
    let injector = Injector::start(&lab.left, &line);
    let (sent, _) = segments(&lab, &lab.left, &lab.right, || {
        transfer(&lab.left, &lab.right, Family::V4, PORT, 30_000_000);
    });
    let Summary { total, .. } = injector.stop();
    assert!(total.matched < sent / 4, "{total:?}, {sent} sent");
}

#[test]
fn only_what_matches_is_segmented() {
    let lab = Lab::new();
    let line =
        format!("--interface {INTERFACE} --direction egress --remote-port 9001 --loss 0.000001%");
    let injector = Injector::start(&lab.left, &line);
    let (sent, _) = segments(&lab, &lab.left, &lab.right, || {
        transfer(&lab.left, &lab.right, Family::V4, PORT, 30_000_000);
    });
    let Summary { total, seen, .. } = injector.stop();
    assert_eq!(total.matched, 0);
    assert!(seen.egress < sent / 4, "{seen:?}, {sent} sent");
}

/// The number of datagrams that one call sends.
const SEGMENTS: usize = 40;

/// The length of each.
const SEGMENT: usize = 1000;

/// Sends datagrams by calls of [`SEGMENTS`] each, with every fifth call a single one if `mixed`. Returns
/// the numbers of those that arrived, in order of arrival, and the number of sent ones.
fn gso(lab: &Lab, from: &Host, to: &Host, family: Family, mixed: bool) -> (Vec<u32>, u32) {
    const CALLS: u32 = 250;
    let receiver = to.inside(|| UdpSocket::bind(to.at(family, PORT)).expect("it is free"));
    setsockopt(&receiver, sockopt::RcvBufForce, &(64 << 20)).expect("root may");
    receiver.set_read_timeout(Some(Duration::from_secs(2))).expect("it can be set");
    let address: SocketAddr = from.at(family, 0);
    let sender = from.inside(|| UdpSocket::bind(address).expect("it is free"));
    setsockopt(&sender, sockopt::UdpGsoSegment, &i32::from(SEGMENT as u16)).expect("Linux 4.18");
    sender.connect(to.at(family, PORT)).expect("there is a route");
    let mut number = 0u32;
    let arrived = thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut buffer = vec![0; 1 << 16];
            let mut numbers = Vec::new();
            let end = Instant::now() + TIMEOUT;
            while let Ok(length) = receiver.recv(&mut buffer) {
                assert!(length == SEGMENT && Instant::now() < end);
                let (bytes, _) = buffer.split_first_chunk().expect("long enough");
                numbers.push(u32::from_be_bytes(*bytes));
            }
            numbers
        });
        for call in 0..CALLS {
            let count = if mixed && call % 5 == 4 { 1 } else { SEGMENTS };
            let mut message = vec![0; count * SEGMENT];
            for segment in message.chunks_mut(SEGMENT) {
                segment[..4].copy_from_slice(&number.to_be_bytes());
                number += 1;
            }
            assert_eq!(sender.send(&message).expect("it fits"), message.len());
            // The backlog of a processor takes 1000 packets.
            thread::sleep(Duration::from_millis(1));
        }
        receiving.join().expect("it does not panic")
    });
    lab.settle();
    (arrived, number)
}

#[test]
fn udp_sends_of_40_segments_lose_single_datagrams() {
    for family in FAMILIES {
        for direction in ["egress", "ingress"] {
            let lab = Lab::new();
            let (sender, receiver, _) = sides(&lab, direction);
            let line = format!(
                "--interface {INTERFACE} --direction {direction} --protocol udp --loss 20%"
            );
            let injector = Injector::start(&lab.left, &line);
            let (arrived, sent) = gso(&lab, sender, receiver, family, false);
            let Summary { total, .. } = injector.stop();
            let context = format!("{family:?} {direction}: {total:?}");
            let lost = u64::from(sent) - arrived.len() as u64;
            assert_eq!((total.matched, total.dropped), (u64::from(sent), lost), "{context}");
            assert!(binomial(total.matched, 0.2).contains(&lost), "{context}");
            let mut lost_of_call = vec![SEGMENTS as u64; sent as usize / SEGMENTS];
            for number in arrived {
                lost_of_call[number as usize / SEGMENTS] -= 1;
            }
            let bounds = binomial(SEGMENTS as u64, 0.2);
            assert!(
                lost_of_call.iter().all(|lost| bounds.contains(lost)),
                "{context}: {lost_of_call:?}"
            );
        }
    }
}

#[test]
fn nothing_overtakes() {
    for direction in ["egress", "ingress"] {
        let lab = Lab::new();
        let (sender, receiver, _) = sides(&lab, direction);
        let line = format!("--interface {INTERFACE} --direction {direction} --loss 0.000001%");
        let injector = Injector::start(&lab.left, &line);
        let (arrived, sent) = gso(&lab, sender, receiver, Family::V4, true);
        let Summary { total, .. } = injector.stop();
        assert_eq!(total.matched, u64::from(sent), "{direction}: {total:?}");
        assert!(arrived.iter().copied().eq(0..sent), "{direction}: {total:?}");
    }
}

#[test]
fn packets_are_held_one_by_one() {
    for engine in engines() {
        for direction in ["egress", "ingress"] {
            let lab = Lab::new();
            let (sender, receiver, _) = sides(&lab, direction);
            let line = format!(
                "--interface {INTERFACE} --direction {direction} --protocol udp --engine {engine} \
                 --delay 20ms,jitter=20ms"
            );
            let injector = Injector::start(&lab.left, &line);
            let (arrived, sent) = gso(&lab, sender, receiver, Family::V4, false);
            let Summary { total, held, .. } = injector.stop();
            let context = format!("{engine} {direction}: {total:?}, {held:?}");
            let sent = u64::from(sent);
            assert_eq!((total.matched, arrived.len() as u64), (sent, sent), "{context}");
            // In most sends, a later datagram has a shorter delay.
            let overtaken = arrived.windows(2).filter(|pair| pair[0] > pair[1]).count();
            assert!(overtaken > arrived.len() / 10, "{context}: {overtaken}");
        }
    }
}

#[test]
fn a_limited_rate_counts_and_sends_segments() {
    const BYTES: usize = 1_000_000;
    for engine in engines() {
        let lab = Lab::new();
        let line = format!(
            "--interface {INTERFACE} --direction egress --remote-port {PORT} --engine {engine} --rate 20mbit"
        );
        let injector = Injector::start(&lab.left, &line);
        let start = Instant::now();
        let (sent, arrived) = segments(&lab, &lab.left, &lab.right, || {
            transfer(&lab.left, &lab.right, Family::V4, PORT, BYTES);
        });
        let took = start.elapsed();
        let Summary { total, .. } = injector.stop();
        let context = format!("{engine}: {total:?}, {took:?}");
        let passed = total.matched - total.queue_dropped;
        assert_eq!((total.matched, passed), (sent, arrived), "{context}");
        assert!(total.egress.bytes <= total.matched * FRAME, "{context}");
        assert!(took >= Duration::from_secs_f64(BYTES as f64 * 8.0 / 20e6), "{context}");
    }
}

#[test]
fn packets_of_a_cgroup_are_wire_packets_and_others_are_not_touched() {
    const BYTES: usize = 10_000_000;
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--direction both --protocol tcp --loss 1%");
    for (sender, receiver) in [(&lab.left, &lab.right), (&lab.right, &lab.left)] {
        transfer(sender, receiver, Family::V4, PORT, BYTES);
    }
    let at = lab.right.at(Family::V4, PORT);
    let server = serve(&lab.right, None, &format!("tcp-serve --bind {at}"));
    let (sent, received) = (lab.left.segments_sent(), lab.right.segments_received());
    let line = format!("tcp-connect --to {at} --bytes {BYTES} --timeout-ms 60000");
    let report = talk(&lab.left, Some(&cgroup), &line);
    assert_eq!(number(&report["written"], "bytes"), BYTES as u64, "{report}");
    server.finish();
    lab.settle();
    let sent = lab.left.segments_sent() - sent;
    let lost = sent - (lab.right.segments_received() - received);
    let Summary { total, .. } = injector.stop();
    // The kernel's own answers, such as the last acknowledgment, belong to no cgroup.
    let (matched, most) = (total.egress.packets, sent);
    assert!(matched <= most && matched + 3 >= most, "{total:?}: {sent} sent");
    assert!(lost <= total.dropped && binomial(matched, 0.01).contains(&lost), "{total:?}: {lost}");
}

#[test]
fn two_injectors_segment_packets_of_one_interface() {
    for direction in ["egress", "ingress"] {
        let lab = Lab::new();
        let (sender, receiver, _) = sides(&lab, direction);
        let line =
            format!("--interface {INTERFACE} --direction {direction} --protocol udp --loss 10%");
        let injectors = [Injector::start(&lab.left, &line), Injector::start(&lab.left, &line)];
        let (arrived, sent) = gso(&lab, sender, receiver, Family::V4, true);
        let [first, second] = injectors.map(|injector| injector.stop().total);
        // The one that started last is ahead.
        let context = format!("{direction}: {first:?}, {second:?}");
        assert_eq!(second.matched, u64::from(sent), "{context}");
        assert_eq!(first.matched, second.matched - second.dropped, "{context}");
        assert_eq!(arrived.len() as u64, first.matched - first.dropped, "{context}");
        assert!(arrived.is_sorted(), "{context}");
    }
}

#[test]
fn no_burst_exceeds_the_backlog_and_nothing_overtakes() {
    /// In GSO packets of 40 segments: several times the 1000 packets that the kernel accepts.
    const FLOWS: u16 = 32;
    let lab = Lab::new();
    let line = format!("--interface {INTERFACE} --direction ingress --loss 0.000001%");
    let injector = Injector::start(&lab.left, &line);
    let (sent, arrived) = segments(&lab, &lab.right, &lab.left, || {
        thread::scope(|scope| {
            for flow in 0..FLOWS {
                let lab = &lab;
                scope.spawn(move || {
                    transfer(&lab.right, &lab.left, Family::V4, PORT + flow, 4_000_000);
                });
            }
        });
    });
    let Summary { total, .. } = injector.stop();
    assert_eq!((total.matched, arrived), (sent, sent), "{total:?}");
}

#[test]
fn devices_go_and_come_with_the_processes_of_a_cgroup() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let has_devices = || {
        let links = lab.right.run("ip -oneline link");
        ["injcut", "injhold"].iter().any(|name| links.contains(name))
    };
    for engine in engines() {
        let line = format!("--loss 1% --delay 10ms,jitter=1ms --engine {engine}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        for _ in 0..3 {
            let mut process = lab.right.command("sleep", Some(&cgroup));
            let mut process = process.arg("1000").spawn().expect("sleep");
            wait_until(TIMEOUT, "the devices", has_devices);
            process.kill().expect("it runs");
            process.wait().expect("it was killed");
            wait_until(TIMEOUT, "the end of the devices", || !has_devices());
        }
        injector.stop();
    }
}

//! Reset: the target's side of a connection gets ECONNRESET once, and other connections are unaffected.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use serde_json::Value;
use testbed::{
    FAMILIES, Family, Host, INTERFACE, Injector, Lab, Process, TestCgroup,
    connection::{self, BYTES, assert_whole, go},
    number, serve, talk,
};

/// A connection that waits for a command to transfer bytes.
fn hold(host: &Host, cgroup: Option<&TestCgroup>, to: SocketAddr) -> Process {
    connection::hold(host, cgroup, to, Duration::from_secs(2))
}

#[test]
fn established_connections_of_the_target_are_reset_once_each_and_others_go_on() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    for direction in ["egress", "ingress"] {
        let connect = |cgroup| -> Vec<Process> {
            let twice = FAMILIES.iter().chain(&FAMILIES);
            twice.map(|&family| hold(&lab.left, cgroup, lab.right.at(family, 9000))).collect()
        };
        let (targets, others) = (connect(Some(&cgroup)), connect(None));
        let line = format!("--reset --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        for connection in targets {
            let report = go(connection);
            assert_eq!(report["error"], "ECONNRESET", "{direction} {report}");
            assert_eq!(number(&report["read"], "bytes"), 0, "{direction} {report}");
        }
        for connection in others {
            assert_whole(&go(connection));
        }
        let total = injector.stop().total;
        assert_eq!((total.reset, total.skipped), (4, 0), "{direction}");
    }
}

#[test]
fn new_connections_come_about_and_are_reset_at_their_first_data() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    let injector = Injector::on(&lab.left, &cgroup, "--reset");
    for family in FAMILIES {
        let to = lab.right.at(family, 9000);
        let line = format!("tcp-connect --mode echo --to {to} --bytes {BYTES} --connections 5");
        let reports = talk(&lab.left, Some(&cgroup), &line);
        for report in reports.as_array().expect("a list") {
            assert_eq!(report["connected"], true, "{family:?} {report}");
            assert_eq!(report["error"], "ECONNRESET", "{family:?} {report}");
        }
        let line = format!("tcp-connect --mode echo --to {to} --bytes {BYTES}");
        assert_whole(&talk(&lab.left, None, &line));
    }
    assert_eq!(injector.stop().total.reset, 10);
    drop(server);
}

#[test]
fn accepted_connections_of_the_target_are_reset_on_its_side() {
    /// So much that sending is incomplete when the answer starts. After complete sending, it is EPIPE.
    const MUCH: u64 = 100 * BYTES;

    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    for direction in ["egress", "ingress"] {
        let target = serve(&lab.left, Some(&cgroup), "tcp-serve --mode echo --bind [::]:9000");
        let beside = serve(&lab.left, None, "tcp-serve --mode echo --bind [::]:9001");
        let line = format!("--reset --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        for family in FAMILIES {
            let line = |port, bytes| {
                let to = lab.left.at(family, port);
                format!("tcp-connect --mode echo --to {to} --bytes {bytes} --timeout-ms 300")
            };
            let report = talk(&lab.right, None, &line(9000, MUCH));
            assert_eq!(report["connected"], true, "{report}");
            // The peer may get a RST from the target's kernel when it sends to the closed connection.
            assert_ne!(report["error"], Value::Null, "{report}");
            assert_whole(&talk(&lab.right, None, &line(9001, BYTES)));
        }
        let report = target.finish();
        let streams = report["streams"].as_array().expect("a list");
        assert_eq!(streams.len(), 2, "{direction} {report}");
        for stream in streams {
            assert_eq!(stream["error"], "ECONNRESET", "{direction} {report}");
        }
        drop(beside);
        assert_eq!(injector.stop().total.reset, 2, "{direction}");
    }
}

#[test]
fn acknowledgments_are_enough_to_be_reset_where_only_they_are_seen() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _sink = serve(&lab.right, None, "tcp-serve --bind [::]:9000");
    let line = "tcp-serve --mode source --bytes 5000000 --chunk 1000 --bind [::]:9001";
    let _source = serve(&lab.right, None, line);
    // The target only sends data while the faults match received packets, and vice versa.
    for (direction, port, mode) in [("ingress", 9000, "sink"), ("egress", 9001, "source")] {
        let line = format!("--reset --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        for family in FAMILIES {
            let to = lab.right.at(family, port);
            let line =
                format!("tcp-connect --mode {mode} --to {to} --bytes 5000000 --timeout-ms 2000");
            let report = talk(&lab.left, Some(&cgroup), &line);
            // The peer's data may be acknowledged before the process accepts the connection.
            let error = report["error"].as_str().unwrap_or_default();
            // Writing to a connection that was reset meanwhile gives EPIPE.
            assert!(["ECONNRESET", "EPIPE"].contains(&error), "{direction} {report}");
        }
        assert_eq!(injector.stop().total.reset, 2, "{direction}");
    }
}

#[test]
fn the_peer_of_a_connection_that_was_reset_on_arrival_learns_of_it() {
    let lab = Lab::new();
    let _server = serve(&lab.left, None, "tcp-serve --mode echo --bind [::]:9000");
    let line = "--interface veth0 --reset --direction ingress --local-port 9000";
    let injector = Injector::start(&lab.left, line);
    for family in FAMILIES {
        // It retransmits the replaced segment, and the kernel answers for the closed connection.
        let report = go(hold(&lab.right, None, lab.left.at(family, 9000)));
        assert_eq!(report["error"], "ECONNRESET", "{family:?} {report}");
    }
    assert_eq!(injector.stop().total.reset, 2);
}

#[test]
fn with_syn_asked_for_connecting_is_refused() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    let line = "--reset --tcp-flags syn,!ack --direction egress";
    let injector = Injector::on(&lab.left, &cgroup, line);
    for family in FAMILIES {
        let to = lab.right.at(family, 9000);
        let line = format!("tcp-connect --mode echo --to {to} --bytes {BYTES} --timeout-ms 2000");
        let report = talk(&lab.left, Some(&cgroup), &line);
        assert_eq!(report["error"], "ECONNREFUSED", "{family:?} {report}");
        assert_whole(&talk(&lab.left, None, &line));
    }
    assert_eq!(injector.stop().total.reset, 2);
}

#[test]
fn connections_to_other_ports_of_the_target_are_not_reset() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _servers = [9000, 9001]
        .map(|port| serve(&lab.right, None, &format!("tcp-serve --mode echo --bind [::]:{port}")));
    let injector = Injector::on(&lab.left, &cgroup, "--reset --remote-port 9001");
    let line = |port| {
        let to = lab.right.at(Family::V4, port);
        format!("tcp-connect --mode echo --to {to} --bytes {BYTES}")
    };
    assert_whole(&talk(&lab.left, Some(&cgroup), &line(9000)));
    assert_eq!(talk(&lab.left, Some(&cgroup), &line(9001))["error"], "ECONNRESET");
    assert_eq!(injector.stop().total.reset, 1);
}

/// Addresses of the host itself, reached over its loopback.
fn own_addresses(host: &Host, port: u16) -> [SocketAddr; 5] {
    [
        (Ipv4Addr::LOCALHOST, port).into(),
        (Ipv6Addr::LOCALHOST, port).into(),
        host.at(Family::V4, port),
        host.at(Family::V6, port),
        (Ipv4Addr::new(127, 9, 8, 7), port).into(),
    ]
}

#[test]
fn connections_of_a_host_to_itself_are_reset_on_the_clients_side() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.left, None, "tcp-serve --mode echo --bind [::]:9000");
    for line in [
        "--reset --direction egress",
        "--reset --direction ingress",
        "--reset",
        "--reset --direction egress --hook clsact",
    ] {
        let all = own_addresses(&lab.left, 9000);
        let targets = all.map(|to| (to, hold(&lab.left, Some(&cgroup), to)));
        let others = all.map(|to| hold(&lab.left, None, to));
        let injector = Injector::on(&lab.left, &cgroup, line);
        for (to, connection) in targets {
            let report = go(connection);
            assert_eq!(report["error"], "ECONNRESET", "{line} {to} {report}");
        }
        for connection in others {
            assert_whole(&go(connection));
        }
        let total = injector.stop().total;
        assert_eq!((total.reset, total.skipped), (all.len() as u64, 0), "{line}");
    }
}

#[test]
fn connections_of_a_host_to_itself_are_reset_on_the_servers_side() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    for direction in ["egress", "ingress"] {
        let server = serve(&lab.left, Some(&cgroup), "tcp-serve --mode echo --bind [::]:9000");
        let all = own_addresses(&lab.left, 9000);
        let clients = all.map(|to| (to, hold(&lab.left, None, to)));
        let line = format!("--reset --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        for (to, connection) in clients {
            // The kernel answers its retransmissions, as the peer is closed.
            let report = go(connection);
            assert_eq!(report["error"], "ECONNRESET", "{direction} {to} {report}");
        }
        let total = injector.stop().total;
        assert_eq!(total.reset, all.len() as u64, "{direction}");
        let report = server.finish();
        let streams = report["streams"].as_array().expect("a list");
        assert_eq!(streams.len(), all.len(), "{direction} {report}");
        for stream in streams {
            assert_eq!(stream["error"], "ECONNRESET", "{direction} {report}");
        }
    }
}

#[test]
fn with_syn_asked_for_connecting_to_the_host_itself_is_refused() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let _server = serve(&lab.left, None, "tcp-serve --mode echo --bind [::]:9000");
    let line = "--reset --tcp-flags syn,!ack --direction egress";
    let injector = Injector::on(&lab.left, &cgroup, line);
    for to in own_addresses(&lab.left, 9000) {
        let line = format!("tcp-connect --mode echo --to {to} --bytes {BYTES} --timeout-ms 2000");
        let report = talk(&lab.left, Some(&cgroup), &line);
        assert_eq!(report["error"], "ECONNREFUSED", "{to} {report}");
        assert_whole(&talk(&lab.left, None, &line));
    }
    assert_eq!(injector.stop().total.reset, 5);
}

#[test]
fn connections_over_a_faulted_loopback_are_reset() {
    let lab = Lab::new();
    let _server = serve(&lab.left, None, "tcp-serve --mode echo --bind [::]:9000");
    for direction in ["egress", "ingress", "both"] {
        let line = format!("--interface lo --reset --direction {direction} --remote-port 9000");
        let injector = Injector::start(&lab.left, &line);
        for to in own_addresses(&lab.left, 9000) {
            let report = go(hold(&lab.left, None, to));
            assert_eq!(report["error"], "ECONNRESET", "{direction} {to} {report}");
        }
        assert_eq!(injector.stop().total.reset, 5, "{direction}");
    }
}

#[test]
fn connections_to_a_link_local_address_of_the_host_are_reset() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let address: Ipv6Addr = "fe80::9".parse().expect("an address");
    lab.left.run(&format!("ip addr add {address}/64 dev {INTERFACE} nodad"));
    let link = lab.left.run(&format!("ip -o link show {INTERFACE}"));
    let index = link.split(':').next().and_then(|index| index.parse().ok()).expect("an index");
    let to = SocketAddrV6::new(address, 9000, 0, index).into();
    let _server = serve(&lab.left, None, "tcp-serve --mode echo --bind [::]:9000");
    // Received packets of such a connection cannot be matched by cgroup.
    let of_cgroup = format!("--cgroup {} --direction egress", cgroup.path.display());
    for target in [&of_cgroup, "--interface lo --direction egress", "--interface lo"] {
        let connection = hold(&lab.left, Some(&cgroup), to);
        let injector = Injector::start(&lab.left, &format!("{target} --reset --remote-port 9000"));
        assert_eq!(go(connection)["error"], "ECONNRESET", "{target}");
        assert_eq!(injector.stop().total.reset, 1, "{target}");
    }
}

/// Translates addresses of what the host sends; whether this kernel can.
fn translate(host: &Host, peer: &Host) -> bool {
    host.translate(&format!(
        "table inet t {{\nchain o {{\ntype nat hook output priority -100;\n\
         ip daddr 192.0.2.1 tcp dport 80 dnat ip to 127.0.0.1:9000\n\
         ip daddr 192.0.2.2 tcp dport 80 dnat ip to {}:9000\n\
         tcp dport 81 redirect to :9000\n}}\n}}\n",
        peer.v4,
    ))
}

#[test]
fn connections_of_a_host_to_itself_whose_addresses_are_translated_are_reset() {
    let lab = Lab::new();
    if !translate(&lab.left, &lab.right) {
        return;
    }
    lab.left.run("ip route add 192.0.2.0/24 dev veth0");
    let all: [SocketAddr; 4] = [
        ([192, 0, 2, 1], 80).into(),
        lab.left.at(Family::V4, 81),
        (Ipv4Addr::LOCALHOST, 81).into(),
        (Ipv6Addr::LOCALHOST, 81).into(),
    ];
    let _server = serve(&lab.left, None, "tcp-serve --mode echo --bind [::]:9000");
    for direction in ["ingress", "both"] {
        let cgroup = TestCgroup::new();
        let targets = all.map(|to| (to, hold(&lab.left, Some(&cgroup), to)));
        let others = all.map(|to| hold(&lab.left, None, to));
        let line = format!("--reset --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        for (to, connection) in targets {
            let report = go(connection);
            assert_eq!(report["error"], "ECONNRESET", "{direction} {to} {report}");
        }
        for connection in others {
            assert_whole(&go(connection));
        }
        assert_eq!(injector.stop().total.reset, all.len() as u64, "{direction}");
    }
    // What is sent cannot be answered, which is said; the connections go on.
    let cgroup = TestCgroup::new();
    let targets = all.map(|to| hold(&lab.left, Some(&cgroup), to));
    let injector = Injector::on(&lab.left, &cgroup, "--reset --direction egress");
    for connection in targets {
        assert_whole(&go(connection));
    }
    let summary = injector.stop();
    assert_eq!(summary.total.reset, 0);
    assert!(summary.seen.translated >= all.len() as u64, "{:?}", summary.seen);
    assert_eq!(summary.total.skipped, summary.seen.translated);
    // Over a wire it can. (What is received there is not translated back yet, so it is not known whose it is.)
    let _peer = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    let to: SocketAddr = ([192, 0, 2, 2], 80).into();
    for direction in ["both", "egress"] {
        let connection = hold(&lab.left, Some(&cgroup), to);
        let line = format!("--reset --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        let report = go(connection);
        assert_eq!(report["error"], "ECONNRESET", "{direction} {to} {report}");
        let total = injector.stop().total;
        assert_eq!((total.reset, total.skipped), (1, 0), "{direction}");
    }
}

#[test]
fn connections_of_multipath_tcp_are_reset() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    // The timeout after which a connection ends whose last path was reset.
    if !lab.left.run_in(None, "sysctl -q -w net.mptcp.enabled=1 net.mptcp.close_timeout=1").0 {
        // Multipath TCP is missing, or lacks this setting (before Linux 6.8).
        return;
    }
    // With a peer without multipath TCP, it is plain TCP.
    for kind in ["--mptcp", ""] {
        let server =
            serve(&lab.left, None, &format!("tcp-serve --mode echo --bind [::]:9000 {kind}"));
        let line = "--reset --tcp-flags syn,!ack --direction egress";
        let injector = Injector::on(&lab.left, &cgroup, line);
        for to in own_addresses(&lab.left, 9000) {
            let line = format!("tcp-connect --mptcp --to {to} --bytes 9 --timeout-ms 2000");
            let report = talk(&lab.left, Some(&cgroup), &line);
            assert_eq!(report["error"], "ECONNREFUSED", "{kind} {to} {report}");
        }
        assert_eq!(injector.stop().total.reset, 5, "{kind}");

        for direction in ["egress", "ingress"] {
            let connections = own_addresses(&lab.left, 9000).map(|to| {
                let line = format!(
                    "tcp-connect --mptcp --mode echo --hold --to {to} --bytes {BYTES} --timeout-ms 5000"
                );
                (to, serve(&lab.left, Some(&cgroup), &line))
            });
            let line = format!("--reset --direction {direction}");
            let injector = Injector::on(&lab.left, &cgroup, &line);
            for (to, connection) in connections {
                let report = go(connection);
                assert_eq!(report["error"], "ECONNRESET", "{kind} {direction} {to} {report}");
            }
            assert_eq!(injector.stop().total.reset, 5, "{kind} {direction}");
        }
        drop(server);
    }
}

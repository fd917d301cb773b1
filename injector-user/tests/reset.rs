//! Reset: the target's side of a connection sees ECONNRESET, once, and others see nothing.

mod support;

use serde_json::Value;
use support::{FAMILIES, Family, Host, Injector, Lab, Process, TestCgroup, number, serve, talk};

const BYTES: u64 = 20_000;

/// A connection that waits to be told to move bytes.
fn hold(host: &Host, cgroup: Option<&TestCgroup>, to: std::net::SocketAddr) -> Process {
    let line =
        format!("tcp-connect --mode echo --hold --to {to} --bytes {BYTES} --timeout-ms 2000");
    serve(host, cgroup, &line)
}

/// Has it move them; returns how that went.
fn go(mut connection: Process) -> Value {
    connection.tell("go");
    connection.finish()
}

fn assert_whole(report: &Value) {
    assert_eq!(report["error"], Value::Null, "{report}");
    let read = &report["read"];
    assert_eq!((number(read, "bytes"), number(read, "wrong")), (BYTES, 0), "{report}");
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
    /// So much that it is not all sent when the answer begins: one that has been sent all is told EPIPE.
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
            // The peer is told by the target's kernel if at all, when it sends to what is no more.
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
    // The target only sends data and the faults see what it receives, and the other way round.
    for (direction, port, mode) in [("ingress", 9000, "sink"), ("egress", 9001, "source")] {
        let line = format!("--reset --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        for family in FAMILIES {
            let to = lab.right.at(family, port);
            let line =
                format!("tcp-connect --mode {mode} --to {to} --bytes 5000000 --timeout-ms 2000");
            let report = talk(&lab.left, Some(&cgroup), &line);
            // The peer's data may come, and be acknowledged, before the process hears of its connection.
            let error = report["error"].as_str().unwrap_or_default();
            // Whoever writes to a connection that has been reset meanwhile gets EPIPE.
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
        // It sends again what was replaced by the RST, and the kernel answers for the dead connection.
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

//! Loss: exactly the counted packets, only of the target, invisible to the sender.

use std::{net::SocketAddr, thread};

use serde_json::Value;
use testbed::{
    FAMILIES, Family, Host, Injector, Lab, RuleFile, TestCgroup, binomial, correlated, number,
    serve, talk,
};

const COUNT: u64 = 800;

/// The numbers of the lost datagrams out of `count`.
fn missing(received: &Value, count: u64) -> Vec<u64> {
    let numbers = received["numbers"].as_array().expect("a list");
    let mut arrived = vec![false; count as usize];
    for number in numbers {
        arrived[number.as_u64().expect("a number") as usize] = true;
    }
    (0..count).filter(|&n| !arrived[n as usize]).collect()
}

/// Sends datagrams to a new receiver. Returns its report.
fn send(
    (from, sender): (&Host, Option<&TestCgroup>),
    (to, receiver): (&Host, Option<&TestCgroup>),
    bind: SocketAddr,
    address: SocketAddr,
    options: &str,
) -> Value {
    let receiver = serve(to, receiver, &format!("udp-receive --bind {bind}"));
    let line = format!("udp-send --to {address} --count {COUNT} {options}");
    let sent = talk(from, sender, &line);
    assert_eq!(number(&sent, "sent"), COUNT, "{sent}");
    receiver.finish()
}

#[test]
fn sent_datagrams_are_lost_as_counted_and_those_of_a_process_beside_the_target_are_not() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--loss 20% --direction egress");
    let mut lost = 0;
    for family in FAMILIES {
        let to = lab.right.at(family, 9000);
        for options in ["", "--connected"] {
            let inside = (&lab.left, Some(&cgroup));
            let missing = missing(&send(inside, (&lab.right, None), to, to, options), COUNT);
            assert!(binomial(COUNT, 0.2).contains(&(missing.len() as u64)), "{}", missing.len());
            lost += missing.len() as u64;
            let beside = send((&lab.left, None), (&lab.right, None), to, to, options);
            assert_eq!(number(&beside, "received"), COUNT);
        }
    }
    let total = injector.stop().total;
    assert_eq!((total.matched, total.dropped), (4 * COUNT, lost));
    assert_eq!((total.egress.packets, total.ingress.packets), (4 * COUNT, 0));
    // Ethernet, IP and UDP headers, and a payload of 64 bytes.
    assert_eq!(total.egress.bytes, 2 * COUNT * ((14 + 20 + 8 + 64) + (14 + 40 + 8 + 64)));
}

#[test]
fn received_datagrams_are_lost_as_counted_whatever_the_socket_is_bound_to() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--loss 20% --direction ingress");
    let mut lost = 0;
    for family in FAMILIES {
        let to = lab.left.at(family, 9000);
        let dual_stack = SocketAddr::from(([0u16; 8], 9000));
        for bind in [to, dual_stack] {
            let inside = (&lab.left, Some(&cgroup));
            let missing = missing(&send((&lab.right, None), inside, bind, to, ""), COUNT);
            assert!(binomial(COUNT, 0.2).contains(&(missing.len() as u64)), "{}", missing.len());
            lost += missing.len() as u64;
        }
        // A process outside the target, with the same port at another address of the host.
        let beside = SocketAddr::from((lab.left.nth(family, 1), 9000));
        let _target = serve(&lab.left, Some(&cgroup), &format!("udp-receive --bind {to}"));
        let received = send((&lab.right, None), (&lab.left, None), beside, beside, "");
        assert_eq!(number(&received, "received"), COUNT);
    }
    let total = injector.stop().total;
    assert_eq!((total.matched, total.dropped), (4 * COUNT, lost));
    assert_eq!((total.egress.packets, total.ingress.packets), (0, 4 * COUNT));
}

#[test]
fn answers_to_connected_and_unconnected_sockets_are_lost_as_counted() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    // Each bound to one address, to answer from it.
    let _echoes = FAMILIES.map(|family| {
        let at = lab.right.at(family, 9000);
        serve(&lab.right, None, &format!("udp-receive --echo --bind {at}"))
    });
    let injector = Injector::on(&lab.left, &cgroup, "--loss 20% --direction ingress");
    let mut answered = 0;
    for family in FAMILIES {
        let to = lab.right.at(family, 9000);
        for options in ["--replies", "--replies --connected"] {
            let line = format!("udp-send --to {to} --count {COUNT} {options}");
            let inside = talk(&lab.left, Some(&cgroup), &line);
            let replies = number(&inside["replies"], "received");
            assert!(binomial(COUNT, 0.8).contains(&replies), "{replies}");
            answered += replies;
            let beside = talk(&lab.left, None, &line);
            assert_eq!(number(&beside["replies"], "received"), COUNT);
        }
    }
    let total = injector.stop().total;
    assert_eq!((total.matched, total.matched - total.dropped), (4 * COUNT, answered));
}

#[test]
fn connected_receivers_are_told_apart_from_unconnected_ones_on_the_same_port() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--loss 100% --direction ingress");
    for family in FAMILIES {
        let to = lab.left.at(family, 9000);
        let peer = lab.right.at(family, 7000);
        let line = format!("udp-receive --bind {to} --connect {peer}");
        let connected = serve(&lab.left, Some(&cgroup), &line);
        let line = format!("udp-send --to {to} --bind {peer} --count 100");
        talk(&lab.right, None, &line);
        assert_eq!(number(&connected.finish(), "received"), 0);
    }
    assert_eq!(injector.stop().total.dropped, 200);
}

#[test]
fn a_process_that_sends_at_the_same_time_to_the_same_port_loses_nothing() {
    const COUNT: u64 = 4000;
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--loss 20% --direction egress");
    for family in FAMILIES {
        let to = lab.right.at(family, 9000);
        let receiver = serve(&lab.right, None, &format!("udp-receive --bind {to}"));
        // Payloads of different sizes, to distinguish them by matched bytes.
        let line = |size| format!("udp-send --connected --to {to} --count {COUNT} --size {size}");
        let (inside, beside) = thread::scope(|scope| {
            let beside = scope.spawn(|| talk(&lab.left, None, &line(80)));
            (talk(&lab.left, Some(&cgroup), &line(64)), beside.join().expect("it ends"))
        });
        assert_eq!((number(&inside, "sent"), number(&beside, "sent")), (COUNT, COUNT));
        // Both send the same numbers. All of the other process arrive.
        let report = receiver.finish();
        assert_eq!(number(&report, "distinct"), COUNT);
    }
    let total = injector.stop().total;
    assert_eq!(total.matched, 2 * COUNT);
    assert_eq!(total.egress.bytes, COUNT * ((14 + 20 + 8 + 64) + (14 + 40 + 8 + 64)));
}

#[test]
fn cgroups_below_the_target_match_and_those_above_and_beside_it_do_not() {
    let lab = Lab::new();
    let top = TestCgroup::new();
    let target = top.child("target");
    let below = target.child("below");
    let beside = top.child("beside");
    let injector = Injector::on(&lab.left, &target, "--loss 100%");
    for family in FAMILIES {
        for (cgroup, arrive) in [(&top, 100), (&target, 0), (&below, 0), (&beside, 100)] {
            for (from, to) in [(&lab.left, &lab.right), (&lab.right, &lab.left)] {
                let inside = |host: &Host| (host.netns == lab.left.netns).then_some(cgroup);
                let at = to.at(family, 9000);
                let receiver = serve(to, inside(to), &format!("udp-receive --bind {at}"));
                talk(from, inside(from), &format!("udp-send --to {at} --count 100"));
                assert_eq!(number(&receiver.finish(), "received"), arrive, "{family:?} {cgroup:?}");
            }
        }
    }
    let total = injector.stop().total;
    assert_eq!((total.dropped, total.matched), (800, 800));
    assert_eq!((total.egress.packets, total.ingress.packets), (400, 400));
    // The processes above are dropped last.
    drop((below, target, beside, top));
}

#[test]
fn a_packet_over_loopback_is_judged_once() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--loss 20%");
    let inside = (&lab.left, Some(&cgroup));
    let mut lost = 0;
    for at in ["127.0.0.1:9000", "[::1]:9000"] {
        let at: SocketAddr = at.parse().expect("an address");
        lost += missing(&send(inside, inside, at, at, ""), COUNT).len() as u64;
    }
    let total = injector.stop().total;
    assert_eq!((total.matched, total.dropped), (2 * COUNT, lost));
    assert!(binomial(2 * COUNT, 0.2).contains(&lost), "{lost}");
}

/// Whether a report of tcp-connect says that all bytes arrived, unharmed.
fn assert_complete(report: &Value, stream: &str, bytes: u64) {
    assert_eq!(report["error"], Value::Null, "{report}");
    assert_eq!(number(&report[stream], "bytes"), bytes, "{report}");
    assert_eq!(number(&report[stream], "wrong"), 0, "{report}");
}

#[test]
fn sent_segments_are_lost_as_counted_and_the_stream_arrives_whole() {
    const BYTES: u64 = 400_000;
    let lab = Lab::new();
    lab.without_segmentation();
    let cgroup = TestCgroup::new();
    let server = serve(&lab.right, None, "tcp-serve --bind [::]:9000");
    let injector = Injector::on(&lab.left, &cgroup, "--loss 5% --direction egress");
    for family in FAMILIES {
        let to = lab.right.at(family, 9000);
        let line = format!("tcp-connect --to {to} --bytes {BYTES} --chunk 1000");
        assert_complete(&talk(&lab.left, Some(&cgroup), &line), "written", BYTES);
    }
    let streams = server.finish();
    for stream in streams["streams"].as_array().expect("a list") {
        assert_eq!((number(stream, "bytes"), number(stream, "wrong")), (BYTES, 0));
    }
    lab.settle();
    let lost = lab.left.segments_sent() - lab.right.segments_received();
    let total = injector.stop().total;
    assert_eq!(total.dropped, lost);
    assert!(binomial(total.matched, 0.05).contains(&total.dropped), "{total:?}");
}

#[test]
fn received_segments_are_lost_as_counted_and_the_stream_arrives_whole() {
    const BYTES: u64 = 400_000;
    let lab = Lab::new();
    lab.without_segmentation();
    let cgroup = TestCgroup::new();
    let line = format!("tcp-serve --bind [::]:9000 --mode source --bytes {BYTES} --chunk 1000");
    let server = serve(&lab.right, None, &line);
    let line = "--loss 5% --direction ingress --tcp-flags !syn";
    let injector = Injector::on(&lab.left, &cgroup, line);
    for family in FAMILIES {
        let to = lab.right.at(family, 9000);
        let line = format!("tcp-connect --to {to} --mode source");
        assert_complete(&talk(&lab.left, Some(&cgroup), &line), "read", BYTES);
    }
    drop(server.finish());
    lab.settle();
    let lost = lab.right.segments_sent() - lab.left.segments_received();
    let total = injector.stop().total;
    assert_eq!(total.dropped, lost);
    assert!(binomial(total.matched, 0.05).contains(&total.dropped), "{total:?}");
}

#[test]
fn connections_are_told_by_the_listener_and_by_the_connecting_socket() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let target = serve(&lab.left, Some(&cgroup), "tcp-serve --bind [::]:9000");
    let _beside = serve(&lab.left, None, "tcp-serve --bind [::]:9001");
    let _peer = serve(&lab.right, None, "tcp-serve --bind [::]:9002");
    let injector = Injector::on(&lab.left, &cgroup, "--loss 100% --direction ingress");
    for family in FAMILIES {
        let connect = |port| {
            let to = lab.left.at(family, port);
            let line = format!("tcp-connect --to {to} --timeout-ms 300 --bytes 1000");
            talk(&lab.right, None, &line)
        };
        assert_eq!(connect(9000)["error"], "timeout");
        assert_complete(&connect(9001), "written", 1000);
        let to = lab.right.at(family, 9002);
        let line = format!("tcp-connect --to {to} --timeout-ms 300 --bytes 1000");
        assert_eq!(talk(&lab.left, Some(&cgroup), &line)["error"], "timeout");
        assert_complete(&talk(&lab.left, None, &line), "written", 1000);
    }
    assert_eq!(number(&target.finish(), "accepted"), 0);
    let total = injector.stop().total;
    assert_eq!(total.dropped, total.matched);
    assert!(total.dropped >= 4, "{total:?}");
}

#[test]
fn echo_requests_and_replies_of_the_target_are_lost_as_counted() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    for direction in ["egress", "ingress"] {
        let line = format!("--loss 20% --direction {direction}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        let mut answered = 0;
        for family in FAMILIES {
            let to = lab.right.address(family);
            let inside = lab.left.ping(Some(&cgroup), to, 200);
            assert!(binomial(200, 0.8).contains(&inside), "{inside}");
            answered += inside;
            assert_eq!(lab.left.ping(None, to, 50), 50);
        }
        let total = injector.stop().total;
        assert_eq!((total.matched, total.matched - total.dropped), (400, answered), "{direction}");
    }
}

#[test]
fn a_sender_does_not_notice_that_all_is_lost() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let server = serve(&lab.right, None, "tcp-serve --bind [::]:9000");
    let rules = RuleFile::new(
        "rules: [{loss: 100%, protocol: udp, direction: egress}, \
         {loss: 100%, data-only: true, direction: egress}]",
    );
    let injector = Injector::on(&lab.left, &cgroup, &rules.option());
    for family in FAMILIES {
        let to = lab.right.at(family, 9000);
        for options in ["", "--connected"] {
            let line = format!("udp-send --to {to} --count 500 {options}");
            let sent = talk(&lab.left, Some(&cgroup), &line);
            assert_eq!((number(&sent, "sent"), number(&sent, "errors")), (500, 0), "{sent}");
        }
        let line = format!("tcp-connect --to {to} --bytes 20000 --timeout-ms 100");
        let report = talk(&lab.left, Some(&cgroup), &line);
        assert_eq!(report["connected"], true, "{report}");
        // A drop visible to the sender puts it in state "cwr" at once.
        assert_eq!(report["after_write"]["congestion"], "open", "{report}");
        assert_eq!(report["after_write"]["window"], 10, "{report}");
        // This applies to the target only. Others depend on the machine.
        let line = format!("tcp-connect --to {to} --bytes 20000");
        assert_complete(&talk(&lab.left, None, &line), "written", 20000);
    }
    let bytes = |stream: &Value| number(stream, "bytes");
    let streams = server.finish();
    let streams = streams["streams"].as_array().expect("a list");
    assert_eq!(streams.iter().map(bytes).sum::<u64>(), 40000);
    let summary = injector.stop();
    assert_eq!(summary.rules[0].dropped, 2000);
    assert!(summary.rules[1].dropped >= 4, "{summary:?}");
    assert_eq!(summary.total.dropped, summary.total.matched);
}

/// The number of losses that follow a loss, and the number of losses with a successor.
fn runs(missing: &[u64], count: u64) -> (u64, u64) {
    let followed = missing.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() as u64;
    (followed, missing.iter().filter(|&&n| n + 1 < count).count() as u64)
}

#[test]
fn the_loss_models_lose_at_their_rates() {
    const COUNT: u64 = 8000;
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let rules = RuleFile::new(
        "rules: [{loss-every: 3, remote-port: 9000}, {loss: '20%,corr=60%', remote-port: 9001}, \
         {loss-state: '5%,30%', remote-port: 9002}, {loss-state: '5%,40%,20%,30%,2%', remote-port: 9003}, \
         {loss-gemodel: '5%,30%,80%,1%', remote-port: 9004}]",
    );
    let injector = Injector::on(&lab.left, &cgroup, &rules.option());
    let lost: Vec<Vec<u64>> = (9000..=9004)
        .map(|port| {
            let to = lab.right.at(Family::V4, port);
            let receiver = serve(&lab.right, None, &format!("udp-receive --bind {to}"));
            let line = format!("udp-send --connected --to {to} --count {COUNT}");
            talk(&lab.left, Some(&cgroup), &line);
            missing(&receiver.finish(), COUNT)
        })
        .collect();
    let summary = injector.stop();
    for (rule, lost) in summary.rules.iter().zip(&lost) {
        assert_eq!((rule.matched, rule.dropped), (COUNT, lost.len() as u64));
    }
    // Exactly every third.
    assert_eq!(lost[0], (0..COUNT).filter(|n| n % 3 == 2).collect::<Vec<_>>());
    // Correlation c inflates the variance by (1+c)/(1-c), and a loss follows a loss with P + c(1-P).
    assert!(correlated(COUNT, 0.2, 4.0).contains(&(lost[1].len() as u64)), "{}", lost[1].len());
    let (followed, of) = runs(&lost[1], COUNT);
    assert!(binomial(of, 0.68).contains(&followed), "{followed} of {of}");
    // Two states remain: a burst starts with 5% and ends with 30%; correlation 65%.
    assert!(
        correlated(COUNT, 1.0 / 7.0, 4.8).contains(&(lost[2].len() as u64)),
        "{}",
        lost[2].len()
    );
    let (followed, of) = runs(&lost[2], COUNT);
    assert!(binomial(of, 0.7).contains(&followed), "{followed} of {of}");
    // Stationary: states 3 and 4 of 1 : p13 p32 / p31 p23 : p13 / p31 : p14.
    let rate = (0.125 + 0.02) / (1.0 + 0.125 * 0.2 / 0.3 + 0.125 + 0.02);
    assert!(correlated(COUNT, rate, 10.0).contains(&(lost[3].len() as u64)), "{}", lost[3].len());
    // A seventh in the bad state. The variance follows from the autocovariance, 0.65^k from lag to lag.
    let rate = (0.8 + 6.0 * 0.01) / 7.0;
    assert!(correlated(COUNT, rate, 3.7).contains(&(lost[4].len() as u64)), "{}", lost[4].len());
}

#[test]
fn the_same_seed_loses_the_very_same_packets_and_another_seed_others() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let lost = |seed: u64| {
        let line = format!("--loss 30% --direction egress --seed {seed}");
        let injector = Injector::on(&lab.left, &cgroup, &line);
        assert_eq!(number(&injector.started, "seed"), seed);
        let to = lab.right.at(Family::V6, 9000);
        let received = send((&lab.left, Some(&cgroup)), (&lab.right, None), to, to, "");
        drop(injector.stop());
        missing(&received, COUNT)
    };
    let first = lost(7);
    assert!(!first.is_empty());
    assert_eq!(first, lost(7));
    assert_ne!(first, lost(8));
}

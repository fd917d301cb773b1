//! Foreign filters and programs beside injector's: they see each packet once, stay unchanged, and keep
//! packets from being faulted only with a warning.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{
    Family, INTERFACE, Injector, Lab, TIMEOUT, bpf::Counter, engines, is_guest, number, skip,
    wait_until,
};

/// The number of echo requests.
const COUNT: u32 = 30;

/// The maximum time until a foreign change is noticed, on a busy machine.
fn soon() -> Duration {
    Duration::from_secs(if is_guest() { 10 } else { 3 })
}

fn pings(lab: &Lab, count: u32) -> u64 {
    lab.left.ping(None, lab.right.address(Family::V4), count)
}

/// The filters of one direction.
fn filters(lab: &Lab, side: &str) -> String {
    lab.left.run(&format!("tc filter show dev {INTERFACE} {side}"))
}

fn line(hook: &str, more: &str) -> String {
    let hook = if hook == "clsact" { "--hook clsact" } else { "" };
    format!("--interface {INTERFACE} {hook} {more}")
}

/// Whether tcx is available.
fn has_tcx(lab: &Lab) -> bool {
    let injector = Injector::start(&lab.left, &line("tcx", "--loss 0%"));
    let has = injector.started["attached"][0]["hook"] == "tcx";
    injector.stop();
    if !has {
        skip("this kernel has no tcx");
    }
    has
}

/// Ends an injector. Returns its remaining warnings and the summary.
fn stop(injector: Injector) -> (Vec<String>, Value) {
    injector.process.signal(Signal::SIGTERM);
    let (code, said) = injector.process.end();
    assert_eq!(code, Some(0), "{said:?}");
    let warnings = said.iter().filter(|event| event["event"] == "warning");
    let warnings = warnings.map(|event| event["message"].as_str().expect("text").to_owned());
    (warnings.collect(), said.last().expect("a summary").clone())
}

#[test]
fn filters_of_others_see_each_packet_once() {
    let lab = Lab::new();
    lab.left.run(&format!("tc qdisc add dev {INTERFACE} clsact"));
    let counters = [("ingress", Counter::new(false)), ("egress", Counter::new(false))];
    for (side, counter) in &counters {
        counter.filter(&lab.left, side, 7);
    }
    let before: Vec<String> = counters.iter().map(|(side, _)| filters(&lab, side)).collect();
    let counted = || counters.each_ref().map(|(_, counter)| counter.count());
    let mut faults = vec![("--loss 0%".to_owned(), [1, 1])];
    for engine in engines() {
        faults.push((format!("--delay 10ms --engine {engine}"), [1, 1]));
    }
    // The replies to the doubled requests are doubled as well.
    faults.push(("--duplicate 100% --direction egress".into(), [2, 2]));
    faults.push(("--loss 100% --direction egress".into(), [0, 0]));
    faults.push(("--loss 100% --direction ingress".into(), [0, 1]));
    for hook in ["clsact", "tcx"] {
        for (fault, times) in &faults {
            let injector = Injector::start(&lab.left, &line(hook, fault));
            let start = counted();
            pings(&lab, COUNT);
            let times = times.map(|times: u32| u64::from(times * COUNT));
            let is_right = || {
                let now = counted();
                [now[0] - start[0], now[1] - start[1]] == times
            };
            wait_until(soon(), &format!("{hook} {fault}: {start:?} to {times:?}"), is_right);
            thread::sleep(Duration::from_millis(50));
            assert!(is_right(), "{hook} {fault}: {start:?}, {:?}, not {times:?} more", counted());
            let (warnings, summary) = stop(injector);
            assert!(warnings.is_empty(), "{hook} {fault}: {warnings:?}");
            assert!(number(&summary, "matched") >= u64::from(COUNT), "{hook} {fault}: {summary}");
        }
    }
    let after: Vec<String> = counters.iter().map(|(side, _)| filters(&lab, side)).collect();
    assert_eq!(before, after);
}

#[test]
fn filters_of_others_see_each_packet_of_a_connection_that_is_reset_once() {
    let lab = Lab::new();
    lab.left.run(&format!("tc qdisc add dev {INTERFACE} clsact"));
    let [ingress, egress] = [Counter::new(false), Counter::new(false)];
    ingress.filter(&lab.left, "ingress", 7);
    egress.filter(&lab.left, "egress", 7);
    // What the filter of each side has seen, and what TCP of the host has that this goes to.
    let counted = || {
        let by_tcp = [lab.left.segments_received(), lab.right.segments_received()];
        [(ingress.count(), by_tcp[0]), (egress.count(), by_tcp[1])]
    };
    let at = lab.right.at(Family::V4, 9000);
    let listener = lab.right.inside(|| TcpListener::bind(at)).expect("free");
    for hook in ["clsact", "tcx"] {
        for direction in ["egress", "ingress", "both"] {
            let what = format!("{hook} {direction}");
            let start = counted();
            let fault = format!("--reset --direction {direction}");
            let injector = Injector::start(&lab.left, &line(hook, &fault));
            for _ in 0..3 {
                let mut client = lab.left.inside(|| TcpStream::connect(at)).expect("it listens");
                let (mut server, _) = listener.accept().expect("it has connected");
                for end in [&client, &server] {
                    end.set_read_timeout(Some(TIMEOUT)).expect("more than 0");
                }
                client.write_all(b"x").expect("it is connected");
                if direction == "ingress" {
                    server.read_exact(&mut [0]).expect("it comes");
                    server.write_all(b"x").expect("it is connected");
                }
                let error = client.read(&mut [0]).expect_err("a reset");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}");
            }
            lab.settle();
            let added = || {
                let pairs = counted().into_iter().zip(start);
                pairs.map(|(now, then)| (now.0 - then.0, now.1 - then.1)).collect::<Vec<_>>()
            };
            let is_alike = || added().iter().all(|(seen, taken)| seen == taken && *seen >= 3);
            wait_until(soon(), &format!("{what}: as many; now {:?}", added()), is_alike);
            let (warnings, summary) = stop(injector);
            assert!(warnings.is_empty(), "{what}: {warnings:?}");
            assert!(number(&summary, "reset") >= 3, "{what}: {summary}");
        }
    }
}

#[test]
fn programs_of_others_by_tcx_see_each_packet_once() {
    let lab = Lab::new();
    if !has_tcx(&lab) {
        return;
    }
    let counters = [("ingress", Counter::new(false)), ("egress", Counter::new(false))];
    let _links = counters.each_ref().map(|(side, counter)| counter.tcx(&lab.left, side, true));
    for engine in engines() {
        let fault = format!("--delay 10ms --engine {engine}");
        let injector = Injector::start(&lab.left, &line("tcx", &fault));
        let start = counters.each_ref().map(|(_, counter)| counter.count());
        assert_eq!(pings(&lab, COUNT), u64::from(COUNT));
        let now = counters.each_ref().map(|(_, counter)| counter.count());
        assert_eq!([now[0] - start[0], now[1] - start[1]], [u64::from(COUNT); 2], "{engine}");
        let (warnings, _) = stop(injector);
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

#[test]
fn filters_that_accept_all_do_not_hide_packets() {
    let lab = Lab::new();
    lab.left.run(&format!("tc qdisc add dev {INTERFACE} clsact"));
    // The lowest priority too: eBPF filters can share it.
    for priority in [1, 7, 49152] {
        let counter = Counter::new(true);
        counter.filter(&lab.left, "egress", priority);
        let before = filters(&lab, "egress");
        let injector =
            Injector::start(&lab.left, &line("clsact", "--loss 100% --direction egress"));
        assert_eq!(pings(&lab, 3), 0, "pref {priority}");
        let (warnings, _) = stop(injector);
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(filters(&lab, "egress"), before);
        lab.left.run(&format!("tc filter del dev {INTERFACE} egress pref {priority}"));
    }
}

#[test]
fn filters_that_come_later_are_overtaken() {
    let lab = Lab::new();
    for priority in [1, 2, 7, 3054] {
        let mut injector =
            Injector::start(&lab.left, &line("clsact", "--loss 100% --direction egress"));
        let counter = Counter::new(true);
        counter.filter(&lab.left, "egress", priority);
        injector.process.wait_for_warning("egress: tc filter added ahead");
        assert_eq!(pings(&lab, 3), 0, "pref {priority}");
        stop(injector);
        assert!(filters(&lab, "egress").contains(&format!("pref {priority} bpf")));
        assert_eq!(pings(&lab, 3), 3);
        lab.left.run(&format!("tc qdisc del dev {INTERFACE} clsact"));
    }
}

#[test]
fn what_cannot_be_overtaken_is_warned_of() {
    let lab = Lab::new();
    let add = format!("filter add dev {INTERFACE} egress pref 1 protocol ip");
    let add = format!("tc {add} u32 match u32 0 0 flowid 1:1");
    lab.left.run(&format!("tc qdisc add dev {INTERFACE} clsact"));
    lab.left.run(&add);
    let mut injector = Injector::start(&lab.left, &line("clsact", "--loss 100%"));
    injector.process.wait_for_warning("veth0 egress (u32, pref 1): tc filter ahead");
    stop(injector);

    lab.left.run(&format!("tc filter del dev {INTERFACE} egress pref 1"));
    let mut injector = Injector::start(&lab.left, &line("clsact", "--loss 100%"));
    lab.left.run(&add);
    injector.process.wait_for_warning("veth0 egress (u32, pref 1): tc filter ahead");
    stop(injector);
    let left = filters(&lab, "egress");
    assert!(left.contains("u32") && !left.contains("bpf"), "{left}");
}

#[test]
fn programs_by_tcx_that_come_later_are_warned_of() {
    let lab = Lab::new();
    if !has_tcx(&lab) {
        return;
    }
    let counter = Counter::new(false);
    for hook in ["tcx", "clsact"] {
        let mut injector = Injector::start(&lab.left, &line(hook, "--loss 100%"));
        let link = counter.tcx(&lab.left, "ingress", true);
        injector.process.wait_for_warning("eBPF program ahead of injector's");
        drop(link);
        let (warnings, _) = stop(injector);
        assert!(warnings.iter().all(|warning| !warning.contains("ahead")), "{warnings:?}");
    }
    // After injector's, it does no harm.
    let injector = Injector::start(&lab.left, &line("tcx", "--loss 100%"));
    let link = counter.tcx(&lab.left, "ingress", false);
    thread::sleep(Duration::from_millis(600));
    let (warnings, _) = stop(injector);
    assert!(warnings.iter().all(|warning| !warning.contains("ahead")), "{warnings:?}");
    drop(link);
}

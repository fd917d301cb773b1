//! Attaching below a clsact qdisc, which no file descriptor owns: it is removed all the same, and what
//! others have there stays.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use testbed::{Family, INTERFACE, Injector, Lab, TestCgroup, skip, wait_until};

/// How long the guardian may take.
const TIMEOUT: Duration = Duration::from_secs(2);

fn line(more: &str) -> String {
    format!("--interface {INTERFACE} --hook clsact {more}")
}

/// The qdisc and the filters of the faulted interface, in the words of tc(8).
fn state(lab: &Lab) -> String {
    let qdiscs = lab.left.run(&format!("tc qdisc show dev {INTERFACE}"));
    let filters = |side: &str| lab.left.run(&format!("tc filter show dev {INTERFACE} {side}"));
    format!("{qdiscs}{}{}", filters("ingress"), filters("egress"))
}

fn answers(lab: &Lab, family: Family) -> bool {
    lab.left.ping(None, lab.right.address(family), 3) == 3
}

#[test]
fn faults_work_as_they_do_by_tcx() {
    for family in testbed::FAMILIES {
        let lab = Lab::new();
        let before = state(&lab);
        let injector = Injector::start(&lab.left, &line("--loss 100%"));
        assert_eq!(injector.started["attached"][0]["hook"], "clsact");
        assert!(state(&lab).contains("clsact"), "{}", state(&lab));
        assert!(!answers(&lab, family));
        let total = injector.stop().total;
        assert!(total.dropped >= 3, "{total:?}");
        assert!(answers(&lab, family));
        assert_eq!(state(&lab), before);
    }
}

#[test]
fn loss_looks_like_the_wires_and_duplicates_arrive() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--hook clsact --loss 100% --direction egress");
    // With an ordinary drop sendto() would fail with ENOBUFS, and ping would say so.
    let (_, said) = lab.left.run_in(
        Some(&cgroup),
        &format!("ping -c 3 -i 0.2 -W 0.2 {}", lab.right.address(Family::V4)),
    );
    assert!(said.contains("3 packets transmitted, 0 received, 100% packet loss"), "{said}");
    assert!(answers(&lab, Family::V4), "outside the cgroup");
    assert_eq!(injector.stop().total.dropped, 3);

    let injector = Injector::start(&lab.left, &line("--duplicate 100% --direction egress"));
    let said = lab.left.run(&format!("ping -c 3 -i 0.2 {}", lab.right.address(Family::V4)));
    assert!(said.contains("(DUP!)"), "{said}");
    injector.stop();
}

#[test]
fn killed_its_guardian_removes_it() {
    let lab = Lab::new();
    let before = state(&lab);
    for _ in 0..5 {
        let injector = Injector::start(&lab.left, &line("--loss 100%"));
        injector.process.signal(Signal::SIGKILL);
        drop(injector);
        let end = Instant::now() + TIMEOUT;
        while state(&lab) != before {
            assert!(Instant::now() < end, "left is {}", state(&lab));
            thread::sleep(Duration::from_millis(20));
        }
        assert!(answers(&lab, Family::V4));
    }
}

#[test]
fn what_others_have_there_stays() {
    let lab = Lab::new();
    lab.left.run(&format!("tc qdisc add dev {INTERFACE} clsact"));
    let empty = state(&lab);
    Injector::start(&lab.left, &line("--loss 100%")).stop();
    assert_eq!(state(&lab), empty, "a qdisc without filters");

    let mut add = lab.left.command("tc", None);
    add.args(["filter", "add", "dev", INTERFACE, "ingress", "prio", "7", "protocol", "ip"]);
    add.args(["matchall", "action", "ok"]);
    if !add.output().expect("tc").status.success() {
        skip("no matchall classifier: filters of others are not tested");
        return;
    }
    let before = state(&lab);
    let injector = Injector::start(&lab.left, &line("--loss 100%"));
    injector.process.signal(Signal::SIGKILL);
    drop(injector);
    wait_until(TIMEOUT, "all is as before", || state(&lab) == before);
}

#[test]
fn of_two_injectors_the_last_one_removes_the_qdisc() {
    let lab = Lab::new();
    let before = state(&lab);
    // The second one attaches to both sides, or to the one that is not the first to be attached to.
    for (first_ends_first, side) in
        [(true, "both"), (false, "both"), (true, "ingress"), (false, "ingress")]
    {
        let first = Injector::start(&lab.left, &line("--loss 0%"));
        let second = Injector::start(&lab.left, &line(&format!("--loss 100% --direction {side}")));
        let (sooner, later) = if first_ends_first { (first, second) } else { (second, first) };
        sooner.stop();
        assert_eq!(answers(&lab, Family::V4), !first_ends_first);
        later.stop();
        assert!(answers(&lab, Family::V4));
        assert_eq!(state(&lab), before);
    }
    let nothing = Command::new(testbed::INJECTOR).arg("cleanup").output().expect("it runs");
    assert!(nothing.status.success());
}

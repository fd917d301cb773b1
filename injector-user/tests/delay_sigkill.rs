//! After injector is killed at any time while it delays packets, hold devices and settings of the loopback
//! are restored, and traffic flows as before.
//!
//! The listings are of the whole machine, so this test has its own file: cargo runs files one after another.

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use testbed::{
    Family, Injector, Lab, engines,
    listing::{assert_nothing_is_left, cleanup, listing},
};

/// The maximum time of cleanup by the guardian and the kernel.
const PROMISED: Duration = Duration::from_secs(2);

/// The number of kills for each engine.
const ROUNDS: u32 = 50;

/// Delay in both directions, including the loopback, with jitter and a rate limit.
fn start(lab: &Lab, engine: &str) -> Child {
    let line = format!(
        "--netns {} --no-protect --engine {engine} --delay 20ms,jitter=10ms --rate 100mbit",
        lab.left.netns
    );
    let mut command = Injector::command(&lab.left, &line);
    command.stdout(Stdio::null()).spawn().expect("it starts")
}

fn guardian(pid: u32) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
}

/// Whether packets pass in both directions and over the loopback, without delay.
fn assert_traffic_flows(lab: &Lab, moment: &str) {
    for to in [lab.right.address(Family::V4), lab.left.address(Family::V4)] {
        let sent = Instant::now();
        assert_eq!(lab.left.ping(None, to, 2), 2, "{moment}: {to}");
        assert!(sent.elapsed() < Duration::from_secs(2), "{moment}: {to}");
    }
}

#[test]
fn killed_at_any_of_50_random_moments_it_leaves_no_device_and_no_setting() {
    let mut random = SmallRng::seed_from_u64(20_261_125);
    let lab = Lab::new();
    let before = listing(&lab);
    for engine in engines() {
        for round in 0..ROUNDS {
            let mut inject = start(&lab, engine);
            // From start-up until traffic flows.
            let wait = Duration::from_micros(random.random_range(0..1_000_000));
            let moment = format!("{engine}, {wait:?} after its start, in round {round}");
            let traffic = lab
                .left
                .command("ping", None)
                .args(["-f", "-q"])
                .arg(lab.right.address(Family::V4).to_string())
                .stdout(Stdio::null())
                .spawn();
            let mut traffic = traffic.expect("ping");
            thread::sleep(wait);
            // Every fifth time without a guardian, which is killed first.
            let is_alone = round % 5 == 4;
            if is_alone && let Some(guardian) = guardian(inject.id()) {
                kill(guardian, Signal::SIGKILL).expect("it is ours");
            }
            inject.kill().expect("it is ours");
            inject.wait().expect("it was killed");
            if is_alone {
                let listed = Command::new(testbed::INJECTOR).arg("list").output().expect("it runs");
                assert!(listed.status.success(), "{listed:?}");
            }
            assert_nothing_is_left(&before, &lab, &moment, PROMISED);
            traffic.kill().expect("it is ours");
            traffic.wait().expect("it was killed");
            assert_traffic_flows(&lab, &moment);
        }
    }
    assert!(cleanup().contains("nothing was left"));
}

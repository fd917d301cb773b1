//! After injector is killed at any time while it segments packets, plays a trace, orders flows and limits the
//! segments of connections, its devices are gone, and traffic flows as before.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use testbed::{Family, Injector, Lab, RuleFile, serve, wait_until};

/// The maximum time of cleanup by the guardian and the kernel in nine of ten rounds.
const PROMISED: Duration = Duration::from_secs(2);

/// The maximum time of cleanup on a busy machine.
const LATEST: Duration = Duration::from_secs(10);

/// The maximum time of a start on a busy machine.
const PATIENCE: Duration = Duration::from_mins(3);

fn guardian(pid: u32) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
}

#[test]
fn killed_at_any_random_moment_it_leaves_no_device() {
    // An emulated machine needs half a minute for a start.
    check(if testbed::is_guest() { 12 } else { 50 });
}

#[test]
#[ignore = "for emulated machines, where it takes half an hour"]
fn killed_fifty_times_it_leaves_no_device() {
    check(50);
}

fn check(rounds: u32) {
    let mut random = SmallRng::seed_from_u64(20_261_129);
    let lab = Lab::new();
    let devices = || lab.left.run("ip -o link show") + &lab.left.run("tc qdisc show");
    let before = devices();
    let [at, other] = [9000, 9001].map(|port| lab.right.at(Family::V4, port));
    let trace =
        RuleFile::new("time,rate,delay,loss\n0s,1gbit,1ms,1%\n100ms,2gbit,0s,0%\n200ms,0,0s,0%\n");
    let rules = RuleFile::new(&format!(
        "rules:
- {{remote-port: 9000, trace: \"{},loop\", duplicate: 1%, mtu: 1400}}
- {{remote-port: 9001, delay: \"5ms,jitter=4ms,ordered\", rate: \"down=500mbit,up=200mbit\", loss: 0.1%, corrupt: 0.1%, mtu: 1400}}
- {{longer-than: 1000, direction: egress, too-big: true}}
- {{delay: \"2ms,jitter=1ms\", reorder: 10%}}
",
        trace.path.display()
    ));
    let (mut active, mut late) = (0, 0);
    for round in 0..rounds {
        let servers =
            [at, other].map(|at| serve(&lab.right, None, &format!("tcp-serve --bind {at}")));
        let floods = [at, other].map(|at| {
            let line = format!("tcp-flood --to {at} --connections 4 --seconds 20");
            let mut command = lab.left.command(testbed::program("traffic"), None);
            command.args(line.split(' ')).stdout(Stdio::null());
            command.spawn().expect("it starts")
        });
        let line =
            format!("--netns {} --no-protect --rules {}", lab.left.netns, rules.path.display());
        let mut command = Injector::command(&lab.left, &line);
        let mut inject = command.stdout(Stdio::null()).spawn().expect("it starts");
        // Every second time while packets are segmented, otherwise at any time of its start as well.
        let mut wait = Duration::from_micros(random.random_range(0..1_000_000));
        if round % 2 == 1 {
            wait_until(PATIENCE, "injector has its devices", || devices() != before);
            wait /= 4;
        }
        let moment = format!("after {wait:?}, in round {round}");
        thread::sleep(wait);
        active += u32::from(devices() != before);
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
        let end = Instant::now();
        wait_until(LATEST, &format!("nothing is left, {moment}"), || devices() == before);
        late += u32::from(end.elapsed() > PROMISED);
        for mut flood in floods {
            flood.kill().expect("it is ours");
            flood.wait().expect("it was killed");
        }
        drop(servers);
        assert_eq!(lab.left.ping(None, lab.right.address(Family::V4), 3), 3, "{moment}");
    }
    assert!(late <= rounds / 10, "{late} of {rounds} cleanups took longer than {PROMISED:?}");
    assert!(active >= rounds / 2, "packets were segmented in {active} of {rounds} rounds only");
}

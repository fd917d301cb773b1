//! After injector is killed at any time while it segments packets, its devices are gone, and traffic flows
//! as before.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use testbed::{Family, Injector, Lab, RuleFile, serve, wait_until};

/// The maximum time of cleanup by the guardian and the kernel.
const PROMISED: Duration = Duration::from_secs(2);

const ROUNDS: u32 = 50;

fn guardian(pid: u32) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
}

#[test]
fn killed_at_any_of_50_random_moments_it_leaves_no_device() {
    let mut random = SmallRng::seed_from_u64(20_261_129);
    let lab = Lab::new();
    let devices = || lab.left.run("ip -o link show") + &lab.left.run("tc qdisc show");
    let before = devices();
    let at = lab.right.at(Family::V4, 9000);
    let trace =
        RuleFile::new("time,rate,delay,loss\n0s,1gbit,1ms,1%\n100ms,2gbit,0s,0%\n200ms,0,0s,0%\n");
    for round in 0..ROUNDS {
        let server = serve(&lab.right, None, &format!("tcp-serve --bind {at}"));
        let line = format!("tcp-flood --to {at} --connections 4 --seconds 2");
        let flood = {
            let mut command = lab.left.command(testbed::program("traffic"), None);
            command.args(line.split(' ')).stdout(Stdio::null());
            command.spawn()
        };
        let mut flood = flood.expect("it starts");
        let line = format!(
            "--netns {} --no-protect --trace {},loop --duplicate 1%",
            lab.left.netns,
            trace.path.display()
        );
        let mut command = Injector::command(&lab.left, &line);
        let mut inject = command.stdout(Stdio::null()).spawn().expect("it starts");
        // From start-up until packets are segmented.
        let wait = Duration::from_micros(random.random_range(0..1_000_000));
        let moment = format!("{wait:?} after its start, in round {round}");
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
        wait_until(PROMISED, &format!("nothing is left, {moment}"), || devices() == before);
        flood.kill().expect("it is ours");
        flood.wait().expect("it was killed");
        drop(server);
        assert_eq!(lab.left.ping(None, lab.right.address(Family::V4), 3), 3, "{moment}");
    }
}

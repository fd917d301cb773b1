//! After injector is killed at any time, everything is as before, compared by listings.
//!
//! The listings are of the whole machine, so this test has its own file: cargo runs files one after
//! another.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use testbed::{
    Injector, Lab, Process, RuleFile,
    listing::{TIMEOUT, assert_nothing_is_left, cleanup, listing},
};

/// Serializes tests: each starting injector undoes what it finds, including leftovers of other tests.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn killed_at_any_of_100_random_moments_it_leaves_nothing() {
    let _turn = turn();
    let mut random = SmallRng::seed_from_u64(20_261_124);
    let lab = Lab::new();
    let file = RuleFile::new("rules: [{loss: 10%}]");
    let before = listing(&lab);
    for round in 0..25 {
        // Start-up of `run`, which creates a cgroup, a guardian and a command.
        let mut command = lab.left.command(testbed::INJECTOR, None);
        command.args(["run", "--loss", "50%", "--", "sleep", "4321"]);
        let mut run = command.stderr(Stdio::null()).spawn().expect("it starts");
        let wait = Duration::from_micros(random.random_range(0..400_000));
        thread::sleep(wait);
        run.kill().expect("it is ours");
        run.wait().expect("it was killed");
        let moment = format!("run {wait:?} after its start, in round {round}");
        assert_nothing_is_left(&before, &lab, &moment, TIMEOUT);

        // Start-up of `inject`.
        let mut command = Injector::command(&lab.left, "--interface veth0 --loss 50%");
        let mut inject = command.stdout(Stdio::null()).spawn().expect("it starts");
        let wait = Duration::from_micros(random.random_range(0..300_000));
        thread::sleep(wait);
        inject.kill().expect("it is ours");
        inject.wait().expect("it was killed");
        let moment = format!("inject {wait:?} after its start, in round {round}");
        assert_nothing_is_left(&before, &lab, &moment, TIMEOUT);

        // Steady state, under traffic.
        let injector = Injector::start(&lab.left, "--interface veth0 --loss 50% --duplicate 10%");
        let ping = lab.left.command("ping", None);
        let _traffic = flood(ping, &lab.right.address(testbed::Family::V4).to_string());
        thread::sleep(Duration::from_micros(random.random_range(0..200_000)));
        drop(injector);
        assert_nothing_is_left(
            &before,
            &lab,
            &format!("in steady state, in round {round}"),
            TIMEOUT,
        );

        // During repeated changes of rules.
        let line = format!("--interface veth0 {}", file.option());
        let injector = Injector::start(&lab.left, &line);
        let end = Instant::now() + Duration::from_micros(random.random_range(0..100_000));
        while Instant::now() < end {
            injector.process.signal(Signal::SIGHUP);
            thread::sleep(Duration::from_micros(random.random_range(0..3000)));
        }
        drop(injector);
        assert_nothing_is_left(&before, &lab, &format!("in a change, in round {round}"), TIMEOUT);
    }
    // The commands of `run` continue in their original cgroup without faults.
    let ended = Command::new("pkill").args(["-KILL", "-x", "-f", "sleep 4321"]).status();
    ended.expect("pkill");
    assert_ne!(cleanup(), "");
    let journals = fs::read_dir("/run/injector").into_iter().flatten().flatten();
    let dead = journals.filter(|entry| !is_locked(&entry.path())).count();
    assert_eq!(dead, 0, "journals of dead injectors after a cleanup");
}

#[test]
fn what_a_killed_guardian_leaves_is_undone_by_the_next_start() {
    let _turn = turn();
    let lab = Lab::new();
    let mut command = lab.left.command(testbed::INJECTOR, None);
    command.args(["run", "--output", "json", "--output-file", "/dev/stdout", "--loss", "1%"]);
    command.args(["--", "sleep", "5432"]);
    let mut run = Process::start(command);
    run.wait_for("started");
    let pid = run.pid();
    let cgroup = cgroup_of_run(pid);
    // Between fork and exec, the process of the command holds the lock of the journal.
    let procs = || fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe"));
    let injector = program(&pid.to_string()).expect("it is alive");
    testbed::wait_until(TIMEOUT, "the command is executed in the cgroup", || {
        program(procs().trim()).is_ok_and(|program| program != injector)
    });
    let command: i32 = procs().trim().parse().expect("one process");

    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("alive");
    let guardian = children.split_whitespace().map(|child| child.parse().expect("a number"));
    let guardian = guardian.into_iter().find(|&child: &i32| child != command).expect("a guardian");
    // The guardian first, so that it cannot notice injector's death.
    kill(Pid::from_raw(guardian), Signal::SIGKILL).expect("it is ours");
    run.signal(Signal::SIGKILL);
    run.child.wait().expect("it was killed");
    assert!(cgroup.exists(), "nobody was there to remove it");

    let undone = cleanup();
    assert!(undone.contains(&format!("injector-{pid}")), "{undone}");
    assert!(!cgroup.exists());
    let home = fs::read_to_string(format!("/proc/{command}/cgroup")).expect("the command goes on");
    assert!(!home.contains("injector-"), "{home}");
    kill(Pid::from_raw(command), Signal::SIGKILL).expect("it is ours");
    assert!(cleanup().contains("nothing was left"));
}

/// The cgroup that a run created for its command, at the top of the hierarchy.
fn cgroup_of_run(pid: Pid) -> PathBuf {
    let entries = fs::read_dir(testbed::hierarchy()).expect("it is mounted").flatten();
    let mut names = entries.map(|entry| entry.file_name().into_string().unwrap_or_default());
    let name = names.find(|name| name.starts_with(&format!("injector-{pid}-")));
    testbed::hierarchy().join(name.expect("it is made before `started` is said"))
}

fn is_locked(path: &Path) -> bool {
    use nix::fcntl::{Flock, FlockArg};
    let Ok(file) = fs::File::open(path) else { return false };
    Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
}

fn flood(mut ping: Command, to: &str) -> KilledOnDrop {
    let child = ping.args(["-f", "-q", to]).stdout(Stdio::null()).spawn();
    KilledOnDrop(child.expect("ping"))
}

struct KilledOnDrop(std::process::Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

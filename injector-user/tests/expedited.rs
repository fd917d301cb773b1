//! Grace periods of RCU are expedited while injector attaches, and are as before afterwards. The
//! setting is that of the whole machine, so this test has its own file.

use std::{
    fs,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use testbed::{Injector, Lab, TIMEOUT, skip, wait_until};

const SETTING: &str = "/sys/kernel/rcu_expedited";

/// What injector sets is at least this.
const FIRST_VALUE: u32 = 1 << 16;

fn value() -> u32 {
    fs::read_to_string(SETTING).expect("it is there").trim().parse().expect("a number")
}

/// One test at a time; `None` if the kernel has no such setting, or somebody else uses it.
fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if fs::read_to_string(SETTING).is_err() {
        skip("this kernel cannot expedite grace periods");
        return None;
    }
    // Injectors of other tests end at some time.
    wait_until(TIMEOUT, "nobody expedites grace periods", || value() == 0);
    Some(turn)
}

/// Injector with wire packets on several interfaces, which takes a while to start.
fn start(lab: &Lab) -> Injector {
    Injector::start(&lab.left, "--host --loss 1%")
}

#[test]
fn they_are_expedited_while_injector_attaches_and_not_afterwards() {
    let Some(_turn) = turn() else { return };
    let lab = Lab::new();
    let (is_seen, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                is_seen.fetch_or(value() >= FIRST_VALUE, Relaxed);
            }
        });
        let mut rounds = 0;
        wait_until(12 * TIMEOUT, "it is seen", || {
            let injector = start(&lab);
            wait_until(TIMEOUT, "they are as before", || value() == 0);
            injector.stop();
            wait_until(TIMEOUT, "they are as before", || value() == 0);
            rounds += 1;
            is_seen.load(Relaxed) && rounds >= 3
        });
        is_over.store(true, Relaxed);
    });
}

#[test]
fn killed_at_any_moment_it_leaves_them_as_before() {
    let Some(_turn) = turn() else { return };
    let lab = Lab::new();
    for round in 0..50 {
        let mut command = lab.left.command(testbed::INJECTOR, None);
        command.args("inject --host --for forever --loss 1% --output json".split(' '));
        let process = testbed::Process::start(command);
        // A start takes 50 to 300 ms.
        thread::sleep(Duration::from_millis(5 * round));
        process.signal(Signal::SIGKILL);
        drop(process);
        wait_until(TIMEOUT, "the guardian restores them", || value() == 0);
    }
}

#[test]
fn the_setting_of_somebody_else_stays() {
    /// Turns them off, if the test fails.
    struct Restored;
    impl Drop for Restored {
        fn drop(&mut self) {
            fs::write(SETTING, "0").expect("root may");
        }
    }

    let Some(_turn) = turn() else { return };
    let lab = Lab::new();
    let _restored = Restored;
    fs::write(SETTING, "1").expect("root may");
    let injector = start(&lab);
    assert_eq!(value(), 1);
    injector.stop();
    assert_eq!(value(), 1);
}

//! Limits of CPU time and block I/O: they hold, and previous settings are restored.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{INJECTOR, Injector, Lab, TestCgroup};

fn has(controller: &str) -> bool {
    let controllers = fs::read_to_string(testbed::hierarchy().join("cgroup.controllers"));
    names(&controllers.expect("a root"), controller)
}

/// Whether the list contains a controller. Other tests enable and disable others meanwhile.
fn names(controllers: &str, controller: &str) -> bool {
    controllers.split_whitespace().any(|name| name == controller)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Where the controller is missing, checks that this is reported and nothing runs.
fn is_refused(option: &str, value: &str, controller: &str) {
    let output = Command::new(INJECTOR)
        .args(["run", option, value, "--", "echo", "ran"])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("no {controller} controller")), "{said}");
    assert!(output.stdout.is_empty());
}

/// The CPU time of a busy loop of one second, in seconds.
fn used(lab: &Lab, cgroup: &TestCgroup) -> f64 {
    let script = "end=$((SECONDS+3)); while [ $SECONDS -lt $end ]; do :; done; read -r a < <(tr ' ' '\n' </proc/$$/stat | sed -n 14p); echo $a";
    let mut command = lab.left.command("bash", Some(cgroup));
    let output = command.args(["-c", script]).output().expect("bash");
    let ticks: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("ticks");
    ticks / 100.0
}

#[test]
fn a_share_of_a_processor_is_all_that_a_cgroup_gets_and_goes_with_injector() {
    if !has("cpu") {
        return is_refused("--cpu", "1%", "cpu");
    }
    let lab = Lab::new();
    let root = testbed::hierarchy().join("cgroup.subtree_control");
    let before = read(&root);
    let above = TestCgroup::new();
    let cgroup = above.child("below");
    let injector = Injector::on(&lab.left, &cgroup, "--cpu 20%");
    assert_eq!(read(cgroup.path.join("cpu.max")).trim(), "20000 100000");
    let used = used(&lab, &cgroup);
    assert!((0.2..1.2).contains(&used), "{used} s of 2 to 3");
    injector.process.signal(Signal::SIGTERM);
    let summary: Value = injector.process.finish();
    let limit = &summary["processes"]["limits"][0];
    assert_eq!(limit["limit"], "cpu.max 20000 100000", "{summary}");
    assert!(limit["throttled_ms"].as_f64() > Some(500.0), "{summary}");
    assert_eq!(names(&read(&root), "cpu"), names(&before, "cpu"), "cpu is disabled again");
    assert!(!cgroup.path.join("cpu.max").exists());
    // Foreign changes made meanwhile stay, and the controller with them.
    let injector = Injector::on(&lab.left, &cgroup, "--cpu 10%");
    let neighbour = TestCgroup::new();
    let limit = neighbour.path.join("cpu.max");
    fs::write(&limit, "50000 100000").expect("a limit");
    injector.process.signal(Signal::SIGTERM);
    injector.process.finish();
    assert_eq!(read(&limit).trim(), "50000 100000");
    drop(neighbour);
    // Previous settings are restored even when injector is killed.
    fs::write(&root, "+cpu").expect("it can be enabled");
    fs::write(above.path.join("cgroup.subtree_control"), "+cpu").expect("it can be enabled");
    let file = cgroup.path.join("cpu.max");
    fs::write(&file, "90000 200000").expect("a limit");
    let injector = Injector::on(&lab.left, &cgroup, "--cpu 10%");
    assert_eq!(read(&file).trim(), "20000 200000");
    injector.process.signal(Signal::SIGKILL);
    drop(injector);
    let end = Instant::now() + Duration::from_secs(5);
    while read(&file).trim() != "90000 200000" {
        assert!(Instant::now() < end, "{}", read(&file));
        std::thread::sleep(Duration::from_millis(20));
    }
    // A limit above the existing one would have no effect.
    let line = format!("--cgroup {} --cpu 100%", cgroup.path.display());
    let output = Injector::command(&lab.left, &line).output().expect("it runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("has a tighter limit"), "{output:?}");
    fs::write(above.path.join("cgroup.subtree_control"), "-cpu").expect("it can be disabled");
    if !before.contains("cpu") {
        fs::write(&root, "-cpu").expect("it can be disabled");
    }
}

#[test]
fn block_io_is_as_slow_as_asked_and_its_limit_goes_with_injector() {
    if !has("io") {
        return is_refused("--io", "1mbps", "io");
    }
    let device = "/dev/ram0";
    assert!(Path::new(device).exists(), "no block device to write to (modprobe brd)");
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let root = testbed::hierarchy().join("cgroup.subtree_control");
    let before = read(&root);
    let write = || {
        let started = Instant::now();
        let line = format!("dd if=/dev/zero of={device} bs=64k count=32 oflag=direct status=none");
        assert!(lab.left.run_in(Some(&cgroup), &line).0, "{line}");
        started.elapsed()
    };
    let line = format!("--io 1mbps,device={device}");
    let injector = Injector::on(&lab.left, &cgroup, &line);
    let limits = read(cgroup.path.join("io.max"));
    assert!(limits.contains("rbps=1000000 wbps=1000000"), "{limits}");
    // 2 MiB.
    let limited = write();
    assert!(limited > Duration::from_millis(1500), "{limited:?}");
    injector.process.signal(Signal::SIGTERM);
    injector.process.finish();
    assert_eq!(names(&read(&root), "io"), names(&before, "io"), "io is disabled again");
    let free = write();
    assert!(free < limited / 2, "{free:?} after {limited:?}");
}

#[test]
fn a_pid_is_no_cgroup() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let mut sleep = lab.left.command("sleep", Some(&cgroup)).arg("30").spawn().expect("sleep");
    let line = format!("--pid {} --cpu 10%", sleep.id());
    let output = Injector::command(&lab.left, &line).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let remedy = format!("--cgroup-of {}", sleep.id());
    assert!(
        said.contains("whole cgroup") && said.contains(&remedy) && !output.status.success(),
        "{said}"
    );
    sleep.kill().expect("it runs");
    sleep.wait().expect("it ends");
}

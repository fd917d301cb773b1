//! Without `--engine`, clocks are faulted by whatever works: by probes alone, with a warning, where processes cannot
//! be patched (Linux 7.3 by default).

use std::{
    fs,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use injector_user::kernel::{clock_probe, vdso};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::{
    Host, INJECTOR, Injector, Lab, Process, RuleFile, TestCgroup, agent::Agent, apply,
    scratch_file, skip,
};

/// What the warning begins with.
const WARNING: &str = "only engine probe is available for clock faults";

/// What `--clock +1h` adds to clocks, and how far a slow machine may be off, in seconds.
const AHEAD: i64 = 3600;
const TOLERANCE: i64 = 120;

/// The engines that work here; none if clocks cannot be faulted.
fn engines() -> Vec<&'static str> {
    let vdso = vdso::check().is_ok().then_some("vdso");
    let probe = clock_probe::refusal().is_none().then_some("probe");
    vdso.into_iter().chain(probe).collect()
}

/// Whether clocks can be faulted here; else says that the test is skipped.
fn can() -> bool {
    let can = !engines().is_empty();
    if !can {
        skip("no engine faults clocks here");
    }
    can
}

/// How far a printed time is ahead, in seconds.
#[track_caller]
fn ahead(text: &str) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    text.trim().parse::<i64>().unwrap_or_else(|_| panic!("no time: {text}")) - now.cast_signed()
}

/// How far a new process of the cgroup is ahead.
fn ahead_in(host: &Host, cgroup: &TestCgroup) -> i64 {
    ahead(&host.run_in(Some(cgroup), "date +%s").1)
}

#[track_caller]
fn assert_near(found: i64, expected: i64) {
    assert!((found - expected).abs() < TOLERANCE, "{found} s instead of {expected} s");
}

/// The warning comes once if probes are alone, and not otherwise.
#[track_caller]
fn check_warning(errors: &str) {
    let expected = usize::from(engines() == ["probe"]);
    assert_eq!(errors.matches(WARNING).count(), expected, "{errors}");
}

/// Standard error of a process, in a file.
struct Errors(std::path::PathBuf);

impl Errors {
    fn of(command: &mut Command) -> Self {
        let path = scratch_file();
        command.stderr(fs::File::create(&path).expect("a scratch file"));
        Self(path)
    }

    fn read(&self) -> String {
        fs::read_to_string(&self.0).expect("it was made")
    }
}

impl Drop for Errors {
    fn drop(&mut self) {
        // While panicking there is nothing to be done about a failure.
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn run_faults_the_clock_of_its_command() {
    if !can() {
        return;
    }
    let mut command = Command::new(INJECTOR);
    command.args(["run", "--clock", "+1h", "--", "date", "+%s"]).stdin(Stdio::null());
    let output = command.output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_near(ahead(&String::from_utf8_lossy(&output.stdout)), AHEAD);
    check_warning(&errors);
}

#[test]
fn inject_faults_the_clocks_of_a_cgroup() {
    if !can() {
        return;
    }
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let line = format!("--cgroup {} --clock +1h", cgroup.path.display());
    let mut command = Injector::command(&lab.left, &line);
    let errors = Errors::of(&mut command);
    let mut process = Process::start(command);
    let started = process.wait_for("started");
    assert_eq!(started["clock_engines"], json!(engines()), "{started}");
    assert_near(ahead_in(&lab.left, &cgroup), AHEAD);
    process.signal(Signal::SIGTERM);
    let summary = process.finish();
    assert!(has_faulted(&summary["clocks"]), "{summary}");
    assert_near(ahead_in(&lab.left, &cgroup), 0);
    check_warning(&errors.read());
}

#[test]
fn apply_faults_the_clocks_of_a_scenario() {
    if !can() {
        return;
    }
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let scenario = RuleFile::new(&format!(
        "targets: {{c: {{cgroup: {}}}}}\n\
         timeline: [{{at: 5s, for: 1h, faults: {{clocks: {{clock: +1h}}}}}}]\n",
        cgroup.path.display(),
    ));
    let mut command = apply(&lab.left, &scenario.path, &[]);
    let errors = Errors::of(&mut command);
    let mut process = Process::start(command);
    process.wait_for("started");
    assert_near(ahead_in(&lab.left, &cgroup), 0);
    process.wait_for("change");
    assert_near(ahead_in(&lab.left, &cgroup), AHEAD);
    process.signal(Signal::SIGTERM);
    process.end();
    assert_near(ahead_in(&lab.left, &cgroup), 0);
    check_warning(&errors.read());
}

#[test]
fn the_agent_faults_the_clocks_of_a_cgroup() {
    if !can() {
        return;
    }
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let socket = scratch_file();
    let mut command = Agent::command(&lab.left, &socket, &[]);
    let errors = Errors::of(&mut command);
    let agent = Agent::spawned(command, socket, 1);
    agent.create(&json!({
        "name": "clock",
        "target": {"cgroup": cgroup.path},
        "clocks": {"clock": "+1h"},
        "for": "10m",
    }));
    assert_near(ahead_in(&lab.left, &cgroup), AHEAD);
    let ended = agent.delete("clock");
    assert!(has_faulted(&ended["clocks"]), "{ended}");
    assert_near(ahead_in(&lab.left, &cgroup), 0);
    assert!(agent.stop().success());
    check_warning(&errors.read());
}

/// Whether a report tells of faulted clocks, by either engine.
fn has_faulted(clocks: &Value) -> bool {
    clocks["patched"].as_u64() >= Some(1) || clocks["calls"]["rewritten"].as_u64() >= Some(1)
}

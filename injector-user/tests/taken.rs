//! Cgroups that are removed under faults, and made again by the same path, as `systemctl restart` does: all faults go on
//! in the new one, and it is told within a second.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use serde_json::{Value, json};
use testbed::{
    Family, Host, INJECTOR, Injector, Lab, Process, RuleFile, TIMEOUT, TestCgroup, agent::Agent,
    number, wait_until,
};

/// How long it may take until it is told.
const PROMISED: Duration = Duration::from_secs(1);

/// A process in a cgroup, which is killed when this is dropped.
struct Inhabitant(Child);

impl Inhabitant {
    fn of(host: &Host, cgroup: &Path) -> Self {
        let mut sleep = Command::new("sleep");
        sleep.arg("600").stdin(Stdio::null());
        let child = host.inside(|| sleep.spawn()).expect("sleep");
        fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).expect("it is there");
        Self(child)
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn remove(cgroup: &Path) {
    wait_until(TIMEOUT, "it can be removed", || fs::remove_dir(cgroup).is_ok());
}

fn make_again(host: &Host, cgroup: &TestCgroup) -> Inhabitant {
    remove(&cgroup.path);
    fs::create_dir(&cgroup.path).expect("it can be made");
    Inhabitant::of(host, &cgroup.path)
}

/// By how many seconds the clock of a new process in the cgroup is ahead.
fn clock_ahead(host: &Host, cgroup: &TestCgroup) -> i64 {
    let (_, text) = host.run_in(Some(cgroup), "date +%s");
    let now = jiff::Timestamp::now().as_second();
    text.trim().parse::<i64>().expect("a number") - now
}

fn is_skewed(ahead: i64) -> bool {
    (3590..=3610).contains(&ahead)
}

/// All kinds of faults that work on any kernel, on one cgroup.
const FAULTS: &str = "--loss 100% --direction egress --clock +1h --pause 20ms,every=300ms --kill URG,at=0s,every=300ms";

fn signals_and_pauses(event: &Value) -> (u64, u64) {
    let processes = &event["processes"];
    (number(&processes["kills"][0], "sent"), number(&processes["pauses"], "done"))
}

#[test]
fn all_kinds_of_faults_follow_a_cgroup_that_is_made_again() {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let to = lab.right.address(Family::V4);
    let mut injector = Injector::on(&lab.left, &cgroup, FAULTS);
    for _ in 0..3 {
        // Without a process in it, too.
        remove(&cgroup.path);
        let removed = Instant::now();
        let gone = injector.process.wait_for("gone");
        assert!(removed.elapsed() < PROMISED, "{:?}", removed.elapsed());
        let path = cgroup.path.display().to_string();
        assert!(gone["title"].as_str().is_some_and(|target| target.contains(&path)), "{gone}");
        fs::create_dir(&cgroup.path).expect("it can be made");
        injector.process.wait_for("followed");
        assert_eq!(lab.left.ping(Some(&cgroup), to, 3), 0);
        assert!(is_skewed(clock_ahead(&lab.left, &cgroup)));
        let mut inhabitant = Command::new("sh");
        inhabitant.args(["-c", "trap 'exit 3' URG; while :; do sleep 0.01; done"]);
        let mut inhabitant = inhabitant.stdin(Stdio::null()).spawn().expect("sh");
        let pid = inhabitant.id().to_string();
        fs::write(cgroup.path.join("cgroup.procs"), pid).expect("it is there");
        // It ends by the signal.
        let end = Instant::now() + TIMEOUT;
        while inhabitant.try_wait().expect("it is ours").is_none() {
            assert!(Instant::now() < end, "it is sent no signal");
            thread::sleep(Duration::from_millis(5));
        }
    }
    let _inhabitant = Inhabitant::of(&lab.left, &cgroup.path);
    let (_, before) = signals_and_pauses(&injector.process.wait_for("progress"));
    wait_until(TIMEOUT, "it is paused", || {
        signals_and_pauses(&injector.process.wait_for("progress")).1 > before
    });
    assert!(injector.stop().total.dropped >= 9);
}

#[test]
fn nothing_falls_on_the_next_cgroup_by_a_path_before_it_is_followed() {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let first = Inhabitant::of(&lab.left, &cgroup.path);
    let mut injector = Injector::on(&lab.left, &cgroup, "--pause 10s,at=3s --kill TERM,at=3s");
    injector.process.signal(Signal::SIGSTOP);
    drop(first);
    let mut next = make_again(&lab.left, &cgroup);
    // Both are due when it goes on; what is due comes before it is looked around.
    thread::sleep(Duration::from_secs(3));
    injector.process.signal(Signal::SIGCONT);
    injector.process.wait_for("followed");
    assert!(!cgroup.is_frozen());
    assert!(next.0.try_wait().expect("it is ours").is_none(), "it was killed");
    injector.process.signal(Signal::SIGTERM);
    let summary = injector.process.finish();
    assert_eq!(signals_and_pauses(&summary), (0, 0), "{summary}");
}

/// Waits for the end, and returns the exit code and the last event.
fn end_of(mut process: Process) -> (Option<i32>, Value) {
    let mut last = Value::Null;
    while let Some(event) = process.next() {
        last = event;
    }
    (process.child.wait().expect("it ends").code(), last)
}

#[test]
fn a_cgroup_that_does_not_return_is_a_failure_unless_its_processes_were_killed() {
    let lab = Lab::new();
    for (line, code) in
        [("--loss 100%", 1), ("--clock +1h", 1), ("--loss 100% --kill KILL,at=100ms", 0)]
    {
        let cgroup = TestCgroup::new();
        let inhabitant = Inhabitant::of(&lab.left, &cgroup.path);
        let mut injector = Injector::on(&lab.left, &cgroup, line);
        drop(inhabitant);
        remove(&cgroup.path);
        injector.process.wait_for("gone");
        injector.process.signal(Signal::SIGTERM);
        let (ended, summary) = end_of(injector.process);
        assert_eq!(ended, Some(code), "{line}: {summary}");
        assert_eq!(summary["event"], "summary");
    }
}

#[test]
fn a_process_that_ends_is_told_and_nothing_takes_its_place() {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let inhabitant = Inhabitant::of(&lab.left, &cgroup.path);
    let pid = inhabitant.0.id();
    let line = format!("--pid {pid} --loss 100% --pause 10ms,every=100ms");
    let mut injector = Injector::start(&lab.left, &line);
    drop(inhabitant);
    let next = make_again(&lab.left, &cgroup);
    let gone = injector.process.wait_for("gone");
    assert_eq!(gone["title"], format!("process {pid}"), "{gone}");
    assert_eq!(gone["final"], true, "{gone}");
    assert_eq!(lab.left.ping(Some(&cgroup), lab.right.address(Family::V4), 3), 3);
    drop(next);
    // It ended by itself.
    injector.process.signal(Signal::SIGTERM);
    assert_eq!(end_of(injector.process).0, Some(0));
}

#[test]
fn a_scenario_follows_a_cgroup_that_is_made_again() {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let inhabitant = Inhabitant::of(&lab.left, &cgroup.path);
    let scenario = RuleFile::new(&format!(
        "targets: {{web: {{cgroup: {}}}}}\n\
         timeline:\n  - faults: [{{rules: [{{loss: 100%, direction: egress}}], clocks: {{clock: +1h}}, \
         processes: {{pause: \"20ms,every=100ms\"}}}}]\n",
        cgroup.path.display()
    ));
    let mut injector = Process::start(testbed::apply(&lab.left, &scenario.path, &[]));
    injector.wait_for("change");
    drop(inhabitant);
    remove(&cgroup.path);
    let gone = injector.wait_for("gone");
    assert_eq!(gone["name"], "web", "{gone}");
    fs::create_dir(&cgroup.path).expect("it can be made");
    injector.wait_for("followed");
    let _inhabitant = Inhabitant::of(&lab.left, &cgroup.path);
    assert_eq!(lab.left.ping(Some(&cgroup), lab.right.address(Family::V4), 3), 0);
    assert!(is_skewed(clock_ahead(&lab.left, &cgroup)));
    wait_until(TIMEOUT, "it is paused", || cgroup.is_frozen());
    injector.signal(Signal::SIGTERM);
    let ended = injector.finish();
    assert_eq!(ended["targets"]["web"]["dropped"], 3, "{ended}");
}

/// A scenario with one target, `web`, and these entries of its timeline.
fn scenario_of(cgroup: &TestCgroup, entries: &[&str]) -> RuleFile {
    let path = cgroup.path.display();
    let timeline = entries.join("\n  - ");
    RuleFile::new(&format!("targets: {{web: {{cgroup: {path}}}}}\ntimeline:\n  - {timeline}\n"))
}

#[test]
fn a_scenario_whose_target_does_not_return_fails_unless_its_processes_were_killed() {
    let lab = Lab::new();
    for (faults, code) in [
        ("{rules: [{loss: 100%}]}", 1),
        ("{clocks: {clock: +1h}}", 1),
        ("{rules: [{loss: 100%}], processes: {kill: [\"KILL,at=100ms\"]}}", 0),
    ] {
        for ends_by_itself in [false, true] {
            let cgroup = TestCgroup::new();
            let inhabitant = Inhabitant::of(&lab.left, &cgroup.path);
            let length = if ends_by_itself { "3s" } else { "1h" };
            let scenario = scenario_of(&cgroup, &[&format!("{{for: {length}, faults: {faults}}}")]);
            let mut injector = Process::start(testbed::apply(&lab.left, &scenario.path, &[]));
            injector.wait_for("change");
            drop(inhabitant);
            remove(&cgroup.path);
            injector.wait_for("gone");
            if !ends_by_itself {
                injector.signal(Signal::SIGTERM);
            }
            let (ended, said) = injector.end();
            assert_eq!(ended, Some(code), "{faults}: {said:?}");
            let is_told = said.iter().any(|event| {
                event["message"].as_str().is_some_and(|message| message.contains("did not return"))
            });
            assert_eq!(is_told, code == 1, "{faults}: {said:?}");
            assert_eq!(said.last().expect("an end")["event"], "ended");
        }
    }
}

#[test]
fn process_faults_that_are_to_start_while_their_target_is_gone_start_when_it_returns() {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let pause = "{at: 2s, for: 1h, faults: {processes: {pause: \"20ms,every=100ms\"}}}";
    let kill = "{at: 2s, for: 1h, faults: {processes: {kill: [\"URG,after=3:unlinkat\"]}}}";
    let over = "{at: 2s, for: 300ms, faults: {processes: {kill: [\"TERM,every=10ms\"]}}}";
    let scenario = scenario_of(&cgroup, &[pause, kill, over]);
    let mut injector = Process::start(testbed::apply(&lab.left, &scenario.path, &[]));
    injector.wait_for("started");
    remove(&cgroup.path);
    injector.wait_for("gone");
    // The one that is over by then does not start.
    let (mut warnings, mut changes) = (0, 0);
    while warnings < 3 || changes < 2 {
        let event = injector.next().expect("it goes on");
        let message = event["message"].as_str().unwrap_or_default();
        warnings += u32::from(message.contains("start when it returns"));
        changes += u32::from(event["event"] == "change");
    }
    fs::create_dir(&cgroup.path).expect("it can be made");
    let mut inhabitant = Inhabitant::of(&lab.left, &cgroup.path);
    injector.wait_for("followed");
    wait_until(TIMEOUT, "it is paused", || cgroup.is_frozen());
    let script = "for n in 1 2 3 4; do rm -d /nonexistent; done 2>/dev/null; exit 0";
    let mut shell = lab.left.command("bash", Some(&cgroup));
    assert!(shell.args(["-c", script]).status().expect("bash").success());
    assert!(inhabitant.0.try_wait().expect("it is ours").is_none(), "it was killed");
    injector.signal(Signal::SIGTERM);
    let ended = injector.finish();
    let web = &ended["targets"]["web"];
    assert!(number(web, "pauses") > 0, "{ended}");
    assert!(!cgroup.is_frozen());
}

/// Whether the v2 hierarchy has this controller; if not, the test that asks says so.
fn has(controller: &str) -> bool {
    let file = testbed::hierarchy().join("cgroup.controllers");
    let controllers = fs::read_to_string(file).expect("a root");
    let has = controllers.split_whitespace().any(|name| name == controller);
    if !has {
        testbed::skip(&format!("cgroup v2 has no {controller} controller here"));
    }
    has
}

/// The content of a file of the cgroup, such as `cpu.max`.
fn limit(cgroup: &TestCgroup, file: &str) -> String {
    fs::read_to_string(cgroup.path.join(file)).unwrap_or_default().trim().into()
}

fn cpu_limit(cgroup: &TestCgroup) -> String {
    limit(cgroup, "cpu.max")
}

/// What a busy loop in the cgroup needs of a processor, as a share of the time.
fn share(host: &Host, cgroup: &TestCgroup) -> f64 {
    let script = "end=$((SECONDS+3)); while [ $SECONDS -lt $end ]; do :; done; \
                  read -ra fields </proc/$$/stat; echo ${fields[13]} ${fields[14]}";
    let began = Instant::now();
    let mut bash = host.command("bash", Some(cgroup));
    let output = bash.args(["-c", script]).output().expect("bash");
    let text = String::from_utf8_lossy(&output.stdout);
    let ticks = text.split_whitespace().map(|ticks| ticks.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / procfs::ticks_per_second() as f64 / began.elapsed().as_secs_f64()
}

#[test]
fn limits_follow_a_cgroup_that_is_made_again() {
    if !has("cpu") {
        return;
    }
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let mut injector = Injector::on(&lab.left, &cgroup, "--cpu 20%");
    for _ in 0..3 {
        assert_eq!(cpu_limit(&cgroup), "20000 100000");
        remove(&cgroup.path);
        injector.process.wait_for("gone");
        fs::create_dir(&cgroup.path).expect("it can be made");
        injector.process.wait_for("followed");
    }
    assert_eq!(cpu_limit(&cgroup), "20000 100000");
    let share = share(&lab.left, &cgroup);
    assert!(share < 0.4, "{share} of a processor");
    injector.process.signal(Signal::SIGTERM);
    let summary = injector.process.finish();
    let limits = summary["processes"]["limits"].as_array().expect("limits").clone();
    assert_eq!(limits.len(), 1, "{summary}");
    assert!(limits[0]["throttled_ms"].as_f64() > Some(100.0), "{summary}");
    assert_ne!(cpu_limit(&cgroup), "20000 100000");
}

#[test]
fn limits_of_block_io_follow_a_cgroup_that_is_made_again() {
    const DEVICE: &str = "/dev/ram0";
    if !has("io") {
        return;
    }
    assert!(Path::new(DEVICE).exists(), "no block device to write to (modprobe brd)");
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    // 2 MiB.
    let write = || {
        let began = Instant::now();
        let line = format!("dd if=/dev/zero of={DEVICE} bs=64k count=32 oflag=direct status=none");
        assert!(lab.left.run_in(Some(&cgroup), &line).0, "{line}");
        began.elapsed()
    };
    let is_limited = || limit(&cgroup, "io.max").contains("rbps=1000000 wbps=1000000");
    let line = format!("--io 1mbps,device={DEVICE}");
    let mut injector = Injector::on(&lab.left, &cgroup, &line);
    for round in 0..3 {
        assert!(is_limited(), "round {round}");
        remove(&cgroup.path);
        injector.process.wait_for("gone");
        fs::create_dir(&cgroup.path).expect("it can be made");
        injector.process.wait_for("followed");
    }
    assert!(is_limited());
    let limited = write();
    assert!(limited > Duration::from_millis(1500), "{limited:?}");
    injector.process.signal(Signal::SIGTERM);
    injector.process.finish();
    assert!(!is_limited());
    let free = write();
    assert!(free < limited / 2, "{free:?} after {limited:?}");
}

#[test]
fn limits_that_are_to_start_while_their_target_is_gone_start_when_it_returns() {
    if !has("cpu") {
        return;
    }
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let limit = "{at: 2s, for: 1h, faults: {processes: {cpu: 20%}}}";
    let scenario = scenario_of(&cgroup, &[limit]);
    let mut injector = Process::start(testbed::apply(&lab.left, &scenario.path, &[]));
    injector.wait_for("started");
    remove(&cgroup.path);
    injector.wait_for("gone");
    injector.wait_for_warning("start when it returns");
    fs::create_dir(&cgroup.path).expect("it can be made");
    injector.wait_for("followed");
    assert_eq!(cpu_limit(&cgroup), "20000 100000");
    injector.signal(Signal::SIGTERM);
    injector.finish();
    assert_ne!(cpu_limit(&cgroup), "20000 100000");
}

#[test]
fn failing_calls_and_signals_at_calls_follow_a_cgroup_that_is_made_again() {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let line = "--errno unlinkat=EIO,100% --kill TERM,after=4:mkdir";
    let line_of_probe = format!("--cgroup {} {line}", cgroup.path.display());
    let mut command = Injector::command(&lab.left, &line_of_probe);
    let output = command.args(["--for", "10ms"]).output().expect("it runs");
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("cannot fail these system calls"), "{said}");
        return testbed::skip("no engine lets system calls fail");
    }
    let mut injector = Injector::on(&lab.left, &cgroup, line);
    let file = testbed::scratch_file();
    fs::write(&file, "").expect("it can be written");
    for round in 1..=3 {
        remove(&cgroup.path);
        injector.process.wait_for("gone");
        fs::create_dir(&cgroup.path).expect("it can be made");
        injector.process.wait_for("followed");
        let is_removed = lab.left.run_in(Some(&cgroup), &format!("rm {}", file.display())).0;
        assert!(!is_removed, "round {round}");
        // A call of its own in each of the cgroups; the fourth comes after the last.
        let (is_made, _) = lab.left.run_in(Some(&cgroup), "mkdir /proc/nonexistent");
        assert!(!is_made);
    }
    let mut mkdir = lab.left.command("mkdir", Some(&cgroup));
    let status = mkdir.arg("/proc/nonexistent").status().expect("mkdir");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGTERM));
    fs::remove_file(&file).expect("nothing fails outside of the cgroup");
    injector.process.signal(Signal::SIGTERM);
    let summary = injector.process.finish();
    let processes = &summary["processes"];
    assert_eq!(number(&processes["errnos"][0], "failed"), 3, "{summary}");
    let kill = &processes["kills"][0];
    assert_eq!((number(kill, "calls"), number(kill, "sent")), (4, 1), "{summary}");
}

#[test]
fn signals_at_calls_follow_a_cgroup_that_is_made_again() {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let mut injector = Injector::on(&lab.left, &cgroup, "--kill TERM,after=3:mkdir");
    let mkdir = || {
        let mut mkdir = lab.left.command("mkdir", Some(&cgroup));
        let status = mkdir.arg("/proc/nonexistent").stderr(Stdio::null()).status();
        std::os::unix::process::ExitStatusExt::signal(&status.expect("mkdir"))
    };
    for _ in 0..2 {
        assert_eq!(mkdir(), None);
        remove(&cgroup.path);
        injector.process.wait_for("gone");
        fs::create_dir(&cgroup.path).expect("it can be made");
        injector.process.wait_for("followed");
    }
    assert_eq!(mkdir(), Some(libc::SIGTERM));
    // Done is done.
    remove(&cgroup.path);
    injector.process.wait_for("gone");
    fs::create_dir(&cgroup.path).expect("it can be made");
    injector.process.wait_for("followed");
    for _ in 0..4 {
        assert_eq!(mkdir(), None);
    }
    injector.process.signal(Signal::SIGTERM);
    let summary = injector.process.finish();
    let kill = &summary["processes"]["kills"][0];
    assert_eq!((number(kill, "calls"), number(kill, "sent")), (3, 1), "{summary}");
}

#[test]
fn an_agent_follows_a_cgroup_that_is_made_again_and_tells_of_one_that_is_gone() {
    const ALL: [&str; 3] = ["packets", "clocks", "pauses"];
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    let to = lab.right.address(Family::V4);
    let inhabitant = Inhabitant::of(&lab.left, &cgroup.path);
    let agent = Agent::start(&lab.left);
    let request = |name: &str, what: Value| {
        let mut request = json!({"name": name, "target": {"cgroup": cgroup.path}, "for": "5m"});
        request.as_object_mut().expect("one").extend(what.as_object().expect("one").clone());
        request
    };
    agent.create(&request("packets", json!({"rules": [{"loss": "100%", "direction": "egress"}]})));
    agent.create(&request("clocks", json!({"clocks": {"clock": "+1h"}})));
    agent.create(&request("pauses", json!({"processes": {"pause": "20ms,every=100ms"}})));
    for name in ALL {
        assert!(agent.get(name)["gone"].is_null());
    }
    drop(inhabitant);
    remove(&cgroup.path);
    let removed = Instant::now();
    for name in ALL {
        agent.wait_for(name, |fault| fault["gone"] == true);
    }
    assert!(removed.elapsed() < 2 * PROMISED, "{:?}", removed.elapsed());
    fs::create_dir(&cgroup.path).expect("it can be made");
    for name in ALL {
        agent.wait_for(name, |fault| fault["gone"].is_null());
    }
    let _inhabitant = Inhabitant::of(&lab.left, &cgroup.path);
    assert_eq!(lab.left.ping(Some(&cgroup), to, 3), 0);
    assert!(is_skewed(clock_ahead(&lab.left, &cgroup)));
    wait_until(TIMEOUT, "it is paused", || cgroup.is_frozen());
    assert_eq!(number(&agent.delete("packets"), "dropped"), 3);
}

#[test]
fn nothing_of_a_killed_agent_stays_in_its_folder() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    // Those of one target that match other packets share an injector; the others have their own, with nothing to be
    // undone but by the kernel.
    for number in 0..4 {
        let cgroup = TestCgroup::new();
        agent.create(&json!({
            "name": format!("of-{number}"), "target": {"cgroup": cgroup.path},
            "rules": [{"loss": "1%"}], "for": "5m",
        }));
    }
    let own = format!("\"pid\":{},", agent.child.id());
    let journals = || {
        let entries = fs::read_dir("/run/injector").into_iter().flatten().flatten();
        let texts = entries.map(|entry| fs::read_to_string(entry.path()).unwrap_or_default());
        texts.filter(|text| text.contains(&own)).count()
    };
    assert!(journals() >= 4);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(agent.child.id().cast_signed()),
        Signal::SIGKILL,
    )
    .expect("it is ours");
    wait_until(TIMEOUT, "the journals are removed", || journals() == 0);
}

/// One round: a cgroup is taken away at a random moment, and half of the time made again.
fn round(host: &Host, to: std::net::IpAddr, random: &mut SmallRng) {
    let lines = [
        "--loss 100% --direction egress",
        "--clock +1h",
        "--pause 30ms,every=60ms",
        "--loss 50% --clock +1h --pause 5ms,every=20ms",
    ];
    let line = lines[random.random_range(0..lines.len())];
    let cgroup = TestCgroup::new();
    let inhabitant = Inhabitant::of(host, &cgroup.path);
    let mut injector = Injector::on(host, &cgroup, line);
    let moment = Duration::from_micros(random.random_range(0..500_000));
    let pause = Duration::from_micros(random.random_range(0..300_000));
    let is_made_again = random.random_bool(0.5);
    thread::sleep(moment);
    drop(inhabitant);
    remove(&cgroup.path);
    let removed = Instant::now();
    let mut next = None;
    if is_made_again {
        thread::sleep(pause);
        fs::create_dir(&cgroup.path).expect("it can be made");
        next = Some(Inhabitant::of(host, &cgroup.path));
        injector.process.wait_for("gone");
        assert!(removed.elapsed() < PROMISED + pause, "{line}: {:?}", removed.elapsed());
        injector.process.wait_for("followed");
        if line.starts_with("--loss 100%") {
            assert_eq!(host.ping(Some(&cgroup), to, 1), 0, "{line}");
        }
    } else {
        injector.process.wait_for("gone");
        assert!(removed.elapsed() < PROMISED, "{line}: {:?}", removed.elapsed());
    }
    injector.process.signal(Signal::SIGTERM);
    let (code, summary) = end_of(injector.process);
    assert_eq!(code, Some(i32::from(!is_made_again)), "{line}: {summary}");
    if next.is_some() {
        assert!(!cgroup.is_frozen(), "{line}");
        assert!(clock_ahead(host, &cgroup).abs() <= 5, "{line}");
        assert_eq!(host.ping(Some(&cgroup), to, 1), 1, "{line}");
    } else {
        fs::create_dir(&cgroup.path).expect("nothing is there by that path");
    }
    let journals = fs::read_dir("/run/injector").into_iter().flatten().flatten();
    let mut texts = journals.map(|entry| fs::read_to_string(entry.path()).unwrap_or_default());
    let path = cgroup.path.to_str().expect("text");
    // Its own command line is in the journal as long as that is there.
    assert!(!texts.any(|text| text.contains(path)), "a journal is left of {line}");
}

#[test]
fn cgroups_taken_away_at_50_random_moments_are_told_within_a_second() {
    thread::scope(|scope| {
        for part in 0..2 {
            scope.spawn(move || {
                let mut random = SmallRng::seed_from_u64(20_261_128 + part);
                let lab = Lab::new();
                for _ in 0..25 {
                    round(&lab.left, lab.right.address(Family::V4), &mut random);
                }
            });
        }
    });
    let output = Command::new(INJECTOR).arg("cleanup").output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
}

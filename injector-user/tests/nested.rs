//! `injector run` affects only its own cgroup, not those of other injectors or created by its command.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use testbed::{Family, INJECTOR, Lab, TIMEOUT, TestCgroup, scratch_file, wait_until};

/// Files of a test, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = scratch_file();
        fs::create_dir(&path).expect("it can be made");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A failure cannot be handled while panicking.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The events written to a report file so far.
fn events(report: &Path) -> Vec<Value> {
    let text = fs::read_to_string(report).unwrap_or_default();
    // The last line may not be whole yet.
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .inspect(testbed::output::check_line)
        .collect()
}

fn event(report: &Path, name: &str) -> Option<Value> {
    events(report).into_iter().find(|event| event["event"] == name)
}

/// Waits for an event in a report file.
#[track_caller]
fn wait_for(report: &Path, name: &str) -> Value {
    let mut found = None;
    wait_until(TIMEOUT, name, || {
        found = event(report, name);
        found.is_some()
    });
    found.expect("it was found")
}

/// The cgroups directly below this one.
fn below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The only cgroup below this one.
#[track_caller]
fn only_below(path: &Path) -> PathBuf {
    let found = below(path);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

fn processes(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The v2 cgroup of a process, from /proc.
fn cgroup_of(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

/// Whether a process exists and is not a zombie.
fn lives(pid: i32) -> bool {
    !matches!(testbed::state(pid.cast_unsigned()), '-' | 'Z' | 'X')
}

/// Waits until no journal mentions a cgroup.
#[track_caller]
fn wait_for_no_journal_of(cgroup: &Path) {
    let name = cgroup.to_str().expect("text");
    wait_until(TIMEOUT, "no journal names the cgroup", || {
        let journals = fs::read_dir("/run/injector").into_iter().flatten().flatten();
        let mut texts = journals.map(|entry| fs::read_to_string(entry.path()).unwrap_or_default());
        !texts.any(|text| text.contains(name))
    });
}

/// Waits until injector has left nothing in the cgroup of a test or in journals.
#[track_caller]
fn wait_until_nothing_is_left(cgroup: &TestCgroup) {
    wait_until(TIMEOUT, "no cgroup is left", || below(&cgroup.path).is_empty());
    wait_for_no_journal_of(&cgroup.path);
}

/// A shell loop that pings an address and writes `pass` or `lost` for each ping.
fn pinging(to: &str, results: &Path, until: &str) -> String {
    let results = results.display();
    format!(
        "until {until}; do ping -n -c 1 -W 0.2 {to} >/dev/null && echo pass || echo lost; sleep 0.03; done >>{results}"
    )
}

fn results(of: &Path) -> Vec<String> {
    let text = fs::read_to_string(of).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Waits for two more results of each loop. Returns the last ones.
#[track_caller]
fn next_results(of: &[&Path]) -> Vec<Vec<String>> {
    // The ping in flight may have started before.
    let before: Vec<usize> = of.iter().map(|file| results(file).len() + 1).collect();
    wait_until(TIMEOUT, "pings", || {
        of.iter().zip(&before).all(|(file, before)| results(file).len() >= before + 2)
    });
    of.iter().zip(before).map(|(file, before)| results(file)[before..].to_vec()).collect()
}

/// Fails unless all pings are lost now.
#[track_caller]
fn assert_all_lost(of: &[&Path], moment: &str) {
    for results in next_results(of) {
        assert!(results.iter().all(|result| result == "lost"), "{moment}: {results:?}");
    }
}

/// One of several nested runs.
struct Level {
    injector: i32,
    guardian: i32,
    results: PathBuf,
}

/// Runs nested three deep, each of which loses packets of its command to another address.
struct Nest {
    lab: Lab,
    cgroup: TestCgroup,
    outermost: Child,
    levels: Vec<Level>,
    _folder: Folder,
}

impl Nest {
    fn new() -> Self {
        let (lab, cgroup, folder) = (Lab::new(), TestCgroup::new(), Folder::new());
        let arguments = |level: u8| {
            let report = folder.file(&format!("report{level}"));
            let script = folder.file(&format!("script{level}"));
            format!(
                "run --output json --output-file {} --loss 100% --direction egress --remote {} -- bash {}",
                report.display(),
                lab.right.nth(Family::V4, level),
                script.display(),
            )
        };
        for level in 0..3 {
            let results = folder.file(&format!("results{level}"));
            let to = lab.right.nth(Family::V4, level).to_string();
            let mut script = format!("({}) &\n", pinging(&to, &results, "false"));
            if level < 2 {
                script.push_str(&[INJECTOR, " ", &arguments(level + 1), " &\n"].concat());
            }
            script += "wait\n";
            fs::write(folder.file(&format!("script{level}")), script).expect("it can be written");
        }
        let mut command = lab.left.command(INJECTOR, Some(&cgroup));
        command.args(arguments(0).split(' ')).stdin(Stdio::null());
        let outermost = command.spawn().expect("it can be run");
        let level = |level: u8| {
            let started = wait_for(&folder.file(&format!("report{level}")), "started");
            let injector = testbed::number(&started, "pid") as i32;
            let guardian = guardian_of(injector);
            let results = folder.file(&format!("results{level}"));
            Level { injector, guardian, results }
        };
        let levels = (0..3).map(level).collect();
        let nest = Self { lab, cgroup, outermost, levels, _folder: folder };
        nest.assert_faulted(&[0, 1, 2], "at the start");
        nest
    }

    #[track_caller]
    fn assert_faulted(&self, living: &[usize], moment: &str) {
        let of: Vec<&Path> =
            living.iter().map(|&level| self.levels[level].results.as_path()).collect();
        assert_all_lost(&of, moment);
        for &level in living {
            assert!(lives(self.levels[level].injector), "level {level} {moment}");
        }
    }

    fn end(&mut self, level: usize, signal: Signal) {
        let Level { injector, guardian, .. } = self.levels[level];
        kill(Pid::from_raw(injector), signal).expect("it lives");
        wait_until(TIMEOUT, "its end", || {
            // It is ours to wait for.
            let _ = self.outermost.try_wait();
            !lives(injector) && !lives(guardian)
        });
    }
}

fn guardian_of(injector: i32) -> i32 {
    let children = fs::read_to_string(format!("/proc/{injector}/task/{injector}/children"));
    let children = children.expect("it lives");
    let is_guardian = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.contains("guardian"))
    };
    let mut pids = children.split_whitespace().map(|pid| pid.parse().expect("a number"));
    pids.find(is_guardian).expect("it has a guardian")
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn nested_runs_ended_in_every_order(signal: Signal) {
    for order in ORDERS {
        let mut nest = Nest::new();
        let mut living = vec![0, 1, 2];
        for level in order {
            nest.end(level, signal);
            living.retain(|&other| other != level);
            let moment = format!("after {signal} of level {level} in {order:?}");
            nest.assert_faulted(&living, &moment);
        }
        wait_until_nothing_is_left(&nest.cgroup);
        assert_eq!(
            nest.lab.left.ping(Some(&nest.cgroup), nest.lab.right.address(Family::V4), 3),
            3
        );
    }
}

#[test]
fn nested_runs_terminated_in_every_order_leave_each_other_alone() {
    nested_runs_ended_in_every_order(Signal::SIGTERM);
}

#[test]
fn nested_runs_killed_in_every_order_leave_each_other_alone() {
    nested_runs_ended_in_every_order(Signal::SIGKILL);
}

#[test]
fn a_cgroup_of_others_with_the_name_of_ours_stays() {
    let (lab, cgroup) = (Lab::new(), TestCgroup::new());
    // The PID of the shell is injector's after exec.
    let script = format!(
        "mkdir {0}/injector-$$; sleep 60 & echo $! >{0}/injector-$$/cgroup.procs; exec {INJECTOR} run --loss 0% -- true",
        cgroup.path.display()
    );
    let mut command = lab.left.command("sh", Some(&cgroup));
    let status = command.args(["-c", &script]).status().expect("it runs");
    let others = only_below(&cgroup.path);
    assert_eq!(processes(&others).len(), 1, "the process was moved out");
    assert!(status.success(), "{status}");
    fs::write(others.join("cgroup.kill"), "1").expect("Linux 5.14");
    wait_until(TIMEOUT, "it can be removed", || fs::remove_dir(&others).is_ok());
    wait_for_no_journal_of(&cgroup.path);
}

#[test]
fn runs_in_two_pid_namespaces_below_one_cgroup_leave_each_other_alone() {
    let (lab, cgroup, folder) = (Lab::new(), TestCgroup::new(), Folder::new());
    let to = lab.right.address(Family::V4).to_string();
    let (results, stop) = (folder.file("results"), folder.file("stop"));
    let loop_of_pings = pinging(&to, &results, &format!("[ -e {} ]", stop.display()));
    // A following command keeps the shell from exec, so injector is process 2 both times.
    let start = |arguments: &str| {
        let script = format!("{INJECTOR} run --direction egress {arguments}; exit $?");
        let mut command = lab.left.command("unshare", Some(&cgroup));
        command.args(["--pid", "--fork", "--mount-proc", "sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("it can be run")
    };
    let mut first = start(&format!("--loss 100% -- sh -c '{loop_of_pings}'"));
    assert_all_lost(&[&results], "at the start");
    let second = start("--loss 0% -- true").wait_with_output().expect("it ends");
    assert!(second.status.success(), "{second:?}");
    // The next injector undoes the journals of dead ones.
    Command::new(INJECTOR).arg("cleanup").stdout(Stdio::null()).status().expect("it runs");
    assert_all_lost(&[&results], "at the end");
    fs::write(&stop, "").expect("it can be written");
    assert!(first.wait().expect("it ends").success());
    wait_until_nothing_is_left(&cgroup);
}

/// A command with a process in a child cgroup that it created, an empty child cgroup, and a process in its
/// own cgroup.
fn manager(cgroup: &TestCgroup, folder: &Folder) -> String {
    let mount = testbed::hierarchy();
    let script = folder.file("manager");
    let text = format!(
        "own={mount}$(sed -n s/^0:://p /proc/self/cgroup)\n\
         mkdir $own/managed $own/empty\n\
         sleep 600 >/dev/null 2>&1 & echo $! >$own/managed/cgroup.procs\n\
         sleep 600 >/dev/null 2>&1 & echo $! >{left}\n\
         echo done >{ready}\n",
        mount = mount.display(),
        left = folder.file("left").display(),
        ready = folder.file("ready").display(),
    );
    fs::write(&script, text).expect("it can be written");
    assert!(below(&cgroup.path).is_empty());
    script.display().to_string()
}

fn assert_managed_stays_until_it_ends(cgroup: &TestCgroup, folder: &Folder) {
    let own = only_below(&cgroup.path);
    let managed = own.join("managed");
    assert_eq!(processes(&managed).len(), 1, "it was moved out of its cgroup");
    assert!(own.join("empty").exists(), "its manager may use it");
    // Processes in injector's own cgroup are moved back.
    let left: i32 = fs::read_to_string(folder.file("left"))
        .expect("a number")
        .trim()
        .parse()
        .expect("a number");
    assert!(!cgroup_of(left).contains("injector-"), "{}", cgroup_of(left));
    // The cgroup stays while in use, without keeping injectors from starting.
    let cleanup = || Command::new(INJECTOR).arg("cleanup").output().expect("it runs");
    let output = cleanup();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(processes(&managed).len(), 1, "it was moved out of its cgroup");
    fs::write(managed.join("cgroup.kill"), "1").expect("Linux 5.14");
    wait_until(TIMEOUT, "it has ended", || processes(&managed).is_empty());
    let output = cleanup();
    assert!(output.status.success(), "{output:?}");
    wait_until_nothing_is_left(cgroup);
}

#[test]
fn cgroups_that_the_command_made_stay_as_long_as_they_are_used() {
    let (lab, cgroup, folder) = (Lab::new(), TestCgroup::new(), Folder::new());
    let report = folder.file("report");
    let mut command = lab.left.command(INJECTOR, Some(&cgroup));
    command.args(["run", "--output", "json", "--output-file"]).arg(&report);
    command.args(["--loss", "0%", "--", "sh", &manager(&cgroup, &folder)]);
    assert!(command.status().expect("it runs").success());
    let warned = events(&report).into_iter().any(|event| {
        event["event"] == "warning"
            && event["message"].as_str().is_some_and(|message| message.contains("/managed"))
    });
    assert!(warned, "{:?}", events(&report));
    assert_managed_stays_until_it_ends(&cgroup, &folder);
}

#[test]
fn cgroups_that_the_command_made_stay_also_if_injector_is_killed() {
    let (lab, cgroup, folder) = (Lab::new(), TestCgroup::new(), Folder::new());
    let script = manager(&cgroup, &folder);
    fs::write(&script, fs::read_to_string(&script).expect("text") + "sleep 600\n").expect("text");
    let mut command = lab.left.command(INJECTOR, Some(&cgroup));
    command.args(["run", "--loss", "0%", "--", "sh", &script]);
    let mut run = command.stderr(Stdio::null()).spawn().expect("it runs");
    wait_until(TIMEOUT, "the command is ready", || folder.file("ready").exists());
    let guardian = guardian_of(run.id().cast_signed());
    run.kill().expect("it is ours");
    run.wait().expect("it was killed");
    wait_until(TIMEOUT, "the guardian's end", || !lives(guardian));
    assert_managed_stays_until_it_ends(&cgroup, &folder);
}

/// A run whose cgroup is removed: its processes are moved elsewhere, and another one of the same name may be
/// created. Returns the exit code.
fn run_without_its_cgroup(code: u8, makes_another: bool) -> Option<i32> {
    let (lab, cgroup, folder) = (Lab::new(), TestCgroup::new(), Folder::new());
    let (report, stop) = (folder.file("report"), folder.file("stop"));
    let script = format!("until [ -e {} ]; do sleep 0.02; done; exit {code}", stop.display());
    let mut command = lab.left.command(INJECTOR, Some(&cgroup));
    command.args(["run", "--output", "json", "--output-file"]).arg(&report);
    command.args(["--loss", "1%", "--clock", "+1h", "--pause", "20ms,every=40ms"]);
    command.args(["--", "sh", "-c", &script]);
    let mut run = command.stderr(Stdio::null()).spawn().expect("it runs");
    wait_for(&report, "started");
    let own = only_below(&cgroup.path);
    wait_until(TIMEOUT, "the command runs", || !processes(&own).is_empty());
    wait_until(TIMEOUT, "it can be removed", || {
        for pid in processes(&own) {
            let _ = fs::write(cgroup.path.join("cgroup.procs"), pid.to_string());
        }
        fs::remove_dir(&own).is_ok()
    });
    let removed = Instant::now();
    let mut others = None;
    if makes_another {
        fs::create_dir(&own).expect("it can be made");
        let mut sleep = Command::new("sleep").arg("60").spawn().expect("sleep");
        fs::write(own.join("cgroup.procs"), sleep.id().to_string()).expect("it is there");
        others = Some((own.metadata().expect("it is there").ino(), sleep.id()));
        thread::spawn(move || sleep.wait());
    }
    let gone = wait_for(&report, "gone");
    assert!(removed.elapsed() < Duration::from_secs(1), "{:?}", removed.elapsed());
    assert!(gone["title"].as_str().is_some_and(|target| target.contains("injector-")), "{gone}");
    fs::write(&stop, "").expect("it can be written");
    let status = run.wait().expect("it ends");
    if let Some((inode, sleep)) = others {
        assert_eq!(own.metadata().expect("it stays").ino(), inode);
        assert_eq!(processes(&own), [sleep.cast_signed()]);
        assert_eq!(fs::read_to_string(own.join("cgroup.freeze")).expect("it stays").trim(), "0");
        fs::write(own.join("cgroup.kill"), "1").expect("Linux 5.14");
        wait_until(TIMEOUT, "it can be removed", || fs::remove_dir(&own).is_ok());
    }
    wait_until_nothing_is_left(&cgroup);
    status.code()
}

#[test]
fn a_run_whose_cgroup_is_taken_away_says_so_and_fails() {
    assert_eq!(run_without_its_cgroup(0, false), Some(1));
    assert_eq!(run_without_its_cgroup(0, true), Some(1));
    // The exit code of the command takes precedence.
    assert_eq!(run_without_its_cgroup(7, true), Some(7));
}

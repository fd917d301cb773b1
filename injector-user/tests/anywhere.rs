//! Injector where the cgroup v2 hierarchy is not visible: below `ip netns exec`, which mounts a new
//! /sys, and in other mount namespaces. And in privileged containers, which have processes and cgroups
//! of their own.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testbed::{Family, INJECTOR, Lab, Process, TestCgroup, program, skip, unique, wait_until};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Serializes tests: each starting injector undoes what it finds, including leftovers of other tests.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command in a namespace, as people type it.
fn exec(lab: &Lab) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &lab.left.netns]);
    command
}

fn shell(lab: &Lab, script: &str) -> Output {
    exec(lab).args(["sh", "-c", script]).output().expect("it runs")
}

/// What a script prints. It must succeed.
fn printed(lab: &Lab, script: &str) -> String {
    let output = shell(lab, script);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A process in the namespace, in a cgroup.
fn subject(lab: &Lab, cgroup: &TestCgroup) -> Process {
    let mut subject = Process::start(lab.left.command(program("subject"), Some(cgroup)));
    subject.wait_for("ready");
    subject
}

/// The cgroups of commands that were run by this injector.
fn cgroups_of(injector: u32) -> Vec<PathBuf> {
    let prefix = format!("injector-{injector}-");
    let home = fs::read_to_string("/proc/self/cgroup").expect("proc is mounted");
    let home = home.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup v2");
    let entries = fs::read_dir(testbed::hierarchy().join(home)).expect("it is there").flatten();
    let is_its = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    };
    entries.map(|entry| entry.path()).filter(is_its).collect()
}

/// A clock fault. Probes, the engine of Linux 7.3, require tracefs, which is hidden as well.
fn clock() -> &'static str {
    if testbed::is_guest() { "--pause 2ms" } else { "--clock +1h" }
}

#[test]
fn commands_are_run_below_ip_netns_exec() {
    let _turn = turn();
    let lab = Lab::new();
    let peer = lab.right.address(Family::V4);
    let ping = |loss| {
        let line = format!("{INJECTOR} run --loss {loss} -- ping -c 1 -W 0.5 {peer}");
        shell(&lab, &line).status.success()
    };
    assert!(ping("0%"));
    assert!(!ping("100%"));
    for fault in [clock(), "--pause 1ms"] {
        printed(&lab, &format!("{INJECTOR} run {fault} -- true"));
    }
    // The command sees the mounts that it would see without injector.
    for what in ["readlink /proc/self/ns/mnt", "pwd", "grep -c cgroup2 /proc/self/mounts || true"] {
        let script = format!(
            "cd /usr/lib; ({what}); {INJECTOR} run --loss 0% -- sh -c '{what}' 2>/dev/null"
        );
        let lines = printed(&lab, &script);
        let lines: Vec<&str> = lines.lines().collect();
        assert!(lines.len() == 2 && lines[0] == lines[1], "{what}: {lines:?}");
    }
}

#[test]
fn targets_are_found_below_ip_netns_exec() {
    let _turn = turn();
    let lab = Lab::new();
    let slice = unique().replace('-', "_");
    let slice = TestCgroup::named(&format!("{slice}.slice"));
    let name = unique();
    let cgroup = slice.child(&format!("{name}.service"));
    let subject = subject(&lab, &cgroup);
    let pid = subject.pid();
    let below = cgroup.path.strip_prefix(testbed::hierarchy()).expect("it is below").display();
    for target in [
        format!("--pid {pid}"),
        format!("--cgroup-of {pid}"),
        format!("--cgroup {below}"),
        format!("--cgroup /{below}"),
        format!("--cgroup {}", cgroup.path.display()),
        format!("--unit {name}"),
        format!("--unit {name} --process subject"),
    ] {
        let faults = format!("--loss 1% {} --for 50ms", clock());
        printed(&lab, &format!("{INJECTOR} inject {target} {faults}"));
    }
    // The paths are those of the host.
    let title = printed(&lab, &format!("{INJECTOR} inject --unit {name} --loss 0% --for 50ms"));
    assert!(title.contains(&cgroup.path.display().to_string()), "{title}");
}

#[test]
fn killed_below_ip_netns_exec_it_leaves_nothing() {
    let _turn = turn();
    let lab = Lab::new();
    for is_guarded in [true, false] {
        let mut command = exec(&lab);
        command.args([INJECTOR, "run", "--loss", "100%", "--", "sleep", "1000"]);
        // `ip` executes it in its own process.
        let mut injector = command.spawn().expect("it starts");
        let id = injector.id();
        let commands = || {
            let all = cgroups_of(id).into_iter();
            let all = all.map(|path| fs::read_to_string(path.join("cgroup.procs")));
            all.flat_map(|text| {
                let pids = text.unwrap_or_default();
                pids.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
            })
            .collect::<Vec<_>>()
        };
        wait_until(TIMEOUT, "the command", || !commands().is_empty());
        let command = commands()[0];
        if !is_guarded {
            let children = format!("/proc/{id}/task/{id}/children");
            let children = fs::read_to_string(children).expect("it runs");
            for child in children.split_whitespace().map(|pid| pid.parse().expect("a number")) {
                if child != command {
                    kill(Pid::from_raw(child), Signal::SIGKILL).expect("it is there");
                }
            }
        }
        injector.kill().expect("it is ours");
        injector.wait().expect("it was killed");
        if !is_guarded {
            assert_eq!(cgroups_of(id).len(), 1);
            // In the mount namespace of the host.
            let output = Command::new(INJECTOR).arg("cleanup").output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("left by injector"), "{said}");
        }
        wait_until(TIMEOUT, "the end of the cgroup", || cgroups_of(id).is_empty());
        kill(Pid::from_raw(command), Signal::SIGKILL).expect("it goes on without faults");
    }
}

#[test]
fn what_the_host_mounts_is_found_where_it_is_not_mounted() {
    const UNMOUNT: &str = "while read -r _ place type _; do if [ $type = cgroup2 ]; then \
                           umount -l $place; fi; done </proc/self/mounts";
    let _turn = turn();
    let lab = Lab::new();
    // Also where there is no directory for it.
    for hide in ["true", "mount -t tmpfs none /sys/fs/cgroup"] {
        let script = format!(
            "{UNMOUNT}; {hide}; {INJECTOR} run --loss 0% -- true && {INJECTOR} doctor >/dev/null"
        );
        let mut command = lab.left.command("unshare", None);
        let output = command.args(["--mount", "bash", "-c", &script]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{hide}: {said}");
    }
}

/// A command in namespaces of its own, as a privileged container has them: it sees the cgroup as the root
/// of the hierarchy, and has process 1. What it starts ends with it.
fn contained(lab: &Lab, cgroup: &TestCgroup, script: &str) -> Command {
    const CGROUPS: &str = "place=$(awk '$3 == \"cgroup2\" {print $2; exit}' /proc/self/mounts); \
                           umount -l $place; mount -t cgroup2 none $place";
    let mut command = lab.left.command("unshare", Some(cgroup));
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--cgroup"]);
    command.args(["bash", "-e", "-c", &format!("{CGROUPS}; {script}")]);
    command
}

/// What a script prints in a container. It must succeed.
fn printed_in_container(lab: &Lab, script: &str) -> String {
    let cgroup = TestCgroup::new();
    let output = contained(lab, &cgroup, script).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Says by how many hours the clock of a command is wrong.
const HOURS: &str = "sh -c 'echo $((($(date +%s) - TRUE) / 3600))'";

#[test]
fn commands_are_run_in_a_privileged_container() {
    let _turn = turn();
    let lab = Lab::new();
    let peer = lab.right.address(Family::V4);
    let lost = format!("! {INJECTOR} run --loss 100% -- ping -c 1 -W 0.5 {peer} >&2");
    printed_in_container(&lab, &lost);
    // The process that is run, one that it starts, and one in a container within.
    for within in ["", "sh -c '\"$@\"; exit $?' -", "unshare --pid --fork --mount-proc"] {
        let script =
            format!("export TRUE=$(date +%s); {INJECTOR} run --clock +2.5h -- {within} {HOURS}");
        assert_eq!(printed_in_container(&lab, &script), "2", "{within}");
    }
}

#[test]
fn processes_are_faulted_by_their_numbers_in_the_container() {
    let _turn = turn();
    let lab = Lab::new();
    let peer = lab.right.address(Family::V4);
    // What a process starts loses its packets, and what another one of the same cgroup starts does not.
    let script = format!(
        "while :; do ping -c 1 -W 0.5 {peer} || sleep 0.05; done >/dev/null & target=$!
         file=$(mktemp); trap 'rm $file' EXIT
         {INJECTOR} inject --pid $target --loss 100% --for 2s --output json >$file & injector=$!
         until grep -q '\"started\"' $file; do sleep 0.05; done
         ping -q -i 0.1 -c 8 {peer} | grep ' 0% packet loss' >&2
         wait $injector; tail -1 $file"
    );
    let summary = printed_in_container(&lab, &script);
    let summary = testbed::output::parse(&summary);
    assert!(testbed::number(&summary, "dropped") > 1, "{summary}");

    let script = format!(
        "sleep 1000 & other=$!; sleep 1000 & target=$!
         {INJECTOR} inject --pid $target --pause 100ms --kill TERM,at=200ms --for 1s --output json \
         | tail -1
         kill $other; ! wait $target"
    );
    let summary = printed_in_container(&lab, &script);
    for done in ["\"done\":1", "\"sent\":1"] {
        assert!(summary.contains(done), "{summary}");
    }
}

#[test]
fn calls_fail_in_a_privileged_container() {
    let _turn = turn();
    let lab = Lab::new();
    let fails = format!("{INJECTOR} run --errno openat=EIO,path=/etc/passwd --");
    if !shell(&lab, &format!("{fails} true")).status.success() {
        return skip("no engine lets system calls fail");
    }
    let script = format!(
        "! {fails} cat /etc/passwd >&2
         {fails} unshare --pid --fork --mount-proc bash -c '! cat /etc/passwd' >&2"
    );
    printed_in_container(&lab, &script);
}

#[test]
fn an_agent_in_a_privileged_container_faults_containers_within() {
    let _turn = turn();
    let lab = Lab::new();
    let peer = lab.right.address(Family::V4);
    if testbed::is_guest() {
        return skip("no curl");
    }
    // As the node of kind(1) runs containers, with paths as that node shows them.
    let script = format!(
        "mkdir $place/within
         folder=$(mktemp -d); trap 'rm -r $folder; rmdir $place/within' EXIT
         {INJECTOR} agent --socket $folder/socket 2>$folder/log & agent=$!
         until [ -e $folder/socket ]; do sleep 0.05; done
         ask() {{ curl --silent --show-error --unix-socket $folder/socket http://agent/v1/faults \"$@\"; }}
         within() {{ (echo $BASHPID >$place/within/cgroup.procs
           exec unshare --pid --fork --mount-proc --cgroup \"$@\"); }}
         ping='ping -q -i 0.1 -c 5 -W 0.5 {peer}'
         within $ping >&2
         for path in $place/within /within; do
           ask --data '{{\"name\": \"f\", \"for\": \"30s\", \"rules\": [{{\"loss\": \"100%\"}}], \
             \"target\": {{\"cgroup\": \"'$path'\"}}}}' >&2
           ! within $ping >&2
           $ping >&2
           curl --silent --unix-socket $folder/socket -X DELETE http://agent/v1/faults/f >&2
           within $ping >&2
         done
         kill $agent; wait $agent"
    );
    printed_in_container(&lab, &script);
}

#[test]
fn killed_in_a_privileged_container_it_leaves_nothing() {
    let _turn = turn();
    let lab = Lab::new();
    let peer = lab.right.address(Family::V4);
    let script = format!(
        "{INJECTOR} run --clock +1h --loss 100% -- sleep 1000 & injector=$!
         until pid=$(cat $place/injector-*/cgroup.procs) && [ -n \"$pid\" ]; do sleep 0.05; done 2>&1
         kill -9 $injector; wait $injector || true
         while ls -d $place/injector-*; do sleep 0.05; done >/dev/null 2>&1
         nsenter --target $pid --all ping -c 1 -W 5 {peer} >&2"
    );
    printed_in_container(&lab, &script);
}

#[test]
fn processes_that_proc_does_not_show_are_refused() {
    let _turn = turn();
    let lab = Lab::new();
    // Without --mount-proc.
    let mut command = lab.left.command("unshare", None);
    command.args(["--pid", "--fork", INJECTOR, "run", "--clock", "+1h", "--", "true"]);
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("mount -t proc"), "{said}");
}

//! Snapshots of what commands print for people in their main cases. `INSTA_UPDATE=always cargo test --test output`
//! rewrites them. [`redact`] replaces what differs between runs and machines.

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use injector_user::spec::process::errno::HOOKS;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use regex::{Captures, Regex};
use testbed::{
    Family, Host, INJECTOR, Lab, RuleFile, TestCgroup, agent::Agent, scratch_file, wait_until,
};

/// Replaces the times, numbers and names that differ between runs, the hook and the engine, which differ between
/// kernels, and the names of the lab.
fn redact(lab: &Lab, text: &str) -> String {
    let mut text = text.replace(&lab.left.netns, "LEFT").replace(&lab.right.netns, "RIGHT");
    for (pattern, with) in [
        (r"\((tcx|clsact)\)", "(HOOK)"),
        (r"by the (edt|tap) engine", "by the ENGINE engine"),
        (r"engine (vdso|probe)(, probe)?", "engine ENGINE"),
        (r"(?m)^injector: [0-9.]+(ms|s): ", "injector: TIME: "),
        (r"ended after [0-9.]+(ms|s)", "ended after TIME"),
        (r"(?m)^injector: +[0-9.]+ s  ", "injector: TIME s  "),
        (r"at most [0-9.]+ ms late", "at most TIME ms late"),
        (r"[0-9.]+ ms (stopped|planned|late|of waiting)", "TIME ms $1"),
        (r"delayed by [0-9.]+(µs|ms) to .*", "delayed by TIME to TIME"),
        (r"`kill [0-9]+`", "`kill PID`"),
        (r"injector-[0-9]+-[0-9a-f]{16}", "injector-PID-NUMBER"),
        (r"inj[0-9]+-[0-9]+", "NAME"),
        (r"/[^ ]*/(NAME|CGROUP)", "/PATH/$1"),
        (r"(?m)^ *[0-9]+  [0-9]{4}-[0-9TZ:.-]+  ", "     PID  STARTED  "),
        (r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z", "DATE"),
        (r"[^ ]*/injector (agent|inject|run)", "injector $1"),
        (r"(min|median|p99|max) [0-9.]+ ms", "$1 TIME ms"),
        (r"pid [0-9]+:", "pid PID:"),
        (r"the cgroup v2 mount [^ ,]+", "the cgroup v2 mount MOUNT"),
        (
            r"left by injector [0-9]+, started at [^:]*:[^:]*:[^:]*: ",
            "left by injector PID, started at DATE: ",
        ),
    ] {
        text = Regex::new(pattern).expect(pattern).replace_all(&text, with).into_owned();
    }
    text
}

fn injector(host: &Host, line: &str) -> Command {
    let mut command = host.command(INJECTOR, None);
    command.args(line.split_whitespace()).env_remove("SUDO_USER").env("COLUMNS", "120");
    command
}

/// Both outputs and the exit code of a command that ends by itself.
fn told(lab: &Lab, line: &str) -> String {
    let output = injector(&lab.left, line).stdin(Stdio::null()).output().expect("it can be run");
    whole(lab, line, &output)
}

fn whole(lab: &Lab, line: &str, output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| {
        let text = String::from_utf8(bytes.clone()).expect("text");
        redact(lab, &text)
    });
    let code = output.status.code().expect("it ends by itself");
    let line = redact(lab, line);
    format!(
        "$ injector {line}\n--- standard output\n{out}--- standard error\n{err}--- exit code {code}\n"
    )
}

/// As [`told`], of a command that SIGTERM ends once `act` is done, which begins when the faults are active.
fn told_until(lab: &Lab, line: &str, act: impl FnOnce()) -> String {
    let file = scratch_file();
    let mut command = injector(&lab.left, line);
    command.arg("--output-file").arg(&file).stdin(Stdio::null());
    let child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be run");
    wait_until(testbed::TIMEOUT, "the start", || {
        fs::read_to_string(&file).is_ok_and(|text| text.contains("faulting "))
    });
    act();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it is alive");
    let mut output = child.wait_with_output().expect("it ends");
    output.stdout.extend(fs::read(&file).expect("it is written"));
    fs::remove_file(&file).expect("it is there");
    whole(lab, line, &output)
}

#[test]
fn run_tells_the_faults_and_their_effects() {
    let lab = Lab::new();
    let to = lab.right.address(Family::V4);
    let ping = format!("ping -q -n -c 3 -i 0.01 -W 0.2 {to}");
    // What ping prints is its own.
    let script = |options: &str| {
        let line = format!("run --seed 7 {options} -- sh -c");
        let mut command = injector(&lab.left, &line);
        let output = command.arg(format!("{ping} >/dev/null; true")).output();
        whole(&lab, &format!("{line} 'ping …'"), &output.expect("it can be run"))
    };
    insta::assert_snapshot!("run-loss", script("--loss 100% --direction egress --protocol icmp"));
    insta::assert_snapshot!("run-delay", script("--delay 20ms --remote 10.9.0.20"));
    insta::assert_snapshot!("run-unmatched", script("--loss 100% --remote-port 80"));
    insta::assert_snapshot!("run-user", script("--loss 0% --user nobody --cwd /"));
    insta::assert_snapshot!("run-profile", told(&lab, "run --seed 7 --profile 3g -- true"));
    insta::assert_snapshot!("run-clock", told(&lab, "run --seed 7 --clock +1h -- true"));
    insta::assert_snapshot!(
        "run-process",
        told(&lab, "run --seed 7 --pause 10ms --kill USR1,at=1h -- sleep 0.2")
    );
    insta::assert_snapshot!("run-missing", told(&lab, "run --seed 7 --loss 1% -- no-such-program"));
}

#[test]
fn inject_tells_the_faults_their_end_and_their_effects() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let to = lab.right.address(Family::V4);
    let path = cgroup.path.display();
    let pings = || {
        lab.left.ping(Some(&cgroup), to, 3);
    };
    let line =
        format!("inject --seed 7 --cgroup {path} --loss 100% --direction egress --remote {to}");
    insta::assert_snapshot!("inject-endless", told_until(&lab, &line, pings));
    let line = format!("inject --seed 7 --netns {} --delay 10ms --for 60s", lab.left.netns);
    insta::assert_snapshot!("inject-netns", told_until(&lab, &line, pings));
    let rules = RuleFile::new("rules: [{name: slow, delay: 10ms}, {loss: 1%, remote-port: 80}]");
    let line = format!("inject --seed 7 --cgroup {path} {}", rules.option());
    insta::assert_snapshot!("inject-rules", told_until(&lab, &line, pings));
    let line = format!("inject --seed 7 --cgroup {path} --partition {to}");
    insta::assert_snapshot!("inject-unmatched", told_until(&lab, &line, || {}));
    insta::assert_snapshot!("inject-missing", told(&lab, "inject --cgroup /no/such --loss 1%"));
}

#[test]
fn apply_tells_the_plan_and_what_became_of_it() {
    let lab = Lab::new();
    let (left, right) = (&lab.left.netns, &lab.right.netns);
    let file = RuleFile::new(&format!(
        "seed: 7\ntargets: {{l: {{netns: {left}}}, r: {{netns: {right}}}}}\n\
         faults: {{lost: {{rules: [{{loss: 100%, direction: egress, protocol: tcp}}]}}}}\n\
         timeline:\n- {{at: 100ms, for: 200ms, on: l, faults: lost}}\n\
         - {{at: 400ms, for: 200ms, partition: {{isolate: r}}}}\n"
    ));
    let path = file.path.display();
    insta::assert_snapshot!("apply-check", told(&lab, &format!("apply --check {path}")));
    let timeline = scratch_file();
    let line = format!("apply {path} --timeline {}", timeline.display());
    // The kernel may send packets of its own.
    let passed = Regex::new(r"(?m); saw .*$|^injector: warning: .*: likely cause: .*\n");
    let text = told(&lab, &line);
    let text = passed.expect("valid").replace_all(&text, |found: &Captures| {
        if found[0].starts_with(';') { "; saw PACKETS" } else { "" }
    });
    insta::assert_snapshot!("apply", text);
    let line = format!("report {}", timeline.display());
    insta::assert_snapshot!("report", told(&lab, &line));
    for file in [timeline.clone(), timeline.with_extension("html")] {
        fs::remove_file(file).expect("it is written");
    }
}

#[test]
fn the_agent_and_lists_tell_what_acts() {
    let lab = Lab::new();
    let socket = scratch_file();
    let list = || {
        let line = format!("list --agent {}", socket.display());
        let mut command = injector(&lab.left, &line);
        whole(&lab, &line, &command.output().expect("it can be run"))
    };
    // Other tests may run injectors at the same time.
    let without_others = |text: String| {
        let mut is_kept = true;
        let kept = |line: &&str| {
            // What an injector faults is in the lines below it.
            if line.contains("PID  STARTED") {
                is_kept = line.contains(" agent ");
            } else if !line.starts_with("  target") && !line.starts_with("          ") {
                is_kept = true;
            }
            is_kept
        };
        text.lines().filter(kept).collect::<Vec<_>>().join("\n")
    };
    let agent = Agent::with(&lab.left, socket.clone(), &[]);
    insta::assert_snapshot!("agent-start", redact(&lab, &agent.serves.join("\n")));
    agent.create(&serde_json::json!({
        "name": "slow", "target": {"netns": lab.left.netns}, "seed": 7, "for": "60s",
        "rules": [{"delay": "10ms", "remote": "10.9.0.20"}],
    }));
    insta::assert_snapshot!("list-fault", without_others(list()));
    assert!(agent.stop().success());
}

#[test]
fn doctor_tells_each_fault_in_a_line() {
    let lab = Lab::new();
    let output = injector(&lab.left, "doctor").output().expect("it can be run");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    // What works, by what, and why not, is the kernel's.
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("ok ") || line.starts_with("no "))
        .map(|line| &line[5..])
        .map(|line| match line.split_once(" by ") {
            Some((fault, _)) if line.starts_with("--") => fault.trim_end(),
            _ => line,
        })
        .filter(|line| HOOKS.iter().all(|hook| line.split(' ').next() != Some(hook.name)))
        .collect();
    insta::assert_snapshot!("doctor", lines.join("\n"));
}

#[test]
fn cleanup_tells_what_was_left_and_whose_it_was() {
    const INJECT: &str = "inject --seed 7 --delay 1ms --engine tap --netns";
    let lab = Lab::new();
    // The journals of other tests are not there. The guardian is stopped, so that it undoes nothing.
    let script = format!(
        "mount -t tmpfs t /run/injector; $0 cleanup; \
         $0 {INJECT} {netns} --output-file $1 2>/dev/null & injector=$!; \
         until grep -q faulting $1 2>/dev/null; do sleep 0.02; done; \
         guardian=$(cat /proc/$injector/task/$injector/children); kill -STOP $guardian; kill -KILL $injector; \
         kill -KILL $guardian; wait 2>/dev/null; $0 cleanup; $0 cleanup",
        netns = lab.left.netns
    );
    let reports = scratch_file();
    let mut command = lab.left.command("unshare", None);
    command.args(["--mount", "bash", "-c", &script, INJECTOR]).arg(&reports);
    let output = command.output().expect("it can be run");
    fs::remove_file(&reports).expect("it is written");
    let text = redact(&lab, &String::from_utf8(output.stdout).expect("text"));
    insta::assert_snapshot!("cleanup", text);
}

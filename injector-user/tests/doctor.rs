//! `injector doctor` reports `ok` for exactly the faults that work, and the reason for others.

use std::process::{Command, Output};

use injector_user::kernel::{clock_probe, vdso};
use serde_json::Value;
use testbed::{INJECTOR, Lab};

const FAULTS: [&str; 17] = [
    "loss",
    "corrupt",
    "duplicate",
    "partition",
    "reset",
    "too-big",
    "delay",
    "rtt",
    "reorder",
    "rate",
    "ecn",
    "clock",
    "pause",
    "kill",
    "errno",
    "cpu",
    "io",
];

/// Faults of processes.
const PROCESS_FAULTS: [&str; 6] = ["clock", "pause", "kill", "errno", "cpu", "io"];

fn findings(output: &Output) -> Vec<Value> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn fault<'a>(findings: &'a [Value], name: &str) -> &'a Value {
    findings.iter().find(|finding| finding["fault"] == name).unwrap_or_else(|| panic!("no {name}"))
}

/// Fails unless each fault has a complete verdict.
fn check_verdicts(findings: &[Value]) {
    for name in FAULTS {
        let finding = fault(findings, name);
        let works_by = finding["works_by"].as_array().expect("a list");
        match finding["verdict"].as_str() {
            Some("ok") => assert!(!works_by.is_empty() && finding["reason"].is_null(), "{finding}"),
            Some("unavailable") => {
                let reason = finding["reason"].as_str().unwrap_or_default();
                assert!(works_by.is_empty() && !reason.is_empty(), "{finding}");
                assert!(!reason.contains("  "), "{finding}");
                let is_of_processes = PROCESS_FAULTS.contains(&name);
                assert!(!is_of_processes || finding["instead"].is_string(), "{finding}");
            }
            _ => panic!("{finding}"),
        }
    }
}

#[test]
fn what_is_ok_works_and_what_is_not_has_a_reason() {
    let lab = Lab::new();
    let mut doctor = lab.left.command(INJECTOR, None);
    let findings =
        findings(&doctor.args(["doctor", "--output", "json"]).output().expect("it runs"));
    check_verdicts(&findings);
    // Available on every tested kernel.
    for name in FAULTS.iter().filter(|name| !PROCESS_FAULTS.contains(name)) {
        let finding = fault(&findings, name);
        assert_eq!(finding["verdict"], "ok", "{finding}");
    }
    let has_clocks = vdso::check().is_ok() || clock_probe::refusal().is_none();
    assert_eq!(fault(&findings, "clock")["verdict"] == "ok", has_clocks);
    // Confirm each by a separate run.
    for (name, options) in [
        ("loss", "--loss 100%"),
        ("corrupt", "--corrupt 1%"),
        ("duplicate", "--duplicate 1%"),
        ("partition", "--partition 127.0.0.1"),
        ("reset", "--reset"),
        ("too-big", "--longer-than 1000 --too-big"),
        ("delay", "--delay 1ms"),
        ("rtt", "--rtt 1ms"),
        ("reorder", "--delay 1ms --reorder 1%"),
        ("ecn", "--loss 1% --ecn"),
        ("rate", "--rate 1mbit"),
        ("clock", "--clock +1h"),
        ("pause", "--pause 1ms"),
        ("kill", "--kill at=1h"),
        ("errno", "--errno flock=EIO"),
        ("cpu", "--cpu 50%"),
        ("io", "--io 1gbps"),
    ] {
        let mut run = lab.left.command(INJECTOR, None);
        run.arg("run").args(options.split(' ')).args(["--", "true"]);
        let output = run.output().expect("it runs");
        let is_ok = fault(&findings, name)["verdict"] == "ok";
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), is_ok, "{name}: {errors}");
    }
}

#[test]
fn without_cgroup_v2_processes_cannot_be_faulted() {
    let lab = Lab::new();
    let script = "mount -t tmpfs t /run/injector; touch /run/injector/cgroup; \
                  for mount in $(findmnt -rno TARGET -t cgroup2); do umount -l $mount; done; \
                  exec \"$0\" doctor --output json";
    let mut doctor = lab.left.command("unshare", None);
    // The host's hierarchy is found by the host's process 1, or else attached in /run/injector.
    let namespaces = ["--mount", "--pid", "--fork", "--mount-proc"];
    let output = doctor.args(namespaces).args(["bash", "-c", script, INJECTOR]).output();
    let findings = findings(&output.expect("it runs"));
    check_verdicts(&findings);
    for name in PROCESS_FAULTS {
        let finding = fault(&findings, name);
        let reason = finding["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("cgroup v2"), "{finding}");
    }
    for name in ["loss", "delay", "reset"] {
        let finding = fault(&findings, name);
        assert_eq!(finding["verdict"], "ok", "{finding}");
    }
    for finding in findings.iter().filter(|finding| finding["subject"] == "engine vdso") {
        assert_eq!(finding["verdict"], "unavailable", "{finding}");
    }
}

/// The files of securityfs that matter are found although nothing mounts it, and the same is said.
#[test]
fn without_securityfs_the_same_is_found() {
    const DOCTOR: &str = "exec \"$0\" doctor --output json";
    let lab = Lab::new();
    let doctor = |script: &str| {
        let mut command = lab.left.command("unshare", None);
        command.args(["--mount", "bash", "-c", script, INJECTOR]);
        findings(&command.output().expect("it runs"))
    };
    let mounted = "mountpoint -q /sys/kernel/security || mount -t securityfs s /sys/kernel/security; \
                   cat /sys/kernel/security/lsm >&2";
    let unmounted = "while mountpoint -q /sys/kernel/security; do umount -l /sys/kernel/security; done; \
                     ! test -e /sys/kernel/security/lsm || exit 9";
    let [with, without] = [mounted, unmounted].map(|before| doctor(&format!("{before}; {DOCTOR}")));
    for subject in ["engine lsm", "engine fmod-ret", "engine probe"] {
        let of = |findings: &[Value]| {
            let finding = findings.iter().find(|finding| finding["subject"] == subject);
            finding.expect("a finding").clone()
        };
        assert_eq!(of(&with), of(&without), "{subject}");
    }
    assert_eq!(fault(&with, "errno"), fault(&without, "errno"));
}

/// No remedy names an option that this kernel has.
#[test]
fn remedies_are_what_this_kernel_lacks() {
    let lab = Lab::new();
    let mut doctor = lab.left.command(INJECTOR, None);
    let findings =
        findings(&doctor.args(["doctor", "--output", "json"]).output().expect("it runs"));
    let Ok(options) = procfs::kernel_config() else {
        testbed::skip("the configuration of this kernel is not known");
        return;
    };
    for finding in findings {
        let texts = [&finding["remedy"], &finding["reason"]];
        for word in
            texts.into_iter().filter_map(Value::as_str).flat_map(|it| it.split([' ', ',', ';']))
        {
            assert!(!options.contains_key(word), "{word}: {finding}");
        }
    }
}

/// What is said to serve where calls cannot be made to fail does serve.
#[test]
fn what_serves_instead_of_failing_calls_works() {
    let output = Command::new(INJECTOR)
        .args(["run", "--errno", "fsync=EIO", "--", "true"])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let advice = said.split('`').find(|part| part.starts_with("strace ")).expect(&said);
    assert_eq!(advice, "strace -f -e inject=fsync:error=EIO CMD");
    let file = testbed::scratch_file();
    let line =
        advice.replace("CMD", &format!("dd if=/dev/zero of={} count=1 conv=fsync", file.display()));
    let mut words = line.split_whitespace();
    let strace = Command::new(words.next().expect("a program")).args(words).output();
    let _ = std::fs::remove_file(&file);
    match strace {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains("Input/output error"), "{said}");
        }
        Err(_) => testbed::skip("no strace(1)"),
    }
    let script =
        "mkdir -p $0; mount -t tmpfs -o size=1m none $0; dd if=/dev/zero of=$0/file bs=1M count=2";
    let folder = testbed::scratch_file();
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", script])
        .arg(&folder)
        .output()
        .expect("it runs");
    let _ = std::fs::remove_dir(&folder);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("No space left on device"), "{said}");
}

#[test]
fn lines_for_people_are_whole() {
    let output = Command::new(INJECTOR).arg("doctor").output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines() {
        assert_eq!(line, line.trim_end(), "a line ends in blanks");
        assert!(!line.ends_with(" by"), "{line}");
    }
    assert_eq!(text.lines().filter(|line| line[5..].starts_with("--")).count(), FAULTS.len());
}

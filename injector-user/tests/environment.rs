//! Missing requirements are reported at the start, before anything is attached.

use std::process::Command;

use testbed::{INJECTOR, Lab};

/// Fails unless this bash script, in a new mount namespace, exits with `code` and prints the words.
fn assert_says(lab: &Lab, script: &str, code: i32, words: &[&str]) {
    let mut command = lab.left.command("unshare", None);
    let output = command.args(["--mount", "bash", "-c", script]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{script}: {said}");
    for word in words {
        assert!(said.contains(word), "{script}: no `{word}` in: {said}");
    }
    assert!(!said.contains("panicked") && !said.contains("overflow"), "{script}: {said}");
}

fn commands() -> [String; 2] {
    [
        format!("{INJECTOR} inject --host --no-protect --loss 0% --for 100ms"),
        format!("{INJECTOR} run --loss 0% -- true"),
    ]
}

#[test]
fn without_sysfs_nothing_is_attached() {
    let lab = Lab::new();
    for command in commands() {
        let script = format!("mount -t tmpfs t /sys && {command}");
        assert_says(&lab, &script, 1, &["/sys/devices/system/cpu/possible", "mount -t sysfs"]);
    }
}

#[test]
fn without_devices_nothing_is_attached() {
    let lab = Lab::new();
    for command in commands() {
        let script = format!("mount -t tmpfs t /dev && {command}");
        assert_says(&lab, &script, 1, &["/dev"]);
    }
}

#[test]
fn limits_that_are_too_low_are_named() {
    let lab = Lab::new();
    for command in commands() {
        for files in [8, 12, 20, 32, 100] {
            let words = [&*format!("open files is {files}"), "ulimit -n 1024"];
            assert_says(&lab, &format!("ulimit -n {files}; {command}"), 1, &words);
        }
        for stack in [64, 256] {
            let words = [&*format!("stack limit is {stack} KiB"), "ulimit -s 1024"];
            assert_says(&lab, &format!("ulimit -s {stack}; {command}"), 1, &words);
        }
        assert_says(&lab, &format!("ulimit -s 1024; ulimit -n 128; {command}"), 0, &[]);
    }
}

#[test]
fn short_times_are_told_as_they_were_given() {
    let output = Command::new(INJECTOR)
        .args(["run", "--loss", "0%", "--for", "1ns", "--", "true"])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("for 1ns"), "{said}");
}

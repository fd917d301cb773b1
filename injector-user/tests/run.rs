//! `injector run`: where the command runs, and as whom.

use std::{
    ffi::CString,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
};

use nix::unistd::{User, getgrouplist};
use testbed::{Family, INJECTOR, Lab, scratch_file};

/// The user without privileges of every system.
const NOBODY: &str = "nobody";

/// Runs a bash script by `injector run` in this namespace.
fn run(lab: &Lab, options: &str, script: &str) -> Output {
    command(lab, options, script).output().expect("it can be run")
}

fn command(lab: &Lab, options: &str, script: &str) -> Command {
    let mut command = lab.right.command(INJECTOR, None);
    command.arg("run").args(options.split_whitespace()).args(["--", "bash", "-c", script]);
    command.env_remove("SUDO_USER");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn a_command_runs_in_a_namespace_and_is_faulted_only_there() {
    let lab = Lab::new();
    let (to, name) = (lab.right.address(Family::V4), &lab.left.netns);
    let ping = format!("readlink /proc/self/ns/net; ping -q -c 3 -i 0.01 -W 0.2 {to}");
    for netns in [name.clone(), format!("/run/netns/{name}")] {
        let options = format!("--netns {netns} --loss 100% --direction egress");
        let output = run(&lab, &options, &ping);
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{out}{said}");
        let inode = lab.left.run("readlink /proc/self/ns/net");
        assert_eq!(out.lines().next(), Some(inode.trim()), "{out}");
        assert!(out.contains("3 packets transmitted, 0 received"), "{out}");
        // The namespace of injector is left alone.
        let line = said.lines().find(|line| line.contains("faulting ")).expect(&said);
        assert!(line.contains(&format!("on lo in {netns} (")), "{line}");
        assert!(line.contains(&format!("veth0 in {netns} (")), "{line}");
        assert_eq!(line.matches(" in ").count(), 2, "{line}");
        assert!(said.contains("3 packets matched, 3 dropped"), "{said}");
    }
    let output = run(&lab, "--netns nowhere --loss 1%", "true");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("nowhere"), "{said}");
}

#[test]
fn a_command_runs_as_a_user_with_its_groups_and_without_capabilities() {
    let lab = Lab::new();
    let script =
        "id -u; id -g; id -G; echo $USER $LOGNAME $HOME; grep CapEff /proc/self/status; echo $KEPT";
    let account = User::from_name(NOBODY).expect("it can be read").expect("every system has it");
    let (uid, gid) = (account.uid.to_string(), account.gid);
    let home = account.dir.display();
    let name = CString::new(NOBODY).expect("text");
    let groups = getgrouplist(&name, gid).expect("it can be read");
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    let groups = groups.join(" ");
    for user in [NOBODY, &uid] {
        let mut command = command(&lab, &format!("--user {user} --loss 0%"), script);
        let output = command.env("KEPT", "kept").output().expect("it can be run");
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(
            out,
            format!(
                "{uid}\n{gid}\n{groups}\n{NOBODY} {NOBODY} {home}\nCapEff:\t0000000000000000\nkept\n"
            ),
            "{said}"
        );
        assert!(said.contains("the command runs as nobody"), "{said}");
    }
    let to = lab.left.address(Family::V4);
    let traffic = format!("exec 3<>/dev/tcp/{to}/9");
    let output = run(&lab, &format!("--user {NOBODY} --loss 0% --remote-port 9"), &traffic);
    let said = text(&output.stderr);
    assert!(said.contains("2 packets matched"), "{said}");
    for (user, words) in [("no-such-user", "no user no-such-user"), ("", "no user")] {
        let output = lab
            .right
            .command(INJECTOR, None)
            .args(["run", "--loss", "0%", "--user", user, "--", "true"])
            .output()
            .expect("it can be run");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn under_sudo_it_is_said_that_the_command_runs_as_root() {
    let lab = Lab::new();
    let under_sudo = |options: &str| {
        let mut command = command(&lab, options, "id -un");
        command.env("SUDO_USER", NOBODY).output().expect("it can be run")
    };
    let hint = format!("the command runs as root (--user {NOBODY} runs it as {NOBODY})");
    let output = under_sudo("--loss 0%");
    assert_eq!(text(&output.stdout), "root\n");
    assert!(text(&output.stderr).contains(&hint), "{output:?}");
    let output = under_sudo(&format!("--loss 0% --user {NOBODY}"));
    assert_eq!(text(&output.stdout), format!("{NOBODY}\n"));
    assert!(!text(&output.stderr).contains("as root"), "{output:?}");
    let output = run(&lab, "--loss 0%", "id -un");
    assert_eq!(text(&output.stdout), "root\n");
    assert!(!text(&output.stderr).contains("as root"), "{output:?}");
}

#[test]
fn a_command_runs_in_a_directory_and_by_a_path_from_there() {
    let lab = Lab::new();
    let folder = scratch_file();
    fs::create_dir(&folder).expect("it can be made");
    let path = folder.display().to_string();
    let output = run(&lab, &format!("--cwd {path} --loss 0%"), "pwd");
    assert_eq!(text(&output.stdout), format!("{path}\n"), "{output:?}");
    let tool = folder.join("tool");
    fs::write(&tool, "#!/bin/sh\nexit 7\n").expect("it can be written");
    fs::set_permissions(&tool, Permissions::from_mode(0o755)).expect("it is there");
    let mut command = lab.right.command(INJECTOR, None);
    command.args(["run", "--cwd", &path, "--loss", "0%", "--", "./tool"]);
    assert_eq!(command.status().expect("it can be run").code(), Some(7));
    for (cwd, words) in [("/no/such/folder", "No such file"), ("/etc/passwd", "ot a directory")] {
        let output = run(&lab, &format!("--cwd {cwd} --loss 0%"), "true");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("--cwd") && said.contains(cwd) && said.contains(words), "{said}");
    }
    // The user has no access to it.
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).expect("it is there");
    let output = run(&lab, &format!("--cwd {path} --user {NOBODY} --loss 0%"), "true");
    assert_eq!(output.status.code(), Some(126), "{output:?}");
    fs::remove_dir_all(&folder).expect("it is there");
}

//! Hostile inputs and environments that try to make injector do harm.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use testbed::{
    Family, Host, INJECTOR, Lab, TIMEOUT, TestCgroup, agent::Agent, number, scratch_file,
    wait_until,
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs bash in the namespace of a host.
fn bash(host: &Host, script: &str) -> Output {
    let mut command = host.command("bash", None);
    command.args(["-c", script]).stdin(Stdio::null()).output().expect("bash is installed")
}

/// A forged journal with an action to remove a directory.
struct Forged {
    journal: PathBuf,
    /// Its temporary path, which is no slot's name.
    draft: PathBuf,
    folder: PathBuf,
}

impl Forged {
    fn new() -> Self {
        let folder = scratch_file();
        fs::create_dir(&folder).expect("it can be made");
        let journals = Path::new("/run/injector");
        fs::create_dir_all(journals).expect("it can be made");
        let (journal, draft) = (journals.join("15.journal"), journals.join("15.forged"));
        Self { journal, draft, folder }
    }

    fn write(&self, path: &Path, owner: u32, mode: u32) {
        let action = json!({"kind": "make-cgroup", "path": self.folder, "home": "/"});
        let line = json!({"do": {"id": 0, "action": action}});
        fs::write(path, format!("{line}\n")).expect("it can be written");
        chown(path, Some(owner), Some(owner)).expect("tests are root's");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is there");
    }

    /// Writes it under another name and renames it when complete: injectors of other tests would undo a
    /// valid journal at once.
    fn put(&self, make: impl FnOnce(&Path)) {
        make(&self.draft);
        fs::rename(&self.draft, &self.journal).expect("it is there");
    }

    fn cleanup() -> Output {
        Command::new(INJECTOR).arg("cleanup").output().expect("it can be run")
    }

    #[track_caller]
    fn assert_refused(&self) {
        let output = Self::cleanup();
        assert!(!output.status.success(), "{output:?}");
        assert!(text(&output.stderr).contains("15.journal"), "{output:?}");
        assert!(self.folder.exists());
    }
}

impl Drop for Forged {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.draft);
        let _ = fs::remove_file(&self.journal);
        let _ = fs::remove_dir(&self.folder);
    }
}

#[test]
fn journals_of_others_are_not_carried_out() {
    let forged = Forged::new();
    forged.put(|path| forged.write(path, 1000, 0o600));
    forged.assert_refused();
    forged.put(|path| forged.write(path, 0, 0o622));
    forged.assert_refused();
    // At another place, where it may belong to something else.
    let elsewhere = scratch_file();
    forged.write(&elsewhere, 0, 0o600);
    forged.put(|path| symlink(&elsewhere, path).expect("it can be made"));
    forged.assert_refused();
    let mode = nix::sys::stat::Mode::S_IRWXU;
    forged.put(|path| nix::unistd::mkfifo(path, mode).expect("it can be made"));
    forged.assert_refused();
    fs::remove_file(elsewhere).expect("it is there");
    // As injector's own, it is undone.
    forged.put(|path| forged.write(path, 0, 0o600));
    let output = Forged::cleanup();
    assert!(output.status.success(), "{output:?}");
    // Unless another injector that has just started is already undoing it.
    wait_until(TIMEOUT, "it is undone", || !forged.folder.exists());
}

#[test]
fn a_fault_does_not_fall_on_what_was_there_before_by_that_name() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let cgroup = TestCgroup::new();
    let path = cgroup.path.clone();
    let request = |rule: Value| json!({"target": {"cgroup": path, "interface": ["veth0"]}, "rules": [rule], "for": "1m"});
    agent.create(&request(json!({"loss": "100%", "protocol": "tcp", "direction": "egress"})));
    // Another file at the same path.
    fs::remove_dir(&path).expect("nobody is in it");
    let ids = fs::create_dir(&path);
    ids.expect("it can be made");
    let rule = json!({"loss": "100%", "protocol": "icmp", "direction": "egress"});
    let fault = agent.create(&request(rule));
    assert_eq!(lab.left.ping(Some(&cgroup), lab.right.address(Family::V4), 3), 0);
    let ended = agent.delete(fault["name"].as_str().expect("a name"));
    assert_eq!(number(&ended, "dropped"), 3, "{ended}");
}

#[test]
fn strangers_on_the_network_keep_nobody_out() {
    let lab = Lab::new();
    let tokens = scratch_file();
    fs::write(&tokens, "alice:0123456789abcdef\n").expect("it can be written");
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let options = ["--listen", "127.0.0.1:0", "--max-connections", "4", "--token-file"];
    let options = [&options[..], &[tokens.to_str().expect("text")]].concat();
    let agent = Agent::with(&lab.left, scratch_file(), &options);
    let port = agent.serves[1].rsplit_once(':').expect("a port").1.to_owned();
    // Their requests are answered, and the connections closed despite keep-alive.
    for (path, status) in [("/healthz", 200), ("/v1/faults", 401), ("/nothing", 401)] {
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3; \
             timeout 10 cat <&3"
        );
        let output = bash(&lab.left, &script);
        let answer = text(&output.stdout);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(output.status.success(), "it is still open: {answer}");
    }
    // More than the maximum number.
    let script = format!(
        "for n in {{10..20}}; do eval \"exec $n<>/dev/tcp/127.0.0.1/{port}\"; done; echo ready; exec sleep 60"
    );
    let mut command = lab.left.command("bash", None);
    let mut holder = command.args(["-c", &script]).stdout(Stdio::piped()).spawn().expect("bash");
    let mut line = String::new();
    let stdout = holder.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("text");
    assert_eq!(line, "ready\n");
    assert!(agent.active().is_empty());
    holder.kill().expect("it runs");
    holder.wait().expect("it is ours");
    fs::remove_file(tokens).expect("it is there");
    let audit = fs::read_to_string(&agent.audit).expect("it is written");
    assert_eq!(audit.matches("\"status\":401").count(), 2, "{audit}");
}

#[test]
fn what_is_written_down_is_short_and_harmless() {
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    let evil = "\n{\"audit\":\"request\"}\u{1b}[2J\u{9b}2J\u{202e}".repeat(20_000);
    let (status, _) = agent.ask(
        "POST",
        "/v1/faults",
        Some(&json!({
            "name": evil, "target": {"netns": evil, "interface": vec!["x"; 10_000]},
            "rules": [{"loss": evil, "name": evil}], "for": "1s",
        })),
    );
    assert_eq!(status, 422);
    let (status, _) = agent.raw("DELETE", "/v1/faults/a%0ab%1b%5b2J%c2%9b2J%e2%80%ae", "", b"");
    assert_eq!(status, 404);
    let (status, _) = agent.raw(&"X".repeat(20_000), "/v1/faults", "", b"");
    assert_eq!(status, 405);
    let audit = fs::read(&agent.audit).expect("it is written");
    assert!(audit.len() < 100_000, "{}", audit.len());
    assert!(audit.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n')));
    let lines = agent.audited();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[2].to_string().len() < 2000, "{}", lines[2]);
    assert_eq!(lines[1]["fault"], "a\nb\u{1b}[2J\u{9b}2J\u{202e}");
    let (_, metrics) = agent.raw("GET", "/metrics", "", b"");
    assert!(!metrics.contains('\u{1b}') && metrics.is_ascii());
}

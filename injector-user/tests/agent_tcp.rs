//! The agent over TCP: authentication and authorization.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Output, Stdio},
};

use serde_json::Value;
use testbed::{Host, INJECTOR, Lab, agent::Agent, scratch_file};

/// A certificate for localhost with its key, and a token file.
struct Secrets {
    folder: PathBuf,
}

impl Secrets {
    fn new() -> Self {
        let folder = scratch_file();
        fs::create_dir(&folder).expect("it can be made");
        let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let certificate = certificate.expect("a certificate");
        let secrets = Self { folder };
        fs::write(secrets.path("cert"), certificate.cert.pem()).expect("written");
        fs::write(secrets.path("key"), certificate.signing_key.serialize_pem()).expect("written");
        secrets.write("tokens", "# Who may ask.\nalice:0123456789abcdef\n\nbob:fedcba9876543210\n");
        secrets.write("alice", "0123456789abcdef\n");
        secrets.write("eve", "0123456789abcdeX\n");
        secrets
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.folder.join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Fails unless the agent refuses to start.
fn refused(host: &Host, options: &[&str]) -> String {
    let socket = scratch_file();
    let output = Agent::command(host, &socket, options).stdin(Stdio::null()).output();
    let output = output.expect("it can be run");
    assert!(!output.status.success(), "{options:?}");
    assert!(!socket.exists());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn list(host: &Host, options: &[&str]) -> Output {
    let mut command = host.command(INJECTOR, None);
    command.args(["list", "--output", "json"]).args(options).output().expect("it can be run")
}

#[test]
fn it_does_not_listen_where_anybody_could_ask() {
    let lab = Lab::new();
    let secrets = Secrets::new();
    let (cert, key, tokens) = (secrets.path("cert"), secrets.path("key"), secrets.path("tokens"));
    let tls = ["--tls-cert", &cert, "--tls-key", &key];
    for options in [&[][..], &tls, &["--token-file", &tokens]] {
        for address in ["0.0.0.0:0", "[::]:0", "10.9.0.10:0"] {
            let errors = refused(&lab.left, &[&["--listen", address], options].concat());
            assert!(errors.contains("is reachable from other hosts"), "{errors}");
        }
    }
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o640)).expect("it is ours");
    let errors = refused(&lab.left, &["--listen", "127.0.0.1:0", "--token-file", &tokens]);
    assert!(errors.contains("chmod 600"), "{errors}");
    secrets.write("tokens", "alice:short\n");
    let errors = refused(&lab.left, &["--listen", "127.0.0.1:0", "--token-file", &tokens]);
    assert!(errors.contains("line 1") && !errors.contains("short\n"), "{errors}");
    let both = [&tls[..], &["--listen", "127.0.0.1:0"]].concat();
    fs::write(&cert, "nothing").expect("written");
    let errors = refused(&lab.left, &both);
    assert!(errors.contains("certificate"), "{errors}");
}

#[test]
fn tls_and_a_token_let_in_and_nothing_else_does() {
    let lab = Lab::new();
    let secrets = Secrets::new();
    let (cert, key, tokens) = (secrets.path("cert"), secrets.path("key"), secrets.path("tokens"));
    let agent = Agent::with(
        &lab.left,
        scratch_file(),
        &["--listen", "0.0.0.0:0", "--tls-cert", &cert, "--tls-key", &key, "--token-file", &tokens],
    );
    let port = agent.serves[1].rsplit_once(':').expect("a port").1.to_owned();
    let url = format!("https://localhost:{port}");
    let ask = |more: &[&str]| list(&lab.left, &[&["--agent", &url], more].concat());
    let (alice, eve) = (secrets.path("alice"), secrets.path("eve"));
    let with_ca = ["--agent-ca", &cert];
    let good = ask(&[&with_ca[..], &["--agent-token", &alice]].concat());
    assert!(good.status.success(), "{good:?}");
    for (options, reason) in [
        (&[][..], "--agent-ca"),
        (&with_ca, "give a token"),
        (&[&with_ca[..], &["--agent-token", &eve]].concat(), "give a token"),
    ] {
        let bad = ask(options);
        let errors = String::from_utf8_lossy(&bad.stderr);
        assert!(!bad.status.success() && errors.contains(reason), "{errors}");
    }
    // A foreign certificate.
    let other = Secrets::new();
    let bad = ask(&["--agent-ca", &other.path("cert"), "--agent-token", &alice]);
    assert!(!bad.status.success());
    let line = format!(
        "--agent {url} --agent-ca {cert} --agent-token {alice} --netns {} --loss 1%",
        lab.left.netns
    );
    let injector = testbed::Injector::start(&lab.left, &line);
    let owner = agent.active()[0]["owner"].as_str().expect("text").to_owned();
    assert!(owner.starts_with("alice at 127.0.0.1:"), "{owner}");
    injector.stop();
    let lines = agent.audited();
    let count = |status: u16, token: &Value| {
        lines.iter().filter(|line| line["status"] == status && line["token"] == *token).count()
    };
    assert_eq!((count(201, &"alice".into()), count(401, &Value::Null)), (1, 2), "{lines:?}");
    let audit = fs::read_to_string(&agent.audit).expect("it is written");
    assert!(!audit.contains("0123456789abcde"), "{audit}");
}

#[test]
fn the_loopback_needs_no_token_but_says_so() {
    let lab = Lab::new();
    let agent = Agent::with(&lab.left, scratch_file(), &["--listen", "127.0.0.1:0"]);
    let address = agent.serves[1].rsplit_once("http://").expect("an address").1.to_owned();
    let listed = list(&lab.left, &["--agent", &format!("http://{address}")]);
    assert!(listed.status.success(), "{listed:?}");
    let curl = |host: &str| {
        let request =
            format!("GET /v1/faults HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n");
        let port = address.rsplit_once(':').expect("a port").1;
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf '{request}' >&3; cat <&3");
        let mut command = lab.left.command("bash", None);
        let output = command.args(["-c", &script]).output().expect("bash is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(curl(&address).starts_with("HTTP/1.1 200"));
    // A name that a web page has bound to the loopback (DNS rebinding).
    assert!(curl("evil.example").starts_with("HTTP/1.1 403"));
}

#[test]
fn there_are_no_more_connections_than_allowed() {
    let lab = Lab::new();
    let agent = Agent::with(&lab.left, scratch_file(), &["--max-connections", "4"]);
    let mut watchers: Vec<_> = (0..2).map(|_| agent.watch("/v1/events")).collect();
    agent.create(&serde_json::json!({
        "target": {"netns": lab.left.netns}, "rules": [{"loss": "1%"}], "for": "1m",
    }));
    for watcher in &mut watchers {
        watcher.wait_for("created");
    }
    let (status, text) = agent.raw("GET", "/v1/events", "", b"");
    assert_eq!(status, 429, "{text}");
    let idle: Vec<_> = (0..2)
        .map(|_| std::os::unix::net::UnixStream::connect(&agent.socket).expect("it listens"))
        .collect();
    // Connections are accepted in order of arrival.
    let (status, text) = agent.raw("GET", "/v1/faults", "", b"");
    assert_eq!(status, 503, "{text}");
    let problem: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(problem["error"], "busy");
    drop(idle);
}

//! A Kubernetes cluster without nodes: etcd and kube-apiserver on free ports of the loopback. The test
//! acts as the kubelet.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    cell::RefCell,
    fs,
    net::{IpAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use axum::http::Request;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use testbed::{
    INJECTOR,
    agent::Agent,
    container::{self, Container, Machine},
    scratch_file, skip,
};

/// The directory into which scripts/setup-kubernetes installs the server.
const SERVER: &str = "/var/cache/injector/kubernetes/kube-apiserver";

/// The timeout of all waits.
pub const TIMEOUT: Duration = Duration::from_mins(2);

/// The token of the test, with all permissions.
const ADMIN: &str = "0123456789abcdef-admin";

/// The token of agents.
const AGENT: &str = "0123456789abcdef-agent";

/// The lines that an agent reports at the start: its socket, engines, cluster and permissions.
const LINES: usize = 4;

/// A running API server.
pub struct Cluster {
    folder: PathBuf,
    etcd: Child,
    server: RefCell<Child>,
    port: u16,
    store: String,
    runtime: Runtime,
    client: Client,
}

impl Cluster {
    /// Starts a server with the resource's definition and the agents' permissions. `None` if no server
    /// is installed, which is reported as a skip.
    pub fn start() -> Option<Self> {
        if !Path::new(SERVER).exists() {
            skip(&format!("{SERVER} is missing: scripts/setup-kubernetes makes it"));
            return None;
        }
        let folder = scratch_file();
        fs::create_dir_all(&folder).expect("it can be made");
        secrets(&folder);
        let [store, peers, port] = free_ports();
        let (store, peers) = (local("http", store), local("http", peers));
        let etcd = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.join("store"))
            .args(["--listen-client-urls", &store, "--advertise-client-urls", &store])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}"), "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("etcd.log")).expect("a file"))
            .spawn()
            .expect("etcd is installed");
        let server = run_server(&folder, &store, port);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let config = Kubeconfig::read_from(kubeconfig(&folder, port, "admin", ADMIN));
        let config = config.expect("a kubeconfig");
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(config, &options).await;
            Client::try_from(config.expect("a configuration")).expect("a client")
        });
        let server = RefCell::new(server);
        let cluster = Self { folder, etcd, server, port, store, runtime, client };
        cluster.wait();
        for name in ["test", "injector"] {
            cluster.add_namespace(name);
        }
        cluster.grant();
        cluster.define();
        Some(cluster)
    }

    /// Creates the definition of the resource, and waits until it is served.
    pub fn define(&self) {
        let definition = injector_user::kubernetes::crd::definition();
        self.make("", &serde_json::to_value(definition).expect("JSON"));
        let end = Instant::now() + TIMEOUT;
        while self.ask("GET", &faults("test", ""), None).is_err() {
            assert!(Instant::now() < end, "the definition is not served");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the server is ready.
    pub fn wait(&self) {
        let end = Instant::now() + TIMEOUT;
        let is_ready = || self.ask("GET", "/api/v1/namespaces/default", None).is_ok();
        while !is_ready() {
            let log = || fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
            let ended = self.server.borrow_mut().try_wait().expect("it was started");
            assert!(ended.is_none() && Instant::now() < end, "{ended:?}: {}", log());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills the server.
    pub fn kill_server(&self) {
        let mut server = self.server.borrow_mut();
        server.kill().expect("it is there");
        server.wait().expect("it ends");
    }

    /// Stops or resumes the server.
    pub fn signal_server(&self, signal: Signal) {
        let pid = Pid::from_raw(self.server.borrow().id().cast_signed());
        kill(pid, signal).expect("it is there");
    }

    /// Restarts the server with its data.
    pub fn start_server(&self) {
        *self.server.borrow_mut() = run_server(&self.folder, &self.store, self.port);
        self.wait();
    }

    /// Grants agents exactly the permissions of the manifests, where they lack them.
    pub fn grant(&self) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/kubernetes/rbac.yaml");
        let text = fs::read_to_string(path).expect("it is there");
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
        let group = "rbac.authorization.k8s.io";
        for mut object in objects {
            let kind = object["kind"].as_str().expect("text").to_lowercase();
            let place = match &*kind {
                "serviceaccount" => continue,
                "role" | "rolebinding" => "namespaces/injector/",
                _ => "",
            };
            if kind.ends_with("binding") {
                let user = json!({"apiGroup": group, "kind": "User", "name": "injector"});
                object["subjects"] = json!([user]);
            }
            let path = format!("/apis/{group}/v1/{place}{kind}s");
            match self.ask("POST", &path, Some(&object)) {
                Err(error) if !error.contains("already exists") => panic!("{path}: {error}"),
                _ => {}
            }
        }
    }

    /// Sends a request. An error is the server's message.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let kind =
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("Content-Type", kind);
        let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
        let request = request.body(body).expect("a request");
        let answer = async {
            let answer = self.client.request::<Value>(request);
            tokio::time::timeout(Duration::from_secs(20), answer).await
        };
        match self.runtime.block_on(answer) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(kube::Error::Api(status))) => Err(status.message),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }

    /// An answer that is plain text.
    pub fn text(&self, path: &str) -> String {
        let request = Request::get(path).body(Vec::new()).expect("a request");
        self.runtime.block_on(self.client.request_text(request)).expect("an answer")
    }

    /// Creates an object in a namespace or cluster-wide.
    pub fn make(&self, namespace: &str, object: &Value) -> Value {
        let path = match object["kind"].as_str() {
            Some("CustomResourceDefinition") => {
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions".into()
            }
            Some("Namespace") => "/api/v1/namespaces".into(),
            Some("Pod") => format!("/api/v1/namespaces/{namespace}/pods"),
            _ => faults(namespace, ""),
        };
        self.ask("POST", &path, Some(object)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Creates a fault in the namespace `test`.
    pub fn inject(&self, name: &str, spec: &Value) -> Value {
        self.make("test", &fault(name, spec))
    }

    /// A fault of the namespace `test`, if it exists.
    pub fn fault(&self, name: &str) -> Option<Value> {
        self.ask("GET", &faults("test", name), None).ok()
    }

    /// Waits until a fault satisfies a condition.
    #[track_caller]
    pub fn wait_for(&self, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + TIMEOUT;
        loop {
            let fault = self.fault(name).unwrap_or_default();
            if is_so(&fault) {
                return fault;
            }
            assert!(Instant::now() < end, "{fault:#}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a fault is gone.
    #[track_caller]
    pub fn wait_until_gone(&self, name: &str) {
        let end = Instant::now() + TIMEOUT;
        while let Some(fault) = self.fault(name) {
            assert!(Instant::now() < end, "{fault:#}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Creates a pod on a node, in the namespace `test`. Returns its UID.
    pub fn add_pod(&self, name: &str, node: &str, labels: &Value) -> String {
        self.add_pod_to("test", node, &json!({"name": name, "labels": labels}))
    }

    /// Creates a pod on a node, in a namespace, with this metadata. Returns its UID.
    pub fn add_pod_to(&self, namespace: &str, node: &str, metadata: &Value) -> String {
        let pod = self.make(
            namespace,
            &json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                "spec": {"nodeName": node, "containers": [{"name": "app", "image": "busybox"}]},
            }),
        );
        pod["metadata"]["uid"].as_str().expect("an ID").into()
    }

    /// Creates a namespace.
    pub fn add_namespace(&self, name: &str) {
        let metadata = json!({"name": name, "labels": {"name": name}});
        self.make("", &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }

    /// The events about an object of the namespace `test`: type, reason, note.
    pub fn events_about(&self, kind: &str, name: &str) -> Vec<(String, String, String)> {
        let path = "/apis/events.k8s.io/v1/namespaces/test/events";
        let events = self.ask("GET", path, None).expect("a list");
        let events = events["items"].as_array().expect("a list").clone();
        let is_about = |event: &&Value| {
            event["regarding"]["kind"] == kind && event["regarding"]["name"] == name
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let facts =
            |event: &Value| (text(&event["type"]), text(&event["reason"]), text(&event["note"]));
        events.iter().filter(is_about).map(facts).collect()
    }

    /// Sets the status of a pod as a kubelet does once its container runs.
    pub fn tell_runs(&self, name: &str, id: &str) {
        let path = format!("/api/v1/namespaces/test/pods/{name}/status");
        let status = json!({"status": {"phase": "Running", "containerStatuses": [{
            "name": "app", "containerID": format!("containerd://{id}"), "ready": true, "restartCount": 0,
            "image": "busybox", "imageID": "", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }]}});
        self.ask("PATCH", &path, Some(&status)).expect("the pod is there");
    }

    /// Starts an agent of a node in this namespace, that of the containers.
    #[must_use]
    pub fn agent(&self, node: &str, machine: &Machine, options: &[&str]) -> Agent {
        self.agent_after(":", node, machine, options)
    }

    /// Starts an agent in a mount namespace that a shell command has prepared.
    #[must_use]
    pub fn agent_after(
        &self,
        before: &str,
        node: &str,
        machine: &Machine,
        options: &[&str],
    ) -> Agent {
        let socket = scratch_file();
        let mut command = Command::new("unshare");
        let line = format!("{before} && exec \"$@\"");
        command
            .args(["--mount", "sh", "-c", &line, "-", INJECTOR])
            .arg("agent")
            .arg("--socket")
            .arg(&socket)
            .args(["--kubernetes", "--node", node, "--lease-namespace", "injector"])
            .args(options)
            .env("INJECTOR_HOST_ROOT", &machine.root)
            .env("KUBECONFIG", kubeconfig(&self.folder, self.port, "agent", AGENT));
        Agent::spawned(command, socket, LINES)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in [self.server.get_mut(), &mut self.etcd] {
            // It may have been killed already.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Starts a container of a pod with this UID as a kubelet does, in the namespace of `host`.
pub fn start<'a>(
    machine: &'a Machine,
    host: &testbed::Host,
    pod: &str,
    uid: &str,
) -> Container<'a> {
    let folder = format!("kubepods/burstable/pod{uid}");
    machine.start(host, &folder, &Machine::id("abc"), pod, "app")
}

/// Waits until a container's pings are answered or lost.
#[track_caller]
pub fn wait_until(container: &Container, answered: bool, to: IpAddr) {
    let end = Instant::now() + container::TIMEOUT;
    while container.pings(to) != answered {
        assert!(Instant::now() < end, "pings are not as they are to be: {answered}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The path of a fault.
#[must_use]
pub fn faults(namespace: &str, name: &str) -> String {
    let path = format!("/apis/injector.dev/v1alpha1/namespaces/{namespace}/faultinjections");
    if name.is_empty() { path } else { format!("{path}/{name}") }
}

/// A `FaultInjection` resource.
#[must_use]
pub fn fault(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "injector.dev/v1alpha1", "kind": "FaultInjection", "metadata": {"name": name}, "spec": spec,
    })
}

fn local(scheme: &str, port: u16) -> String {
    format!("{scheme}://127.0.0.1:{port}")
}

/// Currently free ports.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

fn secrets(folder: &Path) {
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let write = |name: &str, text: String| fs::write(folder.join(name), text).expect("a file");
    write("tls.crt", certificate.cert.pem());
    write("tls.key", certificate.signing_key.serialize_pem());
    let tokens = format!("{ADMIN},admin,1,system:masters\n{AGENT},injector,2\n");
    write("tokens.csv", tokens);
}

fn run_server(folder: &Path, store: &str, port: u16) -> Child {
    let option = |name: &str, file: &str| format!("--{name}={}", folder.join(file).display());
    Command::new(SERVER)
        .args([format!("--etcd-servers={store}"), format!("--secure-port={port}")])
        .args([option("cert-dir", "run"), option("tls-cert-file", "tls.crt")])
        .args([option("tls-private-key-file", "tls.key"), option("token-auth-file", "tokens.csv")])
        .args([option("service-account-key-file", "tls.crt")])
        .args([option("service-account-signing-key-file", "tls.key")])
        .args([
            "--bind-address=127.0.0.1",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.0.0.0/24",
        ])
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.join("server.log")).expect("a file"))
        .spawn()
        .expect("it can be run")
}

fn kubeconfig(folder: &Path, port: u16, user: &str, token: &str) -> PathBuf {
    let path = folder.join(format!("{user}.kubeconfig"));
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": local("https", port), "certificate-authority": folder.join("tls.crt"),
        }}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
    });
    fs::write(&path, config.to_string()).expect("a file");
    path
}

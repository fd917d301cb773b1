//! The agent in a container as in packaging/kubernetes, run by runc.
//!
//! Applies the manifest as a kubelet and containerd do: capabilities, seccomp, mounts and namespaces.
//! There is no API server.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    INJECTOR,
    agent::Agent,
    container::{Machine, TIMEOUT},
    hierarchy, wait_until,
};

/// The manifest.
const MANIFEST: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/kubernetes/daemonset.yaml"));

/// The image.
const IMAGE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/container/Containerfile"));

/// The seccomp profile `RuntimeDefault` of containerd 1.6 for the manifest's capabilities
/// (`ctr container create --seccomp`).
const SECCOMP: &str = include_str!("seccomp.json");

/// The directories of shared libraries, for an injector that is not linked statically.
const LIBRARIES: [&str; 2] = ["/lib/x86_64-linux-gnu", "/lib64"];

/// The manifest of the agent.
#[derive(Clone, Debug)]
pub struct DaemonSet {
    pod: Value,
}

impl DaemonSet {
    /// The unchanged manifest.
    #[must_use]
    pub fn read() -> Self {
        let manifest: Value = serde_saphyr::from_str(MANIFEST).expect("YAML");
        Self { pod: manifest["spec"]["template"]["spec"].clone() }
    }

    /// The capabilities that it requests.
    #[must_use]
    pub fn capabilities(&self) -> Vec<String> {
        let security = &self.container()["securityContext"]["capabilities"];
        assert_eq!(security["drop"], json!(["ALL"]));
        strings(&security["add"])
    }

    /// The manifest without one of the capabilities.
    #[must_use]
    pub fn without(mut self, capability: &str) -> Self {
        let added = self.pod.pointer_mut("/containers/0/securityContext/capabilities/add");
        let added = added.and_then(Value::as_array_mut).expect("a list");
        added.retain(|added| added != capability);
        self
    }

    /// The command of all of its probes.
    #[must_use]
    pub fn probe(&self) -> Vec<String> {
        let command = |name: &str| strings(&self.container()[name]["exec"]["command"]);
        let probe = command("livenessProbe");
        assert_eq!(command("readinessProbe"), probe);
        assert_eq!(command("startupProbe"), probe);
        probe
    }

    fn container(&self) -> &Value {
        &self.pod["containers"][0]
    }

    /// Starts it and waits until it serves.
    #[must_use]
    pub fn start<'a>(&self, machine: &'a Machine) -> Daemon<'a> {
        let id = Machine::id("da");
        let folder = machine.root.join("bundles").join(&id);
        for path in ["rootfs/usr/bin", "rootfs/proc"] {
            fs::create_dir_all(folder.join(path)).expect("it can be made");
        }
        fs::copy(INJECTOR, folder.join("rootfs/usr/bin/injector")).expect("it was built");
        let config = self.configuration(machine, &id);
        fs::write(folder.join("config.json"), config.to_string()).expect("a file");
        let mut command = machine.runc();
        command.args(["run", "--no-pivot", "--bundle"]).arg(&folder).arg(&id);
        // Signals to the test must not stop runc: dropping this value does.
        command.process_group(0).stdout(Stdio::piped());
        let mut child = command.spawn().expect("runc is installed");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let serves: Vec<String> = lines.by_ref().take(1).map_while(Result::ok).collect();
        let socket = machine.root.join("run/injector/agent.sock");
        let audit = folder.join("audit");
        Daemon { agent: Agent { child, socket, audit, serves }, machine, id }
    }

    /// The configuration of the Open Container Initiative.
    fn configuration(&self, machine: &Machine, id: &str) -> Value {
        let container = self.container();
        let security = &container["securityContext"];
        let capabilities: Vec<String> =
            self.capabilities().iter().map(|name| format!("CAP_{name}")).collect();
        let words = |instruction: &str| -> Vec<String> {
            let line = IMAGE.lines().find_map(|line| line.strip_prefix(instruction));
            serde_json::from_str(line.expect("it is there").trim()).expect("a list")
        };
        let mut args = words("ENTRYPOINT");
        // There is no API server.
        args.extend(strings(&container["args"]).into_iter().filter(|arg| arg != "--kubernetes"));
        let env: Vec<&str> = IMAGE.lines().filter_map(|line| line.strip_prefix("ENV ")).collect();
        assert_eq!(self.pod["hostNetwork"], false);
        assert_eq!(self.pod["hostPID"], true);
        assert_eq!(self.pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(security["privileged"], false);
        let seccomp: Value = serde_json::from_str(SECCOMP).expect("JSON");
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {
                    "uid": self.pod["securityContext"]["runAsUser"],
                    "gid": self.pod["securityContext"]["runAsGroup"]
                },
                "args": args,
                "env": env,
                "cwd": "/",
                "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities
                },
            },
            "root": {"path": "rootfs", "readonly": security["readOnlyRootFilesystem"]},
            "mounts": self.mounts(machine),
            "linux": {
                "cgroupsPath": machine.cgroup(&format!("kubepods/podagent/{id}")),
                // With cgroup v2, unprivileged containers have their own cgroup namespace.
                "namespaces": [
                    {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"},
                    {"type": "cgroup"},
                ],
                "seccomp": seccomp,
                "maskedPaths": [
                    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys",
                    "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
                    "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
                ],
                "readonlyPaths": [
                    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
                ],
            },
        })
    }

    fn mounts(&self, machine: &Machine) -> Vec<Value> {
        let none = ["nosuid", "noexec", "nodev"];
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc", "options": none}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
            json!({
                "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"]
            }),
        ];
        for library in LIBRARIES.into_iter().filter(|path| Path::new(path).exists()) {
            mounts.push(json!({
                "destination": library, "type": "bind", "source": library,
                "options": ["rbind", "ro"]
            }));
        }
        for mount in self.container()["volumeMounts"].as_array().expect("a list") {
            let volumes = self.pod["volumes"].as_array().expect("a list");
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
            let host = &volume.expect("it has one")["hostPath"];
            let path = host["path"].as_str().expect("a path");
            // Directories of runtimes and injector are the test's own.
            let source = path
                .strip_prefix("/run/")
                .map_or_else(|| PathBuf::from(path), |rest| machine.root.join("run").join(rest));
            if host["type"] == "DirectoryOrCreate" {
                fs::create_dir_all(&source).expect("it can be made");
            }
            let propagation = match mount["mountPropagation"].as_str() {
                Some("HostToContainer") => "rslave",
                None => "rprivate",
                other => panic!("{other:?}"),
            };
            let access = if mount["readOnly"] == true { "ro" } else { "rw" };
            mounts.push(json!({
                "destination": mount["mountPath"], "type": "bind", "source": source,
                "options": ["rbind", propagation, access]
            }));
        }
        mounts
    }
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list");
    list.iter().map(|text| text.as_str().expect("text").to_owned()).collect()
}

/// The agent, running in its container.
#[derive(Debug)]
pub struct Daemon<'a> {
    /// The agent, for requests. Its child is runc.
    pub agent: Agent,
    machine: &'a Machine,
    id: String,
}

impl Daemon<'_> {
    /// The host PID of its first process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let output = self.machine.runc().args(["state", &self.id]).output().expect("it runs");
        let state: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        i32::try_from(state["pid"].as_i64().expect("a number")).expect("it is one")
    }

    /// Runs a program in the container, as probes do.
    #[must_use]
    pub fn exec(&self, words: &[&str]) -> std::process::Output {
        self.machine.runc().args(["exec", &self.id]).args(words).output().expect("it runs")
    }

    /// Whether its processes see the cgroup's directory.
    #[must_use]
    pub fn processes(&self) -> String {
        let cgroup = self.machine.cgroup(&format!("kubepods/podagent/{}", self.id));
        let path = hierarchy().join(cgroup.trim_start_matches('/')).join("cgroup.procs");
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Kills all its processes, as the OOM killer does, and runtimes do when a container's first process
    /// ends.
    pub fn kill(self) {
        let _ = self.machine.runc().args(["kill", "--all", &self.id, "KILL"]).output();
        wait_until(TIMEOUT, "it ends", || self.processes().is_empty());
    }

    /// Ends it as a kubelet does. Returns its exit code.
    #[must_use]
    pub fn stop(mut self) -> Option<i32> {
        self.agent.signal(Signal::SIGTERM);
        self.agent.child.wait().expect("it ends").code()
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let mut delete: Command = self.machine.runc();
        let _ = delete.args(["delete", "--force", &self.id]).output();
    }
}

//! Containers of busybox, run by runc.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Host, hierarchy, scratch_file};

/// The timeout of all waits, also in a virtual machine.
pub const TIMEOUT: Duration = Duration::from_mins(2);

/// The only program in the containers, linked statically.
const BUSYBOX: &str = "/bin/busybox";

/// The program's path on the host.
const HOST_BUSYBOX: &str = "/usr/bin/busybox";

/// Writes the time.
const PROGRAM: &str =
    "while busybox date +%s > /new && busybox mv /new /time; do busybox sleep 0.1; done";

/// Waits for nothing, in one process.
const PAUSE: &str = "busybox mkfifo /never && busybox date +%s > /time && exec 3<>/never && \
                     echo pause > /proc/self/comm && read line <&3";

/// The directories of a machine as runtimes see them, separate from those of the real machine.
#[derive(Debug)]
pub struct Machine {
    /// The directory used as `/`.
    pub root: PathBuf,
    /// The machine's cgroup, without a leading slash.
    name: String,
    /// The user in its containers.
    pub user: u32,
}

impl Machine {
    /// Creates a machine.
    #[must_use]
    pub fn new() -> Self {
        let root = scratch_file();
        fs::create_dir_all(root.join("run/runc")).expect("it can be made");
        let name = root.file_name().expect("a name").to_str().expect("text").to_owned();
        Self { root, name, user: 0 }
    }

    /// A unique container ID with this prefix.
    #[must_use]
    pub fn id(beginning: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("{:0<64}", format!("{beginning}{number:02x}{:x}", std::process::id()))
    }

    /// Starts a container in the namespace of `host` and the cgroup `folder` below the machine's, with the names that
    /// containerd gives to those of Kubernetes.
    #[must_use]
    pub fn start(
        &self,
        host: &Host,
        folder: &str,
        id: &str,
        pod: &str,
        name: &str,
    ) -> Container<'_> {
        self.run(host, folder, id, [pod, name], PROGRAM)
    }

    /// Starts a sandbox, whose only process is called pause.
    #[must_use]
    pub fn start_sandbox(&self, host: &Host, folder: &str, pod: &str) -> Container<'_> {
        self.run(host, folder, &Self::id("5a"), [pod, "POD"], PAUSE)
    }

    fn run(
        &self,
        host: &Host,
        folder: &str,
        id: &str,
        [pod, name]: [&str; 2],
        program: &str,
    ) -> Container<'_> {
        let container = Container {
            machine: self,
            id: id.into(),
            name: format!("test/{pod}/{name}"),
            folder: self.root.join("bundles").join(id),
            cgroup: format!("{}/{folder}", self.name),
        };
        fs::create_dir_all(container.folder.join("rootfs/bin")).expect("it can be made");
        fs::create_dir_all(container.folder.join("rootfs/proc")).expect("it can be made");
        fs::copy(HOST_BUSYBOX, container.folder.join("rootfs/bin/busybox"))
            .expect("busybox-static is installed");
        let annotations = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": name,
            "io.kubernetes.cri.sandbox-name": pod,
            "io.kubernetes.cri.sandbox-namespace": "test",
        });
        let cgroup = format!("/{}/{id}", container.cgroup);
        let config = configuration(host, &cgroup, &annotations, (self.user, program));
        chown(container.folder.join("rootfs"), Some(self.user), None).expect("we are root");
        fs::write(container.folder.join("config.json"), config.to_string()).expect("a file");
        container.run();
        container
    }

    /// The path of a cgroup below the machine's.
    #[must_use]
    pub fn cgroup(&self, folder: &str) -> String {
        format!("/{}/{folder}", self.name)
    }

    /// runc, with the machine's containers.
    #[must_use]
    pub fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.root.join("run/runc")).stdin(Stdio::null());
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
            let mount = Path::new(line.split(' ').nth(4).unwrap_or_default());
            remove_cgroups(&mount.join(&self.name));
        }
        // A failure cannot be handled while panicking.
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Removes a cgroup and its descendants after all processes have been killed.
fn remove_cgroups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroups(&entry.path());
        }
    }
    let end = Instant::now() + Duration::from_secs(2);
    while path.exists() && fs::remove_dir(path).is_err() && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
    }
}

/// A running container, which writes its time to a file ten times a second.
#[derive(Debug)]
pub struct Container<'a> {
    machine: &'a Machine,
    /// Its ID.
    pub id: String,
    /// Its name, behind its pod's.
    name: String,
    folder: PathBuf,
    cgroup: String,
}

impl Container<'_> {
    fn run(&self) {
        let status = self
            .machine
            .runc()
            // pivot_root(2) does not work on an initramfs.
            .args(["run", "--detach", "--no-pivot", "--bundle"])
            .arg(&self.folder)
            .arg(&self.id)
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.folder.join("log")).expect("a file"))
            .status()
            .expect("runc is installed");
        let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        assert!(status.success(), "runc: {}", log());
        let end = Instant::now() + TIMEOUT;
        while self.time().is_none() {
            assert!(Instant::now() < end, "the container does nothing: {}", log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it and removes its cgroup.
    pub fn stop(&self) {
        // Dropping a stopped container stops it again.
        let _ = self.machine.runc().args(["delete", "--force", &self.id]).output();
        let _ = fs::remove_file(self.folder.join("rootfs/time"));
    }

    /// Restarts it in a new cgroup with the same path.
    pub fn restart(&self) {
        self.stop();
        self.run();
    }

    /// Its name in injector's output.
    #[must_use]
    pub fn title(&self) -> String {
        format!("container {} ({})", self.name, &self.id[..12])
    }

    /// Its cgroup.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        hierarchy().join(&self.cgroup).join(&self.id)
    }

    /// Runs a command of busybox in it.
    pub fn exec(&self, line: &str) -> Output {
        let mut command = self.machine.runc();
        // As root, since ping requires it.
        command.args(["exec", "--user", "0", &self.id, BUSYBOX]).args(line.split(' '));
        command.output().expect("runc is installed")
    }

    /// Whether an echo request from it is answered.
    pub fn pings(&self, to: IpAddr) -> bool {
        self.exec(&format!("ping -c 1 -W 1 {to}")).status.success()
    }

    /// The clock offset in seconds of a new program in it.
    pub fn clock_of_new(&self) -> i64 {
        let output = self.exec("date +%s");
        let text = String::from_utf8(output.stdout).expect("text");
        let time: i64 = text.trim().parse().unwrap_or_else(|_| panic!("no time: {text}"));
        time - jiff::Timestamp::now().as_second()
    }

    /// The time that it wrote last.
    #[must_use]
    pub fn time(&self) -> Option<i64> {
        fs::read_to_string(self.folder.join("rootfs/time")).ok()?.trim().parse().ok()
    }

    /// Waits until the clock of its running program is off by `seconds`.
    pub fn wait_for_clock(&self, off: i64) {
        let end = Instant::now() + TIMEOUT;
        let is_off = || {
            let time = self.time()? - jiff::Timestamp::now().as_second();
            Some((time - off).abs() <= 2)
        };
        while is_off() != Some(true) {
            assert!(Instant::now() < end, "not off by {off} s: {:?}", self.time());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The configuration of the Open Container Initiative.
fn configuration(
    host: &Host,
    cgroup: &str,
    annotations: &Value,
    (user, script): (u32, &str),
) -> Value {
    let capabilities = json!(["CAP_NET_RAW"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": user, "gid": 0},
            "args": [BUSYBOX, "sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
        },
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "annotations": annotations,
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "network", "path": format!("/run/netns/{}", host.netns)},
            ],
        },
    })
}

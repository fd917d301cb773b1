//! Syscall failures: only of the target, of the given calls, and of the given files and peers.
//!
//! Where the kernel refuses programs at its hooks, the tests check only that this is reported.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{
    FAMILIES, Family, INJECTOR, Injector, Lab, TestCgroup, number, run_bash, serve, skip,
};

/// The available engines. Others must report why they are not.
fn engines() -> &'static [&'static str] {
    static ENGINES: OnceLock<Vec<&str>> = OnceLock::new();
    let engines = ENGINES
        .get_or_init(|| ["lsm", "fmod-ret"].into_iter().filter(|engine| works(engine)).collect());
    if engines.is_empty() {
        skip("no engine lets system calls fail");
    }
    engines
}

fn works(engine: &str) -> bool {
    let output = Command::new(INJECTOR)
        .args(["run", "--engine", engine, "--errno", "flock=EIO", "--", "true"])
        .output()
        .expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(1), "{said}");
        let is_told = said.contains("does not list bpf") || said.contains("refuses eBPF");
        assert!(is_told, "{said}");
        eprintln!("no engine {engine}: {said}");
    }
    output.status.success()
}

/// A directory on a separate file system, so that paths cross a mount point.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = testbed::scratch_file();
        let path = PathBuf::from("/dev/shm").join(name.file_name().expect("a name"));
        fs::create_dir(&path).expect("/dev/shm is there");
        Self(path)
    }

    /// A file in it.
    fn file(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, "content\n").expect("it can be written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A failure cannot be handled while panicking.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a bash script by `injector run`. Returns the summary, which must exist.
fn run(options: &str, script: &str) -> (Output, Value) {
    let (output, summary) = run_bash(options, script);
    let summary = summary.unwrap_or_else(|| panic!("no report: {output:?}"));
    (output, summary)
}

fn errno(summary: &Value) -> &Value {
    &summary["processes"]["errnos"][0]
}

/// Starts several syscall failures on a cgroup.
fn inject(lab: &Lab, cgroup: &TestCgroup, engine: &str, faults: &str) -> Injector {
    Injector::on(&lab.left, cgroup, &format!("--engine {engine} {faults}"))
}

/// Ends the faults. Returns the number of failed calls of each.
fn failed(injector: Injector) -> Vec<u64> {
    injector.process.signal(Signal::SIGTERM);
    let summary = injector.process.finish();
    let errnos = summary["processes"]["errnos"].as_array();
    errnos.expect("a list").iter().map(|errno| number(errno, "failed")).collect()
}

/// The output of a bash script in a cgroup, with standard error.
fn bash(lab: &Lab, cgroup: &TestCgroup, script: &str) -> String {
    let mut command = lab.left.command("bash", Some(cgroup));
    let output = command.args(["-c", script]).output().expect("bash");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn a_file_cannot_be_opened_by_the_target_and_others_can() {
    for &engine in engines() {
        let (lab, folder) = (Lab::new(), Folder::new());
        let (meant, beside) = (folder.file("meant"), folder.file("beside"));
        let (cgroup, other) = (TestCgroup::new(), TestCgroup::new());
        let below = cgroup.child("below");
        let line = format!("--engine {engine} --errno openat=ENOENT,path={}", meant.display());
        let injector = Injector::on(&lab.left, &cgroup, &line);
        let opens = |cgroup: Option<&TestCgroup>, file: &PathBuf| {
            lab.left.run_in(cgroup, &format!("cat {}", file.display())).0
        };
        assert!(!opens(Some(&cgroup), &meant), "the target opens it");
        assert!(!opens(Some(&below), &meant), "a child of the target opens it");
        assert!(opens(Some(&cgroup), &beside), "the target opens another file");
        assert!(opens(Some(&other), &meant) && opens(None, &meant), "others open it");
        injector.process.signal(Signal::SIGTERM);
        let summary = injector.process.finish();
        assert_eq!(number(errno(&summary), "matched"), 2, "{summary}");
        assert_eq!(number(errno(&summary), "failed"), 2, "{summary}");
        assert!(opens(Some(&cgroup), &meant), "it has ended");
    }
}

#[test]
fn writes_fail_as_often_as_asked_and_reads_of_the_same_file_never() {
    const WRITES: u64 = 1500;
    for &engine in engines() {
        let folder = Folder::new();
        let file = folder.file("file");
        let file = file.display();
        // Each echo is one write(2). Errors of bash go to another file.
        let script = format!(
            "exec 3>>{file}; for ((n = 0; n < {WRITES}; n++)); do echo $n >&3 || echo $n; done 2>/dev/null; \
             exec 3>&-; for n in 1 2 3 4 5 6 7 8 9 10; do read -r line <{file} || exit 9; done"
        );
        let line = format!("--engine {engine} --seed 5 --errno write=ENOSPC,30%,path={file}");
        let (output, summary) = run(&line, &script);
        assert!(output.status.success(), "{output:?}");
        let failed = number(errno(&summary), "failed");
        assert_eq!(number(errno(&summary), "matched"), WRITES, "{summary}");
        let bounds = testbed::binomial(WRITES, 0.3);
        assert!(bounds.contains(&failed), "{failed} of {WRITES}, not within {bounds:?}");
        let seen = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(seen.lines().count() as u64, failed, "{summary}");
        // Successful writes are appended to the file.
        let written = fs::read_to_string(folder.0.join("file"));
        assert_eq!(written.expect("text").lines().count() as u64, 1 + WRITES - failed);
        if engine != engines()[0] {
            continue;
        }
        // The same seed fails the same calls.
        let (again, _) = run(&line, &script);
        assert_eq!(String::from_utf8_lossy(&again.stdout), seen);
    }
}

#[test]
fn connections_to_a_network_are_refused_and_to_others_not() {
    let lab = Lab::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    for &engine in engines() {
        let (cgroup, other) = (TestCgroup::new(), TestCgroup::new());
        let [v4, v6] = FAMILIES.map(|family| lab.right.nth(family, 1));
        let fault = format!(
            "--errno connect=EHOSTDOWN,remote={v4} --errno connect=ENETDOWN,remote={v6}/128"
        );
        let injector = inject(&lab, &cgroup, engine, &fault);
        let connect = |cgroup, family, n| {
            bash(&lab, cgroup, &format!("exec 3<>/dev/tcp/{}/9000", lab.right.nth(family, n)))
        };
        for (family, word) in [(Family::V4, "Host is down"), (Family::V6, "Network is down")] {
            let said = connect(&cgroup, family, 1);
            assert!(said.contains(word), "{said}");
            assert_eq!(connect(&cgroup, family, 0), "", "to another address");
            assert_eq!(connect(&other, family, 1), "", "by another process");
        }
        assert_eq!(failed(injector), [1, 1]);
    }
}

#[test]
fn what_goes_over_a_connection_fails_by_the_peer() {
    let lab = Lab::new();
    let _server = serve(&lab.right, None, "tcp-serve --mode echo --bind [::]:9000");
    for &engine in engines() {
        let cgroup = TestCgroup::new();
        let [one, two, three] = [0, 1, 2].map(|n| lab.right.nth(Family::V4, n));
        let faults = format!(
            "--errno write=EPIPE,remote={two} --errno read=ECONNRESET,remote={three} \
             --errno sendto/sendmsg=EPERM,remote={three}"
        );
        let injector = inject(&lab, &cgroup, engine, &faults);
        let talk = |to| {
            let script = format!(
                "exec 3<>/dev/tcp/{to}/9000; echo hello >&3 && read -r line <&3 && echo $line"
            );
            bash(&lab, &cgroup, &script)
        };
        assert_eq!(talk(one), "hello\n");
        let said = talk(two);
        assert!(said.contains("Broken pipe"), "{said}");
        let said = talk(three);
        assert!(said.contains("reset by peer") && !said.contains("hello\n"), "{said}");
        // By the address of each message.
        assert_eq!(lab.left.ping(Some(&cgroup), three, 3), 0);
        assert_eq!(lab.left.ping(Some(&cgroup), two, 3), 3);
        assert_eq!(failed(injector), [1, 1, 3]);
    }
}

#[test]
fn each_kind_of_call_fails_at_its_hook() {
    for &engine in engines() {
        let (lab, cgroup, folder) = (Lab::new(), TestCgroup::new(), Folder::new());
        let (here, file) = (folder.0.display(), folder.file("f"));
        let file = file.display();
        let kinds = [
            (format!("mkdir=EROFS,path={here}/*"), format!("mkdir {here}/d"), "Read-only"),
            (format!("unlink/unlinkat=EBUSY,path={here}/?"), format!("rm {file}"), "busy"),
            (
                format!("rename/renameat/renameat2=EISDIR,path={file}"),
                format!("mv -T {file} {here}/g"),
                "directory",
            ),
            (format!("chmod/fchmodat=EPERM,path={file}"), format!("chmod 600 {file}"), "permitted"),
            ("socket=EMFILE".into(), "exec 3<>/dev/tcp/127.0.0.1/9".into(), "Too many"),
        ];
        let faults: Vec<_> = kinds.iter().map(|(fault, ..)| format!("--errno {fault}")).collect();
        let injector = inject(&lab, &cgroup, engine, &faults.join(" "));
        for (fault, script, word) in &kinds {
            let said = bash(&lab, &cgroup, script);
            assert!(said.contains(word), "{engine} {fault}: {said}");
        }
        let failed = failed(injector);
        assert!(failed.iter().all(|&failed| failed > 0), "{failed:?}");

        // A command in the cgroup could not even start under these.
        let mut command = lab.left.command("bash", Some(&cgroup));
        command.args(["-c", "read -r line; /bin/true; (true)"]);
        let child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash");
        let faults = "--errno execve=ENOMEM --errno clone/clone3/vfork/fork=EIO,50%";
        let injector = inject(&lab, &cgroup, engine, faults);
        // Closing its standard input ends it. Its forks fail.
        let output = child.wait_with_output().expect("it ends");
        injector.process.signal(Signal::SIGTERM);
        let summary = injector.process.finish();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("memory") || said.contains("fork"), "{said} {summary}");
        assert!(number(&summary["processes"]["errnos"][1], "matched") > 0, "{summary}");
    }
}

#[test]
fn it_ends_with_its_time_with_injector_and_when_that_stops() {
    let Some(engine) = engines().first() else { return };
    let (lab, folder) = (Lab::new(), Folder::new());
    let file = folder.file("file");
    let cgroup = TestCgroup::new();
    let opens = || lab.left.run_in(Some(&cgroup), &format!("cat {}", file.display())).0;
    let line = format!("--engine {engine} --errno openat=EIO,path={}", file.display());

    let script = format!("cat {0} && exit 9; until cat {0}; do sleep 0.2; done", file.display());
    let (output, summary) = run(&format!("{line} --for 20s"), &script);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(number(errno(&summary), "failed") > 0, "{summary}");

    let mut injector = Injector::on(&lab.left, &cgroup, &line);
    assert!(!opens());
    injector.process.child.kill().expect("it runs");
    injector.process.child.wait().expect("it ends");
    assert!(opens(), "injector is dead");

    let injector = Injector::on(&lab.left, &cgroup, &line);
    assert!(!opens());
    injector.process.signal(Signal::SIGSTOP);
    // Longer than the lease.
    thread::sleep(Duration::from_secs(6));
    assert!(opens(), "injector stands still");
    injector.process.signal(Signal::SIGCONT);
}

#[test]
fn a_pid_is_that_process_alone() {
    let Some(engine) = engines().first() else { return };
    let (lab, folder) = (Lab::new(), Folder::new());
    let file = folder.file("file");
    let cgroup = TestCgroup::new();
    let script = format!("read -r line; echo x >>{}", file.display());
    let start = || {
        let mut command = lab.left.command("bash", Some(&cgroup));
        command.args(["-c", &script]).stdin(Stdio::piped());
        command.stderr(Stdio::null());
        command.spawn().expect("bash")
    };
    let (mut meant, mut beside) = (start(), start());
    let line =
        format!("--engine {engine} --pid {} --errno write=EIO,path={}", meant.id(), file.display());
    let injector = Injector::start(&lab.left, &line);
    drop((meant.stdin.take(), beside.stdin.take()));
    assert!(!meant.wait().expect("it ends").success());
    assert!(beside.wait().expect("it ends").success());
    injector.process.signal(Signal::SIGTERM);
    let summary = injector.process.finish();
    assert_eq!(number(errno(&summary), "failed"), 1, "{summary}");
}

#[test]
fn nothing_matched_is_said() {
    let Some(engine) = engines().first() else { return };
    let output = Command::new(INJECTOR)
        .args(["run", "--require-match", "--engine", engine, "--errno"])
        .args(["openat=ENOENT,path=/no/such/file", "--", "true"])
        .output()
        .expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("no system call matched errno openat=ENOENT"), "{said}");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_touched() {
    for (fault, word) in [
        ("fsync=EIO", "strace -f -e inject=fsync:error=EIO"),
        ("openat=EWRONG", "EWRONG"),
        ("frob=EIO", "frob"),
        ("openat=EIO,remote=::1", "match it by path"),
    ] {
        let output = Command::new(INJECTOR)
            .args(["run", "--errno", fault, "--", "true"])
            .output()
            .expect("it can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{fault}: {said}");
        assert!(said.contains(word), "{fault}: {said}");
    }
}

//! The content of the virtual machine: an initramfs with programs, modules and a list of jobs.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{archive::Archive, kernel::Kernel, modules, tools};

/// The guest's first process.
const INIT: &str = include_str!("init.bash");

/// The directory of the guest's own files, which does not exist on the host.
const FOLDER: &str = "/vm";

/// Tests left out: they need programs or files that a guest lacks, or no kernel.
const NOT_HERE: [&str; 9] = [
    "agent_fuzz",
    "agent_schema",
    "clock_programs",
    "clock_stress",
    "experiments",
    "kubernetes",
    "kubernetes_crd",
    "scenario_schema",
    "selection",
];

/// A job of the guest.
#[derive(Debug)]
pub struct Job {
    /// The name in the output.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// The files of injector-user/tests in the guest.
#[derive(Debug)]
pub enum Tests {
    /// None.
    None,
    /// All.
    All,
    /// These.
    Named(Vec<String>),
}

/// The binaries built by cargo.
#[derive(Debug)]
pub struct Binaries {
    /// The program under test.
    pub injector: PathBuf,
    /// The binary that the guest has at that path instead.
    pub replacement: Option<PathBuf>,
    /// The kernel tests, by name.
    pub tests: Vec<(String, PathBuf)>,
    /// The programs that tests start, or the benchmark.
    helpers: Vec<PathBuf>,
}

impl Binaries {
    /// Builds the programs and the named test files, the same as `cargo test` runs.
    pub fn build(repository: &Path, choice: &Tests) -> Result<Self> {
        let cargo = |arguments: &[&str]| cargo(repository, arguments);
        let names = match choice {
            Tests::None => &[][..],
            Tests::All => &["*".to_owned()][..],
            Tests::Named(names) => names,
        };
        let mut tests = Vec::new();
        if !names.is_empty() {
            let mut arguments = vec!["test", "--no-run"];
            for name in names {
                arguments.extend(["--test", name]);
            }
            tests = cargo(&arguments)?;
            tests.retain(|artifact| artifact.kind == "test");
            if matches!(choice, Tests::All) {
                tests.retain(|artifact| !NOT_HERE.contains(&&*artifact.name));
            }
            tests.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let (injector, helpers) = programs(repository, &["build", "--bins"])?;
        Ok(Self {
            injector,
            replacement: None,
            helpers,
            tests: tests.into_iter().map(|test| (test.name, test.executable)).collect(),
        })
    }
}

impl Binaries {
    /// Builds the program to measure and the clock reader. This program is the benchmark.
    pub fn for_benchmarks(repository: &Path) -> Result<Self> {
        let arguments = ["build", "--release", "--bin", "injector", "--bin", "clock"];
        let (injector, mut helpers) = programs(repository, &arguments)?;
        helpers.push(env::current_exe()?);
        Ok(Self { injector, replacement: None, helpers, tests: Vec::new() })
    }
}

/// The program under test and the programs that tests start.
fn programs(repository: &Path, arguments: &[&str]) -> Result<(PathBuf, Vec<PathBuf>)> {
    let programs = cargo(repository, arguments)?;
    let (injector, others): (Vec<_>, Vec<_>) = programs
        .into_iter()
        .map(|artifact| artifact.executable)
        .partition(|path| path.ends_with("injector"));
    let injector = injector.into_iter().next().context("cargo built no program")?;
    Ok((injector, others))
}

/// A program that cargo built.
struct Artifact {
    name: String,
    kind: String,
    executable: PathBuf,
}

fn cargo(repository: &Path, arguments: &[&str]) -> Result<Vec<Artifact>> {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args(["--locked", "--quiet", "--package", "injector-user", "--package", "testbed"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(repository)
        .stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "{command:?} failed");
    let mut artifacts = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Value = serde_json::from_str(line).context("cargo's messages")?;
        let target = &message["target"];
        if let (Some(executable), Some(name), Some(kind)) =
            (message["executable"].as_str(), target["name"].as_str(), target["kind"][0].as_str())
        {
            let (name, kind) = (name.to_owned(), kind.to_owned());
            artifacts.push(Artifact { name, kind, executable: executable.into() });
        }
    }
    Ok(artifacts)
}

/// The common part of all guests.
pub fn base(work: &Path, binaries: &Binaries) -> Result<Archive> {
    let mut archive = Archive::default();
    for (link, target) in
        [("/bin", "usr/bin"), ("/sbin", "usr/sbin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64")]
    {
        archive.symlink(Path::new(link), target);
    }
    for folder in ["/proc", "/sys", "/tmp", "/run", "/root", "/var", "/etc"] {
        archive.directory(Path::new(folder));
    }
    // The output of the first process.
    archive.device(Path::new("/dev/console"), 5, 1);
    for (file, text) in [
        ("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n"),
        ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        // fping looks up its protocols.
        ("/etc/protocols", "icmp 1 ICMP\nipv6-icmp 58 IPv6-ICMP\n"),
        ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        // What tc(8) needs to name the match by metadata.
        ("/etc/iproute2/ematch_map", "4\tmeta\n"),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    ] {
        archive.file(Path::new(file), text.as_bytes());
    }
    archive.program(Path::new("/init"), INIT.as_bytes());
    tools::add(&mut archive).context("copying tools")?;
    let scratch = work.join("stripped");
    let injector = binaries.replacement.as_ref().unwrap_or(&binaries.injector);
    let content = tools::stripped(injector, &scratch)?;
    tools::add_content(&mut archive, &binaries.injector, &content)?;
    for program in binaries.helpers.iter().chain(binaries.tests.iter().map(|(_, path)| path)) {
        let content = tools::stripped(program, &scratch)?;
        tools::add_content(&mut archive, program, &content)?;
    }
    // Temporary files of tests are beside the directory of the programs.
    let folder = binaries.injector.parent().and_then(Path::parent).context("no target folder")?;
    archive.directory(&folder.join("tmp"));
    let set = format!("INJECTOR={}\n", quoted(&binaries.injector.display().to_string()));
    archive.file(&Path::new(FOLDER).join("environment"), set.as_bytes());
    Ok(archive)
}

/// The initramfs of one kernel, with its modules, jobs and the maximum time of each job.
pub fn complete(
    base: &Archive,
    kernel: &Kernel,
    jobs: &[Job],
    timeout: Duration,
) -> Result<Vec<u8>> {
    let mut archive = base.clone();
    let folder = Path::new(FOLDER);
    let mut order = Vec::new();
    for module in modules::load(kernel)? {
        archive.file(&folder.join(&module.name), &module.content);
        order.push(module.name);
    }
    archive.file(&folder.join("modules"), order.join("\n").as_bytes());
    let mut lines = vec![format!("timeout={}\n", timeout.as_secs())];
    lines.extend(jobs.iter().map(line));
    archive.file(&folder.join("jobs"), lines.concat().as_bytes());
    Ok(archive.finish())
}

/// A job in the format of init.
fn line(job: &Job) -> String {
    let words: Vec<_> = job.command.iter().map(|word| quoted(word)).collect();
    format!("job {} {}\n", quoted(&job.name), words.join(" "))
}

/// Quotes a word for bash(1).
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

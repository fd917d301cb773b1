//! `cargo xtask vm`: runs the tests on other kernels, in QEMU without hardware acceleration.
//!
//! Kernels are Debian's, unpacked into `target/vm` and never installed. The guest is an initramfs of the
//! host's own tools and libraries, the test binaries and injector, all at the paths they have here.

mod apt;
mod archive;
mod doctor;
mod guest;
mod kernel;
mod modules;
mod qemu;
mod results;
mod tools;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

use guest::{Binaries, Job, Tests};
use kernel::{Kernel, SERIES, Series};
use results::GuestResults;

/// Run the kernel tests on other kernels, in virtual machines
///
/// Needs QEMU 10, which scripts/setup-vm installs, but neither root nor KVM. Exits with 1 if a test
/// fails, or if the guest panics, hangs or ends early.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Kernels to run on
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    kernel: Vec<Choice>,

    /// Files of injector-user/tests to run
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    test: Vec<String>,

    /// Run `injector doctor` instead; on all kernels, update the table in docs/kernels.md
    #[arg(long, conflicts_with_all = ["exec", "arguments"])]
    doctor: bool,

    /// Run a bash command line instead; $INJECTOR is the binary
    #[arg(long, value_name = "LINE", conflicts_with = "arguments")]
    exec: Option<String>,

    /// Test this injector binary instead of the current build
    #[arg(long, value_name = "PATH")]
    injector: Option<PathBuf>,

    /// Download the newest kernel packages
    #[arg(long)]
    fetch: bool,

    /// Timeout for each kernel, in minutes
    #[arg(long, default_value_t = 30, value_name = "MINUTES")]
    timeout: u64,

    /// Timeout for each test binary, in minutes
    #[arg(long, default_value_t = 10, value_name = "MINUTES")]
    test_timeout: u64,

    /// Arguments of each test binary, as after `cargo test --`
    #[arg(last = true, value_name = "TEST FILTER")]
    arguments: Vec<String>,
}

/// The values of `--kernel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// Debian 11's, which injector does not support; not part of `all`
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12's
    #[value(name = "6.1")]
    V6_1,
    /// Debian 12 backports
    #[value(name = "6.12")]
    V6_12,
    /// Debian 13 backports
    #[value(name = "7.3")]
    V7_3,
    /// All supported kernels
    All,
}

impl Choice {
    fn names(self, series: &Series) -> bool {
        let value = self.to_possible_value();
        (self == Self::All && series.is_supported)
            || value.is_some_and(|value| value.get_name() == series.name)
    }
}

/// Runs the command on each kernel, one after the other.
pub fn run(args: &Args) -> Result<ExitCode> {
    qemu::check()?;
    let folders = Folders::new()?;
    let chosen: Vec<_> = SERIES
        .iter()
        .filter(|series| args.kernel.iter().any(|choice| choice.names(series)))
        .collect();
    let mut kernels = Vec::new();
    for series in chosen {
        kernels.push(kernel::provide(series, &folders.work, args.fetch)?);
    }

    let tests = match args.test.as_slice() {
        [] if args.doctor || args.exec.is_some() => Tests::None,
        [] => Tests::All,
        names => Tests::Named(names.to_vec()),
    };
    let mut binaries = Binaries::build(&folders.repository, &tests)?;
    binaries.replacement.clone_from(&args.injector);
    let jobs = jobs(args, &binaries);
    let timeouts = Timeouts {
        machine: Duration::from_mins(args.timeout),
        job: Duration::from_mins(args.test_timeout),
    };
    let tallies = boot(&folders, &kernels, &binaries, &jobs, timeouts)?;
    let all_good = tallies.iter().all(GuestResults::is_success);
    let columns: Vec<_> = kernels.iter().zip(tallies).collect();
    // A table of some kernels would be incomplete.
    if args.doctor
        && all_good
        && columns.len() == SERIES.iter().filter(|series| series.is_supported).count()
    {
        doctor::document(&folders.repository.join("docs/kernels.md"), &columns)?;
    }
    Ok(ExitCode::from(u8::from(!all_good)))
}

/// The maximum times of a virtual machine and of each job in it.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    machine: Duration,
    job: Duration,
}

/// Runs the jobs on each kernel, one after the other.
fn boot(
    folders: &Folders,
    kernels: &[Kernel],
    binaries: &Binaries,
    jobs: &[Job],
    timeouts: Timeouts,
) -> Result<Vec<GuestResults>> {
    let base = guest::base(&folders.work, binaries)?;
    let run = |kernel: &Kernel| {
        let initramfs = folders.work.join(format!("initramfs-{}", kernel.series.name));
        fs::write(&initramfs, guest::complete(&base, kernel, jobs, timeouts.job)?)?;
        let log = folders.work.join(format!("console-{}.log", kernel.series.name));
        let machine = qemu::Machine { kernel, initramfs: &initramfs, log: &log };
        let results = machine.run(timeouts.machine)?;
        println!("{}", results.summary(kernel.series.name));
        Ok(results)
    };
    kernels.iter().map(run).collect()
}

/// Runs `cargo xtask bench NAME --here` once with each list of options, on the kernels with netem and
/// tcx. Returns whether all targets are met.
pub fn bench(name: &str, runs: &[Vec<&str>]) -> Result<bool> {
    qemu::check()?;
    let folders = Folders::new()?;
    let chosen = SERIES.iter().filter(|series| series.is_supported && series.name != "6.1");
    let kernels: Vec<_> = chosen
        .map(|series| kernel::provide(series, &folders.work, false))
        .collect::<Result<_>>()?;
    let binaries = Binaries::for_benchmarks(&folders.repository)?;
    let program = std::env::current_exe()?.display().to_string();
    let injector = binaries.injector.display().to_string();
    let job = |options: &Vec<&str>| {
        let words = [&program, "bench", name, "--here", "--injector", &injector];
        let command = words.iter().chain(options).map(|&word| word.to_owned()).collect();
        Job { name: "bench".into(), command }
    };
    let jobs: Vec<Job> = runs.iter().map(job).collect();
    let whole = Duration::from_hours(1);
    let timeouts = Timeouts { machine: whole, job: whole };
    let tallies = boot(&folders, &kernels, &binaries, &jobs, timeouts)?;
    Ok(tallies.iter().all(GuestResults::is_success))
}

fn jobs(args: &Args, binaries: &Binaries) -> Vec<Job> {
    if args.doctor {
        let command = vec![binaries.injector.display().to_string()];
        let arguments = ["doctor", "--output", "json"].map(String::from);
        return vec![Job { name: "doctor".into(), command: [command, arguments.into()].concat() }];
    }
    if let Some(line) = &args.exec {
        let command = ["bash".into(), "-c".into(), line.clone()];
        return vec![Job { name: "exec".into(), command: command.into() }];
    }
    let test = |(name, path): &(String, PathBuf)| {
        let mut command = vec![path.display().to_string()];
        command.extend(args.arguments.iter().cloned());
        Job { name: name.clone(), command }
    };
    binaries.tests.iter().map(test).collect()
}

/// Paths.
struct Folders {
    repository: PathBuf,
    /// Kernels, initramfs and logs.
    work: PathBuf,
    /// Keeps two runs from writing the same files.
    _lock: File,
}

impl Folders {
    fn new() -> Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let repository = package.parent().context("no parent folder")?.to_path_buf();
        let work = repository.join("target/vm");
        fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
        let lock = File::create(work.join("lock")).context("making a lock file")?;
        if lock.try_lock().is_err() {
            println!("waiting for another `cargo xtask vm` to end");
            lock.lock().context("locking")?;
        }
        Ok(Self { repository, work, _lock: lock })
    }
}

/// Runs a command and returns its standard output. Fails if the command fails.
fn output_of(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| {
        format!("cannot run {name}; scripts/setup and scripts/setup-vm install what is needed")
    })?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    match String::from_utf8(output.stdout) {
        Ok(text) => Ok(text),
        Err(_) => bail!("{name} printed something that is not UTF-8"),
    }
}

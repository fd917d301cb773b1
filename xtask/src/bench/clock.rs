//! `cargo xtask bench clock`: the cost of reading a skewed clock, and the latency of skewing many
//! processes.

mod many;
mod reader;

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::{
    injector::{Injector, built},
    numbers::Estimate,
    places::Places,
    progress,
    target::{self, Target},
};
use reader::{FUNCTIONS, Figures, Reader};

/// The library of Debian's package `faketime`.
const LIBFAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The offset of skewed clocks, in seconds.
const OFFSET: i64 = 3600;

/// The maximum ratio of a call by the vdso engine to a native one.
const VDSO_LIMIT: f64 = 1.1;

/// The functions that read a hardware counter. The others copy a value in a few nanoseconds, to
/// which any hook adds a large fraction.
const COUNTING: [&str; 3] = ["clock_gettime", "monotonic", "gettimeofday"];

/// Measure the cost of reading a skewed clock, compared with libfaketime and system calls
///
/// Also measures how soon 1,000 processes read a skewed clock, and a changed one. Runs on this machine and
/// then, calls only, in virtual machines of Linux 6.12 and 7.3, where the probe engine is available. Needs root.
/// Exits with 1 if a target is missed. With --injector, the testbed's `clock` must be beside the binary.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    places: Places,

    /// Measure calls only and check no targets, for emulated machines
    #[arg(long)]
    calls: bool,
}

/// A way to skew clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// Nothing.
    Native,
    /// `--engine vdso`.
    Vdso,
    /// `--engine probe`.
    Probe,
    /// libfaketime.
    Libfaketime,
}

impl Contender {
    const ALL: [Self; 4] = [Self::Native, Self::Vdso, Self::Probe, Self::Libfaketime];

    const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Vdso => "vdso engine",
            Self::Probe => "probe engine",
            Self::Libfaketime => "libfaketime",
        }
    }

    /// The command of the reader; `None` if this way is not available.
    fn command(self, injector: &Path, reader: &Path) -> Option<Command> {
        let by_engine = |engine| {
            let mut command = Command::new(injector);
            command.args(["run", "--output-file", "/dev/null", "--engine", engine]);
            command.arg(format!("--clock=+{OFFSET}s,clock=all")).arg("--").arg(reader);
            command
        };
        match self {
            Self::Native => Some(Command::new(reader)),
            Self::Vdso => Some(by_engine("vdso")),
            Self::Probe => Some(by_engine("probe")),
            Self::Libfaketime => Path::new(LIBFAKETIME).exists().then(|| {
                let mut command = Command::new(reader);
                command.env("LD_PRELOAD", LIBFAKETIME).env("FAKETIME", format!("+{OFFSET}"));
                command
            }),
        }
    }
}

/// Runs the benchmark and prints the report.
pub fn clock(args: &Args) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark faults clocks: run it as root");
    args.places.run("clock", &[&["--calls"]], || here(args))
}

fn here(args: &Args) -> Result<bool> {
    let injector = args.places.injector()?;
    let reader = match &args.places.injector {
        Some(path) => path.with_file_name("clock"),
        None => built("testbed", "clock")?,
    };
    let mut targets = Vec::new();
    let (rounds, calls) = if args.places.quick { (8, 50_000) } else { (20, 200_000) };
    calls_of_each(&injector, &reader, rounds, calls, &mut targets)?;
    if args.calls {
        return Ok(true);
    }
    many::measure(&injector, &reader, &mut targets)?;
    Ok(target::report(&targets))
}

/// Measures contenders in turn, on one CPU.
fn calls_of_each(
    injector: &Injector,
    reader: &Path,
    rounds: usize,
    calls: u32,
    targets: &mut Vec<Target>,
) -> Result<()> {
    // Child processes inherit the affinity.
    let mut one = CpuSet::new();
    one.set(0)?;
    let all = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    let mut readers = Vec::new();
    for contender in Contender::ALL {
        let name = contender.name();
        match contender.command(injector.path(), reader) {
            None => progress(&format!("{name}: not installed")),
            Some(command) => match Reader::start(command, calls) {
                Ok(reader) => readers.push((contender, reader, Vec::new())),
                Err(error) => progress(&format!("{name}: not here: {error:#}")),
            },
        }
    }
    for round in 0..rounds {
        progress(&format!("calls, round {} of {rounds}", round + 1));
        let turns = readers.len();
        for turn in 0..turns {
            let (contender, reader, figures) = &mut readers[(turn + round) % turns];
            let ahead = if *contender == Contender::Native { 0 } else { OFFSET };
            figures.push(reader.measure(ahead).context(contender.name())?);
        }
    }
    sched_setaffinity(Pid::from_raw(0), &all)?;
    let (first, _, native) = readers.first().context("no native program")?;
    ensure!(*first == Contender::Native, "the native program does not run");
    print_table(native, &readers);
    for (contender, _, figures) in &readers {
        for name in COUNTING {
            if *contender == Contender::Vdso {
                targets.push(Target {
                    name: format!("{name}, vdso engine to native"),
                    is_minimum: false,
                    limit: VDSO_LIMIT,
                    measured: ratio(figures, native, name).median,
                });
            }
        }
    }
    Ok(())
}

fn print_table(native: &[Figures], readers: &[(Contender, Reader, Vec<Figures>)]) {
    println!("ns a call, median (to native)\n");
    println!("| | {} |\n|---{}|", FUNCTIONS.join(" | "), "|--:".repeat(FUNCTIONS.len()));
    for (contender, _, figures) in readers {
        print!("| {} |", contender.name());
        for name in FUNCTIONS {
            let values: Vec<f64> = figures.iter().map(|figures| figures[name]).collect();
            let Estimate { median, low, high } = ratio(figures, native, name);
            let ns = Estimate::of(&values).median;
            print!(" {ns:.1} ({median:.2}, {low:.2}–{high:.2}) |");
        }
        println!();
    }
}

/// The ratio to the native call of the same round.
fn ratio(figures: &[Figures], native: &[Figures], name: &str) -> Estimate {
    let ratios: Vec<f64> =
        figures.iter().zip(native).map(|(ours, native)| ours[name] / native[name]).collect();
    Estimate::of(&ratios)
}

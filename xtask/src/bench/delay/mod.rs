//! `cargo xtask bench delay`: delays of injector compared with netem.

mod changes;
pub mod contender;
pub mod flow;
mod path;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    injector::Injector,
    link::Link,
    numbers::median,
    places::Places,
    progress,
    target::{self, Target},
};
use contender::Contender;
use flow::{Delays, Flows};

/// Measure delays: throughput, packet rate without loss, accuracy, CPU time
///
/// Runs on this machine, then beside netem in virtual machines of Linux 6.12 and 7.3, all in one run on
/// one veth pair. Needs root. Exits with 1 if a target is missed.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    places: Places,

    /// Part to measure
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Packets held on the sender's host
    Link,
    /// Packets held elsewhere on the path
    Paths,
    /// The mean rate while it changes
    Changes,
}

/// Delays in milliseconds.
const DELAYS: [u32; 4] = [0, 1, 20, 100];

/// The delay for the targets of the TAP engine, in milliseconds.
const TAP_DELAY: u32 = 5;

/// Runs the benchmark and prints the report.
pub fn delay(args: &Args) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark loads eBPF programs: run it as root");
    let runs: &[&[&str]] = match args.only {
        None => &[&["--only", "link"], &["--only", "paths"], &["--only", "changes"]],
        Some(Part::Link) => &[&["--only", "link"]],
        Some(Part::Paths) => &[&["--only", "paths"]],
        Some(Part::Changes) => &[&["--only", "changes"]],
    };
    args.places.run("delay", runs, || here(args))
}

fn here(args: &Args) -> Result<bool> {
    let injector = args.places.injector()?;
    let mut targets = Vec::new();
    let is_wanted = |part| args.only.is_none_or(|only| only == part);
    if is_wanted(Part::Link) {
        held_by_sender(args, &injector, &mut targets)?;
    }
    if is_wanted(Part::Paths) {
        path::measure(args.places.quick, &injector, &mut targets)?;
    }
    if is_wanted(Part::Changes) {
        changes::measure(&injector, &mut targets)?;
    }
    Ok(target::report(&targets))
}

fn held_by_sender(args: &Args, injector: &Injector, targets: &mut Vec<Target>) -> Result<()> {
    let link = Link::new()?;
    let flows = Flows::new(&link)?;
    let mut contenders = Contender::here(&link)?;
    if contenders.contains(&Contender::Netem) {
        // Its targets do not apply to emulated machines.
        contenders.retain(|&contender| contender != Contender::Tap);
        beside_netem(args, injector, &link, &flows, &contenders, targets)
    } else {
        alone(args, injector, &link, &flows, targets)
    }
}

/// The values of one contender at one delay, one per round.
#[derive(Default)]
struct Figures {
    tcp: Vec<f64>,
    cpu: Vec<f64>,
    udp: Vec<f64>,
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

/// Measures contenders in turn, in rounds.
fn beside_netem(
    args: &Args,
    injector: &Injector,
    link: &Link,
    flows: &Flows,
    contenders: &[Contender],
    targets: &mut Vec<Target>,
) -> Result<()> {
    let (rounds, tcp_time) =
        if args.places.quick { (1, Duration::from_secs(2)) } else { (3, Duration::from_secs(3)) };
    println!(
        "| delay | | TCP Mbit/s | to netem | UDP packets/s without loss | to netem | mean ms | deviation ms | CPU s/GB |"
    );
    println!("|--:|---|--:|--:|--:|--:|--:|--:|--:|");
    for ms in DELAYS {
        // This one adds no delay.
        let has_part = |&&contender: &&Contender| ms == 0 || contender != Contender::Detour;
        let contenders: Vec<Contender> = contenders.iter().filter(has_part).copied().collect();
        let mut figures: Vec<Figures> = contenders.iter().map(|_| Figures::default()).collect();
        for round in 0..rounds {
            progress(&format!("{ms} ms, round {}", round + 1));
            for turn in 0..contenders.len() {
                let number = (turn + round) % contenders.len();
                let contender = contenders[number];
                let active = contender.start(link, injector, ms).context(contender.to_string())?;
                let figures = &mut figures[number];
                let delay = Duration::from_millis(ms.into());
                let tcp = flows.tcp(tcp_time, None)?;
                figures.tcp.push(tcp.rate);
                figures.cpu.push(tcp.cpu_per_gigabyte);
                figures.udp.push(flows.lossless_udp(Duration::from_millis(500), delay)?);
                let delays = flows.udp(2000, Duration::from_millis(1), delay)?;
                figures.mean.push(delays.mean());
                figures.deviation.push(delays.deviation());
                drop(active);
            }
        }
        let netem = contenders.iter().position(|&contender| contender == Contender::Netem);
        let netem = &figures[netem.context("no netem")?];
        for (contender, figures) in contenders.iter().zip(&figures) {
            let ratio = |ours: &[f64], theirs: &[f64]| {
                let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
                median(&ratios)
            };
            let (tcp, udp) = (ratio(&figures.tcp, &netem.tcp), ratio(&figures.udp, &netem.udp));
            println!(
                "| {ms} | {contender} | {:.0} | {tcp:.2} | {:.0} | {udp:.2} | {:.3} | {:.3} | {:.2} |",
                median(&figures.tcp) / 1e6,
                median(&figures.udp),
                median(&figures.mean),
                median(&figures.deviation),
                median(&figures.cpu),
            );
            if *contender == Contender::Edt {
                let mut add = |what: &str, is_minimum, limit, measured| {
                    let name = format!("{what}, edt to netem at {ms} ms");
                    targets.push(Target { name, is_minimum, limit, measured });
                };
                add("TCP", true, 1.0, tcp);
                add("UDP", true, 1.0, udp);
                add("deviation", false, 1.0, ratio(&figures.deviation, &netem.deviation));
            }
        }
    }
    Ok(())
}

/// Measures the TAP engine compared with the bare link, where netem is missing.
fn alone(
    args: &Args,
    injector: &Injector,
    link: &Link,
    flows: &Flows,
    targets: &mut Vec<Target>,
) -> Result<()> {
    let rounds = if args.places.quick { 1 } else { 5 };
    let time = Duration::from_secs(4);
    let (mut bare, mut ours, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    let mut delays: Vec<Delays> = Vec::new();
    for round in 0..rounds {
        progress(&format!("round {}", round + 1));
        bare.push(flows.tcp(time, None)?.rate);
        let active = Contender::Tap.start(link, injector, TAP_DELAY)?;
        let tcp = flows.tcp(time, None)?;
        ours.push(tcp.rate);
        cpu.push(tcp.cpu_per_gigabyte);
        let delay = Duration::from_millis(TAP_DELAY.into());
        delays.push(flows.udp(100_000, Duration::from_micros(20), delay)?);
        drop(active);
    }
    let late = |part: f64| {
        let quantiles: Vec<f64> = delays.iter().map(|delays| delays.quantile(part)).collect();
        (median(&quantiles) - f64::from(TAP_DELAY)) * 1e3
    };
    let lost: usize = delays.iter().map(|delays| delays.sent - delays.received()).sum();
    println!(
        "TCP: bare {:.1} Gbit/s, tap at {TAP_DELAY} ms {:.1} Gbit/s ({:.2} CPU s/GB)",
        median(&bare) / 1e9,
        median(&ours) / 1e9,
        median(&cpu)
    );
    println!("UDP at 50,000 packets/s: {lost} of {} lost", rounds * 100_000);
    let mut add = |name: &str, is_minimum, limit, measured| {
        targets.push(Target { name: name.into(), is_minimum, limit, measured });
    };
    add("tap: TCP at 5 ms, Gbit/s", true, 6.0, median(&ours) / 1e9);
    add("tap: late at 50,000 packets/s, median, µs", false, 100.0, late(0.5));
    add("tap: late at 50,000 packets/s, p99, µs", false, 300.0, late(0.99));
    add("tap: packets lost", false, 0.0, lost as f64);
    Ok(())
}

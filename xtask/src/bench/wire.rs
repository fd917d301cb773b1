//! `cargo xtask bench wire`: faults of wire packets compared with a link without offloads.
//!
//! A TCP flow loses packets on a path of a given round-trip time, in one of these ways:
//!
//! - wire: by injector at the sender's egress, with segmentation offload;
//! - reference: by injector at the receiver, which gets single segments because the sender's offloads are
//!   off;
//! - pieces: at the sender's egress with `--pieces`, a decision for each GSO packet;
//! - netem: by netem at the sender's egress, where the kernel has it.
//!
//! Mathis et al. predict the rate of Reno as MSS / RTT * sqrt(3/2) / sqrt(p). The round-trip time and the
//! loss are those measured during the flow.

use std::{
    fs,
    io::{Read as _, Write as _},
    mem,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use nix::sys::socket::{setsockopt, sockopt};

use super::{
    delay::{contender::Contender, flow::Flows},
    injector::{Injector, Running},
    link::{Link, NEAR},
    namespace::Namespace,
    numbers::median,
    places::Places,
    progress,
    rules::remote,
    target::{self, Target},
};

/// Measure faults of wire packets: TCP under loss, and what segmenting costs
///
/// Compares TCP under loss with a reference without offloads and with the formula of Mathis, on this
/// machine, and beside netem in virtual machines of Linux 6.12 and 7.3. Needs root, ethtool, and TCP Reno
/// and Cubic. Exits with 1 if a target is missed; there are none for the virtual machines.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    places: Places,

    /// TCP congestion controls to measure
    #[arg(long, value_delimiter = ',', default_value = "reno,cubic", value_name = "NAMES")]
    control: Vec<String>,

    /// Round-trip times in milliseconds to measure
    #[arg(long, value_delimiter = ',', default_value = "1,2,10,50", value_name = "MS")]
    rtt: Vec<u32>,

    /// Losses in percent to measure
    #[arg(long, value_delimiter = ',', default_value = "0.1,1", value_name = "PERCENT")]
    loss: Vec<f64>,

    /// Part to measure
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// TCP under loss
    Loss,
    /// Throughput and CPU time without loss
    Cost,
}

/// The interface of the far end.
const FAR: &str = "far0";

/// Payload bytes of a full segment: the MTU without headers and timestamps.
const MSS: f64 = 1448.0;

/// The approximate rate of all flows of a measurement in bits a second: below what this machine can
/// send, but with many losses.
const OFFERED: f64 = 250e6;

/// The same for an emulated machine.
const OFFERED_EMULATED: f64 = 50e6;

/// The timeout of socket calls.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The minimum time before a measurement.
const MIN_WARM_UP: Duration = Duration::from_secs(2);

/// The minimum rate of a flow whose packets are segmented, in bits a second.
const MIN_RATE: f64 = 3e9;

/// Runs the benchmark and prints the report.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark loads eBPF programs: run it as root");
    let list = |values: Vec<String>| values.join(",");
    let rtts = list(args.rtt.iter().map(ToString::to_string).collect());
    let losses = list(args.loss.iter().map(ToString::to_string).collect());
    let controls = list(args.control.clone());
    let loss = ["--only", "loss", "--control", &controls, "--rtt", &rtts, "--loss", &losses];
    let cost = ["--only", "cost"];
    let runs: &[&[&str]] = match args.only {
        None => &[&loss, &cost],
        Some(Part::Loss) => &[&loss],
        Some(Part::Cost) => &[&cost],
    };
    args.places.run("wire", runs, || here(args))
}

fn here(args: &Args) -> Result<bool> {
    let injector = args.places.injector()?;
    // Only the virtual machines have it, whose emulated processors have no targets.
    let has_netem = Contender::here(&Link::new()?)?.contains(&Contender::Netem);
    let mut targets = Vec::new();
    if args.only != Some(Part::Cost) {
        loss(args, &injector, has_netem, &mut targets)?;
    }
    if args.only != Some(Part::Loss) {
        cost(args, &injector, has_netem, &mut targets)?;
    }
    Ok(has_netem || target::report(&targets))
}

/// How packets are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Wire,
    Reference,
    Pieces,
    Netem,
}

/// The results of concurrent TCP flows.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// The received bits a second of one flow.
    rate: f64,
    /// The mean round-trip time in seconds.
    rtt: f64,
    /// The prediction by Mathis in bits a second.
    mathis: f64,
}

fn loss(
    args: &Args,
    injector: &Injector,
    has_netem: bool,
    targets: &mut Vec<Target>,
) -> Result<()> {
    let time = Duration::from_secs(if args.places.quick { 4 } else { 12 });
    let offered = if has_netem { OFFERED_EMULATED } else { OFFERED };
    println!(
        "\nMbit/s of a flow; the prediction is for the loss and the round-trip time that were measured\n"
    );
    println!(
        "| | RTT | measured RTT | loss | wire | reference | wire / reference | Mathis | wire / Mathis | reference / Mathis | `--pieces` | netem |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for control in &args.control {
        for &rtt in &args.rtt {
            for &percent in &args.loss {
                progress(&format!("TCP {control}, {rtt} ms, loss of {percent} %"));
                let measure = |way| flow(injector, control, rtt, percent, way, time, offered);
                let [wire, reference, pieces] =
                    [measure(Way::Wire)?, measure(Way::Reference)?, measure(Way::Pieces)?];
                let netem = has_netem.then(|| measure(Way::Netem)).transpose()?;
                let netem = netem.map(|netem| format!("{:.1}", netem.rate / 1e6));
                let ratio = wire.rate / reference.rate;
                let by_mathis = wire.rate / wire.mathis;
                println!(
                    "| {control} | {rtt} ms | {:.2} ms | {percent} % | {:.1} | {:.1} | {ratio:.2} | {:.1} | {by_mathis:.2} | {:.2} | {:.1} | {} |",
                    wire.rtt * 1e3,
                    wire.rate / 1e6,
                    reference.rate / 1e6,
                    wire.mathis / 1e6,
                    reference.rate / reference.mathis,
                    pieces.rate / 1e6,
                    netem.as_deref().unwrap_or("-"),
                );
                let name = format!("{control}, {rtt} ms, {percent} %");
                let mut within = |name: String, measured| {
                    let target = |is_minimum, limit| Target {
                        name: name.clone(),
                        is_minimum,
                        limit,
                        measured,
                    };
                    targets.extend([target(true, 0.8), target(false, 1.25)]);
                };
                within(format!("{name}: wire / reference"), ratio);
                if control == "reno" {
                    within(format!("{name}: wire / Mathis"), by_mathis);
                }
            }
        }
    }
    Ok(())
}

/// Starts `injector inject` on an interface.
fn inject(
    injector: &Injector,
    namespace: &Namespace,
    interface: &str,
    options: &str,
) -> Result<Running> {
    let mut command = injector.command(namespace)?;
    command.args(["inject", "--interface", interface, "--for", "forever", "--output", "json"]);
    Running::start({
        command.args(options.split_whitespace());
        command
    })
}

/// Switches the segmentation offload of the sender off, so that the receiver gets single segments.
fn switch_offload_off(link: &Link) -> Result<()> {
    let status =
        link.near.command("ethtool")?.args(["-K", NEAR, "tso", "off", "gso", "off"]).status();
    ensure!(status.context("cannot run ethtool")?.success(), "ethtool failed");
    Ok(())
}

/// Loses packets at the sender by netem.
fn netem(link: &Link, percent: f64) -> Result<()> {
    /// More than are ever queued.
    const LIMIT: &str = "1000000";

    let percent = format!("{percent}%");
    let add = ["qdisc", "add", "dev", NEAR, "root", "netem", "limit", LIMIT, "loss", &percent];
    let status = link.near.command("tc")?.args(add).status().context("cannot run tc")?;
    ensure!(status.success(), "tc failed");
    Ok(())
}

fn flow(
    injector: &Injector,
    control: &str,
    rtt: u32,
    percent: f64,
    way: Way,
    time: Duration,
    offered: f64,
) -> Result<Flow> {
    let link = Link::new()?;
    let _buffers = Flows::new(&link)?;
    link.near.run(|| {
        // In the namespace of the thread: each flow begins without what an earlier one found out.
        Ok(fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1")?)
    })?;
    if way == Way::Reference {
        switch_offload_off(&link)?;
    }
    let _path = inject(injector, &link.far, FAR, &format!("--rtt {rtt}ms"))?;
    let loss = format!("--protocol tcp --loss {percent}%");
    let (near, far) = ((&link.near, NEAR), (&link.far, FAR));
    let faults = match way {
        Way::Wire => Some((near, "--direction egress")),
        Way::Pieces => Some((near, "--direction egress --pieces")),
        // After the other one, and therefore ahead of it.
        Way::Reference => Some((far, "--direction ingress --pieces")),
        Way::Netem => {
            netem(&link, percent)?;
            None
        }
    };
    let faults = faults.map(|((end, interface), options)| {
        inject(injector, end, interface, &format!("{loss} {options}"))
    });
    let faults = faults.transpose()?;
    let predict = |rtt: f64, loss: f64| MSS * 8.0 / rtt * (1.5 / loss).sqrt();
    let expected = predict(f64::from(rtt) / 1e3, percent / 100.0);
    let count = (offered / expected).clamp(1.0, 32.0) as usize;
    // Many times that in which Reno returns to its mean window after the slow start.
    let warm_up = MIN_WARM_UP.max(200 * Duration::from_millis(rtt.into()));
    let (rate, rtt) = transfer(&link, control, count, warm_up, time)?;
    let share = match faults {
        Some(faults) => {
            let (matched, dropped) = faults.stop_counting()?;
            dropped as f64 / matched as f64
        }
        None => percent / 100.0,
    };
    let mathis = predict(rtt, share);
    Ok(Flow { rate: rate / count as f64, rtt, mathis })
}

/// Sends on `count` connections for `time`, after a warm-up. Returns the received bits a second of all and
/// the mean round-trip time in seconds.
fn transfer(
    link: &Link,
    control: &str,
    count: usize,
    warm_up: Duration,
    time: Duration,
) -> Result<(f64, f64)> {
    const PORT: u16 = 5201;
    const SAMPLE: Duration = Duration::from_millis(20);

    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    let peer = SocketAddrV4::new(remote(1), PORT);
    let listener = link.far.run(|| Ok(TcpListener::bind(any)?))?;
    let mut pairs = Vec::new();
    for _ in 0..count {
        let near = link.near.run(|| Ok(TcpStream::connect_timeout(&peer.into(), CALL_TIMEOUT)?))?;
        let (far, _) = listener.accept()?;
        setsockopt(&near, sockopt::TcpCongestion, &control.into()).context(control.to_owned())?;
        near.set_write_timeout(Some(CALL_TIMEOUT))?;
        far.set_read_timeout(Some(CALL_TIMEOUT))?;
        pairs.push((near, far));
    }
    let (ends, received) = (&AtomicBool::new(false), &AtomicU64::new(0));
    thread::scope(|scope| {
        for (near, far) in &pairs {
            scope.spawn(move || {
                let mut chunk = vec![1; 256 << 10];
                let mut far = far;
                while let Ok(bytes @ 1..) = far.read(&mut chunk) {
                    received.fetch_add(bytes as u64, Ordering::Relaxed);
                }
            });
            scope.spawn(move || {
                let chunk = vec![1; 64 << 10];
                let mut near = near;
                while !ends.load(Ordering::Relaxed) && near.write(&chunk).is_ok() {}
                // The receiver then ends as well.
                near.shutdown(std::net::Shutdown::Both)
            });
        }
        thread::sleep(warm_up);
        let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
        let mut rtts = Vec::new();
        while start.elapsed() < time {
            thread::sleep(SAMPLE);
            for (near, _) in &pairs {
                rtts.push(smoothed_rtt(near)?);
            }
        }
        let bits = (received.load(Ordering::Relaxed) - before) as f64 * 8.0;
        let rate = bits / start.elapsed().as_secs_f64();
        ends.store(true, Ordering::Relaxed);
        // A writer may be blocked by a full window.
        for (near, _) in &pairs {
            drop(near.shutdown(std::net::Shutdown::Both));
        }
        Ok((rate, rtts.iter().sum::<f64>() / rtts.len() as f64))
    })
}

/// The sender's estimate of the round-trip time in seconds.
fn smoothed_rtt(stream: &TcpStream) -> Result<f64> {
    // SAFETY: plain data, for which zeroes are valid.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the structure has the given length.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    ensure!(result == 0, "cannot read TCP_INFO: {}", std::io::Error::last_os_error());
    Ok(f64::from(info.tcpi_rtt) / 1e6)
}

/// A setting for the cost of segmenting.
struct Setting {
    name: &'static str,
    /// The options of an injector at the sender.
    near: Option<&'static str>,
    /// The options of an injector at the receiver.
    far: Option<&'static str>,
    is_without_offload: bool,
    by_netem: bool,
}

/// A loss that decides about each packet, and practically never hits.
const SETTINGS: [Setting; 7] = {
    const fn setting(name: &'static str) -> Setting {
        Setting { name, near: None, far: None, is_without_offload: false, by_netem: false }
    }
    [
        setting("nothing attached"),
        Setting {
            near: Some("--direction egress --loss 0.000001% --pieces"),
            ..setting("egress, `--pieces`")
        },
        Setting {
            near: Some("--direction egress --loss 0.000001%"),
            ..setting("egress, wire packets")
        },
        Setting {
            far: Some("--direction ingress --loss 0.000001% --pieces"),
            ..setting("ingress, `--pieces`")
        },
        Setting {
            far: Some("--direction ingress --loss 0.000001%"),
            ..setting("ingress, wire packets")
        },
        Setting {
            is_without_offload: true,
            ..setting("nothing attached, the sender's offloads off")
        },
        Setting { by_netem: true, ..setting("egress, netem") },
    ]
};

fn cost(
    args: &Args,
    injector: &Injector,
    has_netem: bool,
    targets: &mut Vec<Target>,
) -> Result<()> {
    let (rounds, time) = if args.places.quick { (3, 1) } else { (7, 2) };
    let settings: Vec<&Setting> =
        SETTINGS.iter().filter(|setting| has_netem || !setting.by_netem).collect();
    let mut rates = vec![(Vec::new(), Vec::new()); settings.len()];
    for round in 1..=rounds {
        progress(&format!("cost, round {round} of {rounds}"));
        for (setting, (rates, cpu)) in settings.iter().zip(&mut rates) {
            let link = Link::new()?;
            let flows = Flows::new(&link)?;
            if setting.is_without_offload {
                switch_offload_off(&link)?;
            }
            if setting.by_netem {
                netem(&link, 1e-6)?;
            }
            let ends = [(&link.near, NEAR, setting.near), (&link.far, FAR, setting.far)];
            let running: Vec<Running> = ends
                .into_iter()
                .filter_map(|(end, interface, options)| Some((end, interface, options?)))
                .map(|(end, interface, options)| inject(injector, end, interface, options))
                .collect::<Result<_>>()?;
            let tcp = flows.tcp(Duration::from_secs(time), None)?;
            rates.push(tcp.rate);
            cpu.push(tcp.cpu_per_gigabyte);
            for one in running {
                ensure!(one.stop()? > 0, "no packet matched");
            }
        }
    }
    println!("\nOne TCP flow without loss, medians of {rounds} rounds\n");
    println!("| | Gbit/s | CPU s per GB |\n|---|--:|--:|");
    for (setting, (rates, cpu)) in settings.iter().zip(&rates) {
        let rate = median(rates);
        println!("| {} | {:.2} | {:.2} |", setting.name, rate / 1e9, median(cpu));
        if setting.name.ends_with("wire packets") {
            targets.push(Target {
                name: format!("{}, Gbit/s", setting.name),
                is_minimum: true,
                limit: MIN_RATE / 1e9,
                measured: rate / 1e9,
            });
        }
    }
    Ok(())
}

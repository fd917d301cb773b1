//! `cargo xtask bench agent`: the agent's request rate with active faults, and leaks over many faults.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{exit_after, injector::Injector, namespace::Namespace, progress};

/// The minimum request rate per second.
const MIN_REQUEST_RATE: f64 = 1000.0;

/// The maximum growth of memory from the first tenth of the cycles to the last one. The numbers of
/// files, maps and programs must not grow.
const MAX_MEMORY_GROWTH: f64 = 1.05;

/// Cycles before the first measurement.
const WARM_UP_CYCLES: u32 = 200;

/// The number of concurrent clients, in every other tenth of the cycles.
const CONCURRENCY: u32 = 6;

/// The time for closed connections and idle threads to be released.
const SETTLE_TIME: Duration = Duration::from_secs(3);

/// Measures requests a second while faults act, and cycles of creating and deleting a fault
///
/// The agent runs in a network namespace of its own, under pings. Needs root. Exits with 1 if a target is missed.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Active faults
    #[arg(long, default_value_t = 100)]
    faults: u32,

    /// Concurrent clients
    #[arg(long, default_value_t = 4)]
    clients: u32,

    /// Seconds of requests
    #[arg(long, default_value_t = 10)]
    seconds: u64,

    /// Faults to create and delete
    #[arg(long, default_value_t = 1000)]
    cycles: u32,
}

/// Runs the benchmark and prints tables.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "injector needs root");
    let injector = Injector::build()?;
    // A cycle takes about 50 ms on an idle machine.
    exit_after(
        Duration::from_secs(args.seconds + u64::from(args.cycles) / 2) + Duration::from_mins(20),
    );
    let namespace = Namespace::new()?;
    let agent = Agent::start(&injector, &namespace)?;
    let cycles = cycles(&agent, &namespace, args.cycles)?;
    let served = served(&agent, &namespace, args)?;
    agent.stop()?;
    let good = cycles && served;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A running `injector agent`. Killed when dropped.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(injector: &Injector, namespace: &Namespace) -> Result<Self> {
        let name = format!("injector-bench-{}.sock", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let mut command = injector.command(namespace)?;
        command.arg("agent").arg("--socket").arg(&socket).args(["--audit-log", "/dev/null"]);
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run the agent")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut line)?;
        ensure!(line.contains("serves"), "the agent did not start");
        Ok(Self { child, socket })
    }

    /// The agent's resources, after closed connections have been released.
    fn resources(&self) -> Result<Resources> {
        thread::sleep(SETTLE_TIME);
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(proc.join("status"))?;
        let number = |key: &str| -> Result<u64> {
            let found = status.lines().find_map(|line| line.strip_prefix(key));
            let found = found.with_context(|| format!("no {key}"))?;
            Ok(found.trim().trim_end_matches(" kB").parse()?)
        };
        let mut resources = Resources {
            files: 0,
            maps: 0,
            programs: 0,
            threads: number("Threads:")?,
            resident: number("VmRSS:")?,
        };
        for file in fs::read_dir(proc.join("fdinfo"))? {
            // The file may have been closed since.
            let Ok(info) = fs::read_to_string(file?.path()) else { continue };
            let has = |key: &str| u64::from(info.lines().any(|line| line.starts_with(key)));
            resources.files += 1;
            resources.maps += has("map_id:");
            resources.programs += has("prog_id:");
        }
        Ok(resources)
    }

    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the agent failed: {status}");
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The agent has ended already unless something failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// Resources of an agent without faults.
#[derive(Clone, Copy, Debug)]
struct Resources {
    /// Open files, including maps and programs.
    files: u64,
    /// eBPF maps.
    maps: u64,
    /// eBPF programs and links.
    programs: u64,
    threads: u64,
    /// Resident memory in KiB.
    resident: u64,
}

impl Resources {
    /// Whether resources have leaked since.
    fn has_grown(&self, now: &Self) -> bool {
        now.files > self.files
            || now.maps > self.maps
            || now.programs > self.programs
            || now.resident as f64 > self.resident as f64 * MAX_MEMORY_GROWTH
    }
}

/// A persistent connection.
struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(socket: &Path) -> Result<Self> {
        Ok(Self(BufReader::new(UnixStream::connect(socket)?)))
    }

    fn request(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut length) = (String::new(), 0);
        self.0.read_line(&mut status)?;
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the agent closed the connection");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer)?;
        if !status.starts_with("HTTP/1.1 2") {
            bail!("{method} {path}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }

    fn create(&mut self, name: &str, namespace: &Namespace, rule: &str) -> Result<()> {
        let netns = namespace.path();
        let body = format!(
            "{{\"name\": \"{name}\", \"target\": {{\"netns\": \"{}\"}}, \"rules\": [{{{rule}}}], \"lease\": \"10m\"}}",
            netns.display()
        );
        self.request("POST", "/v1/faults", &body)
    }

    fn delete(&mut self, name: &str) -> Result<()> {
        self.request("DELETE", &format!("/v1/faults/{name}"), "")
    }
}

/// Cycles of one client, whose faults match other packets than those of other clients.
fn cycle(agent: &Agent, namespace: &Namespace, number: u32, cycles: u32) -> Result<()> {
    let mut client = Client::connect(&agent.socket)?;
    let (beside, name) = (format!("beside{number}"), format!("cycle{number}"));
    let rule = |loss: &str, protocol: &str| {
        let port = 1024 + number;
        format!("\"loss\": \"{loss}\", \"protocol\": \"{protocol}\", \"remote-port\": \"{port}\"")
    };
    for number in 0..cycles {
        // Every tenth cycle attaches and detaches; in the others, another fault is active.
        match number % 10 {
            0 => client.create(&beside, namespace, &rule("1%", "tcp"))?,
            9 => client.delete(&beside)?,
            _ => {}
        }
        client.create(&name, namespace, &rule("10%", "udp"))?;
        client.delete(&name)?;
    }
    if cycles.is_multiple_of(10) { Ok(()) } else { client.delete(&beside) }
}

/// The same number of cycles in total, by concurrent clients.
fn cycle_concurrently(
    agent: &Agent,
    namespace: &Namespace,
    clients: u32,
    cycles: u32,
) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|number| {
                let own = cycles / clients + u32::from(number < cycles % clients);
                scope.spawn(move || cycle(agent, namespace, number, own))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a client panicked"),
        })
    })
}

/// Measures resources with one client and with several. The latter must not need more.
fn cycles(agent: &Agent, namespace: &Namespace, cycles: u32) -> Result<bool> {
    progress(&format!(
        "{cycles} faults start and end, with 1 and {CONCURRENCY} concurrent clients"
    ));
    cycle(agent, namespace, 0, WARM_UP_CYCLES)?;
    println!("| cycles | clients | each | files | maps | programs | threads | memory | |");
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|---|");
    let (mut first, mut good) = (None, true);
    for tenth in 1..=10 {
        let share = tenth * cycles / 10 - (tenth - 1) * cycles / 10;
        let clients = if tenth % 2 == 1 { 1 } else { CONCURRENCY };
        let began = Instant::now();
        cycle_concurrently(agent, namespace, clients, share)?;
        let each = began.elapsed().as_secs_f64() * 1e3 / f64::from(share.max(1));
        let now = agent.resources()?;
        let has_grown = first.get_or_insert(now).has_grown(&now);
        good &= !has_grown;
        println!(
            "| {} | {clients} | {each:.2} ms | {} | {} | {} | {} | {} KiB | {} |",
            tenth * cycles / 10,
            now.files,
            now.maps,
            now.programs,
            now.threads,
            now.resident,
            if has_grown { "grown" } else { "flat" }
        );
    }
    Ok(good)
}

fn served(agent: &Agent, namespace: &Namespace, args: &Args) -> Result<bool> {
    let &Args { faults, clients, seconds, .. } = args;
    progress(&format!(
        "{clients} clients send requests for {seconds} s, with {faults} active faults"
    ));
    let mut client = Client::connect(&agent.socket)?;
    client.create("pings", namespace, "\"loss\": \"10%\", \"protocol\": \"icmp\"")?;
    for number in 0..faults {
        let rule = format!(
            "\"loss\": \"10%\", \"protocol\": \"udp\", \"remote-port\": \"{}\"",
            1024 + number
        );
        client.create(&format!("f{number}"), namespace, &rule)?;
    }
    let mut ping = namespace.command("ping")?;
    ping.args(["-q", "-i", "0.002", "127.0.0.1"]).stdout(Stdio::null());
    let mut ping = ping.spawn().context("cannot run ping")?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let asked = thread::scope(|scope| {
        let ask = |first: u32| {
            move || -> Result<Vec<f64>> {
                let mut client = Client::connect(&agent.socket)?;
                let mut took = Vec::new();
                let mut number = first;
                while Instant::now() < end {
                    number = (number + 1) % faults.max(1);
                    let began = Instant::now();
                    // Renewals are the requests that reach the kernel.
                    if took.len() % 10 == 9 {
                        client.request("POST", &format!("/v1/faults/f{number}/renew"), "")?;
                    } else {
                        client.request("GET", &format!("/v1/faults/f{number}"), "")?;
                    }
                    took.push(began.elapsed().as_secs_f64() * 1e3);
                }
                Ok(took)
            }
        };
        let threads: Vec<_> = (0..clients).map(|client| scope.spawn(ask(client * 7))).collect();
        let results = threads.into_iter().map(|thread| match thread.join() {
            Ok(took) => took,
            Err(_) => bail!("a client panicked"),
        });
        results.collect::<Result<Vec<_>>>()
    });
    // The process may have ended.
    let _ = ping.kill();
    let _ = ping.wait();
    let mut took = asked?.concat();
    took.sort_by(f64::total_cmp);
    ensure!(!took.is_empty(), "no request was made");
    let at = |part: f64| took[((took.len() as f64 * part) as usize).min(took.len() - 1)];
    let rate = took.len() as f64 / seconds as f64;
    let good = rate >= MIN_REQUEST_RATE;
    println!("\n| faults | clients | requests a second | half within | 99 % within | |");
    println!("|--:|--:|--:|--:|--:|---|");
    println!(
        "| {} | {clients} | {rate:.0} | {:.3} ms | {:.3} ms | {} |",
        faults + 1,
        at(0.5),
        at(0.99),
        if good { "met" } else { "missed" }
    );
    Ok(good)
}

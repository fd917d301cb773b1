//! The mean rate and the order of packets while a rate changes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    super::{
        injector::Injector,
        link::{Link, NEAR},
        progress,
        target::Target,
    },
    contender::Contender,
    flow::{Flows, LARGE_PAYLOAD},
};

/// The number of changes under each flow.
const CHANGES: u32 = 100;

/// The alternating rates in bits a second, and the ends of the ramp.
const RATES: [f64; 2] = [8e6, 2e6];

/// The number of rates of a ramp.
const RAMP: u32 = 44;

/// Ethernet, IPv4 and UDP headers.
const UDP_HEADERS: usize = 42;

/// The part of a full TCP segment that is payload: of 1,514 bytes, with timestamps.
const TCP_PAYLOAD: f64 = 1448.0 / 1514.0;

/// The maximum deviation of the mean rate, in percent.
const LIMIT: f64 = 2.0;

/// The time in which the queue fills.
const WARM_UP: Duration = Duration::from_secs(2);

const TIMEOUT: Duration = Duration::from_secs(30);

/// How the rate changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Steps,
    Ramp,
    Reload,
}

impl How {
    const fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::Ramp => "ramp",
            Self::Reload => "SIGHUP",
        }
    }

    /// The number of changes until the rates repeat.
    const fn period(self) -> u32 {
        match self {
            Self::Ramp => RAMP,
            Self::Steps | Self::Reload => 2,
        }
    }
}

/// Measures each kind of change, with each engine available.
pub fn measure(injector: &Injector, targets: &mut Vec<Target>) -> Result<()> {
    // Longer than the notice of a change by SIGHUP.
    let step = Duration::from_millis(200);
    let link = Link::new()?;
    let flows = Flows::new(&link)?;
    let engines = Contender::here(&link)?;
    let mean = f64::midpoint(RATES[0], RATES[1]);
    println!(
        "\n| rate 8 to 2 Mbit/s | engine | UDP Mbit/s of 5 | out of order | TCP Mbit/s of 5 |"
    );
    println!("|---|---|--:|--:|--:|");
    for (contender, engine) in [(Contender::Edt, "edt"), (Contender::Tap, "tap")] {
        if !engines.contains(&contender) {
            continue;
        }
        for how in [How::Steps, How::Ramp, How::Reload] {
            progress(&format!("changes by {}, {engine}", how.name()));
            let mut changing = Changing::start(how, step, injector, &link, engine)?;
            let periods = CHANGES.div_ceil(how.period());
            let window = step * how.period() * periods;
            let (udp, disorder, tcp) = changing.during(|| {
                let (udp, disorder) = udp(&flows, step * how.period(), window)?;
                Ok((udp, disorder, flows.tcp(window, None)?.rate / TCP_PAYLOAD))
            })?;
            println!(
                "| {} | {engine} | {:.3} | {disorder} | {:.3} |",
                how.name(),
                udp / 1e6,
                tcp / 1e6
            );
            let mut add = |what: &str, limit, measured| {
                let name = format!("{what}, {}, {engine}", how.name());
                targets.push(Target { name, is_minimum: false, limit, measured });
            };
            add("UDP off the mean rate, %", LIMIT, (udp / mean - 1.0).abs() * 100.0);
            add("UDP packets out of order", 0.0, disorder as f64);
            add("TCP off the mean rate, %", LIMIT, (tcp / mean - 1.0).abs() * 100.0);
        }
    }
    Ok(())
}

/// The rate of UDP at the receiver in a window, in bits a second on the wire, and the number of packets
/// out of order. The window starts when the queue is full.
fn udp(flows: &Flows, period: Duration, window: Duration) -> Result<(f64, usize)> {
    let bits = ((LARGE_PAYLOAD + UDP_HEADERS) * 8) as f64;
    // Twice the highest rate.
    let pause = Duration::from_secs_f64(bits / (2.0 * RATES[0]));
    let time = WARM_UP + window + period;
    let count = (time.as_secs_f64() / pause.as_secs_f64()) as u32;
    let (arrivals, _) = flows.arrivals(LARGE_PAYLOAD, count, pause, Duration::from_millis(200))?;
    let start = arrivals.first().context("nothing arrived")?.received_ns + nanoseconds(WARM_UP);
    let window = start..start + nanoseconds(window);
    let inside = arrivals.iter().filter(|arrival| window.contains(&arrival.received_ns));
    let rate = inside.count() as f64 * bits / ((window.end - window.start) as f64 / 1e9);
    let mut last = 0;
    let late = arrivals.iter().filter(|arrival| {
        let is_late = arrival.sent_ns < last;
        last = last.max(arrival.sent_ns);
        is_late
    });
    Ok((rate, late.count()))
}

const fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos() as u64
}

/// A link whose rate changes.
struct Changing {
    how: How,
    step: Duration,
    child: Child,
    events: Receiver<String>,
    file: PathBuf,
}

impl Changing {
    fn start(
        how: How,
        step: Duration,
        injector: &Injector,
        link: &Link,
        engine: &str,
    ) -> Result<Self> {
        let file = std::env::temp_dir().join(format!("injector-rates-{}", std::process::id()));
        let mut command = injector.command(&link.near)?;
        let [fast, slow] = RATES.map(rule);
        let ms = step.as_millis() as u32;
        let targets =
            format!("targets: {{it: {{netns: {}}}}}\ntimeline:\n", link.near.path().display());
        let text = match how {
            How::Reload => format!("rules: [{fast}]\n"),
            How::Steps => format!(
                "{targets}- {{every: {0}ms, for: {ms}ms, times: 10000, faults: {{rules: [{fast}]}}}}\n\
                 - {{at: {ms}ms, every: {0}ms, for: {ms}ms, times: 10000, faults: {{rules: [{slow}]}}}}\n",
                2 * ms,
            ),
            How::Ramp => format!(
                "{targets}- {{every: {0}ms, for: {0}ms, times: 1000, ramp: {{from: {{rules: [{fast}]}}, \
                 to: {{rules: [{slow}]}}, steps: {1}}}}}\n",
                RAMP * ms,
                RAMP - 1,
            ),
        };
        fs::write(&file, text)?;
        if how == How::Reload {
            command.args(["inject", "--interface", NEAR, "--for", "forever", "--rules"]).arg(&file);
        } else {
            command.arg("apply").arg(&file);
        }
        command.args(["--output", "json", "--engine", engine]).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the injector")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        let (sender, events) = mpsc::channel();
        thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let changing = Self { how, step, child, events, file };
        changing.wait_for("started")?;
        Ok(changing)
    }

    fn wait_for(&self, event: &str) -> Result<()> {
        let kind = format!("\"event\":\"{event}\"");
        while !self
            .events
            .recv_timeout(TIMEOUT)
            .with_context(|| format!("no {event}"))?
            .contains(&kind)
        {}
        Ok(())
    }

    /// Does some work while the rate changes.
    fn during<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let changes = scope.spawn(|| self.change(&is_over));
            let result = work();
            is_over.store(true, Ordering::Relaxed);
            changes.join().map_err(|_| anyhow!("the changes panicked"))??;
            result
        })
    }

    /// Changes the rule file on schedule.
    fn change(&mut self, is_over: &AtomicBool) -> Result<()> {
        let start = Instant::now();
        for number in 1u32.. {
            let due = start + self.step * number;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            if self.how == How::Reload {
                let rule = rule(RATES[number as usize % 2]);
                fs::write(&self.file, format!("rules: [{rule}]\n"))?;
                kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGHUP)?;
                self.wait_for("changed")?;
            }
        }
        Ok(())
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        // It may have ended because of a failure.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.file);
    }
}

/// A rule with this rate.
fn rule(bits_a_second: f64) -> String {
    format!("{{rate: '{bits_a_second}bit', direction: egress}}")
}

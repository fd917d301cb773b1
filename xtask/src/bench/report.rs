//! What was found, and whether it is good enough.

use std::{
    fmt::{self, Display, Formatter},
    fs,
};

use anyhow::Result;
use serde::Serialize;

use super::{
    startup::{self, Startup},
    test_run::{self, EMPTY_TC, EMPTY_XDP, MATCH, NO_MATCH, XDP_LOSS},
    throughput,
};

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Of the running kernel.
    pub kernel: String,
    /// The processor's name and count.
    pub processor: String,
    /// Whether the figures were taken in a hurry.
    pub quick: bool,
    /// Nanoseconds a packet.
    pub test_run: Vec<test_run::Row>,
    /// From exec to active fault.
    pub startup: Option<Startup>,
    /// Traffic over a veth pair.
    pub throughput: Vec<throughput::Row>,
    /// What was promised.
    pub targets: Vec<Target>,
}

/// What came of a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is kept.
    Pass,
    /// It is not.
    Miss,
    /// What was measured with nothing attached varies by more than the limit: too much else runs here.
    Unclear,
}

/// A promise, and what came of it.
#[derive(Debug, Serialize)]
pub struct Target {
    /// What is promised.
    pub name: &'static str,
    /// The most that it may be.
    pub limit: f64,
    /// What it is.
    pub measured: f64,
    /// What both are measured in.
    pub unit: &'static str,
    /// Whether the promise is kept.
    pub verdict: Verdict,
}

impl Report {
    /// An empty one for this machine.
    pub fn new(quick: bool) -> Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo")?;
        let models = info.lines().filter_map(|line| line.strip_prefix("model name"));
        let model = models.clone().next().unwrap_or_default().trim_start_matches(['\t', ':', ' ']);
        Ok(Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into(),
            processor: format!("{} × {model}", models.count()),
            quick,
            test_run: Vec::new(),
            startup: None,
            throughput: Vec::new(),
            targets: Vec::new(),
        })
    }

    /// Compares what was measured with what was promised.
    pub fn judge(&mut self) {
        const PERCENT: &str = "%";

        let ns = |name, rules| {
            self.test_run
                .iter()
                .find(|row| row.name == name && row.rules == rules)
                .map(|row| row.ns)
        };
        // The program's own cost: what an empty one takes is the measuring.
        let own = |name, empty| Some(ns(name, 1)? - ns(empty, 0)?);
        let no_match = self.throughput.iter().find(|row| row.name == throughput::NO_MATCH);
        let nothing = self.throughput.iter().find(|row| row.name == throughput::NOTHING);
        let noise = nothing.map(|row| row.tcp.spread.max(row.udp.spread) * 100.0);
        let cost = |figure: &throughput::Figure| (1.0 - figure.ratio) * 100.0;
        let flat = |name| Some(ns(name, 65_536)? / ns(name, 1)?);
        let promises = [
            ("no match: TCP, cost to the sender", 3.0, no_match.map(|row| cost(&row.tcp)), PERCENT),
            ("no match: UDP, cost to the sender", 3.0, no_match.map(|row| cost(&row.udp)), PERCENT),
            ("no match, over an empty program", 40.0, own(NO_MATCH, EMPTY_TC), "ns"),
            ("match at 0 %, over an empty program", 120.0, own(MATCH, EMPTY_TC), "ns"),
            ("match: 65,536 rules to 1", 1.3, flat(MATCH), "times"),
            ("no match: 65,536 rules to 1", 1.3, flat(NO_MATCH), "times"),
            ("XDP drop, over an empty program", 30.0, own(XDP_LOSS, EMPTY_XDP), "ns"),
            ("exec to active fault, median", 150.0, self.startup.map(|s| s.inject.median_ms), "ms"),
        ];
        let judged = promises.into_iter().filter_map(|(name, limit, measured, unit)| {
            let measured = measured?;
            let verdict = match noise.filter(|_| unit == PERCENT) {
                Some(noise) if noise > limit => Verdict::Unclear,
                _ if measured <= limit => Verdict::Pass,
                _ => Verdict::Miss,
            };
            Some(Target { name, limit, measured, unit, verdict })
        });
        self.targets = judged.collect();
    }

    /// Whether all promises are kept.
    pub fn is_good(&self) -> bool {
        self.targets.iter().all(|target| target.verdict == Verdict::Pass)
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        writeln!(f, "Linux {}, {}", self.kernel, self.processor)?;
        if !self.throughput.is_empty() {
            writeln!(
                f,
                "\n| veth pair | TCP Gbit/s | ratio | UDP Mpps | ratio | UDP to 65,536 remotes Mpps | ratio |"
            )?;
            writeln!(f, "|---|--:|--:|--:|--:|--:|--:|")?;
            for row in &self.throughput {
                write!(f, "| {} ", row.name)?;
                for (figure, unit) in [(&row.tcp, 1e9), (&row.udp, 1e6), (&row.many, 1e6)] {
                    write!(
                        f,
                        "| {:.3} | {:.3} ± {:.3} ",
                        figure.rate / unit,
                        figure.ratio,
                        figure.spread
                    )?;
                }
                writeln!(f, "|")?;
            }
        }
        if !self.test_run.is_empty() {
            writeln!(f, "\n| BPF_PROG_TEST_RUN | rules | ns a packet |\n|---|--:|--:|")?;
            for row in &self.test_run {
                writeln!(
                    f,
                    "| {} | {} | {:.0} ± {:.1} |",
                    row.name, row.rules, row.ns, row.spread
                )?;
            }
        }
        if let Some(startup) = &self.startup {
            write_startup(f, startup)?;
        }
        writeln!(f, "\n| target | limit | measured | |\n|---|--:|--:|---|")?;
        for Target { name, limit, measured, unit, verdict } in &self.targets {
            let verdict = match verdict {
                Verdict::Pass => "pass",
                Verdict::Miss => "MISS",
                Verdict::Unclear => "unclear: this machine is too busy",
            };
            writeln!(f, "| {name} | {limit} {unit} | {measured:.2} {unit} | {verdict} |")?;
        }
        Ok(())
    }
}

fn write_startup(f: &mut Formatter, startup: &Startup) -> fmt::Result {
    writeln!(f, "\n| {} starts | median ms | max ms |\n|---|--:|--:|", startup.starts)?;
    let rows: [(&str, startup::Figure); 4] = [
        ("`injector inject --interface`, exec to active", startup.inject),
        ("the same with 65,536 rules from a file", startup.inject_many),
        ("`injector run --loss 1% -- true`, whole", startup.run),
        ("`true`, whole", startup.plain),
    ];
    for (name, figure) in rows {
        writeln!(f, "| {name} | {:.1} | {:.1} |", figure.median_ms, figure.max_ms)?;
    }
    Ok(())
}

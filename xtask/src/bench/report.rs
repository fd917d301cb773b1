//! The report of the packet benchmark, with its targets.

use std::{
    fmt::{self, Display, Formatter},
    fs,
};

use anyhow::Result;
use serde::Serialize;

use super::{
    numbers::Estimate,
    startup::{self, Startup},
    test_run::{self, EMPTY_TC, EMPTY_XDP, MATCH, NO_MATCH, XDP_LOSS},
    throughput::{self, Row, Throughput},
};

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The release of the running kernel.
    pub kernel: String,
    /// The number and model of CPUs.
    pub processor: String,
    /// Whether `--quick` was given.
    pub quick: bool,
    /// Nanoseconds a packet.
    pub test_run: Vec<test_run::Row>,
    /// From exec to active fault.
    pub startup: Option<Startup>,
    /// Traffic over a veth pair.
    pub throughput: Option<Throughput>,
    /// The targets.
    pub targets: Vec<Target>,
}

/// The verdict on a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The target is met.
    Pass,
    /// The target is missed.
    Miss,
    /// The interval contains the limit: measure longer, or on a quieter machine.
    Unclear,
}

/// A target and the measured value.
#[derive(Debug, Serialize)]
pub struct Target {
    /// The name of the target.
    pub name: &'static str,
    /// The maximum.
    pub limit: f64,
    /// The measured value.
    pub measured: f64,
    /// The 95 % confidence interval, if known.
    pub interval: Option<[f64; 2]>,
    /// The unit of all values.
    pub unit: &'static str,
    /// The verdict.
    pub verdict: Verdict,
}

impl Target {
    fn new(name: &'static str, limit: f64, measured: f64, unit: &'static str) -> Self {
        let verdict = if measured <= limit { Verdict::Pass } else { Verdict::Miss };
        Self { name, limit, measured, interval: None, unit, verdict }
    }

    /// Adds the confidence interval.
    fn between(mut self, low: f64, high: f64) -> Self {
        self.interval = Some([low, high]);
        if low <= self.limit && high > self.limit {
            self.verdict = Verdict::Unclear;
        }
        self
    }
}

impl Report {
    /// An empty report for this machine.
    pub fn new(quick: bool) -> Result<Self> {
        Ok(Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into(),
            processor: super::page::processors()?,
            quick,
            test_run: Vec::new(),
            startup: None,
            throughput: None,
            targets: Vec::new(),
        })
    }

    /// Compares the measured values with the targets.
    pub fn check_targets(&mut self) {
        let ns = |name, rules| {
            self.test_run
                .iter()
                .find(|row| row.name == name && row.rules == rules)
                .map(|row| row.ns)
        };
        // The cost of an empty program is the overhead of measuring.
        let own = |name, empty| Some(ns(name, 1)? - ns(empty, 0)?);
        let flat = |name| Some(ns(name, 65_536)? / ns(name, 1)?);
        let traffic = self.throughput.as_ref();
        let no_match = traffic.and_then(|traffic| traffic.row(throughput::NO_MATCH));
        let costs = [
            ("no match: TCP, cost to the sender", no_match.map(|row| row.tcp.sending)),
            (
                "no match: UDP small packets, cost over an empty tcx program",
                traffic.map(|traffic| traffic.udp_over_empty),
            ),
        ];
        let costs = costs.into_iter().filter_map(|(name, ratio)| {
            let cost = ratio?.cost();
            Some(Target::new(name, 3.0, cost.median, "%").between(cost.low, cost.high))
        });
        let maxima = [
            ("no match, over an empty program", 40.0, own(NO_MATCH, EMPTY_TC), "ns"),
            ("match at 0 %, over an empty program", 120.0, own(MATCH, EMPTY_TC), "ns"),
            ("match: 65,536 rules to 1", 1.3, flat(MATCH), "times"),
            ("no match: 65,536 rules to 1", 1.3, flat(NO_MATCH), "times"),
            ("XDP drop, over an empty program", 30.0, own(XDP_LOSS, EMPTY_XDP), "ns"),
            ("exec to active fault, median", 150.0, self.startup.map(|s| s.inject.median_ms), "ms"),
        ];
        let maxima = maxima.into_iter().filter_map(|(name, limit, measured, unit)| {
            Some(Target::new(name, limit, measured?, unit))
        });
        self.targets = costs.chain(maxima).collect();
    }

    /// Whether all targets are met.
    pub fn is_good(&self) -> bool {
        self.targets.iter().all(|target| target.verdict == Verdict::Pass)
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        writeln!(f, "Linux {}, {}", self.kernel, self.processor)?;
        if let Some(traffic) = &self.throughput {
            write_throughput(f, traffic)?;
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
        for Target { name, limit, measured, interval, unit, verdict } in &self.targets {
            let verdict = match verdict {
                Verdict::Pass => "pass",
                Verdict::Miss => "MISS",
                Verdict::Unclear => "unclear: the interval contains the limit",
            };
            let interval =
                interval.map_or(String::new(), |[low, high]| format!(" ({low:.2} to {high:.2})"));
            writeln!(
                f,
                "| {name} | {limit} {unit} | {measured:.2}{interval} {unit} | {verdict} |"
            )?;
        }
        Ok(())
    }
}

fn write_throughput(f: &mut Formatter, traffic: &Throughput) -> fmt::Result {
    type Of = fn(&throughput::Figure) -> Estimate;

    let Throughput { blocks, rounds, rows, .. } = traffic;
    writeln!(f, "\n{rounds} rounds in {blocks} blocks; ratios with their 95 % intervals")?;
    let ratios: [(&str, Of); 2] = [
        ("sender's processor time, ratio", |figure| figure.sending),
        ("wall-clock time, ratio", |figure| figure.whole),
    ];
    for (title, ratio) in ratios {
        writeln!(
            f,
            "\n| {title} | TCP | TCP on one processor | UDP | UDP to 65,536 remotes |\n|---|--:|--:|--:|--:|"
        )?;
        for row in rows {
            write!(f, "| {} ", row.name)?;
            for figure in [&row.tcp, &row.tcp_alone, &row.udp, &row.many] {
                let Estimate { median, low, high } = ratio(figure);
                write!(f, "| {median:.3} ({low:.3} to {high:.3}) ")?;
            }
            writeln!(f, "|")?;
        }
    }
    writeln!(
        f,
        "\n| a second | TCP Gbit | on one processor | UDP M packets | UDP to 65,536 remotes |\n|---|--:|--:|--:|--:|"
    )?;
    for Row { name, tcp, tcp_alone, udp, many, .. } in rows {
        let [tcp, tcp_alone] = [tcp, tcp_alone].map(|figure| figure.rate / 1e9);
        let [udp, many] = [udp, many].map(|figure| figure.rate / 1e6);
        writeln!(f, "| {name} | {tcp:.2} | {tcp_alone:.2} | {udp:.3} | {many:.3} |")?;
    }
    Ok(())
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

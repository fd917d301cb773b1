//! The metrics in the Prometheus text format.

use std::{collections::BTreeMap, fs, sync::Arc};

use prometheus::{
    CounterVec, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
    proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{
    api::{Fault, Kind, Reason},
    board::{Board, Ledger},
};
use crate::fault::{counts::ProcessCounts, network::delays::DelayReport};

/// The content type of the page.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Renders the page.
pub fn page(
    board: &Board,
    requests: &BTreeMap<(String, u16), u64>,
    connections: usize,
) -> prometheus::Result<String> {
    let registry = Registry::new();
    let (ledger, mut active) = board.counted();
    // Faults by labels are counted in their parts.
    active.retain(|fault| !fault.is_of_selected());
    faults(&registry, &active)?;
    processes(&registry, &active)?;
    totals(&registry, ledger, &active)?;
    server(&registry, board, requests, connections)?;
    process(&registry)?;
    let mut families = registry.gather();
    families.extend(delays(&active));
    TextEncoder::new().encode_to_string(&families)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

/// A counter family of floating-point values.
fn fractions(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<CounterVec> {
    let counters = CounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}

/// Metrics of each active fault.
fn faults(registry: &Registry, faults: &[Arc<Fault>]) -> prometheus::Result<()> {
    let packets = counters(
        registry,
        "injector_fault_matched_packets_total",
        "Packets that rules of an active fault matched.",
        &["fault", "direction"],
    )?;
    let bytes = counters(
        registry,
        "injector_fault_matched_bytes_total",
        "Bytes of the packets that rules of an active fault matched.",
        &["fault", "direction"],
    )?;
    let actions = counters(
        registry,
        "injector_fault_packets_total",
        "What an active fault did to packets, by what it was.",
        &["fault", "action"],
    )?;
    let clocks = gauges(
        registry,
        "injector_fault_clock_processes",
        "Processes whose clocks an active fault has made wrong.",
        &["fault"],
    )?;
    let active = gauges(
        registry,
        "injector_active_faults",
        "Faults that act, by what they fault; one may be of several kinds.",
        &["kind"],
    )?;
    for kind in Kind::ALL {
        active.with_label_values(&[&kind.to_string()]).set(0);
    }
    for fault in faults {
        let name = fault.name.as_str();
        for kind in &fault.kinds {
            active.with_label_values(&[&kind.to_string()]).inc();
        }
        if fault.kinds.contains(&Kind::Network) {
            let ways = [("egress", fault.packets.egress), ("ingress", fault.packets.ingress)];
            for (direction, traffic) in ways {
                packets.with_label_values(&[name, direction]).inc_by(traffic.packets);
                bytes.with_label_values(&[name, direction]).inc_by(traffic.bytes);
            }
            for (counter, count) in fault.packets.done.each() {
                actions.with_label_values(&[name, counter.name]).inc_by(count);
            }
        }
        if let Some(report) = &fault.clocks {
            clocks.with_label_values(&[name]).set(report.present.cast_signed());
        }
    }
    Ok(())
}

/// Process metrics of each active fault, one for each counter of the table.
fn processes(registry: &Registry, faults: &[Arc<Fault>]) -> prometheus::Result<()> {
    let counts: Vec<(&str, ProcessCounts)> = faults
        .iter()
        .filter_map(|fault| Some((fault.name.as_str(), fault.processes.as_ref()?.into())))
        .collect();
    for (row, (counter, _)) in ProcessCounts::default().each().enumerate() {
        let (name, divisor) = counter.metric();
        let help = counter.help.replace("milliseconds", "seconds");
        let metric = fractions(registry, &name, &help, &["fault"])?;
        for (fault, counts) in &counts {
            let count = counts.each().nth(row).map_or(0, |(_, count)| count);
            metric.with_label_values(&[*fault]).inc_by(count as f64 / divisor);
        }
    }
    Ok(())
}

/// The delay histograms of active faults by direction; `None` if no packet was held. Built from the eBPF
/// side's buckets, which the library's histograms cannot represent.
fn delays(faults: &[Arc<Fault>]) -> Option<MetricFamily> {
    let mut metrics = Vec::new();
    for fault in faults {
        let Some(delay) = &fault.packets.delay else { continue };
        for (direction, delay) in [("egress", &delay.egress), ("ingress", &delay.ingress)] {
            let Some(delay) = delay else { continue };
            let labels = [("direction", direction), ("fault", &fault.name)];
            let mut metric = Metric::from_label(labels.map(label).into());
            metric.set_histogram(histogram(delay));
            metrics.push(metric);
        }
    }
    let mut family = MetricFamily::default();
    family.set_name("injector_fault_delay_seconds".into());
    family.set_help("For how long an active fault holds packets back.".into());
    family.set_field_type(MetricType::HISTOGRAM);
    let has_some = !metrics.is_empty();
    family.set_metric(metrics);
    has_some.then_some(family)
}

fn label((name, value): (&str, &str)) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.into());
    label.set_value(value.into());
    label
}

fn histogram(delay: &DelayReport) -> Histogram {
    let bucket = |(bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(count);
        bucket
    };
    let mut histogram = Histogram::default();
    histogram.set_bucket(delay.cumulative().map(bucket).collect());
    histogram.set_sample_count(delay.count);
    histogram.set_sample_sum(delay.sum_ms / 1e3);
    histogram
}

/// Totals of all faults, including ended ones.
fn totals(registry: &Registry, ledger: Ledger, active: &[Arc<Fault>]) -> prometheus::Result<()> {
    let mut all = ledger.packets;
    for fault in active {
        all += &fault.packets;
    }
    let packets = counters(
        registry,
        "injector_packets_total",
        "What all faults did to packets, ended ones included, by what it was.",
        &["action"],
    )?;
    let done = all.done.each().map(|(counter, count)| (counter.name, count));
    for (action, count) in done.chain([("matched", all.matched)]) {
        packets.with_label_values(&[action]).inc_by(count);
    }
    let created = counters(registry, "injector_faults_created_total", "Faults that began.", &[])?;
    created.with_label_values::<&str>(&[]).inc_by(ledger.created);
    let ended = counters(
        registry,
        "injector_faults_ended_total",
        "Faults that ended, by the reason.",
        &["reason"],
    )?;
    for reason in Reason::ALL {
        let count = ledger.ended.get(&reason).copied().unwrap_or_default();
        ended.with_label_values(&[&reason.to_string()]).inc_by(count);
    }
    let lapsed = counters(
        registry,
        "injector_lease_expiries_total",
        "Faults that ended because their client did not renew them.",
        &[],
    )?;
    let count = ledger.ended.get(&Reason::Lapsed).copied().unwrap_or_default();
    lapsed.with_label_values::<&str>(&[]).inc_by(count);
    let errors = counters(
        registry,
        "injector_errors_total",
        "Requests that failed, by the kind of failure.",
        &["error"],
    )?;
    for (code, count) in ledger.problems {
        let name = serde_json::to_value(code).ok();
        let name = name.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
        errors.with_label_values(&[name]).inc_by(count);
    }
    Ok(())
}

fn server(
    registry: &Registry,
    board: &Board,
    requests: &BTreeMap<(String, u16), u64>,
    connections: usize,
) -> prometheus::Result<()> {
    let info = gauges(registry, "injector_build_info", "The agent that runs.", &["version"])?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    let http = counters(
        registry,
        "injector_http_requests_total",
        "Requests that were answered.",
        &["method", "status"],
    )?;
    for ((method, status), &count) in requests {
        http.with_label_values(&[method.as_str(), &status.to_string()]).inc_by(count);
    }
    let open = gauges(registry, "injector_http_connections", "Connections that are open.", &[])?;
    open.with_label_values::<&str>(&[]).set(i64::try_from(connections).unwrap_or(i64::MAX));
    let silent = GaugeVec::new(
        Opts::new(
            "injector_keeper_silent_seconds",
            "Since the thread that owns the faults was last seen.",
        ),
        &[],
    )?;
    registry.register(Box::new(silent.clone()))?;
    silent.with_label_values::<&str>(&[]).set(board.silent_ns() as f64 / 1e9);
    Ok(())
}

/// Metrics of the agent process, by the conventional names.
fn process(registry: &Registry) -> prometheus::Result<()> {
    let Ok(myself) = procfs::process::Process::myself() else { return Ok(()) };
    let Ok(stat) = myself.stat() else { return Ok(()) };
    let cpu = fractions(
        registry,
        "process_cpu_seconds_total",
        "Processor time of the agent, user and system.",
        &[],
    )?;
    let ticks = procfs::ticks_per_second();
    cpu.with_label_values::<&str>(&[]).inc_by((stat.utime + stat.stime) as f64 / ticks as f64);
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let resident = gauges(
        registry,
        "process_resident_memory_bytes",
        "Memory of the agent that is in RAM.",
        &[],
    )?;
    resident.with_label_values::<&str>(&[]).set(signed(stat.rss * procfs::page_size()));
    let open = gauges(registry, "process_open_fds", "Open files of the agent.", &[])?;
    let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    open.with_label_values::<&str>(&[]).set(signed(files as u64));
    let threads = gauges(registry, "process_threads", "Threads of the agent.", &[])?;
    threads.with_label_values::<&str>(&[]).set(stat.num_threads);
    Ok(())
}

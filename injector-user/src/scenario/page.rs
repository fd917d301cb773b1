//! Renders a timeline as a self-contained HTML page.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    chart::{Bar, Series, bars, colour, escape, lines},
    timeline::{Counts, Event, Line},
};
use crate::spec::scenario::plan::PARTITION;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:1040px;margin:2em auto;padding:0 1em;\
color:#222}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:1.6em}svg{width:100%;height:auto;display:block}\
svg text{font:12px system-ui,sans-serif;fill:#555}.grid{stroke:#e4e4e4}polyline{fill:none;stroke-width:1.8}\
table{border-collapse:collapse}td,th{padding:.15em .8em .15em 0;text-align:right;border-bottom:1px solid #eee}\
td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}.key span{margin-right:1.2em}\
.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}.bad{color:#b00020}";

/// The content security policy: browsers run no scripts and load nothing, whatever the page contains.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// Renders the page. `measured` are measurements of the system under test over the same time.
#[must_use]
pub fn page(timeline: &[Line], measured: &[Series]) -> String {
    let mut scenario = "a scenario";
    let mut seed = None;
    for line in timeline {
        if let Event::Started { scenario: file, seed: number, .. } = &line.event {
            (scenario, seed) = (file.as_str(), Some(*number));
        }
    }
    let last = timeline.iter().map(|line| line.elapsed_ms / 1e3).fold(0.0, f64::max);
    let length = if last > 0.0 { last } else { 1.0 };
    let mut body = format!("<h1>{}</h1>", escape(scenario));
    head(&mut body, timeline, seed);

    let (rows, active) = activity(timeline, length);
    body += "<h2>What was active</h2>";
    body += &bars("What was active", length, &rows, &active);
    if !measured.is_empty() {
        for series in measured {
            let _ = write!(body, "<h2>{}</h2>", escape(&series.name));
            body += &lines(&series.name, length, std::slice::from_ref(series));
        }
    }
    for (title, value) in RATES {
        let series = rates(timeline, value);
        if series.iter().any(|series| series.points.iter().any(|point| point.1 > 0.0)) {
            let _ = write!(body, "<h2>{title}, a second</h2>");
            body += &key(&series);
            body += &lines(title, length, &series);
        }
    }
    let late = lateness(timeline);
    if !late.points.is_empty() {
        body += "<h2>How late changes were, ms</h2>";
        body += &lines("How late changes were, ms", length, std::slice::from_ref(&late));
    }
    body += &table(timeline);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\"><title>{}</title>\
         <link rel=\"icon\" href=\"data:,\"><style>{STYLE}</style></head><body>{body}</body></html>\n",
        escape(scenario)
    )
}

type Value = fn(&Counts) -> u64;

/// The charted counters.
const RATES: [(&str, Value); 6] = [
    ("Packets matched", |counts| counts.matched),
    ("Packets lost", |counts| counts.packets.dropped.saturating_add(counts.packets.queue_dropped)),
    ("Packets delayed", |counts| counts.packets.delayed),
    ("Packets duplicated", |counts| counts.packets.duplicated),
    ("Packets corrupted", |counts| counts.packets.corrupted),
    ("Connections reset", |counts| counts.packets.reset),
];

fn head(body: &mut String, timeline: &[Line], seed: Option<u64>) {
    // Writing to a string cannot fail.
    if let (Some(first), Some(seed)) = (timeline.first(), seed) {
        let _ = write!(body, "<p>{}, seed {seed}</p>", escape(&first.time));
    }
    for line in timeline {
        let _ = match &line.event {
            Event::Failed { error } => {
                write!(body, "<p class=\"bad\">Failed: {}</p>", escape(error))
            }
            Event::Warning { message } => write!(body, "<p class=\"bad\">{}</p>", escape(message)),
            Event::Ended { changes, late, .. } => write!(
                body,
                "<p>{changes} changes; 99 % of them at most {:.3} ms late, the latest {:.3} ms.</p>",
                late.p99_ms, late.max_ms
            ),
            _ => Ok(()),
        };
    }
}

/// The rows (target and fault) and their bars.
fn activity(timeline: &[Line], length: f64) -> (Vec<String>, Vec<Bar>) {
    let mut rows: Vec<String> = Vec::new();
    let mut open: BTreeMap<usize, f64> = BTreeMap::new();
    let mut done = Vec::new();
    let mut targets: Vec<String> = Vec::new();
    let mut colours: Vec<usize> = Vec::new();
    for line in timeline {
        let Event::Change { actual_ms, targets: changes, .. } = &line.event else { continue };
        let now = actual_ms / 1e3;
        for change in changes {
            let place = targets.iter().position(|name| *name == change.target);
            let place = place.unwrap_or_else(|| {
                targets.push(change.target.clone());
                targets.len() - 1
            });
            let prefix = format!("{}: ", change.target);
            let active: Vec<String> =
                change.active.iter().map(|name| format!("{prefix}{}", short(name))).collect();
            let ended: Vec<usize> = open
                .keys()
                .copied()
                .filter(|&row| rows[row].starts_with(&prefix) && !active.contains(&rows[row]))
                .collect();
            for row in ended {
                if let Some(from) = open.remove(&row) {
                    done.push((row, from, now));
                }
            }
            for name in active {
                let row = rows.iter().position(|row| *row == name).unwrap_or_else(|| {
                    rows.push(name);
                    colours.push(place);
                    rows.len() - 1
                });
                open.entry(row).or_insert(now);
            }
        }
    }
    done.extend(open.into_iter().map(|(row, from)| (row, from, length)));
    let bars = done
        .into_iter()
        .map(|(row, from, until)| Bar {
            row,
            from,
            until,
            label: rows[row].clone(),
            colour: colours[row],
        })
        .collect();
    (rows, bars)
}

/// A ramp is one row, and each partition has one with its sides.
fn short(name: &str) -> &str {
    match name.split_once(": ") {
        Some((ramp, _)) if !name.starts_with(PARTITION) => ramp,
        _ => name,
    }
}

/// The rates of counters of each target between successive events that have them.
fn rates(timeline: &[Line], value: Value) -> Vec<Series> {
    let mut last: BTreeMap<&str, (f64, u64)> = BTreeMap::new();
    let mut rates: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    let mut add = |name, time: f64, counts: &Counts| {
        let (before, count) = last.get(name).copied().unwrap_or_default();
        // Events close together would make single packets into noise.
        if time - before < 0.05 {
            return;
        }
        let rate = value(counts).saturating_sub(count) as f64 / (time - before);
        let points = rates.entry(name).or_default();
        points.push((before, rate));
        points.push((time, rate));
        last.insert(name, (time, value(counts)));
    };
    for line in timeline {
        match &line.event {
            Event::Sample { targets } | Event::Ended { targets, .. } => {
                for (name, counts) in targets {
                    add(name, line.elapsed_ms / 1e3, counts);
                }
            }
            Event::Change { targets, actual_ms, .. } => {
                for change in targets {
                    add(&change.target, actual_ms / 1e3, &change.before);
                }
            }
            _ => {}
        }
    }
    rates.into_iter().map(|(name, points)| Series { name: name.into(), points }).collect()
}

fn lateness(timeline: &[Line]) -> Series {
    let points = timeline.iter().filter_map(|line| match &line.event {
        Event::Change { planned_ms, actual_ms, .. } => {
            Some((planned_ms / 1e3, (actual_ms - planned_ms).max(0.0)))
        }
        _ => None,
    });
    Series { name: "late".into(), points: points.collect() }
}

fn key(series: &[Series]) -> String {
    let mut text = String::from("<p class=\"key\">");
    for (number, series) in series.iter().enumerate() {
        let _ = write!(
            text,
            "<span><i style=\"background:{}\"></i>{}</span>",
            colour(number),
            escape(&series.name)
        );
    }
    text + "</p>"
}

fn table(timeline: &[Line]) -> String {
    let faults = timeline.iter().rev().find_map(|line| match &line.event {
        Event::Ended { faults, .. } => Some(faults),
        _ => None,
    });
    let Some(faults) = faults else { return String::new() };
    let mut text = String::from(
        "<h2>What each fault did</h2><table><tr><th>Target<th>Fault<th>Packets matched<th>What was done</tr>",
    );
    for (target, faults) in faults {
        for (fault, counts) in faults {
            let done: Vec<String> = counts.done_in_words().collect();
            let _ = write!(
                text,
                "<tr><td>{}<td>{}<td>{}<td>{}</tr>",
                escape(target),
                escape(fault),
                counts.matched,
                done.join(", ")
            );
        }
    }
    text + "</table>"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_timeline_says_is_shown_and_nothing_else() {
        const EVIL: &str = "</title></style><script>alert(1)</script><img src=x onerror=\"a\">'\"";
        let counts = json!({
            "dropped": u64::MAX, "queue_dropped": u64::MAX, "matched": u64::MAX, "delayed": 5
        });
        let change = json!({
            "target": EVIL, "active": [EVIL, format!("{EVIL}: {EVIL}")], "replaced": {EVIL: counts},
            "before": counts, "after": counts,
        });
        let events = [
            json!({
                "event": "started", "scenario": EVIL, "pid": 1, "seed": 1, "length_ms": 1e308, "changes": 1,
                "targets": [{"name": EVIL, "attached": [EVIL], "addresses": [EVIL], "clocks": 0}],
            }),
            json!({"event": "warning", "message": EVIL}),
            json!({"event": "gone", "target": EVIL, "what": EVIL}),
            json!({
                "event": "change", "change": 0, "planned_ms": -1e308, "actual_ms": 1e308,
                "planned_monotonic_ns": 0, "actual_monotonic_ns": 0, "planned_time": EVIL,
                "actual_time": EVIL, "targets": [change],
            }),
            json!({"event": "sample", "targets": {EVIL: counts}}),
            json!({"event": "failed", "error": EVIL}),
            json!({
                "event": "ended", "reason": "done", "changes": 1, "targets": {EVIL: counts},
                "late": {"p50_ms": 0.0, "p99_ms": 1e308, "max_ms": 1e308},
                "faults": {EVIL: {EVIL: counts}}, "clocks": {},
            }),
        ];
        for elapsed_ms in [0.0, 1e6, 1e308] {
            let line = |mut event: serde_json::Value| {
                let head = json!({"time": EVIL, "monotonic_ns": 0, "elapsed_ms": elapsed_ms});
                let fields = event.as_object_mut().expect("an object");
                fields.extend(head.as_object().expect("an object").clone());
                serde_json::from_value(event).expect("a line of a timeline")
            };
            let timeline: Vec<Line> = events.iter().cloned().map(line).collect();
            let measured = [Series { name: EVIL.into(), points: vec![(0.0, 1e308)] }];
            let page = page(&timeline, &measured);
            let without_title = page.to_lowercase();
            for tag in ["<script", "<img", "onerror=\""] {
                assert!(!without_title.contains(tag), "{tag}: {page}");
            }
            assert_eq!(page.matches("</style>").count(), 1);
            assert_eq!(page.matches("</head>").count(), 1);
            assert!(page.contains("default-src 'none'"));
        }
    }
}

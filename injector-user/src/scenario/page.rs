//! Renders a timeline as a self-contained HTML page.

use std::{collections::BTreeMap, fmt::Write as _};

use indexmap::IndexMap;

use super::{
    chart::{Bar, Series, bars, colour, escape, lines},
    timeline::{Counts, Event, Line, TargetChange},
};
use crate::{report::HostReport, spec::scenario::amount::Amount, words::plural};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:1040px;margin:2em auto;padding:0 1em;\
color:#222}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:1.6em}svg{width:100%;height:auto;display:block}\
svg text{font:12px system-ui,sans-serif;fill:#555}.grid{stroke:#e4e4e4}polyline{fill:none;stroke-width:1.8}\
table{border-collapse:collapse}td,th{padding:.15em .8em .15em 0;text-align:right;border-bottom:1px solid #eee}\
td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}.key span{margin-right:1.2em}\
.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}.bad{color:#b00020}.note{color:#7a5200}\
pre{background:#f6f6f6;padding:.8em;overflow-x:auto;font-size:.9em}";

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
    for (unit, series) in ramps(timeline, length) {
        let title = "Amounts of ramps";
        let title = if unit.is_empty() { title.into() } else { format!("{title}, {unit}") };
        let _ = write!(body, "<h2>{}</h2>", escape(&title));
        body += &key(&series);
        body += &lines(&title, unit, length, &series);
    }
    for series in measured {
        let _ = write!(body, "<h2>{}</h2>", escape(&series.name));
        body += &lines(&series.name, "", length, std::slice::from_ref(series));
    }
    for (title, unit, value) in RATES {
        let series = rates(timeline, value);
        if series.iter().any(|series| series.points.iter().any(|point| point.1 > 0.0)) {
            let _ = write!(body, "<h2>{title}</h2>");
            body += &key(&series);
            body += &lines(title, unit, length, &series);
        }
    }
    body += &table(timeline);
    text(&mut body, timeline);
    lateness(&mut body, timeline, length);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\"><title>{}</title>\
         <link rel=\"icon\" href=\"data:,\"><style>{STYLE}</style></head><body>{body}</body></html>\n",
        escape(scenario)
    )
}

type Value = fn(&Counts) -> u64;

/// The charted counters.
const RATES: [(&str, &str, Value); 6] = [
    ("Packets matched", "packets/s", |counts| counts.matched),
    ("Packets lost", "packets/s", |counts| {
        counts.packets.dropped.saturating_add(counts.packets.queue_dropped)
    }),
    ("Packets delayed", "packets/s", |counts| counts.packets.delayed),
    ("Packets duplicated", "packets/s", |counts| counts.packets.duplicated),
    ("Packets corrupted", "packets/s", |counts| counts.packets.corrupted),
    ("Connections reset", "connections/s", |counts| counts.packets.reset),
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
            Event::Warning { message } => {
                write!(body, "<p class=\"note\">{}</p>", escape(message))
            }
            Event::Started { host: Some(host), .. } => {
                let HostReport { name, kernel, architecture, injector } = host;
                let host = format!("{name}, Linux {kernel}, {architecture}, injector {injector}");
                write!(body, "<p>{}</p>", escape(&host))
            }
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
            let place = targets.iter().position(|name| *name == change.name);
            let place = place.unwrap_or_else(|| {
                targets.push(change.name.clone());
                targets.len() - 1
            });
            let prefix = format!("{}: ", change.name);
            let active: Vec<String> = change
                .active
                .iter()
                .map(|name| format!("{prefix}{}", short(change, name)))
                .collect();
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

/// The name of a fault. That of a ramp is the same for all its steps, so a ramp is one row.
fn short<'a>(change: &TargetChange, name: &'a str) -> &'a str {
    let ramp = name.split_once(": ").filter(|_| change.amounts.contains_key(name));
    ramp.map_or(name, |(ramp, _)| ramp)
}

/// The amounts of ramps over time, by unit.
fn ramps(timeline: &[Line], length: f64) -> BTreeMap<&str, Vec<Series>> {
    let mut ramps: IndexMap<(&str, String), Vec<(f64, f64)>> = IndexMap::new();
    for line in timeline {
        let Event::Change { actual_ms, targets, .. } = &line.event else { continue };
        let now = actual_ms / 1e3;
        for change in targets {
            let prefix = format!("{}: ", change.name);
            // What a ramp was until now, it is no more.
            for ((_, name), points) in &mut ramps {
                if name.starts_with(&prefix)
                    && let Some(&(_, value)) = points.last()
                    && !value.is_nan()
                {
                    points.extend([(now, value), (now, f64::NAN)]);
                }
            }
            for (fault, amounts) in &change.amounts {
                let fault = short(change, fault);
                for Amount { name, value, unit } in amounts {
                    let points =
                        ramps.entry((unit, format!("{prefix}{fault}, {name}"))).or_default();
                    // The next step continues the line.
                    if points.last().is_some_and(|&(time, value)| time >= now && value.is_nan()) {
                        points.pop();
                    }
                    points.push((now, *value));
                }
            }
        }
    }
    let mut by_unit: BTreeMap<&str, Vec<Series>> = BTreeMap::new();
    for ((unit, name), mut points) in ramps {
        if let Some(&(_, value)) = points.last()
            && !value.is_nan()
        {
            points.push((length, value));
        }
        by_unit.entry(unit).or_default().push(Series { name, points });
    }
    by_unit
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
                    add(&change.name, actual_ms / 1e3, &change.before);
                }
            }
            _ => {}
        }
    }
    rates.into_iter().map(|(name, points)| Series { name: name.into(), points }).collect()
}

/// The text of the scenario.
fn text(body: &mut String, timeline: &[Line]) {
    for line in timeline {
        if let Event::Started { text: Some(text), .. } = &line.event {
            let _ = write!(body, "<h2>Scenario</h2><pre>{}</pre>", escape(text));
        }
    }
}

/// How late injector made the changes.
fn lateness(body: &mut String, timeline: &[Line], length: f64) {
    let points = timeline.iter().filter_map(|line| match &line.event {
        Event::Change { planned_ms, actual_ms, .. } => {
            Some((planned_ms / 1e3, (actual_ms - planned_ms).max(0.0)))
        }
        _ => None,
    });
    let late = Series { name: "late".into(), points: points.collect() };
    if late.points.is_empty() {
        return;
    }
    *body += "<h2>Lateness of injector's changes</h2>";
    for line in timeline {
        if let Event::Ended { changes, late, .. } = &line.event {
            let _ = write!(
                body,
                "<p>{}; 99 % of them at most {:.3} ms late, the latest {:.3} ms.</p>",
                plural(*changes as u64, "change"),
                late.p99_ms,
                late.max_ms
            );
        }
    }
    *body += &lines("Lateness of injector's changes", "ms", length, std::slice::from_ref(&late));
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
            // A process fault matches no packets.
            let is_of_packets = counts.matched > 0 || done.is_empty();
            let matched = if is_of_packets { counts.matched.to_string() } else { String::new() };
            let _ = write!(
                text,
                "<tr><td>{}<td>{}<td>{matched}<td>{}</tr>",
                escape(target),
                escape(fault),
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
            "name": EVIL, "active": [EVIL, format!("{EVIL}: {EVIL}")], "replaced": {EVIL: counts},
            "before": counts, "after": counts,
            "amounts": {format!("{EVIL}: {EVIL}"): [{"name": EVIL, "value": 1e308, "unit": EVIL}]},
        });
        let events = [
            json!({
                "event": "started", "scenario": EVIL, "text": EVIL, "pid": 1, "seed": 1, "changes": 1,
                "host": {"name": EVIL, "kernel": EVIL, "architecture": EVIL, "injector": EVIL},
                "targets": [{"name": EVIL, "title": EVIL, "target": {}, "attached": [], "addresses": [EVIL]}],
            }),
            json!({"event": "warning", "message": EVIL}),
            json!({"event": "gone", "name": EVIL, "title": EVIL}),
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

    fn line(elapsed_ms: f64, mut event: serde_json::Value) -> Line {
        let head =
            json!({"time": "2026-11-30T12:00:00Z", "monotonic_ns": 0, "elapsed_ms": elapsed_ms});
        let fields = event.as_object_mut().expect("an object");
        fields.extend(head.as_object().expect("an object").clone());
        serde_json::from_value(event).expect("a line of a timeline")
    }

    fn change(number: usize, at_ms: f64, active: &[&str], amounts: &serde_json::Value) -> Line {
        let late_ms = 0.25;
        let target = json!({
            "name": "db", "active": active, "amounts": amounts, "replaced": {}, "before": {"matched": 30},
            "after": {},
        });
        let event = json!({
            "event": "change", "change": number, "planned_ms": at_ms, "actual_ms": at_ms + late_ms,
            "planned_monotonic_ns": 0, "actual_monotonic_ns": 0, "planned_time": "", "actual_time": "",
            "targets": [target],
        });
        line(at_ms + late_ms, event)
    }

    /// A ramp from 0 to 100 ms in two steps, and a loss with a colon in its name.
    fn timeline() -> Vec<Line> {
        let step = |number, at_ms, ms: f64| {
            let name = format!("ramp of step 1: delay {ms}ms");
            let amounts = json!({&name: [{"name": "delay", "value": ms, "unit": "ms"}]});
            change(number, at_ms, &[&name, "up: loss 1%"], &amounts)
        };
        let started = json!({
            "event": "started", "scenario": "slow.yaml", "text": "timeline: # <the text>", "pid": 1, "seed": 7,
            "changes": 4, "targets": [],
            "host": {"name": "node-1", "kernel": "6.18.44", "architecture": "x86_64", "injector": "0.1.0"},
        });
        let counts = json!({"matched": 60, "dropped": 3});
        let ended = json!({
            "event": "ended", "reason": "done", "changes": 4, "targets": {"db": counts}, "clocks": {},
            "faults": {"db": {"up: loss 1%": counts}},
            "late": {"p50_ms": 0.25, "p99_ms": 0.25, "max_ms": 0.25},
        });
        vec![
            line(0.0, started),
            line(1.0, json!({"event": "warning", "message": "no packet matched at db"})),
            step(0, 1000.0, 0.0),
            step(1, 2000.0, 50.0),
            step(2, 3000.0, 100.0),
            change(3, 4000.0, &["up: loss 1%"], &json!({})),
            line(5000.0, ended),
        ]
    }

    #[test]
    fn a_ramp_is_a_row_and_a_line_of_its_amount_over_time() {
        let timeline = timeline();
        let (rows, bars) = activity(&timeline, 5.0);
        assert_eq!(rows, ["db: ramp of step 1", "db: up: loss 1%"]);
        let times: Vec<_> = bars.iter().map(|bar| (bar.row, bar.from, bar.until)).collect();
        assert_eq!(times, [(0, 1.00025, 4.00025), (1, 1.00025, 5.0)]);
        let ramps = ramps(&timeline, 5.0);
        assert_eq!(ramps.keys().collect::<Vec<_>>(), [&"ms"]);
        let [Series { name, points }] = &ramps["ms"][..] else { panic!("{ramps:?}") };
        assert_eq!(name, "db: ramp of step 1, delay");
        let (gap, steps) = points.split_last().expect("points");
        let expected =
            [(1.0, 0.0), (2.0, 0.0), (2.0, 50.0), (3.0, 50.0), (3.0, 100.0), (4.0, 100.0)];
        assert_eq!(steps, expected.map(|(time, ms): (f64, f64)| (time + 0.00025, ms)));
        assert!(gap.1.is_nan());
        let page = page(&timeline, &[]);
        assert!(page.contains("<title>db: ramp of step 1, delay</title>"), "{page}");
    }

    #[test]
    fn a_page_says_what_it_was_where_and_in_which_units_and_ends_with_its_own_lateness() {
        let page = page(&timeline(), &[]);
        for part in [
            "node-1, Linux 6.18.44, x86_64, injector 0.1.0",
            "<pre>timeline: # &lt;the text&gt;</pre>",
            "class=\"unit\" x=\"184\" y=\"12\" text-anchor=\"end\">packets/s</text>",
            ">ms</text>",
            ">5 s</text>",
            "4 changes; 99 % of them at most 0.250 ms late",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        let headings: Vec<&str> = page.split("<h2>").skip(1).collect();
        let headings: Vec<&str> =
            headings.iter().filter_map(|text| text.split("</h2>").next()).collect();
        assert_eq!(headings[..2], ["What was active", "Amounts of ramps, ms"]);
        assert_eq!(headings.last(), Some(&"Lateness of injector's changes"));
    }

    #[test]
    fn only_failures_are_red() {
        let (normal, failed) =
            (timeline(), line(5.0, json!({"event": "failed", "error": "it broke"})));
        let shown = page(&normal, &[]);
        assert!(shown.contains("class=\"note\">no packet matched"), "{shown}");
        assert!(!shown.contains("class=\"bad\""), "{shown}");
        let all = normal.into_iter().chain([failed]).collect::<Vec<_>>();
        assert!(page(&all, &[]).contains("class=\"bad\">Failed: it broke"));
        for number in 0..16 {
            let channel =
                |at: usize| u8::from_str_radix(&colour(number)[at..at + 2], 16).expect("a colour");
            let [red, green, blue] = [1, 3, 5].map(channel);
            assert!(u16::from(red) < u16::from(green.max(blue)) + 80, "{}", colour(number));
        }
    }
}

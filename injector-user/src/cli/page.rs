//! `injector report`: renders a timeline as an HTML page.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::{
    output,
    report::SCHEMA_VERSION,
    scenario::{
        chart::Series,
        page::page,
        timeline::{Event, Line},
    },
    spec::source,
};

/// Maximum size of a timeline file.
const MAX_TIMELINE: u64 = 1 << 30;

/// Render a timeline as a self-contained HTML page
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Timeline that `injector apply --timeline` wrote
    file: PathBuf,

    /// Write the page to this file
    ///
    /// The default is the name of the timeline with the suffix .html.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Plot these measurements as well; repeatable
    ///
    /// The first column is the time, in seconds since 1970 or by RFC 3339. The first line names the other columns.
    #[arg(long, value_name = "CSV")]
    measured: Vec<PathBuf>,
}

/// Writes the page.
pub fn run(args: &ReportArgs) -> Result<ExitCode> {
    let text = source::read(&args.file, MAX_TIMELINE)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    check_version(&args.file, text.lines().next().unwrap_or_default())?;
    let mut timeline: Vec<Line> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        timeline.push(serde_json::from_str(line).with_context(|| {
            format!("{}, line {number}, is not of a timeline", args.file.display())
        })?);
    }
    let started = timeline.iter().find(|line| matches!(line.event, Event::Started { .. }));
    let Some(started) = started else {
        bail!("{} is not a timeline: nothing is started in it", args.file.display());
    };
    let start = seconds(&started.time).context("the time of the start is none")?;
    let mut measured = Vec::new();
    for path in &args.measured {
        let text = source::read(path, source::MAX_BYTES)
            .with_context(|| format!("cannot read {}", path.display()))?;
        measured.extend(series(&text, start).with_context(|| format!("{}", path.display()))?);
    }
    let path = args.output.clone().unwrap_or_else(|| args.file.with_extension("html"));
    fs::write(&path, page(&timeline, &measured))
        .with_context(|| format!("cannot write to {}", path.display()))?;
    output::print(format!("{}\n", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses a timeline whose first line is of another version of the JSON output.
fn check_version(path: &Path, line: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Head {
        time: String,
        schema_version: Option<u32>,
    }
    let Ok(Head { time, schema_version }) = serde_json::from_str(line) else { return Ok(()) };
    let version = match schema_version {
        Some(SCHEMA_VERSION) => return Ok(()),
        Some(other) => format!("schema version {other}"),
        None => "no schema version".into(),
    };
    bail!(
        "{} of {time} has {version}, and this injector reads version {SCHEMA_VERSION}: use the injector that wrote it",
        path.display()
    )
}

/// Parses a time as seconds since 1970.
fn seconds(text: &str) -> Option<f64> {
    text.parse().ok().or_else(|| {
        let time: jiff::Timestamp = text.parse().ok()?;
        Some(time.as_nanosecond() as f64 / 1e9)
    })
}

/// Reads the columns of a CSV file as series over the time since `start`.
fn series(text: &str, start: f64) -> Result<Vec<Series>> {
    let mut rows =
        csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(text.as_bytes());
    let names = rows.headers()?.iter().skip(1);
    let mut series: Vec<Series> =
        names.map(|name| Series { name: name.into(), points: Vec::new() }).collect();
    for row in rows.records() {
        let row = row?;
        let mut cells = row.iter();
        let line = row.position().map_or(0, csv::Position::line);
        let time = cells.next().and_then(seconds);
        let time = time.with_context(|| format!("line {line} does not begin with a time"))?;
        for (series, cell) in series.iter_mut().zip(cells) {
            // An empty cell is a gap.
            if let Ok(value) = cell.parse() {
                series.points.push((time - start, value));
            }
        }
    }
    Ok(series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_of_another_version_is_refused_by_its_version() {
        let refused = |line: &str| check_version(Path::new("a"), line).err().map(|e| e.to_string());
        assert_eq!(refused(r#"{"time": "t", "schema_version": 1}"#), None);
        let other = refused(r#"{"time": "t", "schema_version": 2}"#).expect("refused");
        assert!(other.starts_with("a of t has schema version 2, and this"), "{other}");
        assert!(refused(r#"{"time": "t"}"#).expect("refused").contains("no schema version"));
        // What is no timeline is told as such later.
        assert_eq!(refused("nothing"), None);
    }

    #[test]
    fn measurements_are_told_by_either_kind_of_time() {
        let text = "time,\"ops, all\",ms\n1970-01-01T00:01:41Z,5,\n102.5, 6,0.5\n";
        let series = series(text, 100.0).expect("valid");
        assert_eq!(series[0].name, "ops, all");
        assert_eq!(series[0].points, [(1.0, 5.0), (2.5, 6.0)]);
        assert_eq!(
            (series[1].name.as_str(), series[1].points.as_slice()),
            ("ms", &[(2.5, 0.5)][..])
        );
        let wrong = super::series("time,x\n1,1\nsoon,1", 0.0).expect_err("no time");
        assert_eq!(wrong.to_string(), "line 3 does not begin with a time");
    }
}

//! SVG charts: lines over the time of a run, and bars of active faults.

use std::fmt::Write as _;

/// Width of a chart with its margins.
const WIDTH: f64 = 1000.0;
/// The left margin, for numbers or names.
const LEFT: f64 = 190.0;
const RIGHT: f64 = 20.0;
/// No red: faults are what was asked for.
const COLOURS: [&str; 8] =
    ["#4269d0", "#efb118", "#3ca951", "#a463f2", "#6cc5b0", "#9c6b4e", "#97bbf5", "#9498a0"];

/// The colour of the n-th line.
#[must_use]
pub const fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// Escapes text for HTML and SVG.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A line: points ordered by time. A value that is not a number is a gap.
#[derive(Debug, Default)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Time in seconds, and value.
    pub points: Vec<(f64, f64)>,
}

/// A bar: an interval of activity.
#[derive(Debug)]
pub struct Bar {
    /// The row.
    pub row: usize,
    /// The start in seconds.
    pub from: f64,
    /// The end in seconds.
    pub until: f64,
    /// The label.
    pub label: String,
    /// The index of the colour.
    pub colour: usize,
}

fn x(time: f64, length: f64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * (time / length.max(1e-9)).clamp(0.0, 1.0)
}

/// Round numbers from 0 to `most`, about `count` of them.
fn ticks(most: f64, count: f64) -> Vec<f64> {
    let rough = (most / count).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|&step| step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let last = (most * 1.0001 / step).floor() as u32;
    (0..=last).map(|n| f64::from(n) * step).collect()
}

fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn begin(kind: &str, height: f64, title: &str) -> String {
    format!(
        "<svg class=\"chart {kind}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\"><title>{}</title>",
        escape(title)
    )
}

fn time_axis(svg: &mut String, length: f64, top: f64, bottom: f64) {
    for tick in ticks(length, 10.0) {
        let x = x(tick, length);
        let y = bottom + 16.0;
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>\
             <text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{} s</text>",
            number(tick)
        );
    }
}

/// Lines over time. `unit` is that of the values; it may be empty.
#[must_use]
pub fn lines(title: &str, unit: &str, length: f64, series: &[Series]) -> String {
    const TOP: f64 = 22.0;
    const BOTTOM: f64 = 212.0;
    let mut svg = begin("lines", BOTTOM + 26.0, title);
    let values = series.iter().flat_map(|series| &series.points).map(|&(_, value)| value);
    let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    let most = if most > 0.0 { most } else { 1.0 };
    let y = |value: f64| BOTTOM - (BOTTOM - TOP) * (value / most).clamp(0.0, 1.0);
    time_axis(&mut svg, length, TOP, BOTTOM);
    if !unit.is_empty() {
        let (x, unit) = (LEFT - 6.0, escape(unit));
        let _ = write!(
            svg,
            "<text class=\"unit\" x=\"{x}\" y=\"12\" text-anchor=\"end\">{unit}</text>"
        );
    }
    for tick in ticks(most, 5.0) {
        let y = y(tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            number(tick)
        );
    }
    for (n, series) in series.iter().enumerate() {
        for run in series.points.split(|(_, value)| value.is_nan()).filter(|run| !run.is_empty()) {
            let mut points = String::new();
            for &(time, value) in run {
                let _ = write!(points, "{:.1},{:.1} ", x(time, length), y(value));
            }
            let _ = write!(
                svg,
                "<polyline points=\"{points}\" stroke=\"{}\"><title>{}</title></polyline>",
                colour(n),
                escape(&series.name)
            );
        }
    }
    svg + "</svg>"
}

/// A chart of bars, with a row for each name.
#[must_use]
pub fn bars(title: &str, length: f64, rows: &[String], bars: &[Bar]) -> String {
    const ROW: f64 = 24.0;
    let bottom = 4.0 + ROW * rows.len() as f64;
    let mut svg = begin("bars", bottom + 26.0, title);
    time_axis(&mut svg, length, 0.0, bottom);
    for (row, name) in rows.iter().enumerate() {
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            ROW * row as f64 + 17.0,
            escape(name)
        );
    }
    for bar in bars {
        let (from, until) = (x(bar.from, length), x(bar.until, length));
        let _ = write!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" rx=\"2\" fill=\"{}\"><title>{}</title></rect>",
            ROW * bar.row as f64 + 4.0,
            (until - from).max(0.8),
            ROW - 6.0,
            colour(bar.colour),
            escape(&format!("{} ({:.3} s to {:.3} s)", bar.label, bar.from, bar.until)),
        );
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(ticks(10.0, 5.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(7.0, 5.0), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(ticks(1.0, 5.0).len(), 6);
    }

    #[test]
    fn names_cannot_break_the_page() {
        let svg =
            lines("<b>", "<i>", 1.0, &[Series { name: "a\"&<".into(), points: vec![(0.0, 1.0)] }]);
        assert!(
            svg.contains("&lt;b&gt;")
                && svg.contains("&lt;i&gt;")
                && svg.contains("a&quot;&amp;&lt;"),
            "{svg}"
        );
    }
}

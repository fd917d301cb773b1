//! Traces of links: mahimahi's packet-delivery traces, and CSV files of rate, delay and loss.

use std::{
    collections::HashMap,
    fmt::{self, Debug, Display, Formatter},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use injector_common::model::{
    chance::Probability,
    trace::{DELAY_SHIFT, JUMPS, MAX_STEPS, RATE, Step, Trace, VALUES},
};
use thiserror::Error;

use super::{
    distribution::Files,
    fault::FaultError,
    packet::{delay::MAX_DELAY, rate::BitRate},
    rule::Direction,
    source,
    value::{HumanDuration, Percent},
};

/// Maximum size of a trace file.
pub const MAX_BYTES: u64 = 256 << 20;

/// Maximum number of lines of a trace: one hour of opportunities at 100 Mbit/s.
const MAX_LINES: usize = 30_000_000;

/// Maximum number of different times: one hour of steps of 1 ms.
const MAX_TIMES: usize = 3_600_001;

/// Maximum time in a trace.
const MAX_TIME: Duration = Duration::from_hours(24);

/// Maximum length of a value in bytes.
const MAX_FIELD: usize = 64;

/// Bytes of an opportunity of mahimahi.
const OPPORTUNITY: u64 = 1500;

/// Nanoseconds of a second, times the bits of a byte.
const BYTE: u128 = 8_000_000_000;

/// Maximum time and bytes between two steps, so that their product fits in 64 bits.
const MAX_PIECE: u64 = 1 << 31;

/// How long the last rate of a trace lasts in the table before it repeats: whole bytes at any rate.
const TAIL_NS: u64 = 8_000_000_000;

/// Why a file is not a valid trace.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("cannot read the trace in {path}: {reason}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The requester may not read files.
    #[error(
        "{0}: the agent does not read traces for API clients; use `injector inject` on its host"
    )]
    Closed(PathBuf),
    /// The file is invalid.
    #[error("{path}: {wrong}")]
    Wrong {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong.
        wrong: Wrong,
    },
}

/// What is wrong in a trace.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Wrong {
    /// A line is invalid.
    #[error("line {line}: {reason}")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// The reason.
        reason: String,
    },
    /// The trace has no lines.
    #[error("the trace is empty")]
    Empty,
    /// The trace is too long.
    #[error("the trace has more than {0}, which is the limit")]
    TooLong(String),
    /// A trace that loops lasts no time.
    #[error(
        "a trace with `loop` must last for more than 0 ms: its last time is when it starts again"
    )]
    NoTime,
}

impl Wrong {
    fn line(line: usize, reason: impl Into<String>) -> Self {
        Self::Line { line, reason: reason.into() }
    }
}

/// A trace as a table for the kernel, see [`Trace`].
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The steps.
    pub steps: Vec<Step>,
    /// The length of the cycle in nanoseconds.
    cycle_ns: u64,
    /// The bytes of the cycle.
    cycle_total: u64,
    flags: u32,
}

impl Debug for Table {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.debug_struct("Table").field("steps", &self.steps.len()).finish_non_exhaustive()
    }
}

/// A trace that a rule plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Played {
    /// The table.
    pub table: Arc<Table>,
    /// Queue limit in bytes; `None` for the default.
    pub queue: Option<u64>,
    /// Bytes added to the length of each packet.
    pub overhead: i32,
}

impl Played {
    /// The trace in the kernel's format, without start and position of the table.
    #[must_use]
    pub fn compile(&self) -> Trace {
        let Table { steps, cycle_ns, cycle_total, flags } = &*self.table;
        let end = steps.last().copied().unwrap_or_default();
        Trace {
            end_ns: end.at_ns,
            end_total: end.total,
            cycle_ns: *cycle_ns,
            cycle_total: *cycle_total,
            queue: self.queue.unwrap_or_else(|| self.table.default_queue()),
            count: steps.len() as u32,
            overhead: self.overhead,
            flags: *flags,
            ..Trace::default()
        }
    }
}

impl Table {
    /// Whether the trace has a rate.
    #[must_use]
    pub const fn has_rate(&self) -> bool {
        self.flags & RATE != 0
    }

    /// The bytes of 100 ms at the mean rate, or 15,000 bytes if that is more.
    fn default_queue(&self) -> u64 {
        const TIME_NS: u128 = 100_000_000;
        const BYTES: u64 = 15_000;

        let end = self.steps.last().copied().unwrap_or_default();
        let mean = u128::from(end.total) * TIME_NS / u128::from(end.at_ns.max(1));
        u64::try_from(mean).unwrap_or(u64::MAX).clamp(BYTES, u64::from(u32::MAX))
    }

    /// Adds a step at `at_ns` with this number of bytes in total.
    fn push(&mut self, at_ns: u64, total: u64) -> Result<(), Wrong> {
        if self.steps.len() == MAX_STEPS as usize {
            return Err(Wrong::TooLong(format!("{MAX_STEPS} steps after splitting long ones")));
        }
        let Step { delay, loss, .. } = self.steps.last().copied().unwrap_or_default();
        self.steps.push(Step { at_ns, total, delay, loss });
        Ok(())
    }

    /// Reads a trace of mahimahi: in each line a time in milliseconds at which 1,500 bytes pass.
    pub fn opportunities(text: &str, is_loop: bool) -> Result<Self, Wrong> {
        let mut table = Self { flags: RATE | JUMPS, ..Self::default() };
        table.push(0, 0)?;
        let mut last = 0;
        let lines = (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty());
        for (number, (line, text)) in lines.enumerate() {
            if number == MAX_LINES {
                return Err(Wrong::TooLong(format!("{MAX_LINES} lines")));
            }
            let time: Option<u64> = text.trim().parse().ok();
            let time = time.filter(|ms| Duration::from_millis(*ms) <= MAX_TIME);
            let time = time.ok_or_else(|| {
                let text = shown(text);
                let reason = format!("`{text}` is not a time in whole milliseconds of up to 24h");
                Wrong::line(line, reason)
            })?;
            let at_ns = time * 1_000_000;
            if at_ns < last {
                let reason = format!("{time} is earlier than the time before; times must not fall");
                return Err(Wrong::line(line, reason));
            }
            if at_ns > last || table.steps.len() == 1 {
                if table.steps.len() == MAX_TIMES + 1 {
                    return Err(Wrong::TooLong(format!("{MAX_TIMES} different times")));
                }
                table.push(at_ns, table.total())?;
            }
            last = at_ns;
            if let Some(step) = table.steps.last_mut() {
                step.total += OPPORTUNITY;
            }
        }
        if table.steps.len() == 1 {
            return Err(Wrong::Empty);
        }
        table.cycle(is_loop, 0)?;
        Ok(table)
    }

    /// The bytes until the last step.
    fn total(&self) -> u64 {
        self.steps.last().map_or(0, |step| step.total)
    }

    /// Makes the steps from number `from` on repeat, if any time passes in them.
    fn cycle(&mut self, is_loop: bool, from: usize) -> Result<(), Wrong> {
        let (Some(from), Some(end)) = (self.steps.get(from), self.steps.last()) else {
            return Err(Wrong::Empty);
        };
        if is_loop {
            (self.cycle_ns, self.cycle_total) = (end.at_ns - from.at_ns, end.total - from.total);
            if self.cycle_ns == 0 {
                return Err(Wrong::NoTime);
            }
        }
        Ok(())
    }

    /// The table of the rows for one direction.
    fn of_rows<'a>(
        rows: impl Iterator<Item = &'a Row>,
        flags: u32,
        is_loop: bool,
    ) -> Result<Self, Wrong> {
        let mut table = Self { flags, ..Self::default() };
        // In bits times nanoseconds.
        let mut sum = 0;
        let mut bits = 0;
        for row in rows {
            table.extend(row.at_ns, bits, &mut sum)?;
            if table.steps.is_empty() {
                table.push(row.at_ns, 0)?;
            }
            if let Some(step) = table.steps.last_mut() {
                (step.delay, step.loss) = (row.delay, row.loss);
            }
            bits = row.bits;
        }
        let Some(last) = table.steps.len().checked_sub(1) else { return Err(Wrong::Empty) };
        if is_loop {
            table.cycle(true, 0)?;
        } else if table.has_rate() {
            let end_ns = table.steps[last].at_ns + TAIL_NS;
            table.extend(end_ns, bits, &mut sum)?;
            table.cycle(true, last)?;
        }
        Ok(table)
    }

    /// Continues until `end_ns` at a rate of `bits` per second.
    fn extend(&mut self, end_ns: u64, bits: u64, sum: &mut u128) -> Result<(), Wrong> {
        let Some(start) = self.steps.last() else { return Ok(()) };
        let (start_ns, length) = (start.at_ns, end_ns - start.at_ns);
        let whole = u128::from(bits) * u128::from(length);
        let bytes = u64::try_from(whole / BYTE).unwrap_or(u64::MAX);
        let pieces = if self.has_rate() { length.max(bytes) / MAX_PIECE + 1 } else { 1 };
        for piece in 1..=u128::from(pieces) {
            let passed = u128::from(length) * piece / u128::from(pieces);
            let bytes = (*sum + u128::from(bits) * passed) / BYTE;
            self.push(start_ns + passed as u64, bytes as u64)?;
        }
        *sum += whole;
        Ok(())
    }
}

/// A row of a CSV file.
#[derive(Clone, Copy, Debug)]
struct Row {
    at_ns: u64,
    bits: u64,
    delay: u32,
    loss: u32,
    direction: Direction,
}

/// A CSV trace of both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The table of received packets; `None` if no row is for them.
    pub down: Option<Arc<Table>>,
    /// The table of sent packets; `None` if no row is for them.
    pub up: Option<Arc<Table>>,
    /// The columns.
    pub columns: Columns,
}

/// Which columns a CSV file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// `rate`.
    pub rate: bool,
    /// `delay`.
    pub delay: bool,
    /// `loss`.
    pub loss: bool,
    /// `direction`.
    pub direction: bool,
}

impl Timeline {
    /// The table for packets of a direction.
    #[must_use]
    pub const fn of(&self, direction: Direction) -> Option<&Arc<Table>> {
        match direction {
            Direction::Ingress => self.down.as_ref(),
            Direction::Egress | Direction::Both => self.up.as_ref(),
        }
    }

    /// Reads a CSV file. Its first line names the columns.
    pub fn parse(text: &str, is_loop: bool) -> Result<Self, Wrong> {
        let mut lines = (1..)
            .zip(text.lines())
            .map(|(line, text)| (line, text.split_once('#').map_or(text, |(text, _)| text).trim()))
            .filter(|(_, text)| !text.is_empty());
        let (line, header) = lines.next().ok_or(Wrong::Empty)?;
        let header = Column::of_header(line, header)?;
        let columns = Columns {
            rate: header.contains(&Column::Rate),
            delay: header.contains(&Column::Delay),
            loss: header.contains(&Column::Loss),
            direction: header.contains(&Column::Direction),
        };
        let mut rows = Vec::new();
        // The times of the last rows, by direction.
        let mut last: [Option<u64>; 2] = [None; 2];
        for (line, text) in lines {
            if rows.len() == 2 * MAX_TIMES {
                return Err(Wrong::TooLong(format!("{} rows", 2 * MAX_TIMES)));
            }
            let row = Row::parse(&header, text).map_err(|reason| Wrong::line(line, reason))?;
            for (way, last) in [Direction::Ingress, Direction::Egress].into_iter().zip(&mut last) {
                if row.direction != Direction::Both && row.direction != way {
                    continue;
                }
                match *last {
                    None if row.at_ns > 0 => {
                        let reason = "the first time must be 0s, in each direction";
                        return Err(Wrong::line(line, reason));
                    }
                    Some(last) if row.at_ns <= last => {
                        let reason = "the time must be later than that of the row before";
                        return Err(Wrong::line(line, reason));
                    }
                    _ => *last = Some(row.at_ns),
                }
            }
            rows.push(row);
        }
        if rows.is_empty() {
            return Err(Wrong::Empty);
        }
        let flags =
            u32::from(columns.rate) * RATE + u32::from(columns.delay || columns.loss) * VALUES;
        let table = |way| {
            let is_for = |row: &&Row| row.direction == Direction::Both || row.direction == way;
            let mut rows = rows.iter().filter(is_for).peekable();
            let is_any = rows.peek().is_some();
            is_any.then(|| Table::of_rows(rows, flags, is_loop).map(Arc::new)).transpose()
        };
        let up = table(Direction::Egress)?;
        let down = if columns.direction { table(Direction::Ingress)? } else { up.clone() };
        for table in [&down, &up].into_iter().flatten() {
            if table.steps.len() > MAX_STEPS as usize {
                return Err(Wrong::TooLong(format!("{MAX_STEPS} steps")));
            }
        }
        Ok(Self { down, up, columns })
    }
}

/// A column of a CSV file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Time,
    Rate,
    Delay,
    Loss,
    Direction,
}

impl Column {
    const ALL: [(&'static str, Self); 5] = [
        ("time", Self::Time),
        ("rate", Self::Rate),
        ("delay", Self::Delay),
        ("loss", Self::Loss),
        ("direction", Self::Direction),
    ];

    fn of_header(line: usize, header: &str) -> Result<Vec<Self>, Wrong> {
        let mut columns = Vec::new();
        for name in header.split(',').map(str::trim) {
            let known = Self::ALL.iter().find(|(known, _)| *known == name);
            let &(_, column) = known.ok_or_else(|| {
                let name = shown(name);
                let reason = format!(
                    "`{name}` is not a column: the first line must name time, and rate, delay, loss or direction"
                );
                Wrong::line(line, reason)
            })?;
            if columns.contains(&column) {
                return Err(Wrong::line(line, format!("the column {name} is there twice")));
            }
            columns.push(column);
        }
        let has_value =
            columns.iter().any(|it| matches!(it, Self::Rate | Self::Delay | Self::Loss));
        if !columns.contains(&Self::Time) || !has_value {
            let reason = "the columns must be time and at least one of rate, delay and loss";
            return Err(Wrong::line(line, reason));
        }
        Ok(columns)
    }
}

impl Row {
    fn parse(columns: &[Column], text: &str) -> Result<Self, String> {
        let fields = text.split(',').map(str::trim);
        let count = fields.clone().count();
        if count != columns.len() {
            return Err(format!("{count} values for {} columns", columns.len()));
        }
        let mut row = Self { at_ns: 0, bits: 0, delay: 0, loss: 0, direction: Direction::Both };
        for (column, field) in columns.iter().zip(fields) {
            if field.len() > MAX_FIELD {
                return Err(format!("a value has more than {MAX_FIELD} characters"));
            }
            let text = |error: &dyn Display| error.to_string();
            match column {
                Column::Time => {
                    let time: HumanDuration = field.parse().map_err(|e| text(&e))?;
                    if time.0 > MAX_TIME {
                        return Err(format!("the time {time} is more than 24h"));
                    }
                    row.at_ns = time.nanoseconds();
                }
                Column::Rate => row.bits = rate(field).map_err(|e| text(&e))?,
                Column::Delay => {
                    let delay: HumanDuration = field.parse().map_err(|e| text(&e))?;
                    if delay.0 > MAX_DELAY {
                        return Err(FaultError::DelayRange(field.into()).to_string());
                    }
                    row.delay = (delay.nanoseconds() >> DELAY_SHIFT) as u32;
                }
                Column::Loss => {
                    let loss: Percent = field.parse().map_err(|e| text(&e))?;
                    row.loss = Probability::from_fraction(loss.fraction()).0;
                }
                Column::Direction => row.direction = direction(field)?,
            }
        }
        Ok(row)
    }
}

/// Parses a rate in bits per second; 0, which needs no unit, is an outage.
fn rate(field: &str) -> Result<u64, FaultError> {
    if field == "0" {
        return Ok(0);
    }
    match field.parse::<BitRate>() {
        Ok(rate) => Ok(rate.0),
        Err(FaultError::BitRateRange(_))
            if field.starts_with('0') && !field.contains(|c: char| matches!(c, '1'..='9')) =>
        {
            Ok(0)
        }
        Err(error) => Err(error),
    }
}

fn direction(field: &str) -> Result<Direction, String> {
    match field {
        "down" | "ingress" => Ok(Direction::Ingress),
        "up" | "egress" => Ok(Direction::Egress),
        "both" => Ok(Direction::Both),
        other => {
            Err(format!("`{other}` is not a direction: write down (ingress), up (egress) or both"))
        }
    }
}

/// A text of the file for an error, which may be anything.
fn shown(text: &str) -> String {
    text.trim().chars().take(MAX_FIELD).collect()
}

/// The traces that were read from files, by path and whether they loop.
#[derive(Debug, Default)]
pub struct Traces {
    opportunities: HashMap<(PathBuf, bool), Arc<Table>>,
    timelines: HashMap<(PathBuf, bool), Timeline>,
}

impl Files {
    /// The trace of mahimahi in a file.
    pub fn opportunities(&mut self, path: &Path, is_loop: bool) -> Result<Arc<Table>, TraceError> {
        let key = (path.to_owned(), is_loop);
        if let Some(table) = self.traces.opportunities.get(&key) {
            return Ok(Arc::clone(table));
        }
        let read = |text: &str| Table::opportunities(text, is_loop);
        let table = Arc::new(self.trace(path, read)?);
        self.traces.opportunities.insert(key, Arc::clone(&table));
        Ok(table)
    }

    /// The CSV trace in a file.
    pub fn timeline(&mut self, path: &Path, is_loop: bool) -> Result<Timeline, TraceError> {
        let key = (path.to_owned(), is_loop);
        if let Some(timeline) = self.traces.timelines.get(&key) {
            return Ok(timeline.clone());
        }
        let timeline = self.trace(path, |text| Timeline::parse(text, is_loop))?;
        self.traces.timelines.insert(key, timeline.clone());
        Ok(timeline)
    }

    fn trace<T>(
        &self,
        path: &Path,
        parse: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Result<T, TraceError> {
        if self.is_closed {
            return Err(TraceError::Closed(path.into()));
        }
        let text = source::read(path, MAX_BYTES)
            .map_err(|error| TraceError::Read { path: path.into(), reason: error.to_string() })?;
        parse(&text).map_err(|wrong| TraceError::Wrong { path: path.into(), wrong })
    }
}

#[cfg(test)]
mod tests;

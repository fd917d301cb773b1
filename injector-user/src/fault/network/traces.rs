//! Traces that rules play: their tables, and the players that have their positions.
//!
//! A rule that stays the same in a change keeps its player, and so its position. A table that is in use
//! stays where it is.

use std::{collections::HashSet, sync::Arc};

use injector_common::model::trace::{Player, Trace};

use super::{NetworkError, compile::Compiled};
use crate::{kernel::object::Object, spec::trace::Table};

/// The tables in the kernel, in order of their places.
#[derive(Debug, Default)]
pub struct Traces {
    tables: Vec<(u32, Arc<Table>)>,
}

/// The tables of these rules, each once.
pub fn tables<'a>(sets: impl IntoIterator<Item = &'a Compiled>) -> Vec<Arc<Table>> {
    let mut tables: Vec<Arc<Table>> = Vec::new();
    let played = sets.into_iter().flat_map(|set| &set.spec);
    for played in played.filter_map(|rule| rule.impairment.trace.as_ref()) {
        if !tables.contains(&played.table) {
            tables.push(Arc::clone(&played.table));
        }
    }
    tables
}

/// The number of steps of all tables, and of changes to others.
pub fn room_for(tables: &[Arc<Table>]) -> Result<u32, NetworkError> {
    /// 1.5 MiB.
    const MIN_ROOM: usize = 65_536;

    if tables.is_empty() {
        return Ok(0);
    }
    let steps = (2 * steps_of(tables)).max(MIN_ROOM);
    u32::try_from(steps).map_err(|_| NetworkError::TooManySteps)
}

/// The number of steps of tables.
fn steps_of(tables: &[Arc<Table>]) -> usize {
    tables.iter().map(|table| table.steps.len()).sum()
}

impl Traces {
    /// Writes the tables and players of a set that may replace the active one, and assigns the players.
    pub fn fill(
        &mut self,
        object: &mut Object,
        active: Option<&Compiled>,
        new: &mut Compiled,
    ) -> Result<(), NetworkError> {
        let wanted = tables([&*new]);
        if wanted.is_empty() {
            return Ok(());
        }
        let used = tables(active.into_iter().chain([&*new]));
        for table in &wanted {
            self.place(object, table, &used)?;
        }
        let old = active.into_iter().flat_map(|active| &active.rules);
        let mut taken: HashSet<u32> = old.map(|rule| rule.trace).collect();
        for (rule, spec) in new.rules.iter_mut().zip(&new.spec) {
            let Some(played) = &spec.impairment.trace else { continue };
            if rule.trace != 0 {
                continue;
            }
            let count = object.capacity().traces;
            let number = (1..=count).find(|number| taken.insert(*number));
            rule.trace = number.ok_or(NetworkError::TooManyTraces(count / 2))?;
            let first = self.place(object, &played.table, &used)?;
            let trace = Trace { first, ..played.compile() };
            new.players.push((rule.trace - 1, Player { trace, used: [0; 2] }));
        }
        Ok(())
    }

    /// The place of a table, which is written if it is new. Tables that are not `used` make room.
    fn place(
        &mut self,
        object: &mut Object,
        table: &Arc<Table>,
        used: &[Arc<Table>],
    ) -> Result<u32, NetworkError> {
        if let Some((first, _)) = self.tables.iter().find(|(_, known)| known == table) {
            return Ok(*first);
        }
        let room = object.capacity().steps;
        let mut gap = self.gap(table.steps.len(), room);
        if gap.is_none() {
            self.tables.retain(|(_, table)| used.contains(table));
            gap = self.gap(table.steps.len(), room);
        }
        let (number, first) =
            gap.ok_or(NetworkError::NoRoomForTraces { steps: steps_of(used), room })?;
        object.set_steps(first, &table.steps);
        self.tables.insert(number, (first, Arc::clone(table)));
        Ok(first)
    }

    /// A place for `length` steps: the number of tables before it, and the first step.
    fn gap(&self, length: usize, room: u32) -> Option<(usize, u32)> {
        let ends = self.tables.iter().map(|(first, table)| *first as usize + table.steps.len());
        let starts = self.tables.iter().map(|(first, _)| *first as usize).chain([room as usize]);
        let mut gaps = [0].into_iter().chain(ends).zip(starts).enumerate();
        let fits = gaps.find(|(_, (start, end))| end.saturating_sub(*start) >= length);
        fits.map(|(number, (start, _))| (number, start as u32))
    }
}

/// Starts the new traces of a set at `now_ns`.
pub fn start(object: &mut Object, set: &mut Compiled, now_ns: u64) -> Result<(), NetworkError> {
    for (number, mut player) in set.players.drain(..) {
        player.trace.start_ns = now_ns;
        object.set_player(number, player)?;
    }
    Ok(())
}

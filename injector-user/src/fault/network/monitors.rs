//! Change notifications of all network namespaces of a target.

use super::NetworkError;
use crate::{
    kernel::{
        monitor::{Changes, Monitor},
        netns::Netns,
    },
    target::Place,
};

/// A monitor for each namespace.
#[derive(Debug, Default)]
pub struct Monitors {
    all: Vec<(Netns, Monitor)>,
}

/// The changes in all namespaces since the last call of [`Monitors::changed`].
#[derive(Debug, Default)]
pub struct Changed {
    all: Vec<(Netns, Changes)>,
}

impl Monitors {
    /// The changes in these namespaces. New namespaces count as changed.
    pub fn changed(&mut self, places: &[Place]) -> Result<Changed, NetworkError> {
        self.all.retain(|(netns, _)| places.iter().any(|place| place.netns == *netns));
        let mut changed = Changed::default();
        for Place { netns, .. } in places {
            if !self.all.iter().any(|(there, _)| there == netns) {
                self.all.push((netns.clone(), Monitor::new(netns)?));
            }
        }
        for (netns, monitor) in &mut self.all {
            changed.all.push((netns.clone(), monitor.changes()?));
        }
        Ok(changed)
    }
}

impl Changed {
    /// Whether anything has changed in a namespace. Namespaces without a monitor count as changed.
    #[must_use]
    pub fn any(&self, netns: &Netns) -> bool {
        let found = self.all.iter().find(|(there, _)| there == netns);
        found.is_none_or(|(_, changes)| changes.any)
    }

    /// Whether an interface of a namespace has lost a clsact qdisc.
    #[must_use]
    pub fn is_removed(&self, netns: u64, interface: u32) -> bool {
        let changes = self.all.iter().filter(|(there, _)| there.inode() == netns);
        changes.into_iter().any(|(_, changes)| changes.removed.contains(&interface))
    }
}

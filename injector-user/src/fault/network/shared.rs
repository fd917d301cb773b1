//! Packet faults of several owners at one target. Rules come and go; counters are kept by owner.

use std::collections::BTreeMap;

use super::{Network, NetworkError, counts::Counts, links::Next};
use crate::{
    kernel::clock, lifetime::instance::Instance, spec::rule::Rule, target::peers::Addresses,
};

/// The packet faults of a target, if it has any, with the owner of each rule.
#[derive(Debug)]
pub struct Shared<K> {
    network: Option<Network>,
    /// The owners of the active rules, in order.
    owners: Vec<K>,
    /// The owners of the prepared rules.
    next: Vec<K>,
    /// Counters of replaced rules, by owner.
    done: BTreeMap<K, Counts>,
    /// Counters of the active rules from before the last change of their peers' addresses.
    moved: Vec<Counts>,
}

impl<K: Copy + Ord> Shared<K> {
    /// Of a network whose first rules have these owners.
    #[must_use]
    pub const fn new(network: Option<Network>, owners: Vec<K>) -> Self {
        Self { network, owners, next: Vec::new(), done: BTreeMap::new(), moved: Vec::new() }
    }

    /// The network.
    #[must_use]
    pub const fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The network.
    pub const fn network_mut(&mut self) -> Option<&mut Network> {
        self.network.as_mut()
    }

    /// Gets other rules ready, see [`Network::prepare`].
    pub fn prepare(
        &mut self,
        instance: &mut Instance,
        owners: Vec<K>,
        rules: &[Rule],
        addresses: &Addresses,
        seed: u64,
        next: &Next,
    ) -> Result<(), NetworkError> {
        if let Some(network) = &mut self.network {
            network.prepare(instance, rules, addresses, seed, next)?;
        }
        self.next = owners;
        Ok(())
    }

    /// Changes the addresses of the active rules' peers, see [`Network::readdress`]. Counters
    /// continue. Waits until no program reads the old ones.
    pub fn readdress(
        &mut self,
        instance: &mut Instance,
        addresses: &Addresses,
    ) -> Result<(), NetworkError> {
        let Some(network) = &mut self.network else { return Ok(()) };
        network.readdress(instance, addresses)?;
        instance.expedited(|_| clock::wait_for_readers());
        let counts = network.replaced_counts()?;
        self.moved.resize_with(counts.len(), Counts::default);
        for (sum, counts) in self.moved.iter_mut().zip(&counts) {
            *sum += counts;
        }
        Ok(())
    }

    /// Activates the prepared rules, see [`Network::commit`].
    pub fn commit(&mut self) -> Result<(), NetworkError> {
        self.network.as_mut().map_or(Ok(()), Network::commit)
    }

    /// Returns the counters of the replaced rules by owner, including `known` owners without rules.
    /// Must be called once after [`Self::commit`], when [`crate::kernel::clock::wait_for_readers`]
    /// has made the counters final.
    pub fn settle(
        &mut self,
        known: impl IntoIterator<Item = K>,
    ) -> Result<BTreeMap<K, Counts>, NetworkError> {
        let counts = match &mut self.network {
            Some(network) => network.replaced_counts()?,
            None => Vec::new(),
        };
        let mut replaced: BTreeMap<K, Counts> =
            known.into_iter().map(|owner| (owner, Counts::default())).collect();
        for counts in [&counts, &std::mem::take(&mut self.moved)] {
            for (&owner, counts) in self.owners.iter().zip(counts) {
                *replaced.entry(owner).or_default() += counts;
            }
        }
        for (&owner, counts) in &replaced {
            *self.done.entry(owner).or_default() += counts;
        }
        self.owners = std::mem::take(&mut self.next);
        Ok(replaced)
    }

    /// Counters of replaced rules by owner, since the start.
    #[must_use]
    pub const fn done(&self) -> &BTreeMap<K, Counts> {
        &self.done
    }

    /// Counters by owner, since the start.
    pub fn counts(&mut self) -> Result<BTreeMap<K, Counts>, NetworkError> {
        let mut counts = self.done.clone();
        if let Some(network) = &mut self.network {
            for active in [&network.counts()?, &self.moved] {
                for (&owner, active) in self.owners.iter().zip(active) {
                    *counts.entry(owner).or_default() += active;
                }
            }
        }
        Ok(counts)
    }

    /// Moves the counters of `kept` owners, as pairs (old, new), to their new names. Returns the
    /// counters of all other owners, and forgets them.
    pub fn rename(&mut self, kept: &[(K, K)]) -> BTreeMap<K, Counts> {
        let mut others = std::mem::take(&mut self.done);
        let renamed = kept.iter().filter_map(|(old, new)| Some((*new, others.remove(old)?)));
        self.done = renamed.collect();
        others
    }

    /// Forgets the counters of some owners.
    pub fn forget(&mut self, is_gone: impl Fn(&K) -> bool) {
        self.done.retain(|owner, _| !is_gone(owner));
    }
}

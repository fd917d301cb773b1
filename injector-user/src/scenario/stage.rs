//! The targets of a scenario, with what is installed for them. Each has a slot of its own, as if it had an injector of
//! its own; so they get along as injectors do.

use std::collections::BTreeMap;

use thiserror::Error;

use super::timeline::{Counts, Event};
use crate::{
    fault::{clock::Clocks, network::Attached},
    injection::{self, FaultSet, Injection, InjectionError, Options, OwnedProcesses},
    kernel::{clock, interface},
    lifetime::{LifetimeError, instance::SharedInstance, journal::Owner},
    spec::{
        scenario::{
            Scenario,
            plan::{Plan, What},
            random::{packet_seed, process_seed},
        },
        value::Remote,
    },
    target::{ResolveError, Target, host},
};

/// Why a scenario cannot be carried out.
#[derive(Debug, Error)]
pub enum StageError {
    /// Something about one of its targets.
    #[error("target {name}")]
    Target {
        /// Which.
        name: String,
        /// Why.
        source: InjectionError,
    },
    /// A target without addresses.
    #[error("target {0} has no addresses, which a partition needs: say them with `address`")]
    NoAddress(String),
    /// A slot cannot be had.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
    /// Changes cannot be made in time.
    #[error("cannot use a timer")]
    Timer(#[source] std::io::Error),
    /// It cannot be told whether somebody asked for the end.
    #[error("cannot read signals")]
    Stop(#[source] std::io::Error),
}

/// One target.
#[derive(Debug)]
struct Actor {
    name: String,
    /// Owners of faults are parts.
    injection: Injection<usize>,
    /// What is active, and was before the last change.
    parts: Vec<usize>,
    /// What is ready to be active.
    next: Vec<usize>,
    /// What process faults of each part did that have ended.
    done: BTreeMap<usize, Counts>,
}

/// What a change did, see [`super::timeline::TargetChange`].
#[derive(Debug)]
pub struct Changed {
    /// The number of the target.
    pub target: usize,
    /// The parts that are active now.
    pub parts: Vec<usize>,
    /// What the parts did that were active until now, since the change before.
    pub replaced: BTreeMap<usize, Counts>,
    /// All together, from the start, when the change was made.
    pub before: Counts,
    /// The same now.
    pub after: Counts,
}

/// All targets.
#[derive(Debug)]
pub struct Stage {
    actors: Vec<Actor>,
    addresses: Vec<Vec<Remote>>,
    seed: u64,
}

impl Stage {
    /// Finds all targets and gets everything ready; nothing is faulted yet. If anything fails, nothing is left.
    pub fn set(
        scenario: &Scenario,
        plan: &Plan,
        seed: u64,
        owner: &Owner,
        options: &Options,
    ) -> Result<Self, StageError> {
        let mut targets = Vec::new();
        for (name, spec) in &scenario.targets {
            let fail = |source| StageError::Target { name: name.clone(), source };
            let protect = spec.protect.unwrap_or_else(|| spec.is_wide());
            let target = Target::resolve(spec, protect).map_err(|error| fail(error.into()))?;
            targets.push((name, spec, protect, target));
        }
        let mut addresses = vec![Vec::new(); targets.len()];
        for number in plan.peers() {
            let (name, spec, _, target) = &targets[number];
            let found = if spec.address.is_empty() {
                addresses_of(target).map_err(|error| StageError::Target {
                    name: (*name).clone(),
                    source: error.into(),
                })?
            } else {
                spec.address.iter().map(|&address| Remote::Net(address.into())).collect()
            };
            if found.is_empty() {
                return Err(StageError::NoAddress((*name).clone()));
            }
            addresses[number] = found;
        }
        let mut stage = Self { actors: Vec::new(), addresses, seed };
        for (number, (name, _, protect, target)) in targets.into_iter().enumerate() {
            let instance = SharedInstance::start(owner.clone())?;
            let mut options = options.clone();
            options.network.protect = protect;
            options.outlived = true;
            let mut parts: Vec<&[usize]> = plan.sets(number).collect();
            parts.sort_unstable();
            parts.dedup();
            let sets =
                parts.into_iter().map(|parts| set(plan, number, parts, &stage.addresses, seed));
            let (first, later) =
                (FaultSet { seed, ..FaultSet::default() }, sets.collect::<Vec<_>>());
            let started = Injection::prepare(target, instance, first, &later, options)
                .and_then(|mut injection| injection.start().map(|()| injection));
            let injection =
                started.map_err(|source| StageError::Target { name: name.clone(), source })?;
            let (name, done) = (name.clone(), BTreeMap::new());
            stage.actors.push(Actor { name, injection, parts: Vec::new(), next: Vec::new(), done });
        }
        Ok(stage)
    }

    /// Replaces the host names in a plan by their addresses.
    pub fn resolve(plan: &mut Plan) -> Result<Vec<host::Resolved>, ResolveError> {
        let mut resolved = Vec::new();
        for part in &mut plan.parts {
            if let What::Faults(faults) = &mut part.what {
                resolved.extend(host::resolve(&mut faults.rules)?);
            }
        }
        Ok(resolved)
    }

    /// Gets a change ready.
    pub fn prepare(&mut self, plan: &Plan, number: usize) -> Result<(), StageError> {
        for (target, parts) in &plan.changes[number].sets {
            let seed = packet_seed(self.seed, *target as u32, number as u64);
            let set = set(plan, *target, parts, &self.addresses, seed);
            let actor = &mut self.actors[*target];
            actor.do_it(|injection| injection.prepare_next(set))?;
            actor.next.clone_from(parts);
        }
        Ok(())
    }

    /// Makes the change that is ready, at all targets. Returns when it was done, by `CLOCK_MONOTONIC`.
    pub fn commit(&mut self, plan: &Plan, number: usize) -> Result<u64, StageError> {
        let sets = &plan.changes[number].sets;
        for (target, _) in sets {
            self.actors[*target].do_it(Injection::commit)?;
        }
        // They take longer, so that no target waits for those of another one.
        for (target, _) in sets {
            self.actors[*target].do_it(|injection| {
                injection.commit_processes()?;
                // What begins at once begins now.
                injection.step()
            })?;
        }
        Ok(clock::monotonic_ns())
    }

    /// Waits until the change is all there is, and tells what the one before did.
    pub fn settle(&mut self, plan: &Plan, number: usize) -> Result<Vec<Changed>, StageError> {
        let sets = &plan.changes[number].sets;
        if sets.iter().any(|(target, _)| self.actors[*target].injection.network().is_some()) {
            // Once no program can be reading the old rules any more, their counters are final.
            clock::wait_for_readers();
        }
        sets.iter().map(|(target, _)| self.actors[*target].settle(*target)).collect()
    }

    /// When [`Self::step`] has something to do, if ever.
    #[must_use]
    pub fn next_deadline(&self) -> Option<std::time::Instant> {
        self.actors.iter().filter_map(|actor| actor.injection.next_deadline()).min()
    }

    /// Does what is due to processes.
    pub fn step(&mut self) -> Result<(), StageError> {
        self.actors.iter_mut().try_for_each(|actor| actor.do_it(Injection::step))
    }

    /// Renews leases, and goes on with what is new. To be called every [`crate::lifetime::lease::RENEWAL`].
    pub fn renew(&mut self) -> Result<(), StageError> {
        self.actors.iter_mut().try_for_each(|actor| actor.do_it(Injection::renew))
    }

    /// What happened to the targets since this was last asked.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.actors.iter_mut().flat_map(Actor::take_events).collect()
    }

    /// Looks whether targets are gone, or there again.
    pub fn follow(&mut self) -> Result<(), StageError> {
        self.actors.iter_mut().try_for_each(|actor| actor.do_it(Injection::follow))
    }

    /// The targets that were removed and did not return, for people.
    #[must_use]
    pub fn taken(&self) -> Vec<String> {
        let taken = self.actors.iter().filter(|actor| actor.injection.is_taken());
        taken
            .map(|actor| format!("target {}: {}", actor.name, actor.injection.target().name()))
            .collect()
    }

    /// What was done to each target so far, by part.
    pub fn counts(&mut self) -> Result<Vec<BTreeMap<usize, Counts>>, StageError> {
        self.actors.iter_mut().map(Actor::counts).collect()
    }

    /// Where programs are attached, for people.
    #[must_use]
    pub fn attached(&self) -> Vec<Vec<String>> {
        self.actors.iter().map(|actor| places(actor.injection.attached())).collect()
    }

    /// The addresses of each target, as far as they are needed.
    #[must_use]
    pub fn addresses(&self) -> &[Vec<Remote>] {
        &self.addresses
    }

    /// How many programs of each target had, or can have, their clocks set wrong.
    #[must_use]
    pub fn clocks(&self) -> Vec<Option<u64>> {
        let programs = |clocks: &Clocks| {
            let statistics = clocks.statistics();
            statistics.patched + statistics.inherited
        };
        self.actors.iter().map(|actor| actor.injection.clocks().map(programs)).collect()
    }

    /// Ends all faults; counters can still be read.
    pub fn detach(&mut self) -> Result<(), StageError> {
        let ended = self.actors.iter_mut().map(|actor| actor.do_it(Injection::end));
        // If one cannot be ended, the others are.
        ended.fold(Ok(()), Result::and)
    }

    /// Undoes everything.
    pub fn end(self) -> Result<(), StageError> {
        for Actor { injection, .. } in self.actors {
            injection.close()?;
        }
        Ok(())
    }
}

impl Actor {
    /// Does something to its faults; an error says whose.
    fn do_it<T>(
        &mut self,
        work: impl FnOnce(&mut Injection<usize>) -> Result<T, InjectionError>,
    ) -> Result<T, StageError> {
        work(&mut self.injection)
            .map_err(|source| StageError::Target { name: self.name.clone(), source })
    }

    fn settle(&mut self, target: usize) -> Result<Changed, StageError> {
        let parts = self.parts.clone();
        let replaced = self.do_it(|injection| injection.settle(parts))?;
        let mut sums: BTreeMap<usize, Counts> =
            replaced.packets.iter().map(|(&part, counts)| (part, counts.into())).collect();
        for (part, statistics) in replaced.processes {
            let counts = Counts::from(&statistics);
            *sums.entry(part).or_default() += counts;
            *self.done.entry(part).or_default() += counts;
        }
        let packets = self.injection.rules_mut().done().values().map(Counts::from);
        let mut before: Counts = packets.chain(self.done.values().copied()).sum();
        for (_, statistics) in self.do_it(Injection::process_statistics)? {
            before += Counts::from(&statistics);
        }
        self.parts = std::mem::take(&mut self.next);
        let after = self.counts()?.into_values().sum();
        Ok(Changed { target, parts: self.parts.clone(), replaced: sums, before, after })
    }

    fn take_events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.injection.next_event() {
            let target = self.name.clone();
            events.push(match event {
                injection::Event::Attached(_) => continue,
                injection::Event::Gone { target: what, .. } => Event::Gone { target, what },
                injection::Event::Restarted { target: what, attached } => {
                    Event::Followed { target, what, attached: places(attached) }
                }
                injection::Event::Warning(message) => {
                    Event::Warning { message: format!("target {target}: {message}") }
                }
            });
        }
        events
    }

    /// By part, from the start.
    fn counts(&mut self) -> Result<BTreeMap<usize, Counts>, StageError> {
        let mut counts = self.done.clone();
        let packets = self.do_it(|injection| Ok(injection.rules_mut().counts()?))?;
        for (part, packets) in &packets {
            *counts.entry(*part).or_default() += packets.into();
        }
        for (part, statistics) in self.do_it(Injection::process_statistics)? {
            *counts.entry(part).or_default() += (&statistics).into();
        }
        Ok(counts)
    }
}

/// The faults of parts at a target.
fn set(
    plan: &Plan,
    target: usize,
    parts: &[usize],
    addresses: &[Vec<Remote>],
    seed: u64,
) -> FaultSet<usize> {
    let (owners, rules) = plan.rules(target, parts, addresses).into_iter().unzip();
    let clock = plan.clock(parts).and_then(|part| {
        let faults = plan.parts[part].faults()?;
        Some((part, faults.clock.clone()?))
    });
    let processes = plan.processes(parts);
    let processes = processes
        .map(|(part, faults)| OwnedProcesses {
            owner: part,
            name: plan.parts[part].name.clone(),
            faults: faults.clone(),
            seed: process_seed(seed, part as u64),
        })
        .collect();
    FaultSet { seed, owners, rules, clock, processes }
}

/// Where programs are attached, for people.
fn places(attached: impl IntoIterator<Item = Attached>) -> Vec<String> {
    let mut places: Vec<String> = Vec::new();
    for place in attached {
        let text = format!("{} in {} ({})", place.interface, place.netns.label(), place.hook);
        if !places.contains(&text) {
            places.push(text);
        }
    }
    places
}

/// The addresses of a target's interfaces, but those that are not known outside its namespace.
fn addresses_of(target: &Target) -> Result<Vec<Remote>, ResolveError> {
    let mut found = Vec::new();
    for place in target.places()? {
        for address in interface::addresses(&place.netns)? {
            let is_local = match address {
                std::net::IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
                std::net::IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
            };
            if !is_local {
                found.push(Remote::Net(address.into()));
            }
        }
    }
    Ok(found)
}

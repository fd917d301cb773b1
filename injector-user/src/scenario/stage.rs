//! The targets of a scenario and their injections. Each target has its own slot, so they coexist
//! like separate injectors.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::timeline::{Counts, Event};
use crate::{
    fault::{
        clock::report::ClocksReport,
        network::{
            links::{Next, Upcoming},
            report::AttachedReport,
            unmatched::{self, Explanation},
        },
    },
    injection::{
        self, FaultSet, Injection, InjectionError, Options, OwnedProcesses, UNMATCHED_TIME,
    },
    kernel::clock,
    lifetime::{LifetimeError, instance::SharedInstance, journal::Owner},
    report::Faulted,
    spec::{
        peer::Peer,
        scenario::{
            Scenario,
            plan::Plan,
            random::{packet_seed, process_seed},
        },
    },
    target::{
        ResolveError, Target,
        peers::{self, Peers},
    },
};

/// How long before a change links take it into account. Packets rarely wait longer in a queue.
const FORESIGHT: Duration = Duration::from_mins(1);

/// Why a scenario cannot run.
#[derive(Debug, Error)]
pub enum StageError {
    /// A target's injection failed.
    #[error("target {name}")]
    Target {
        /// The target's name.
        name: String,
        /// The reason.
        source: InjectionError,
    },
    /// The target has no addresses.
    #[error("target {0} has no addresses, which a partition needs: say them with `address`")]
    NoAddress(String),
    /// No slot is available.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
    /// The timer for changes failed.
    #[error("cannot use a timer")]
    Timer(#[source] std::io::Error),
    /// Signals cannot be read.
    #[error("cannot read signals")]
    Stop(#[source] std::io::Error),
}

/// One target.
#[derive(Debug)]
struct Actor {
    name: String,
    /// The owner of a fault is the number of its part.
    injection: Injection<usize>,
    /// Active parts, and those active before the last change.
    parts: Vec<usize>,
    /// Parts that [`Stage::commit`] activates.
    next: Vec<usize>,
    /// Statistics of each part's ended process faults.
    done: BTreeMap<usize, Counts>,
    /// The parts with packet faults that have been active.
    tried: BTreeSet<usize>,
    /// Whether a clock fault has been active.
    had_clock: bool,
    /// When the first of the parts with packet faults became active.
    since: Option<Instant>,
    /// Whether it was explained during the run why nothing matches.
    is_explained: bool,
}

/// The effect of a change, see [`super::timeline::TargetChange`].
#[derive(Debug)]
pub struct Changed {
    /// The target's number.
    pub target: usize,
    /// The active parts.
    pub parts: Vec<usize>,
    /// Statistics of the previously active parts since the change before.
    pub replaced: BTreeMap<usize, Counts>,
    /// Total statistics since the start, at the time of the change.
    pub before: Counts,
    /// Total statistics since the start, after the change.
    pub after: Counts,
}

/// All targets.
#[derive(Debug)]
pub struct Stage {
    actors: Vec<Actor>,
    peers: Peers,
    /// Warnings about peers, which concern all targets.
    warnings: Vec<String>,
    seed: u64,
}

impl Stage {
    /// Resolves and prepares all targets without activating a fault. On error, everything is
    /// undone.
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
            let protect = spec.protection();
            let target =
                Target::resolve(spec, protect.operator).map_err(|error| fail(error.into()))?;
            targets.push((name, spec, protect, target));
        }
        let peers = options.peers.clone();
        for number in plan.peers() {
            let (name, spec, ..) = targets[number];
            peers.add_target(name, spec, &spec.address).map_err(|error| match error {
                ResolveError::NoAddress(_) => StageError::NoAddress(name.clone()),
                error => StageError::Target { name: name.clone(), source: error.into() },
            })?;
        }
        let mut stage = Self { actors: Vec::new(), peers, warnings: Vec::new(), seed };
        for (number, (name, spec, protect, target)) in targets.into_iter().enumerate() {
            let instance = SharedInstance::start(owner.clone())?;
            instance.lock().describe(&Faulted {
                name: Some(name.clone()),
                title: spec.title(),
                target: spec.into(),
                ..Faulted::default()
            })?;
            let mut options = options.clone();
            options.network.protect = protect;
            options.outlived = true;
            let mut parts: Vec<&[usize]> = plan.sets(number).collect();
            parts.sort_unstable();
            parts.dedup();
            let sets = parts.into_iter().map(|parts| set(plan, number, parts, seed));
            let (first, later) =
                (FaultSet { seed, ..FaultSet::default() }, sets.collect::<Vec<_>>());
            let started = Injection::prepare(target, instance, first, &later, options)
                .and_then(|mut injection| injection.start().map(|()| injection));
            let injection =
                started.map_err(|source| StageError::Target { name: name.clone(), source })?;
            stage.actors.push(Actor {
                name: name.clone(),
                injection,
                parts: Vec::new(),
                next: Vec::new(),
                done: BTreeMap::new(),
                tried: BTreeSet::new(),
                had_clock: false,
                since: None,
                is_explained: false,
            });
        }
        Ok(stage)
    }

    /// Looks up the peers that a plan names, for [`Options::peers`].
    pub fn resolve(plan: &Plan) -> Result<Peers, ResolveError> {
        let peers = Peers::default();
        peers.resolve(&peers::named(plan.remotes()))?;
        Ok(peers)
    }

    /// Prepares a change. `origin_ns` is when the scenario started, by `CLOCK_MONOTONIC`, if it has.
    pub fn prepare(
        &mut self,
        plan: &Plan,
        number: usize,
        origin_ns: Option<u64>,
    ) -> Result<(), StageError> {
        for (target, parts) in &plan.changes[number].sets {
            let seed = packet_seed(self.seed, *target as u32, number as u64);
            let mut set = set(plan, *target, parts, seed);
            let upcoming =
                origin_ns.and_then(|origin| Self::upcoming(plan, *target, number, origin));
            set.next = upcoming.map_or(Next::Nothing, Next::Change);
            let actor = &mut self.actors[*target];
            actor.do_it(|injection| injection.prepare_next(set))?;
            actor.next.clone_from(parts);
        }
        Ok(())
    }

    /// The packet faults after the next change of a target, if that comes soon after change `number`.
    fn upcoming(plan: &Plan, target: usize, number: usize, origin_ns: u64) -> Option<Upcoming> {
        let end = plan.changes[number].at + FORESIGHT;
        let soon = plan.changes[number + 1..].iter().take_while(|change| change.at <= end);
        let (at, parts) = soon
            .flat_map(|change| change.sets.iter().map(|(target, parts)| (change.at, target, parts)))
            .find_map(|(at, changed, parts)| (*changed == target).then_some((at, parts)))?;
        let rules = plan.rules(target, parts);
        Some(Upcoming {
            at_ns: origin_ns.saturating_add(at.as_nanos() as u64),
            rules: rules.into_iter().map(|(_, rule)| rule).collect(),
        })
    }

    /// Commits the prepared change at all targets. Returns the time of completion, by
    /// `CLOCK_MONOTONIC`.
    pub fn commit(&mut self, plan: &Plan, number: usize) -> Result<u64, StageError> {
        let sets = &plan.changes[number].sets;
        for (target, _) in sets {
            self.actors[*target].do_it(Injection::commit)?;
        }
        // Process faults last, because they take longer: no target waits for those of another.
        for (target, _) in sets {
            self.actors[*target].do_it(|injection| {
                injection.commit_processes()?;
                // Run process faults that are due at once.
                injection.step()
            })?;
        }
        Ok(clock::monotonic_ns())
    }

    /// Waits until the change has taken full effect, and returns the statistics of the previous
    /// parts.
    pub fn settle(&mut self, plan: &Plan, number: usize) -> Result<Vec<Changed>, StageError> {
        let sets = &plan.changes[number].sets;
        if sets.iter().any(|(target, _)| self.actors[*target].injection.network().is_some()) {
            // The old counters are final once no program can be reading the old rules.
            clock::wait_for_readers();
        }
        sets.iter().map(|(target, _)| self.actors[*target].settle(plan, *target)).collect()
    }

    /// Whether packets are counted that no rule matches.
    #[must_use]
    pub fn is_counting(&self) -> bool {
        self.actors.iter().any(|actor| actor.injection.is_counting())
    }

    /// Counts the packets that no rule matches at a target as long as it `is_untouched`. Call it once a
    /// second. Returns whether it is time to explain why nothing has matched.
    pub fn count_unmatched(
        &mut self,
        target: usize,
        is_untouched: bool,
    ) -> Result<bool, StageError> {
        let actor = &mut self.actors[target];
        let is_wanted = is_untouched && actor.since.is_some();
        actor.do_it(|injection| injection.count_unmatched(is_wanted))?;
        let is_due = is_wanted
            && !actor.is_explained
            && actor.since.is_some_and(|since| since.elapsed() >= UNMATCHED_TIME);
        actor.is_explained |= is_due;
        Ok(is_due)
    }

    /// Explains why none of the packet faults that were active at a target matched, without those of
    /// parts that are not `wanted`.
    pub fn explain(
        &mut self,
        plan: &Plan,
        target: usize,
        wanted: impl Fn(usize) -> bool,
    ) -> Option<Explanation> {
        let actor = &mut self.actors[target];
        let parts: Vec<usize> = actor.tried.iter().copied().filter(|part| wanted(*part)).collect();
        let rules: Vec<_> = plan.rules(target, &parts).into_iter().map(|(_, rule)| rule).collect();
        if rules.is_empty() {
            return None;
        }
        actor.injection.explain(&rules, unmatched::by_name)
    }

    /// When [`Self::step`] is next due, if ever.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.actors.iter().filter_map(|actor| actor.injection.next_deadline()).min()
    }

    /// Runs process faults that are due.
    pub fn step(&mut self) -> Result<(), StageError> {
        self.actors.iter_mut().try_for_each(|actor| actor.do_it(Injection::step))
    }

    /// Renews leases, and extends faults to new interfaces and cgroups. Call every
    /// [`crate::lifetime::lease::RENEWAL`].
    pub fn renew(&mut self) -> Result<(), StageError> {
        self.warnings.extend(self.peers.take_warnings());
        self.actors.iter_mut().try_for_each(|actor| actor.do_it(Injection::renew))
    }

    /// The events of all targets since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        let warnings = std::mem::take(&mut self.warnings).into_iter();
        let warnings = warnings.map(|message| Event::Warning { message });
        warnings.chain(self.actors.iter_mut().flat_map(Actor::take_events)).collect()
    }

    /// Checks whether targets have gone or returned.
    pub fn follow(&mut self) -> Result<(), StageError> {
        self.actors.iter_mut().try_for_each(|actor| actor.do_it(Injection::follow))
    }

    /// Names of the targets that were removed and did not return.
    #[must_use]
    pub fn taken(&self) -> Vec<String> {
        let taken = self.actors.iter().filter(|actor| actor.injection.is_taken());
        taken
            .map(|actor| format!("target {}: {}", actor.name, actor.injection.target().name()))
            .collect()
    }

    /// Statistics of each target so far, by part.
    pub fn counts(&mut self) -> Result<Vec<BTreeMap<usize, Counts>>, StageError> {
        self.actors.iter_mut().map(Actor::counts).collect()
    }

    /// The interfaces of each target to which programs are attached.
    #[must_use]
    pub fn attached(&self) -> Vec<Vec<AttachedReport>> {
        let of = |actor: &Actor| AttachedReport::all(&actor.injection.attached());
        self.actors.iter().map(of).collect()
    }

    /// The addresses of each target, where a partition requires them.
    #[must_use]
    pub fn addresses(&self) -> Vec<Vec<IpAddr>> {
        let known = self.peers.addresses();
        let of = |actor: &Actor| known.get(&Peer::Target(actor.name.clone())).cloned();
        self.actors.iter().map(|actor| of(actor).unwrap_or_default()).collect()
    }

    /// The processes of each target whose clocks were faulted, or can be.
    #[must_use]
    pub fn clocks(&mut self) -> Vec<Option<ClocksReport>> {
        self.actors.iter_mut().map(|actor| actor.injection.clocks_report()).collect()
    }

    /// Whether a clock fault has been active at a target.
    #[must_use]
    pub fn had_clock(&self, target: usize) -> bool {
        self.actors[target].had_clock
    }

    /// Ends all faults. Counters stay readable.
    pub fn detach(&mut self) -> Result<(), StageError> {
        let ended = self.actors.iter_mut().map(|actor| actor.do_it(Injection::end));
        // If one fails, the others still end.
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
    /// Calls a function on the injection. An error names the target.
    fn do_it<T>(
        &mut self,
        work: impl FnOnce(&mut Injection<usize>) -> Result<T, InjectionError>,
    ) -> Result<T, StageError> {
        work(&mut self.injection)
            .map_err(|source| StageError::Target { name: self.name.clone(), source })
    }

    fn settle(&mut self, plan: &Plan, target: usize) -> Result<Changed, StageError> {
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
        self.tried.extend(self.parts.iter().filter(|part| plan.parts[**part].has_rules()));
        self.had_clock |= plan.clock(&self.parts).is_some();
        if self.since.is_none() && !self.tried.is_empty() {
            self.since = Some(Instant::now());
            self.do_it(|injection| injection.count_unmatched(true))?;
        }
        let after = self.counts()?.into_values().sum();
        Ok(Changed { target, parts: self.parts.clone(), replaced: sums, before, after })
    }

    fn take_events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.injection.next_event() {
            let name = self.name.clone();
            events.push(match event {
                injection::Event::Attached(attached) => {
                    Event::Attached { name, attached: AttachedReport::all(&attached) }
                }
                injection::Event::Gone { target: title, .. } => Event::Gone { name, title },
                injection::Event::Restarted { target: title, attached } => {
                    Event::Followed { name, title, attached: AttachedReport::all(&attached) }
                }
                injection::Event::PeersChanged(resolved) => Event::Changed { name, resolved },
                injection::Event::Warning(message) => {
                    Event::Warning { message: format!("target {name}: {message}") }
                }
            });
        }
        events
    }

    /// Statistics since the start, by part.
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

/// The fault set for the parts of a target.
fn set(plan: &Plan, target: usize, parts: &[usize], seed: u64) -> FaultSet<usize> {
    let (owners, rules) = plan.rules(target, parts).into_iter().unzip();
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
    FaultSet { seed, owners, rules, clock, processes, next: Next::Nothing }
}

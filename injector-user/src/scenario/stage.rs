//! The targets of a scenario, with what is installed for them. Each has a slot of its own, as if it had an injector of
//! its own; so they get along as injectors do.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use thiserror::Error;

use super::timeline::{Counts, Event};
use crate::{
    fault::{
        RetargetError,
        clock::{ClockFaultError, Clocks},
        network::{Attached, Network, NetworkError, Options, shared::Shared},
        process::{ProcessFaultError, Processes, Scope},
        retarget,
    },
    kernel::{KernelError, clock, interface},
    lifetime::{LifetimeError, instance::Instance, journal::Owner},
    spec::{
        clock::ClockFault,
        rule::Rule,
        scenario::{
            Scenario,
            plan::{Plan, What},
            random::{packet_seed, process_seed},
        },
        value::Remote,
    },
    target::{Followed, ResolveError, Target, host},
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
        source: TargetError,
    },
    /// A target without addresses.
    #[error("target {0} has no addresses, which a partition needs: say them with `address`")]
    NoAddress(String),
    /// A slot cannot be had.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
}

/// Why a target cannot be faulted.
#[derive(Debug, Error)]
pub enum TargetError {
    /// It cannot be found.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Packets.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Clocks.
    #[error(transparent)]
    Clock(#[from] ClockFaultError),
    /// Processes.
    #[error(transparent)]
    Process(#[from] ProcessFaultError),
    /// It cannot be followed.
    #[error(transparent)]
    Retarget(#[from] RetargetError),
    /// Its addresses cannot be read.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Something cannot be undone.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
}

/// One target.
#[derive(Debug)]
struct Actor {
    name: String,
    target: Target,
    // Dropped in this order.
    /// The process faults that are active, by part.
    processes: BTreeMap<usize, Processes>,
    /// Owners of rules are parts.
    network: Shared<usize>,
    clocks: Option<Clocks>,
    instance: Instance,
    /// Its processes, if they are ever faulted.
    scope: Option<Scope>,
    /// What is active, and was before the last change.
    parts: Vec<usize>,
    /// What process faults did that have just ended.
    ended: Vec<(usize, Counts)>,
    /// What process faults of each part did that have ended.
    done: BTreeMap<usize, Counts>,
    /// Active parts whose process faults start once the target is there again, and their seeds.
    waiting: BTreeMap<usize, u64>,
    /// Whether any part sends signals, which may be what removes the target.
    kills: bool,
    /// Warnings that were not reported yet.
    warnings: Vec<String>,
    /// What is ready to be active.
    next: Option<Next>,
}

/// A state that is ready.
#[derive(Debug)]
struct Next {
    parts: Vec<usize>,
    clock: ClockChange,
    seed: u64,
}

/// What becomes of the clocks.
#[derive(Debug)]
enum ClockChange {
    Stays,
    To(Option<ClockFault>),
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
        log_level: u8,
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
                addresses_of(target)
                    .map_err(|source| StageError::Target { name: (*name).clone(), source })?
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
            let instance = Instance::start(owner.clone())?;
            let options = Options {
                judged_bit: 1 << instance.slot(),
                protect,
                seed,
                log_level,
                ..Options::default()
            };
            let mut actor = Actor {
                name: name.clone(),
                target,
                processes: BTreeMap::new(),
                network: Shared::new(None),
                clocks: None,
                instance,
                scope: None,
                parts: Vec::new(),
                ended: Vec::new(),
                done: BTreeMap::new(),
                waiting: BTreeMap::new(),
                kills: false,
                warnings: Vec::new(),
                next: None,
            };
            actor
                .install(plan, number, &stage.addresses, options)
                .map_err(|source| StageError::Target { name: name.clone(), source })?;
            stage.actors.push(actor);
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
            let actor = &mut self.actors[*target];
            actor
                .prepare(plan, *target, parts, &self.addresses, seed)
                .map_err(|source| StageError::Target { name: actor.name.clone(), source })?;
        }
        Ok(())
    }

    /// Makes the change that is ready, at all targets. Returns when it was done, by `CLOCK_MONOTONIC`.
    pub fn commit(&mut self, plan: &Plan, number: usize) -> Result<u64, StageError> {
        let sets = &plan.changes[number].sets;
        for (target, _) in sets {
            let actor = &mut self.actors[*target];
            actor
                .commit()
                .map_err(|source| StageError::Target { name: actor.name.clone(), source })?;
        }
        // They take longer, so that no target waits for those of another one.
        for (target, _) in sets {
            let actor = &mut self.actors[*target];
            actor
                .commit_processes(plan)
                .map_err(|source| StageError::Target { name: actor.name.clone(), source })?;
        }
        Ok(clock::monotonic_ns())
    }

    /// Waits until the change is all there is, and tells what the one before did.
    pub fn settle(&mut self, plan: &Plan, number: usize) -> Result<Vec<Changed>, StageError> {
        let sets = &plan.changes[number].sets;
        if sets.iter().any(|(target, _)| self.actors[*target].network.network().is_some()) {
            // Once no program can be reading the old rules any more, their counters are final.
            clock::wait_for_readers();
        }
        let mut changed = Vec::new();
        for (target, _) in sets {
            let actor = &mut self.actors[*target];
            let settled = actor.settle(*target);
            changed.push(
                settled
                    .map_err(|source| StageError::Target { name: actor.name.clone(), source })?,
            );
        }
        Ok(changed)
    }

    /// When [`Self::step`] has something to do, if ever.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let processes = self.actors.iter().flat_map(|actor| actor.processes.values());
        processes.filter_map(Processes::due).min()
    }

    /// Does what is due to processes.
    pub fn step(&mut self) -> Result<(), StageError> {
        for actor in &mut self.actors {
            actor
                .step()
                .map_err(|source| StageError::Target { name: actor.name.clone(), source })?;
        }
        Ok(())
    }

    /// Goes on for a while, also on what is new. To be called every [`crate::fault::network::RENEWAL`]. Returns what became
    /// of containers.
    pub fn renew(&mut self, plan: &Plan) -> Result<Vec<Event>, StageError> {
        let mut events = Vec::new();
        for actor in &mut self.actors {
            let renewed = actor.renew(plan);
            events.extend(
                renewed
                    .map_err(|source| StageError::Target { name: actor.name.clone(), source })?,
            );
        }
        Ok(events)
    }

    /// What others did to the packet faults that was not said yet; to be asked for at the end.
    pub fn last_warnings(&mut self) -> Vec<Event> {
        self.actors.iter_mut().flat_map(|actor| actor.warnings(true)).collect()
    }

    /// Follows all targets, and says what became of them.
    pub fn follow(&mut self, plan: &Plan) -> Result<Vec<Event>, StageError> {
        let mut events = Vec::new();
        for actor in &mut self.actors {
            let followed = actor.follow_all(plan);
            events.extend(
                followed
                    .map_err(|source| StageError::Target { name: actor.name.clone(), source })?,
            );
        }
        Ok(events)
    }

    /// The targets that were removed and did not return, for people.
    #[must_use]
    pub fn taken(&self) -> Vec<String> {
        let taken = self.actors.iter().filter(|actor| actor.target.is_taken(actor.kills));
        taken.map(|actor| format!("target {}: {}", actor.name, actor.target.name())).collect()
    }

    /// What was done to each target so far, by part.
    pub fn counts(&mut self) -> Result<Vec<BTreeMap<usize, Counts>>, StageError> {
        let counts = |actor: &mut Actor| {
            actor.counts().map_err(|source| StageError::Target { name: actor.name.clone(), source })
        };
        self.actors.iter_mut().map(counts).collect()
    }

    /// Where programs are attached, for people.
    #[must_use]
    pub fn attached(&self) -> Vec<Vec<String>> {
        let attached =
            |actor: &Actor| places(actor.network.network().into_iter().flat_map(Network::attached));
        self.actors.iter().map(attached).collect()
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
        self.actors.iter().map(|actor| actor.clocks.as_ref().map(programs)).collect()
    }

    /// Ends all faults; counters can still be read.
    pub fn detach(&mut self) -> Result<(), StageError> {
        for actor in &mut self.actors {
            actor
                .detach()
                .map_err(|source| StageError::Target { name: actor.name.clone(), source })?;
        }
        Ok(())
    }

    /// Undoes everything.
    pub fn end(self) -> Result<(), StageError> {
        for actor in self.actors {
            let Actor { processes, network, clocks, instance, .. } = actor;
            drop((processes, network, clocks));
            instance.end()?;
        }
        Ok(())
    }
}

impl Actor {
    fn install(
        &mut self,
        plan: &Plan,
        number: usize,
        addresses: &[Vec<Remote>],
        options: Options,
    ) -> Result<(), TargetError> {
        if plan.ever_has_clock(number) {
            let cgroup = self.target.cgroup.as_ref();
            let clocks = Clocks::install(&mut self.instance, cgroup, None, None, true, &[])?;
            // What is backward now will be so later: better now than halfway.
            for part in plan.sets(number).filter_map(|parts| plan.clock(parts)) {
                clocks.check(fault_of(plan, part))?;
            }
            self.clocks = Some(clocks);
        }
        let mut sets: Vec<&[usize]> = plan.sets(number).collect();
        sets.sort_unstable();
        sets.dedup();
        let parts: BTreeSet<usize> = sets.iter().copied().flatten().copied().collect();
        for (_, faults) in plan.processes(&Vec::from_iter(parts)) {
            self.kills |= !faults.kills.is_empty();
            if self.scope.is_none() {
                // It must not be stopped with the others, and no change is to wait for its start.
                self.instance.guard()?;
                self.scope = Some(Scope::of(&self.target, &self.instance)?);
            }
            if let Some(scope) = &self.scope {
                Processes::check(scope, faults)?;
            }
        }
        let rules = |parts: &[usize]| -> Vec<Rule> {
            plan.rules(number, parts, addresses).into_iter().map(|(_, rule)| rule).collect()
        };
        let later: Vec<Vec<Rule>> = sets.into_iter().map(rules).collect();
        if later.iter().any(|rules| !rules.is_empty()) {
            let (instance, target) = (&mut self.instance, self.target.clone());
            let network = Network::install_for(instance, target, &[], &later, options)?;
            self.network = Shared::new(Some(network));
        }
        Ok(())
    }

    fn prepare(
        &mut self,
        plan: &Plan,
        number: usize,
        parts: &[usize],
        addresses: &[Vec<Remote>],
        seed: u64,
    ) -> Result<(), TargetError> {
        self.network.prepare(plan.rules(number, parts, addresses), seed)?;
        let (before, after) = (plan.clock(&self.parts), plan.clock(parts));
        let clock = if before == after {
            ClockChange::Stays
        } else {
            ClockChange::To(after.and_then(|part| fault_of(plan, part)).cloned())
        };
        self.next = Some(Next { parts: parts.to_vec(), clock, seed });
        Ok(())
    }

    fn commit(&mut self) -> Result<(), TargetError> {
        self.network.commit()?;
        if let (Some(clocks), Some(Next { clock: ClockChange::To(fault), .. })) =
            (&mut self.clocks, &self.next)
        {
            let timed = clocks.check(fault.as_ref())?;
            clocks.set(timed);
        }
        Ok(())
    }

    /// What ends comes first: it may be what begins anew.
    fn commit_processes(&mut self, plan: &Plan) -> Result<(), TargetError> {
        let (Some(_), Some(Next { parts, seed, .. })) = (&self.scope, &self.next) else {
            return Ok(());
        };
        let (parts, seed) = (parts.clone(), *seed);
        let ended = self.processes.extract_if(.., |part, _| !parts.contains(part));
        for (part, mut processes) in ended {
            processes.end(&mut self.instance)?;
            self.ended.push((part, (&processes.statistics()?).into()));
        }
        self.waiting.retain(|part, _| parts.contains(part));
        for (part, _) in plan.processes(&parts) {
            if !self.processes.contains_key(&part) && !self.waiting.contains_key(&part) {
                let seed = process_seed(seed, part as u64);
                if !self.start_processes(plan, part, seed)? {
                    self.waiting.insert(part, seed);
                    self.warnings.push(self.is_waiting(&plan.parts[part].name));
                }
            }
        }
        // What begins at once begins now.
        self.step()
    }

    /// Starts the process faults of a part; returns whether the target is there for that.
    fn start_processes(
        &mut self,
        plan: &Plan,
        part: usize,
        seed: u64,
    ) -> Result<bool, TargetError> {
        let faults = plan.parts[part].processes();
        let (Some(scope), Some(faults)) = (&self.scope, faults) else { return Ok(true) };
        if self.target.is_gone() {
            return Ok(false);
        }
        match Processes::install_on(&mut self.instance, scope, faults, seed, None, None) {
            Ok(processes) => {
                self.processes.insert(part, processes);
                Ok(true)
            }
            // It was removed just now.
            Err(error) if self.target.is_gone() => {
                tracing::debug!(%error, "gone before it could be faulted");
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Says what becomes of process faults that cannot start.
    fn is_waiting(&self, part: &str) -> String {
        let what = self.target.name();
        if self.target.can_return() {
            format!("{what} is gone: the process faults of {part} start when it returns")
        } else {
            format!("{what} is gone: the process faults of {part} do not start")
        }
    }

    fn step(&mut self) -> Result<(), TargetError> {
        for processes in self.processes.values_mut() {
            processes.step(&mut self.instance)?;
        }
        Ok(())
    }

    fn settle(&mut self, target: usize) -> Result<Changed, TargetError> {
        let packets = self.network.settle(self.parts.iter().copied())?;
        let mut replaced: BTreeMap<usize, Counts> =
            packets.iter().map(|(&part, counts)| (part, counts.into())).collect();
        for (part, counts) in self.ended.drain(..) {
            *replaced.entry(part).or_default() += counts;
            *self.done.entry(part).or_default() += counts;
        }
        let packets = self.network.done().values().map(Counts::from);
        let mut before: Counts = packets.chain(self.done.values().copied()).sum();
        for processes in self.processes.values_mut() {
            before += Counts::from(&processes.statistics()?);
        }
        if let Some(Next { parts, .. }) = self.next.take() {
            self.parts = parts;
        }
        let after = self.counts()?.into_values().sum();
        Ok(Changed { target, parts: self.parts.clone(), replaced, before, after })
    }

    /// Follows the target, and says what became of it.
    fn follow_all(&mut self, plan: &Plan) -> Result<Vec<Event>, TargetError> {
        let mut events = Vec::new();
        while let Some(followed) = self.target.follow()? {
            events.push(self.follow(plan, followed)?);
        }
        Ok(events)
    }

    fn renew(&mut self, plan: &Plan) -> Result<Vec<Event>, TargetError> {
        let mut events = self.follow_all(plan)?;
        if let Some(clocks) = &mut self.clocks {
            clocks.renew();
        }
        if let Some(network) = self.network.network_mut() {
            network.renew()?;
            network.attach(&mut self.instance)?;
        }
        events.extend(self.warnings(false));
        Ok(events)
    }

    /// What keeps faults from acting, such as what others did to those of packets.
    fn warnings(&mut self, is_end: bool) -> Vec<Event> {
        let mut messages = std::mem::take(&mut self.warnings);
        if let Some(network) = self.network.network_mut() {
            messages.extend(network.warnings(is_end));
        }
        messages
            .into_iter()
            .map(|message| Event::Warning { message: format!("target {}: {message}", self.name) })
            .collect()
    }

    /// Has the faults go on in the cgroup that has taken the place of the one before, or says that it is gone.
    fn follow(&mut self, plan: &Plan, followed: Followed) -> Result<Event, TargetError> {
        let (target, what) = (self.name.clone(), self.target.name());
        if followed != Followed::Again {
            return Ok(Event::Gone { target, what });
        }
        let (network, clocks) = (self.network.network_mut(), self.clocks.as_mut());
        let processes = self.processes.values_mut();
        retarget(&mut self.instance, &self.target, network, clocks, processes)?;
        if let Some(scope) = &mut self.scope {
            *scope = Scope::of(&self.target, &self.instance)?;
        }
        for (part, seed) in std::mem::take(&mut self.waiting) {
            if !self.start_processes(plan, part, seed)? {
                self.waiting.insert(part, seed);
            }
        }
        let attached = places(self.network.network().into_iter().flat_map(Network::attached));
        Ok(Event::Followed { target, what, attached })
    }

    /// By part, from the start.
    fn counts(&mut self) -> Result<BTreeMap<usize, Counts>, TargetError> {
        let mut counts = self.done.clone();
        for (part, packets) in &self.network.counts()? {
            *counts.entry(*part).or_default() += packets.into();
        }
        for (&part, processes) in &mut self.processes {
            *counts.entry(part).or_default() += (&processes.statistics()?).into();
        }
        Ok(counts)
    }

    fn detach(&mut self) -> Result<(), TargetError> {
        for processes in self.processes.values_mut() {
            processes.end(&mut self.instance)?;
        }
        if let Some(network) = self.network.network_mut() {
            network.detach(&mut self.instance)?;
        }
        if let Some(clocks) = &mut self.clocks {
            clocks.end(&mut self.instance)?;
        }
        Ok(())
    }
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

fn fault_of(plan: &Plan, part: usize) -> Option<&ClockFault> {
    plan.parts[part].faults().and_then(|faults| faults.clock.as_ref())
}

/// The addresses of a target's interfaces, but those that are not known outside its namespace.
fn addresses_of(target: &Target) -> Result<Vec<Remote>, TargetError> {
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

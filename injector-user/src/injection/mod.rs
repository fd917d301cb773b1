//! A running injection: the faults of one target, of all kinds, from their start to their end. `run`, `inject`, each
//! target of a scenario, and the agent hold it.

pub mod builder;
pub mod drive;
pub mod worker;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use thiserror::Error;

use crate::{
    fault::{
        clock::{ClockFaultError, Clocks, engine::Engine as ClockEngine, report::ClocksReport},
        network::{self, Attached, Network, NetworkError, counts::Counts, shared::Shared},
        process::{ProcessFaultError, Processes, Scope, Statistics},
    },
    kernel::{clock, hook},
    lifetime::{
        LifetimeError,
        instance::{Instance, SharedInstance},
        lease::RENEWAL,
    },
    spec::{Faults, clock::ClockFault, process::ProcessFaults, rule::Rule},
    target::{Followed, ResolveError, Target},
    threads::Panicked,
};

/// Why an injection cannot start, or cannot go on.
#[derive(Debug, Error)]
pub enum InjectionError {
    /// The target cannot be found.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Packet faults failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Clock faults failed.
    #[error(transparent)]
    Clock(#[from] ClockFaultError),
    /// Process faults failed.
    #[error(transparent)]
    Process(#[from] ProcessFaultError),
    /// Something cannot be done so that it can be undone, or cannot be undone.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
    /// The change has the first fault of a kind.
    #[error("none of the first faults was one of {0}: restart with them")]
    NewKind(&'static str),
    /// A thread of it panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// The kernel side's log cannot be read.
    #[error("cannot read the log of the eBPF side")]
    Log(#[source] std::io::Error),
}

/// How to inject.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How packets are faulted; also how long all faults last at the most.
    pub network: network::Options,
    /// The engines of clock faults; the best ones if empty.
    pub clock: Vec<ClockEngine>,
    /// The engine of failing system calls; the best one if absent.
    pub errno: Option<hook::Engine>,
    /// Whether processes of the target may go on after the faults.
    pub outlived: bool,
    /// Rules keep their random streams and queues if their owner has one in the next set; then each owner has one rule.
    pub carries: bool,
}

/// Faults that are active together. Each has an owner, by which counters are told.
#[derive(Clone, Debug)]
pub struct FaultSet<K> {
    /// The start of all random streams of packet faults.
    pub seed: u64,
    /// The owners of the rules.
    pub owners: Vec<K>,
    /// The packet faults.
    pub rules: Vec<Rule>,
    /// The clock fault. It goes on over a change to the same one of the same owner.
    pub clock: Option<(K, ClockFault)>,
    /// The process faults.
    pub processes: Vec<OwnedProcesses<K>>,
}

/// Process faults of an owner.
#[derive(Clone, Debug)]
pub struct OwnedProcesses<K> {
    /// Whose.
    pub owner: K,
    /// The name of the owner, for people.
    pub name: String,
    /// The faults.
    pub faults: ProcessFaults,
    /// The start of their random streams.
    pub seed: u64,
}

impl<K> Default for FaultSet<K> {
    fn default() -> Self {
        let (owners, rules, processes) = (Vec::new(), Vec::new(), Vec::new());
        Self { seed: 0, owners, rules, clock: None, processes }
    }
}

impl FaultSet<u32> {
    /// The faults of one owner. Rules have their numbers, as they are told of one by one.
    #[must_use]
    pub fn of(faults: &Faults, seed: u64) -> Self {
        Self {
            seed,
            owners: (0..faults.rules.len() as u32).collect(),
            rules: faults.rules.clone(),
            clock: faults.clock.clone().map(|fault| (0, fault)),
            processes: faults
                .processes
                .iter()
                .map(|faults| {
                    let (name, faults) = (faults.name.clone(), faults.clone());
                    OwnedProcesses { owner: 0, name, faults, seed }
                })
                .collect(),
        }
    }
}

/// Something that happened to an injection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Packets are faulted at more places.
    Attached(Vec<Attached>),
    /// The target is gone.
    Gone {
        /// What it is called.
        target: String,
        /// Nothing can take its place.
        is_final: bool,
    },
    /// The target is there again, and is faulted as before.
    Restarted {
        /// What it is called.
        target: String,
        /// Where packets are faulted.
        attached: Vec<Attached>,
    },
    /// Something is probably not as it was meant.
    Warning(String),
}

/// What the faults before a change did.
#[derive(Debug)]
pub struct Replaced<K> {
    /// What rules did since they became active, by owner.
    pub packets: BTreeMap<K, Counts>,
    /// What process faults did that have ended.
    pub processes: Vec<(K, Statistics)>,
}

/// The faults of a target.
#[derive(Debug)]
pub struct Injection<K> {
    target: Target,
    options: Options,
    // Dropped in this order.
    processes: BTreeMap<K, Processes>,
    network: Shared<K>,
    clocks: Option<Clocks>,
    instance: SharedInstance,
    /// The processes of the target, if they are ever faulted.
    scope: Option<Scope>,
    clock: Option<(K, ClockFault)>,
    /// Whether any fault sends signals, which may be what ends the target.
    kills: bool,
    /// Process faults that start once the target is there again.
    waiting: Vec<OwnedProcesses<K>>,
    next: Option<FaultSet<K>>,
    /// What process faults did that have ended since the last change.
    ended: Vec<(K, Statistics)>,
    events: VecDeque<Event>,
    renewal: Instant,
}

impl<K: Copy + Ord> Injection<K> {
    /// Gets everything ready that the `first` faults require, and those that may replace them `later`. Whatever can be
    /// refused is refused here or in [`Self::start`], and then nothing is left. Nothing acts yet.
    pub fn prepare(
        target: Target,
        instance: SharedInstance,
        first: FaultSet<K>,
        later: &[FaultSet<K>],
        mut options: Options,
    ) -> Result<Self, InjectionError> {
        let sets = || later.iter().chain([&first]);
        let mut guard = instance.lock();
        options.network.judged_bit = 1 << guard.slot();
        options.network.seed = first.seed;
        let mut scope = None;
        if sets().any(|set| !set.processes.is_empty()) {
            // The guardian may be in the cgroup as well, and must not be stopped with it; nor is a change to wait for it.
            guard.guard()?;
            let found = Scope::of(&target, &guard)?;
            for processes in later.iter().flat_map(|set| &set.processes) {
                Processes::check(&found, &processes.faults, options.errno)?;
            }
            scope = Some(found);
        }
        // A fault that sets a clock back now will do so later.
        for (_, fault) in sets().filter_map(|set| set.clock.as_ref()) {
            fault
                .check_backward(clock::true_time()[0], options.outlived)
                .map_err(ClockFaultError::from)?;
        }
        let network = if sets().any(|set| !set.rules.is_empty()) {
            let later = later.iter().map(|set| set.rules.as_slice());
            Some(Network::install(
                &mut guard,
                target.clone(),
                &first.rules,
                later,
                options.network,
            )?)
        } else {
            None
        };
        let clocks = if sets().any(|set| set.clock.is_some()) {
            let cgroup = target.cgroup.as_ref();
            Some(Clocks::install(&mut guard, cgroup, options.outlived, &options.clock)?)
        } else {
            None
        };
        drop(guard);
        let kills = sets()
            .any(|set| set.processes.iter().any(|processes| !processes.faults.kills.is_empty()));
        Ok(Self {
            target,
            options,
            processes: BTreeMap::new(),
            network: Shared::new(network, first.owners.clone()),
            clocks,
            instance,
            scope,
            clock: None,
            kills,
            waiting: Vec::new(),
            next: Some(first),
            ended: Vec::new(),
            events: VecDeque::new(),
            renewal: Instant::now() + RENEWAL,
        })
    }

    /// Activates the first faults. If that fails, the injection is to be dropped, which ends it.
    pub fn start(&mut self) -> Result<(), InjectionError> {
        // They may be refused still. Nothing is due before `advance`, so what is refused later has stopped nothing.
        self.commit_processes()?;
        if let Some(network) = self.network.network_mut() {
            network.begin()?;
        }
        if let Some(clocks) = &mut self.clocks {
            clocks.end_after(self.options.network.lasts);
        }
        let clock = self.next.take().and_then(|set| set.clock);
        self.set_clock(clock)?;
        self.collect_warnings(false);
        Ok(())
    }

    /// Gets a change ready, so that [`Self::commit`] has little to do.
    pub fn prepare_next(&mut self, mut set: FaultSet<K>) -> Result<(), InjectionError> {
        if set.clock.is_some() && self.clocks.is_none() {
            return Err(InjectionError::NewKind("clocks"));
        }
        if !set.rules.is_empty() && self.network.network().is_none() {
            return Err(InjectionError::NewKind("packets"));
        }
        if let Some(clocks) = &self.clocks
            && set.clock != self.clock
        {
            clocks.check(set.clock.as_ref().map(|(_, fault)| fault))?;
        }
        let (owners, rules) = (std::mem::take(&mut set.owners), std::mem::take(&mut set.rules));
        self.network.prepare(owners, &rules, set.seed)?;
        self.next = Some(set);
        Ok(())
    }

    /// Activates the packet and clock faults that are ready, instead of those that are active.
    pub fn commit(&mut self) -> Result<(), InjectionError> {
        if self.options.carries {
            self.network.carry()?;
        }
        self.network.commit()?;
        match self.next.as_mut().map(|next| next.clock.take()) {
            Some(clock) if clock != self.clock => self.set_clock(clock),
            _ => Ok(()),
        }
    }

    /// The same for process faults, which takes longer. What ends comes first: it may be what begins anew.
    pub fn commit_processes(&mut self) -> Result<(), InjectionError> {
        let Some(next) = &self.next else { return Ok(()) };
        let mut instance = self.instance.lock();
        let is_over = |owner: &K| !next.processes.iter().any(|other| other.owner == *owner);
        for (owner, mut processes) in self.processes.extract_if(.., |owner, _| is_over(owner)) {
            processes.end(&mut instance)?;
            self.ended.push((owner, processes.statistics()?));
        }
        drop(instance);
        self.waiting.retain(|processes| !is_over(&processes.owner));
        let is_new = |processes: &&OwnedProcesses<K>| {
            let waiting = self.waiting.iter().any(|other| other.owner == processes.owner);
            !waiting && !self.processes.contains_key(&processes.owner)
        };
        let new: Vec<OwnedProcesses<K>> = next.processes.iter().filter(is_new).cloned().collect();
        for processes in new {
            let (name, what) = (processes.name.clone(), self.target.name());
            if !self.start_processes(processes)? {
                let message =
                    format!("{what} is gone: the process faults of {name} start when it returns");
                self.events.push_back(Event::Warning(message));
            }
        }
        Ok(())
    }

    /// Starts process faults, or has them wait for the target; returns whether that is there.
    fn start_processes(&mut self, processes: OwnedProcesses<K>) -> Result<bool, InjectionError> {
        let Some(scope) = &self.scope else { return Ok(true) };
        // What cannot return is faulted in vain, and counted so.
        if !self.target.is_gone() || !self.target.can_return() {
            let OwnedProcesses { owner, faults, seed, .. } = &processes;
            let (lasts, errno) = (self.options.network.lasts, self.options.errno);
            let mut instance = self.instance.lock();
            match Processes::install(&mut instance, scope, faults, *seed, lasts, errno) {
                Ok(processes) => {
                    self.processes.insert(*owner, processes);
                    return Ok(true);
                }
                // It was removed just now.
                Err(error) if self.target.is_gone() => {
                    tracing::debug!(%error, "gone before it could be faulted");
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.waiting.push(processes);
        Ok(false)
    }

    /// What the faults before the change did, once [`clock::wait_for_readers`] has made the counters final.
    pub fn settle(
        &mut self,
        known: impl IntoIterator<Item = K>,
    ) -> Result<Replaced<K>, InjectionError> {
        self.next = None;
        let packets = self.network.settle(known)?;
        Ok(Replaced { packets, processes: std::mem::take(&mut self.ended) })
    }

    /// Changes the faults: each packet meets either the old rules or the new ones. Process faults whose owner stays go
    /// on. A change that is refused changes nothing.
    pub fn swap(&mut self, set: FaultSet<K>) -> Result<Replaced<K>, InjectionError> {
        self.prepare_next(set)?;
        self.commit()?;
        self.commit_processes()?;
        clock::wait_for_readers();
        let replaced = self.settle([])?;
        self.attach()?;
        Ok(replaced)
    }

    fn set_clock(&mut self, clock: Option<(K, ClockFault)>) -> Result<(), InjectionError> {
        if let Some(clocks) = &mut self.clocks {
            let timed = clocks.check(clock.as_ref().map(|(_, fault)| fault))?;
            clocks.set(timed)?;
        }
        self.clock = clock;
        Ok(())
    }

    /// When [`Self::advance`] has something to do.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.next_deadline().map_or(self.renewal, |deadline| deadline.min(self.renewal))
    }

    /// Does what is due. What happens is told by [`Self::next_event`], also if this fails.
    pub fn advance(&mut self) -> Result<(), InjectionError> {
        self.step()?;
        if self.renewal <= Instant::now() { self.renew() } else { Ok(()) }
    }

    /// When [`Self::step`] has something to do, if ever.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.processes.values().filter_map(Processes::next_deadline).min()
    }

    /// Does what is due to processes.
    pub fn step(&mut self) -> Result<(), InjectionError> {
        if self.next_deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            let mut instance = self.instance.lock();
            for processes in self.processes.values_mut() {
                processes.step(&mut instance)?;
            }
        }
        Ok(())
    }

    /// Ends the pauses that are on, so that processes can take the signals that they are sent.
    pub fn interrupt(&mut self) -> Result<(), InjectionError> {
        let mut instance = self.instance.lock();
        for processes in self.processes.values_mut() {
            processes.interrupt(&mut instance)?;
        }
        Ok(())
    }

    /// Renews leases, and goes on with what is new: interfaces, namespaces, the cgroup in the place of the one before. To be
    /// called every [`RENEWAL`].
    pub fn renew(&mut self) -> Result<(), InjectionError> {
        // A slow machine is not made slower.
        self.renewal = Instant::now() + RENEWAL;
        while let Some(followed) = self.follow_once()? {
            if followed != Followed::Again {
                // This is told first: to fault what has taken the place takes a while. The rest is due at once.
                self.renewal = Instant::now();
                return Ok(());
            }
        }
        if let Some(clocks) = &mut self.clocks {
            clocks.renew()?;
        }
        if let Some(network) = self.network.network_mut() {
            network.renew()?;
        }
        let new = self.attach()?;
        if !new.is_empty() {
            self.events.push_back(Event::Attached(new));
        }
        self.collect_warnings(false);
        Ok(())
    }

    fn attach(&mut self) -> Result<Vec<Attached>, InjectionError> {
        let Some(network) = self.network.network_mut() else { return Ok(Vec::new()) };
        Ok(network.attach(&mut self.instance.lock())?)
    }

    /// Looks whether the target is gone, or there again.
    pub fn follow(&mut self) -> Result<(), InjectionError> {
        while self.follow_once()?.is_some() {}
        Ok(())
    }

    fn follow_once(&mut self) -> Result<Option<Followed>, InjectionError> {
        let Some(followed) = self.target.follow()? else { return Ok(None) };
        let target = self.target.name();
        let event = match followed {
            Followed::Gone => Event::Gone { target, is_final: false },
            Followed::Lost => Event::Gone { target, is_final: true },
            Followed::Again => {
                self.rebind()?;
                Event::Restarted { target, attached: self.attached() }
            }
        };
        self.events.push_back(event);
        Ok(Some(followed))
    }

    /// Faults what is the target by now.
    fn rebind(&mut self) -> Result<(), InjectionError> {
        match self.try_rebind() {
            // It is gone already, and the next one will be followed.
            Err(error) if self.target.is_gone() => {
                tracing::debug!(%error, "gone before it could be faulted");
                Ok(())
            }
            result => result,
        }
    }

    fn try_rebind(&mut self) -> Result<(), InjectionError> {
        let mut instance = self.instance.lock();
        if let Some(network) = self.network.network_mut() {
            network.rebind(&mut instance, self.target.clone())?;
        }
        if let (Some(clocks), Some(cgroup)) = (&mut self.clocks, &self.target.cgroup) {
            clocks.rebind(&mut instance, cgroup)?;
        }
        if let Some(scope) = &mut self.scope {
            *scope = Scope::of(&self.target, &instance)?;
            for processes in self.processes.values_mut() {
                processes.rebind(&mut instance, scope)?;
            }
        }
        drop(instance);
        for processes in std::mem::take(&mut self.waiting) {
            self.start_processes(processes)?;
        }
        Ok(())
    }

    /// Whether the target was taken away from the faults: it is gone, and they did not end it.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.target.is_taken(self.kills)
    }

    /// What happened that was not told yet, the first first.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Notes what others did to the packet faults; `is_end` if it is for the last time.
    pub fn collect_warnings(&mut self, is_end: bool) {
        if let Some(network) = self.network.network_mut() {
            self.events.extend(network.warnings(is_end).into_iter().map(Event::Warning));
        }
    }

    /// Ends all faults; counters can still be read. If one cannot be ended, the others are.
    pub fn end(&mut self) -> Result<(), InjectionError> {
        let mut instance = self.instance.lock();
        let mut ended = Ok(());
        for processes in self.processes.values_mut() {
            ended = ended.and(processes.end(&mut instance).map_err(InjectionError::from));
        }
        if let Some(network) = self.network.network_mut() {
            ended = ended.and(network.detach(&mut instance).map_err(InjectionError::from));
        }
        if let Some(clocks) = &mut self.clocks {
            ended = ended.and(clocks.end(&mut instance).map_err(InjectionError::from));
        }
        drop(instance);
        self.collect_warnings(true);
        ended
    }

    /// Ends all faults, and undoes everything that this journalled, if nothing shares its instance.
    pub fn close(self) -> Result<(), LifetimeError> {
        let Self { processes, network, clocks, instance, .. } = self;
        drop((processes, network, clocks));
        instance.end()
    }

    /// What is faulted.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// What it does is journalled by this.
    pub fn instance(&self) -> std::sync::MutexGuard<'_, Instance> {
        self.instance.lock()
    }

    /// Where packets are faulted.
    #[must_use]
    pub fn attached(&self) -> Vec<Attached> {
        self.network().map(Network::attached).unwrap_or_default()
    }

    /// The packet faults, if there are any.
    #[must_use]
    pub const fn network(&self) -> Option<&Network> {
        self.network.network()
    }

    /// The packet faults, if there are any.
    pub const fn network_mut(&mut self) -> Option<&mut Network> {
        self.network.network_mut()
    }

    /// The rules by their owners.
    pub const fn rules_mut(&mut self) -> &mut Shared<K> {
        &mut self.network
    }

    /// The clock faults, if there are any.
    #[must_use]
    pub const fn clocks(&self) -> Option<&Clocks> {
        self.clocks.as_ref()
    }

    /// What was done to clocks, if they are faulted.
    pub fn clocks_report(&mut self) -> Option<ClocksReport> {
        self.clocks.as_mut().map(ClocksReport::of)
    }

    /// What process faults do that have not been replaced, by owner.
    pub fn process_statistics(&mut self) -> Result<Vec<(K, Statistics)>, InjectionError> {
        let statistics = self.processes.iter_mut();
        statistics.map(|(&owner, processes)| Ok((owner, processes.statistics()?))).collect()
    }
}

/// How long it is until then.
#[must_use]
pub fn until(then: Instant) -> Duration {
    then.saturating_duration_since(Instant::now())
}

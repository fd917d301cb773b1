//! An injection: all faults of one target from start to end. `run`, `inject`, each target of a
//! scenario, and the agent hold one.

pub mod builder;
pub mod drive;
pub mod worker;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use injector_common::control::MAX_MEMBERS;
use thiserror::Error;

use crate::{
    fault::{
        clock::{ClockFaultError, Clocks, engine::Engine as ClockEngine, report::ClocksReport},
        network::{
            self, Attached, Network, NetworkError,
            counts::Counts,
            links::Next,
            shared::Shared,
            unmatched::{Explanation, Label, Observed},
        },
        process::{ProcessFaultError, Processes, Scope, Statistics},
    },
    kernel::{clock, hook},
    lifetime::{
        LifetimeError,
        instance::{Instance, SharedInstance},
        lease::RENEWAL,
    },
    output,
    spec::{Faults, clock::ClockFault, process::ProcessFaults, rule::Rule},
    target::{
        Followed, ResolveError, Target, Whose,
        peers::{self, Addresses, Peers, Resolved},
    },
    threads::Panicked,
};

/// Time without a match after which that is explained.
pub const UNMATCHED_TIME: Duration = Duration::from_secs(5);

/// Number of unmatched packets that are counted in a second and direction.
const UNMATCHED_BUDGET: u32 = 1024;

/// Why an injection cannot start or continue.
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
    /// An action could not be journaled or undone.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
    /// A change adds the first fault of a kind.
    #[error("none of the first faults was one of {0}: restart with them")]
    NewKind(&'static str),
    /// A thread panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// The log of the eBPF programs cannot be read.
    #[error("cannot read the log of the eBPF side")]
    Log(#[source] std::io::Error),
}

/// Injection options.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Options of packet faults; their duration limits all faults.
    pub network: network::Options,
    /// Engines of clock faults; if empty, the best available ones.
    pub clock: Vec<ClockEngine>,
    /// Engine of syscall failures; if `None`, the best available one.
    pub errno: Option<hook::Engine>,
    /// Whether processes of the target may outlive the faults.
    pub outlived: bool,
    /// The peers that rules name, with their addresses.
    pub peers: Peers,
}

/// Faults that are active together. Each has an owner, by which counters are reported.
#[derive(Clone, Debug)]
pub struct FaultSet<K> {
    /// The seed of packet faults.
    pub seed: u64,
    /// The owner of each rule.
    pub owners: Vec<K>,
    /// The packet faults.
    pub rules: Vec<Rule>,
    /// The clock fault. It continues across a change if fault and owner stay the same.
    pub clock: Option<(K, ClockFault)>,
    /// The process faults.
    pub processes: Vec<OwnedProcesses<K>>,
    /// What is known of the packet faults that will replace these.
    pub next: Next,
}

/// The process faults of an owner.
#[derive(Clone, Debug)]
pub struct OwnedProcesses<K> {
    /// The owner.
    pub owner: K,
    /// The owner's name, for messages.
    pub name: String,
    /// The faults.
    pub faults: ProcessFaults,
    /// The seed of their random streams.
    pub seed: u64,
}

impl<K> Default for FaultSet<K> {
    fn default() -> Self {
        let (owners, rules, processes) = (Vec::new(), Vec::new(), Vec::new());
        Self { seed: 0, owners, rules, clock: None, processes, next: Next::Unknown }
    }
}

impl FaultSet<u32> {
    /// The faults of one owner. Each rule is owned by its number, because rules are reported
    /// separately.
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
            next: Next::Unknown,
        }
    }
}

/// An event of an injection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Programs were attached in more places.
    Attached(Vec<Attached>),
    /// The target is gone.
    Gone {
        /// The target's name.
        target: String,
        /// Whether the target cannot return.
        is_final: bool,
    },
    /// The target has restarted, and is faulted as before.
    Restarted {
        /// The target's name.
        target: String,
        /// Where programs are attached.
        attached: Vec<Attached>,
    },
    /// Peers that the active rules match have other addresses now.
    PeersChanged(Vec<Resolved>),
    /// Something probably does not act as intended.
    Warning(String),
}

/// Statistics of the faults before a change.
#[derive(Debug)]
pub struct Replaced<K> {
    /// Counters of rules since they became active, by owner.
    pub packets: BTreeMap<K, Counts>,
    /// Statistics of ended process faults, by owner.
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
    /// The processes of the target, if any set has process faults.
    scope: Option<Scope>,
    clock: Option<(K, ClockFault)>,
    /// Whether any fault sends signals, which may end the target.
    kills: bool,
    /// The number of the target's processes that are not faulted, as far as it was reported.
    missed: u64,
    /// Process faults that start once the target returns.
    waiting: Vec<OwnedProcesses<K>>,
    next: Option<FaultSet<K>>,
    /// The addresses that the rules were compiled with.
    addresses: Arc<Addresses>,
    /// Statistics of process faults that ended since the last change.
    ended: Vec<(K, Statistics)>,
    /// Sockets of the target's processes whose packets do not belong to it, see
    /// [`Network::stranger_sockets`].
    strangers: BTreeMap<String, usize>,
    /// Whether packets are counted that no rule matches.
    is_counting: bool,
    events: VecDeque<Event>,
    renewal: Instant,
}

impl<K: Copy + Ord> Injection<K> {
    /// Prepares everything that the `first` faults, and the `later` ones that may replace them,
    /// require. Nothing is active yet. Unsupported faults are rejected here or in [`Self::start`],
    /// and then everything is undone.
    pub fn prepare(
        target: Target,
        instance: SharedInstance,
        first: FaultSet<K>,
        later: &[FaultSet<K>],
        mut options: Options,
    ) -> Result<Self, InjectionError> {
        let sets = || later.iter().chain([&first]);
        let addresses = options.peers.addresses();
        target.track()?;
        let mut guard = instance.lock();
        options.network.owner_mark = 1 << guard.slot();
        options.network.seed = first.seed;
        let mut scope = None;
        if sets().any(|set| !set.processes.is_empty()) {
            // The guardian may be in the same cgroup, and must not be stopped with it. Start it now
            // so that no later change waits for it.
            guard.guard()?;
            let found = Scope::of(&target, &guard)?;
            for processes in later.iter().flat_map(|set| &set.processes) {
                Processes::check(&found, &processes.faults, options.errno)?;
            }
            scope = Some(found);
        }
        // A fault that sets a clock back now would also do so later.
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
                &addresses,
                options.network,
            )?)
        } else {
            None
        };
        let clocks = if sets().any(|set| set.clock.is_some()) {
            let whose = &target.whose;
            Some(Clocks::install(&mut guard, whose, options.outlived, &options.clock)?)
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
            missed: 0,
            waiting: Vec::new(),
            next: Some(first),
            addresses,
            ended: Vec::new(),
            strangers: BTreeMap::new(),
            is_counting: false,
            events: VecDeque::new(),
            renewal: Instant::now() + RENEWAL,
        })
    }

    /// Activates the first faults. On error, drop the injection, which ends it.
    pub fn start(&mut self) -> Result<(), InjectionError> {
        // Process faults can still be rejected. None is due before `advance`, so no process is
        // stopped if a later step fails.
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
        self.warn_of_own_peers()?;
        self.warn_of_stranger_sockets();
        self.options.peers.follow();
        Ok(())
    }

    /// Warns of sockets of the target's processes whose packets do not belong to it.
    fn warn_of_stranger_sockets(&mut self) {
        let Some(network) = self.network.network() else { return };
        match network.stranger_sockets() {
            Ok(strangers) => {
                for (cgroup, count) in &strangers {
                    let (sockets, were) =
                        if *count == 1 { ("socket", "was") } else { ("sockets", "were") };
                    let message = format!(
                        "{count} {sockets} of {} {were} created in the cgroup {cgroup}: their packets are not matched; \
                         use --unit, --process or --pid",
                        self.target.name()
                    );
                    self.events.push_back(Event::Warning(message));
                }
                self.strangers = strangers;
            }
            // It would be a warning only. Kernels may lack the modules that list sockets.
            Err(error) => tracing::debug!(%error, "which sockets others created is not known"),
        }
    }

    /// Counts packets that no rule matches for about a second, or stops that. Call it once a second.
    pub fn count_unmatched(&mut self, is_wanted: bool) -> Result<(), InjectionError> {
        if (is_wanted || self.is_counting)
            && let Some(network) = self.network.network_mut()
        {
            network.count_unmatched(if is_wanted { UNMATCHED_BUDGET } else { 0 })?;
            self.is_counting = is_wanted;
        }
        Ok(())
    }

    /// Whether packets are counted that no rule matches.
    #[must_use]
    pub const fn is_counting(&self) -> bool {
        self.is_counting
    }

    /// What was seen that no rule matches, see [`Network::observed`]; `None` without packet faults. It
    /// only adds to a report, so errors are logged.
    pub fn observed(&mut self) -> Option<Observed> {
        let network = self.network.network_mut()?;
        let observed = network
            .observed()
            .inspect_err(|error| tracing::debug!(%error, "what passed unmatched is not known"));
        let mut observed = observed.ok()?;
        // Those of a process that has ended since were found at the start.
        observed.strangers.clone_from(&self.strangers);
        match network.stranger_sockets() {
            Ok(strangers) => observed.strangers.extend(strangers),
            Err(error) => tracing::debug!(%error, "which sockets others created is not known"),
        }
        Some(observed)
    }

    /// Explains why no packet matched these rules, if that is known.
    pub fn explain(&mut self, rules: &[Rule], label: Label) -> Option<Explanation> {
        Some(self.observed()?.explain(rules, &self.addresses, label))
    }

    /// Warns of peers that are the target itself.
    fn warn_of_own_peers(&mut self) -> Result<(), InjectionError> {
        let Some(network) = self.network.network() else { return Ok(()) };
        for peer in network.own_peers(&self.addresses)? {
            let message = format!(
                "the remote address {peer} is one of the target's own network namespace: only packets that it sends to \
                 itself match"
            );
            self.events.push_back(Event::Warning(message));
        }
        Ok(())
    }

    /// Prepares a change, so that [`Self::commit`] is fast.
    pub fn prepare_next(&mut self, set: FaultSet<K>) -> Result<(), InjectionError> {
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
        // The new rules may match peers that the active ones do not.
        self.next = None;
        self.follow_peers()?;
        let FaultSet { seed, owners, rules, next, .. } = &set;
        let mut instance = self.instance.lock();
        self.network.prepare(&mut instance, owners.clone(), rules, &self.addresses, *seed, next)?;
        drop(instance);
        self.next = Some(set);
        Ok(())
    }

    /// Activates the prepared packet and clock faults, replacing the active ones.
    pub fn commit(&mut self) -> Result<(), InjectionError> {
        self.network.commit()?;
        match self.next.as_mut().map(|next| next.clock.take()) {
            Some(clock) if clock != self.clock => self.set_clock(clock),
            _ => Ok(()),
        }
    }

    /// Activates the prepared process faults, which takes longer. Faults end before others start,
    /// because a new fault may replace an ended one.
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

    /// Starts process faults, or defers them until the target returns. Returns whether the target
    /// is there.
    fn start_processes(&mut self, processes: OwnedProcesses<K>) -> Result<bool, InjectionError> {
        let Some(scope) = &self.scope else { return Ok(true) };
        // If the target cannot return, start the faults anyway: their statistics will show that
        // they did nothing.
        if !self.target.is_gone() || !self.target.can_return() {
            let OwnedProcesses { owner, faults, seed, .. } = &processes;
            let (lasts, errno) = (self.options.network.lasts, self.options.errno);
            let mut instance = self.instance.lock();
            match Processes::install(&mut instance, scope, faults, *seed, lasts, errno) {
                Ok(processes) => {
                    self.processes.insert(*owner, processes);
                    return Ok(true);
                }
                // The target was removed meanwhile.
                Err(error) if self.target.is_gone() => {
                    tracing::debug!(%error, "gone before it could be faulted");
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.waiting.push(processes);
        Ok(false)
    }

    /// Statistics of the faults before the change. Call [`clock::wait_for_readers`] first, which
    /// makes the counters final.
    pub fn settle(
        &mut self,
        known: impl IntoIterator<Item = K>,
    ) -> Result<Replaced<K>, InjectionError> {
        self.next = None;
        let packets = self.network.settle(known)?;
        Ok(Replaced { packets, processes: std::mem::take(&mut self.ended) })
    }

    /// Replaces the faults. Each packet meets either the old rules or the new ones. Process faults
    /// whose owner stays continue. A rejected change has no effect.
    pub fn swap(&mut self, set: FaultSet<K>) -> Result<Replaced<K>, InjectionError> {
        self.prepare_next(set)?;
        self.commit()?;
        self.commit_processes()?;
        if self.network().is_some() {
            self.instance.lock().expedited(|_| clock::wait_for_readers());
        }
        let replaced = self.settle([])?;
        self.attach_and_report()?;
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

    /// When [`Self::advance`] is next due.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.next_deadline().map_or(self.renewal, |deadline| deadline.min(self.renewal))
    }

    /// Performs due work. [`Self::next_event`] returns the events, even on error.
    pub fn advance(&mut self) -> Result<(), InjectionError> {
        self.step()?;
        if self.renewal <= Instant::now() { self.renew() } else { Ok(()) }
    }

    /// When [`Self::step`] is next due, if ever.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.processes.values().filter_map(Processes::next_deadline).min()
    }

    /// Runs process faults that are due.
    pub fn step(&mut self) -> Result<(), InjectionError> {
        if self.next_deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            let mut instance = self.instance.lock();
            for processes in self.processes.values_mut() {
                processes.step(&mut instance)?;
            }
        }
        Ok(())
    }

    /// Ends running pauses, so that processes can handle signals sent to them.
    pub fn interrupt(&mut self) -> Result<(), InjectionError> {
        let mut instance = self.instance.lock();
        for processes in self.processes.values_mut() {
            processes.interrupt(&mut instance)?;
        }
        Ok(())
    }

    /// Renews leases, and extends the faults to new interfaces, namespaces and a restarted target.
    /// Call every [`RENEWAL`].
    pub fn renew(&mut self) -> Result<(), InjectionError> {
        // Schedule from now, so that a slow machine does not accumulate overdue renewals.
        self.renewal = Instant::now() + RENEWAL;
        while let Some(followed) = self.follow_once()? {
            if followed != Followed::Replaced {
                // Report this event before faulting the target's successor, which takes a while.
                // The rest of the renewal is due at once.
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
        self.report_missed()?;
        self.follow_peers()?;
        self.attach_and_report()?;
        self.collect_warnings(false);
        Ok(())
    }

    /// Applies changes of the addresses of peers to the active rules, and to those that are prepared.
    fn follow_peers(&mut self) -> Result<(), InjectionError> {
        let addresses = self.options.peers.addresses();
        if Arc::ptr_eq(&addresses, &self.addresses) {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.addresses, addresses);
        let Some(network) = self.network.network() else { return Ok(()) };
        let mut changed = peers::of_rules(network.rules());
        changed.retain(|peer| before.get(*peer) != self.addresses.get(*peer));
        let changed = peers::resolved(changed, &self.addresses);
        let next = self.next.take();
        if !changed.is_empty() {
            let mut instance = self.instance.lock();
            let event = match self.network.readdress(&mut instance, &self.addresses) {
                Ok(()) => Event::PeersChanged(changed),
                // Refused before any change.
                Err(error @ (NetworkError::Compile(_) | NetworkError::NoRoom { .. })) => {
                    let error = output::chain(&error);
                    Event::Warning(format!("the addresses of peers stay as they were: {error}"))
                }
                Err(error) => return Err(error.into()),
            };
            self.events.push_back(event);
        }
        next.map_or(Ok(()), |set| self.prepare_next(set))
    }

    /// Warns of processes for which there is no room in the set of processes.
    fn report_missed(&mut self) -> Result<(), InjectionError> {
        let Whose::Processes(set) = &self.target.whose else { return Ok(()) };
        let missed = set.missed()?;
        if missed > 0 && self.missed == 0 {
            let message = format!(
                "{} has more than {MAX_MEMBERS} processes: those that start now are not faulted",
                set.name()
            );
            self.events.push_back(Event::Warning(message));
        }
        self.missed = missed;
        Ok(())
    }

    /// Attaches to new interfaces and namespaces.
    fn attach_and_report(&mut self) -> Result<(), InjectionError> {
        let Some(network) = self.network.network_mut() else { return Ok(()) };
        let new = network.attach(&mut self.instance.lock())?;
        if !new.is_empty() {
            self.events.push_back(Event::Attached(new));
        }
        Ok(())
    }

    /// Checks whether the target has gone or returned.
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
            Followed::Replaced => {
                self.rebind()?;
                Event::Restarted { target, attached: self.attached() }
            }
        };
        self.events.push_back(event);
        Ok(Some(followed))
    }

    /// Moves all faults to the target's current cgroup.
    fn rebind(&mut self) -> Result<(), InjectionError> {
        match self.try_rebind() {
            // The target has gone again; its successor will be followed.
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
        if let Some(clocks) = &mut self.clocks {
            clocks.rebind(&mut instance, &self.target.whose)?;
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

    /// Whether the target was removed by something other than the faults.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.target.is_taken(self.kills)
    }

    /// The next unreported event, oldest first.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Queues warnings about interference with packet faults and about peers; `is_end` on the last
    /// call.
    pub fn collect_warnings(&mut self, is_end: bool) {
        self.events.extend(self.options.peers.take_warnings().into_iter().map(Event::Warning));
        if let Some(network) = self.network.network_mut() {
            self.events.extend(network.warnings(is_end).into_iter().map(Event::Warning));
        }
    }

    /// Ends all faults. Counters stay readable. If one fails to end, the others still end.
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

    /// Ends all faults and undoes all journaled actions, unless the instance is shared.
    pub fn close(self) -> Result<(), LifetimeError> {
        let Self { processes, network, clocks, instance, .. } = self;
        drop((processes, network, clocks));
        instance.end()
    }

    /// The addresses of peers that the rules match now.
    #[must_use]
    pub const fn addresses(&self) -> &Arc<Addresses> {
        &self.addresses
    }

    /// The peers that rules name.
    #[must_use]
    pub const fn peers(&self) -> &Peers {
        &self.options.peers
    }

    /// The target.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// The instance whose journal records this injection's actions.
    pub fn instance(&self) -> std::sync::MutexGuard<'_, Instance> {
        self.instance.lock()
    }

    /// Where programs are attached.
    #[must_use]
    pub fn attached(&self) -> Vec<Attached> {
        self.network().map(Network::attached).unwrap_or_default()
    }

    /// The packet faults, if any.
    #[must_use]
    pub const fn network(&self) -> Option<&Network> {
        self.network.network()
    }

    /// The packet faults, if any.
    pub const fn network_mut(&mut self) -> Option<&mut Network> {
        self.network.network_mut()
    }

    /// The rules and their owners.
    pub const fn rules_mut(&mut self) -> &mut Shared<K> {
        &mut self.network
    }

    /// The clock faults, if any.
    #[must_use]
    pub const fn clocks(&self) -> Option<&Clocks> {
        self.clocks.as_ref()
    }

    /// Statistics of clock faults, if any.
    pub fn clocks_report(&mut self) -> Option<ClocksReport> {
        self.clocks.as_mut().map(ClocksReport::of)
    }

    /// Statistics of the current process faults, by owner.
    pub fn process_statistics(&mut self) -> Result<Vec<(K, Statistics)>, InjectionError> {
        let statistics = self.processes.iter_mut();
        statistics.map(|(&owner, processes)| Ok((owner, processes.statistics()?))).collect()
    }
}

/// The remaining time until `then`.
#[must_use]
pub fn until(then: Instant) -> Duration {
    then.saturating_duration_since(Instant::now())
}

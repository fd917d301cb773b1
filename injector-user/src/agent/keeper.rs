//! The thread that owns all faults: only it creates, renews and ends them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    MAX_LIFE,
    active::{Active, REPORT_ROUNDS, left, new_fault, note, wall},
    api::{Code, Fault, Phase, Problem, Reason, text},
    board::{Board, What},
    group::{Group, Member},
    plan::{Plan, Selection, Terms},
    sum::Sum,
};
use crate::{
    fault::{
        clock::ClockFaultError,
        network::{self, NetworkError, counts::Counts, report::AttachedReport},
        process::ProcessFaultError,
    },
    injection::{FaultSet, Injection, InjectionError, Options, worker::Worker},
    kernel::{
        clock::{deadline_ns, monotonic_ns, nanoseconds},
        memory,
    },
    lifetime::{LifetimeError, instance::SharedInstance, journal::Owner, lease::RENEWAL},
    spec::Faults,
    target::pods::PodStatus,
    threads::{self, Panicked},
};

/// Capacity of the request channel.
const QUEUE_LEN: usize = 64;

/// Beyond this many rules, counters are not read at each renewal.
const COUNTED_RULES: usize = 4096;

/// A request and where to send its answer.
enum Order {
    Create { plan: Box<Plan>, by: String, reply: Reply },
    Select { selection: Box<Selection>, by: String, reply: Reply },
    Tell { name: String, pods: Vec<PodStatus> },
    Renew { name: String, reply: Reply },
    Delete { name: String, reply: Reply },
    Stop,
}

type Reply = oneshot::Sender<Result<Arc<Fault>, Problem>>;

/// A handle for sending requests to the thread.
#[derive(Clone, Debug)]
pub struct Handle(SyncSender<Order>);

impl Handle {
    /// Creates a fault. If the future is dropped before it completes, the fault is ended.
    pub async fn create(&self, plan: Plan, by: String) -> Result<Arc<Fault>, Problem> {
        self.ask(|reply| Order::Create { plan: plan.into(), by, reply }).await
    }

    /// Creates a fault for selected pods. It does nothing itself; its parts end no later than it
    /// does, and it aggregates their statistics.
    pub async fn select(&self, selection: Selection, by: String) -> Result<Arc<Fault>, Problem> {
        self.ask(|reply| Order::Select { selection: selection.into(), by, reply }).await
    }

    /// Updates the pods of such a fault. Updates are repeated, so one may be lost.
    pub fn tell(&self, name: String, pods: Vec<PodStatus>) {
        let _ = self.0.try_send(Order::Tell { name, pods });
    }

    /// Renews the lease of a fault.
    pub async fn renew(&self, name: String) -> Result<Arc<Fault>, Problem> {
        self.ask(|reply| Order::Renew { name, reply }).await
    }

    /// Ends a fault.
    pub async fn delete(&self, name: String) -> Result<Arc<Fault>, Problem> {
        self.ask(|reply| Order::Delete { name, reply }).await
    }

    async fn ask(&self, order: impl FnOnce(Reply) -> Order) -> Result<Arc<Fault>, Problem> {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(order(reply)).map_err(|error| match error {
            TrySendError::Full(_) => Problem::new(
                Code::Busy,
                format!("{QUEUE_LEN} requests wait for the kernel already: try again"),
            ),
            TrySendError::Disconnected(_) => stopping(),
        })?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}

fn stopping() -> Problem {
    Problem::new(Code::Busy, "the agent is ending")
}

/// The running thread.
#[derive(Debug)]
pub struct Running {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Running {
    /// Starts the thread without any fault.
    pub fn start(
        owner: Owner,
        board: Arc<Board>,
        most_faults: usize,
        log_level: u8,
    ) -> Result<Self, LifetimeError> {
        let instance = SharedInstance::start(owner.clone())?;
        // If the agent is killed, its guardian settles the journals of all its slots.
        instance.lock().guard()?;
        let (sender, orders) = mpsc::sync_channel(QUEUE_LEN);
        let keeper = Keeper {
            owner,
            board,
            most_faults,
            log_level,
            orders,
            active: BTreeMap::new(),
            groups: BTreeMap::new(),
            instance,
            next: 0,
            rounds: 0,
        };
        let thread = thread::Builder::new()
            .name("keeper".into())
            .spawn(move || keeper.run())
            .map_err(LifetimeError::Guardian)?;
        Ok(Self { handle: Handle(sender), thread })
    }

    /// A handle for sending requests.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends all faults and waits for the thread.
    pub fn stop(self) -> Result<(), Panicked> {
        // Sending fails if the thread has already ended, which is fine.
        let _ = self.handle.0.send(Order::Stop);
        threads::join("keeper", self.thread)
    }
}

struct Keeper {
    owner: Owner,
    board: Arc<Board>,
    most_faults: usize,
    log_level: u8,
    orders: Receiver<Order>,
    active: BTreeMap<String, Active>,
    groups: BTreeMap<u64, Group>,
    /// Instance of process and clock faults; groups have their own.
    instance: SharedInstance,
    /// ID of the next fault or group.
    next: u64,
    rounds: u32,
}

impl Keeper {
    fn run(mut self) {
        let mut renewal = Instant::now() + RENEWAL;
        loop {
            self.board.is_alive();
            let now = Instant::now();
            if now >= renewal {
                self.renew_all();
                renewal = Instant::now() + RENEWAL;
            }
            self.end_due();
            let mut wait = renewal.saturating_duration_since(Instant::now());
            if let Some(ends_ns) = self.active.values().map(|active| active.ends_ns).min() {
                wait = wait.min(Duration::from_nanos(ends_ns.saturating_sub(monotonic_ns())));
            }
            match self.orders.recv_timeout(wait) {
                Ok(Order::Create { plan, by, reply }) => {
                    if reply.is_closed() {
                        continue;
                    }
                    let created = self.create(*plan, by);
                    self.answer_created(created, reply);
                }
                Ok(Order::Select { selection, by, reply }) => {
                    let created = self.select(*selection, by);
                    self.answer_created(created, reply);
                }
                Ok(Order::Tell { name, pods }) => self.tell(&name, pods),
                Ok(Order::Renew { name, reply }) => {
                    let _ = reply.send(self.renew(&name));
                }
                Ok(Order::Delete { name, reply }) => {
                    let _ = reply.send(self.end(&name, Reason::Deleted, None));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.stop();
    }

    /// Answers a creation request. If the client has gone, no one knows of the fault, so it is
    /// ended.
    fn answer_created(&mut self, created: Result<Arc<Fault>, Problem>, reply: Reply) {
        if let Err(Ok(fault)) = reply.send(created) {
            tracing::info!(fault.name, "its client has gone");
            let _ = self.end(&fault.name, Reason::Lapsed, None);
        }
    }

    fn stop(mut self) {
        let mut lost: BTreeMap<u64, String> = BTreeMap::new();
        // Ends each group as a whole. Removing its faults one by one would reinstall the rest each
        // time.
        let groups: Vec<u64> = self.groups.keys().copied().collect();
        for number in groups {
            self.warn(number, true);
            for active in self.active.values_mut().filter(|active| active.group == Some(number)) {
                Self::explain(&mut self.groups, active, true);
            }
            let Some(group) = self.groups.remove(&number) else { continue };
            match group.end_all() {
                Ok(counts) => {
                    for active in self.active.values_mut() {
                        if let Some(counts) = counts.get(&active.number) {
                            active.count(counts);
                        }
                    }
                }
                Err(error) => {
                    lost.insert(number, text(error));
                }
            }
        }
        let names: Vec<String> = self.active.keys().cloned().collect();
        for name in names {
            let group = self.active.get(&name).and_then(|active| active.group);
            let error = group.and_then(|group| lost.get(&group)).cloned();
            // The fault exists, so this cannot fail.
            let _ = self.end(&name, Reason::Stopped, error);
        }
    }

    fn create(&mut self, plan: Plan, by: String) -> Result<Arc<Fault>, Problem> {
        self.admit(&plan.terms.name)?;
        // A part lasts as long as the whole and is renewed with it.
        let ends_with = plan.part_of.as_deref().map(|whole| self.times_of(whole)).transpose()?;
        let (first, lasts) = match ends_with {
            Some((ends_ns, last_ns)) => (left(ends_ns), left(last_ns)),
            None => plan.terms.times(),
        };
        let seed = plan.terms.faults.seed.unwrap_or_else(rand::random);
        let number = self.number();
        let rules = &plan.terms.faults.rules;
        let group = if rules.is_empty() {
            None
        } else {
            let member = Member::new(number, rules.clone(), first);
            Some(self.join(&plan, member, seed).map_err(problem_of)?)
        };
        // Packet faults first: they take the longest to install.
        let began_ns = monotonic_ns();
        let (ends_ns, last_ns) = ends_with.unwrap_or_else(|| {
            let after = |time| began_ns.saturating_add(nanoseconds(time));
            (after(first), after(lasts))
        });
        let worker = match self.fault_others(&plan, seed, lasts) {
            Ok(worker) => worker,
            Err(problem) => {
                if let Err(error) = self.leave(group, number) {
                    tracing::error!(%error, "cannot end packet faults");
                }
                return Err(problem);
            }
        };
        let attached = group
            .and_then(|group| self.groups.get(&group))
            .map(Group::attached)
            .unwrap_or_default();
        let mut active = Active {
            number,
            ends_ns,
            last_ns,
            lease: plan.terms.lease,
            worker,
            group,
            ended_parts: None,
            is_news: false,
            is_warned: false,
            explanation: Active::first_explanation(),
            fault: Fault {
                attached: AttachedReport::all(&attached),
                part_of: plan.part_of.map(|whole| whole.name.clone()),
                resolved: plan.resolved,
                ..new_fault(plan.terms, plan.spec, by, seed, ends_ns)
            },
        };
        if let Some(status) = active.worker.as_ref().map(Worker::status) {
            active.take(&status);
        }
        let warnings = group.map(|group| self.warn(group, false)).unwrap_or_default();
        for message in &warnings {
            active.fault.warn(message);
        }
        Ok(self.put_up(active))
    }

    /// Adds a group's new warnings to all of its faults, and returns them.
    fn warn(&mut self, group: u64, is_end: bool) -> Vec<String> {
        let group_of = |active: &&mut Active| active.group == Some(group);
        let messages = self.groups.get_mut(&group).map(|group| group.take_warnings(is_end));
        let messages = messages.unwrap_or_default();
        for active in self.active.values_mut().filter(group_of) {
            for message in &messages {
                active.is_warned |= active.fault.warn(message);
            }
        }
        messages
    }

    /// Creates a fault for selected pods.
    fn select(&mut self, selection: Selection, by: String) -> Result<Arc<Fault>, Problem> {
        let Selection { terms, pods: _, request } = selection;
        self.admit(&terms.name)?;
        let (first, lasts) = terms.times();
        let now = monotonic_ns();
        let ends_ns = now.saturating_add(nanoseconds(first));
        let seed = terms.faults.seed.unwrap_or_else(rand::random);
        let lease = terms.lease;
        let fault = Fault {
            pods: Some(Arc::default()),
            ..new_fault(terms, request.target.clone(), by, seed, ends_ns)
        };
        let active = Active {
            number: self.number(),
            ends_ns,
            last_ns: now.saturating_add(nanoseconds(lasts)),
            lease,
            worker: None,
            group: None,
            ended_parts: Some(Sum::new(&fault.rules)),
            is_news: false,
            is_warned: false,
            explanation: Active::first_explanation(),
            fault,
        };
        Ok(self.put_up(active))
    }

    /// Checks that a fault of this name may be created.
    fn admit(&self, name: &str) -> Result<(), Problem> {
        if self.active.contains_key(name) {
            let message = format!("there is an active fault {name} already");
            return Err(Problem::new(Code::Conflict, message));
        }
        if self.active.len() >= self.most_faults {
            let message = format!("{} faults act already, which is the most", self.most_faults);
            return Err(Problem::new(Code::TooMany, message));
        }
        Ok(())
    }

    fn put_up(&mut self, active: Active) -> Arc<Fault> {
        let told = self.board.put(What::Created, active.fault.clone());
        self.active.insert(told.name.clone(), active);
        told
    }

    /// Updates the pods of a fault.
    fn tell(&mut self, name: &str, pods: Vec<PodStatus>) {
        // The fault may have ended.
        let Some(active) = self.active.get_mut(name) else { return };
        if note(&mut active.fault.pods, &Some(Arc::new(pods))) {
            self.board.put(What::Counted, active.fault.clone());
        }
    }

    /// The lease end and the final deadline of a fault, if it is still the same fault and active.
    fn times_of(&self, fault: &Fault) -> Result<(u64, u64), Problem> {
        self.active
            .get(&fault.name)
            .filter(|active| active.fault.created == fault.created)
            .map(|active| (active.ends_ns, active.last_ns))
            .ok_or_else(|| Problem::no_fault(&fault.name))
    }

    /// The parts of a fault.
    fn parts<'a>(&'a self, whole: &'a str) -> impl Iterator<Item = &'a Active> {
        self.active.values().filter(move |active| active.fault.part_of.as_deref() == Some(whole))
    }

    fn names_of_parts(&self, whole: &str) -> Vec<String> {
        self.parts(whole).map(|part| part.fault.name.clone()).collect()
    }

    /// Aggregates the statistics of a fault's parts. Returns whether they changed.
    fn sum_up(&mut self, whole: &str) -> bool {
        let ended = self.active.get(whole).and_then(|active| active.ended_parts.clone());
        let Some(mut sum) = ended else { return false };
        for part in self.parts(whole) {
            sum.add(&part.fault);
        }
        self.active.get_mut(whole).is_some_and(|active| sum.note(&mut active.fault))
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Installs all requested faults other than packet faults.
    fn fault_others(
        &self,
        plan: &Plan,
        seed: u64,
        lasts: Duration,
    ) -> Result<Option<Worker>, Problem> {
        let Faults { clock, processes, .. } = &plan.terms.faults;
        if clock.is_none() && processes.is_none() {
            return Ok(None);
        }
        let has_its_clocks = |active: &&Active| {
            active.worker.as_ref().map(Worker::status).is_some_and(|status| {
                status.clocks.is_some() && status.whose.as_ref() == Some(&plan.target.whose)
            })
        };
        if clock.is_some()
            && let Some(active) = self.active.values().find(has_its_clocks)
        {
            let message = format!("the clocks of this target are faulted by {}", active.fault.name);
            return Err(Problem::new(Code::Conflict, message));
        }
        let (clock, processes) = (clock.clone(), processes.clone());
        let set = FaultSet::of(&Faults { clock, processes, ..Faults::default() }, seed);
        let network = network::Options { lasts: Some(lasts), ..network::Options::default() };
        let options = Options { network, outlived: true, ..Options::default() };
        let (target, instance) = (plan.target.clone(), self.instance.clone());
        let started = Injection::prepare(target, instance, set, &[], options)
            .and_then(|mut injection| injection.start().map(|()| injection));
        Worker::start(started.map_err(problem_of)?, None)
            .map(Some)
            .map_err(|error| Problem::from_error(Code::Failed, error))
    }

    /// Adds rules to a group that accepts them, or to a new one. Returns the group's ID.
    fn join(&mut self, plan: &Plan, member: Member, seed: u64) -> Result<u64, InjectionError> {
        let mut member = member;
        for (&number, group) in &mut self.groups {
            match group.add(plan, member)? {
                Some(refused) => member = refused,
                None => return Ok(number),
            }
        }
        let group = Group::install(plan, member, seed, self.owner.clone(), self.log_level)?;
        let number = self.number();
        self.groups.insert(number, group);
        Ok(number)
    }

    /// Removes the rules of a fault from their group, and returns their counters.
    fn leave(&mut self, group: Option<u64>, fault: u64) -> Result<Vec<Counts>, InjectionError> {
        let Some((number, group)) =
            group.and_then(|number| self.groups.remove(&number).map(|group| (number, group)))
        else {
            return Ok(Vec::new());
        };
        let (left, counters) = group.remove(fault);
        match left {
            Some(group) => drop(self.groups.insert(number, group)),
            // Loading programs and maps takes megabytes temporarily.
            None => memory::give_back(),
        }
        counters
    }

    fn renew(&mut self, name: &str) -> Result<Arc<Fault>, Problem> {
        let active = self.active.get_mut(name).ok_or_else(|| Problem::no_fault(name))?;
        let Some(lease) = active.lease else {
            let message = match &active.fault.part_of {
                Some(whole) => format!("{name} is renewed with {whole}, of which it is a part"),
                None => format!("{name} has no lease: it lasts for a fixed time"),
            };
            return Err(Problem::new(Code::Conflict, message));
        };
        let ends_ns = deadline_ns(lease).min(active.last_ns);
        for part in self.names_of_parts(name) {
            self.extend(&part, ends_ns)?;
        }
        self.extend(name, ends_ns)
    }

    /// Changes when a fault ends.
    fn extend(&mut self, name: &str, ends_ns: u64) -> Result<Arc<Fault>, Problem> {
        let active = self.active.get_mut(name).ok_or_else(|| Problem::no_fault(name))?;
        if let Some(group) = active.group.and_then(|group| self.groups.get_mut(&group)) {
            group.extend(active.number, ends_ns).map_err(problem_of)?;
        }
        active.ends_ns = ends_ns;
        active.fault.ends = wall(ends_ns);
        Ok(self.board.put(What::Renewed, active.fault.clone()))
    }

    /// Ends a fault and records its final statistics.
    fn end(
        &mut self,
        name: &str,
        reason: Reason,
        error: Option<String>,
    ) -> Result<Arc<Fault>, Problem> {
        let mut errors: Vec<String> = error.into_iter().collect();
        for part in self.names_of_parts(name) {
            errors.extend(self.end(&part, reason, None)?.error.clone());
        }
        self.sum_up(name);
        if let Some(active) = self.active.get(name)
            && let (number, Some(group)) = (active.number, active.group)
        {
            let is_end = self.groups.get(&group).is_some_and(|group| group.is_only(number));
            self.warn(group, is_end);
        }
        let mut active = self.active.remove(name).ok_or_else(|| Problem::no_fault(name))?;
        Self::explain(&mut self.groups, &mut active, true);
        if let Some(worker) = active.worker.take() {
            let (status, ended) = worker.end();
            active.take(&status);
            errors.extend(ended.err().map(text));
        }
        match self.leave(active.group, active.number) {
            Ok(counts) => {
                active.count(&counts);
            }
            Err(error) => errors.push(text(error)),
        }
        let fault = &mut active.fault;
        fault.phase = Phase::Ended;
        fault.ends = jiff::Timestamp::now().to_string();
        fault.reason = Some(if errors.is_empty() { reason } else { Reason::Failed });
        fault.error = (!errors.is_empty()).then(|| errors.join("; "));
        if let Some(error) = &fault.error {
            tracing::error!(fault.name, error, "a fault failed");
        }
        let whole = fault.part_of.as_ref().and_then(|whole| self.active.get_mut(whole));
        if let Some(sum) = whole.and_then(|whole| whole.ended_parts.as_mut()) {
            sum.add_ended(fault);
        }
        Ok(self.board.put(What::Ended, active.fault))
    }

    /// Counts packets that no rule matches, at targets of faults that have matched none. An error is
    /// added to those of the groups.
    fn count_unmatched(&mut self, lost: &mut BTreeMap<u64, String>) {
        let unmatched: BTreeSet<u64> = self
            .active
            .values()
            .filter(|active| active.is_unmatched())
            .filter_map(|active| active.group)
            .collect();
        for (number, group) in &mut self.groups {
            let is_wanted = unmatched.contains(number) && group.rules() <= COUNTED_RULES;
            if let Err(error) = group.count_unmatched(is_wanted) {
                lost.entry(*number).or_insert_with(|| text(error));
            }
        }
    }

    /// Updates why no packet has matched a fault, if that is due or at its end. Returns whether it
    /// changed.
    fn explain(groups: &mut BTreeMap<u64, Group>, active: &mut Active, is_end: bool) -> bool {
        let is_wanted = active.must_explain() || is_end && active.is_unmatched();
        if !is_wanted {
            return false;
        }
        let group = active.group.and_then(|group| groups.get_mut(&group));
        let explanation = group
            .filter(|group| group.rules() <= COUNTED_RULES)
            .and_then(|group| group.explain(active.number));
        explanation.is_some() && note(&mut active.fault.unmatched, &explanation)
    }

    fn end_due(&mut self) {
        let now = monotonic_ns();
        let due = self.active.iter().filter(|(_, active)| active.ends_ns <= now);
        let due: Vec<(String, Reason)> =
            due.map(|(name, active)| (name.clone(), active.reason())).collect();
        for (name, reason) in due {
            // The fault exists, so this cannot fail.
            let _ = self.end(&name, reason, None);
        }
    }

    /// Renews all leases and reads counters. Ends faults that fail.
    fn renew_all(&mut self) {
        self.rounds = self.rounds.wrapping_add(1);
        let mut failed: Vec<(String, String)> = Vec::new();
        let mut counts = BTreeMap::new();
        let mut attached: BTreeMap<u64, Vec<AttachedReport>> = BTreeMap::new();
        let mut lost: BTreeMap<u64, String> = BTreeMap::new();
        for (&number, group) in &mut self.groups {
            let counted = group.renew().and_then(|()| {
                if group.rules() > COUNTED_RULES && !self.rounds.is_multiple_of(4 * REPORT_ROUNDS) {
                    return Ok(BTreeMap::new());
                }
                group.all_counts()
            });
            match counted {
                Ok(counted) => {
                    counts.extend(counted);
                    attached.insert(number, AttachedReport::all(&group.attached()));
                }
                Err(error) => {
                    lost.insert(number, text(error));
                }
            }
        }
        let groups: Vec<u64> = self.groups.keys().copied().collect();
        for group in groups {
            self.warn(group, false);
        }
        if self.rounds.is_multiple_of(REPORT_ROUNDS) {
            self.count_unmatched(&mut lost);
        }
        for (name, active) in &mut self.active {
            if let Some(error) = active.group.and_then(|group| lost.get(&group)) {
                failed.push((name.clone(), error.clone()));
                continue;
            }
            if active.group.is_some_and(|group| !self.groups.contains_key(&group)) {
                failed.push((name.clone(), "the faults beside it could not be changed".into()));
                continue;
            }
            if let Some(error) = active.worker.as_ref().and_then(Worker::take_error) {
                failed.push((name.clone(), text(error)));
                continue;
            }
            let status = active.worker.as_ref().map(Worker::status);
            let mut is_changed = status.as_ref().is_some_and(|status| active.take(status));
            if let Some(counts) = counts.get(&active.number) {
                is_changed |= active.count(counts);
            }
            is_changed |= Self::explain(&mut self.groups, active, false);
            let group = active.group.and_then(|group| self.groups.get(&group));
            let is_gone =
                group.is_some_and(Group::is_gone) || status.is_some_and(|status| status.is_gone);
            is_changed |= note(&mut active.fault.gone, &is_gone);
            if let Some(attached) = active.group.and_then(|group| attached.get(&group)) {
                is_changed |= note(&mut active.fault.attached, attached);
            }
            let addresses = group.filter(|_| !active.fault.resolved.is_empty());
            if addresses.is_some_and(|group| active.readdress(group.addresses())) {
                self.board.put(What::Changed, active.fault.clone());
            }
            active.report(is_changed, &self.board, self.rounds);
        }
        for (name, error) in failed {
            // The fault exists, so this cannot fail.
            let _ = self.end(&name, Reason::Failed, Some(error));
        }
        let wholes = self.active.values().filter(|active| active.ended_parts.is_some());
        let wholes: Vec<String> = wholes.map(|active| active.fault.name.clone()).collect();
        for name in wholes {
            let is_changed = self.sum_up(&name);
            if let Some(active) = self.active.get_mut(&name) {
                active.report(is_changed, &self.board, self.rounds);
            }
        }
    }
}

impl Terms {
    /// How long the fault lasts without renewal, and how long at most.
    fn times(&self) -> (Duration, Duration) {
        let lasts = self.lasts.unwrap_or(MAX_LIFE);
        (self.lease.map_or(lasts, |lease| lease.min(lasts)), lasts)
    }
}

/// Converts the reason why a fault cannot start into an API error.
fn problem_of(error: InjectionError) -> Problem {
    let code = match &error {
        InjectionError::Network(NetworkError::Lifetime(LifetimeError::NoSlot))
        | InjectionError::Lifetime(LifetimeError::NoSlot) => {
            let message = format!(
                "{error}; faults of the same target share one as long as they match different packets"
            );
            return Problem::new(Code::Busy, message);
        }
        InjectionError::Network(
            NetworkError::Kernel(_) | NetworkError::Lifetime(_) | NetworkError::Loopback(_),
        )
        | InjectionError::Clock(
            ClockFaultError::Kernel(_) | ClockFaultError::Lifetime(_) | ClockFaultError::Files(_),
        )
        | InjectionError::Process(
            ProcessFaultError::Kernel(_)
            | ProcessFaultError::Lifetime(_)
            | ProcessFaultError::Limit { .. },
        )
        | InjectionError::Lifetime(_)
        | InjectionError::Log(_)
        | InjectionError::Panicked(_) => Code::Failed,
        InjectionError::Process(ProcessFaultError::Frozen(_) | ProcessFaultError::Tighter(..)) => {
            Code::Conflict
        }
        _ => Code::Invalid,
    };
    Problem::from_error(code, error)
}

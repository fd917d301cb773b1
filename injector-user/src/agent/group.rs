//! Packet faults that share an installation: those of one target that match disjoint packets. A few
//! slots (see [`crate::lifetime::journal::SLOTS`]) thus serve many faults, and each fault still
//! acts as if it were alone.

use std::{collections::BTreeMap, time::Duration};

use super::plan::Plan;
use crate::{
    fault::network::{
        self, Attached, NetworkError,
        counts::Counts,
        unmatched::{self, Explanation, Observed},
    },
    injection::{Event, FaultSet, Injection, InjectionError, Options},
    kernel::clock,
    lifetime::{instance::SharedInstance, journal::Owner},
    spec::{rule::Rule, scenario::random::packet_seed, target::TargetSpec, value::HumanDuration},
    target::peers::{self, Addresses},
};

/// Maximum number of rule comparisons for one fault.
const COMPARISONS: usize = 1 << 20;

/// The rules of a fault.
#[derive(Debug)]
pub struct Member {
    fault: u64,
    rules: Vec<Rule>,
    /// The default duration of its rules.
    lasts: Duration,
    /// When it started, by `CLOCK_MONOTONIC`.
    began_ns: u64,
    /// When it ends, by `CLOCK_MONOTONIC`.
    ends_ns: u64,
    /// What was seen for other faults before it started.
    before: Option<Observed>,
}

impl Member {
    /// The rules of the fault with this ID.
    pub const fn new(fault: u64, rules: Vec<Rule>, lasts: Duration) -> Self {
        Self { fault, rules, lasts, began_ns: 0, ends_ns: 0, before: None }
    }

    /// Starts its time now.
    fn begin(&mut self) {
        self.began_ns = clock::monotonic_ns();
        self.ends_ns = self.began_ns.saturating_add(clock::nanoseconds(self.lasts));
    }

    /// When a rule ends: with the fault or earlier.
    fn deadline_ns(&self, rule: &Rule) -> u64 {
        let own = rule.lasts.map_or(u64::MAX, |span| clock::nanoseconds(span.0));
        self.began_ns.saturating_add(own).min(self.ends_ns)
    }
}

/// The faults that share an installation.
#[derive(Debug)]
pub struct Group {
    target: TargetSpec,
    /// Whether it accepts no other fault, because the decisions of its only fault must be
    /// repeatable.
    is_closed: bool,
    /// The owner of a rule is a fault ID and the rule's number within it.
    injection: Injection<(u64, u32)>,
    members: Vec<Member>,
    seed: u64,
    changes: u64,
}

impl Group {
    /// Prepares an installation for `plan` and activates the fault.
    pub fn install(
        plan: &Plan,
        member: Member,
        seed: u64,
        owner: Owner,
        log_level: u8,
    ) -> Result<Self, InjectionError> {
        let instance = SharedInstance::start(owner)?;
        let network =
            network::Options { protect: plan.protect, log_level, ..network::Options::default() };
        let peers = plan.peers.clone();
        let options = Options { network, outlived: true, peers, ..Options::default() };
        let first = FaultSet { seed, ..FaultSet::default() };
        let later = FaultSet { seed, rules: member.rules.clone(), ..FaultSet::default() };
        let mut injection =
            Injection::prepare(plan.target.clone(), instance, first, &[later], options)?;
        injection.start()?;
        let mut group = Self {
            target: plan.spec.clone(),
            is_closed: plan.terms.faults.seed.is_some(),
            injection,
            members: Vec::new(),
            seed,
            changes: 0,
        };
        group.admit(member)?;
        Ok(group)
    }

    /// Activates another fault. Its time starts now, however long the preparation took.
    fn admit(&mut self, mut member: Member) -> Result<(), InjectionError> {
        if !self.members.is_empty() {
            member.before = self.injection.observed();
        }
        member.begin();
        self.members.push(member);
        self.count_unmatched(true)?;
        if let Some(network) = self.injection.network_mut() {
            network.warn_again();
        }
        self.apply()
    }

    /// Adds a fault if this group accepts it; otherwise returns it. An error changes nothing.
    pub fn add(&mut self, plan: &Plan, member: Member) -> Result<Option<Member>, InjectionError> {
        if !self.takes(plan, &member) {
            return Ok(Some(member));
        }
        self.injection.peers().adopt(&plan.peers);
        match self.admit(member) {
            Ok(()) => Ok(None),
            Err(error) => {
                let member = self.members.pop();
                self.forget_peers();
                match error {
                    // Refused before any change.
                    InjectionError::Network(
                        NetworkError::Compile(_)
                        | NetworkError::NoRoom { .. }
                        | NetworkError::NoHold
                        | NetworkError::NoIngress
                        | NetworkError::NoFault,
                    ) => Ok(member),
                    error => {
                        self.apply()?;
                        Err(error)
                    }
                }
            }
        }
    }

    /// Whether the group accepts a fault: it has the same target, which still resolves to the same
    /// object (IDs, names and paths can be reused), and no packet matches both its rules and
    /// existing ones.
    fn takes(&self, plan: &Plan, member: &Member) -> bool {
        if self.is_closed
            || plan.terms.faults.seed.is_some()
            || self.target != plan.spec
            || !self.injection.target().is_same(&plan.target)
        {
            return false;
        }
        let rules = || self.members.iter().flat_map(|member| &member.rules);
        rules().count().saturating_mul(member.rules.len()) <= COMPARISONS
            && !rules()
                .any(|old| member.rules.iter().any(|new| new.matching.overlaps(&old.matching)))
    }

    /// Activates exactly the rules of all members.
    fn apply(&mut self) -> Result<(), InjectionError> {
        let now = clock::monotonic_ns();
        let owned = self.members.iter().flat_map(|member| {
            (0..).zip(&member.rules).map(move |(number, rule)| {
                let left = member.deadline_ns(rule).saturating_sub(now);
                let lasts = Some(HumanDuration(Duration::from_nanos(left)));
                ((member.fault, number), Rule { lasts, ..rule.clone() })
            })
        });
        let (owners, rules) = owned.unzip();
        let seed = if self.is_closed { self.seed } else { packet_seed(self.seed, 0, self.changes) };
        self.changes += 1;
        self.injection.swap(FaultSet { seed, owners, rules, ..FaultSet::default() })?;
        Ok(())
    }

    /// Removes a fault and returns the counters of its rules. Removing the last fault uninstalls
    /// everything.
    pub fn remove(mut self, fault: u64) -> (Option<Self>, Result<Vec<Counts>, InjectionError>) {
        self.members.retain(|member| member.fault != fault);
        let is_last = self.members.is_empty();
        let removed = if is_last { self.injection.end() } else { self.apply() };
        if let Err(error) = removed {
            // The removed rules may still be active, so no other rules can stay.
            let _ = self.end();
            return (None, Err(error));
        }
        let counters = self.counts(fault);
        if is_last {
            let ended = self.end();
            return (None, counters.and_then(|counters| ended.map(|()| counters)));
        }
        self.injection.rules_mut().forget(|(owner, _)| *owner == fault);
        self.forget_peers();
        (Some(self), counters)
    }

    /// Forgets peers that no rule matches any more.
    fn forget_peers(&self) {
        let rules = self.members.iter().flat_map(|member| &member.rules);
        let remotes = rules.flat_map(|rule| &rule.matching.remotes);
        self.injection.peers().retain(&peers::named(remotes));
    }

    /// The addresses of the peers that the rules match now.
    pub fn addresses(&self) -> &Addresses {
        self.injection.addresses()
    }

    /// Changes when a fault ends.
    pub fn extend(&mut self, fault: u64, ends_ns: u64) -> Result<(), InjectionError> {
        let mut deadlines = Vec::new();
        let mut first = 0;
        for member in &mut self.members {
            if member.fault == fault {
                member.ends_ns = ends_ns;
                let ends = member.rules.iter().map(|rule| member.deadline_ns(rule));
                deadlines = (first..).zip(ends).collect();
            }
            first += member.rules.len();
        }
        match self.injection.network_mut() {
            Some(network) => Ok(network.set_deadlines(deadlines)?),
            None => Ok(()),
        }
    }

    /// Renews the lease, and extends the faults to new interfaces and cgroups.
    pub fn renew(&mut self) -> Result<(), InjectionError> {
        self.injection.renew()
    }

    /// New warnings about interference by other processes; `is_end` on the last call.
    pub fn take_warnings(&mut self, is_end: bool) -> Vec<String> {
        self.injection.collect_warnings(is_end);
        let events = std::iter::from_fn(|| self.injection.next_event());
        let messages: Vec<String> = events
            .filter_map(|event| match event {
                Event::Warning(message) => Some(message),
                _ => None,
            })
            .collect();
        for message in &messages {
            tracing::warn!(slot = self.injection.instance().slot(), "{message}");
        }
        messages
    }

    /// Counts packets that no rule matches for about a second, or stops that.
    pub fn count_unmatched(&mut self, is_wanted: bool) -> Result<(), InjectionError> {
        self.injection.count_unmatched(is_wanted)
    }

    /// Explains why no packet has matched this fault, if that is known. Packets that others match do
    /// not count.
    pub fn explain(&mut self, fault: u64) -> Option<Explanation> {
        let member = self.members.iter().find(|member| member.fault == fault)?;
        let observed = self.injection.observed()?.since(member.before.as_ref());
        Some(observed.explain(&member.rules, self.injection.addresses(), unmatched::by_number))
    }

    /// Whether this fault is the only one.
    pub fn is_only(&self, fault: u64) -> bool {
        self.members.iter().all(|member| member.fault == fault)
    }

    /// Whether the target is gone.
    pub fn is_gone(&self) -> bool {
        !self.injection.target().is_there()
    }

    /// Where programs are attached.
    pub fn attached(&self) -> Vec<Attached> {
        self.injection.attached()
    }

    /// The number of rules.
    pub fn rules(&self) -> usize {
        self.members.iter().map(|member| member.rules.len()).sum()
    }

    /// The counters of each rule, by fault.
    pub fn all_counts(&mut self) -> Result<BTreeMap<u64, Vec<Counts>>, InjectionError> {
        let mut counts: BTreeMap<u64, Vec<Counts>> = BTreeMap::new();
        for ((fault, _), of_rule) in self.injection.rules_mut().counts()? {
            counts.entry(fault).or_default().push(of_rule);
        }
        Ok(counts)
    }

    fn counts(&mut self, fault: u64) -> Result<Vec<Counts>, InjectionError> {
        Ok(self.all_counts()?.remove(&fault).unwrap_or_default())
    }

    /// Ends all faults, and returns the counters of each rule, by fault.
    pub fn end_all(mut self) -> Result<BTreeMap<u64, Vec<Counts>>, InjectionError> {
        let counts = self.injection.end().and_then(|()| self.all_counts());
        self.end()?;
        counts
    }

    /// Ends the installation regardless of its members.
    pub fn end(mut self) -> Result<(), InjectionError> {
        let ended = self.injection.end();
        self.injection.close()?;
        ended
    }
}

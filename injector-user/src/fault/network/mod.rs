//! Packet faults: installing, observing, changing and removing them.

mod attachments;
pub mod compile;
pub mod counts;
pub mod delays;
pub mod hold;
pub mod links;
mod monitors;
mod notices;
mod own;
mod protect;
pub mod report;
pub mod shared;
mod sockets;
mod strangers;
mod traces;
pub mod unmatched;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use injector_common::{
    control::{Control, MAX_MASKS, ScopeKind},
    counter::SeenCounters,
    packet::Direction,
    rule::{MAX_RULES, RULE_ALL, RULE_HOLDS, RULE_WIRE},
};
use thiserror::Error;

use crate::{
    kernel::{
        KernelError,
        attach::{self, Hook},
        clock, conntrack,
        interface::{self, Interface, Passed, is_own_device},
        layout::{self, Layout},
        netns::Netns,
        object::{Capacity, Constants, HoldDevice, Object},
    },
    lifetime::{LifetimeError, instance::Instance, lease::LEASE},
    spec::{rule::Rule, target::Protection, trace::Table},
    target::{
        Place, ResolveError, Target, Whose,
        peers::{self, Addresses},
        processes::ProcessSet,
    },
};
use attachments::{Attachment, Attachments};
use compile::{CompileError, Compiled, compile};
use counts::Counts;
use delays::Delays;
use hold::{Engine, Holds};
use links::{NOTICE, Next};
use monitors::Monitors;
use notices::{Interference, Notices};
use sockets::Sockets;
use traces::Traces;
use unmatched::{Flow, Observed};
use wire::Wire;

/// Why packet faults cannot be installed or changed.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The rules cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The target cannot be found.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A kernel operation failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An action could not be journaled or undone.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
    /// The change exceeds the capacity reserved at the start.
    #[error(
        "the new rules take {rules} rules, {entries} entries and {masks} combinations of matches, but there is room for \
         {}, {} and {}: restart with them",
        capacity.rules, capacity.entries, capacity.masks
    )]
    NoRoom {
        /// Number of rules.
        rules: usize,
        /// Number of entries.
        entries: usize,
        /// Number of mask combinations.
        masks: usize,
        /// The reserved capacity.
        capacity: Capacity,
    },
    /// The change adds the first rule that holds packets.
    #[error(
        "the new rules delay packets or limit their rate, which none of the first ones did: restart with them"
    )]
    NoHold,
    /// The traces of a change take more room than was reserved at the start.
    #[error(
        "the traces of the rules take {steps} steps, but there is room for {room}: restart with them"
    )]
    NoRoomForTraces {
        /// Number of steps.
        steps: usize,
        /// The reserved number of steps.
        room: u32,
    },
    /// The traces of all rules take too much room.
    #[error("the traces of all rules have more than 2^31 steps")]
    TooManySteps,
    /// A change has more traces than were reserved at the start.
    #[error("the new rules play more traces than the {0} of the first ones: restart with them")]
    TooManyTraces(u32),
    /// The change adds the first rule for received packets of a cgroup.
    #[error(
        "the new rules are for received packets, which none of the first ones were: restart with them"
    )]
    NoIngress,
    /// The change adds the first fault of a kind.
    #[error("the new rules have faults that none of the first ones had: restart with them")]
    NoFault,
    /// The EDT engine is not available.
    #[error(
        "--engine edt takes the fq qdisc (sch_fq, CONFIG_NET_SCH_FQ), which this kernel refuses; --engine tap works without"
    )]
    NoFq(#[source] KernelError),
    /// More interfaces than tags for the routes of held packets.
    #[error("packets of more than {} interfaces cannot be held", injector_common::hold::ROUTES / 2)]
    TooManyInterfaces,
    /// Packets cannot be segmented.
    #[error("this kernel cannot create the devices that segment GSO packets: {0}")]
    NoWireDevices(String),
    /// The loopback interface cannot be prepared.
    #[error("cannot have the loopback take held packets")]
    Loopback(#[source] std::io::Error),
    /// There is no interface to attach to.
    #[error(
        "no interface is up but the loopback, which --protect leaves alone: name it with --interface, or give \
         --no-protect"
    )]
    NothingUnprotected,
    /// The traffic between pods and their node cannot be told apart.
    #[error(
        "cannot find out the addresses of the node, whose traffic with pods is left alone (--no-protect or \
         `protect: false` faults it as well)"
    )]
    Node(#[source] KernelError),
    /// All rules match only packets on the loopback, which is protected.
    #[error(
        "the rules match only loopback addresses, but --protect leaves the loopback alone: name it with --interface lo, \
         or give --no-protect"
    )]
    LoopbackProtected,
    /// A named interface vanished during the installation.
    #[error(
        "the interface {0} vanished while injector was starting: start injector again once it is there"
    )]
    Vanished(String),
    /// The attached programs cannot be queried.
    #[error("cannot look whether programs are still attached")]
    Look(#[source] std::io::Error),
    /// Something that another process removed cannot be restored.
    #[error("cannot put back {what}, which another process took away")]
    TakenAway {
        /// The removed object.
        what: String,
        /// The reason.
        source: Box<Self>,
    },
}

/// Where to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HookChoice {
    /// tcx, or clsact where the kernel does not know it
    #[default]
    Tcx,
    /// Filters below a clsact qdisc
    Clsact,
    /// XDP, native or generic
    #[value(skip)]
    Xdp,
}

/// The least room for masks if rules may change. Each takes time to verify.
const MIN_CHANGING_MASKS: u32 = 8;

/// Options for installing packet faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The owner mark: the bit that marks classified packets, unique for each running injector.
    pub owner_mark: u32,
    /// What is excluded.
    pub protect: Protection,
    /// Where to attach.
    pub hook: HookChoice,
    /// The seed of all random streams.
    pub seed: u64,
    /// Maximum duration of all rules, from the moment the first packet can be faulted.
    pub lasts: Option<Duration>,
    /// Log level of the eBPF programs, see [`Object::load`].
    pub log_level: u8,
    /// The engine that holds packets; if `None`, the best available one.
    pub engine: Option<Engine>,
    /// Refuses later rules with faults that no rule has at the start. Programs without these faults
    /// load several times faster.
    pub is_final: bool,
}

/// Where programs are attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The network namespace.
    pub netns: Netns,
    /// The interface's name.
    pub interface: String,
    /// The hook.
    pub hook: Hook,
    /// The direction of the packets.
    pub direction: Direction,
}

impl From<&Attachment> for Attached {
    fn from(attachment: &Attachment) -> Self {
        Self {
            netns: attachment.netns.clone(),
            interface: attachment.interface.name.clone(),
            hook: attachment.hook,
            direction: attachment.direction,
        }
    }
}

/// Installed packet faults. Dropping them removes them.
#[derive(Debug)]
pub struct Network {
    // Dropped in this order: programs are detached before their maps are freed.
    attachments: Attachments,
    holds: Option<Holds>,
    wire: Wire,
    traces: Traces,
    monitors: Monitors,
    notices: Notices,
    /// The sockets of the target, if it is a set of processes.
    sockets: Option<Sockets>,
    /// Final statistics of held packets.
    ended: Option<hold::Statistics>,
    object: Object,
    target: Target,
    options: Options,
    /// The rule sets of both banks; the inactive one may be stale.
    banks: [Option<Compiled>; 2],
    active: u32,
    /// The directions that the active rules match.
    sides: Directions,
    /// The directions that later rules will match, as far as known.
    later: Directions,
    /// Whether the receiver of a packet can be matched.
    can_match_receiver: bool,
    /// The flags that rules may have.
    flags: u32,
    /// The rules that [`Self::begin`] activates.
    first: Option<Compiled>,
    /// Whether the inactive bank is ready for activation.
    is_prepared: bool,
    /// When all rules end, by `CLOCK_MONOTONIC`.
    deadline_ns: u64,
    /// The packets that had passed when the faults were installed, by the inode of the namespace.
    passed: BTreeMap<u64, BTreeMap<String, Passed>>,
}

/// The values that each renewal writes to the eBPF programs.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    cgroup_id: u64,
    cgroup_level: u32,
    bank: u32,
}

impl Lease {
    /// Extends the lease to [`LEASE`] from now. Also call it between slow kernel operations.
    fn renew(&self, object: &mut Object) -> Result<(), NetworkError> {
        let &Self { cgroup_id, cgroup_level, bank } = self;
        let lease_deadline_ns = clock::deadline_ns(LEASE);
        let control = Control { lease_deadline_ns, cgroup_id, cgroup_level, bank };
        Ok(object.set_control(control)?)
    }
}

/// The packets that a set of rules must see.
#[derive(Clone, Copy, Debug, Default)]
struct Directions {
    egress: bool,
    ingress: bool,
    /// Whether they may be on other interfaces than those that take loopback addresses.
    beyond_loopback: bool,
}

impl Directions {
    const fn of(compiled: &Compiled) -> Self {
        // The peer that a process asked for is known from what it sends, see `asked.rs`.
        let egress = compiled.egress || compiled.set.uses_remotes != 0;
        Self { egress, ingress: compiled.ingress, beyond_loopback: compiled.beyond_loopback }
    }

    const fn or(self, other: Self) -> Self {
        Self {
            egress: self.egress || other.egress,
            ingress: self.ingress || other.ingress,
            beyond_loopback: self.beyond_loopback || other.beyond_loopback,
        }
    }
}

impl Network {
    /// Loads and attaches everything that `rules`, and the `later` rules that may replace them,
    /// require: capacity, devices, programs. No rule is active before [`Self::begin`].
    pub fn install<'a>(
        instance: &mut Instance,
        target: Target,
        rules: &[Rule],
        later: impl IntoIterator<Item = &'a [Rule]>,
        addresses: &Addresses,
        options: Options,
    ) -> Result<Self, NetworkError> {
        let compiled = compile(rules, addresses, options.seed)?;
        let mut needs = Needs::default();
        needs.add(&compiled);
        for rules in later {
            needs.add(&compile(rules, addresses, options.seed)?);
        }
        if !options.is_final {
            let masks = &mut needs.capacity.masks;
            *masks = (2 * *masks).clamp(MIN_CHANGING_MASKS, MAX_MASKS as u32);
        }
        needs.capacity.steps = traces::room_for(&needs.tables)?;
        let holds = match needs.hold {
            Some(limit) => {
                let engine = Engine::choose(options.engine)?;
                Some(Holds::new(engine, instance.slot(), limit))
            }
            None => None,
        };
        // Receivers are matched by the layout of the kernel's structures only for a cgroup.
        let can_match_receiver = target.cgroup().is_none() || needs.sides.ingress;
        let wire = Wire::new(instance.slot(), options.hook);
        let set = match &target.whose {
            Whose::Processes(set) => Some(set),
            Whose::All | Whose::Cgroup(_) => None,
        };
        let has_tags = target.owns_held_sockets();
        let constants = Constants {
            scope: match target.whose {
                Whose::All => ScopeKind::All,
                Whose::Cgroup(_) if has_tags => ScopeKind::CgroupAndTags,
                Whose::Cgroup(_) => ScopeKind::Cgroup,
                Whose::Processes(_) => ScopeKind::Processes,
            },
            mptcp: has_tags && layout::has_mptcp(),
            layout: match target.whose {
                Whose::Cgroup(_) if needs.sides.ingress => {
                    Layout::of_kernel().map_err(KernelError::from)?
                }
                _ => Layout::default(),
            },
            owner_mark: options.owner_mark,
            protect: protect::flags(options.protect),
            hold: holds.as_ref().map(|holds| HoldDevice {
                interface: holds.interface(),
                is_tap: holds.engine() == Engine::Tap,
            }),
            wire: wire.device(),
            flags: if options.is_final { needs.flags } else { RULE_ALL },
        };
        let tree = set.map(ProcessSet::tree).transpose()?;
        let mut object = Object::load_for(
            constants,
            needs.capacity,
            options.log_level,
            tree.map(|tree| &**tree),
        )?;
        let sockets = has_tags.then(|| Sockets::tag(&mut object, &target.whose)).transpose()?;
        let mut network = Self {
            attachments: Attachments::new(options.hook),
            holds,
            wire,
            traces: Traces::default(),
            monitors: Monitors::default(),
            notices: Notices::default(),
            sockets,
            ended: None,
            flags: constants.flags,
            object,
            target,
            options,
            banks: [None, None],
            active: 0,
            sides: Directions::of(&compiled),
            later: needs.sides,
            can_match_receiver,
            first: None,
            is_prepared: false,
            deadline_ns: u64::MAX,
            passed: BTreeMap::new(),
        };
        let protected = protect::connections(options.protect).map_err(NetworkError::Node)?;
        network.object.protect(&protected)?;
        if needs.flags & RULE_WIRE != 0 {
            network.wire.want();
        }
        // The programs find an empty bank until all are attached and the rules are in the other
        // bank.
        let is_idle = network.attach(instance)?.is_empty();
        if let Some(name) = network.missing() {
            return Err(NetworkError::Vanished(name));
        }
        if is_idle && options.protect.operator {
            return Err(if needs.sides.beyond_loopback {
                NetworkError::NothingUnprotected
            } else {
                NetworkError::LoopbackProtected
            });
        }
        // Report programs that run ahead of injector's now, not at the first renewal.
        network.look(instance)?;
        network.first = Some(compiled);
        Ok(network)
    }

    /// Activates the first rules. Their time starts now, however long loading took.
    pub fn begin(&mut self) -> Result<(), NetworkError> {
        if let Some(mut compiled) = self.first.take() {
            let now = clock::monotonic_ns();
            self.deadline_ns = self.options.lasts.map_or(u64::MAX, clock::deadline_ns);
            compiled.start(now, self.deadline_ns);
            self.fill(1, compiled)?;
            self.activate()?;
        }
        self.renew()
    }

    /// Prepares other rules, so that [`Self::commit`] is fast. Links continue, see [`links`]. No program may be reading the
    /// inactive bank: call [`clock::wait_for_readers`] after each change. Counters of the rules
    /// before the active ones are lost.
    pub fn prepare(
        &mut self,
        instance: &mut Instance,
        rules: &[Rule],
        addresses: &Addresses,
        seed: u64,
        next: &Next,
    ) -> Result<(), NetworkError> {
        let compiled = compile(rules, addresses, seed)?;
        self.prepare_compiled(instance, compiled, seed, next)
    }

    /// Replaces the active rules by the same ones with other addresses of their peers. Everything
    /// else about them continues, except their counters. Discards prepared rules.
    pub fn readdress(
        &mut self,
        instance: &mut Instance,
        addresses: &Addresses,
    ) -> Result<(), NetworkError> {
        let seed = self.options.seed;
        let Some(active) = &self.banks[self.active as usize] else { return Ok(()) };
        let mut compiled = compile(&active.spec, addresses, seed)?;
        for (hold, active) in compiled.holds.iter_mut().zip(&active.holds) {
            // What is known of the next change stays known.
            hold.rate.next_ns = active.rate.next_ns;
            hold.rate.next_cost = active.rate.next_cost;
        }
        self.prepare_compiled(instance, compiled, seed, &Next::Nothing)?;
        self.commit()
    }

    fn prepare_compiled(
        &mut self,
        instance: &mut Instance,
        mut compiled: Compiled,
        seed: u64,
        next: &Next,
    ) -> Result<(), NetworkError> {
        let now = clock::monotonic_ns();
        compiled.start(now, self.deadline_ns);
        let capacity = self.object.capacity();
        let (rules, entries) = (compiled.rules.len(), compiled.entry_count());
        let masks = compiled.mask_count();
        if rules > capacity.rules as usize
            || entries > capacity.entries as usize
            || masks > capacity.masks as usize
        {
            return Err(NetworkError::NoRoom { rules, entries, masks, capacity });
        }
        let active = self.banks[self.active as usize].as_ref();
        links::assign(&mut compiled, active, seed, capacity.links());
        match (next, active) {
            (Next::Change(upcoming), _) => links::foresee(&mut compiled, upcoming),
            (Next::Unknown, Some(active)) => {
                let at = now.saturating_add(NOTICE.as_nanos() as u64);
                links::give_notice(&mut compiled, active, now, at);
            }
            _ => {}
        }
        if compiled.needs_hold() && self.holds.is_none() {
            return Err(NetworkError::NoHold);
        }
        if compiled.ingress && !self.can_match_receiver {
            return Err(NetworkError::NoIngress);
        }
        if compiled.flags() & !self.flags != 0 {
            return Err(NetworkError::NoFault);
        }
        if compiled.needs_wire_packets() && self.wire.want() {
            let lease = self.lease();
            for Attachment { netns, .. } in self.attachments.all() {
                self.wire.serve(&mut self.object, instance, netns, &lease)?;
            }
        }
        self.is_prepared = false;
        self.sides = Directions::of(&compiled);
        self.fill(1 - self.active, compiled)?;
        self.is_prepared = true;
        Ok(())
    }

    /// Activates the prepared rules, replacing the active ones. Without prepared rules it does
    /// nothing.
    pub fn commit(&mut self) -> Result<(), NetworkError> {
        if std::mem::take(&mut self.is_prepared) {
            self.activate()?;
        }
        self.renew()
    }

    /// Makes the other bank the active one from the next [`Self::renew`] on.
    fn activate(&mut self) -> Result<(), NetworkError> {
        self.active = 1 - self.active;
        if let Some(set) = &mut self.banks[self.active as usize] {
            traces::start(&mut self.object, set, clock::monotonic_ns())?;
        }
        Ok(())
    }

    /// Changes the deadlines, by `CLOCK_MONOTONIC`, of active rules, by number.
    pub fn set_deadlines(
        &mut self,
        deadlines: impl IntoIterator<Item = (usize, u64)>,
    ) -> Result<(), NetworkError> {
        let bank = self.active;
        let Some(compiled) = &mut self.banks[bank as usize] else { return Ok(()) };
        for (number, deadline_ns) in deadlines {
            if let Some(rule) = compiled.rules.get_mut(number) {
                rule.deadline_ns = deadline_ns.min(self.deadline_ns);
                self.object.set_rule(bank, number as u32, *rule)?;
            }
        }
        Ok(())
    }

    /// Renews the lease. Call every [`crate::lifetime::lease::RENEWAL`].
    pub fn renew(&mut self) -> Result<(), NetworkError> {
        self.lease().renew(&mut self.object)
    }

    fn lease(&self) -> Lease {
        let cgroup = self.target.cgroup();
        let (cgroup_id, cgroup_level) =
            cgroup.map(|cgroup| (cgroup.id, cgroup.level)).unwrap_or_default();
        Lease { cgroup_id, cgroup_level, bank: self.active }
    }

    /// Moves the faults to a cgroup that replaces the previous one. Counters and random streams
    /// continue.
    pub fn rebind(&mut self, instance: &mut Instance, target: Target) -> Result<(), NetworkError> {
        self.target = target;
        if let Some(sockets) = &mut self.sockets {
            sockets.rebind(&self.target.whose);
        }
        self.renew()?;
        self.attach(instance)?;
        Ok(())
    }

    /// Attaches to new interfaces and namespaces. Restores anything that others removed, see
    /// [`Self::warnings`]. Returns the new places.
    pub fn attach(&mut self, instance: &mut Instance) -> Result<Vec<Attached>, NetworkError> {
        let (egress, ingress) = self.directions();
        let mut places = self.look(instance)?;
        self.leave_out_idle(&mut places)?;
        self.load(&places, egress, ingress)?;
        let directions = [(egress, Direction::Egress), (ingress, Direction::Ingress)];
        let mut wanted = Vec::new();
        for place in &places {
            for interface in &place.interfaces {
                for (is_wanted, direction) in directions {
                    let netns = &place.netns;
                    if is_wanted && !self.attachments.contains(netns, interface, direction) {
                        wanted.push((netns, interface, direction));
                    }
                }
            }
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        instance.expedited(|instance| {
            let mut new = Vec::new();
            for (netns, interface, direction) in wanted {
                match self.add(instance, netns, interface, direction) {
                    Ok(added) => new.push(added),
                    // The interface was removed meanwhile.
                    Err(_) if !interface.is_in(netns)? => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(new)
        })
    }

    /// Removes interfaces on which no rule can match, unless they are named.
    fn leave_out_idle(&self, places: &mut [Place]) -> Result<(), NetworkError> {
        if self.sides.or(self.later).beyond_loopback || self.target.names_interfaces() {
            return Ok(());
        }
        for Place { netns, interfaces, .. } in places {
            interface::retain_local(netns, interfaces)?;
        }
        Ok(())
    }

    /// Checks that everything is still installed, and restores it if not.
    fn look(&mut self, instance: &mut Instance) -> Result<Vec<Place>, NetworkError> {
        let mut namespaces: &[Netns] = &[];
        if let Some(sockets) = &mut self.sockets {
            sockets.look(&mut self.object);
            namespaces = sockets.namespaces();
        }
        let places = self.target.places_with(namespaces)?;
        let gone = self.attachments.retain(instance, &places)?;
        // Only named interfaces are expected to exist.
        if self.target.names_interfaces() {
            for interface in gone {
                self.notices.add(Interference::InterfaceGone, interface);
            }
        }
        let is_there = |netns: &Netns| places.iter().any(|place| place.netns == *netns);
        if let Some(holds) = &mut self.holds {
            holds.retain(instance, is_there)?;
        }
        self.wire.retain(instance, is_there)?;
        // The kernel notifies about changes of filters and of hold devices' queues.
        let is_told = self.attachments.has_filters() || self.holds.is_some();
        let monitored = if is_told { &*places } else { &[] };
        let changed = self.monitors.changed(monitored)?;
        let lease = self.lease();
        let (object, notices) = (&mut self.object, &mut self.notices);
        if let Some(holds) = &mut self.holds {
            holds.look(object, instance, &places, &changed, notices, &lease)?;
        }
        self.wire.look(object, instance, &places, &changed, notices, &lease)?;
        self.attachments.look(object, instance, &changed, notices, &lease)?;
        Ok(places)
    }

    /// Makes [`Self::warnings`] repeat which programs run ahead of injector's, for new faults.
    pub fn warn_again(&mut self) {
        self.attachments.tell_again();
    }

    /// Warnings about other processes that prevent, or briefly prevented, faults. `is_end` on the
    /// last call; other calls do not repeat a warning.
    pub fn warnings(&mut self, is_end: bool) -> Vec<String> {
        self.notices.take(Instant::now(), is_end)
    }

    /// The peers in the active rules that are addresses of the target's own namespaces.
    pub fn own_peers(&self, addresses: &Addresses) -> Result<Vec<IpAddr>, NetworkError> {
        let Some(active) = &self.banks[self.active as usize] else { return Ok(Vec::new()) };
        own::peers(&active.spec, addresses, self.namespaces())
    }

    /// The cgroups in which sockets were created that the target's processes hold and that do not belong
    /// to it, with their number.
    pub fn stranger_sockets(&self) -> Result<BTreeMap<String, usize>, NetworkError> {
        match self.target.cgroup() {
            Some(cgroup) if self.sockets.is_none() => {
                strangers::of_cgroup(cgroup, self.namespaces())
            }
            _ => Ok(BTreeMap::new()),
        }
    }

    /// Counts packets that no rule matches, for [`Self::observed`], at most `budget` more in each
    /// direction; 0 stops counting.
    pub fn count_unmatched(&mut self, budget: u32) -> Result<(), NetworkError> {
        if budget > 0 && self.passed.is_empty() {
            let namespaces = self.namespaces().into_iter();
            let passed = namespaces.map(|netns| Ok((netns.inode(), interface::passed(netns)?)));
            self.passed = passed.collect::<Result<_, NetworkError>>()?;
        }
        Ok(self.object.count_unmatched(budget)?)
    }

    /// What was seen since packets are counted that no rule matches. Call it while programs are
    /// attached.
    pub fn observed(&mut self) -> Result<Observed, NetworkError> {
        let flows: Vec<Flow> = self.object.unmatched()?.into_iter().map(Flow::from).collect();
        let [sent, all_received] = self.object.seen_counters()?.packets;
        // Those of others are seen as well.
        let has_processes = self.target.has_processes();
        let received = if has_processes { unmatched::received(&flows) } else { all_received };
        let (mut attached, mut elsewhere) = (Passed::default(), BTreeMap::new());
        let mut translations = Vec::new();
        for netns in self.namespaces() {
            let Some(before) = self.passed.get(&netns.inode()) else { continue };
            let is_attached = |name: &str| {
                self.attachments.all().iter().any(|attachment| {
                    attachment.netns == *netns && attachment.interface.name == name
                })
            };
            for (name, passed) in interface::passed(netns)? {
                let since = passed.since(before.get(&name).copied().unwrap_or_default());
                if is_attached(&name) {
                    attached.received += since.received;
                    attached.sent += since.sent;
                } else if since.sum() > 0 && !is_own_device(&name) {
                    elsewhere.insert(name, since.sum());
                }
            }
            // It only adds to the explanation. Kernels may lack the module.
            match conntrack::translations(netns) {
                Ok(found) => translations.extend(found),
                Err(error) => tracing::debug!(%error, "translated addresses are not known"),
            }
        }
        Ok(Observed {
            sent,
            received,
            flows,
            attached,
            elsewhere,
            interfaces: self.target.interfaces().to_vec(),
            translations,
            strangers: BTreeMap::new(),
            has_processes,
        })
    }

    /// The namespaces in which programs are attached.
    fn namespaces(&self) -> Vec<&Netns> {
        let mut namespaces: Vec<&Netns> = Vec::new();
        for Attachment { netns, .. } in self.attachments.all() {
            if !namespaces.contains(&netns) {
                namespaces.push(netns);
            }
        }
        namespaces
    }

    /// A named interface without an attachment.
    fn missing(&self) -> Option<String> {
        if self.directions() == (false, false) {
            return None;
        }
        let all = self.attachments.all();
        let is_there = |name: &&String| all.iter().any(|there| there.interface.name == **name);
        self.target.interfaces().iter().find(|name| !is_there(name)).cloned()
    }

    fn add(
        &mut self,
        instance: &mut Instance,
        netns: &Netns,
        interface: &Interface,
        direction: Direction,
    ) -> Result<Attached, NetworkError> {
        let lease = self.lease();
        let object = &mut self.object;
        // There may be many interfaces, each of which takes a while.
        lease.renew(object)?;
        if let Some(holds) = &mut self.holds {
            holds.serve(object, instance, netns, interface, direction, &lease)?;
        }
        self.wire.serve(object, instance, netns, &lease)?;
        Ok(self.attachments.add(object, instance, netns, interface, direction)?.into())
    }

    /// Where programs are attached.
    #[must_use]
    pub fn attached(&self) -> Vec<Attached> {
        self.attachments.all().iter().map(Attached::from).collect()
    }

    /// Detaches all programs. Counters stay readable.
    pub fn detach(&mut self, instance: &mut Instance) -> Result<(), NetworkError> {
        instance.expedited(|instance| self.detach_all(instance))
    }

    fn detach_all(&mut self, instance: &mut Instance) -> Result<(), NetworkError> {
        self.attachments.clear(instance)?;
        if let Some(holds) = &mut self.holds
            && self.ended.is_none()
        {
            let statistics = holds.end(instance)?;
            // Packets in a hold device that others removed count as lost.
            let SeenCounters { held, released, .. } = self.object.seen_counters()?;
            let lost = held.saturating_sub(released).saturating_sub(statistics.dropped);
            self.ended = Some(hold::Statistics { held: lost, ..statistics });
        }
        self.wire.end(instance)?;
        Ok(())
    }

    /// The active rules.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        self.banks[self.active as usize].as_ref().map_or(&[], |active| &active.spec)
    }

    /// The counters of each active rule, in order.
    pub fn counts(&mut self) -> Result<Vec<Counts>, NetworkError> {
        self.counts_of(self.active)
    }

    /// The counters of each rule that the last [`Self::commit`] replaced.
    pub fn replaced_counts(&mut self) -> Result<Vec<Counts>, NetworkError> {
        self.counts_of(1 - self.active)
    }

    fn counts_of(&mut self, bank: u32) -> Result<Vec<Counts>, NetworkError> {
        let Some(compiled) = &self.banks[bank as usize] else { return Ok(Vec::new()) };
        let counters = self.object.rule_counters(bank, compiled.rules.len() as u32)?;
        let rules = (0..).zip(&compiled.rules).zip(counters);
        rules
            .map(|((number, rule), counters)| {
                let holds = rule.flags & RULE_HOLDS != 0;
                let cells = holds.then(|| self.object.delays(bank, number)).transpose()?;
                let delays = cells.as_ref().map(Delays::from);
                Ok(Counts { counters, delays })
            })
            .collect()
    }

    /// The counters of all packets seen on the attached interfaces.
    pub fn seen_counters(&mut self) -> Result<SeenCounters, NetworkError> {
        Ok(self.object.seen_counters()?)
    }

    /// The engine that holds packets; `None` if no rule holds any.
    #[must_use]
    pub fn engine(&self) -> Option<Engine> {
        self.holds.as_ref().map(Holds::engine)
    }

    /// Statistics of held packets, available after [`Self::detach`].
    #[must_use]
    pub fn held(&self) -> Option<(Engine, hold::Statistics)> {
        self.engine().zip(self.ended)
    }

    /// The eBPF object, for reading its log.
    pub fn object(&mut self) -> &mut Object {
        &mut self.object
    }

    /// The hooks that the active rules require.
    fn directions(&self) -> (bool, bool) {
        if self.options.hook == HookChoice::Xdp {
            return (false, true);
        }
        let sides = self.sides.or(self.later);
        // Packets without a socket are assigned to their owner by earlier egress packets.
        (sides.egress || self.target.whose != Whose::All, sides.ingress)
    }

    fn fill(&mut self, bank: u32, mut compiled: Compiled) -> Result<(), NetworkError> {
        if !self.wire.is_available() {
            compiled.accept_pieces();
        }
        let active = self.banks[1 - bank as usize].as_ref();
        self.traces.fill(&mut self.object, active, &mut compiled)?;
        let before = self.banks[bank as usize].as_ref();
        let before = before.map(|compiled| compiled.entries(bank)).unwrap_or_default();
        self.object.replace_entries(&before, &compiled.entries(bank))?;
        if let Some([local, remote]) = &compiled.classes {
            self.object.set_port_classes(bank, local, remote)?;
        }
        if let Some(classes) = &compiled.length_classes {
            self.object.set_length_classes(bank, classes)?;
        }
        self.object.set_rules(bank, &compiled.rules)?;
        self.object.reset_links(&compiled.new_links())?;
        self.object.set_holds(bank, &compiled.rules, &compiled.holds, &compiled.tables)?;
        self.object.reset_queues(&compiled.new_queues())?;
        self.object.set_rule_set(bank, &compiled.set)?;
        self.banks[bank as usize] = Some(compiled);
        Ok(())
    }

    /// Loads the programs that attaching to `places` requires, in parallel.
    fn load(&mut self, places: &[Place], egress: bool, ingress: bool) -> Result<(), NetworkError> {
        if self.options.hook == HookChoice::Xdp {
            return Ok(());
        }
        // The lease would lapse if a slow machine verified the program while rules change.
        let needs_wire = self.wire.is_wanted() || !self.options.is_final;
        let interfaces = places.iter().flat_map(|place| &place.interfaces);
        let names: BTreeSet<&str> = interfaces
            .flat_map(|interface| {
                let egress = egress.then(|| attach::program(interface, Direction::Egress));
                let ingress = ingress.then(|| attach::program(interface, Direction::Ingress));
                egress.into_iter().chain(ingress)
            })
            .chain(needs_wire.then_some(wire::PROGRAM))
            .collect();
        Ok(self.object.load_programs(&names)?)
    }
}

/// The combined requirements of rule sets that may follow each other.
#[derive(Default)]
struct Needs {
    capacity: Capacity,
    sides: Directions,
    /// The queue limit, if any set holds packets.
    hold: Option<u32>,
    /// The flags of all rules.
    flags: u32,
    /// The tables of traces.
    tables: Vec<Arc<Table>>,
}

impl Needs {
    fn add(&mut self, compiled: &Compiled) {
        let room = room_for(compiled);
        self.capacity = Capacity {
            rules: self.capacity.rules.max(room.rules),
            entries: self.capacity.entries.max(room.entries),
            masks: self.capacity.masks.max(room.masks),
            holds: self.capacity.holds.max(room.holds),
            traces: self.capacity.traces.max(room.traces),
            steps: 0,
        };
        for table in traces::tables([compiled]) {
            if !self.tables.contains(&table) {
                self.tables.push(table);
            }
        }
        self.sides = self.sides.or(Directions::of(compiled));
        self.flags |= compiled.flags();
        if compiled.needs_hold() {
            let limit = hold::room_for(&compiled.holds, room.traces > 0);
            self.hold = Some(self.hold.unwrap_or_default().max(limit));
        }
    }
}

/// Capacity for the rules and for a change to twice as many.
fn room_for(compiled: &Compiled) -> Capacity {
    const MIN_ROOM: usize = 1024;
    let rules = (2 * compiled.rules.len()).clamp(MIN_ROOM, MAX_RULES);
    let entries = (2 * compiled.entry_count()).clamp(MIN_ROOM, compile::MAX_ENTRIES);
    // Peers may get addresses of the other family.
    let families = if peers::of_rules(&compiled.spec).is_empty() { 1 } else { 2 };
    let masks = (families * compiled.mask_count()).clamp(1, MAX_MASKS);
    let holds = 2 * compiled.rules.iter().filter(|rule| rule.flags & RULE_HOLDS != 0).count();
    let traces = 2 * compiled.spec.iter().filter(|rule| rule.impairment.trace.is_some()).count();
    Capacity {
        rules: rules as u32,
        entries: entries as u32,
        masks: masks as u32,
        holds: holds as u32,
        traces: traces as u32,
        steps: 0,
    }
}

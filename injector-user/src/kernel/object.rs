//! The eBPF object of packet faults: loading, and typed access to its maps.

use std::{
    collections::{self, BTreeSet},
    os::fd::AsRawFd,
    thread,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, PerCpuValues, SkStorage},
    programs::{CgroupAttachMode, CgroupSock, Program, SchedClassifier, Xdp},
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use injector_common::{
    classify::{ShortKey, Slot, TupleKey},
    control::{Connection, Control, LengthClasses, PortClasses, RuleSet, ScopeKind},
    counter::{RuleCounters, SeenCounters},
    histogram::{self, MAX_RESOLUTION, MIN_RESOLUTION},
    hold::{self, FLOW_SLOTS, Hold, HoldState, MAX_TABLES, Route, TAGS, Table},
    model::{
        delay::Memory,
        trace::{Player, Step},
    },
    packet::Direction,
    rule::{RULE_HOLDS, RULE_REMOTE, Rule},
    unmatched,
};

use super::{
    KernelError, cgroup::root_directory, ebpf, layout::Layout, mapped::Mapped, tree::ProcessTree,
};

/// The object that the build script compiled.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/injector"));

/// Constants fixed at load time, which let the verifier remove unused code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Constants {
    /// Whose packets match.
    pub scope: ScopeKind,
    /// Whether the kernel has MPTCP.
    pub mptcp: bool,
    /// Offsets for reading the cgroup of a receiving socket.
    pub layout: Layout,
    /// The bit of `skb->tc_index` that marks packets that were classified.
    pub owner_mark: u32,
    /// What is excluded: [`PROTECT_OPERATOR`], [`PROTECT_NODE`], both or nothing.
    ///
    /// [`PROTECT_OPERATOR`]: injector_common::control::PROTECT_OPERATOR
    /// [`PROTECT_NODE`]: injector_common::control::PROTECT_NODE
    pub protect: u32,
    /// The device that holds packets; `None` if no rule does.
    pub hold: Option<HoldDevice>,
    /// The device that segments GSO packets.
    pub wire: WireDevice,
    /// The flags that rules may have, see [`injector_common::rule::Rule::flags`].
    pub flags: u32,
}

/// The number of closing connections that are remembered.
const CLOSING: u32 = 16_384;

/// The number of connections with translated addresses whose original peers are remembered.
const ASKED: u32 = 16_384;

/// The device that holds packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldDevice {
    /// The index, the same in all namespaces.
    pub interface: u32,
    /// Whether userspace holds the packets, rather than a qdisc.
    pub is_tap: bool,
}

/// The device that segments GSO packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireDevice {
    /// The index, the same in all namespaces; 0 if none.
    pub interface: u32,
    /// The number of received packets that may wait in the backlog of a CPU before segmenting more.
    pub backlog: u32,
}

/// The capacity of the maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Rules per bank.
    pub rules: u32,
    /// Classification entries per bank.
    pub entries: u32,
    /// Masks per bank, at most [`injector_common::control::MAX_MASKS`]. Each adds verification time.
    pub masks: u32,
    /// Rules per bank whose delay histograms have the highest resolution, if memory suffices.
    pub holds: u32,
    /// Traces of both banks.
    pub traces: u32,
    /// Steps of the tables of all traces.
    pub steps: u32,
}

/// The delay histogram of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DelayCells {
    /// The resolution, see [`histogram`].
    pub resolution: u32,
    /// The counts of all buckets, of sent packets and then of received ones.
    pub counts: Vec<u64>,
}

impl Capacity {
    /// The number of links: one for each rule of both banks.
    #[must_use]
    pub const fn links(&self) -> u32 {
        2 * self.rules
    }
}

/// The loaded object. Dropping it, or the death of this process, frees its maps and programs.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
    capacity: Capacity,
    /// Whether a bank's counters may be nonzero.
    used: [bool; 2],
    /// The states of links from this one on are zero.
    unused_link: u32,
    /// How many queues there have been.
    queues: u64,
    /// The cells of the delay histograms; `None` if no rule holds packets.
    delays: Option<Mapped<u64>>,
    /// The steps of traces; `None` if no rule plays one.
    steps: Option<Mapped<Step>>,
}

impl Object {
    /// Creates the maps. Programs are loaded on first use. `log_level` is an
    /// [`aya_log::Level`] as a number; 0 disables logging at no cost.
    pub fn load(
        constants: Constants,
        capacity: Capacity,
        log_level: u8,
    ) -> Result<Self, KernelError> {
        Self::load_for(constants, capacity, log_level, None)
    }

    /// Like [`Self::load`], for the packets of these processes.
    pub fn load_for(
        constants: Constants,
        capacity: Capacity,
        log_level: u8,
        processes: Option<&ProcessTree>,
    ) -> Result<Self, KernelError> {
        let layout = &constants.layout;
        let (scope, mptcp) = (constants.scope as u32, u32::from(constants.mptcp));
        let banks = 2 * capacity.rules;
        let hold = constants.hold.map_or(0, |hold| hold.interface);
        let in_userspace = u32::from(constants.hold.is_some_and(|hold| hold.is_tap));
        let processors =
            nr_cpus().map_err(|(_, error)| ebpf::map_error("BACKLOG", error.into()))? as u32;
        // Unused maps have the minimum size.
        let if_held = |entries| if constants.hold.is_some() { entries } else { 1 };
        let cells = 2 * cells_per_bank(capacity);
        let mut loader = ebpf::loader();
        if let Some(processes) = processes {
            processes.share(&mut loader)?;
        }
        if matches!(constants.scope, ScopeKind::Processes | ScopeKind::CgroupAndTags) {
            loader.map_max_entries("CLOSING", CLOSING);
        }
        if constants.flags & RULE_REMOTE != 0 {
            loader.map_max_entries("ASKED", ASKED);
        }
        let mut ebpf = loader
            .override_global("SCOPE", &scope, true)
            .override_global("MPTCP", &mptcp, true)
            .override_global("SOCK_CGROUP", &layout.sock_cgroup, true)
            .override_global("CGROUP_LEVEL_AT", &layout.cgroup_level, true)
            .override_global("CGROUP_ANCESTORS_AT", &layout.cgroup_ancestors, true)
            .override_global("CGROUP_KN_AT", &layout.cgroup_kn, true)
            .override_global("KERNFS_ID_AT", &layout.kernfs_id, true)
            .override_global("OWNER_MARK", &constants.owner_mark, true)
            .override_global("PROTECT", &constants.protect, true)
            .override_global("HOLD_INTERFACE", &hold, true)
            .override_global("HOLD_IN_USERSPACE", &in_userspace, true)
            .override_global("RULE_FLAGS", &constants.flags, true)
            .override_global("WIRE_INTERFACE", &constants.wire.interface, true)
            .override_global("WIRE_BACKLOG", &constants.wire.backlog, true)
            .override_global("RULES_PER_BANK", &capacity.rules, true)
            .override_global("MASKS_PER_BANK", &capacity.masks, true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .override_global("TRACES", &capacity.traces, true)
            .map_max_entries("BACKLOG", processors)
            .map_max_entries("RULES", banks)
            .map_max_entries("STATES", banks)
            .map_max_entries("COUNTERS", banks)
            .override_global("SLOTS_PER_BANK", &slots_per_bank(capacity), true)
            .map_max_entries("SLOTS", 2 * slots_per_bank(capacity))
            .map_max_entries("ENTRIES", 2 * capacity.entries)
            .map_max_entries("SHORT_ENTRIES", 2 * capacity.entries)
            .map_max_entries("HOLDS", if_held(banks))
            .map_max_entries("HOLD_STATES", if_held(banks))
            .map_max_entries("FLOW_RELEASES", if_held(FLOW_SLOTS))
            .map_max_entries("DELAYS", if_held(cells))
            .map_max_entries("TABLES", if_held(2 * MAX_TABLES))
            .map_max_entries("PLAYERS", capacity.traces.max(1))
            .map_max_entries("STEPS", capacity.steps.max(1))
            .map_max_entries("ROUTES", if_held(TAGS))
            .map_max_entries("HELD", if_held(TAGS))
            .load(OBJECT)
            .map_err(|error| KernelError::Load(error.into()))?;
        let delays =
            constants.hold.map(|_| ebpf::mapped(&mut ebpf, "DELAYS", cells)).transpose()?;
        let steps = (capacity.steps > 0)
            .then(|| ebpf::mapped(&mut ebpf, "STEPS", capacity.steps))
            .transpose()?;
        Ok(Self { ebpf, capacity, used: [false; 2], unused_link: 0, queues: 0, delays, steps })
    }

    /// The capacity of the maps.
    #[must_use]
    pub const fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Loads tc programs in parallel, as verification takes long. Loaded ones are skipped.
    pub fn load_programs(&mut self, names: &BTreeSet<&str>) -> Result<(), KernelError> {
        let wanted = self.ebpf.programs_mut().filter_map(|(name, program)| match program {
            Program::SchedClassifier(program) if program.fd().is_err() => {
                names.get(name).map(|_| (name.to_owned(), program))
            }
            _ => None,
        });
        thread::scope(|scope| {
            let loads = wanted.map(|(name, program)| {
                let load = move || ebpf::load(&name, || program.load());
                thread::Builder::new().spawn_scoped(scope, load).map_err(KernelError::Thread)
            });
            let loads: Vec<_> = loads.collect::<Result<_, _>>()?;
            loads.into_iter().try_for_each(|load| {
                // Propagate panics.
                load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }

    /// A tc program, loading it if needed.
    pub fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, KernelError> {
        let program: &mut SchedClassifier = ebpf::program(&mut self.ebpf, name)?;
        if program.fd().is_err() {
            ebpf::load(name, || program.load())?;
        }
        Ok(program)
    }

    /// The XDP program, loading it if needed.
    pub fn xdp(&mut self, name: &'static str) -> Result<&mut Xdp, KernelError> {
        let program: &mut Xdp = ebpf::program(&mut self.ebpf, name)?;
        if program.fd().is_err() {
            ebpf::load(name, || program.load())?;
        }
        Ok(program)
    }

    /// Tags new sockets of the processes, see [`ProcessTree`], from now on.
    pub fn tag_new_sockets(&mut self) -> Result<(), KernelError> {
        const NAME: &str = "socket_created";
        let root = root_directory().map_err(KernelError::Hierarchy)?;
        let program: &mut CgroupSock = ebpf::program(&mut self.ebpf, NAME)?;
        ebpf::load(NAME, || program.load())?;
        // The mode is one of attaching without a link; links always allow others.
        let attached = program.attach(root, CgroupAttachMode::Single).map(drop);
        attached.map_err(|source| KernelError::Sockets(source.into()))
    }

    /// Tags a socket.
    pub fn tag(&mut self, socket: &impl AsRawFd) -> Result<(), KernelError> {
        let mut tags: SkStorage<&mut MapData, u32> = ebpf::map(&mut self.ebpf, "TAGS")?;
        tags.insert(socket, 1u32, 0).map_err(|source| ebpf::map_error("TAGS", source))
    }

    /// A reader of the eBPF side's log. Its file descriptor is readable when there are records.
    pub fn logger(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>, KernelError> {
        EbpfLogger::init(&mut self.ebpf).map_err(|error| KernelError::Log(error.into()))
    }

    /// Sets the control record.
    pub fn set_control(&mut self, control: Control) -> Result<(), KernelError> {
        self.array("CONTROL", |array| array.set(0, control, 0))
    }

    /// Sets the classification of bank `bank`.
    pub fn set_rule_set(&mut self, bank: u32, set: &RuleSet) -> Result<(), KernelError> {
        self.array("RULE_SETS", |array: &mut Array<_, RuleSet>| array.set(bank, set, 0))
    }

    /// Sets the port classes of bank `bank`, one for each port.
    pub fn set_port_classes(
        &mut self,
        bank: u32,
        local: &[u16],
        remote: &[u16],
    ) -> Result<(), KernelError> {
        for (map, classes) in [("LOCAL_CLASSES", local), ("REMOTE_CLASSES", remote)] {
            let table: &PortClasses = classes.try_into().map_err(|_| KernelError::Missing(map))?;
            self.array(map, |array: &mut Array<_, PortClasses>| array.set(bank, table, 0))?;
        }
        Ok(())
    }

    /// Sets the length classes of bank `bank`, one for each length.
    pub fn set_length_classes(&mut self, bank: u32, classes: &[u8]) -> Result<(), KernelError> {
        const MAP: &str = "LENGTH_CLASSES";
        let table: &LengthClasses = classes.try_into().map_err(|_| KernelError::Missing(MAP))?;
        self.array(MAP, |array: &mut Array<_, LengthClasses>| array.set(bank, table, 0))
    }

    /// Replaces the rules of bank `bank` and resets their counters.
    pub fn set_rules(&mut self, bank: u32, rules: &[Rule]) -> Result<(), KernelError> {
        let first = bank * self.capacity.rules;
        self.array("RULES", |array: &mut Array<_, Rule>| {
            (first..).zip(rules).try_for_each(|(index, rule)| array.set(index, rule, 0))
        })?;
        let used = &mut self.used[bank as usize];
        if !std::mem::replace(used, true) {
            return Ok(());
        }
        let fail = |source: MapError| KernelError::Map { map: "COUNTERS", source: source.into() };
        let cpus = nr_cpus().map_err(|(_, error)| fail(error.into()))?;
        let mut counters = self.counters()?;
        for index in (first..).take(rules.len()) {
            let zeroes = PerCpuValues::try_from(vec![RuleCounters::default(); cpus])
                .map_err(|error| fail(error.into()))?;
            counters.set(index, zeroes, 0).map_err(fail)?;
        }
        Ok(())
    }

    /// Resets the states of links.
    pub fn reset_links(&mut self, links: &[u32]) -> Result<(), KernelError> {
        let unused = self.unused_link;
        self.unused_link = links.iter().fold(unused, |unused, link| unused.max(link + 1));
        self.array("STATES", |array: &mut Array<_, u64>| {
            let mut used = links.iter().filter(|link| **link < unused);
            used.try_for_each(|link| array.set(*link, 0u64, 0))
        })
    }

    /// Resets the queues of links, each given with its random stream.
    pub fn reset_queues(&mut self, links: &[(u32, u64)]) -> Result<(), KernelError> {
        let first = self.queues;
        self.queues += links.len() as u64;
        self.array("HOLD_STATES", |array: &mut Array<_, HoldState>| {
            links.iter().zip(first..).try_for_each(|((link, stream), queue)| {
                // A correlated delay starts at a random value, as in netem.
                let memory = Memory::from_last((stream >> 32) as u32).0;
                array.set(*link, HoldState { memory, queue, ..HoldState::default() }, 0)
            })
        })
    }

    /// Replaces one rule of bank `bank`, keeping its state and counters.
    pub fn set_rule(&mut self, bank: u32, number: u32, rule: Rule) -> Result<(), KernelError> {
        let index = bank * self.capacity.rules + number;
        self.array("RULES", |array: &mut Array<_, Rule>| array.set(index, rule, 0))
    }

    /// Replaces the hold parameters of the rules of bank `bank`, in the order of the rules.
    pub fn set_holds(
        &mut self,
        bank: u32,
        rules: &[Rule],
        holds: &[Hold],
        tables: &[Box<Table>],
    ) -> Result<(), KernelError> {
        let first = bank * self.capacity.rules;
        let with_histograms = self.with_histograms(bank, rules, holds);
        self.array("HOLDS", |array: &mut Array<_, Hold>| {
            (first..).zip(&with_histograms).try_for_each(|(index, hold)| array.set(index, hold, 0))
        })?;
        self.array("TABLES", |array: &mut Array<_, Table>| {
            let first = bank * MAX_TABLES;
            (first..).zip(tables).try_for_each(|(index, table)| array.set(index, **table, 0))
        })
    }

    /// Divides the cells of bank `bank` among the rules that hold packets, and clears them.
    fn with_histograms(&self, bank: u32, rules: &[Rule], holds: &[Hold]) -> Vec<Hold> {
        let Some(delays) = &self.delays else { return holds.to_vec() };
        let has_histogram = |rule: &Rule| rule.flags & RULE_HOLDS != 0;
        let per_bank = cells_per_bank(self.capacity);
        let count = rules.iter().take(holds.len()).filter(|rule| has_histogram(rule)).count();
        let resolution = histogram::resolution_for(count, per_bank);
        let size = histogram::cells_of(resolution) as u32;
        let first = bank * per_bank;
        let mut next = first;
        let with_histogram = |(hold, rule): (&Hold, &Rule)| {
            let cells = next;
            if has_histogram(rule) {
                next += size;
            }
            Hold { cells, resolution, ..*hold }
        };
        let with_histograms = holds.iter().zip(rules).map(with_histogram).collect();
        (first..next).for_each(|cell| delays.set(cell, 0));
        with_histograms
    }

    /// Writes the table of a trace, from the step `first` on. It must be within [`Capacity::steps`].
    pub fn set_steps(&self, first: u32, table: &[Step]) {
        if let Some(steps) = &self.steps {
            (first..).zip(table).for_each(|(index, step)| steps.set(index, *step));
        }
    }

    /// Writes a trace that a rule plays, with its state.
    pub fn set_player(&mut self, number: u32, player: Player) -> Result<(), KernelError> {
        self.array("PLAYERS", |array: &mut Array<_, Player>| array.set(number, player, 0))
    }

    /// Assigns a tag to an interface and a direction.
    pub fn set_route(
        &mut self,
        tag: u32,
        interface: u32,
        direction: Direction,
    ) -> Result<(), KernelError> {
        let route = Route { interface, direction: direction as u32, ..Route::default() };
        self.array("ROUTES", |array: &mut Array<_, Route>| array.set(tag, route, 0))?;
        let key = u64::from(interface) << 1 | direction as u64;
        let mut tags: HashMap<&mut MapData, u64, u32> = ebpf::map(&mut self.ebpf, "ROUTE_TAGS")?;
        tags.insert(key, tag, 0)
            .map_err(|source| KernelError::Map { map: "ROUTE_TAGS", source: source.into() })
    }

    /// The maps shared with the TAP engine: slots of held packets, and their routes.
    pub fn held_packets(&mut self) -> Result<(Mapped<hold::Slot>, Mapped<Route>), KernelError> {
        let ebpf = &mut self.ebpf;
        Ok((ebpf::mapped(ebpf, "HELD", TAGS)?, ebpf::mapped(ebpf, "ROUTES", TAGS)?))
    }

    /// Replaces the entries `before` by `after`.
    pub fn replace_entries(
        &mut self,
        before: &[(TupleKey, u32)],
        after: &[(TupleKey, u32)],
    ) -> Result<(), KernelError> {
        let short = |entries: &[(TupleKey, u32)]| -> Vec<_> {
            let entries = entries.iter().filter(|(key, _)| key.has_short());
            entries.map(|(key, number)| (key.short(), *number)).collect()
        };
        let (short_before, short_after) = (short(before), short(after));
        self.replace_slots(&short_before, &short_after)?;
        self.replace("SHORT_ENTRIES", &short_before, &short_after)?;
        self.replace("ENTRIES", before, after)
    }

    fn replace_slots(
        &mut self,
        before: &[(ShortKey, u32)],
        after: &[(ShortKey, u32)],
    ) -> Result<(), KernelError> {
        let count = slots_per_bank(self.capacity);
        let place = |key: &ShortKey| key.bank() * count + (key.hash() & (count - 1));
        let mut slots: collections::HashMap<u32, Slot> =
            before.iter().map(|(key, _)| (place(key), Slot::default())).collect();
        for &(key, rule) in after {
            let slot = slots.entry(place(&key)).or_default();
            *slot = match slot.state {
                0 => Slot::new(key, rule),
                state => Slot { state: state | Slot::SHARED, ..*slot },
            };
        }
        self.array("SLOTS", |array: &mut Array<_, Slot>| {
            slots.into_iter().try_for_each(|(place, slot)| array.set(place, slot, 0))
        })
    }

    fn replace<K: Pod>(
        &mut self,
        name: &'static str,
        before: &[(K, u32)],
        after: &[(K, u32)],
    ) -> Result<(), KernelError> {
        let mut entries: HashMap<&mut MapData, K, u32> = ebpf::map(&mut self.ebpf, name)?;
        let fail = |source: MapError| KernelError::Map { map: name, source: source.into() };
        for (key, _) in before {
            entries.remove(key).map_err(fail)?;
        }
        for (key, number) in after {
            entries.insert(key, number, 0).map_err(fail)?;
        }
        Ok(())
    }

    /// Adds protected connections and peers.
    pub fn protect(&mut self, connections: &[Connection]) -> Result<(), KernelError> {
        let mut protected: HashMap<&mut MapData, Connection, u8> =
            ebpf::map(&mut self.ebpf, "PROTECTED")?;
        for connection in connections {
            protected
                .insert(connection, 1, 0)
                .map_err(|source| KernelError::Map { map: "PROTECTED", source: source.into() })?;
        }
        Ok(())
    }

    /// The counters of the first `count` rules of bank `bank`.
    pub fn rule_counters(
        &mut self,
        bank: u32,
        count: u32,
    ) -> Result<Vec<RuleCounters>, KernelError> {
        let first = bank * self.capacity.rules;
        let counters = self.counters()?;
        (first..first + count)
            .map(|index| {
                let values = counters.get(&index, 0).map_err(|source| KernelError::Map {
                    map: "COUNTERS",
                    source: source.into(),
                })?;
                let mut sum = RuleCounters::default();
                values.iter().for_each(|&value| sum += value);
                Ok(sum)
            })
            .collect()
    }

    /// The delay histogram of a rule of bank `bank` that holds packets.
    pub fn delays(&mut self, bank: u32, number: u32) -> Result<DelayCells, KernelError> {
        let index = bank * self.capacity.rules + number;
        let mut hold = Hold::default();
        self.array("HOLDS", |array: &mut Array<_, Hold>| {
            hold = array.get(&index, 0)?;
            Ok(())
        })?;
        let Hold { cells, resolution, .. } = hold;
        let size = histogram::cells_of(resolution) as u32;
        let counts = self
            .delays
            .as_ref()
            .map(|delays| (cells..cells + size).map(|cell| delays.get(cell)).collect());
        Ok(DelayCells { resolution, counts: counts.unwrap_or_default() })
    }

    /// The counters of all packets seen on the attached interfaces.
    pub fn seen_counters(&mut self) -> Result<SeenCounters, KernelError> {
        ebpf::sum(&mut self.ebpf, "SEEN")
    }

    /// Allows `budget` more unmatched packets to be counted for each direction; 0 stops counting.
    pub fn count_unmatched(&mut self, budget: u32) -> Result<(), KernelError> {
        self.array("UNMATCHED_BUDGET", |array| {
            (0..2).try_for_each(|direction| array.set(direction, budget, 0))
        })
    }

    /// The unmatched packets that were counted.
    pub fn unmatched(&mut self) -> Result<Vec<(unmatched::Kind, unmatched::Count)>, KernelError> {
        const MAP: &str = "UNMATCHED";
        let map: HashMap<&mut MapData, unmatched::Kind, unmatched::Count> =
            ebpf::map(&mut self.ebpf, MAP)?;
        // An entry that is evicted while the map is read is not found.
        let is_there = |entry: &Result<_, MapError>| !matches!(entry, Err(MapError::KeyNotFound));
        map.iter()
            .filter(is_there)
            .collect::<Result<_, _>>()
            .map_err(|source| ebpf::map_error(MAP, source))
    }

    fn counters(&mut self) -> Result<PerCpuArray<&mut MapData, RuleCounters>, KernelError> {
        ebpf::map(&mut self.ebpf, "COUNTERS")
    }

    fn array<T: Pod>(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&mut Array<&mut MapData, T>) -> Result<(), MapError>,
    ) -> Result<(), KernelError> {
        ebpf::array(&mut self.ebpf, name, work)
    }
}

/// The cells of the delay histograms of a bank: enough for the lowest resolution of all rules, and
/// for the highest of the expected ones within a limit of memory.
fn cells_per_bank(capacity: Capacity) -> u32 {
    /// 32 MiB.
    const MAX_CELLS: u64 = 4 << 20;

    let cells_of = |rules: u32, resolution| u64::from(rules) * histogram::cells_of(resolution);
    let expected = cells_of(capacity.holds, MAX_RESOLUTION).min(MAX_CELLS);
    let least = cells_of(capacity.rules, MIN_RESOLUTION);
    u32::try_from(expected.max(least)).unwrap_or(u32::MAX)
}

/// At least two slots an entry, so that few entries share one.
fn slots_per_bank(capacity: Capacity) -> u32 {
    (2 * capacity.entries).next_power_of_two()
}

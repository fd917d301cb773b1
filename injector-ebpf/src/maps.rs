//! Maps and load-time constants shared with userspace. Sizes are set at load time.

use crate::{clock::Reading, packet::backlog::Backlog};
use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use injector_common::{
    classify::{ShortKey, Slot, TupleKey},
    control::{
        Connection, Control, Flow, FragmentKey, FragmentPorts, LengthClasses, PortClasses, RuleSet,
        Translated,
    },
    counter::{RuleCounters, SeenCounters},
    hold::{self, Hold, HoldState, Route, TAGS, Table},
    model::trace::{Player, Step},
    packet::Packet,
    rule::{RULE_ALL, Rule},
    unmatched,
};

/// The [`injector_common::control::ScopeKind`].
#[unsafe(no_mangle)]
pub static SCOPE: Global<u32> = Global::new(0);

/// Non-zero: the kernel has MPTCP, and tells the MPTCP socket of a subflow.
#[unsafe(no_mangle)]
pub static MPTCP: Global<u32> = Global::new(0);

/// Offset of `sk_cgrp_data.cgroup` in the kernel's `struct sock`. All offsets are in bytes.
#[unsafe(no_mangle)]
pub static SOCK_CGROUP: Global<u32> = Global::new(0);

/// Offset of `level` in `struct cgroup`.
#[unsafe(no_mangle)]
pub static CGROUP_LEVEL_AT: Global<u32> = Global::new(0);

/// Offset of `ancestors` in `struct cgroup`.
#[unsafe(no_mangle)]
pub static CGROUP_ANCESTORS_AT: Global<u32> = Global::new(0);

/// Offset of `kn` in `struct cgroup`.
#[unsafe(no_mangle)]
pub static CGROUP_KN_AT: Global<u32> = Global::new(0);

/// Offset of `id` in `struct kernfs_node`.
#[unsafe(no_mangle)]
pub static KERNFS_ID_AT: Global<u32> = Global::new(0);

/// The owner mark: the bit of `skb->tc_index` that marks packets already classified by this
/// instance. It keeps a packet from being classified twice (loopback, bridge, veth, duplicates).
#[unsafe(no_mangle)]
pub static OWNER_MARK: Global<u32> = Global::new(0);

/// What is excluded from faults: [`injector_common::control::PROTECT_OPERATOR`],
/// [`injector_common::control::PROTECT_NODE`], both or nothing.
#[unsafe(no_mangle)]
pub static PROTECT: Global<u32> = Global::new(0);

/// The flags that rules may have.
#[unsafe(no_mangle)]
pub static RULE_FLAGS: Global<u32> = Global::new(RULE_ALL);

/// Number of rules per bank, and therefore the start of bank 1 in [`RULES`] and [`COUNTERS`].
#[unsafe(no_mangle)]
pub static RULES_PER_BANK: Global<u32> = Global::new(1);

/// Number of masks per bank, at most [`injector_common::control::MAX_MASKS`].
#[unsafe(no_mangle)]
pub static MASKS_PER_BANK: Global<u32> = Global::new(1);

/// Number of slots per bank, a power of 2, and therefore the start of bank 1 in [`SLOTS`].
#[unsafe(no_mangle)]
pub static SLOTS_PER_BANK: Global<u32> = Global::new(1);

/// Index of the hold device, the same in all namespaces; 0 if no rule holds packets.
#[unsafe(no_mangle)]
pub static HOLD_INTERFACE: Global<u32> = Global::new(0);

/// Non-zero: the hold device is a TAP and userspace queues the packets; zero: it has a queue.
#[unsafe(no_mangle)]
pub static HOLD_IN_USERSPACE: Global<u32> = Global::new(0);

/// Index of the device that segments GSO packets, the same in all namespaces; 0 if no rule requires
/// it.
#[unsafe(no_mangle)]
pub static WIRE_INTERFACE: Global<u32> = Global::new(0);

/// Non-zero: rules may play traces.
#[unsafe(no_mangle)]
pub static TRACES: Global<u32> = Global::new(0);

/// Number of packets that may wait in the backlog of a CPU before segmenting more.
#[unsafe(no_mangle)]
pub static WIRE_BACKLOG: Global<u32> = Global::new(0);

/// Whether rules may have one of these flags. If not, the verifier leaves out what depends on it.
#[inline(always)]
pub fn may_have(flags: u32) -> bool {
    RULE_FLAGS.load() & flags != 0
}

/// Whether the rule has one of these flags.
#[inline(always)]
pub fn has(rule: &Rule, flags: u32) -> bool {
    may_have(flags) && rule.flags & flags != 0
}

/// Non-zero from sending a packet to the device that segments it until a packet comes out.
#[map]
pub static SEGMENTING: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// The packets that wait in the backlog, by CPU.
#[map]
pub static BACKLOG: Array<Backlog> = Array::with_max_entries(1, 0);

/// The packet being classified, by direction.
///
/// It is in a map rather than on the stack so that the verifier forgets the parser's path that
/// produced it, and need not follow every path through all subsequent code.
#[map]
pub static PACKETS: PerCpuArray<Packet> = PerCpuArray::with_max_entries(2, 0);

/// An ICMP message that answers a packet, in network byte order.
#[repr(C)]
pub struct IcmpMessage {
    pub header: [u32; 2],
    /// The beginning of the packet.
    pub quote: [u8; 128],
}

/// The answer to the packet being classified: it would be too large for the stack.
#[map]
pub static MESSAGE: PerCpuArray<IcmpMessage> = PerCpuArray::with_max_entries(1, 0);

/// The cached clock, see [`crate::clock`].
#[map]
pub static CLOCK: PerCpuArray<Reading> = PerCpuArray::with_max_entries(1, 0);

/// The active bank and its lease.
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// The rule sets, by bank.
#[map]
pub static RULE_SETS: Array<RuleSet> = Array::with_max_entries(2, 0);

/// Classes of local ports, by bank.
#[map]
pub static LOCAL_CLASSES: Array<PortClasses> = Array::with_max_entries(2, 0);

/// Classes of remote ports, by bank.
#[map]
pub static REMOTE_CLASSES: Array<PortClasses> = Array::with_max_entries(2, 0);

/// Classes of packet lengths, by bank.
#[map]
pub static LENGTH_CLASSES: Array<LengthClasses> = Array::with_max_entries(2, 0);

/// Masked tuple to rule number for packets with a short form; a cache of [`SHORT_ENTRIES`].
#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(2, 0);

/// Masked tuple to rule number for packets with a short form.
#[map]
pub static SHORT_ENTRIES: HashMap<ShortKey, u32> = HashMap::with_max_entries(2, 0);

/// Masked tuple to rule number for all packets, including those with a short form.
#[map]
pub static ENTRIES: HashMap<TupleKey, u32> = HashMap::with_max_entries(2, 0);

/// The rules of both banks.
#[map]
pub static RULES: Array<Rule> = Array::with_max_entries(2, 0);

/// The mutable word of each rule, see [`injector_common::model::State`]; by [`Rule::link`].
#[map]
pub static STATES: Array<u64> = Array::with_max_entries(2, 0);

/// The counters of each rule.
#[map]
pub static COUNTERS: PerCpuArray<RuleCounters> = PerCpuArray::with_max_entries(2, 0);

/// Counters of all packets seen on the attached interfaces.
#[map]
pub static SEEN: PerCpuArray<SeenCounters> = PerCpuArray::with_max_entries(1, 0);

/// Kinds of packets of the target that no rule matched.
#[map]
pub static UNMATCHED: LruHashMap<unmatched::Kind, unmatched::Count> =
    LruHashMap::with_max_entries(unmatched::MAX_KINDS, 0);

/// How many unmatched packets may still be counted, by direction. Userspace renews it as long as it
/// wants to know.
#[map]
pub static UNMATCHED_BUDGET: Array<u32> = Array::with_max_entries(2, 0);

/// The endpoints of the target's sockets whose packets have translated ones.
#[map]
pub static ASKED: LruHashMap<Translated, Connection> = LruHashMap::with_max_entries(1, 0);

/// Non-zero: there has been an entry in [`ASKED`].
#[map]
pub static IS_TRANSLATED: Array<u32> = Array::with_max_entries(1, 0);

/// The endpoints to exchange with those of the packet being classified.
#[map]
pub static OTHER_ENDPOINTS: PerCpuArray<Connection> = PerCpuArray::with_max_entries(1, 0);

/// Connections that are excluded from faults, and peers: connections of which only the remote address is set.
#[map]
pub static PROTECTED: HashMap<Connection, u8> = HashMap::with_max_entries(1024, 0);

/// Connections that were reset, with the time by `CLOCK_MONOTONIC`; connections in their handshake,
/// with `u64::MAX`.
#[map]
pub static RESET: LruHashMap<Connection, u64> = LruHashMap::with_max_entries(65_536, 0);

/// Flows started by the target for which there is no socket lookup.
#[map]
pub static FLOWS: LruHashMap<Flow, u8> = LruHashMap::with_max_entries(16_384, 0);

/// Connections of tagged sockets that are closing, with the time by `CLOCK_MONOTONIC` of their FIN.
#[map]
pub static CLOSING: LruHashMap<Connection, u64> = LruHashMap::with_max_entries(1, 0);

/// Data of first fragments for later ones.
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> =
    LruHashMap::with_max_entries(4096, 0);

/// Actions of the rules that hold packets, see [`crate::packet`].
#[map]
pub static HOLDS: Array<Hold> = Array::with_max_entries(2, 0);

/// State of the rules that hold packets; by [`Rule::link`].
#[map]
pub static HOLD_STATES: Array<HoldState> = Array::with_max_entries(2, 0);

/// The latest release times of flows, see [`hold::flow_slot`].
#[map]
pub static FLOW_RELEASES: Array<u64> = Array::with_max_entries(1, 0);

/// The cells of all delay histograms, see [`Hold::cells`].
///
/// All CPUs share them: holding a packet costs more than an atomic increment.
#[map]
pub static DELAYS: Array<u64> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// How a packet is held.
#[derive(Clone, Copy)]
pub struct Schedule {
    /// The delay in nanoseconds.
    pub wait_ns: u64,
    /// The queue of `sch_fq` it waits in, see [`hold::Lane`].
    pub queue: u64,
}

/// How the packet being classified is held.
#[map]
pub static SCHEDULE: PerCpuArray<Schedule> = PerCpuArray::with_max_entries(1, 0);

/// What is held.
#[repr(C)]
pub struct InFlight {
    /// The number of packets, too high by those that were lost while held.
    pub count: u64,
    /// When the last one left, by `CLOCK_MONOTONIC`.
    pub left_ns: u64,
}

/// What is held.
#[map]
pub static IN_FLIGHT: Array<InFlight> = Array::with_max_entries(1, 0);

/// Distribution tables, by bank.
#[map]
pub static TABLES: Array<Table> = Array::with_max_entries(2 * hold::MAX_TABLES, 0);

/// The traces that rules play, see [`Rule::trace`].
#[map]
pub static PLAYERS: Array<Player> = Array::with_max_entries(1, 0);

/// The tables of all traces.
#[map]
pub static STEPS: Array<Step> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Routes of held packets, by tag.
#[map]
pub static ROUTES: Array<Route> = Array::with_max_entries(TAGS, BPF_F_MMAPABLE);

/// The tag of an interface (its index times 2) and direction, if the hold device has a queue.
#[map]
pub static ROUTE_TAGS: HashMap<u64, u32> = HashMap::with_max_entries(hold::ROUTES, 0);

/// The release time of the packet being sent to the hold device, if that has a queue.
#[map]
pub static RELEASE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Metadata of packets queued in userspace, by tag.
#[map]
pub static HELD: Array<hold::Slot> = Array::with_max_entries(TAGS, BPF_F_MMAPABLE);

/// The number of the next packet: its tag for [`HELD`], or its [`hold::Lane`].
#[map]
pub static NEXT_SLOT: Array<u64> = Array::with_max_entries(1, 0);

//! The maps and load-time constants shared with userspace. Sizes are set at load time.

use crate::clock::Reading;
use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use injector_common::{
    classify::{ShortKey, Slot, TupleKey},
    control::{Connection, Control, Flow, FragmentKey, FragmentPorts, PortClasses, RuleSet},
    counter::{Delays, RuleCounters, SeenCounters},
    hold::{self, Hold, HoldState, Route, TAGS, Table},
    packet::Packet,
    rule::Rule,
};

/// Non-zero: only packets of the cgroup that [`CONTROL`] names; else every packet on the attached interfaces.
#[unsafe(no_mangle)]
pub static OF_CGROUP: Global<u32> = Global::new(0);

/// Offset of `sk_cgrp_data.cgroup` in the kernel's `struct sock`, in bytes, as the following ones.
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

/// The bit of `skb->tc_index` that tells this instance's judged packets from others, so that none is
/// judged twice (loopback, bridge, veth, its own duplicates).
#[unsafe(no_mangle)]
pub static JUDGED_BIT: Global<u32> = Global::new(0);

/// Non-zero: leave TCP port 22 and the connections in [`PROTECTED`] alone.
#[unsafe(no_mangle)]
pub static PROTECT: Global<u32> = Global::new(0);

/// Rules that one bank holds, so that bank 1 starts there in [`RULES`], [`STATES`] and [`COUNTERS`].
#[unsafe(no_mangle)]
pub static RULES_PER_BANK: Global<u32> = Global::new(1);

/// Masks that one bank holds, at most [`injector_common::control::MAX_MASKS`].
#[unsafe(no_mangle)]
pub static MASKS_PER_BANK: Global<u32> = Global::new(1);

/// Slots that one bank holds, a power of 2, so that bank 1 starts there in [`SLOTS`].
#[unsafe(no_mangle)]
pub static SLOTS_PER_BANK: Global<u32> = Global::new(1);

/// Index of the device on which packets are held, the same in all namespaces; 0 if no rule holds any.
#[unsafe(no_mangle)]
pub static HOLD_INTERFACE: Global<u32> = Global::new(0);

/// Non-zero: the device is a TAP, and userspace holds the packets; else it has a queue that does.
#[unsafe(no_mangle)]
pub static HOLD_IN_USERSPACE: Global<u32> = Global::new(0);

/// Where the packet at hand is kept, by direction, while it is judged.
///
/// In a map and not on the stack, so that the verifier forgets by which way the parser got there and
/// need not follow each way through all that comes after.
#[map]
pub static PACKETS: PerCpuArray<Packet> = PerCpuArray::with_max_entries(2, 0);

/// The clock, see [`crate::clock`].
#[map]
pub static CLOCK: PerCpuArray<Reading> = PerCpuArray::with_max_entries(1, 0);

/// Which bank is active, and until when.
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// How to classify, per bank.
#[map]
pub static RULE_SETS: Array<RuleSet> = Array::with_max_entries(2, 0);

/// Classes of local ports, per bank.
#[map]
pub static LOCAL_CLASSES: Array<PortClasses> = Array::with_max_entries(2, 0);

/// Classes of remote ports, per bank.
#[map]
pub static REMOTE_CLASSES: Array<PortClasses> = Array::with_max_entries(2, 0);

/// Masked tuple to rule number, for packets that have a short form; a short cut to [`SHORT_ENTRIES`].
#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(2, 0);

/// Masked tuple to rule number, for packets that have a short form.
#[map]
pub static SHORT_ENTRIES: HashMap<ShortKey, u32> = HashMap::with_max_entries(2, 0);

/// Masked tuple to rule number, for the other packets. What has a short form is here as well.
#[map]
pub static ENTRIES: HashMap<TupleKey, u32> = HashMap::with_max_entries(2, 0);

/// The rules of both banks.
#[map]
pub static RULES: Array<Rule> = Array::with_max_entries(2, 0);

/// The mutable word of each rule, see [`injector_common::model::State`].
#[map]
pub static STATES: Array<u64> = Array::with_max_entries(2, 0);

/// What each rule did.
#[map]
pub static COUNTERS: PerCpuArray<RuleCounters> = PerCpuArray::with_max_entries(2, 0);

/// What was seen on the attached interfaces.
#[map]
pub static SEEN: PerCpuArray<SeenCounters> = PerCpuArray::with_max_entries(1, 0);

/// Connections that `--protect` leaves alone.
#[map]
pub static PROTECTED: HashMap<Connection, u8> = HashMap::with_max_entries(1024, 0);

/// Connections that have been reset, and when by `CLOCK_MONOTONIC`; those that are being made, and `u64::MAX`.
#[map]
pub static RESET: LruHashMap<Connection, u64> = LruHashMap::with_max_entries(65_536, 0);

/// Conversations that the target cgroup began and for which there is no socket look-up.
#[map]
pub static FLOWS: LruHashMap<Flow, u8> = LruHashMap::with_max_entries(16_384, 0);

/// What first fragments told about later ones.
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> =
    LruHashMap::with_max_entries(4096, 0);

/// What the rules that hold packets do, see [`crate::packet`].
#[map]
pub static HOLDS: Array<Hold> = Array::with_max_entries(2, 0);

/// What they remember.
#[map]
pub static HOLD_STATES: Array<HoldState> = Array::with_max_entries(2, 0);

/// For how long they held packets back.
#[map]
pub static DELAYS: Array<Delays> = Array::with_max_entries(2, 0);

/// For how long the packet at hand is to be held, in nanoseconds.
#[map]
pub static WAIT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Distribution tables, per bank.
#[map]
pub static TABLES: Array<Table> = Array::with_max_entries(2 * hold::MAX_TABLES, 0);

/// Where held packets go, by their tag.
#[map]
pub static ROUTES: Array<Route> = Array::with_max_entries(TAGS, BPF_F_MMAPABLE);

/// The tag of an interface (its index times 2) and direction, if the hold device has a queue.
#[map]
pub static ROUTE_TAGS: HashMap<u64, u32> = HashMap::with_max_entries(4096, 0);

/// When the packet that is being sent to the hold device is due, if that has a queue.
#[map]
pub static RELEASE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What userspace must know of packets on the way to it, by their tag.
#[map]
pub static HELD: Array<hold::Slot> = Array::with_max_entries(TAGS, BPF_F_MMAPABLE);

/// The number of the next tag for [`HELD`].
#[map]
pub static NEXT_SLOT: Array<u64> = Array::with_max_entries(1, 0);

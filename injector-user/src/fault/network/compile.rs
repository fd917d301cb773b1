//! Compiles rules to the classification tables of the eBPF programs.
//!
//! A rule becomes one entry for each combination of address family, prefix, protocol and port class
//! that it matches. Entries with the same significant bits share a mask. See
//! [`injector_common::classify`].

use std::collections::{BTreeSet, HashMap};

use injector_common::{
    classify::{TUPLE_WORDS, Tuple, TupleKey, TupleMask, field},
    control::{FIRST_CONNECTION_MASK, LENGTHS, MAX_LENGTHS, MAX_MASKS, Masks, PORTS, RuleSet},
    hold::{self, Hold, MAX_TABLES},
    model::{random, trace::Player},
    rule::{self, RULE_REMOTE, RULE_WIRE},
};
use ipnet::IpNet;
use thiserror::Error;

use super::links::Continued;
use crate::{
    spec::{
        distribution::Table,
        matching::Matching,
        peer::Peer,
        rule::{Direction, Rule},
        value::{HumanDuration, PortSet, Remote},
    },
    target::peers::Addresses,
};

/// Maximum number of entries of a rule set.
pub const MAX_ENTRIES: usize = 1 << 20;

/// Maximum number of combinations examined while compiling; several may yield the same entry.
const MAX_COMBINATIONS: usize = 4 * MAX_ENTRIES;

/// Why a rule set cannot be compiled.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum CompileError {
    /// Too many mask combinations.
    #[error(
        "the rules use {0} different combinations of direction, prefix length, protocol, port and TCP-flag matches; \
         the most is {MAX_MASKS}: write more of them alike"
    )]
    TooManyMasks(usize),
    /// Too many entries.
    #[error(
        "the rules take more than {MAX_ENTRIES} table entries (remotes × protocols × port ranges that other rules \
         cut in pieces): use fewer or wider matches"
    )]
    TooManyEntries,
    /// Too many distributions.
    #[error(
        "the delays of the rules follow more than {MAX_TABLES} different distributions (normal, pareto, paretonormal \
         and each file count): use fewer of them, or uniform jitter, which does not count"
    )]
    TooManyTables,
    /// Too many lengths.
    #[error("--longer-than has {0} different values in the rules; the most is {MAX_LENGTHS}")]
    TooManyLengths(usize),
    /// The addresses of a peer are not known.
    #[error("the addresses of {0} have not been looked up")]
    Unresolved(Peer),
}

/// A compiled rule set, usable in either bank.
#[derive(Debug)]
pub struct Compiled {
    /// The masks.
    pub set: Box<RuleSet>,
    /// Local and remote port classes, if any rule matches ports.
    pub classes: Option<[Box<[u16]>; 2]>,
    /// Length classes, if any rule matches lengths.
    pub length_classes: Option<Vec<u8>>,
    /// Masked tuple and mask number, with the number of the matching rule.
    entries: Vec<((Tuple, u32), u32)>,
    /// The rules as specified.
    pub spec: Vec<Rule>,
    /// The rules.
    pub rules: Vec<rule::Rule>,
    /// What each rule takes over from the active rules, see [`super::links::assign`].
    pub continued: Vec<Continued>,
    /// How each rule holds packets; empty if none does.
    pub holds: Vec<Hold>,
    /// The delay distributions.
    pub tables: Vec<Box<hold::Table>>,
    /// The traces that start with this set, by number, see [`super::traces`].
    pub players: Vec<(u32, Player)>,
    /// Whether any rule matches sent packets.
    pub egress: bool,
    /// Whether any rule matches received packets.
    pub ingress: bool,
    /// Whether any rule matches packets of other addresses than those of the loopback.
    pub beyond_loopback: bool,
}

impl Compiled {
    /// The entries for bank `bank`.
    #[must_use]
    pub fn entries(&self, bank: u32) -> Vec<(TupleKey, u32)> {
        let key = |tuple, mask| TupleKey { tuple, space: TupleKey::space(mask, bank) };
        self.entries.iter().map(|&((tuple, mask), rule)| (key(tuple, mask), rule)).collect()
    }

    /// Makes the rules active from `now_ns`, by `CLOCK_MONOTONIC`, until `end_ns` at the latest.
    /// Call once.
    pub fn start(&mut self, now_ns: u64, end_ns: u64) {
        for rule in &mut self.rules {
            rule.deadline_ns = now_ns.saturating_add(rule.deadline_ns).min(end_ns);
        }
    }

    /// Whether any rule holds packets.
    #[must_use]
    pub const fn needs_hold(&self) -> bool {
        !self.holds.is_empty()
    }

    /// Whether any rule acts on wire packets.
    #[must_use]
    pub fn needs_wire_packets(&self) -> bool {
        self.flags() & RULE_WIRE != 0
    }

    /// The flags of all rules.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.rules.iter().fold(0, |flags, rule| flags | rule.flags)
    }

    /// Makes all rules act on GSO packets as they are.
    pub fn accept_pieces(&mut self) {
        self.rules.iter_mut().for_each(|rule| rule.flags &= !RULE_WIRE);
    }

    /// The number of masks of the search that has most.
    #[must_use]
    pub fn mask_count(&self) -> usize {
        self.set.packets.count.max(self.set.connections.count) as usize
    }

    /// The number of entries.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }
}

/// Compiles `rules` with the current addresses of their peers. Their durations start at
/// [`Compiled::start`].
pub fn compile(rules: &[Rule], addresses: &Addresses, seed: u64) -> Result<Compiled, CompileError> {
    let ports = [
        Ports::of(rules.iter().filter_map(|rule| rule.matching.local_ports.as_ref())),
        Ports::of(rules.iter().filter_map(|rule| rule.matching.remote_ports.as_ref())),
    ];
    let lengths: BTreeSet<u32> =
        rules.iter().filter_map(|rule| rule.matching.longer_than).map(u32::from).collect();
    if lengths.len() > MAX_LENGTHS {
        return Err(CompileError::TooManyLengths(lengths.len()));
    }
    let mut packets = Numbering::default();
    let mut connections = Numbering { first: FIRST_CONNECTION_MASK, ..Numbering::default() };
    let mut entries: HashMap<(Tuple, u32), u32> = HashMap::new();
    let mut combinations = 0;
    for (number, rule) in (0u32..).zip(rules) {
        let connection = rule.clamps_mss().then(|| rule.matching.connection());
        let searches =
            [(&mut packets, Some(&rule.matching)), (&mut connections, connection.as_ref())];
        for (masks, matching) in searches {
            let Some(matching) = matching else { continue };
            for Entry { mask, tuple } in matches(matching, addresses, &ports, &lengths)? {
                // If several rules match exactly the same packets, the first wins.
                entries.entry((tuple, masks.number(mask, number))).or_insert(number);
                combinations += 1;
                if entries.len() > MAX_ENTRIES || combinations > MAX_COMBINATIONS {
                    return Err(CompileError::TooManyEntries);
                }
            }
        }
    }
    let uses_ports = rules
        .iter()
        .any(|rule| rule.matching.local_ports.is_some() || rule.matching.remote_ports.is_some());
    let set = Box::new(RuleSet {
        uses_ports: u32::from(uses_ports),
        uses_lengths: u32::from(!lengths.is_empty()),
        uses_remotes: u32::from(rules.iter().any(|rule| !rule.matching.remotes.is_empty())),
        packets: packets.masks()?,
        connections: connections.masks()?,
    });
    let (holds, tables) = holds(rules)?;
    // The MSS of both sides of a connection is clamped.
    let acts =
        |other| rules.iter().any(|rule| rule.matching.direction != other || rule.clamps_mss());
    Ok(Compiled {
        set,
        classes: uses_ports.then(|| [ports[0].classes(), ports[1].classes()]),
        length_classes: (!lengths.is_empty()).then(|| length_classes(&lengths)),
        entries: entries.into_iter().collect(),
        spec: rules.to_vec(),
        rules: (0..).zip(rules).map(|(n, rule)| decisions(rule, n, seed)).collect(),
        continued: vec![Continued::default(); rules.len()],
        holds,
        tables,
        players: Vec::new(),
        egress: acts(Direction::Ingress),
        ingress: acts(Direction::Egress),
        beyond_loopback: rules.iter().any(|rule| !rule.matching.is_of_loopback(addresses)),
    })
}

/// The masks of a search, numbered by the first rule that uses them.
#[derive(Default)]
struct Numbering {
    /// The number of the first mask.
    first: u32,
    masks: Vec<TupleMask>,
    numbers: HashMap<Tuple, u32>,
}

impl Numbering {
    /// The number of a mask, which a rule uses.
    fn number(&mut self, mask: Tuple, rule: u32) -> u32 {
        *self.numbers.entry(mask).or_insert_with(|| {
            self.masks.push(TupleMask { tuple: mask, first_rule: rule });
            self.first + self.masks.len() as u32 - 1
        })
    }

    /// The masks in search order.
    fn masks(&self) -> Result<Masks, CompileError> {
        let count = self.masks.len();
        let mut masks = Masks { count: count as u32, ..Masks::EMPTY };
        let used = masks.masks.get_mut(..count).ok_or(CompileError::TooManyMasks(count))?;
        used.copy_from_slice(&self.masks);
        Ok(masks)
    }
}

/// The class of each length: the number of limits that it exceeds.
fn length_classes(limits: &BTreeSet<u32>) -> Vec<u8> {
    let class = |length| limits.range(..length).count() as u8;
    (0..LENGTHS as u32).map(class).collect()
}

/// The required values of one combination of significant bits.
struct Entry {
    mask: Tuple,
    tuple: Tuple,
}

/// All combinations that `matching` covers.
fn matches(
    matching: &Matching,
    addresses: &Addresses,
    ports: &[Ports; 2],
    lengths: &BTreeSet<u32>,
) -> Result<Vec<Entry>, CompileError> {
    let mut base = Entry { mask: [0; TUPLE_WORDS], tuple: [0; TUPLE_WORDS] };
    let fields = TUPLE_WORDS - 1;
    if matching.direction != Direction::Both {
        base.mask[fields] |= field::DIRECTION;
    }
    if matching.direction == Direction::Ingress {
        base.tuple[fields] |= field::DIRECTION;
    }
    if let Some(flags) = matching.tcp_flags {
        base.mask[fields] |= u32::from(flags.mask) << field::TCP_FLAGS_SHIFT;
        base.tuple[fields] |= u32::from(flags.set) << field::TCP_FLAGS_SHIFT;
    }
    if matching.data_only {
        base.mask[fields] |= field::HAS_DATA;
        base.tuple[fields] |= field::HAS_DATA;
    }
    let port_sets = [&matching.local_ports, &matching.remote_ports];
    if port_sets.iter().any(|set| set.is_some()) {
        base.mask[fields] |= field::HAS_PORTS;
        base.tuple[fields] |= field::HAS_PORTS;
    }
    let side = |number: usize| match port_sets[number] {
        Some(set) => ports[number].classes_of(set).into_iter().map(Some).collect(),
        None => vec![None],
    };
    let (local, remote) = (side(0), side(1));
    let protocols: Vec<Option<u8>> = match matching.protocols.as_slice() {
        [] => vec![None],
        some => some.iter().map(|protocol| Some(protocol.0)).collect(),
    };
    let remotes: Vec<Option<IpNet>> = match matching.remotes.as_slice() {
        [] => vec![None],
        some => nets(some, addresses)?.into_iter().map(Some).collect(),
    };
    // A length above a limit belongs to any of the classes above it.
    let classes: Vec<u32> = match matching.longer_than {
        Some(limit) => {
            base.mask[fields] |= 0xf << field::LENGTH_SHIFT;
            let least = lengths.range(..=u32::from(limit)).count() as u32;
            (least..=lengths.len() as u32).collect()
        }
        None => vec![0],
    };
    let count = [local.len(), remote.len(), protocols.len(), remotes.len(), classes.len()];
    let count = count.into_iter().fold(1usize, usize::saturating_mul);
    if count > MAX_ENTRIES {
        return Err(CompileError::TooManyEntries);
    }
    let mut entries = Vec::with_capacity(count);
    for &net in &remotes {
        for &protocol in &protocols {
            for &local in &local {
                for &remote in &remote {
                    for class in &classes {
                        let mut entry = base.with(net, protocol, local, remote);
                        entry.tuple[fields] |= class << field::LENGTH_SHIFT;
                        entries.push(entry);
                    }
                }
            }
        }
    }
    Ok(entries)
}

/// The current addresses and prefixes of `remotes`.
fn nets(remotes: &[Remote], addresses: &Addresses) -> Result<Vec<IpNet>, CompileError> {
    let mut nets = Vec::with_capacity(remotes.len());
    for remote in remotes {
        match remote {
            Remote::Net(net) => nets.push(*net),
            Remote::Peer(peer) => {
                let found = addresses.get(peer);
                let found = found.ok_or_else(|| CompileError::Unresolved(peer.clone()))?;
                nets.extend(found.iter().map(|&address| IpNet::from(address)));
            }
        }
    }
    Ok(nets)
}

impl Entry {
    fn with(
        &self,
        net: Option<IpNet>,
        protocol: Option<u8>,
        local: Option<u16>,
        remote: Option<u16>,
    ) -> Self {
        let (mut mask, mut tuple) = (self.mask, self.tuple);
        match net {
            Some(IpNet::V4(net)) => {
                mask[5] |= field::FAMILY;
                mask[0] = u32::from_ne_bytes(net.netmask().octets());
                tuple[0] = u32::from_ne_bytes(net.network().octets());
            }
            Some(IpNet::V6(net)) => {
                mask[5] |= field::FAMILY;
                tuple[5] |= field::FAMILY;
                mask[..4].copy_from_slice(&words(net.netmask().octets()));
                tuple[..4].copy_from_slice(&words(net.network().octets()));
            }
            None => {}
        }
        if let Some(protocol) = protocol {
            mask[5] |= 0xff << field::PROTOCOL_SHIFT;
            tuple[5] |= u32::from(protocol) << field::PROTOCOL_SHIFT;
        }
        if let Some(class) = local {
            mask[4] |= 0xffff_0000;
            tuple[4] |= u32::from(class) << 16;
        }
        if let Some(class) = remote {
            mask[4] |= 0xffff;
            tuple[4] |= u32::from(class);
        }
        Self { mask, tuple }
    }
}

/// An IPv6 address as four words in memory order, as in the packet parser.
pub(super) fn words(octets: [u8; 16]) -> [u32; 4] {
    let (words, _) = octets.as_chunks::<4>();
    [0, 1, 2, 3].map(|number| u32::from_ne_bytes(words[number]))
}

/// The ports of one side, split at the boundaries of all rules' sets. Each piece is a class.
struct Ports {
    /// The first port of each piece, ascending from 0.
    starts: Vec<u32>,
}

impl Ports {
    fn of<'a>(sets: impl Iterator<Item = &'a PortSet>) -> Self {
        let mut starts = BTreeSet::from([0]);
        for range in sets.flat_map(PortSet::ranges) {
            starts.insert(u32::from(*range.start()));
            starts.insert(u32::from(*range.end()) + 1);
        }
        starts.remove(&(PORTS as u32));
        Self { starts: starts.into_iter().collect() }
    }

    /// The classes of `set`, which must be one of the sets that defined the boundaries.
    fn classes_of(&self, set: &PortSet) -> Vec<u16> {
        let piece = |port: u32| self.starts.partition_point(|&start| start < port);
        set.ranges()
            .flat_map(|range| piece(u32::from(*range.start()))..piece(u32::from(*range.end()) + 1))
            .map(|class| class as u16)
            .collect()
    }

    fn classes(&self) -> Box<[u16]> {
        let mut classes = vec![0; PORTS].into_boxed_slice();
        for (class, &start) in self.starts.iter().enumerate() {
            classes[start as usize..].fill(class as u16);
        }
        classes
    }
}

/// The eBPF form of a rule's actions.
fn decisions(rule: &Rule, number: u32, seed: u64) -> rule::Rule {
    let wire = if rule.impairment.acts_on_wire_packets() { RULE_WIRE } else { 0 };
    let remote = if rule.matching.remotes.is_empty() { 0 } else { RULE_REMOTE };
    rule::Rule {
        // A duration until [`Compiled::start`] converts it.
        deadline_ns: rule.lasts.map_or(u64::MAX, HumanDuration::nanoseconds),
        stream: random::stream(seed, number),
        link: number,
        flags: rule.impairment.rule.flags | wire | remote,
        ..rule.impairment.rule
    }
}

/// How each rule holds packets, unless none does, and the delay distributions.
fn holds(rules: &[Rule]) -> Result<(Vec<Hold>, Vec<Box<hold::Table>>), CompileError> {
    if rules.iter().all(|rule| rule.impairment.hold.is_none()) {
        return Ok((Vec::new(), Vec::new()));
    }
    let mut tables: Vec<&Table> = Vec::new();
    let mut holds = Vec::with_capacity(rules.len());
    for rule in rules {
        let mut hold = rule.impairment.hold.unwrap_or_default();
        if let Some(table) = &rule.impairment.table {
            let known = tables.iter().position(|known| *known == table).unwrap_or_else(|| {
                tables.push(table);
                tables.len() - 1
            });
            if tables.len() > MAX_TABLES as usize {
                return Err(CompileError::TooManyTables);
            }
            hold.delay.distribution = 1 + known as u32;
        }
        holds.push(hold);
    }
    Ok((holds, tables.into_iter().map(table).collect()))
}

/// The eBPF form of a distribution, which is too large for the stack.
fn table(values: &Table) -> Box<hold::Table> {
    // SAFETY: it consists of integers, for which zero is valid.
    let mut table = unsafe { Box::<hold::Table>::new_zeroed().assume_init() };
    table.length = values.len() as u32;
    table.values[..values.len()].copy_from_slice(values);
    table
}

#[cfg(test)]
mod tests;

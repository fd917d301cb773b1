//! Packet classification by tuple-space search.
//!
//! Rules with the same combination of significant fields share a [`TupleMask`]. A packet is looked
//! up once per mask in one hash table, independent of the number of rules. Among the matching
//! rules, the first in the user's order wins.

use crate::{
    control::{MAX_MASKS, Masks},
    packet::{Direction, Family, Packet},
    verifier::forget,
};

/// Words of a [`TupleKey`] that describe the packet; the last word identifies the mask.
pub const TUPLE_WORDS: usize = 6;

/// Bit positions of the fields packed into word 5 of a tuple.
pub mod field {
    /// IP protocol number, 8 bits.
    pub const PROTOCOL_SHIFT: u32 = 0;
    /// TCP flags (FIN is bit 0), 8 bits.
    pub const TCP_FLAGS_SHIFT: u32 = 8;
    /// Address family: 0 for IPv4, 1 for IPv6.
    pub const FAMILY: u32 = 1 << 16;
    /// Direction: 0 for egress, 1 for ingress.
    pub const DIRECTION: u32 = 1 << 17;
    /// The packet is a TCP segment with payload.
    pub const HAS_DATA: u32 = 1 << 18;
    /// The ports are known (absent for ICMP and for all fragments except the first).
    pub const HAS_PORTS: u32 = 1 << 19;
    /// Class of the packet's length, 4 bits, see [`crate::control::LengthClasses`].
    pub const LENGTH_SHIFT: u32 = 20;
    /// Number of bits in use.
    pub const BITS: u32 = 24;
}

/// A packet's matchable fields, or the subset selected by a mask.
///
/// Words 0 to 3: remote address as in [`Packet::remote`]. Word 4: local port class in the high
/// half, remote port class in the low half. Word 5: see [`field`].
pub type Tuple = [u32; TUPLE_WORDS];

/// Key of the `ENTRIES` hash map: a masked tuple, then `mask index << 1 | bank`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TupleKey {
    /// The masked tuple.
    pub tuple: Tuple,
    /// The mask and the bank of rules.
    pub space: u32,
}

impl TupleKey {
    /// The key under mask number `mask` of bank `bank`.
    #[inline(always)]
    #[must_use]
    pub const fn space(mask: u32, bank: u32) -> u32 {
        mask << 1 | bank
    }
}

/// A [`TupleKey`] without words 1 to 3 of its tuple, for packets in which they are 0, such as IPv4:
/// key of the `SHORT_ENTRIES` map.
///
/// The kernel hashes three words in less than half the time of seven.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShortKey {
    /// Word 0 of the tuple.
    pub address: u32,
    /// Word 4 of the tuple.
    pub ports: u32,
    /// Word 5 of the tuple, with [`TupleKey::space`] in the unused upper bits.
    pub fields: u32,
}

impl TupleKey {
    /// Whether words 1 to 3 of the tuple are 0, so that the short form is complete.
    #[must_use]
    pub const fn has_short(&self) -> bool {
        is_short(&self.tuple)
    }

    /// The short form.
    #[inline(always)]
    #[must_use]
    pub const fn short(&self) -> ShortKey {
        let [address, _, _, _, ports, fields] = self.tuple;
        ShortKey { address, ports, fields: fields | self.space << field::BITS }
    }
}

impl ShortKey {
    /// A hash of the key, to be reduced to an index into `SLOTS`.
    ///
    /// A multiplication propagates bits upward; folding in between propagates the high ones
    /// downward.
    #[inline(always)]
    #[must_use]
    pub const fn hash(&self) -> u32 {
        let words = self.address as u64 | (self.ports as u64) << 32;
        let mut hash = words ^ (self.fields as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash ^= hash >> 32;
        (hash.wrapping_mul(0x94d0_49bb_1331_11eb) >> 32) as u32
    }

    /// The bank of rules, see [`TupleKey::space`].
    #[must_use]
    pub const fn bank(&self) -> u32 {
        self.fields >> field::BITS & 1
    }
}

/// An element of the `SLOTS` array: a short key and its rule.
///
/// Each key has exactly one possible slot. If several keys share a slot, it contains one of them
/// and the others are only in `SHORT_ENTRIES`. Most lookups therefore need no call of the kernel's
/// hash table, and lookups of unknown keys almost never do.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The key.
    pub key: ShortKey,
    /// 0 if the slot is empty, otherwise the rule's number + 1, combined with [`Slot::SHARED`].
    pub state: u32,
}

/// The result of looking up a key in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No rule has the key.
    Nothing,
    /// This rule has the key.
    Rule(u32),
    /// The key may be in `SHORT_ENTRIES`.
    Elsewhere,
}

impl Slot {
    /// [`Slot::state`]: other keys have the same slot.
    pub const SHARED: u32 = 1 << 31;

    /// A slot for a rule.
    #[must_use]
    pub const fn new(key: ShortKey, rule: u32) -> Self {
        Self { key, state: rule + 1 }
    }

    /// Looks up the key in this slot, which must be the key's.
    #[inline(always)]
    #[must_use]
    pub const fn find(&self, key: &ShortKey) -> Found {
        let differs = self.key.address ^ key.address
            | self.key.ports ^ key.ports
            | self.key.fields ^ key.fields;
        if self.state == 0 {
            Found::Nothing
        } else if differs == 0 {
            Found::Rule((self.state & !Self::SHARED) - 1)
        } else if self.state & Self::SHARED == 0 {
            Found::Nothing
        } else {
            Found::Elsewhere
        }
    }
}

/// Whether words 1 to 3 of the tuple are 0, and therefore 0 under any mask.
#[inline(always)]
#[must_use]
pub const fn is_short(tuple: &Tuple) -> bool {
    tuple[1] | tuple[2] | tuple[3] == 0
}

/// The significant bits of a tuple for a group of rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleMask {
    /// The significant bits.
    pub tuple: Tuple,
    /// Number of the first rule that uses this mask. Masks are sorted by it, so the search can stop
    /// at a rule that precedes all remaining ones.
    pub first_rule: u32,
}

impl TupleMask {
    /// An unused slot.
    pub const EMPTY: Self = Self { tuple: [0; TUPLE_WORDS], first_rule: u32::MAX };
}

/// The packet's tuple, given its port classes (0 if no rule matches ports) and its length class.
#[inline(always)]
#[must_use]
pub fn tuple(
    packet: &Packet,
    direction: Direction,
    local_class: u16,
    remote_class: u16,
    length_class: u8,
) -> Tuple {
    let mut fields = u32::from(length_class) << field::LENGTH_SHIFT
        | u32::from(packet.protocol) << field::PROTOCOL_SHIFT
        | u32::from(packet.tcp_flags) << field::TCP_FLAGS_SHIFT;
    if packet.family == Family::V6 {
        fields |= field::FAMILY;
    }
    if direction == Direction::Ingress {
        fields |= field::DIRECTION;
    }
    if packet.has_data {
        fields |= field::HAS_DATA;
    }
    if packet.has_ports {
        fields |= field::HAS_PORTS;
    }
    let remote = packet.remote(direction);
    [
        remote[0],
        remote[1],
        remote[2],
        remote[3],
        u32::from(local_class) << 16 | u32::from(remote_class),
        fields,
    ]
}

/// `tuple` under `mask`.
#[inline(always)]
#[must_use]
pub fn masked(tuple: &Tuple, mask: &Tuple) -> Tuple {
    [
        tuple[0] & mask[0],
        tuple[1] & mask[1],
        tuple[2] & mask[2],
        tuple[3] & mask[3],
        tuple[4] & mask[4],
        tuple[5] & mask[5],
    ]
}

/// The number of the first rule with one of `masks`, of which the first has the number `first_mask`,
/// in bank `bank` that matches `tuple`; `look_up` searches the entries. There are at most `most`
/// masks, which bounds the loop for the verifier.
#[inline(always)]
#[must_use]
pub fn first_rule(
    tuple: &Tuple,
    masks: &Masks,
    first_mask: u32,
    bank: u32,
    most: u32,
    look_up: impl Fn(&TupleKey) -> Option<u32>,
) -> Option<u32> {
    let mut first = u32::MAX;
    for number in 0..MAX_MASKS {
        if number as u32 >= most || number as u32 >= masks.count {
            break;
        }
        let mask = &masks.masks[number];
        if mask.first_rule >= first {
            break;
        }
        let key = TupleKey {
            tuple: masked(tuple, &mask.tuple),
            space: TupleKey::space(first_mask + number as u32, bank),
        };
        if let Some(found) = look_up(&key)
            && found < first
        {
            // The verifier would otherwise track a smaller bound in each iteration.
            first = forget(found, tuple[0]);
        }
    }
    if first == u32::MAX { None } else { Some(first) }
}

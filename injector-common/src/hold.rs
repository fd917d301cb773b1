//! Types shared by both sides for packets held on injector's hold device.
//!
//! A held packet is redirected to the hold device with an extra VLAN tag. Its 16 bits are an index
//! into the slots of packets held in userspace; else [`ROUTE_BITS`] of them are an index into the
//! routes, and the rest is the [`check`].

use crate::{
    model::{
        delay::{Delay, MAX_TABLE, Memory, Tables},
        random,
        rate::Rate,
    },
    packet::Packet,
};

/// Protocol of the tag, which never leaves the host.
pub const TAG_PROTOCOL: u16 = 0x8100;

/// Number of slots that a tag can distinguish.
pub const TAGS: u32 = 1 << 16;

/// Number of bits of a tag that are the index of a route.
pub const ROUTE_BITS: u32 = 12;

/// Number of routes that a tag can distinguish.
pub const ROUTES: u32 = 1 << ROUTE_BITS;

/// Maximum number of distribution tables of a rule set.
pub const MAX_TABLES: u32 = 8;

/// Number of slots for the release times of flows, a power of 2, see [`flow_slot`].
pub const FLOW_SLOTS: u32 = 1 << 16;

/// How a rule holds packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// The delay.
    pub delay: Delay,
    /// The rate limit.
    pub rate: Rate,
    /// Where the rule's delay histogram begins: egress first, then ingress.
    pub cells: u32,
    /// The resolution of that histogram, see [`crate::histogram`].
    pub resolution: u32,
}

/// Mutable state of a rule that holds packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldState {
    /// When the link becomes idle, by [`crate::packet::Direction`], see [`Rate::transmit`];
    /// `now_ns` is `CLOCK_MONOTONIC`.
    pub free_ns: [u64; 2],
    /// A [`Memory`].
    pub memory: u64,
    /// The latest release time so far, by [`crate::packet::Direction`], see
    /// [`Delay::keeps_order`]. Does not include packets ordered by flow.
    pub last_ns: [u64; 2],
    /// The latest release time of packets ordered by flow, see [`Delay::orders_flows`].
    pub last_of_flows_ns: [u64; 2],
    /// A number that no earlier queue had: distinguishes the flows of queues, see [`flow_slot`].
    pub queue: u64,
}

/// Which packets share a queue of `sch_fq`, which releases none of a queue before the one that was
/// first when it last looked, whatever is due earlier by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// None: the packet may overtake any other. The number is another one for each packet.
    Packet(u32),
    /// Those of a flow, which keep their order: its hash, and the number of [`HoldState::queue`].
    Flow(u32, u32),
    /// Those of a link, which keep their order: a number for each queue and direction.
    Link(u32),
}

impl Lane {
    /// The number of the queue, of 16 bits.
    ///
    /// The numbers of packets start anew after 32,768, those of flows and links after 16,384. A packet
    /// that meets another in its queue by this may be released as late as that one.
    #[inline(always)]
    #[must_use]
    pub const fn queue(self) -> u32 {
        match self {
            Self::Packet(number) => number & 0x7fff,
            Self::Flow(hash, queue) => {
                let hash = (hash ^ queue).wrapping_mul(0x9e37_79b1);
                0x8000 | hash >> 18
            }
            Self::Link(link) => 0xc000 | link & 0x3fff,
        }
    }
}

/// How late `sch_fq` may release a packet without that one of another [`Lane`] overtakes it: a lane in
/// which nothing waited comes first.
const LANE_CHANGE_NS: u64 = 2_000_000;

/// The earliest release time behind a packet of another [`Lane`] that is released at `ahead_ns`.
#[inline(always)]
#[must_use]
pub const fn after_other_lane(ahead_ns: u64) -> u64 {
    if ahead_ns == 0 { 0 } else { ahead_ns + LANE_CHANGE_NS }
}

/// Four bits by which words that were carried in a packet's control block are recognized.
#[inline(always)]
#[must_use]
pub const fn check(words: [u32; 2]) -> u32 {
    let sum = words[0] ^ words[1].rotate_left(7) ^ 0xa5c3_6b9d;
    let sum = sum ^ sum >> 16;
    let sum = sum ^ sum >> 8;
    (sum ^ sum >> 4) & 0xf
}

/// When a packet that is due at `due_ns` is released behind packets with the latest release time
/// `ahead_ns`.
#[inline(always)]
#[must_use]
pub const fn in_order(due_ns: u64, ahead_ns: u64) -> u64 {
    if ahead_ns > due_ns { ahead_ns } else { due_ns }
}

/// The slot with the latest release time of a packet's flow in a queue: its addresses and protocol,
/// and its ports if it has any.
///
/// Flows that share a slot by chance keep their order among each other as well.
#[inline(always)]
#[must_use]
pub const fn flow_slot(packet: &Packet, queue: u64) -> u32 {
    const fn mix(hash: u64, word: u64) -> u64 {
        let hash = (hash ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash ^ (hash >> 32)
    }
    const fn pair(high: u32, low: u32) -> u64 {
        (high as u64) << 32 | low as u64
    }

    let Packet { source, destination, .. } = packet;
    let ports = (packet.source_port as u32) << 16 | packet.destination_port as u32;
    let mut hash = mix(queue, pair(ports, packet.protocol as u32));
    hash = mix(hash, pair(source[0], source[1]));
    hash = mix(hash, pair(source[2], source[3]));
    hash = mix(hash, pair(destination[0], destination[1]));
    hash = mix(hash, pair(destination[2], destination[3]));
    (hash.wrapping_mul(0x94d0_49bb_1331_11eb) >> 32) as u32 & (FLOW_SLOTS - 1)
}

/// Packet metadata: fields of `struct sk_buff`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Metadata {
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->priority`.
    pub priority: u32,
    /// `skb->tc_index`.
    pub tc_index: u32,
    /// `skb->queue_mapping`.
    pub queue: u32,
    /// `skb->hash`.
    pub hash: u32,
}

/// The route of a held packet and its metadata.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Route {
    /// Index of the packet's interface.
    pub interface: u32,
    /// The packet's [`crate::packet::Direction`].
    pub direction: u32,
    /// Non-zero if the packet is recreated and `metadata` must be restored.
    pub restores: u32,
    /// The packet's metadata.
    pub metadata: Metadata,
}

/// Data about a packet that userspace holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The release time in `CLOCK_MONOTONIC` nanoseconds.
    pub release_ns: u64,
    /// The route afterwards.
    pub route: Route,
}

/// A distribution table, see [`Delay::distribution`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Number of values in use.
    pub length: u32,
    /// The values, in units of 2^-13 of the jitter.
    pub values: [i32; MAX_TABLE],
}

impl Table {
    /// The value at the fraction `random` / 2^32 of the table.
    #[inline(always)]
    #[must_use]
    pub fn value(&self, random: u32) -> i32 {
        let index = (u64::from(random) * u64::from(self.length)) >> 32;
        // The verifier requires a visible bound, and a power of 2 is the cheapest.
        self.values[index as usize & (MAX_TABLE - 1)]
    }
}

/// How long the `index`-th packet of a rule with this random stream is held. `copy` is 1 for a
/// packet's duplicate, else 0. `None` if it is not held.
#[inline(always)]
#[must_use]
pub fn delay(
    delay: &Delay,
    stream: u64,
    index: u64,
    copy: u64,
    memory: Memory,
    tables: &impl Tables,
) -> (Option<u64>, Memory) {
    /// Separates this stream from that of the other decisions.
    const SALT: u64 = 0x6465_6c61_7921_0000;

    let random = if delay.is_random() {
        random::draw(stream ^ SALT, index.wrapping_mul(2).wrapping_add(copy))
    } else {
        0
    };
    delay.step(memory, random, tables)
}

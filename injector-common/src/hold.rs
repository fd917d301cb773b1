//! Types shared by both sides for packets held on injector's hold device.
//!
//! A held packet is redirected to the hold device with an extra VLAN tag. Its 16 bits are an index
//! into the routes or, for packets held in userspace, into the slots.

use crate::model::{
    delay::{Delay, MAX_TABLE, Memory, Tables},
    random,
    rate::Rate,
};

/// Protocol of the tag, which never leaves the host.
pub const TAG_PROTOCOL: u16 = 0x8100;

/// Number of routes or slots that a tag can distinguish.
pub const TAGS: u32 = 1 << 16;

/// Maximum number of distribution tables of a rule set.
pub const MAX_TABLES: u32 = 8;

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
    /// [`Delay::keeps_order`].
    pub last_ns: [u64; 2],
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

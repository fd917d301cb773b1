//! What is shared about packets that are held back, until their time, by a device of ours.
//!
//! A held packet is redirected to the hold device with a VLAN tag on top, whose 16 bits say where it goes
//! afterwards: an index into the routes, or on its way to userspace into the slots.

use crate::model::{
    delay::{Delay, MAX_TABLE, Memory, Tables},
    random,
    rate::Rate,
};

/// The protocol of the tag. It never leaves the host.
pub const TAG_PROTOCOL: u16 = 0x8100;

/// How many routes or slots a tag can tell apart.
pub const TAGS: u32 = 1 << 16;

/// Most different distribution tables of one rule set.
pub const MAX_TABLES: u32 = 8;

/// What a rule that holds packets does to them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// For how long.
    pub delay: Delay,
    /// At which rate they leave.
    pub rate: Rate,
}

/// What such a rule remembers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldState {
    /// When the link is free, by [`crate::packet::Direction`], see [`Rate::transmit`]; `now_ns` is `CLOCK_MONOTONIC`.
    pub free_ns: [u64; 2],
    /// A [`Memory`].
    pub memory: u64,
}

/// What a packet bears besides its bytes: fields of `struct sk_buff`.
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

/// Where a held packet goes, and what it was.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Route {
    /// Index of the interface that it was on.
    pub interface: u32,
    /// The [`crate::packet::Direction`] that it went in.
    pub direction: u32,
    /// Non-zero if the packet is made anew and so must be given `metadata`.
    pub restores: u32,
    /// What it bore.
    pub metadata: Metadata,
}

/// What userspace must know about a packet that it is to hold.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// When to let it go, in `CLOCK_MONOTONIC` nanoseconds.
    pub release_ns: u64,
    /// Where to.
    pub route: Route,
}

/// A distribution table, see [`Delay::distribution`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// How many values are in use.
    pub length: u32,
    /// The values, in units of 2^-13 of the jitter.
    pub values: [i32; MAX_TABLE],
}

impl Table {
    /// The value at `random` of 2^32 of the way through it.
    #[inline(always)]
    #[must_use]
    pub fn value(&self, random: u32) -> i32 {
        let index = (u64::from(random) * u64::from(self.length)) >> 32;
        // The verifier wants a bound that it can see, and a power of 2 is the cheapest.
        self.values[index as usize & (MAX_TABLE - 1)]
    }
}

/// Decides for how long the `index`-th packet of a rule with this random stream is held; `copy` is 1 for the
/// duplicate of a packet, else 0. `None` if it is let go at once.
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
    /// Makes it another stream than that of the other decisions.
    const SALT: u64 = 0x6465_6c61_7921_0000;

    let random = if delay.is_random() {
        random::draw(stream ^ SALT, index.wrapping_mul(2).wrapping_add(copy))
    } else {
        0
    };
    delay.step(memory, random, tables)
}

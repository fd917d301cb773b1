//! A rule as the kernel side sees it: what to do to a packet that it matches.

use crate::model::{chance::Chance, loss::Loss};

/// Most rules that one rule set may hold.
pub const MAX_RULES: usize = 65_536;

/// How a packet is corrupted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CorruptMode {
    /// A bit flips and the checksum is left wrong, so that the receiver's kernel drops the packet.
    #[default]
    Wire = 0,
    /// A payload bit flips and the checksum is made right, so that the application sees it.
    Silent = 1,
}

/// Which packets are corrupted, and how.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corrupt {
    /// Which.
    pub chance: Chance,
    /// A [`CorruptMode`].
    pub mode: u32,
}

/// What to do to the packets that a rule matches: a field for each fault that takes more than a flag. Those that hold
/// packets have theirs in [`crate::hold::Hold`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rule {
    /// `CLOCK_MONOTONIC` nanoseconds after which the rule does nothing; `u64::MAX` for never.
    pub deadline_ns: u64,
    /// Start of the rule's random stream, made from the seed and the rule's number.
    pub stream: u64,
    /// Which packets are lost.
    pub loss: Loss,
    /// Which packets are corrupted.
    pub corrupt: Corrupt,
    /// Which packets are doubled.
    pub duplicate: Chance,
    /// A combination of the `RULE_*` flags.
    pub flags: u32,
}

/// [`Rule::flags`]: reset the matching TCP connections.
pub const RULE_RESET: u32 = 1 << 0;
/// [`Rule::flags`]: reset on SYN as well, so that connecting is refused.
pub const RULE_RESET_SYN: u32 = 1 << 1;
/// [`Rule::flags`]: decisions depend on earlier ones, so that they must be made one after another.
pub const RULE_STATEFUL: u32 = 1 << 2;
/// [`Rule::flags`]: the rule corrupts or duplicates.
pub const RULE_ALTERS: u32 = 1 << 3;
/// [`Rule::flags`]: the rule delays packets or limits their rate, see [`crate::hold::Hold`].
pub const RULE_HOLDS: u32 = 1 << 4;
/// [`Rule::flags`]: packets whose transport understands ECN are marked (RFC 3168) instead of being lost.
pub const RULE_ECN: u32 = 1 << 5;

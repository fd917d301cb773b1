//! The eBPF form of a rule: the actions on matching packets.

use crate::model::{chance::Chance, loss::Loss};

/// Maximum number of rules in a rule set.
pub const MAX_RULES: usize = 65_536;

/// How a packet is corrupted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CorruptMode {
    /// Flips a bit without updating the checksum, so the receiver's kernel drops the packet.
    #[default]
    Wire = 0,
    /// Flips a payload bit and updates the checksum, so the application receives the corrupted
    /// data.
    Silent = 1,
}

/// The selection and the mode of corruption.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corrupt {
    /// Selects the packets.
    pub chance: Chance,
    /// A [`CorruptMode`].
    pub mode: u32,
}

/// The actions on matching packets: a field for each fault that requires more than a flag. Rules
/// that hold packets have additional data in [`crate::hold::Hold`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rule {
    /// `CLOCK_MONOTONIC` nanoseconds after which the rule is inactive; `u64::MAX` for never.
    pub deadline_ns: u64,
    /// Start of the rule's random stream, derived from the seed and the rule's number.
    pub stream: u64,
    /// Selects lost packets.
    pub loss: Loss,
    /// Selects corrupted packets.
    pub corrupt: Corrupt,
    /// Selects duplicated packets.
    pub duplicate: Chance,
    /// A combination of the `RULE_*` flags.
    pub flags: u32,
    /// Index of the rule's mutable state. A rule that replaces another one on the same link has the
    /// same index, so that the state survives the change.
    pub link: u32,
    /// The MTU of answers that packets are too big for the path.
    pub mtu: u16,
    /// The maximum length of IP packets for which the MSS of new TCP connections is clamped.
    pub clamp_mtu: u16,
    /// 0, or 1 + the index of the rule's [`crate::model::trace::Player`].
    pub trace: u32,
    /// Explicit padding to a multiple of 8 bytes.
    pub reserved: u32,
}

/// [`Rule::flags`]: reset the matching TCP connections.
pub const RULE_RESET: u32 = 1 << 0;
/// [`Rule::flags`]: reset on SYN too, so that connections are refused.
pub const RULE_RESET_SYN: u32 = 1 << 1;
/// [`Rule::flags`]: decisions depend on earlier ones, so they must be made sequentially.
pub const RULE_STATEFUL: u32 = 1 << 2;
/// [`Rule::flags`]: the rule corrupts packets.
pub const RULE_CORRUPTS: u32 = 1 << 3;
/// [`Rule::flags`]: the rule delays packets or limits their rate, see [`crate::hold::Hold`].
pub const RULE_HOLDS: u32 = 1 << 4;
/// [`Rule::flags`]: ECN-capable packets are marked (RFC 3168) instead of dropped.
pub const RULE_ECN: u32 = 1 << 5;
/// [`Rule::flags`]: the rule acts on wire packets, so GSO packets are segmented first.
pub const RULE_WIRE: u32 = 1 << 6;
/// [`Rule::flags`]: the rule duplicates packets.
pub const RULE_DUPLICATES: u32 = 1 << 7;
/// [`Rule::flags`]: packets are answered as too big for the path, see [`Rule::mtu`].
pub const RULE_TOO_BIG: u32 = 1 << 8;
/// [`Rule::flags`]: the MSS of new TCP connections is clamped, see [`Rule::clamp_mtu`].
pub const RULE_CLAMPS: u32 = 1 << 9;
/// [`Rule::flags`]: the rule matches peers, which may have another address than the packet (NAT).
pub const RULE_REMOTE: u32 = 1 << 10;
/// All flags.
pub const RULE_ALL: u32 = u32::MAX;

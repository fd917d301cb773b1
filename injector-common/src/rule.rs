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
    /// If not 0, packets are answered as too big for the path, and this is the MTU of the answer.
    pub mtu: u16,
    /// If not 0, the MSS of new TCP connections is clamped, so that IP packets have at most this
    /// length.
    pub clamp_mtu: u16,
    /// 0, or 1 + the index of the rule's [`crate::model::trace::Player`].
    pub trace: u32,
    /// Explicit padding to a multiple of 8 bytes.
    pub reserved: u32,
}

/// The faults that rules may have: the verifier leaves out the code of others, see [`Rule::faults`].
pub mod fault {
    /// Reset of TCP connections.
    pub const RESET: u32 = 1 << 0;
    /// ICMP answers that a packet is too big.
    pub const TOO_BIG: u32 = 1 << 1;
    /// A clamped MSS.
    pub const CLAMP: u32 = 1 << 2;
    /// Duplication.
    pub const DUPLICATE: u32 = 1 << 3;
    /// Corruption.
    pub const CORRUPT: u32 = 1 << 4;
    /// ECN marks.
    pub const ECN: u32 = 1 << 5;
    /// Decisions that depend on earlier ones.
    pub const STATEFUL: u32 = 1 << 6;
    /// Faults of wire packets.
    pub const WIRE: u32 = 1 << 7;
    /// A match of peers. Not a fault, but code that others do not need.
    pub const REMOTE: u32 = 1 << 8;
    /// All of them.
    pub const ALL: u32 = u32::MAX;
}

impl Rule {
    /// The [`fault`]s of the rule.
    #[must_use]
    pub fn faults(&self) -> u32 {
        let has = |flag| self.flags & flag != 0;
        [
            (fault::RESET, has(RULE_RESET)),
            (fault::TOO_BIG, self.mtu != 0),
            (fault::CLAMP, self.clamp_mtu != 0),
            (fault::DUPLICATE, self.duplicate != Chance::NEVER),
            (fault::CORRUPT, self.corrupt.chance != Chance::NEVER),
            (fault::ECN, has(RULE_ECN)),
            (fault::STATEFUL, has(RULE_STATEFUL)),
            (fault::WIRE, has(RULE_WIRE)),
        ]
        .iter()
        .fold(0, |faults, &(fault, has)| if has { faults | fault } else { faults })
    }
}

/// [`Rule::flags`]: reset the matching TCP connections.
pub const RULE_RESET: u32 = 1 << 0;
/// [`Rule::flags`]: reset on SYN too, so that connections are refused.
pub const RULE_RESET_SYN: u32 = 1 << 1;
/// [`Rule::flags`]: decisions depend on earlier ones, so they must be made sequentially.
pub const RULE_STATEFUL: u32 = 1 << 2;
/// [`Rule::flags`]: the rule corrupts or duplicates.
pub const RULE_ALTERS: u32 = 1 << 3;
/// [`Rule::flags`]: the rule delays packets or limits their rate, see [`crate::hold::Hold`].
pub const RULE_HOLDS: u32 = 1 << 4;
/// [`Rule::flags`]: ECN-capable packets are marked (RFC 3168) instead of dropped.
pub const RULE_ECN: u32 = 1 << 5;
/// [`Rule::flags`]: the rule acts on wire packets, so GSO packets are segmented first.
pub const RULE_WIRE: u32 = 1 << 6;

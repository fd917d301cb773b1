//! Control of the running programs: the active rule set, its lease and its target.

use crate::classify::TupleMask;

/// Maximum number of mask combinations in a rule set; each costs one hash lookup per packet.
pub const MAX_MASKS: usize = 32;

/// The number of the first mask in [`RuleSet::connections`].
pub const FIRST_CONNECTION_MASK: u32 = MAX_MASKS as u32;

/// Maximum number of distinct length limits in a rule set.
pub const MAX_LENGTHS: usize = 15;

/// Whose packets match: a constant of the running programs, so that the verifier removes the code of
/// the others.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScopeKind {
    /// All packets on the attached interfaces.
    #[default]
    All = 0,
    /// Those of the cgroup in [`Control`].
    Cgroup = 1,
    /// Those of tagged sockets.
    Processes = 2,
    /// Those of the cgroup in [`Control`] and those of tagged sockets.
    CgroupAndTags = 3,
}

/// Faults exclude TCP port 22 and connections that are listed.
pub const PROTECT_OPERATOR: u32 = 1;

/// Faults exclude traffic with peers that are listed.
pub const PROTECT_NODE: u32 = 2;

/// The largest number of processes that are tracked at once.
pub const MAX_MEMBERS: u32 = 16_384;

/// The one element of the `CONTROL` map, rewritten at every lease renewal and rule change.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// `CLOCK_MONOTONIC` nanoseconds after which no rule is active, unless injector renews the
    /// lease. Faults of a stopped or dead injector end by themselves.
    pub lease_deadline_ns: u64,
    /// ID of the target cgroup, if the target is one. It changes together with the level when a
    /// container restarts in another cgroup. A packet read with the old ID and the new level, or
    /// vice versa, belongs to no target.
    pub cgroup_id: u64,
    /// Depth of the target cgroup below the hierarchy's root.
    pub cgroup_level: u32,
    /// The active bank: 0 or 1. A change fills the other bank, then switches.
    pub bank: u32,
}

/// One of the two banks of the `RULE_SETS` map: the classification data of the bank's rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// Non-zero if a rule matches ports, which requires the port-class tables.
    pub uses_ports: u32,
    /// Non-zero if a rule matches lengths, which requires the length-class table.
    pub uses_lengths: u32,
    /// Non-zero if a rule matches peers, which may have another address than the packet (NAT).
    pub uses_remotes: u32,
    /// The masks of the packets that rules match.
    pub packets: Masks,
    /// The masks of the connections whose MSS rules clamp, see [`crate::rule::Rule::clamp_mtu`].
    pub connections: Masks,
}

/// The masks of a search.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masks {
    /// Number of `masks` in use, at most [`MAX_MASKS`].
    pub count: u32,
    /// The masks, in ascending order of [`TupleMask::first_rule`].
    pub masks: [TupleMask; MAX_MASKS],
}

impl Masks {
    /// No masks.
    pub const EMPTY: Self = Self { count: 0, masks: [TupleMask::EMPTY; MAX_MASKS] };
}

impl RuleSet {
    /// A rule set without rules.
    pub const EMPTY: Self = Self {
        uses_ports: 0,
        uses_lengths: 0,
        uses_remotes: 0,
        packets: Masks::EMPTY,
        connections: Masks::EMPTY,
    };
}

/// Number of ports, and of entries in a [`PortClasses`] table.
pub const PORTS: usize = 1 << 16;

/// Maps ports in host byte order to classes, for one side (local or remote). Ports that no rule
/// distinguishes share a class, so a range or an exclusion costs one table lookup instead of many
/// masks.
pub type PortClasses = [u16; PORTS];

/// Number of entries in a [`LengthClasses`] table.
pub const LENGTHS: usize = 1 << 16;

/// Maps the lengths of IP packets to classes: the number of limits that the length exceeds. The
/// last entry also stands for all greater lengths.
pub type LengthClasses = [u8; LENGTHS];

/// The entry of a length in a [`LengthClasses`] table.
#[inline(always)]
#[must_use]
pub const fn length_index(length: u32) -> usize {
    if length < LENGTHS as u32 { length as usize } else { LENGTHS - 1 }
}

/// The endpoints of a connection. Addresses as in [`crate::packet::Packet`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Connection {
    /// This host's address.
    pub local: [u32; 4],
    /// The peer's address.
    pub remote: [u32; 4],
    /// This host's port, in host byte order.
    pub local_port: u16,
    /// The peer's port, in host byte order.
    pub remote_port: u16,
}

impl Connection {
    /// Stands for all traffic with a peer.
    #[must_use]
    pub const fn with(remote: [u32; 4]) -> Self {
        Self { local: [0; 4], remote, local_port: 0, remote_port: 0 }
    }
}

/// A connection whose packets have other addresses or ports than its socket (NAT).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Translated {
    /// The endpoints as in its packets.
    pub connection: Connection,
    /// IP protocol number.
    pub protocol: u32,
}

/// The endpoints of an IP flow for which the kernel has no socket lookup (ICMP echo and all
/// protocols except TCP and UDP). Used to recognize answers to packets of a cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flow {
    /// This host's address.
    pub local: [u32; 4],
    /// The peer's address.
    pub remote: [u32; 4],
    /// IP protocol number.
    pub protocol: u16,
    /// ICMP echo identifier, 0 for other protocols.
    pub echo_id: u16,
}

/// The fields shared by all fragments of an IP packet (RFC 791, RFC 8200).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub source: [u32; 4],
    /// Destination address.
    pub destination: [u32; 4],
    /// The identification field.
    pub id: u32,
    /// IP protocol number, 0 for IPv6.
    pub protocol: u32,
}

/// The fields that only the first fragment contains.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentPorts {
    /// Source port, host byte order.
    pub source_port: u16,
    /// Destination port, host byte order.
    pub destination_port: u16,
    /// ICMP echo identifier.
    pub echo_id: u16,
    /// Non-zero if the protocol has ports.
    pub has_ports: u16,
}

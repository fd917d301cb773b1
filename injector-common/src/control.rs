//! What userspace tells the running programs: which rule set is active, until when, for whom.

use crate::classify::TupleMask;

/// Most distinct mask combinations that one rule set may need; each costs one hash lookup a packet.
pub const MAX_MASKS: usize = 32;

/// Most different lengths beyond which the rules of one set match.
pub const MAX_LENGTHS: usize = 15;

/// The one element of the `CONTROL` map, rewritten at every lease renewal and rule change.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// `CLOCK_MONOTONIC` nanoseconds after which no rule acts any more, unless the injector renews it.
    /// A stopped or dead injector therefore stops faulting by itself.
    pub lease_deadline_ns: u64,
    /// Id of the target cgroup, if packets of one are meant. Together with the level it changes when a container comes
    /// again in another cgroup; a packet that meets the one of before with the other of now is nobody's.
    pub cgroup_id: u64,
    /// Depth of the target cgroup below the hierarchy's root.
    pub cgroup_level: u32,
    /// Which of the two rule-set banks is active: 0 or 1. A change fills the other bank, then flips this.
    pub bank: u32,
}

/// One of the two banks of the `RULE_SETS` map: how to classify under the rules of that bank.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// How many of `masks` are in use, at most [`MAX_MASKS`].
    pub mask_count: u32,
    /// Non-zero if a rule matches on ports, so that the port-class tables must be consulted.
    pub uses_ports: u32,
    /// Non-zero if a rule matches on lengths.
    pub uses_lengths: u32,
    /// The lengths beyond which rules match; the rest are `u32::MAX`.
    pub lengths: [u32; MAX_LENGTHS],
    /// The masks, by ascending [`TupleMask::first_rule`].
    pub masks: [TupleMask; MAX_MASKS],
}

impl RuleSet {
    /// A rule set that matches nothing.
    pub const EMPTY: Self = Self {
        mask_count: 0,
        uses_ports: 0,
        uses_lengths: 0,
        lengths: [u32::MAX; MAX_LENGTHS],
        masks: [TupleMask::EMPTY; MAX_MASKS],
    };

    /// The class of a packet's length: how many of [`Self::lengths`] it exceeds.
    #[inline(always)]
    #[must_use]
    pub fn length_class(&self, length: u32) -> u32 {
        if self.uses_lengths == 0 {
            return 0;
        }
        let mut class = 0;
        for limit in self.lengths {
            // The sign of the difference: without branches, which the verifier would follow in all combinations.
            class += (u64::from(limit).wrapping_sub(length.into()) >> 63) as u32;
        }
        class
    }
}

/// How many distinct ports there are, hence entries of a [`PortClasses`] table.
pub const PORTS: usize = 1 << 16;

/// Port in host byte order → class, for one side (local or remote). Ports that no rule tells apart share
/// a class, so that a range or an exclusion costs one table look-up instead of many masks.
pub type PortClasses = [u16; PORTS];

/// A TCP connection that `--protect` leaves alone. Addresses as in [`crate::packet::Packet`].
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

/// The parties of an IP conversation for which the kernel has no socket look-up (ICMP echo and all
/// but TCP and UDP), kept so that answers to a cgroup's packets can be told from others.
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

/// What all fragments of one IP packet have in common (RFC 791, RFC 8200).
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

/// What the first fragment tells about the later ones.
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

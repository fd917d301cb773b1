//! Counts of packets that no rule matched, from which userspace tells why.

/// Maximum number of [`Kind`]s that are counted.
pub const MAX_KINDS: u32 = 1024;

/// Properties of a [`Kind`].
pub mod property {
    /// Received.
    pub const INGRESS: u8 = 1 << 0;
    /// IPv6.
    pub const V6: u8 = 1 << 1;
    /// A TCP segment with payload.
    pub const HAS_DATA: u8 = 1 << 2;
    /// The ports are known.
    pub const HAS_PORTS: u8 = 1 << 3;
}

/// A kind of unmatched packets of the target: those with the same values of everything that rules
/// match, except the length.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Kind {
    /// The peer's address, as in [`crate::packet::Packet`].
    pub remote: [u32; 4],
    /// The local port, in host byte order.
    pub local_port: u16,
    /// The peer's port, in host byte order.
    pub remote_port: u16,
    /// The IP protocol number.
    pub protocol: u8,
    /// The TCP flags.
    pub tcp_flags: u8,
    /// A combination of [`property`].
    pub properties: u8,
    /// Explicit padding.
    pub reserved: u8,
}

/// The packets of a [`Kind`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Their number.
    pub packets: u64,
    /// The length of the longest on the wire, IP header included.
    pub longest: u32,
    /// Explicit padding.
    pub reserved: u32,
}

//! What a packet is: addresses, ports and what else a rule can match on.

pub mod parse;

/// Which way a packet goes, seen from the faulted host. Indexes counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Sent by this host.
    Egress = 0,
    /// Received by this host.
    Ingress = 1,
}

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

/// TCP flag bits, as in byte 13 of the TCP header (RFC 9293).
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment field is significant.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is significant.
    pub const URG: u8 = 0x20;
    /// ECN echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;
}

/// The first two bytes of an ICMP message (RFC 792, RFC 4443).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IcmpKind {
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
}

/// What the parser found. Offsets count from the first byte of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address in network byte order; IPv4 uses the first word, the others are 0.
    pub source: [u32; 4],
    /// Destination address in network byte order, likewise.
    pub destination: [u32; 4],
    /// IP version.
    pub family: Family,
    /// The upper-layer protocol, after any IPv6 extension headers.
    pub protocol: u8,
    /// TCP flags, 0 for other protocols.
    pub tcp_flags: u8,
    /// Whether the ports are known.
    pub has_ports: bool,
    /// Whether this is a TCP segment with payload.
    pub has_data: bool,
    /// Whether this is a fragment other than the first, so that no upper-layer header is in it.
    pub later_fragment: bool,
    /// Whether this is any fragment, the first included.
    pub fragment: bool,
    /// The identification that fragments of one packet share, 0 if this is no fragment.
    pub fragment_id: u32,
    /// Source port in host byte order, 0 if unknown.
    pub source_port: u16,
    /// Destination port in host byte order, 0 if unknown.
    pub destination_port: u16,
    /// ICMP echo identifier in host byte order, 0 if this is no echo request or reply.
    pub echo_id: u16,
    /// ICMP type and code, 0 for other protocols and for later fragments.
    pub icmp: IcmpKind,
    /// Where the IP header starts.
    pub l3: u16,
    /// Where the upper-layer header starts.
    pub l4: u16,
    /// Where the upper-layer payload starts; equals `l4` where the protocol is not known.
    pub payload: u16,
    /// Where the packet ends by its own length fields; link-layer padding lies behind it. Saturates
    /// for GSO packets whose IP length field is 0.
    pub end: u32,
}

impl Packet {
    /// One to parse into: all of it is 0.
    pub const EMPTY: Self = Self {
        source: [0; 4],
        destination: [0; 4],
        family: Family::V4,
        protocol: 0,
        tcp_flags: 0,
        has_ports: false,
        has_data: false,
        later_fragment: false,
        fragment: false,
        fragment_id: 0,
        source_port: 0,
        destination_port: 0,
        echo_id: 0,
        icmp: IcmpKind { kind: 0, code: 0 },
        l3: 0,
        l4: 0,
        payload: 0,
        end: 0,
    };

    /// Whether the packet is sent to a multicast group, or to an address that is always a broadcast one. (That of a
    /// network can be told by its routes alone.)
    #[inline(always)]
    #[must_use]
    pub const fn is_for_group(&self) -> bool {
        let first = u32::from_be(self.destination[0]);
        match self.family {
            Family::V4 => first >> 28 == 0xe || first == u32::MAX || first == 0x7fff_ffff,
            Family::V6 => first >> 24 == 0xff,
        }
    }

    /// Whether hosts reach each other only as long as such packets pass, whatever they talk about:
    ///
    /// - neighbour discovery (RFC 4861), and multicast listener discovery (RFC 2710, RFC 3810), without which a
    ///   switch that snoops does not deliver its packets; ARP is not IP, and never touched
    /// - DHCP (RFC 2131) and `DHCPv6` (RFC 8415)
    /// - path MTU discovery (RFC 1191, RFC 8201)
    #[inline(always)]
    #[must_use]
    pub const fn is_essential(&self) -> bool {
        let IcmpKind { kind, code } = self.icmp;
        let port = self.destination_port;
        match (self.family, self.protocol) {
            (Family::V4, protocol::UDP) => matches!(port, 67 | 68),
            (Family::V6, protocol::UDP) => matches!(port, 546 | 547),
            (Family::V4, protocol::ICMP) => kind == 3 && code == 4,
            (Family::V6, protocol::ICMPV6) => matches!(kind, 2 | 130..=137 | 143),
            _ => false,
        }
    }

    /// The address of the peer.
    #[inline(always)]
    #[must_use]
    pub const fn remote(&self, direction: Direction) -> &[u32; 4] {
        match direction {
            Direction::Egress => &self.destination,
            Direction::Ingress => &self.source,
        }
    }

    /// The address of this host.
    #[inline(always)]
    #[must_use]
    pub const fn local(&self, direction: Direction) -> &[u32; 4] {
        match direction {
            Direction::Egress => &self.source,
            Direction::Ingress => &self.destination,
        }
    }

    /// The port of the peer, host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn remote_port(&self, direction: Direction) -> u16 {
        match direction {
            Direction::Egress => self.destination_port,
            Direction::Ingress => self.source_port,
        }
    }

    /// The port of this host, host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn local_port(&self, direction: Direction) -> u16 {
        match direction {
            Direction::Egress => self.source_port,
            Direction::Ingress => self.destination_port,
        }
    }
}

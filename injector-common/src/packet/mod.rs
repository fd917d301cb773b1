//! A parsed packet: addresses, ports and other properties that rules match.

pub mod parse;

/// The direction of a packet, seen from the faulted host. Indexes counters.
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

/// A parsed packet. Offsets count from the first byte of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address in network byte order. IPv4 uses the first word; the others are 0.
    pub source: [u32; 4],
    /// Destination address in the same form.
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
    /// Whether this is a fragment other than the first, without an upper-layer header.
    pub later_fragment: bool,
    /// Whether this is any fragment, the first included.
    pub fragment: bool,
    /// The identification shared by the fragments of a packet, 0 if not a fragment.
    pub fragment_id: u32,
    /// Source port in host byte order, 0 if unknown.
    pub source_port: u16,
    /// Destination port in host byte order, 0 if unknown.
    pub destination_port: u16,
    /// ICMP echo identifier in host byte order, 0 if not an echo request or reply.
    pub echo_id: u16,
    /// ICMP type and code, 0 for other protocols and for later fragments.
    pub icmp: IcmpKind,
    /// The offset of the IP header.
    pub l3: u16,
    /// The offset of the upper-layer header.
    pub l4: u16,
    /// The offset of the upper-layer payload; equals `l4` for unknown protocols.
    pub payload: u16,
    /// The end of the packet by its length fields, before any link-layer padding. Saturates
    /// for GSO packets whose IP length field is 0.
    pub end: u32,
}

impl Packet {
    /// Adjusts the offsets to `length` bytes inserted before the first.
    #[inline(always)]
    pub fn prepend(&mut self, length: u16) {
        self.l3 += length;
        self.l4 += length;
        self.payload += length;
        self.end = self.end.saturating_add(u32::from(length));
    }

    /// The length of the IP packet, its header included.
    #[inline(always)]
    #[must_use]
    pub const fn ip_length(&self) -> u32 {
        self.end.saturating_sub(self.l3 as u32)
    }

    /// The length of the IP packet on the wire. `segment_size` is the payload of each segment if
    /// the kernel has not split the packet yet, or has merged it (GSO, GRO); else 0.
    #[inline(always)]
    #[must_use]
    pub const fn wire_length(&self, segment_size: u32) -> u32 {
        let length = self.ip_length();
        let segment = self.payload.saturating_sub(self.l3) as u32 + segment_size;
        if segment_size == 0 || segment > length { length } else { segment }
    }

    /// An all-zero packet to parse into.
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

    /// Whether the destination is a multicast group or an address that is always broadcast. (Broadcast
    /// addresses of subnets are not recognized: they depend on routes.)
    #[inline(always)]
    #[must_use]
    pub const fn is_for_group(&self) -> bool {
        let first = u32::from_be(self.destination[0]);
        match self.family {
            Family::V4 => first >> 28 == 0xe || first == u32::MAX || first == 0x7fff_ffff,
            Family::V6 => first >> 24 == 0xff,
        }
    }

    /// Whether the packet belongs to a protocol without which hosts cannot reach each other at all:
    ///
    /// - neighbour discovery (RFC 4861), and multicast listener discovery (RFC 2710, RFC 3810), which
    ///   snooping switches require to deliver it; ARP is not IP and never faulted
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

//! Frames to parse, built by `etherparse`, each with what a correct parser finds in it.
//!
//! Offsets follow from the lengths of the parts, independently of the parser.

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpAuthHeader, IpFragOffset,
    IpNumber, Ipv4Header, Ipv4Options, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, TcpHeader,
    UdpHeader,
};
use injector_common::packet::{Family, IcmpKind, Packet, parse::Link, protocol};
use proptest::prelude::*;

pub const VLAN: u16 = 0x8100;
pub const QINQ: u16 = 0x88a8;

/// An IPv6 extension header other than the fragment header.
#[derive(Clone, Copy, Debug)]
pub struct Extension {
    /// Its protocol number.
    pub number: u8,
    /// Its length beyond the minimum: units of 8 bytes, of 4 for the authentication header.
    pub units: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// In units of 8 bytes.
    pub offset: u16,
    pub more: bool,
    pub id: u32,
}

#[derive(Clone, Debug)]
pub enum Network {
    V4 {
        source: [u8; 4],
        destination: [u8; 4],
        /// Bytes of options, a multiple of 4 up to 40.
        options: usize,
        fragment: Option<Fragment>,
    },
    V6 {
        source: [u8; 16],
        destination: [u8; 16],
        extensions: Vec<Extension>,
        fragment: Option<Fragment>,
        /// Extension headers behind the fragment header.
        more_extensions: Vec<Extension>,
    },
}

#[derive(Clone, Debug)]
pub enum Upper {
    Tcp {
        ports: [u16; 2],
        flags: u8,
        /// Bytes of options, a multiple of 4 up to 40.
        options: usize,
    },
    Udp {
        ports: [u16; 2],
    },
    UdpLite {
        ports: [u16; 2],
    },
    Sctp {
        ports: [u16; 2],
    },
    Dccp {
        ports: [u16; 2],
    },
    /// Ping, of the kind that fits the network layer.
    Echo {
        reply: bool,
        id: u16,
    },
    /// "Destination unreachable", again of either kind.
    Unreachable,
    /// A protocol unknown to the parser.
    Other(u8),
}

/// The parts of a frame.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub link: Link,
    /// The type field of each VLAN tag, see [`VLAN`] and [`QINQ`].
    pub tags: Vec<u16>,
    pub network: Network,
    pub upper: Upper,
    pub data: Vec<u8>,
    /// Bytes of link-layer padding behind the packet.
    pub padding: usize,
}

/// A frame and the expected result. The fragment identification is left 0: its encoding is private.
#[derive(Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub packet: Packet,
}

impl Recipe {
    pub fn build(&self) -> Frame {
        let is_later = self.fragment().is_some_and(|fragment| fragment.offset != 0);
        let number = self.upper_number();
        let mut upper = if is_later { Vec::new() } else { self.upper_header() };
        let upper_header = upper.len();
        upper.extend_from_slice(&self.data);

        let mut bytes = self.link_header();
        let l3 = bytes.len();
        let (addresses, family, protocol) = match &self.network {
            &Network::V4 { source, destination, options, fragment } => {
                bytes.extend(v4_header(
                    source,
                    destination,
                    options,
                    fragment,
                    number,
                    upper.len(),
                ));
                ([v4_words(source), v4_words(destination)], Family::V4, number)
            }
            Network::V6 { source, destination, extensions, fragment, more_extensions } => {
                // Behind the header of a later fragment is the middle of the packet.
                let behind: &[Extension] = if is_later { &[] } else { more_extensions };
                let behind_number = more_extensions.first().map_or(number, |header| header.number);
                let (first, chain) = v6_chain(extensions, *fragment, behind, behind_number, number);
                let header = Ipv6Header {
                    payload_length: u16::try_from(chain.len() + upper.len())
                        .expect("a small packet"),
                    next_header: IpNumber(first),
                    hop_limit: 64,
                    source: *source,
                    destination: *destination,
                    ..Ipv6Header::default()
                };
                bytes.extend_from_slice(&header.to_bytes());
                bytes.extend_from_slice(&chain);
                let protocol = if is_later { behind_number } else { number };
                ([v6_words(source), v6_words(destination)], Family::V6, protocol)
            }
        };
        let l4 = bytes.len();
        bytes.extend_from_slice(&upper);
        let end = bytes.len();
        // Not zeros, which might be valid.
        bytes.extend((0..self.padding).map(|index| 0x11 ^ index as u8));

        let ports = if is_later { None } else { self.ports() };
        let packet = Packet {
            source: addresses[0],
            destination: addresses[1],
            family,
            protocol,
            tcp_flags: match self.upper {
                Upper::Tcp { flags, .. } if !is_later => flags,
                _ => 0,
            },
            has_ports: ports.is_some(),
            has_data: matches!(self.upper, Upper::Tcp { .. }) && !is_later && !self.data.is_empty(),
            later_fragment: is_later,
            fragment: self.fragment().is_some_and(|fragment| fragment.offset != 0 || fragment.more),
            fragment_id: 0,
            source_port: ports.map_or(0, |[source, _]| source),
            destination_port: ports.map_or(0, |[_, destination]| destination),
            echo_id: match self.upper {
                Upper::Echo { id, .. } if !is_later => id,
                _ => 0,
            },
            icmp: match (&self.upper, upper.as_slice()) {
                (Upper::Echo { .. } | Upper::Unreachable, &[kind, code, ..]) if !is_later => {
                    IcmpKind { kind, code }
                }
                _ => IcmpKind::default(),
            },
            l3: l3 as u16,
            l4: l4 as u16,
            payload: (l4 + upper_header) as u16,
            end: end as u32,
        };
        Frame { bytes, packet }
    }

    pub fn fragment(&self) -> Option<Fragment> {
        match self.network {
            Network::V4 { fragment, .. } | Network::V6 { fragment, .. } => fragment,
        }
    }

    fn ports(&self) -> Option<[u16; 2]> {
        match self.upper {
            Upper::Tcp { ports, .. }
            | Upper::Udp { ports }
            | Upper::UdpLite { ports }
            | Upper::Sctp { ports }
            | Upper::Dccp { ports } => Some(ports),
            _ => None,
        }
    }

    fn is_v6(&self) -> bool {
        matches!(self.network, Network::V6 { .. })
    }

    fn upper_number(&self) -> u8 {
        match self.upper {
            Upper::Tcp { .. } => protocol::TCP,
            Upper::Udp { .. } => protocol::UDP,
            Upper::UdpLite { .. } => protocol::UDPLITE,
            Upper::Sctp { .. } => protocol::SCTP,
            Upper::Dccp { .. } => protocol::DCCP,
            Upper::Echo { .. } | Upper::Unreachable if self.is_v6() => protocol::ICMPV6,
            Upper::Echo { .. } | Upper::Unreachable => protocol::ICMP,
            Upper::Other(number) => number,
        }
    }

    fn link_header(&self) -> Vec<u8> {
        if self.link == Link::None {
            return Vec::new();
        }
        let ethertype: u16 = if self.is_v6() { 0x86dd } else { 0x0800 };
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for (index, tag) in self.tags.iter().enumerate() {
            bytes.extend(tag.to_be_bytes());
            bytes.extend([0x20, 10 + index as u8]);
        }
        bytes.extend(ethertype.to_be_bytes());
        bytes
    }

    fn upper_header(&self) -> Vec<u8> {
        match self.upper {
            Upper::Tcp { ports: [source, destination], flags, options } => {
                let mut header = TcpHeader::new(source, destination, 0x0102_0304, 4096);
                header.set_options_raw(&vec![1; options]).expect("a valid length");
                let mut bytes = header.to_bytes().to_vec();
                bytes[13] = flags;
                bytes
            }
            Upper::Udp { ports: [source_port, destination_port] } => {
                let length = 8 + self.data.len() as u16;
                UdpHeader { source_port, destination_port, length, checksum: 0xabcd }
                    .to_bytes()
                    .to_vec()
            }
            // etherparse supports none of these three. All start with the ports.
            Upper::UdpLite { ports } => port_header(ports, 8),
            Upper::Sctp { ports } => port_header(ports, 12),
            Upper::Dccp { ports } => {
                let mut bytes = port_header(ports, 12);
                bytes[4] = 3;
                bytes
            }
            Upper::Echo { reply, id } => {
                let echo = IcmpEchoHeader { id, seq: 3 };
                match (self.is_v6(), reply) {
                    (false, false) => v4_icmp(Icmpv4Type::EchoRequest(echo)),
                    (false, true) => v4_icmp(Icmpv4Type::EchoReply(echo)),
                    (true, false) => v6_icmp(Icmpv6Type::EchoRequest(echo)),
                    (true, true) => v6_icmp(Icmpv6Type::EchoReply(echo)),
                }
            }
            // The second word is nonzero, to detect its use as an identifier.
            Upper::Unreachable if self.is_v6() => vec![1, 0, 0xaa, 0xbb, 5, 6, 7, 8],
            Upper::Unreachable => vec![3, 1, 0xaa, 0xbb, 5, 6, 7, 8],
            Upper::Other(_) => Vec::new(),
        }
    }
}

fn port_header([source, destination]: [u16; 2], length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.resize(length, 0);
    bytes
}

fn v4_icmp(kind: Icmpv4Type) -> Vec<u8> {
    Icmpv4Header::new(kind).to_bytes().to_vec()
}

fn v6_icmp(kind: Icmpv6Type) -> Vec<u8> {
    Icmpv6Header::new(kind).to_bytes().to_vec()
}

fn v4_header(
    source: [u8; 4],
    destination: [u8; 4],
    options: usize,
    fragment: Option<Fragment>,
    number: u8,
    payload: usize,
) -> Vec<u8> {
    let mut header = Ipv4Header {
        time_to_live: 64,
        protocol: IpNumber(number),
        source,
        destination,
        options: Ipv4Options::try_from(&vec![1; options][..]).expect("a valid length"),
        identification: fragment.map_or(0x1234, |fragment| fragment.id as u16),
        // Path MTU discovery forbids fragmentation on most packets.
        dont_fragment: fragment.is_none(),
        more_fragments: fragment.is_some_and(|fragment| fragment.more),
        fragment_offset: offset(fragment.map_or(0, |fragment| fragment.offset)),
        ..Ipv4Header::default()
    };
    header.set_payload_len(payload).expect("a small packet");
    header.header_checksum = header.calc_header_checksum();
    header.to_bytes().to_vec()
}

fn offset(units: u16) -> IpFragOffset {
    IpFragOffset::try_new(units).expect("13 bits")
}

/// The extension headers, and the number of the first of them, or of the upper layer.
fn v6_chain(
    extensions: &[Extension],
    fragment: Option<Fragment>,
    behind: &[Extension],
    behind_number: u8,
    number: u8,
) -> (u8, Vec<u8>) {
    let middle = if fragment.is_some() { FRAGMENT } else { behind_number };
    let (first, mut bytes) = v6_extensions(extensions, middle);
    if let Some(Fragment { offset: units, more, id }) = fragment {
        let next = IpNumber(behind_number);
        bytes.extend(Ipv6FragmentHeader::new(next, offset(units), more, id).to_bytes());
    }
    bytes.extend(v6_extensions(behind, number).1);
    (first, bytes)
}

fn v6_extensions(extensions: &[Extension], last: u8) -> (u8, Vec<u8>) {
    let mut bytes = Vec::new();
    for (index, &Extension { number, units }) in extensions.iter().enumerate() {
        let next = IpNumber(extensions.get(index + 1).map_or(last, |header| header.number));
        if number == AUTHENTICATION {
            let check = vec![0xee; units * 4];
            bytes.extend(IpAuthHeader::new(next, 1, 2, &check).expect("a valid length").to_bytes());
        } else {
            let content = vec![0xee; 6 + units * 8];
            bytes.extend(
                Ipv6RawExtHeader::new_raw(next, &content).expect("a valid length").to_bytes(),
            );
        }
    }
    (extensions.first().map_or(last, |header| header.number), bytes)
}

fn v4_words(address: [u8; 4]) -> [u32; 4] {
    [u32::from_ne_bytes(address), 0, 0, 0]
}

fn v6_words(address: &[u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(address.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

// RFC 8200 and the IANA registry of IPv6 extension header types.
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const DESTINATION_OPTIONS: u8 = 60;
pub const MOBILITY: u8 = 135;
pub const HIP: u8 = 139;
pub const SHIM6: u8 = 140;

/// IPv6 with a chain of extension headers of the given numbers, around a UDP datagram.
pub fn v6_udp(extensions: Vec<Extension>, fragment: Option<Fragment>) -> Recipe {
    Recipe {
        link: Link::Ethernet,
        tags: Vec::new(),
        network: Network::V6 {
            source: [0x20; 16],
            destination: [0x30; 16],
            extensions,
            fragment,
            more_extensions: Vec::new(),
        },
        upper: Upper::Udp { ports: [5353, 53] },
        data: vec![7; 16],
        padding: 0,
    }
}

/// IPv4 with 20 bytes of header around a UDP datagram.
pub fn v4_udp(fragment: Option<Fragment>) -> Recipe {
    Recipe {
        link: Link::Ethernet,
        tags: Vec::new(),
        network: Network::V4 {
            source: [192, 0, 2, 1],
            destination: [198, 51, 100, 7],
            options: 0,
            fragment,
        },
        upper: Upper::Udp { ports: [5353, 53] },
        data: vec![7; 16],
        padding: 0,
    }
}

fn fragment() -> impl Strategy<Value = Option<Fragment>> {
    let some = (prop_oneof![Just(0), 1..0x2000u16], any::<bool>(), any::<u32>())
        .prop_map(|(offset, more, id)| Some(Fragment { offset, more, id }));
    prop_oneof![2 => Just(None), 1 => some]
}

fn extension() -> impl Strategy<Value = Extension> {
    let number = prop_oneof![
        Just(HOP_BY_HOP),
        Just(ROUTING),
        Just(AUTHENTICATION),
        Just(DESTINATION_OPTIONS),
        Just(MOBILITY),
        Just(HIP),
        Just(SHIM6),
    ];
    (number, 0..4usize).prop_map(|(number, units)| Extension { number, units })
}

fn extensions(most: usize) -> impl Strategy<Value = Vec<Extension>> {
    proptest::collection::vec(extension(), 0..=most)
}

fn network() -> impl Strategy<Value = Network> {
    let v4 = (any::<[u8; 4]>(), any::<[u8; 4]>(), 0..=10usize, fragment()).prop_map(
        |(source, destination, words, fragment)| Network::V4 {
            source,
            destination,
            options: words * 4,
            fragment,
        },
    );
    let v6 = (any::<[u8; 16]>(), any::<[u8; 16]>(), extensions(3), fragment(), extensions(2))
        .prop_map(|(source, destination, extensions, fragment, more_extensions)| Network::V6 {
            source,
            destination,
            extensions,
            fragment,
            more_extensions,
        });
    prop_oneof![v4, v6]
}

fn upper() -> impl Strategy<Value = Upper> {
    let ports = any::<[u16; 2]>;
    prop_oneof![
        3 => (ports(), any::<u8>(), 0..=10usize)
            .prop_map(|(ports, flags, words)| Upper::Tcp { ports, flags, options: words * 4 }),
        2 => ports().prop_map(|ports| Upper::Udp { ports }),
        1 => ports().prop_map(|ports| Upper::UdpLite { ports }),
        1 => ports().prop_map(|ports| Upper::Sctp { ports }),
        1 => ports().prop_map(|ports| Upper::Dccp { ports }),
        2 => (any::<bool>(), any::<u16>()).prop_map(|(reply, id)| Upper::Echo { reply, id }),
        1 => Just(Upper::Unreachable),
        // IP in IP, GRE, ESP, OSPF, an unassigned number.
        1 => prop_oneof![Just(4), Just(47), Just(50), Just(89), Just(200)].prop_map(Upper::Other),
    ]
}

fn link() -> impl Strategy<Value = (Link, Vec<u16>)> {
    prop_oneof![
        Just((Link::None, vec![])),
        Just((Link::Ethernet, vec![])),
        Just((Link::Ethernet, vec![VLAN])),
        Just((Link::Ethernet, vec![QINQ])),
        Just((Link::Ethernet, vec![QINQ, VLAN])),
        Just((Link::Ethernet, vec![VLAN, VLAN])),
    ]
}

/// Frames of all supported kinds.
pub fn recipe() -> impl Strategy<Value = Recipe> {
    let data = proptest::collection::vec(any::<u8>(), 0..40);
    (link(), network(), upper(), data, prop_oneof![Just(0), 0..40usize]).prop_map(
        |((link, tags), network, upper, mut data, padding)| {
            // An IPv6 packet without any payload would have length 0, which means "see the frame".
            if matches!(upper, Upper::Other(_)) || data.is_empty() && is_later(&network) {
                data.push(9);
            }
            Recipe { link, tags, network, upper, data, padding }
        },
    )
}

fn is_later(network: &Network) -> bool {
    let (Network::V4 { fragment, .. } | Network::V6 { fragment, .. }) = network;
    fragment.is_some_and(|fragment| fragment.offset != 0)
}

//! The parser: hand-written frames, frames built by another library, and garbage.

mod frames;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use frames::{
    AUTHENTICATION, DESTINATION_OPTIONS, Extension, FRAGMENT, Fragment, HIP, HOP_BY_HOP, MOBILITY,
    Network, QINQ, ROUTING, Recipe, SHIM6, Upper, VLAN, recipe, v4_udp, v6_udp,
};
use injector_common::packet::{
    Family, IcmpKind, Packet,
    parse::{Link, Unparsed, parse, parse_slice},
    protocol, tcp_flag,
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

/// Deterministic cases, without a file of past failures.
fn cases(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(3), failure_persistence: None, ..Config::default() }
}

/// Parses a frame of which only the first `readable` bytes can be read, as with the linear part of an
/// skb; the frame is `length` bytes long.
fn parse_part(
    frame: &[u8],
    readable: usize,
    length: usize,
    link: Link,
) -> Result<Packet, Unparsed> {
    let range = frame[..readable].as_ptr_range();
    let length = u32::try_from(length).expect("a frame's length");
    // SAFETY: the range is that of a slice.
    let mut packet = Packet::EMPTY;
    // SAFETY: the slice is readable.
    unsafe { parse(range.start as usize, range.end as usize, length, link, &mut packet)? };
    Ok(packet)
}

/// The frame as written in hexadecimal, blanks ignored.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|digit| !digit.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&String::from_iter(pair), 16);
    digits.chunks(2).map(|pair| byte(pair).expect("hexadecimal digits")).collect()
}

/// The word that holds these bytes of a packet.
fn word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

fn ethernet(frame: &[u8]) -> Result<Packet, Unparsed> {
    parse_slice(frame, Link::Ethernet)
}

/// The packet without its fragment identification, whose encoding is private to the parser.
fn without_id(packet: Packet) -> Packet {
    Packet { fragment_id: 0, ..packet }
}

/// The invariants of any parsed packet, given the number of readable bytes.
fn assert_consistent(packet: &Packet, readable: usize, length: usize) {
    let (l3, l4, payload) = (packet.l3, packet.l4, packet.payload);
    assert!(l3 <= l4 && l4 <= payload, "{packet:?}");
    assert!(u32::from(payload) <= packet.end && packet.end as usize <= length, "{packet:?}");

    let header = match packet.family {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    assert!(l4 >= l3 + header, "{packet:?}");
    if packet.family == Family::V4 {
        assert_eq!((&packet.source[1..], &packet.destination[1..]), (&[0; 3][..], &[0; 3][..]));
    }

    let with_ports =
        [protocol::TCP, protocol::UDP, protocol::UDPLITE, protocol::SCTP, protocol::DCCP];
    assert_eq!(
        packet.has_ports,
        with_ports.contains(&packet.protocol) && !packet.later_fragment,
        "{packet:?}"
    );
    if packet.has_ports {
        let behind = usize::from(l4) + 4;
        assert!(behind <= readable && behind <= packet.end as usize, "{packet:?}");
    } else {
        assert_eq!((packet.source_port, packet.destination_port), (0, 0), "{packet:?}");
    }

    let is_tcp = packet.protocol == protocol::TCP && !packet.later_fragment;
    if is_tcp {
        assert!(payload >= l4 + 20 && usize::from(l4) + 14 <= readable, "{packet:?}");
        assert_eq!(packet.has_data, packet.end > u32::from(payload), "{packet:?}");
    } else {
        assert!(packet.tcp_flags == 0 && !packet.has_data, "{packet:?}");
    }
    let is_icmp = matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6);
    assert!(packet.echo_id == 0 || is_icmp && !packet.later_fragment, "{packet:?}");
    assert!(packet.icmp == IcmpKind::default() || is_icmp && !packet.later_fragment, "{packet:?}");

    assert!(packet.fragment || !packet.later_fragment, "{packet:?}");
    assert!(packet.fragment || packet.fragment_id == 0, "{packet:?}");
}

/// Frames written as bytes, with checksums.
mod by_hand {
    use super::*;

    const SYN: &str = "
        020000000002 020000000001 0800
        4500003c 1c464000 4006323a c0000201 c6336407
        c0a801bb 00000001 00000000 a002faf0 9e6d0000
        020405b4 0402080a 00000001 00000000 01030307";

    #[test]
    fn a_tcp_syn_over_ipv4_is_all_header() {
        let packet = ethernet(&hex(SYN)).expect("a valid frame");
        let expected = Packet {
            source: [word([192, 0, 2, 1]), 0, 0, 0],
            destination: [word([198, 51, 100, 7]), 0, 0, 0],
            family: Family::V4,
            protocol: protocol::TCP,
            tcp_flags: tcp_flag::SYN,
            has_ports: true,
            has_data: false,
            later_fragment: false,
            fragment: false,
            fragment_id: 0,
            source_port: 49_320,
            destination_port: 443,
            echo_id: 0,
            icmp: IcmpKind::default(),
            l3: 14,
            l4: 34,
            payload: 74,
            end: 74,
        };
        assert_eq!(packet, expected);
    }

    #[test]
    fn the_same_syn_without_a_link_layer_is_the_same_14_bytes_earlier() {
        let with = ethernet(&hex(SYN)).expect("a valid frame");
        let without = parse_slice(&hex(SYN)[14..], Link::None).expect("a valid packet");
        let expected = Packet { l3: 0, l4: 20, payload: 60, end: 60, ..with };
        assert_eq!(without, expected);
    }

    #[test]
    fn a_dns_query_over_ipv6_behind_two_vlan_tags_is_udp() {
        let frame = hex("
            020000000002 020000000001 88a80064 8100000a 86dd
            60000000 000c1140
            20010db8 00000000 00000000 00000001
            20010db8 00000000 00000000 00000002
            14e90035 000cb072 70696e67");
        let packet = ethernet(&frame).expect("a valid frame");
        let expected = Packet {
            source: [word([0x20, 1, 0x0d, 0xb8]), 0, 0, word([0, 0, 0, 1])],
            destination: [word([0x20, 1, 0x0d, 0xb8]), 0, 0, word([0, 0, 0, 2])],
            family: Family::V6,
            protocol: protocol::UDP,
            tcp_flags: 0,
            has_ports: true,
            has_data: false,
            later_fragment: false,
            fragment: false,
            fragment_id: 0,
            source_port: 5353,
            destination_port: 53,
            echo_id: 0,
            icmp: IcmpKind::default(),
            l3: 22,
            l4: 62,
            payload: 70,
            end: 74,
        };
        assert_eq!(packet, expected);
    }

    #[test]
    fn a_short_ping_ends_before_the_padding_of_its_frame() {
        // A packet of 28 bytes in Ethernet's minimum of 46.
        let frame = hex("
            020000000002 020000000001 0800
            4500001c 00000000 40018ea5 c0000201 c6336407
            0800e5ca 12340001
            0000 00000000 00000000 00000000 00000000");
        assert_eq!(frame.len(), 60);
        let packet = ethernet(&frame).expect("a valid frame");
        assert_eq!((packet.protocol, packet.echo_id), (protocol::ICMP, 0x1234));
        assert_eq!((packet.l4, packet.payload, packet.end), (34, 42, 42));
        assert!(!packet.has_ports);
    }

    #[test]
    fn an_arp_request_is_not_ip() {
        let frame = hex("
            ffffffffffff 020000000001 0806
            0001 0800 06 04 0001 020000000001 c0000201 000000000000 c0000202");
        assert_eq!(ethernet(&frame), Err(Unparsed::NotIp));
    }

    #[test]
    fn a_chain_of_extension_headers_leads_to_the_segment_behind_it() {
        let frame = hex("
            020000000002 020000000001 86dd
            60000000 00450040
            fe800000 00000000 00000000 00000001
            ff020000 00000000 00000000 00000002
            3c00 050200000100
            2b01 0104000000000104000000000000
            2c01 0400000000000000000000000000
            0600 0001 cafebabe
            1f900050 00000007 00000009 50180200 00000000 21");
        let packet = ethernet(&frame).expect("a valid frame");
        assert_eq!(packet.protocol, protocol::TCP);
        assert_eq!((packet.source_port, packet.destination_port), (8080, 80));
        assert_eq!(packet.tcp_flags, tcp_flag::PSH | tcp_flag::ACK);
        assert!(packet.fragment && !packet.later_fragment && packet.has_data);
        // 14 and 40, then 8, 16, 16 and 8.
        assert_eq!((packet.l3, packet.l4, packet.payload, packet.end), (14, 102, 122, 123));
    }
}

mod a_built_frame {
    use super::*;

    proptest! {
        #![proptest_config(cases(1_500))]

        #[test]
        fn is_understood_field_by_field(recipe in recipe()) {
            let frame = recipe.build();
            let packet = parse_slice(&frame.bytes, recipe.link).expect("a valid frame");
            assert_consistent(&packet, frame.bytes.len(), frame.bytes.len());
            prop_assert_eq!(without_id(packet), frame.packet);
        }

        #[test]
        fn does_not_change_its_meaning_with_the_bytes_behind_its_end(recipe in recipe()) {
            let frame = recipe.build();
            let end = frame.packet.end as usize;
            let mut other = frame.bytes.clone();
            other.resize(end, 0);
            other.extend([0xff; 17]);
            let found = parse_slice(&frame.bytes, recipe.link);
            prop_assert_eq!(parse_slice(&other, recipe.link), found);
        }
    }

    proptest! {
        #![proptest_config(cases(150))]

        #[test]
        fn that_lost_its_tail_is_truncated(recipe in recipe()) {
            let frame = recipe.build();
            let whole = parse_slice(&frame.bytes, recipe.link);
            let end = frame.packet.end as usize;
            for length in 0..frame.bytes.len() {
                let found = parse_slice(&frame.bytes[..length], recipe.link);
                if length < end {
                    prop_assert_eq!(found, Err(Unparsed::Truncated), "at {}", length);
                } else {
                    prop_assert_eq!(found, whole, "only padding was cut off");
                }
            }
        }

        // The parser either succeeds or asks for more bytes. It never guesses.
        #[test]
        fn of_which_a_part_can_be_read_is_understood_or_truncated(recipe in recipe()) {
            let frame = recipe.build();
            let length = frame.bytes.len();
            let whole = parse_slice(&frame.bytes, recipe.link);
            for readable in 0..length {
                let found = parse_part(&frame.bytes, readable, length, recipe.link);
                if let Ok(packet) = &found {
                    assert_consistent(packet, readable, length);
                    prop_assert_eq!(found, whole);
                } else {
                    prop_assert_eq!(found, Err(Unparsed::Truncated));
                    prop_assert!(readable < frame.packet.payload.into(), "all headers were there");
                }
                // Unreadable bytes have no influence.
                let mut other = frame.bytes.clone();
                other[readable..].iter_mut().for_each(|byte| *byte = !*byte);
                prop_assert_eq!(parse_part(&other, readable, length, recipe.link), found);
            }
        }

        // A packet whose length field is too small: headers must not be read from the padding.
        #[test]
        fn whose_length_was_shortened_is_not_understood_from_its_padding(
            recipe in recipe(),
            inverted in any::<bool>(),
        ) {
            let frame = recipe.build();
            let l3 = usize::from(frame.packet.l3);
            let total = frame.packet.end as usize - l3;
            let is_v4 = frame.packet.family == Family::V4;
            // A length of 0 means the whole frame.
            let (shortest, header) = if is_v4 { (1, 20) } else { (41, 40) };
            for shorter in shortest..total {
                let mut bytes = frame.bytes.clone();
                let (field, value) = if is_v4 { (l3 + 2, shorter) } else { (l3 + 4, shorter - 40) };
                bytes[field..field + 2].copy_from_slice(&(value as u16).to_be_bytes());
                let found = parse_slice(&bytes, recipe.link);
                if let Ok(packet) = &found {
                    assert_consistent(packet, bytes.len(), bytes.len());
                    prop_assert_eq!(packet.end as usize, l3 + shorter);
                }
                // Why it is refused may depend on what was there to read, what it means may not.
                for byte in &mut bytes[l3 + shorter.max(header)..] {
                    *byte = if inverted { !*byte } else { 0 };
                }
                prop_assert_eq!(parse_slice(&bytes, recipe.link).ok(), found.ok());
            }
        }
    }

    #[test]
    fn that_is_shorter_than_it_says_is_truncated_even_if_all_its_headers_are_there() {
        let frame = v4_udp(None).build();
        let short = &frame.bytes[..frame.bytes.len() - 1];
        assert_eq!(ethernet(short), Err(Unparsed::Truncated));
    }
}

/// Comparison with etherparse's parser, also on frames of other origin.
mod an_independent_parser {
    use super::*;

    /// The common results of both parsers: addresses, ports, and the offset of the payload.
    type Facts = (Vec<u8>, Vec<u8>, u16, u16, usize);

    fn theirs(frame: &[u8]) -> Option<Facts> {
        let sliced = SlicedPacket::from_ethernet(frame).ok()?;
        let (source, destination) = match sliced.net? {
            NetSlice::Ipv4(slice) => {
                (slice.header().source().to_vec(), slice.header().destination().to_vec())
            }
            NetSlice::Ipv6(slice) => {
                (slice.header().source().to_vec(), slice.header().destination().to_vec())
            }
            NetSlice::Arp(_) => return None,
        };
        let at = |payload: &[u8]| payload.as_ptr() as usize - frame.as_ptr() as usize;
        let (source_port, destination_port, payload) = match sliced.transport? {
            TransportSlice::Udp(udp) => {
                (udp.source_port(), udp.destination_port(), at(udp.payload()))
            }
            TransportSlice::Tcp(tcp) => {
                (tcp.source_port(), tcp.destination_port(), at(tcp.payload()))
            }
            _ => return None,
        };
        Some((source, destination, source_port, destination_port, payload))
    }

    fn ours(frame: &[u8]) -> Result<Facts, Unparsed> {
        let packet = ethernet(frame)?;
        let words = match packet.family {
            Family::V4 => 1,
            Family::V6 => 4,
        };
        let bytes = |address: &[u32; 4]| {
            address[..words].iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>()
        };
        Ok((
            bytes(&packet.source),
            bytes(&packet.destination),
            packet.source_port,
            packet.destination_port,
            packet.payload.into(),
        ))
    }

    proptest! {
        #![proptest_config(cases(4_000))]

        #[test]
        fn agrees_about_tcp_and_udp_in_frames_with_flipped_bytes(
            recipe in recipe(),
            changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..4),
        ) {
            let mut bytes = Recipe { link: Link::Ethernet, ..recipe }.build().bytes;
            let length = bytes.len();
            for (at, value) in changes {
                // The headers, rather than the data.
                bytes[usize::from(at) % length.min(80)] = value;
            }
            if let (Some(theirs), Ok(ours)) = (theirs(&bytes), ours(&bytes)) {
                prop_assert_eq!(ours, theirs);
            }
        }
    }

    #[test]
    fn understands_what_we_call_built_frames() {
        // Ensures that the comparison above is not empty.
        for recipe in [v4_udp(None), v6_udp(vec![], None)] {
            let bytes = recipe.build().bytes;
            assert!(theirs(&bytes).is_some());
            assert_eq!(theirs(&bytes), ours(&bytes).ok());
        }
    }
}

mod rubbish {
    use super::*;

    /// Bytes that start like an IP packet, to pass the first checks.
    fn like_ip() -> impl Strategy<Value = Vec<u8>> {
        let protocols = prop_oneof![
            Just(protocol::TCP),
            Just(protocol::UDP),
            Just(protocol::ICMP),
            Just(protocol::ICMPV6),
            Just(protocol::SCTP),
            Just(HOP_BY_HOP),
            Just(ROUTING),
            Just(FRAGMENT),
            Just(AUTHENTICATION),
            Just(DESTINATION_OPTIONS),
            any::<u8>(),
        ];
        let bytes = proptest::collection::vec(any::<u8>(), 40..160);
        (bytes, any::<bool>(), protocols.clone(), protocols, 0..160u16, 0..16u8).prop_map(
            |(mut bytes, v6, first, second, length, low)| {
                bytes[0] = if v6 { 0x60 } else { 0x40 } | low;
                // Small lengths, as only these can be valid.
                let at = if v6 { 4 } else { 2 };
                bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
                bytes[if v6 { 6 } else { 9 }] = first;
                // If `first` is an extension header, it is a short one.
                if v6 && bytes.len() > 42 {
                    bytes[40] = second;
                    bytes[41] &= 3;
                }
                bytes
            },
        )
    }

    fn with_ethernet(packet: &[u8]) -> Vec<u8> {
        let ethertype = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        [&[2; 12][..], &ethertype, packet].concat()
    }

    fn check(frame: &[u8], link: Link) {
        if let Ok(packet) = parse_slice(frame, link) {
            assert_consistent(&packet, frame.len(), frame.len());
        }
        // Only a part of the frame is readable.
        let readable = frame.len() / 2;
        for length in [readable, frame.len(), frame.len() * 2, 1 << 20] {
            if let Ok(packet) = parse_part(frame, readable, length, link) {
                assert_consistent(&packet, readable, length);
            }
        }
    }

    proptest! {
        #![proptest_config(cases(3_000))]

        #[test]
        fn that_looks_like_ip_is_refused_or_understood_consistently(packet in like_ip()) {
            check(&packet, Link::None);
            check(&with_ethernet(&packet), Link::Ethernet);
        }
    }

    proptest! {
        #![proptest_config(cases(1_000))]

        #[test]
        fn of_any_kind_is_refused_or_understood_consistently(
            bytes in proptest::collection::vec(any::<u8>(), 0..120),
        ) {
            check(&bytes, Link::None);
            check(&bytes, Link::Ethernet);
        }
    }

    #[test]
    fn that_looks_like_ip_is_often_understood() {
        // Ensures that the test covers enough. The values are those of a fixed seed.
        use proptest::{strategy::ValueTree, test_runner::TestRunner};
        let mut runner = TestRunner::new(cases(1));
        let understood = (0..1_000).filter(|_| {
            let packet = like_ip().new_tree(&mut runner).expect("a value").current();
            parse_slice(&packet, Link::None).is_ok()
        });
        assert!(understood.count() > 100);
    }

    #[test]
    fn of_no_bytes_is_truncated() {
        assert_eq!(ethernet(&[]), Err(Unparsed::Truncated));
        assert_eq!(parse_slice(&[], Link::None), Err(Unparsed::Truncated));
    }
}

mod the_link_layer {
    use super::*;

    fn tagged(tags: &[u16]) -> Recipe {
        Recipe { tags: tags.to_vec(), ..v4_udp(None) }
    }

    #[test]
    fn may_have_up_to_two_vlan_tags() {
        for (tags, l3) in
            [(&[][..], 14), (&[VLAN], 18), (&[QINQ], 18), (&[QINQ, VLAN], 22), (&[VLAN, VLAN], 22)]
        {
            let packet = ethernet(&tagged(tags).build().bytes).expect("a valid frame");
            assert_eq!(packet.l3, l3, "{tags:x?}");
            assert_eq!(packet.destination_port, 53, "{tags:x?}");
        }
    }

    #[test]
    fn with_three_vlan_tags_is_not_ip() {
        let frame = tagged(&[QINQ, VLAN, VLAN]).build().bytes;
        assert_eq!(ethernet(&frame), Err(Unparsed::NotIp));
    }

    #[test]
    fn with_arp_behind_a_vlan_tag_is_not_ip() {
        let mut frame = tagged(&[VLAN]).build().bytes;
        frame[16..18].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(ethernet(&frame), Err(Unparsed::NotIp));
    }

    #[test]
    fn of_any_other_type_is_not_ip() {
        // A length field (LLC), ARP, MPLS, PPPoE, EAPOL, LLDP, PTP.
        for ethertype in [0x0026u16, 0x0806, 0x8847, 0x8864, 0x888e, 0x88cc, 0x88f7] {
            let mut frame = v4_udp(None).build().bytes;
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            assert_eq!(ethernet(&frame), Err(Unparsed::NotIp), "{ethertype:x}");
        }
    }

    #[test]
    fn that_contradicts_the_ip_version_makes_the_packet_malformed() {
        for recipe in [v4_udp(None), v6_udp(vec![], None)] {
            let mut frame = recipe.build().bytes;
            frame[14] ^= 0x20;
            assert_eq!(ethernet(&frame), Err(Unparsed::Malformed));
        }
    }

    #[test]
    fn that_is_absent_leaves_it_to_the_version_field() {
        for version in 0..16u8 {
            let mut bytes = Recipe { link: Link::None, ..v4_udp(None) }.build().bytes;
            bytes[0] = version << 4 | 5;
            let found = parse_slice(&bytes, Link::None);
            match version {
                4 => assert!(found.is_ok()),
                // Seen as IPv6, the length field is that of an address.
                6 => assert!(found.is_err() && found != Err(Unparsed::NotIp)),
                _ => assert_eq!(found, Err(Unparsed::NotIp), "version {version}"),
            }
        }
    }
}

mod an_ipv4_header {
    use super::*;

    #[test]
    fn shorter_than_20_bytes_is_malformed() {
        for words in 0..5 {
            let mut frame = v4_udp(None).build().bytes;
            frame[14] = 0x40 | words;
            assert_eq!(ethernet(&frame), Err(Unparsed::Malformed), "{words} words");
        }
    }

    #[test]
    fn that_is_longer_than_the_packet_is_refused() {
        // 60 bytes of header in a packet of 44.
        let mut frame = v4_udp(None).build().bytes;
        frame[14] = 0x4f;
        frame.resize(200, 0);
        assert!(ethernet(&frame).is_err());
    }

    #[test]
    fn with_the_reserved_bit_is_no_fragment() {
        let mut frame = v4_udp(None).build().bytes;
        frame[20] |= 0x80;
        let packet = ethernet(&frame).expect("a valid frame");
        assert!(!packet.fragment && packet.has_ports);
    }
}

mod a_fragment {
    use super::*;

    fn both(fragment: Fragment) -> [Recipe; 2] {
        [v4_udp(Some(fragment)), v6_udp(vec![], Some(fragment))]
    }

    fn parsed(recipe: &Recipe) -> Packet {
        ethernet(&recipe.build().bytes).expect("a valid frame")
    }

    #[test]
    fn that_is_the_first_has_ports() {
        for recipe in both(Fragment { offset: 0, more: true, id: 1 }) {
            let packet = parsed(&recipe);
            assert!(packet.fragment && !packet.later_fragment && packet.has_ports);
            assert_eq!(packet.destination_port, 53);
        }
    }

    #[test]
    fn that_is_a_later_one_has_no_ports_whether_or_not_more_follow() {
        for more in [false, true] {
            for offset in [1, 185, 0x1000, 0x1fff] {
                for recipe in both(Fragment { offset, more, id: 1 }) {
                    let packet = parsed(&recipe);
                    assert!(packet.fragment && packet.later_fragment && !packet.has_ports);
                    assert_eq!(packet.protocol, protocol::UDP);
                    assert_eq!(packet.payload, packet.l4);
                }
            }
        }
    }

    #[test]
    fn that_is_a_later_one_may_be_shorter_than_any_header() {
        for recipe in both(Fragment { offset: 5, more: false, id: 1 }) {
            let packet = parsed(&Recipe { data: vec![1], ..recipe });
            assert!(packet.later_fragment);
            assert_eq!(packet.end, u32::from(packet.l4) + 1);
        }
    }

    #[test]
    fn shares_its_identification_with_those_of_its_packet_only() {
        for family in 0..2 {
            let id =
                |offset, more, id| parsed(&both(Fragment { offset, more, id })[family]).fragment_id;
            let first = id(0, true, 0x8001);
            assert_eq!(first, id(3, true, 0x8001));
            assert_eq!(first, id(9, false, 0x8001));
            assert_ne!(first, id(0, true, 0x8002));
            assert_ne!(first, id(3, true, 0x0180));
        }
    }

    #[test]
    fn that_is_the_whole_packet_is_none() {
        // RFC 6946, atomic fragments: an IPv6 fragment header without any fragmentation.
        let packet = parsed(&v6_udp(vec![], Some(Fragment { offset: 0, more: false, id: 77 })));
        assert!(!packet.fragment && !packet.later_fragment && packet.has_ports);
        assert_eq!(packet.fragment_id, 0);
    }

    #[test]
    fn identification_is_not_told_of_a_packet_that_is_none() {
        // Every IPv4 header has the field.
        let frame = v4_udp(None).build().bytes;
        assert_ne!(frame[18..20], [0, 0]);
        assert_eq!(ethernet(&frame).map(|packet| packet.fragment_id), Ok(0));
    }

    #[test]
    fn that_is_a_later_one_is_not_searched_for_extension_headers() {
        // What follows claims to be an extension header, but is the middle of the packet: taken for
        // a header its length would lead far behind the end.
        let mut recipe = v6_udp(vec![], Some(Fragment { offset: 10, more: true, id: 1 }));
        let Network::V6 { more_extensions, .. } = &mut recipe.network else { unreachable!() };
        more_extensions.push(Extension { number: DESTINATION_OPTIONS, units: 0 });
        recipe.data = vec![0xff; 16];
        let packet = parsed(&recipe);
        assert!(packet.later_fragment && !packet.has_ports);
        assert_eq!(packet.l4, 14 + 40 + 8);
    }
}

mod an_ipv6_extension_header {
    use super::*;

    const KINDS: [u8; 7] =
        [HOP_BY_HOP, ROUTING, AUTHENTICATION, DESTINATION_OPTIONS, MOBILITY, HIP, SHIM6];

    fn chain(numbers: &[u8], units: usize) -> Vec<Extension> {
        numbers.iter().map(|&number| Extension { number, units }).collect()
    }

    #[test]
    fn of_each_kind_and_of_any_length_is_skipped() {
        for number in KINDS {
            for units in [0, 1, 7, 100] {
                let frame = v6_udp(chain(&[number], units), None).build();
                let packet = ethernet(&frame.bytes).expect("a valid frame");
                assert_eq!(packet, frame.packet, "kind {number}, {units} units");
                let length = if number == AUTHENTICATION { 12 + units * 4 } else { 8 + units * 8 };
                assert_eq!(usize::from(packet.l4), 54 + length, "kind {number}, {units} units");
            }
        }
    }

    #[test]
    fn is_followed_up_to_six_times() {
        let six =
            [HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, AUTHENTICATION, DESTINATION_OPTIONS, HIP];
        let frame = v6_udp(chain(&six, 0), None).build();
        assert_eq!(ethernet(&frame.bytes), Ok(frame.packet));

        let seven = v6_udp(chain(&[&six[..], &[SHIM6]].concat(), 0), None).build();
        assert_eq!(ethernet(&seven.bytes), Err(Unparsed::Malformed));
    }

    #[test]
    fn of_the_greatest_length_six_times_over_does_not_overflow_an_offset() {
        let frame = v6_udp(chain(&[DESTINATION_OPTIONS; 6], 255), None).build();
        let packet = ethernet(&frame.bytes).expect("a valid frame");
        assert_eq!(usize::from(packet.l4), 54 + 6 * 2048);
        assert_eq!(packet, frame.packet);
    }

    #[test]
    fn that_leads_behind_the_packets_end_is_refused() {
        let frame = v6_udp(chain(&[DESTINATION_OPTIONS], 0), None).build();
        for units in 3..=255u8 {
            let mut bytes = frame.bytes.clone();
            bytes[55] = units;
            // There are more bytes, but they are not part of the packet.
            bytes.resize(4_000, protocol::UDP);
            assert!(ethernet(&bytes).is_err(), "{units} units");
        }
    }

    #[test]
    fn that_says_nothing_follows_leaves_no_upper_layer() {
        const NO_NEXT_HEADER: u8 = 59;
        let recipe = Recipe {
            upper: Upper::Other(NO_NEXT_HEADER),
            data: vec![],
            ..v6_udp(chain(&[DESTINATION_OPTIONS], 0), None)
        };
        let packet = ethernet(&recipe.build().bytes).expect("a valid frame");
        assert_eq!((packet.protocol, packet.has_ports), (NO_NEXT_HEADER, false));
        assert_eq!(u32::from(packet.payload), packet.end);

        // The padding of a packet without payload is not taken for a jumbogram's payload.
        let bare = Recipe { padding: 6, ..recipe };
        let Network::V6 { source, destination, .. } = bare.network else { unreachable!() };
        let network = Network::V6 {
            source,
            destination,
            extensions: vec![],
            fragment: None,
            more_extensions: vec![],
        };
        let packet = ethernet(&Recipe { network, ..bare }.build().bytes).expect("a valid frame");
        assert_eq!(packet.end, 54);
    }

    #[test]
    fn of_encryption_is_where_knowledge_ends() {
        const ESP: u8 = 50;
        let recipe = Recipe { upper: Upper::Other(ESP), ..v6_udp(chain(&[HOP_BY_HOP], 0), None) };
        let packet = ethernet(&recipe.build().bytes).expect("a valid frame");
        assert_eq!((packet.protocol, packet.has_ports), (ESP, false));
        assert_eq!(packet.payload, packet.l4);
    }
}

mod an_upper_layer_header {
    use super::*;

    /// The frame, its packet cut after `room` bytes of upper layer and padded to its old length.
    fn cut(recipe: &Recipe, room: u16) -> Vec<u8> {
        let frame = recipe.build();
        let mut bytes = frame.bytes;
        let (field, length) = match frame.packet.family {
            Family::V4 => (16, frame.packet.l4 - frame.packet.l3 + room),
            Family::V6 => (18, frame.packet.l4 - frame.packet.l3 - 40 + room),
        };
        bytes[field..field + 2].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    fn around(upper: Upper) -> [Recipe; 2] {
        [
            Recipe { upper: upper.clone(), ..v4_udp(None) },
            Recipe { upper, ..v6_udp(vec![Extension { number: HOP_BY_HOP, units: 0 }], None) },
        ]
    }

    #[test]
    fn that_the_packet_has_no_room_for_is_malformed() {
        let ports = [1, 2];
        for (upper, header) in [
            (Upper::Tcp { ports, flags: 0x10, options: 0 }, 20),
            (Upper::Tcp { ports, flags: 0x10, options: 12 }, 32),
            (Upper::Udp { ports }, 8),
            (Upper::UdpLite { ports }, 8),
            (Upper::Sctp { ports }, 12),
            (Upper::Dccp { ports }, 12),
            (Upper::Echo { reply: false, id: 9 }, 8),
            (Upper::Unreachable, 8),
        ] {
            for recipe in around(upper.clone()) {
                let l4 = usize::from(recipe.build().packet.l4);
                for room in 0..header {
                    let padded = cut(&recipe, room);
                    let bare = &padded[..l4 + usize::from(room)];
                    assert_eq!(ethernet(&padded), Err(Unparsed::Malformed), "{upper:?} in {room}");
                    assert_eq!(ethernet(bare), Err(Unparsed::Malformed), "{upper:?} in {room}");
                }
                let packet = ethernet(&cut(&recipe, header)).expect("room for the header");
                assert_eq!(u32::from(packet.payload), packet.end, "{upper:?}");
                assert!(!packet.has_data, "{upper:?}");
            }
        }
    }

    #[test]
    fn of_tcp_shorter_than_20_bytes_is_malformed() {
        for recipe in around(Upper::Tcp { ports: [1, 2], flags: 0, options: 0 }) {
            let frame = recipe.build();
            for words in 0..5 {
                let mut bytes = frame.bytes.clone();
                bytes[usize::from(frame.packet.l4) + 12] = words << 4;
                assert_eq!(ethernet(&bytes), Err(Unparsed::Malformed), "{words} words");
            }
        }
    }

    #[test]
    fn of_tcp_gives_all_eight_flags() {
        for bit in 0..8 {
            let flags = 1 << bit;
            for recipe in around(Upper::Tcp { ports: [1, 2], flags, options: 8 }) {
                let packet = ethernet(&recipe.build().bytes).expect("a valid frame");
                assert_eq!(packet.tcp_flags, flags);
            }
        }
    }

    #[test]
    fn of_icmp_gives_an_identifier_for_echo_only() {
        // The other family's echo types have other meanings here.
        for (kind, v6, id) in [
            (8, false, 0x0506),
            (0, false, 0x0506),
            (128, false, 0),
            (129, false, 0),
            (3, false, 0),
            (128, true, 0x0506),
            (129, true, 0x0506),
            (8, true, 0),
            (0, true, 0),
            (135, true, 0),
        ] {
            let recipe = if v6 { v6_udp(vec![], None) } else { v4_udp(None) };
            let frame = Recipe { upper: Upper::Unreachable, ..recipe }.build();
            let mut bytes = frame.bytes;
            bytes[usize::from(frame.packet.l4)] = kind;
            let packet = ethernet(&bytes).expect("a valid frame");
            assert_eq!(packet.echo_id, id, "type {kind}, IPv6: {v6}");
            assert_eq!(packet.icmp.kind, kind, "IPv6: {v6}");
        }
    }
}

/// Packets as in tc: up to 64 KiB, or more with BIG TCP, mostly nonlinear.
mod a_gso_packet {
    use super::*;

    /// A TCP frame with `total` as its IP length field; 32 bytes of TCP header.
    fn tcp(v6: bool, total: u16) -> Vec<u8> {
        let recipe = if v6 { v6_udp(vec![], None) } else { v4_udp(None) };
        let upper = Upper::Tcp { ports: [80, 50_000], flags: 0x10, options: 12 };
        let mut bytes = Recipe { upper, data: vec![], ..recipe }.build().bytes;
        let field = if v6 { 18 } else { 16 };
        bytes[field..field + 2].copy_from_slice(&total.to_be_bytes());
        bytes
    }

    #[test]
    fn of_the_greatest_length_is_understood_from_its_headers() {
        for (v6, length) in [(false, 14 + 0xffff), (true, 14 + 40 + 0xffff)] {
            let headers = tcp(v6, 0xffff);
            let packet = parse_part(&headers, headers.len(), length, Link::Ethernet)
                .expect("all headers are there");
            assert_eq!(packet.end as usize, length);
            assert_eq!((packet.source_port, packet.destination_port), (80, 50_000));
            assert!(packet.has_data);
        }
    }

    #[test]
    fn whose_length_field_is_0_ends_with_its_frame() {
        for v6 in [false, true] {
            for length in [100, 65_535, 65_536, 185_000, 524_280] {
                let headers = tcp(v6, 0);
                let packet = parse_part(&headers, headers.len(), length, Link::Ethernet)
                    .expect("all headers are there");
                assert_eq!(packet.end as usize, length);
                assert!(packet.has_ports && packet.has_data);
                assert_consistent(&packet, headers.len(), length);
            }
        }
    }

    #[test]
    fn that_is_a_jumbogram_ends_with_its_frame() {
        // RFC 2675: length 0, and a hop-by-hop option with the true one.
        let frame = v6_udp(vec![Extension { number: HOP_BY_HOP, units: 0 }], None).build();
        let mut bytes = frame.bytes;
        bytes[18..20].copy_from_slice(&[0, 0]);
        let packet =
            parse_part(&bytes, bytes.len(), 100_000, Link::Ethernet).expect("a valid frame");
        assert_eq!(packet.end, 100_000);
        assert!(packet.has_ports);
    }

    #[test]
    fn that_is_shorter_than_its_length_field_is_truncated() {
        let headers = tcp(false, 0xffff);
        let found = parse_part(&headers, headers.len(), 0xffff, Link::Ethernet);
        assert_eq!(found, Err(Unparsed::Truncated));
    }
}

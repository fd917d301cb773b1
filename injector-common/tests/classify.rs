//! Tuples and masks: the part of classification that needs no kernel maps.
//!
//! The meaning of a rule's condition is implemented here again, on the packet's fields, and compared with
//! the bits of the tuple.

use injector_common::{
    classify::{Found, ShortKey, Slot, Tuple, TupleKey, TupleMask, field, is_short, masked, tuple},
    control::{LENGTHS, MAX_MASKS, length_index},
    packet::{Direction, Family, IcmpKind, Packet, protocol},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

/// Deterministic cases, without a file of past failures.
fn cases(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..Config::default() }
}

/// A packet as rules see it: with a direction, and its ports replaced by classes.
#[derive(Clone, Copy, Debug)]
struct Seen {
    packet: Packet,
    direction: Direction,
    local_class: u16,
    remote_class: u16,
}

impl Seen {
    fn tuple(&self) -> Tuple {
        tuple(&self.packet, self.direction, self.local_class, self.remote_class, 0)
    }

    /// The peer's address as bytes, computed without the functions under test.
    fn remote_bytes(&self) -> Vec<u8> {
        let address = match self.direction {
            Direction::Egress => self.packet.destination,
            Direction::Ingress => self.packet.source,
        };
        address.into_iter().flat_map(u32::to_ne_bytes).collect()
    }
}

/// The fields that a rule matches.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each field is looked at or not, independently")]
struct Fields {
    /// The prefix length of the peer's address.
    prefix: usize,
    local_class: bool,
    remote_class: bool,
    protocol: bool,
    /// The mask of TCP flags.
    tcp_flags: u8,
    family: bool,
    direction: bool,
    has_data: bool,
    has_ports: bool,
}

impl Fields {
    fn mask(&self) -> Tuple {
        let mut address = [0u8; 16];
        for bit in 0..self.prefix {
            address[bit / 8] |= 0x80 >> (bit % 8);
        }
        let all = |asked: bool, bits: u32| if asked { bits } else { 0 };
        let word = |at: usize| {
            u32::from_ne_bytes([address[at], address[at + 1], address[at + 2], address[at + 3]])
        };
        [
            word(0),
            word(4),
            word(8),
            word(12),
            all(self.local_class, 0xffff_0000) | all(self.remote_class, 0x0000_ffff),
            all(self.protocol, 0xff << field::PROTOCOL_SHIFT)
                | u32::from(self.tcp_flags) << field::TCP_FLAGS_SHIFT
                | all(self.family, field::FAMILY)
                | all(self.direction, field::DIRECTION)
                | all(self.has_data, field::HAS_DATA)
                | all(self.has_ports, field::HAS_PORTS),
        ]
    }

    /// Whether two packets are equal in these fields.
    fn agree(&self, one: &Seen, other: &Seen) -> bool {
        let (a, b) = (&one.packet, &other.packet);
        let (left, right) = (one.remote_bytes(), other.remote_bytes());
        (0..self.prefix).all(|bit| (left[bit / 8] ^ right[bit / 8]) & (0x80 >> (bit % 8)) == 0)
            && (!self.local_class || one.local_class == other.local_class)
            && (!self.remote_class || one.remote_class == other.remote_class)
            && (!self.protocol || a.protocol == b.protocol)
            && (a.tcp_flags ^ b.tcp_flags) & self.tcp_flags == 0
            && (!self.family || a.family == b.family)
            && (!self.direction || one.direction == other.direction)
            && (!self.has_data || a.has_data == b.has_data)
            && (!self.has_ports || a.has_ports == b.has_ports)
    }
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::Egress), Just(Direction::Ingress)]
}

fn packet() -> impl Strategy<Value = Packet> {
    let addresses = (any::<[u32; 4]>(), any::<[u32; 4]>(), any::<bool>());
    let upper = (any::<u8>(), any::<u8>(), any::<bool>(), any::<bool>());
    let rest = (any::<[bool; 2]>(), any::<[u16; 3]>(), any::<[u16; 3]>(), any::<[u32; 2]>());
    (addresses, upper, rest).prop_map(
        |(
            (source, destination, v6),
            (protocol, tcp_flags, has_ports, has_data),
            ([later_fragment, fragment], ports, offsets, [fragment_id, end]),
        )| Packet {
            source,
            destination,
            family: if v6 { Family::V6 } else { Family::V4 },
            protocol,
            tcp_flags,
            has_ports,
            has_data,
            later_fragment,
            fragment,
            fragment_id,
            source_port: ports[0],
            destination_port: ports[1],
            echo_id: ports[2],
            icmp: IcmpKind::default(),
            l3: offsets[0],
            l4: offsets[1],
            payload: offsets[2],
            end,
        },
    )
}

fn seen() -> impl Strategy<Value = Seen> {
    (packet(), direction(), any::<u16>(), any::<u16>()).prop_map(
        |(packet, direction, local_class, remote_class)| Seen {
            packet,
            direction,
            local_class,
            remote_class,
        },
    )
}

/// Two packets with some equal fields: random ones would have none.
fn similar() -> impl Strategy<Value = (Seen, Seen)> {
    (seen(), seen(), any::<[bool; 9]>(), 0..128usize, any::<bool>()).prop_map(
        |(one, mut other, same, bit, flip)| {
            let (a, b) = (&one.packet, &mut other.packet);
            if same[0] {
                (b.source, b.destination) = (a.source, a.destination);
            }
            if flip {
                // Addresses that differ from one bit on, to test prefixes around it.
                let mask = u32::from_ne_bytes((0x8000_0000u32 >> (bit % 32)).to_be_bytes());
                b.source[bit / 32] ^= mask;
                b.destination[bit / 32] ^= mask;
            }
            if same[1] {
                b.family = a.family;
            }
            if same[2] {
                b.protocol = a.protocol;
            }
            if same[3] {
                b.tcp_flags = a.tcp_flags;
            }
            if same[4] {
                b.has_ports = a.has_ports;
            }
            if same[5] {
                b.has_data = a.has_data;
            }
            if same[6] {
                other.direction = one.direction;
            }
            if same[7] {
                other.local_class = one.local_class;
            }
            if same[8] {
                other.remote_class = one.remote_class;
            }
            (one, other)
        },
    )
}

fn fields() -> impl Strategy<Value = Fields> {
    let prefix = prop_oneof![2 => Just(0), 1 => 0..=128usize, 1 => Just(128), 1 => Just(32)];
    let flags = prop_oneof![2 => Just(0), 1 => any::<u8>()];
    (prefix, flags, any::<[bool; 7]>()).prop_map(|(prefix, tcp_flags, asked)| Fields {
        prefix,
        tcp_flags,
        local_class: asked[0],
        remote_class: asked[1],
        protocol: asked[2],
        family: asked[3],
        direction: asked[4],
        has_data: asked[5],
        has_ports: asked[6],
    })
}

/// An empty egress packet.
fn blank() -> Seen {
    Seen { packet: Packet::EMPTY, direction: Direction::Egress, local_class: 0, remote_class: 0 }
}

/// The same packet in the other direction.
fn turned(packet: Packet) -> Packet {
    Packet {
        source: packet.destination,
        destination: packet.source,
        source_port: packet.destination_port,
        destination_port: packet.source_port,
        ..packet
    }
}

mod two_packets {
    use super::*;

    proptest! {
        #![proptest_config(cases(3_000))]

        #[test]
        fn are_the_same_under_a_mask_if_and_only_if_its_fields_agree(
            (one, other) in similar(),
            fields in fields(),
        ) {
            let mask = fields.mask();
            let same = masked(&one.tuple(), &mask) == masked(&other.tuple(), &mask);
            prop_assert_eq!(same, fields.agree(&one, &other));
        }

        #[test]
        fn that_differ_in_what_rules_cannot_see_have_the_same_tuple(
            seen in seen(),
            other in packet(),
        ) {
            // Ports are matched by class, and the local address is not matched.
            let mut changed = Packet {
                later_fragment: other.later_fragment,
                fragment: other.fragment,
                fragment_id: other.fragment_id,
                source_port: other.source_port,
                destination_port: other.destination_port,
                echo_id: other.echo_id,
                icmp: other.icmp,
                l3: other.l3,
                l4: other.l4,
                payload: other.payload,
                end: other.end,
                ..seen.packet
            };
            match seen.direction {
                Direction::Egress => changed.source = other.source,
                Direction::Ingress => changed.destination = other.destination,
            }
            prop_assert_eq!(Seen { packet: changed, ..seen }.tuple(), seen.tuple());
        }
    }
}

mod a_mask {
    use super::*;

    #[test]
    fn of_no_fields_makes_all_packets_the_same() {
        assert_eq!(Fields::default().mask(), TupleMask::EMPTY.tuple);
    }

    #[test]
    fn of_a_24_bit_prefix_keeps_the_first_three_bytes_of_an_address() {
        let mut seen = blank();
        seen.packet.destination[0] = u32::from_ne_bytes([203, 0, 113, 77]);
        let mask = Fields { prefix: 24, ..Fields::default() }.mask();
        let network = u32::from_ne_bytes([203, 0, 113, 0]);
        assert_eq!(masked(&seen.tuple(), &mask), [network, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #![proptest_config(cases(500))]

        // The key of a rule is its own tuple under its mask, so masking must be a projection.
        #[test]
        fn applied_twice_changes_nothing_more(tuple in any::<Tuple>(), mask in any::<Tuple>()) {
            let once = masked(&tuple, &mask);
            prop_assert_eq!(masked(&once, &mask), once);
        }

        #[test]
        fn keeps_exactly_the_bits_that_are_set_in_it(
            tuple in any::<Tuple>(),
            mask in any::<Tuple>(),
        ) {
            for (word, kept) in masked(&tuple, &mask).into_iter().enumerate() {
                prop_assert_eq!(kept & !mask[word], 0);
                prop_assert_eq!((kept ^ tuple[word]) & mask[word], 0);
            }
        }
    }
}

mod a_tuple {
    use super::*;

    #[test]
    fn of_a_blank_packet_is_zero() {
        assert_eq!(blank().tuple(), [0; 6]);
    }

    #[test]
    fn has_bits_of_its_own_for_each_field() {
        let with = |change: fn(&mut Seen)| {
            let mut seen = blank();
            change(&mut seen);
            seen.tuple()
        };
        let fields = [
            with(|seen| seen.packet.destination = [u32::MAX; 4]),
            with(|seen| seen.local_class = u16::MAX),
            with(|seen| seen.remote_class = u16::MAX),
            with(|seen| seen.packet.protocol = u8::MAX),
            with(|seen| seen.packet.tcp_flags = u8::MAX),
            with(|seen| seen.packet.family = Family::V6),
            with(|seen| seen.packet.has_data = true),
            with(|seen| seen.packet.has_ports = true),
            with(|seen| seen.direction = Direction::Ingress),
        ];
        let mut taken = [0; 6];
        for bits in fields {
            assert_ne!(bits, [0; 6], "a field has no bits");
            for word in 0..6 {
                assert_eq!(taken[word] & bits[word], 0, "two fields share bits of word {word}");
                taken[word] |= bits[word];
            }
        }
    }

    #[test]
    fn of_a_tcp_answer_is_as_documented() {
        let mut seen = blank();
        seen.packet.source = [u32::from_ne_bytes([192, 0, 2, 1]), 0, 0, 0];
        seen.packet.destination = [u32::from_ne_bytes([198, 51, 100, 7]), 0, 0, 0];
        seen.packet.protocol = protocol::TCP;
        seen.packet.tcp_flags = 0x12;
        seen.packet.has_ports = true;
        seen.direction = Direction::Ingress;
        (seen.local_class, seen.remote_class) = (3, 9);
        let fields = 6 | 0x12 << 8 | field::DIRECTION | field::HAS_PORTS;
        let expected = [u32::from_ne_bytes([192, 0, 2, 1]), 0, 0, 0, 3 << 16 | 9, fields];
        assert_eq!(seen.tuple(), expected);
    }
}

mod direction_of {
    use super::*;

    proptest! {
        #![proptest_config(cases(500))]

        #[test]
        fn a_packet_decides_which_of_its_ends_is_remote(packet in packet()) {
            let (out, into) = (Direction::Egress, Direction::Ingress);
            let addresses = (&packet.source, &packet.destination);
            prop_assert_eq!((packet.local(out), packet.remote(out)), addresses);
            prop_assert_eq!((packet.remote(into), packet.local(into)), addresses);
            let ports = (packet.source_port, packet.destination_port);
            prop_assert_eq!((packet.local_port(out), packet.remote_port(out)), ports);
            prop_assert_eq!((packet.remote_port(into), packet.local_port(into)), ports);
        }

        // So one rule without a direction matches both directions of a conversation.
        #[test]
        fn a_packet_and_of_its_answer_is_all_that_tells_them_apart(seen in seen()) {
            let other = match seen.direction {
                Direction::Egress => Direction::Ingress,
                Direction::Ingress => Direction::Egress,
            };
            let answer = Seen { packet: turned(seen.packet), direction: other, ..seen };
            let ends = |Seen { packet, direction, .. }: &Seen| {
                let local = (*packet.local(*direction), packet.local_port(*direction));
                (local, *packet.remote(*direction), packet.remote_port(*direction))
            };
            prop_assert_eq!(ends(&answer), ends(&seen));

            let mut expected = seen.tuple();
            expected[5] ^= field::DIRECTION;
            prop_assert_eq!(answer.tuple(), expected);
        }
    }
}

#[test]
fn a_space_belongs_to_one_mask_of_one_bank() {
    let mut spaces: Vec<u32> = (0..MAX_MASKS as u32)
        .flat_map(|mask| (0..2).map(move |bank| TupleKey::space(mask, bank)))
        .collect();
    spaces.sort_unstable();
    spaces.dedup();
    assert_eq!(spaces.len(), MAX_MASKS * 2);
}

#[test]
fn the_fields_leave_room_for_the_space() {
    let last = TupleKey { tuple: [0; 6], space: TupleKey::space(MAX_MASKS as u32 - 1, 1) };
    assert_eq!(last.short().fields >> field::BITS, last.space);
    assert_eq!(field::HAS_PORTS >> field::BITS, 0);
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn short_keys_differ_where_the_keys_do(
        a in any::<[u32; 4]>(), b in any::<[u32; 4]>(), same in any::<[bool; 4]>(),
    ) {
        let key = |[address, ports, fields, space]: [u32; 4]| TupleKey {
            tuple: [address, 0, 0, 0, ports, fields & ((1 << field::BITS) - 1)],
            space: space % TupleKey::space(MAX_MASKS as u32, 0),
        };
        let mut b = b;
        for (number, same) in same.into_iter().enumerate() {
            if same {
                b[number] = a[number];
            }
        }
        let (a, b) = (key(a), key(b));
        prop_assert!(a.has_short() && is_short(&a.tuple));
        prop_assert_eq!(a == b, a.short() == b.short());
        prop_assert_eq!(a.short().bank(), a.space & 1);
    }

    #[test]
    fn a_slot_tells_its_own_key_from_others(
        address in any::<u32>(), other in any::<u32>(), rule in 0u32..65_536,
    ) {
        let key = ShortKey { address, ports: 1, fields: 2 };
        let stranger = ShortKey { address: other, ..key };
        let slot = Slot::new(key, rule);
        let shared = Slot { state: slot.state | Slot::SHARED, ..slot };
        prop_assert_eq!(Slot::default().find(&key), Found::Nothing);
        prop_assert_eq!(slot.find(&key), Found::Rule(rule));
        prop_assert_eq!(shared.find(&key), Found::Rule(rule));
        if stranger != key {
            prop_assert_eq!(slot.find(&stranger), Found::Nothing);
            prop_assert_eq!(shared.find(&stranger), Found::Elsewhere);
        }
    }
}

#[test]
fn consecutive_addresses_spread_over_the_slots() {
    // 10.0.0.0/16 in network byte order, in as many slots as the eBPF side has for them.
    let slots = 1u32 << 18;
    let mut taken: Vec<u32> = (0..1u32 << 16)
        .map(|n| {
            ShortKey { address: (0x0a00_0000 | n).to_be(), ports: 0, fields: 0x10_0011 }.hash()
        })
        .map(|hash| hash & (slots - 1))
        .collect();
    taken.sort_unstable();
    taken.dedup();
    // Randomly distributed, 65,536 keys occupy 57,985 of 262,144 slots.
    assert!(taken.len() > 57_000, "{}", taken.len());
}

#[test]
fn a_length_beyond_the_table_is_at_its_end() {
    for (length, index) in [(0, 0), (1500, 1500), (65_535, 65_535), (65_536, 65_535)] {
        assert_eq!(length_index(length), index);
    }
    assert_eq!(length_index(u32::MAX), LENGTHS - 1);
}

#[test]
fn the_wire_length_of_a_packet_to_be_split_is_that_of_its_segments() {
    let packet = Packet { l3: 14, l4: 34, payload: 66, end: 14 + 52 + 10_000, ..Packet::EMPTY };
    assert_eq!(packet.ip_length(), 10_052);
    for (segment_size, length) in [(0, 10_052), (1448, 1500), (10_000, 10_052), (20_000, 10_052)] {
        assert_eq!(packet.wire_length(segment_size), length, "{segment_size}");
    }
}

//! The tables, searched by the code that the kernel side runs, against a plain reading of the rules.

use std::{collections::HashMap, net::IpAddr};

use injector_common::{
    classify::{first_rule, tuple},
    control::length_index,
    model::{chance::Chance, delay, rate},
    packet::{self, Family, Packet},
    rule::{RULE_ECN, RULE_HOLDS, RULE_RESET, RULE_STATEFUL, RULE_WIRE},
};
use proptest::prelude::*;

use super::*;
use crate::spec::{
    packet::{loss::Loss, mtu::Mtu, ways::Ways},
    rule::RuleSpec,
    value::{Protocol, TcpFlags},
};

/// The rule that the tables lead to: of the packet, or of its connection.
fn classified(
    compiled: &Compiled,
    packet: &Packet,
    direction: packet::Direction,
    is_connection: bool,
) -> Option<u32> {
    let class = |side: usize, port: u16| match &compiled.classes {
        Some(classes) if packet.has_ports => classes[side][usize::from(port)],
        _ => 0,
    };
    let local = class(0, packet.local_port(direction));
    let remote = class(1, packet.remote_port(direction));
    let entries: HashMap<TupleKey, u32> = compiled.entries(1).into_iter().collect();
    let classes = compiled.length_classes.as_ref();
    let length = classes.map_or(0, |classes| classes[length_index(packet.wire_length(0))]);
    let (masks, first_mask, length) = if is_connection {
        (&compiled.set.connections, FIRST_CONNECTION_MASK, 0)
    } else {
        (&compiled.set.packets, 0, length)
    };
    let tuple = tuple(packet, direction, local, remote, length);
    first_rule(&tuple, masks, first_mask, 1, u32::MAX, |key| entries.get(key).copied())
}

/// Whether the words of the rule fit the packet.
fn fits(matching: &Matching, packet: &Packet, direction: packet::Direction) -> bool {
    let way = match direction {
        packet::Direction::Egress => Direction::Egress,
        packet::Direction::Ingress => Direction::Ingress,
    };
    let address: IpAddr = match packet.family {
        Family::V4 => packet.remote(direction)[0].to_ne_bytes().into(),
        Family::V6 => {
            let words = packet.remote(direction).map(u32::to_ne_bytes);
            let octets: [u8; 16] = words.concat().try_into().expect("16 bytes");
            octets.into()
        }
    };
    let in_net = |remote: &Remote| match remote {
        Remote::Net(net) => net.contains(&address),
        Remote::Peer(_) => false,
    };
    let port_fits = |set: &Option<PortSet>, port: u16| {
        set.as_ref()
            .is_none_or(|set| packet.has_ports && set.ranges().any(|range| range.contains(&port)))
    };
    (matching.direction == Direction::Both || matching.direction == way)
        && (matching.protocols.is_empty()
            || matching.protocols.contains(&Protocol(packet.protocol)))
        && (matching.remotes.is_empty() || matching.remotes.iter().any(in_net))
        && port_fits(&matching.local_ports, packet.local_port(direction))
        && port_fits(&matching.remote_ports, packet.remote_port(direction))
        && matching.tcp_flags.is_none_or(|flags| packet.tcp_flags & flags.mask == flags.set)
        && (!matching.data_only || packet.has_data)
        && matching.longer_than.is_none_or(|limit| packet.ip_length() > limit.into())
}

fn rule(matching: Matching) -> Rule {
    let spec = RuleSpec { loss: Some(Ways::Both(Loss::default())), ..RuleSpec::default() };
    let mut rules = spec.check().expect("valid");
    let mut rule = rules.remove(0);
    rule.matching = matching;
    rule
}

/// Few different values, so that rules and packets often meet.
fn remotes() -> impl Strategy<Value = Vec<Remote>> {
    let nets = [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.3/32",
        "0.0.0.0/0",
        "fd00::/16",
        "fd00::1/128",
        "::/0",
    ];
    prop::sample::subsequence(nets.to_vec(), 0..3)
        .prop_map(|nets| nets.iter().map(|net| net.parse().expect("valid")).collect())
}

fn ports() -> impl Strategy<Value = Option<PortSet>> {
    let sets = ["80", "80,443", "79-81", "!80", "!0-79,!443-65535", "0", "65535", "0-65535"];
    prop::option::of(
        prop::sample::select(sets.to_vec()).prop_map(|set| set.parse().expect("valid")),
    )
}

prop_compose! {
    fn matching()(
        direction in prop::sample::select(vec![Direction::Egress, Direction::Ingress, Direction::Both]),
        protocols in prop::sample::subsequence(vec![Protocol(1), Protocol(6), Protocol(17)], 0..3),
        remotes in remotes(),
        remote_ports in ports(),
        local_ports in ports(),
        tcp_flags in prop::option::weighted(0.2, (0u8..32, 0u8..32)),
        data_only in prop::bool::weighted(0.2),
        longer_than in prop::option::weighted(0.3, prop::sample::select(vec![0u16, 85, 86, 87, 1400])),
    ) -> Matching {
        let tcp_flags = tcp_flags.map(|(set, mask)| TcpFlags { set: set & mask, mask });
        Matching { direction, protocols, remotes, remote_ports, local_ports, tcp_flags, data_only, longer_than }
    }
}

prop_compose! {
    fn packet()(
        v6 in any::<bool>(),
        protocol in prop::sample::select(vec![1u8, 6, 17]),
        addresses in (0usize..4, 0usize..4),
        ports in prop::sample::select(vec![(80u16, 443u16), (79, 80), (443, 0), (65535, 81)]),
        tcp_flags in 0u8..32,
        has_data in any::<bool>(),
        later_fragment in prop::bool::weighted(0.1),
        end in prop::sample::select(vec![14u32, 100, 101, 1500, 70_000]),
    ) -> Packet {
        let v4s = [[10, 1, 2, 3], [10, 1, 9, 9], [10, 9, 9, 9], [192, 0, 2, 1]];
        let v6s = ["fd00::1", "fd00::2", "fd01::", "::1"];
        let address = |number: usize| if v6 {
            let address: std::net::Ipv6Addr = v6s[number].parse().expect("valid");
            words(address.octets())
        } else {
            [u32::from_ne_bytes(v4s[number]), 0, 0, 0]
        };
        let has_ports = protocol != 1 && !later_fragment;
        let tcp = protocol == 6 && has_ports;
        Packet {
            source: address(addresses.0),
            destination: address(addresses.1),
            family: if v6 { Family::V6 } else { Family::V4 },
            protocol,
            tcp_flags: if tcp { tcp_flags } else { 0 },
            has_ports,
            has_data: tcp && has_data,
            later_fragment,
            fragment: later_fragment,
            fragment_id: 0,
            source_port: if has_ports { ports.0 } else { 0 },
            destination_port: if has_ports { ports.1 } else { 0 },
            echo_id: 0,
            icmp: packet::IcmpKind::default(),
            l3: 14,
            l4: 34,
            payload: 54,
            end,
        }
    }
}

proptest! {
    #[test]
    fn the_first_rule_that_fits_is_the_one_that_is_found(
        matchings in prop::collection::vec(matching(), 1..12),
        packets in prop::collection::vec((packet(), any::<bool>()), 20),
    ) {
        let rules: Vec<Rule> = matchings.into_iter().map(rule).collect();
        let compiled = compile(&rules, &Addresses::new(), 1).expect("few rules");
        for (packet, sent) in packets {
            let direction = if sent { packet::Direction::Egress } else { packet::Direction::Ingress };
            let expected = rules.iter().position(|rule| fits(&rule.matching, &packet, direction));
            let found = classified(&compiled, &packet, direction, false);
            prop_assert_eq!(found.map(|number| number as usize), expected, "{:?}", packet);
        }
    }

    #[test]
    fn the_mss_of_a_connection_is_clamped_by_the_first_rule_that_clamps(
        rules in prop::collection::vec((matching(), any::<bool>()), 1..12),
        packets in prop::collection::vec((packet(), any::<bool>()), 20),
    ) {
        let rules: Vec<Rule> = rules.into_iter().map(|(matching, clamps)| {
            let mut rule = rule(matching);
            if clamps {
                Mtu::ETHERNET.clamp(&mut rule.impairment.rule);
            }
            rule
        }).collect();
        let compiled = compile(&rules, &Addresses::new(), 1).expect("few rules");
        let clamps = rules.iter().any(Rule::clamps_mss);
        prop_assert!(!clamps || compiled.egress && compiled.ingress);
        for (packet, sent) in packets {
            let direction = if sent { packet::Direction::Egress } else { packet::Direction::Ingress };
            let expected = rules.iter().position(|rule| {
                rule.clamps_mss() && fits(&rule.matching.connection(), &packet, direction)
            });
            let found = classified(&compiled, &packet, direction, true);
            prop_assert_eq!(found.map(|number| number as usize), expected, "{:?}", packet);
        }
    }
}

#[test]
fn as_many_rules_as_promised_share_one_mask() {
    let rules: Vec<Rule> = (0..rule::MAX_RULES as u32)
        .map(|number| {
            let address = IpAddr::from(number.to_be_bytes());
            let remotes = vec![Remote::Net(IpNet::from(address))];
            rule(Matching { remotes, ..Matching::default() })
        })
        .collect();
    let compiled = compile(&rules, &Addresses::new(), 1).expect("as many as promised");
    assert_eq!(compiled.mask_count(), 1);
    assert_eq!(compiled.entry_count(), rule::MAX_RULES);
}

#[test]
fn each_port_of_all_can_have_its_own_rule() {
    let rules: Vec<Rule> = (0..=u16::MAX)
        .map(|port| {
            let remote_ports = Some(port.to_string().parse().expect("a port"));
            rule(Matching { remote_ports, ..Matching::default() })
        })
        .collect();
    let compiled = compile(&rules, &Addresses::new(), 1).expect("as many as promised");
    let [_, remote] = compiled.classes.as_ref().expect("ports are matched");
    assert!((0..=u16::MAX).all(|port| remote[usize::from(port)] == port));
}

#[test]
fn what_cannot_be_classified_is_refused() {
    let prefixes: Vec<Remote> =
        (0..=128).map(|length| format!("::/{length}").parse().expect("valid")).collect();
    let rules = [rule(Matching { remotes: prefixes, ..Matching::default() })];
    let error = compile(&rules, &Addresses::new(), 1).expect_err("too many");
    assert_eq!(error, CompileError::TooManyMasks(129));

    // Each rule is cut in pieces by all others.
    let rules: Vec<Rule> = (0..4000)
        .map(|number| {
            let ports = format!("{number}-{}", number + 30_000);
            rule(Matching {
                remote_ports: Some(ports.parse().expect("valid")),
                ..Matching::default()
            })
        })
        .collect();
    let error = compile(&rules, &Addresses::new(), 1).expect_err("too many");
    assert_eq!(error, CompileError::TooManyEntries);
}

#[test]
fn the_earlier_of_two_deadlines_holds() {
    let mut one = rule(Matching::default());
    one.lasts = Some("1s".parse().expect("valid"));
    let deadline = |end| {
        let mut compiled =
            compile(std::slice::from_ref(&one), &Addresses::new(), 1).expect("one rule");
        compiled.start(500, end);
        compiled.rules[0].deadline_ns
    };
    assert_eq!(deadline(u64::MAX), 1_000_000_500);
    assert_eq!(deadline(700), 700);
}

/// The rules of these YAML texts, compiled.
fn compiled(texts: &[&str]) -> Result<Compiled, CompileError> {
    let rules = texts.iter().flat_map(|text| {
        let spec: RuleSpec = serde_saphyr::from_str(text).expect(text);
        spec.check().expect(text)
    });
    compile(&rules.collect::<Vec<_>>(), &Addresses::new(), 1)
}

#[test]
fn rules_that_hold_no_packets_take_nothing_for_it() {
    let compiled = compiled(&["{loss: '1%,corr=5%', ecn: true}", "{reset: true}"]).expect("valid");
    assert!(!compiled.needs_hold());
    assert!(compiled.holds.is_empty() && compiled.tables.is_empty());
    assert_eq!(compiled.rules[0].flags, RULE_ECN | RULE_STATEFUL | RULE_WIRE);
    assert_eq!(compiled.rules[1].flags, RULE_RESET);
}

#[test]
fn each_rule_holds_packets_as_it_says() {
    let compiled = compiled(&[
        "{loss: 1%}",
        "{delay: 0s}",
        "{delay: '50ms,jitter=10ms,corr=50%', reorder: '25%,corr=50%,gap=5'}",
        "{rtt: 30ms, rate: '1mbit,burst=1250b,overhead=-4,queue=2s', ecn: true}",
    ]);
    let compiled = compiled.expect("valid");
    assert!(compiled.needs_hold());
    assert!(compiled.tables.is_empty());
    let flags: Vec<u32> = compiled.rules.iter().map(|rule| rule.flags).collect();
    let held = RULE_HOLDS | RULE_WIRE;
    assert_eq!(flags, [RULE_WIRE, RULE_HOLDS, held, held | RULE_ECN]);
    let [none, zero, delay, rate] = compiled.holds.as_slice() else { panic!("one for each rule") };
    assert_eq!(none, &Hold::default());
    assert_eq!(zero, &Hold::default());
    let expected = delay::Delay {
        latency_ns: 50_000_000,
        jitter_ns: 10_000_000,
        distribution: delay::UNIFORM,
        correlation: 1 << 31,
        reorder: Chance::new(0.25, 0.5),
        gap: 5,
        ordered: 0,
    };
    assert_eq!(delay, &Hold { delay: expected, ..Hold::default() });
    assert_eq!(rate.delay, delay::Delay { latency_ns: 15_000_000, ..delay::Delay::default() });
    // 8 us a byte.
    let expected = rate::Rate {
        cost: 8000 << 20,
        burst_ns: 10_000_000,
        queue_ns: 2_000_000_000,
        overhead: -4,
        ..rate::Rate::default()
    };
    assert_eq!(rate.rate, expected);
}

#[test]
fn a_queue_is_a_time_or_what_its_bytes_take() {
    let queue = |rate: &str| {
        compiled(&[&format!("{{rate: '{rate}'}}")]).expect("valid").holds[0].rate.queue_ns
    };
    assert_eq!(queue("1mbit,queue=5ms"), 5_000_000);
    assert_eq!(queue("1mbit,queue=0b"), 0);
    assert_eq!(queue("8mbit,queue=64kb"), 65_536_000);
    // The default: long enough for some packets on slow links, and for some time on fast ones.
    assert_eq!(queue("1tbit"), 100_000_000);
    assert_eq!(queue("1200kbit"), 100_000_000);
    assert_eq!(queue("600kbit").div_ceil(1000), 200_000);
    assert_eq!(queue("1kbit"), 120_000_000_000);
}

#[test]
fn equal_distributions_share_a_table() {
    let path = |number: u32| {
        let name = format!("injector-table-{}-{number}", std::process::id());
        std::env::temp_dir().join(name)
    };
    let files: Vec<_> = (0..MAX_TABLES).map(path).collect();
    for (number, file) in files.iter().enumerate() {
        // The last one is the first one's copy.
        let number = number as u32 % (MAX_TABLES - 1);
        std::fs::write(file, format!("-8192 {number} 8192")).expect("a file");
    }
    let text = |distribution: &str| format!("{{delay: '5ms,jitter=1ms,dist={distribution}'}}");
    let file_texts: Vec<String> =
        files.iter().map(|file| text(&file.display().to_string())).collect();
    let mut texts = vec![text("normal"), text("uniform"), text("normal")];
    texts.extend(file_texts);
    // Without jitter, nothing is drawn.
    texts.push("{delay: '5ms,jitter=0s,dist=paretonormal'}".into());
    let all = |texts: &[String]| compiled(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let enough = all(&texts);
    texts.push(text("pareto"));
    let too_many = all(&texts);
    for file in &files {
        std::fs::remove_file(file).expect("it is there");
    }
    let enough = enough.expect("as many as there may be");
    assert_eq!(enough.tables.len(), MAX_TABLES as usize);
    let numbers: Vec<u32> = enough.holds.iter().map(|hold| hold.delay.distribution).collect();
    assert_eq!(numbers, [1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 0]);
    let normal = &enough.tables[0];
    assert_eq!(normal.length, 16_384);
    assert_eq!(normal.values.as_slice(), &*crate::spec::distribution::normal());
    let small = &enough.tables[2];
    assert_eq!((small.length, &small.values[..4]), (3, [-8192, 1, 8192, 0].as_slice()));
    assert_eq!(too_many.expect_err("one more"), CompileError::TooManyTables);
}

#[test]
fn delays_follow_the_distribution_that_was_asked_for() {
    struct Boxes<'a>(&'a [Box<hold::Table>]);
    impl delay::Tables for Boxes<'_> {
        fn value(&self, table: u32, random: u32) -> i32 {
            self.0[table as usize].value(random)
        }
    }
    let compiled = compiled(&["{delay: '50ms,jitter=10ms,dist=normal'}"]).expect("valid");
    let count = 20_000;
    let delays: Vec<f64> = (0..count)
        .map(|index| {
            let delay = &compiled.holds[0].delay;
            let (tables, memory) = (Boxes(&compiled.tables), delay::Memory::default());
            let (held, _) = hold::delay(delay, compiled.rules[0].stream, index, 0, memory, &tables);
            held.expect("none is let go") as f64 / 1e6
        })
        .collect();
    let mean = delays.iter().sum::<f64>() / count as f64;
    let deviation = delays.iter().map(|delay| (delay - mean).powi(2)).sum::<f64>() / count as f64;
    // Some 7 standard errors.
    assert!((mean - 50.0).abs() < 0.5, "{mean}");
    assert!((deviation.sqrt() - 10.0).abs() < 0.4, "{deviation}");
}
